//! Writing an object: chunks first, as many under way as are acknowledged in time; what makes them the
//! object's content comes last.

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use capabilities::blobstore::{ByteStream, Error, Result, chunks};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::container::{Container, Containers, Meta, Orphan};

/// How many chunks may be on their way to the server and not acknowledged.
const CHUNKS_IN_FLIGHT: usize = 8;

/// A content on its way. Dropped before it is committed, its chunks are given up.
struct Upload<'a> {
    containers: &'a Arc<Containers>,
    container: &'a Container,
    object: &'a str,
    content: String,
    stage: Stage,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Sending,
    /// It may be the object's content already.
    Committing,
    Committed,
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let orphan = Orphan::new(self.container, self.object, &self.content);
        match self.stage {
            Stage::Sending => self.containers.abandon(orphan),
            Stage::Committing => self.containers.abandon(orphan.uncertain()),
            Stage::Committed => {}
        }
    }
}

/// Replaces `object` by `body`, or leaves it as it was.
pub(crate) async fn write(
    containers: &Arc<Containers>,
    container: &Container,
    object: &str,
    body: ByteStream,
    bytes_max: u64,
) -> Result<()> {
    // Says at once what would be found at the end.
    let last = container.meta(object).await?;
    containers.sweep(Some(container)).await;
    let mut upload = Upload {
        containers,
        container,
        object,
        content: uuid::Uuid::new_v4().simple().to_string(),
        stage: Stage::Sending,
    };
    let written = match upload.send(body, bytes_max).await {
        Ok(info) => upload.commit(&info, last).await,
        Err(error) => Err(error),
    };
    drop(upload);
    match written {
        Ok(Some(replaced)) => remove(containers, container, object, &replaced).await,
        Ok(None) => {}
        Err(error) => {
            containers.sweep(Some(container)).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Removes `object`.
pub(crate) async fn delete(
    containers: &Arc<Containers>,
    container: &Container,
    object: &str,
) -> Result<()> {
    containers.sweep(Some(container)).await;
    loop {
        let Some(last) = live(container.meta_now(object).await?) else {
            return Ok(());
        };
        let tombstone = ObjectInfo {
            size: 0,
            chunks: 0,
            deleted: true,
            ..last.info.clone()
        };
        let sequence = match container.set_meta(&tombstone, last.sequence).await {
            Ok(Some(sequence)) => sequence,
            Ok(None) => continue,
            Err(error) => {
                doubt(containers, container, object, &last.info);
                return Err(error.into());
            }
        };
        remove(containers, container, object, &last.info).await;
        // Who watches has seen it; kept, tombstones of names that never come again would be for ever.
        let forgotten = container.forget(object, sequence + 1).await;
        if let Err(error) = forgotten {
            tracing::debug!(error = capabilities::report(&error), "a tombstone stays");
        }
        return Ok(());
    }
}

/// What is not deleted.
pub(crate) fn live(meta: Option<Meta>) -> Option<Meta> {
    meta.filter(|meta| !meta.info.deleted)
}

/// Removes the chunks of a content that is no longer the object's, now or later.
async fn remove(
    containers: &Arc<Containers>,
    container: &Container,
    object: &str,
    info: &ObjectInfo,
) {
    if info.chunks > 0 && container.purge(&info.nuid).await.is_err() {
        containers.abandon(Orphan::new(container, object, &info.nuid));
    }
}

/// Removes the chunks of a content later, if it is not the object's any more then.
fn doubt(containers: &Arc<Containers>, container: &Container, object: &str, info: &ObjectInfo) {
    if info.chunks > 0 {
        containers.abandon(Orphan::new(container, object, &info.nuid).uncertain());
    }
}

impl Upload<'_> {
    /// Sends all chunks and waits until they are stored.
    async fn send(&self, body: ByteStream, bytes_max: u64) -> Result<ObjectInfo> {
        let content = &self.content;
        let chunk_bytes = self.container.chunk_bytes();
        let mut body = chunks(body, chunk_bytes);
        let mut acks = VecDeque::with_capacity(CHUNKS_IN_FLIGHT);
        let (mut size, mut count, mut digest) = (0, 0, Sha256::new());
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(Error::Body)?;
            let offset = size;
            size += chunk.len() as u64;
            if size > bytes_max {
                return Err(Error::TooLarge { bytes_max });
            }
            count += 1;
            digest.update(&chunk);
            if acks.len() == CHUNKS_IN_FLIGHT
                && let Some(ack) = acks.pop_front()
            {
                self.container.stored(ack).await?;
            }
            acks.push_back(self.container.send_chunk(content, offset, chunk).await?);
        }
        for ack in acks {
            self.container.stored(ack).await?;
        }
        Ok(ObjectInfo {
            name: self.object.to_owned(),
            description: None,
            metadata: HashMap::new(),
            headers: None,
            options: Some(ObjectOptions {
                link: None,
                max_chunk_size: Some(chunk_bytes),
            }),
            bucket: self.container.name().to_owned(),
            nuid: content.clone(),
            size: usize::try_from(size).map_err(|error| Error::Internal(error.into()))?,
            chunks: count,
            // The message's own time is what counts.
            modified: None,
            digest: Some(encode(digest)),
            deleted: false,
        })
    }

    /// Makes the content the object's, whose `last` content may be outdated. What it had before, whose
    /// chunks are the caller's to remove.
    async fn commit(
        &mut self,
        info: &ObjectInfo,
        mut last: Option<Meta>,
    ) -> Result<Option<ObjectInfo>> {
        loop {
            let expected = last.as_ref().map_or(0, |last| last.sequence);
            self.stage = Stage::Committing;
            match self.container.set_meta(info, expected).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.stage = Stage::Sending;
                    last = self.container.meta_now(&info.name).await?;
                    continue;
                }
                // Whether it was stored is not known. It may be.
                Err(error) => match self.container.meta_now(&info.name).await {
                    Ok(Some(now)) if now.has(&info.nuid) => {}
                    _ => {
                        if let Some(last) = last {
                            doubt(self.containers, self.container, self.object, &last.info);
                        }
                        return Err(error.into());
                    }
                },
            }
            self.stage = Stage::Committed;
            return Ok(last.map(|last| last.info));
        }
    }
}

/// As clients of object stores write a digest.
pub(crate) fn encode(digest: Sha256) -> String {
    format!("SHA-256={}", URL_SAFE.encode(digest.finalize()))
}
