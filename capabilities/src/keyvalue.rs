//! Keys and values in named buckets.
//!
//! The trait is small on purpose: batches, conditional writes and compare-and-swap are derived from it
//! once, in the interface that serves the WIT packages.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::Stream;
use std::pin::Pin;
use std::time::Duration;

use crate::BoxError;
use crate::plugin::{OpenError, Settings};

/// The longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;

/// The largest value, in bytes: 1 MiB less room for a storage's own headers.
pub const VALUE_BYTES_MAX: usize = (1 << 20) - (8 << 10);

/// How many watches one host has on one storage.
pub const WATCHES_MAX: usize = 128;

/// The longest life a value can be given; one that lives longer has none.
pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A store of keys and values, already scoped to who asked for it.
///
/// Bucket names are the guest's; the plugin maps them to names of its storage (see [`crate::names`]).
#[async_trait]
pub trait KeyValueStore: Send + Sync + 'static {
    /// Makes `bucket` usable, creating it when configured to.
    ///
    /// Errors: [`Error::NoSuchBucket`] when it is absent and may not be created;
    /// [`Error::InvalidArgument`] for a name the storage cannot hold.
    /// Source: `wasi:keyvalue/store.open`.
    async fn open(&self, bucket: &str) -> Result<()>;

    /// The value and version at `key`; `None` when absent or expired.
    ///
    /// Source: `wasi:keyvalue/store.bucket.get`.
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>>;

    /// Writes when `put.guard` holds, atomically. The new version, or `None` when the guard failed.
    ///
    /// Errors: [`Error::TooLarge`] above [`VALUE_BYTES_MAX`] or the storage's own limit.
    async fn put(&self, bucket: &str, put: Put<'_>) -> Result<Option<Version>>;

    /// Removes `key`; absent is success.
    async fn delete(&self, bucket: &str, key: &str) -> Result<()>;

    /// At most `range.limit` keys after `range.after`, in byte order, starting with `range.prefix`.
    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> Result<Page>;

    /// The keys of `bucket` that change from now on: that are set, or deleted, or removed because they expired.
    ///
    /// Shape: a key comes at least once after its last change, and may come once for several; what it has then
    /// is what [`get`](Self::get) says. The stream does not end; after a gap it goes on where it was. Dropping
    /// it ends the watch.
    /// Errors: [`Error::Unsupported`], the default, and the errors of [`open`](Self::open).
    /// Source: `wasi:keyvalue/watcher`.
    async fn watch(&self, bucket: &str) -> Result<Changes> {
        let _ = bucket;
        Err(Error::Unsupported("watching a bucket"))
    }

    /// Adds `delta` to the counter at `key` and returns the sum; a missing key counts as 0.
    ///
    /// Shape: counters are 8-byte big-endian signed integers, see [`counter`].
    /// Errors: [`Error::NotACounter`] for a value of another shape, [`Error::Overflow`]; never one for
    /// contention. The default is a compare-and-swap loop; a storage that can do better overrides it.
    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64> {
        loop {
            let entry = self.get(bucket, key).await?;
            let (old, guard) = match &entry {
                None => (0, Guard::Absent),
                Some(entry) => (
                    counter::decode(&entry.value)?,
                    Guard::Version(entry.version),
                ),
            };
            let sum = old.checked_add(delta).ok_or(Error::Overflow)?;
            let put = Put {
                key,
                value: counter::encode(sum),
                guard,
                ttl: None,
            };
            if self.put(bucket, put).await?.is_some() {
                return Ok(sum);
            }
        }
    }
}

/// Keys, as they change.
pub type Changes = Pin<Box<dyn Stream<Item = String> + Send>>;

/// One write.
#[derive(Clone, Debug)]
pub struct Put<'a> {
    /// 1..=[`KEY_BYTES_MAX`] bytes of UTF-8.
    pub key: &'a str,
    /// 0..=[`VALUE_BYTES_MAX`] bytes.
    pub value: Bytes,
    /// What must hold for the write to happen.
    pub guard: Guard,
    /// How long the value lives, at most [`TTL_MAX`]; see [`ttl_seconds`]. `None` is for ever.
    pub ttl: Option<Duration>,
}

/// The condition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Always.
    Any,
    /// Only when the key is absent or expired.
    Absent,
    /// Only when the key's version is still this one.
    Version(Version),
}

/// Names one state of a key: equal means unchanged. It never repeats for a key, also not after a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u64);

/// What is stored at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes as written.
    pub value: Bytes,
    /// The state that holds them.
    pub version: Version,
}

/// Which keys to list.
#[derive(Clone, Copy, Debug)]
pub struct KeyRange<'a> {
    /// Only keys that start with this; empty for all.
    pub prefix: &'a str,
    /// Only keys greater than this one (the last key of the previous page).
    pub after: Option<&'a str>,
    /// How many keys at most; at least 1.
    pub limit: usize,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In byte order, without repeats.
    pub keys: Vec<String>,
    /// Whether keys remain after the last one.
    pub more: bool,
}

/// Why a key-value operation failed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The bucket does not exist and was not to be created.
    #[error("bucket '{0}' does not exist")]
    NoSuchBucket(String),
    /// The storage refused this host's credentials.
    #[error("access denied")]
    AccessDenied,
    /// A name or key the storage cannot hold.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The value is larger than may be stored.
    #[error("value of {bytes} bytes exceeds {bytes_max}")]
    TooLarge {
        /// The value's size.
        bytes: usize,
        /// The limit in force.
        bytes_max: usize,
    },
    /// The bucket may not hold more.
    #[error("the bucket is full")]
    Full(#[source] BoxError),
    /// The value at the key is not a counter.
    #[error("value of {0} bytes is not a counter of 8 bytes")]
    NotACounter(usize),
    /// The sum does not fit.
    #[error("counter overflow")]
    Overflow,
    /// The storage did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The storage cannot be reached; trying again may help.
    #[error("storage unavailable")]
    Unavailable(#[source] BoxError),
    /// The storage has no such function.
    #[error("{0} is not supported by this storage")]
    Unsupported(&'static str),
    /// Anything else the storage's client said.
    #[error("storage error")]
    Internal(#[source] BoxError),
}

/// What key-value operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refuses keys that no storage takes.
///
/// # Errors
/// [`Error::InvalidArgument`] for an empty key, one over [`KEY_BYTES_MAX`], or one with a NUL.
pub fn check_key(key: &str) -> Result<()> {
    match key.len() {
        0 => Err(Error::InvalidArgument("the key is empty".to_owned())),
        n if n > KEY_BYTES_MAX => Err(Error::InvalidArgument(format!(
            "key of {n} bytes exceeds {KEY_BYTES_MAX}"
        ))),
        _ if key.contains('\0') => Err(Error::InvalidArgument("the key has a NUL byte".to_owned())),
        _ => Ok(()),
    }
}

/// Refuses values over `bytes_max`.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn check_value(value: &[u8], bytes_max: usize) -> Result<()> {
    match value.len() {
        bytes if bytes > bytes_max => Err(Error::TooLarge { bytes, bytes_max }),
        _ => Ok(()),
    }
}

/// The setting `max_value_bytes`: how large a value may be that is written through the entry.
///
/// Shape: at least 8, because that is a [`counter`].
///
/// # Errors
/// [`OpenError::Setting`] for what is no number from 8 to [`VALUE_BYTES_MAX`].
pub fn value_bytes_max(settings: &Settings<'_>) -> Result<usize, OpenError> {
    let expected = "a number of bytes from 8 to 1040384";
    let bytes = settings.parsed("max_value_bytes", expected, |value| {
        let bytes = value.parse().ok()?;
        (8..=VALUE_BYTES_MAX).contains(&bytes).then_some(bytes)
    })?;
    Ok(bytes.unwrap_or(VALUE_BYTES_MAX))
}

/// The setting `ttl`: how long values live that are written without a ttl of their own.
///
/// Shape: a whole number of seconds, or of what its last letter says.
///
/// # Errors
/// [`OpenError::Setting`] for what is no time from a second to [`TTL_MAX`].
pub fn ttl(settings: &Settings<'_>) -> Result<Option<Duration>, OpenError> {
    let expected = "a time of at least 1s, like 90s, 10m, 12h or 7d";
    settings.parsed("ttl", expected, parse_ttl)
}

fn parse_ttl(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    let ttl = Duration::from_secs(seconds);
    (ttl >= Duration::from_secs(1) && ttl <= TTL_MAX).then_some(ttl)
}

/// The setting `max_bytes`: how much a bucket may hold.
///
/// # Errors
/// [`OpenError::Setting`] for what is no positive number.
pub fn bytes_max(settings: &Settings<'_>) -> Result<Option<i64>, OpenError> {
    settings.parsed("max_bytes", "a positive number of bytes", |value| {
        value.parse().ok().filter(|bytes| *bytes > 0)
    })
}

/// `ttl` in whole seconds, rounded up, as every storage counts it.
///
/// Shape: at least 1, because 0 is for ever on some storages.
///
/// # Errors
/// [`Error::InvalidArgument`] above [`TTL_MAX`].
pub fn ttl_seconds(ttl: Duration) -> Result<u64> {
    if ttl > TTL_MAX {
        let days = TTL_MAX.as_secs() / (24 * 60 * 60);
        return Err(Error::InvalidArgument(format!(
            "the ttl exceeds {days} days"
        )));
    }
    Ok((ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1))
}

/// The one encoding of counters, the same on every storage.
pub mod counter {
    use super::{Error, Result};
    use bytes::Bytes;

    /// 8 bytes, big-endian, signed.
    pub fn encode(value: i64) -> Bytes {
        Bytes::copy_from_slice(&value.to_be_bytes())
    }

    /// Reads what [`encode`] wrote.
    ///
    /// # Errors
    /// [`Error::NotACounter`] for any other length.
    pub fn decode(value: &[u8]) -> Result<i64> {
        let bytes = value
            .try_into()
            .map_err(|_| Error::NotACounter(value.len()))?;
        Ok(i64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls() {
        for (text, seconds) in [
            ("5", 5),
            ("90s", 90),
            ("10m", 600),
            ("12h", 43_200),
            ("7d", 604_800),
        ] {
            assert_eq!(
                parse_ttl(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "0",
            "0s",
            "-1",
            "1.5h",
            "1w",
            "1 h",
            "1hm",
            "99999999999d",
            "é",
        ] {
            assert_eq!(parse_ttl(text), None, "{text}");
        }
    }
}
