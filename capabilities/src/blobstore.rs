//! Objects of any size in named containers, streamed in and out.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::Stream;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use crate::BoxError;
pub use crate::keyvalue::{KeyRange, Page};

/// A body in pieces; an error ends it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// A store of objects, already scoped to who asked for it.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Creates `name`; one that exists already is success.
    async fn create_container(&self, name: &str) -> Result<ContainerInfo>;

    /// What is known of `name`; `None` when absent.
    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>>;

    /// Removes `name` and all its objects; absent is success.
    async fn delete_container(&self, name: &str) -> Result<()>;

    /// The bytes of `object` in `range`.
    ///
    /// Shape: the end of `range` is inclusive and clamped to the object's size.
    /// Errors: [`Error::NoSuchObject`].
    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<ByteStream>;

    /// Replaces `object` by `body`, all or nothing: a body that ends in an error leaves the object as it was.
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
    /// Any UTF-8 of 1..=1024 bytes.
    pub object: &'a str,
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
