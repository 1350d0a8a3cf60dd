//! Containers: streams in the layout of NATS' object stores (ADR-20), as any client of theirs reads them.
//!
//! An object is one *meta* message on a subject of its name, and *chunks* on a subject of its content. A
//! new content gets a new subject, so a meta message is all that decides what an object is.

use async_nats::connection::State;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::stream::{
    Config, DirectGetError, DirectGetErrorKind, Info, LastRawMessageErrorKind, Stream,
};
use async_nats::jetstream::{self, context::PublishAckFuture};
use async_nats::{Client, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use capabilities::BoxError;
use capabilities::blobstore;
use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::OPERATION_TIMEOUT;
use crate::exchange::{Error, Result, is_conflict, limited};
use crate::scan::Scan;

/// Where in its object a chunk belongs; chunks of other clients have none.
const OFFSET: &str = "Washlet-Offset";

/// The size of chunks, that of other clients.
const CHUNK_BYTES: usize = 128 << 10;

/// What a chunk needs besides its bytes.
const HEADERS_BYTES_MAX: usize = 8 << 10;

/// How long a commit or delete that got no answer may still happen.
const UNCERTAIN: Duration = Duration::from_secs(30);

/// How many contents that no object has are remembered for removal; the oldest are forgotten first.
const ORPHANS_MAX: usize = 1024;

/// The containers of one connection.
pub(crate) struct Containers {
    client: Client,
    jetstream: jetstream::Context,
    orphans: Mutex<VecDeque<Orphan>>,
}

/// A content that was given up, whose chunks are to go unless it is the object's after all.
#[derive(Clone)]
pub(crate) struct Orphan {
    container: String,
    object: String,
    content: String,
    not_before: Instant,
}

/// A container that may exist.
#[derive(Clone)]
pub(crate) struct Container {
    client: Client,
    jetstream: jetstream::Context,
    /// As the storage calls it.
    name: String,
}

/// What an object is now, or was when it was deleted.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) sequence: u64,
    pub(crate) time: SystemTime,
    pub(crate) info: ObjectInfo,
}

impl Orphan {
    pub(crate) fn new(container: &Container, object: &str, content: &str) -> Self {
        Self {
            container: container.name.clone(),
            object: object.to_owned(),
            content: content.to_owned(),
            not_before: Instant::now(),
        }
    }

    /// The same, when it is not yet known what it will be.
    pub(crate) fn uncertain(self) -> Self {
        Self {
            not_before: Instant::now() + UNCERTAIN,
            ..self
        }
    }
}

impl Meta {
    /// Whether the object has this content.
    pub(crate) fn has(&self, content: &str) -> bool {
        !self.info.deleted && self.info.nuid == content
    }
}

impl Containers {
    pub(crate) fn new(client: Client) -> Self {
        // Our own limit ends an exchange first, so that there is one way to learn of it.
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(2 * OPERATION_TIMEOUT)
            .build(client.clone());
        Self {
            client,
            jetstream,
            orphans: Mutex::default(),
        }
    }

    /// The container of that name in the storage, looked for only when it is used.
    pub(crate) fn get(&self, name: &str) -> Container {
        Container {
            client: self.client.clone(),
            jetstream: self.jetstream.clone(),
            name: name.to_owned(),
        }
    }

    /// Whether there is a connection now.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Remembers `orphan` for [`sweep`](Self::sweep).
    pub(crate) fn abandon(&self, orphan: Orphan) {
        let mut orphans = self.orphans();
        if orphans.len() >= ORPHANS_MAX {
            orphans.pop_front();
            tracing::warn!("chunks of an unfinished object stay in a container: too many at once");
        }
        orphans.push_back(orphan);
    }

    /// Removes the chunks of contents given up, of `container` or all; what cannot go now is kept in mind.
    pub(crate) async fn sweep(&self, container: Option<&Container>) {
        if !self.is_connected() {
            return;
        }
        let now = Instant::now();
        let is_due = |orphan: &&Orphan| {
            orphan.not_before <= now && container.is_none_or(|it| it.name == orphan.container)
        };
        let due: Vec<Orphan> = self.orphans().iter().filter(is_due).cloned().collect();
        for orphan in due {
            let container = self.get(&orphan.container);
            let removed = match container.meta_now(&orphan.object).await {
                Ok(Some(meta)) if meta.has(&orphan.content) => Ok(()),
                Ok(_) => container.purge(&orphan.content).await,
                Err(error) => Err(error),
            };
            if matches!(removed, Err(Error::Timeout | Error::Unavailable(_))) {
                return;
            }
            self.orphans().retain(|kept| kept.content != orphan.content);
        }
    }

    fn orphans(&self) -> MutexGuard<'_, VecDeque<Orphan>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the server knows of it.
    ///
    /// Errors: [`Error::NoStream`].
    pub(crate) async fn info(&self) -> Result<Info> {
        let stream = self.jetstream.get_stream(self.stream_name());
        let stream = limited(&self.client, stream).await?;
        Ok(stream.cached_info().clone())
    }

    /// Makes it as `blueprint` says; what exists is an error.
    pub(crate) async fn create(&self, blueprint: &Config) -> Result<()> {
        let config = Config {
            name: self.stream_name(),
            subjects: vec![
                format!("$O.{}.C.>", self.name),
                format!("$O.{}.M.>", self.name),
            ],
            ..blueprint.clone()
        };
        let created = self.jetstream.create_stream(config);
        limited(&self.client, created).await.map(drop)
    }

    /// Removes it with all it has.
    ///
    /// Errors: [`Error::NoStream`].
    pub(crate) async fn delete(&self) -> Result<()> {
        let deleted = self.jetstream.delete_stream(self.stream_name());
        limited(&self.client, deleted).await.map(drop)
    }

    /// What `object` is, also when it was deleted.
    pub(crate) async fn meta(&self, object: &str) -> Result<Option<Meta>> {
        let last = self.last(&self.meta_subject(object)).await?;
        last.map(|message| meta(&message)).transpose()
    }

    /// As [`meta`](Self::meta), and never what was before: it asks the stream's leader.
    pub(crate) async fn meta_now(&self, object: &str) -> Result<Option<Meta>> {
        let stream = self.stream()?;
        let subject = self.meta_subject(object);
        let last = async {
            match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Ok(Some(message)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        let last = limited(&self.client, last).await?;
        last.map(|message| meta(&message)).transpose()
    }

    /// Makes `info` what `object` is, if what it was has the sequence number `expected` (0 for nothing).
    /// Its own sequence number; `None` when another was faster.
    pub(crate) async fn set_meta(&self, info: &ObjectInfo, expected: u64) -> Result<Option<u64>> {
        let payload = serde_json::to_vec(info).map_err(|error| Error::Refused(error.into()))?;
        let message = PublishMessage::build()
            .payload(payload.into())
            .header(header::NATS_ROLLUP, "sub")
            .expected_last_subject_sequence(expected);
        let publish = async {
            self.jetstream
                .send_publish(self.meta_subject(&info.name), message)
                .await?
                .await
        };
        match limited(&self.client, publish).await {
            Ok(ack) => Ok(Some(ack.sequence)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the messages about `object` before the sequence number `end`.
    pub(crate) async fn forget(&self, object: &str, end: u64) -> Result<()> {
        let stream = self.stream()?;
        let purge = stream.purge().filter(self.meta_subject(object));
        let purge = purge.sequence(end).into_future();
        limited(&self.client, purge).await.map(drop)
    }

    /// Sends the chunk of `content` that begins at `offset`; the future ends when it is stored.
    pub(crate) async fn send_chunk(
        &self,
        content: &str,
        offset: u64,
        chunk: Bytes,
    ) -> Result<PublishAckFuture> {
        let message = PublishMessage::build()
            .payload(chunk)
            .header(OFFSET, offset.to_string().as_str());
        let subject = self.chunk_subject(content);
        limited(&self.client, self.jetstream.send_publish(subject, message)).await
    }

    /// Waits until a chunk is stored.
    pub(crate) async fn stored(&self, ack: PublishAckFuture) -> Result<()> {
        limited(&self.client, ack.into_future()).await.map(drop)
    }

    /// Removes the chunks of `content`.
    pub(crate) async fn purge(&self, content: &str) -> Result<()> {
        let stream = self.stream()?;
        let purge = stream.purge().filter(self.chunk_subject(content));
        limited(&self.client, purge.into_future()).await.map(drop)
    }

    /// The first chunk of `content` at or after a sequence number.
    pub(crate) async fn chunk_from(
        &self,
        content: &str,
        sequence: u64,
    ) -> Result<Option<StreamMessage>> {
        let stream = self.stream()?;
        let subject = self.chunk_subject(content);
        self.found(stream.direct_get_next_for_subject(subject, Some(sequence.max(1))))
            .await
    }

    /// The last chunk of `content`.
    pub(crate) async fn last_chunk(&self, content: &str) -> Result<Option<StreamMessage>> {
        self.last(&self.chunk_subject(content)).await
    }

    /// The chunks of `content` after a sequence number.
    pub(crate) fn chunks_after(&self, content: &str, sequence: u64) -> Scan {
        let subject = self.chunk_subject(content);
        Scan::new(&self.client, &self.stream_name(), &subject, sequence + 1)
    }

    /// All meta messages.
    pub(crate) fn metas(&self) -> Scan {
        let subject = format!("$O.{}.M.>", self.name);
        Scan::new(&self.client, &self.stream_name(), &subject, 1)
    }

    /// How large chunks are made here.
    pub(crate) fn chunk_bytes(&self) -> usize {
        let room = self.client.max_payload().saturating_sub(HEADERS_BYTES_MAX);
        CHUNK_BYTES.min(room).max(1)
    }

    async fn last(&self, subject: &str) -> Result<Option<StreamMessage>> {
        let stream = self.stream()?;
        self.found(stream.direct_get_last_for_subject(subject))
            .await
    }

    async fn found(
        &self,
        get: impl Future<Output = Result<StreamMessage, DirectGetError>>,
    ) -> Result<Option<StreamMessage>> {
        let found = async {
            match get.await {
                Ok(message) => Ok(Some(message)),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        limited(&self.client, found).await
    }

    fn stream(&self) -> Result<Stream<()>> {
        // It asks nobody, so it is ready at once.
        let stream = self.jetstream.get_stream_no_info(self.stream_name());
        match futures::FutureExt::now_or_never(stream) {
            Some(stream) => stream.map_err(|error| Error::Refused(error.into())),
            None => Err(Error::Timeout),
        }
    }

    fn stream_name(&self) -> String {
        format!("OBJ_{}", self.name)
    }

    fn meta_subject(&self, object: &str) -> String {
        format!("$O.{}.M.{}", self.name, URL_SAFE.encode(object))
    }

    fn chunk_subject(&self, content: &str) -> String {
        format!("$O.{}.C.{content}", self.name)
    }
}

/// What a meta message says.
pub(crate) fn meta(message: &StreamMessage) -> Result<Meta> {
    let info = serde_json::from_slice(&message.payload)
        .map_err(|error| Error::Refused(BoxError::from(error)))?;
    Ok(Meta {
        sequence: message.sequence,
        time: message.time.into(),
        info,
    })
}

/// The object that a meta message is about, if a guest could have named it so.
pub(crate) fn object_name(message: &StreamMessage) -> Option<String> {
    let (_, encoded) = message.subject.rsplit_once('.')?;
    let name = String::from_utf8(URL_SAFE.decode(encoded).ok()?).ok()?;
    blobstore::check_object_name(&name).ok()?;
    Some(name)
}

/// Where in its object a chunk begins, if whoever wrote it said so.
pub(crate) fn offset(chunk: &StreamMessage) -> Option<u64> {
    chunk.headers.get(OFFSET)?.as_str().parse().ok()
}
