//! From bytes to an image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use reqwest::{Method, Request};
use tokio::time::Instant;

use super::{Error, MANIFEST, Progress, Result, Session};
use crate::artifact::reference::Digest;

const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

impl Session<'_> {
    /// Uploads `bytes` unless they are there.
    pub(super) async fn upload(
        &mut self,
        bytes: Bytes,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<()> {
        let digest = Digest::of(&bytes);
        let total = bytes.len() as u64;
        let there = Request::new(Method::HEAD, self.url(&format!("blobs/{digest}"))?);
        match self.send(there).await {
            Ok(_) => {
                progress(Progress { done: total, total });
                return Ok(());
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let begin = self
            .send(Request::new(Method::POST, self.url("blobs/uploads/")?))
            .await?;
        let location = begin
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        let mut location = location
            .and_then(|location| begin.url().join(location).ok())
            .ok_or_else(|| self.protocol("an upload without a location".to_owned()))?;
        location
            .query_pairs_mut()
            .append_pair("digest", &digest.to_string());

        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let chunks = (0..bytes.len())
            .step_by(UPLOAD_CHUNK_BYTES)
            .map(move |start| {
                let end = start.saturating_add(UPLOAD_CHUNK_BYTES).min(bytes.len());
                counter.store(end as u64, Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(bytes.slice(start..end))
            });
        let mut request = Request::new(Method::PUT, location);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_LENGTH, total.into());
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        *request.body_mut() = Some(reqwest::Body::wrap_stream(futures::stream::iter(chunks)));
        let mut put = std::pin::pin!(self.authorized(request).send());
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut last = (0, Instant::now());
        let answer = loop {
            tokio::select! {
                answer = &mut put => break answer.map_err(|error| self.unreachable(error))?,
                now = tick.tick() => {
                    let done = sent.load(Ordering::Relaxed);
                    progress(Progress { done, total });
                    if done != last.0 {
                        last = (done, now);
                    } else if now.duration_since(last.1) > self.client.timeout {
                        return Err(self.stalled());
                    }
                }
            }
        };
        self.checked(answer, &digest.to_string()).await?;
        progress(Progress { done: total, total });
        Ok(())
    }

    /// Makes the image mean `manifest`.
    pub(super) async fn put_manifest(&mut self, manifest: String) -> Result<Digest> {
        let digest = Digest::of(manifest.as_bytes());
        let url = self.url(&format!("manifests/{}", self.image.version()))?;
        let mut request = Request::new(Method::PUT, url);
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(MANIFEST));
        *request.body_mut() = Some(manifest.into());
        self.send(request).await?;
        Ok(digest)
    }
}
