//! Objects of any size in named containers, streamed in and out.
//!
//! The trait is small on purpose: copying, moving, clearing and deleting many are derived from it once,
//! in the interface that serves the WIT packages.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use crate::BoxError;
pub use crate::keyvalue::{KeyRange, Page};
use crate::plugin::{OpenError, Settings};

/// The longest name of an object, in bytes of UTF-8.
pub const OBJECT_NAME_BYTES_MAX: usize = 1024;

/// The largest object, in bytes; the setting `max_object_bytes` can only lower it.
pub const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// A body in pieces; an error ends it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// A store of objects, already scoped to who asked for it.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Creates `name`; one that exists already is success, and stays as it is.
    ///
    /// Errors: [`Error::NoSuchContainer`] when it is absent and may not be created;
    /// [`Error::InvalidArgument`] for a name the storage cannot hold.
    async fn create_container(&self, name: &str) -> Result<ContainerInfo>;

    /// What is known of `name`; `None` when absent.
    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>>;

    /// Removes `name` and all its objects; absent is success.
    async fn delete_container(&self, name: &str) -> Result<()>;

    /// The bytes of `object` in `range`.
    ///
    /// Shape: the end of `range` is inclusive and clamped to the object's size; a start beyond it gives
    /// nothing. All bytes are of one content: a storage that cannot keep the old one while it is replaced
    /// ends the body with [`Error::Changed`]. Content that is read whole is checked against its digest
    /// where the storage has one.
    /// Errors: [`Error::NoSuchObject`].
    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<Content>;

    /// Replaces `object` by `body`, all or nothing: a body that ends in an error, and a caller that goes
    /// away, leave the object as it was.
    ///
    /// Shape: the body is read only as fast as the storage takes it.
    /// Errors: [`Error::TooLarge`] above [`OBJECT_BYTES_MAX`] or the limit configured; [`Error::Body`].
    async fn write(&self, object: ObjectId<'_>, body: ByteStream) -> Result<()>;

    /// What is known of `object`; `None` when absent.
    async fn object(&self, object: ObjectId<'_>) -> Result<Option<ObjectInfo>>;

    /// Removes `object`; absent is success.
    async fn delete(&self, object: ObjectId<'_>) -> Result<()>;

    /// At most `range.limit` object names after `range.after`, in byte order.
    async fn objects(&self, container: &str, range: KeyRange<'_>) -> Result<Page>;
}

/// Names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectId<'a> {
    /// The guest's name of the container.
    pub container: &'a str,
    /// Any UTF-8 of 1..=[`OBJECT_NAME_BYTES_MAX`] bytes without a NUL.
    pub object: &'a str,
}

/// What a read gives.
pub struct Content {
    /// How many bytes `body` has.
    pub size: u64,
    /// The bytes; nothing is read ahead of who polls it, but what the storage sends at once.
    pub body: ByteStream,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content of {} bytes", self.size)
    }
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    /// The guest's name of it.
    pub name: String,
    /// When it was made.
    pub created_at: SystemTime,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name in the container.
    pub name: String,
    /// When this content was committed.
    pub created_at: SystemTime,
    /// In bytes.
    pub size: u64,
}

/// Why a blob operation failed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The container does not exist.
    #[error("container '{0}' does not exist")]
    NoSuchContainer(String),
    /// The object does not exist.
    #[error("object '{0}' does not exist")]
    NoSuchObject(String),
    /// The storage refused this host's credentials.
    #[error("access denied")]
    AccessDenied,
    /// A name the storage cannot hold.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The object is larger than may be stored.
    #[error("object exceeds {bytes_max} bytes")]
    TooLarge {
        /// The limit in force.
        bytes_max: u64,
    },
    /// The body given to `write` ended in an error; nothing was stored.
    #[error("the body ended early")]
    Body(#[source] BoxError),
    /// Found in the middle of a body: the rest of this content is gone.
    #[error("object '{0}' was replaced or deleted while it was read; read it again")]
    Changed(String),
    /// Found at the end of a body, or in the middle.
    #[error("object '{0}' is damaged: what is stored is not what was written")]
    Damaged(String),
    /// The storage did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The storage cannot be reached; trying again may help.
    #[error("storage unavailable")]
    Unavailable(#[source] BoxError),
    /// Anything else the storage's client said.
    #[error("storage error")]
    Internal(#[source] BoxError),
}

/// What blob operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refuses names of objects that no storage takes.
///
/// # Errors
/// [`Error::InvalidArgument`] for an empty name, one over [`OBJECT_NAME_BYTES_MAX`], or one with a NUL.
pub fn check_object_name(name: &str) -> Result<()> {
    let why = match name.len() {
        0 => "the object's name is empty".to_owned(),
        n if n > OBJECT_NAME_BYTES_MAX => {
            format!("object name of {n} bytes exceeds {OBJECT_NAME_BYTES_MAX}")
        }
        _ if name.contains('\0') => "the object's name has a NUL byte".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::InvalidArgument(why))
}

/// The setting `max_object_bytes`: how large an object may be.
///
/// # Errors
/// [`OpenError::Setting`] for what is no number from 1 to [`OBJECT_BYTES_MAX`].
pub fn bytes_max(settings: &Settings<'_>) -> Result<u64, OpenError> {
    let expected = "a number of bytes from 1 to 1073741824";
    let bytes = settings.parsed("max_object_bytes", expected, |value| {
        let bytes = value.parse().ok()?;
        (1..=OBJECT_BYTES_MAX).contains(&bytes).then_some(bytes)
    })?;
    Ok(bytes.unwrap_or(OBJECT_BYTES_MAX))
}

/// The part of an object of `size` bytes that `range` means: from, and up to but without.
pub fn clamp(range: &RangeInclusive<u64>, size: u64) -> (u64, u64) {
    let end = range.end().saturating_add(1).min(size);
    let start = (*range.start()).min(end);
    (start, end)
}

/// `body` in pieces of exactly `bytes`, the last one of at least 1; an error ends it.
pub fn chunks(body: ByteStream, bytes: usize) -> ByteStream {
    struct State {
        body: ByteStream,
        /// What arrived and was not handed on.
        piece: Bytes,
        /// The chunk being put together.
        chunk: BytesMut,
        ended: bool,
    }
    let state = State {
        body,
        piece: Bytes::new(),
        chunk: BytesMut::new(),
        ended: false,
    };
    let bytes = bytes.max(1);
    Box::pin(stream::unfold(state, move |mut state| async move {
        loop {
            if state.chunk.is_empty() && state.piece.len() >= bytes {
                return Some((Ok(state.piece.split_to(bytes)), state));
            }
            let missing = bytes - state.chunk.len();
            let part = state.piece.split_to(missing.min(state.piece.len()));
            state.chunk.extend_from_slice(&part);
            if state.chunk.len() == bytes || state.ended && !state.chunk.is_empty() {
                return Some((Ok(state.chunk.split().freeze()), state));
            }
            if state.ended {
                return None;
            }
            match state.body.next().await {
                Some(Ok(piece)) => state.piece = piece,
                Some(Err(error)) => {
                    state.ended = true;
                    state.chunk.clear();
                    return Some((Err(error), state));
                }
                None => state.ended = true,
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_object() {
        for (range, size, expected) in [
            (0..=u64::MAX, 10, (0, 10)),
            (0..=0, 10, (0, 1)),
            (3..=5, 10, (3, 6)),
            (9..=9, 10, (9, 10)),
            (9..=20, 10, (9, 10)),
            (10..=20, 10, (10, 10)),
            (11..=20, 10, (10, 10)),
            (0..=5, 0, (0, 0)),
        ] {
            assert_eq!(clamp(&range, size), expected, "{range:?} of {size}");
        }
        let backwards = RangeInclusive::new(5, 3);
        let (start, end) = clamp(&backwards, 10);
        assert_eq!(start, end);
    }

    #[tokio::test]
    async fn chunks_are_full_but_the_last() {
        for pieces in [vec![], vec![0, 1, 2], vec![10, 0, 10], vec![3; 7], vec![25]] {
            let whole: Vec<u8> = (0..pieces.iter().sum::<usize>() as u8).collect();
            let mut rest = Bytes::from(whole.clone());
            let body: Vec<Result<Bytes, BoxError>> =
                pieces.iter().map(|n| Ok(rest.split_to(*n))).collect();
            let chunks: Vec<Bytes> = chunks(Box::pin(stream::iter(body)), 4)
                .map(Result::unwrap)
                .collect()
                .await;
            let expected: Vec<&[u8]> = whole.chunks(4).collect();
            assert_eq!(chunks, expected, "{pieces:?}");
        }
        let body = vec![Ok(Bytes::from("abcdef")), Err(BoxError::from("broken"))];
        let mut chunks = chunks(Box::pin(stream::iter(body)), 4);
        assert_eq!(chunks.next().await.unwrap().unwrap(), "abcd");
        assert!(chunks.next().await.unwrap().is_err());
        assert!(chunks.next().await.is_none());
    }
}
