//! Keys and values in JetStream buckets.

use async_trait::async_trait;
use capabilities::keyvalue::{
    Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, Result, Version, check_key,
    check_value, ttl_seconds,
};
use capabilities::names;
use capabilities::plugin::Scope;
use futures::TryStreamExt;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::OPERATION_TIMEOUT;
use crate::bucket::{Blueprint, Bucket, Buckets};
use crate::counter::Counters;

/// How long a listing may take.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);
/// How many keys of one listing are kept for the pages after the first.
const LISTING_KEYS_MAX: usize = 10_000;
/// How many bytes of keys one of them is.
const LISTING_BYTES_MAX: usize = 1 << 20;
/// How many listings are kept for their next page, the newest ones.
const LISTINGS_MAX: usize = 4;
/// How long a listing is good for.
const LISTING_AGE_MAX: Duration = Duration::from_secs(30);

/// One view of the buckets: that of who asked.
pub(crate) struct Store {
    buckets: Arc<Buckets>,
    counters: Arc<Counters>,
    scope: Scope,
    /// How absent buckets are made; `None` when they are not.
    create: Option<Blueprint>,
    listings: Mutex<VecDeque<Listing>>,
}

/// The keys after a page, sorted. NATS has no sorted scan: each listing reads all keys of the bucket.
struct Listing {
    bucket: String,
    prefix: String,
    /// The last key of the page before.
    after: String,
    rest: VecDeque<String>,
    /// Whether the bucket has keys beyond `rest`.
    more: bool,
    taken: Instant,
}

impl Store {
    pub(crate) fn new(
        buckets: Arc<Buckets>,
        counters: Arc<Counters>,
        scope: Scope,
        create: Option<Blueprint>,
    ) -> Self {
        Self {
            buckets,
            counters,
            scope,
            create,
            listings: Mutex::default(),
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

    /// The smallest keys after `range.after`, at most [`LISTING_KEYS_MAX`], and whether there are more.
    async fn list(
        &self,
        handle: &Bucket,
        range: &KeyRange<'_>,
    ) -> Result<(VecDeque<String>, bool)> {
        let mut keys = handle.keys().await?;
        let mut smallest = BTreeSet::new();
        let (mut more, mut bytes) = (false, 0);
        while let Some(key) = handle.limited(keys.try_next()).await? {
            let Some(key) = names::decode_key(&key) else {
                continue;
            };
            if key.starts_with(range.prefix) && range.after.is_none_or(|after| key.as_str() > after)
            {
                let length = key.len();
                if smallest.insert(key) {
                    bytes += length;
                }
            }
            while smallest.len() > LISTING_KEYS_MAX || bytes > LISTING_BYTES_MAX {
                bytes -= smallest.pop_last().map_or(bytes, |key| key.len());
                more = true;
            }
        }
        Ok((smallest.into_iter().collect(), more))
    }

    /// What the page before left.
    fn take_listing(&self, name: &str, range: &KeyRange<'_>) -> Option<Listing> {
        let after = range.after?;
        let mut listings = self.listings();
        listings.retain(|listing| listing.taken.elapsed() < LISTING_AGE_MAX);
        let found = listings.iter().position(|listing| {
            listing.bucket == name && listing.prefix == range.prefix && listing.after == after
        })?;
        listings.remove(found)
    }

    fn keep_listing(&self, listing: Listing) {
        let mut listings = self.listings();
        listings.retain(|listing| listing.taken.elapsed() < LISTING_AGE_MAX);
        if listings.len() >= LISTINGS_MAX {
            listings.pop_front();
        }
        listings.push_back(listing);
    }

    fn listings(&self) -> MutexGuard<'_, VecDeque<Listing>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
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
        check_value(&put.value, handle.value_bytes_max())?;
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

    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> Result<Page> {
        let name = self.name(bucket)?;
        let (mut rest, beyond) = match self.take_listing(&name, &range) {
            Some(listing) => (listing.rest, listing.more),
            None => {
                let handle = self.buckets.find(&name, bucket).await?;
                let list = tokio::time::timeout(LISTING_TIMEOUT, self.list(&handle, &range)).await;
                let list = list.unwrap_or(Err(Error::Timeout(LISTING_TIMEOUT)));
                self.checked(&name, bucket, list).await?
            }
        };
        let keys: Vec<String> = rest.drain(..range.limit.max(1).min(rest.len())).collect();
        let more = beyond || !rest.is_empty();
        if let Some(after) = keys.last().filter(|_| !rest.is_empty()) {
            self.keep_listing(Listing {
                bucket: name,
                prefix: range.prefix.to_owned(),
                after: after.clone(),
                rest,
                more: beyond,
                taken: Instant::now(),
            });
        }
        Ok(Page { keys, more })
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
