//! Where an image may come from: the mirrors of its registry, and then the registry itself.

use std::time::Duration;

use tokio::time::timeout;

use super::download::ATTEMPTS;
use super::{Client, Error, Progress, Result, Session};
use crate::artifact::cache::Known;
use crate::artifact::credentials::Credentials;
use crate::artifact::reference::Image;

/// How long a mirror may take to say what an image means: it is to save time.
const MIRROR_PATIENCE: Duration = Duration::from_secs(5);

/// Tries of one request at a mirror, because there is somebody else to ask.
const MIRROR_ATTEMPTS: u32 = 1;

/// One image at all places that may have it.
///
/// Shape: what a mirror sends is checked against the digests as what the registry sends; it may only say what
/// a tag means. With a pull secret it may not even that: only the registry knows whether the secret is good,
/// and nobody else is shown it.
pub(crate) struct Sources<'a> {
    mirrors: Vec<Session<'a>>,
    registry: Session<'a>,
    /// The workload has a pull secret.
    secret: bool,
}

impl<'a> Sources<'a> {
    /// Without credentials those of the host are used.
    pub(crate) async fn new(
        client: &'a Client,
        image: &'a Image,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let credentials = credentials.filter(|given| !given.is_empty());
        let secret = credentials.is_some();
        let mut mirrors = Vec::new();
        for mirror in client.mirrors(image.registry()) {
            match Session::at(client, image, mirror).await {
                Ok(session) => mirrors.push(session),
                Err(error) => warn(image, &capabilities::report(&error)),
            }
        }
        Ok(Self {
            mirrors,
            registry: Session::new(client, image, credentials).await?,
            secret,
        })
    }

    /// What the image means now; asks for no more than the digest if it still means `known`.
    pub(crate) async fn resolve(&mut self, known: Option<&Known>, attempts: u32) -> Result<Known> {
        let mut failed = Vec::new();
        if !self.secret {
            let mut left = Vec::new();
            let mut found = None;
            for mut mirror in std::mem::take(&mut self.mirrors) {
                if found.is_none() {
                    let resolve = mirror.resolve(known, MIRROR_ATTEMPTS);
                    let resolved = match timeout(MIRROR_PATIENCE, resolve).await {
                        Ok(resolved) => resolved,
                        Err(_) => Err(Error::Stalled {
                            registry: mirror.registry().to_owned(),
                            timeout: MIRROR_PATIENCE,
                        }),
                    };
                    match resolved {
                        Ok(known) => found = Some(known),
                        Err(error) => {
                            failed.push(told(&mirror, &error));
                            if error.is_transient() {
                                // It would not have the bytes either.
                                continue;
                            }
                        }
                    }
                }
                left.push(mirror);
            }
            self.mirrors = left;
            if let Some(known) = found {
                return Ok(known);
            }
        }
        let resolved = self.registry.resolve(known, attempts).await;
        resolved.map_err(|error| beside(failed, error))
    }

    /// Downloads the layer into `file`, verified, and rewinds it.
    pub(crate) async fn download(
        &mut self,
        known: &Known,
        file: std::fs::File,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<std::fs::File> {
        let mut failed = Vec::new();
        for mirror in &mut self.mirrors {
            let copy = file.try_clone()?;
            let download = mirror.download(known, copy, MIRROR_ATTEMPTS, progress);
            match download.await {
                Ok(file) => return Ok(file),
                Err(error @ Error::Write(_)) => return Err(error),
                Err(error) => {
                    failed.push(told(mirror, &error));
                }
            }
        }
        let download = self.registry.download(known, file, ATTEMPTS, progress);
        download.await.map_err(|error| beside(failed, error))
    }
}

/// What a mirror said, which the log has from now on.
fn told(mirror: &Session<'_>, error: &Error) -> String {
    let (registry, mut text) = (mirror.registry(), capabilities::report(error));
    if !text.contains(registry) {
        text = format!("mirror \"{registry}\": {text}");
    }
    warn(mirror.image, &text);
    text
}

fn warn(image: &Image, error: &str) {
    tracing::warn!(%image, error, "a mirror does not give an image, asking elsewhere");
}

/// What the registry said, with what its mirrors said before.
fn beside(mirrors: Vec<String>, error: Error) -> Error {
    match mirrors.is_empty() {
        true => error,
        false => Error::Mirrors {
            mirrors: mirrors.join("; "),
            source: Box::new(error),
        },
    }
}
