//! Keys and values in JetStream buckets.

use async_trait::async_trait;
use capabilities::keyvalue::{
    Changes, Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, Result, Version, check_key,
    check_value, ttl_seconds,
};
use capabilities::names;
use capabilities::plugin::Scope;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::OPERATION_TIMEOUT;
use crate::bucket::{Blueprint, Bucket, Buckets};
use crate::counter::Counters;
use crate::listing::{Listings, Smallest};
use crate::watch;

/// How long a listing may take.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);

/// One view of the buckets: that of who asked.
pub(crate) struct Store {
    buckets: Arc<Buckets>,
    counters: Arc<Counters>,
    scope: Scope,
    /// How absent buckets are made; `None` when they are not.
    create: Option<Blueprint>,
    /// The largest value that is written.
    value_bytes_max: usize,
    listings: Listings,
}

impl Store {
    pub(crate) fn new(
        buckets: Arc<Buckets>,
        counters: Arc<Counters>,
        scope: Scope,
        create: Option<Blueprint>,
        value_bytes_max: usize,
    ) -> Self {
        Self {
            buckets,
            counters,
            scope,
            create,
            value_bytes_max,
            listings: Listings::default(),
        }
    }

    fn name(&self, bucket: &str) -> Result<String> {
        names::bucket(&self.scope, bucket).map_err(|e| Error::InvalidArgument(e.to_string()))
    }

    /// Looks again when the server said that the bucket is gone, or nobody answered for it.
    async fn checked<T>(&self, name: &str, bucket: &str, result: Result<T>) -> Result<T> {
        let doubtful = matches!(result, Err(Error::NoSuchBucket(_) | Error::Unavailable(_)));
        if doubtful && self.buckets.is_connected() {
            self.buckets.forget(name);
            self.buckets.find(name, bucket).await?;
        }
        result.map_err(|error| match error {
            Error::NoSuchBucket(_) => Error::Unavailable("the bucket was lost for a moment".into()),
            error => error,
        })
    }

    async fn write(&self, handle: &Bucket, put: Put<'_>) -> Result<Option<u64>> {
        let ttl = put.ttl.map(ttl_seconds).transpose()?;
        if ttl.is_some() && !handle.takes_ttl() {
            return Err(Error::Unsupported("a ttl of one key"));
        }
        let key = names::encode_key(put.key);
        let mut expected = match put.guard {
            Guard::Any => return handle.write(&key, put.value, None, ttl).await,
            // No entry has it; NATS would take it for the absence of any.
            Guard::Version(Version(0)) => return Ok(None),
            Guard::Version(Version(version)) => {
                return handle.write(&key, put.value, Some(version), ttl).await;
            }
            Guard::Absent => 0,
        };
        let end = Instant::now() + OPERATION_TIMEOUT;
        // Absent is also a key whose last message is a tombstone.
        while Instant::now() < end {
            let written = handle
                .write(&key, put.value.clone(), Some(expected), ttl)
                .await?;
            if written.is_some() {
                return Ok(written);
            }
            let last = handle.last(&key).await?;
            if last.value.is_some() {
                return Ok(None);
            }
            expected = last.revision;
        }
        Err(Error::Timeout(OPERATION_TIMEOUT))
    }

    /// The keys of `range`. NATS has no sorted scan: each listing reads all keys of the bucket.
    async fn list(&self, handle: &Bucket, range: &KeyRange<'_>) -> Result<Smallest> {
        let mut keys = handle.keys().await?;
        let mut smallest = Smallest::default();
        while let Some(key) = handle.limited(keys.try_next()).await? {
            if let Some(key) = names::decode_key(&key) {
                smallest.offer(key, range);
            }
        }
        Ok(smallest)
    }
}

#[async_trait]
impl KeyValueStore for Store {
    async fn open(&self, bucket: &str) -> Result<()> {
        let name = self.name(bucket)?;
        let opened = match &self.create {
            Some(blueprint) => self.buckets.find_or_create(&name, bucket, blueprint).await,
            None => self.buckets.find(&name, bucket).await,
        };
        opened.map(drop)
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let handle = self.buckets.find(&name, bucket).await?;
        let last = handle.last(&names::encode_key(key)).await;
        let last = self.checked(&name, bucket, last).await?;
        let version = Version(last.revision);
        Ok(last.value.map(|value| Entry { value, version }))
    }

    async fn put(&self, bucket: &str, put: Put<'_>) -> Result<Option<Version>> {
        check_key(put.key)?;
        let name = self.name(bucket)?;
        let handle = self.buckets.find(&name, bucket).await?;
        let bytes_max = handle.value_bytes_max().min(self.value_bytes_max);
        check_value(&put.value, bytes_max)?;
        let written = self.write(&handle, put).await;
        Ok(self.checked(&name, bucket, written).await?.map(Version))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let handle = self.buckets.find(&name, bucket).await?;
        let removed = handle.remove(&names::encode_key(key)).await;
        self.checked(&name, bucket, removed).await
    }

    async fn watch(&self, bucket: &str) -> Result<Changes> {
        let name = self.name(bucket)?;
        watch::begin(self.buckets.clone(), name, bucket).await
    }

    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> Result<Page> {
        let name = self.name(bucket)?;
        let list = async {
            let handle = self.buckets.find(&name, bucket).await?;
            let list = tokio::time::timeout(LISTING_TIMEOUT, self.list(&handle, &range)).await;
            let list = list.unwrap_or(Err(Error::Timeout(LISTING_TIMEOUT)));
            self.checked(&name, bucket, list).await
        };
        self.listings.page(&name, &range, list).await
    }

    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let handle = self.buckets.find(&name, bucket).await?;
        let id = (name.clone(), names::encode_key(key).into_owned());
        let sum = self.counters.add(handle, id, delta).await;
        self.checked(&name, bucket, sum).await
    }
}
