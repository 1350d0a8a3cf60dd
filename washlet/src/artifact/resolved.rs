//! From what an image means to its bytes.

use bytes::Bytes;

use super::cache::{Known, Pin};
use super::reference::Digest;
use super::{Artifacts, Fetch, Result};

/// A component.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Of `bytes`.
    pub digest: Digest,
    /// The component. Clones, and what others read meanwhile, are the same memory; others wait while too
    /// much of it is in use.
    pub bytes: Bytes,
    /// Of the manifest the image named; `None` for a file.
    pub manifest_digest: Option<String>,
    /// Nothing was downloaded.
    pub from_cache: bool,
    /// The registry should have been asked, and could not be reached.
    pub stale: bool,
    /// Keeps the bytes in the cache.
    pub pin: Pin,
}

/// What an image means, without the bytes.
pub struct Resolved<'a> {
    /// Of the bytes.
    pub digest: Digest,
    /// Keeps the bytes in the cache.
    pub pin: Pin,
    pub(super) bytes: Source<'a>,
}

pub(super) enum Source<'a> {
    /// A file had to be read to know its digest.
    Read(Bytes),
    Cache {
        artifacts: Artifacts,
        request: Fetch<'a>,
        landed: Landed,
    },
}

/// What a pull gives to everybody who waits for it.
#[derive(Clone)]
pub(super) struct Landed {
    pub(super) known: Known,
    pub(super) from_cache: bool,
    pub(super) stale: bool,
    pub(super) pin: Pin,
}

impl Resolved<'_> {
    /// The component; what turns out to be damaged or gone is resolved and pulled once more.
    ///
    /// # Errors
    /// As [`Artifacts::resolve`], and [`Error::Cache`] for what cannot be read after that either.
    pub async fn read(self) -> Result<Artifact> {
        let Self { digest, pin, bytes } = self;
        let (artifacts, request, landed) = match bytes {
            Source::Read(bytes) => {
                return Ok(Artifact {
                    digest,
                    bytes,
                    manifest_digest: None,
                    from_cache: false,
                    stale: false,
                    pin,
                });
            }
            Source::Cache {
                artifacts,
                request,
                landed,
            } => (artifacts, request, landed),
        };
        let reader = &artifacts.inner.reader;
        if let Some(bytes) = reader.read(digest).await {
            return Ok(landed.artifact(bytes));
        }
        drop(landed);
        let again = artifacts.resolve(request).await?;
        let Source::Cache { landed, .. } = again.bytes else {
            return Err(artifacts.inner.unreadable(digest));
        };
        match reader.read(again.digest).await {
            Some(bytes) => Ok(landed.artifact(bytes)),
            None => Err(artifacts.inner.unreadable(again.digest)),
        }
    }
}

impl Landed {
    fn artifact(self, bytes: Bytes) -> Artifact {
        Artifact {
            digest: self.known.layer,
            bytes,
            manifest_digest: Some(self.known.manifest.to_string()),
            from_cache: self.from_cache,
            stale: self.stale,
            pin: self.pin,
        }
    }
}
