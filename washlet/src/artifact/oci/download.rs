//! From a reference to verified bytes.

use std::io::SeekFrom;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use sha2::Digest as _;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::{Error, Progress, Result, Session, WASM};
use crate::artifact::cache::Known;
use crate::artifact::reference::{self, Digest, quote};

const LAYERS: [&str; 2] = [WASM, "application/vnd.module.wasm.content.layer.v1+wasm"];
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Less than this many bytes within the timeout is no progress..
const PROGRESS_BYTES: u64 = 16 << 10;
/// .. nor is less than this part of the whole: else a large artifact might take days.
const PROGRESS_PARTS: u64 = 256;
/// Tries of one request when the registry is busy or unreachable.
pub(crate) const ATTEMPTS: u32 = 3;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

impl Session<'_> {
    /// What the image means now; asks for no more than the digest if it still means `known`.
    pub(crate) async fn resolve(&mut self, known: Option<&Known>, attempts: u32) -> Result<Known> {
        let mut attempts = Attempts {
            left: attempts,
            number: 0,
        };
        loop {
            match self.try_resolve(known).await {
                Ok(found) => return Ok(found),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }

    async fn try_resolve(&mut self, known: Option<&Known>) -> Result<Known> {
        let version = self.image.version().into_owned();
        if let Some(known) = known {
            match self.manifest_request(Method::HEAD, &version).await {
                Ok(answer) if content_digest(answer.headers()) == Some(known.manifest) => {
                    return Ok(*known);
                }
                Err(error) if error.is_transient() => return Err(error),
                // Some registries do not answer this; the question below gets the reason.
                _ => {}
            }
        }
        let (mut manifest, digest) = self.manifest(&version, self.image.digest()).await?;
        if manifest.layers.is_empty() && !manifest.manifests.is_empty() {
            let child = self.parse_digest(choose(&manifest.manifests)?)?;
            manifest = self.manifest(&child.to_string(), Some(child)).await?.0;
        }
        let layer = component(&manifest, self.client.bytes_max)?;
        let layer_digest = self.parse_digest(&layer.digest)?;
        Ok(Known {
            layer: layer_digest,
            manifest: digest,
            size: layer.size,
        })
    }

    async fn manifest(
        &mut self,
        version: &str,
        expected: Option<Digest>,
    ) -> Result<(Manifest, Digest)> {
        let answer = self.manifest_request(Method::GET, version).await?;
        let expected = expected.or(content_digest(answer.headers()));
        let body = self.body(answer, "manifest", MANIFEST_BYTES_MAX).await?;
        let actual = Digest::of(&body);
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(Error::Mismatch {
                what: "manifest",
                expected,
                actual,
            });
        }
        let manifest = read(&body).map_err(|reason| self.protocol(reason))?;
        Ok((manifest, actual))
    }

    async fn manifest_request(&mut self, method: Method, version: &str) -> Result<Response> {
        let mut request = Request::new(method, self.url(&format!("manifests/{version}"))?);
        request
            .headers_mut()
            .insert(header::ACCEPT, HeaderValue::from_static(MANIFESTS));
        self.send(request).await
    }

    /// Downloads the layer into `file`, verified, and rewinds it; goes on where it was cut off.
    pub(crate) async fn download(
        &mut self,
        known: &Known,
        file: std::fs::File,
        attempts: u32,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<std::fs::File> {
        let file = tokio::fs::File::from_std(file);
        let mut download = Download {
            file,
            hash: sha2::Sha256::new(),
            received: 0,
        };
        let mut attempts = Attempts {
            left: attempts,
            number: 0,
        };
        while let Err(error) = self.try_download(known, &mut download, progress).await {
            attempts.pause(error).await?;
        }
        let actual = Digest::finish(download.hash);
        if actual != known.layer {
            return Err(Error::Mismatch {
                what: "artifact",
                expected: known.layer,
                actual,
            });
        }
        download.file.flush().await?;
        download.file.seek(SeekFrom::Start(0)).await?;
        Ok(download.file.into_std().await)
    }

    async fn try_download(
        &mut self,
        known: &Known,
        download: &mut Download,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<()> {
        let size = known.size;
        let mut request = Request::new(Method::GET, self.url(&format!("blobs/{}", known.layer))?);
        let start = format!("bytes={}-", download.received);
        if download.received > 0
            && let Ok(range) = start.parse()
        {
            request.headers_mut().insert(header::RANGE, range);
        }
        let mut answer = self.send(request).await?;
        let resumed = answer.status() == StatusCode::PARTIAL_CONTENT
            && answer
                .headers()
                .get(header::CONTENT_RANGE)
                .is_some_and(|range| {
                    range
                        .as_bytes()
                        .starts_with(start.replace('=', " ").as_bytes())
                });
        if !resumed {
            download.restart().await?;
            if answer.status() == StatusCode::PARTIAL_CONTENT {
                return Err(Error::Truncated { received: 0, size });
            }
        }
        let progress_bytes = PROGRESS_BYTES.max(size / PROGRESS_PARTS);
        let mut mark = download.received;
        let mut deadline = Instant::now() + self.client.timeout;
        loop {
            progress(Progress {
                done: download.received,
                total: size,
            });
            let chunk = timeout_at(deadline, answer.chunk())
                .await
                .map_err(|_| self.stalled())?;
            let Some(chunk) = chunk.map_err(|error| self.unreachable(error))? else {
                break;
            };
            let received = download.received.saturating_add(chunk.len() as u64);
            if received > size {
                return Err(Error::TooLarge {
                    what: "artifact",
                    bytes: received,
                    max: size,
                });
            }
            download.file.write_all(&chunk).await?;
            download.hash.update(&chunk);
            download.received = received;
            if received.saturating_sub(mark) >= progress_bytes {
                mark = received;
                deadline = Instant::now() + self.client.timeout;
            }
        }
        match download.received {
            received if received < size => Err(Error::Truncated { received, size }),
            _ => Ok(()),
        }
    }

    fn parse_digest(&self, text: &str) -> Result<Digest> {
        text.parse()
            .map_err(|error: reference::Error| self.protocol(error.to_string()))
    }
}

/// A download that may be cut off and go on.
struct Download {
    file: tokio::fs::File,
    hash: sha2::Sha256,
    received: u64,
}

impl Download {
    async fn restart(&mut self) -> std::io::Result<()> {
        self.hash = sha2::Sha256::new();
        self.received = 0;
        self.file.set_len(0).await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        Ok(())
    }
}

struct Attempts {
    left: u32,
    number: u32,
}

impl Attempts {
    /// Waits before the next attempt, longer each time and not in step with others; else fails.
    async fn pause(&mut self, error: Error) -> Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !error.is_transient() {
            return Err(error);
        }
        let longest = Duration::from_millis(400).saturating_mul(4_u32.saturating_pow(self.number));
        self.number = self.number.saturating_add(1);
        let random = f64::from(u16::from_be_bytes(random_bytes())) / f64::from(u16::MAX);
        tracing::debug!(%error, "pull is tried again");
        tokio::time::sleep(longest.mul_f64(0.5 + random / 2.0)).await;
        Ok(())
    }
}

fn random_bytes() -> [u8; 2] {
    let (high, low, ..) = uuid::Uuid::new_v4().as_fields();
    [high.to_be_bytes()[0], low.to_be_bytes()[0]]
}

fn read(body: &[u8]) -> Result<Manifest, String> {
    serde_json::from_slice(body)
        .map_err(|error| format!("no manifest: {}", quote(&error.to_string())))
}

/// The layer that is the component, of at most `max` bytes.
fn component(manifest: &Manifest, max: u64) -> Result<&Descriptor> {
    let mut layers = manifest.layers.iter();
    if let Some(layer) = layers.find(|layer| !LAYERS.contains(&&*layer.media_type)) {
        return Err(Error::LayerType(quote(&layer.media_type)));
    }
    let layer = manifest.layers.first().ok_or(Error::NoLayers)?;
    if layer.size > max {
        return Err(Error::TooLarge {
            what: "artifact",
            bytes: layer.size,
            max,
        });
    }
    Ok(layer)
}

/// The manifest of an index: the one for wasm, or the only one.
fn choose(manifests: &[Descriptor]) -> Result<&str> {
    let wasm = |manifest: &&Descriptor| {
        manifest
            .platform
            .as_ref()
            .is_some_and(|platform| platform.architecture == "wasm")
    };
    let mut found = manifests.iter().filter(wasm);
    match (found.next(), found.next(), manifests) {
        (Some(one), None, _) | (None, None, [one]) => Ok(&one.digest),
        _ => Err(Error::Index),
    }
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_oci_manifests() -> anyhow::Result<()> {
        let words = [
            "\"layers\":[{",
            "\"manifests\":[{",
            "\"mediaType\":\"application/wasm\"",
            "\"digest\":\"sha256:",
            "\"size\":",
            "\"platform\":{",
            "\"architecture\":\"wasm\"",
            LAYERS[1],
            "../",
            "sha512:",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ];
        fleet::fuzz::run("oci-manifests", &words, |input| {
            let manifest = read(input)?;
            let text = |error: Error| capabilities::report(&error);
            let index = manifest.layers.is_empty() && !manifest.manifests.is_empty();
            let named = match index {
                true => choose(&manifest.manifests).map_err(text)?,
                false => &component(&manifest, 1 << 20).map_err(text)?.digest,
            };
            let digest: Digest = named
                .parse()
                .map_err(|error| capabilities::report(&error))?;
            assert_eq!(
                digest.to_string(),
                named.to_ascii_lowercase(),
                "other bytes than were named"
            );
            Ok(format!("{index}"))
        })
    }
}
