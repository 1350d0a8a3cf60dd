//! Reading an object: its first chunk at once, the others in batches, as they are asked for.

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::object_store::ObjectInfo;
use bytes::Bytes;
use capabilities::BoxError;
use capabilities::blobstore::{Content, Error, Result, clamp};
use futures::stream;
use sha2::{Digest, Sha256};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::OPERATION_TIMEOUT;
use crate::container::{Container, offset};
use crate::exchange;
use crate::scan::Scan;
use crate::upload::{encode, live};

/// How much is asked for at once: what one reader holds at most.
const READ_AHEAD_BYTES: u64 = 512 << 10;

/// The size of chunks where nothing is said.
const CHUNK_BYTES: u64 = 128 << 10;

/// How long what is missing may still arrive: at a replica that lags behind, or from a server that comes
/// back.
const PATIENCE: Duration = OPERATION_TIMEOUT.saturating_mul(2);

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The bytes of `object` in `range`.
pub(crate) async fn read(
    container: &Container,
    object: &str,
    range: &RangeInclusive<u64>,
) -> Result<Content> {
    let begun = Instant::now();
    loop {
        let Some(meta) = live(container.meta(object).await?) else {
            return Err(Error::NoSuchObject(object.to_owned()));
        };
        // It may lead to where this caller may not read.
        if meta
            .info
            .options
            .as_ref()
            .is_some_and(|options| options.link.is_some())
        {
            let text = format!("object '{object}' is a link, which this host does not follow");
            return Err(Error::InvalidArgument(text));
        }
        let (start, end) = clamp(range, meta.info.size as u64);
        let size = end - start;
        if size == 0 {
            let body = Box::pin(stream::empty());
            return Ok(Content { size, body });
        }
        let chunk_bytes = chunk_bytes(&meta.info);
        if let Some(first) = seek(container, &meta.info.nuid, start, chunk_bytes).await? {
            let download = Download {
                whole: (size == meta.info.size as u64).then(Sha256::new),
                chunks: container.chunks_after(&meta.info.nuid, first.sequence),
                at: offset(&first).unwrap_or(0),
                first: Some(first),
                container: container.clone(),
                info: meta.info,
                start,
                end,
            };
            let body = Box::pin(stream::try_unfold(download, Download::next));
            return Ok(Content { size, body });
        }
        // Replaced since we looked, or not yet here.
        if begun.elapsed() > PATIENCE {
            return Err(Error::Damaged(object.to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn chunk_bytes(info: &ObjectInfo) -> u64 {
    let said = info
        .options
        .as_ref()
        .and_then(|options| options.max_chunk_size);
    said.map_or(CHUNK_BYTES, |bytes| bytes as u64).max(1)
}

/// The chunk that has the byte `start`, or one before it; `None` when the content is gone.
///
/// Chunks lie in their order, and those of others in between. From the last one back, each step is as
/// long as it must be at least, and longer the more others were met.
async fn seek(
    container: &Container,
    content: &str,
    start: u64,
    chunk_bytes: u64,
) -> Result<Option<StreamMessage>> {
    if start >= chunk_bytes
        && let Some(last) = container.last_chunk(content).await?
    {
        let (mut sequence, mut found, mut factor) = (last.sequence, last, 1_u64);
        // Chunks of other clients do not say where they belong: those are read from the first.
        while let Some(at) = offset(&found) {
            if at <= start {
                return Ok(Some(found));
            }
            let steps = (at - start).div_ceil(chunk_bytes).saturating_mul(factor);
            sequence = sequence.saturating_sub(steps);
            if sequence <= 1 {
                break;
            }
            found = match container.chunk_from(content, sequence).await? {
                Some(found) => found,
                None => return Ok(None),
            };
            factor = factor.saturating_mul(2);
        }
    }
    Ok(container.chunk_from(content, 1).await?)
}

/// A body that is being read.
struct Download {
    container: Container,
    info: ObjectInfo,
    first: Option<StreamMessage>,
    chunks: Scan,
    /// Where in the object the next chunk begins.
    at: u64,
    /// What is wanted of it: from, and up to but without.
    start: u64,
    end: u64,
    /// The digest so far, when all of it is read.
    whole: Option<Sha256>,
}

impl Download {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, BoxError> {
        while self.at < self.end {
            let chunk = self.chunk().await?;
            if offset(&chunk).is_some_and(|offset| offset != self.at) {
                return Err(self.damaged().into());
            }
            let (at, length) = (self.at, chunk.payload.len() as u64);
            self.at += length;
            if let Some(digest) = &mut self.whole {
                digest.update(&chunk.payload);
            }
            if self.at >= self.end {
                // Before the last piece is handed on: who counts bytes would not wait for the end.
                self.verify()?;
            }
            let from = self.start.saturating_sub(at).min(length) as usize;
            let to = length.min(self.end - at) as usize;
            if from < to {
                return Ok(Some((chunk.payload.slice(from..to), self)));
            }
        }
        Ok(None)
    }

    async fn chunk(&mut self) -> Result<StreamMessage> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let chunk_bytes = chunk_bytes(&self.info);
        let batch = (self.end - self.at).div_ceil(chunk_bytes);
        let batch = batch.min(READ_AHEAD_BYTES / chunk_bytes).max(1);
        let begun = Instant::now();
        loop {
            let missing = match self.chunks.next(batch).await {
                Ok(Some(chunk)) => return Ok(chunk),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            let now = self.container.meta(&self.info.name).await;
            let is_gone = match now {
                Ok(now) => !now.is_some_and(|now| now.has(&self.info.nuid)),
                Err(exchange::Error::NoStream) => true,
                Err(_) => false,
            };
            if is_gone {
                return Err(Error::Changed(self.info.name.clone()));
            }
            if begun.elapsed() > PATIENCE {
                return Err(missing.map_or_else(|| self.damaged(), Error::from));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn verify(&mut self) -> Result<()> {
        let (Some(digest), Some(written)) = (self.whole.take(), &self.info.digest) else {
            return Ok(());
        };
        // Some clients leave the padding out.
        match encode(digest).trim_end_matches('=') == written.trim_end_matches('=') {
            true => Ok(()),
            false => Err(self.damaged()),
        }
    }

    fn damaged(&self) -> Error {
        Error::Damaged(self.info.name.clone())
    }
}
