//! Buckets of sorted keys behind one lock; no operation waits while it holds it.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::keyvalue::{
    Changes, Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, Result, VALUE_BYTES_MAX,
    Version, bytes_max, check_key, check_value, ttl, ttl_seconds, value_bytes_max,
};
use crate::names;
use crate::plugin::{OpenError, Scope, Settings};

/// What a key or bucket costs besides its own bytes.
const OVERHEAD_BYTES: usize = 64;

/// How many changed keys wait for one watch; who is behind more is told all keys there are.
const CHANGES_MAX: usize = 1024;

/// How often a watch looks for what has expired.
const EXPIRY_LOOK: Duration = Duration::from_millis(500);

/// One view of the buckets: that of who asked.
pub(super) struct Store {
    pub(super) buckets: Arc<Buckets>,
    pub(super) scope: Scope,
    pub(super) create: bool,
    pub(super) limits: Limits,
}

/// What an entry says of its values.
pub(super) struct Limits {
    pub(super) value_bytes_max: usize,
    /// How much a bucket may hold, counted as the whole is.
    pub(super) bucket_bytes_max: usize,
    /// How long values live that are written without a ttl of their own.
    pub(super) ttl: Option<Duration>,
}

impl Limits {
    /// Those of the plugin alone.
    pub(super) const NONE: Self = Self {
        value_bytes_max: VALUE_BYTES_MAX,
        bucket_bytes_max: usize::MAX,
        ttl: None,
    };

    /// Reads the settings `ttl`, `max_bytes` and `max_value_bytes`.
    pub(super) fn read(settings: &Settings<'_>) -> Result<Self, OpenError> {
        let bytes_max = bytes_max(settings)?.and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Self {
            value_bytes_max: value_bytes_max(settings)?,
            bucket_bytes_max: bytes_max.unwrap_or(usize::MAX),
            ttl: ttl(settings)?,
        })
    }
}

/// All buckets of a plugin.
pub(super) struct Buckets {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, Bucket>,
    /// What expires when; the version tells entries of the same instant apart.
    expiries: BTreeMap<(Instant, u64), (String, String)>,
    bytes: usize,
    /// Counts writes to all buckets, so no version repeats.
    version: u64,
}

#[derive(Default)]
struct Bucket {
    keys: BTreeMap<String, Stored>,
    /// What its keys cost.
    bytes: usize,
    /// Whoever watches it.
    changes: Option<broadcast::Sender<String>>,
}

impl Bucket {
    fn changed(&mut self, key: &str) {
        let Some(changes) = &self.changes else { return };
        if changes.send(key.to_owned()).is_err() {
            self.changes = None;
        }
    }
}

struct Stored {
    value: Bytes,
    version: u64,
    expires: Option<Instant>,
}

impl Buckets {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// The state without what has expired.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some(first) = state
            .expiries
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            let (bucket, key) = first.remove();
            state.remove(&bucket, &key);
        }
        state
    }

    fn check_room(&self, bytes: usize) -> Result<()> {
        check_room(bytes, self.bytes_max, "memory")
    }
}

fn check_room(bytes: usize, bytes_max: usize, what: &'static str) -> Result<()> {
    match bytes > bytes_max {
        true => Err(Error::Full(Box::new(Full { bytes_max, what }))),
        false => Ok(()),
    }
}

#[derive(thiserror::Error, Debug)]
#[error("more than {bytes_max} bytes would be in {what}")]
struct Full {
    bytes_max: usize,
    what: &'static str,
}

impl State {
    /// The bucket called `name` here and `bucket` by the guest.
    fn bucket(&self, name: &str, bucket: &str) -> Result<&Bucket> {
        self.buckets
            .get(name)
            .ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))
    }

    fn insert(&mut self, name: &str, key: &str, stored: Stored) {
        self.forget(name, key);
        if let Some(expires) = stored.expires {
            self.expiries
                .insert((expires, stored.version), (name.to_owned(), key.to_owned()));
        }
        if let Some(bucket) = self.buckets.get_mut(name) {
            let cost = cost(key, &stored.value);
            bucket.keys.insert(key.to_owned(), stored);
            bucket.bytes += cost;
            bucket.changed(key);
            self.bytes += cost;
        }
    }

    fn remove(&mut self, name: &str, key: &str) {
        if !self.forget(name, key) {
            return;
        }
        if let Some(bucket) = self.buckets.get_mut(name) {
            bucket.changed(key);
        }
    }

    /// As [`remove`](Self::remove), without telling anybody; whether it was there.
    fn forget(&mut self, name: &str, key: &str) -> bool {
        let Some(bucket) = self.buckets.get_mut(name) else {
            return false;
        };
        let Some(old) = bucket.keys.remove(key) else {
            return false;
        };
        let cost = cost(key, &old.value);
        bucket.bytes -= cost;
        self.bytes -= cost;
        if let Some(expires) = old.expires {
            self.expiries.remove(&(expires, old.version));
        }
        true
    }
}

fn cost(key: &str, value: &[u8]) -> usize {
    OVERHEAD_BYTES + key.len() + value.len()
}

impl Store {
    fn name(&self, bucket: &str) -> Result<String> {
        names::bucket(&self.scope, bucket).map_err(|e| Error::InvalidArgument(e.to_string()))
    }
}

#[async_trait]
impl KeyValueStore for Store {
    async fn open(&self, bucket: &str) -> Result<()> {
        let name = self.name(bucket)?;
        let mut state = self.buckets.state();
        if state.buckets.contains_key(&name) {
            return Ok(());
        }
        if !self.create {
            return Err(Error::NoSuchBucket(bucket.to_owned()));
        }
        let bytes = state.bytes + cost(&name, &[]);
        self.buckets.check_room(bytes)?;
        state.bytes = bytes;
        state.buckets.insert(name, Bucket::default());
        Ok(())
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let state = self.buckets.state();
        let stored = state.bucket(&name, bucket)?.keys.get(key);
        Ok(stored.map(|stored| Entry {
            value: stored.value.clone(),
            version: Version(stored.version),
        }))
    }

    async fn put(&self, bucket: &str, put: Put<'_>) -> Result<Option<Version>> {
        check_key(put.key)?;
        check_value(&put.value, self.limits.value_bytes_max)?;
        let ttl = put.ttl.or(self.limits.ttl).map(ttl_seconds).transpose()?;
        let name = self.name(bucket)?;
        let mut state = self.buckets.state();
        let found = state.bucket(&name, bucket)?;
        let old = found.keys.get(put.key);
        let holds = match put.guard {
            Guard::Any => true,
            Guard::Absent => old.is_none(),
            Guard::Version(version) => old.is_some_and(|old| old.version == version.0),
        };
        if !holds {
            return Ok(None);
        }
        let freed = old.map_or(0, |old| cost(put.key, &old.value));
        let more = cost(put.key, &put.value);
        self.buckets.check_room(state.bytes - freed + more)?;
        let in_bucket = found.bytes - freed + more;
        check_room(in_bucket, self.limits.bucket_bytes_max, "the bucket")?;
        let expires = ttl.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        state.version += 1;
        let version = state.version;
        state.insert(
            &name,
            put.key,
            Stored {
                value: put.value,
                version,
                expires,
            },
        );
        Ok(Some(Version(version)))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let mut state = self.buckets.state();
        state.bucket(&name, bucket)?;
        state.remove(&name, key);
        Ok(())
    }

    async fn watch(&self, bucket: &str) -> Result<Changes> {
        let name = self.name(bucket)?;
        let mut state = self.buckets.state();
        let found = state.buckets.get_mut(&name);
        let found = found.ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))?;
        let changes = found
            .changes
            .get_or_insert_with(|| broadcast::Sender::new(CHANGES_MAX))
            .subscribe();
        drop(state);
        let watch = Watch {
            buckets: self.buckets.clone(),
            name,
            changes,
            again: Vec::new(),
        };
        Ok(Box::pin(stream::unfold(watch, next_change)))
    }

    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> Result<Page> {
        let name = self.name(bucket)?;
        let limit = range.limit.max(1);
        let from = match range.after {
            Some(after) if after >= range.prefix => Bound::Excluded(after),
            _ => Bound::Included(range.prefix),
        };
        let state = self.buckets.state();
        let mut rest = state
            .bucket(&name, bucket)?
            .keys
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(range.prefix));
        let keys = rest.by_ref().take(limit).cloned().collect();
        Ok(Page {
            keys,
            more: rest.next().is_some(),
        })
    }
}

/// The next key that changed, and those to be told without having changed.
async fn next_change(mut watch: Watch) -> Option<(String, Watch)> {
    loop {
        if let Some(key) = watch.again.pop() {
            return Some((key, watch));
        }
        // Expired keys are removed by whoever looks.
        let received = tokio::time::timeout(EXPIRY_LOOK, watch.changes.recv()).await;
        match received {
            Ok(Ok(key)) => return Some((key, watch)),
            Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                let state = watch.buckets.state();
                let bucket = state.buckets.get(&watch.name);
                let keys = bucket.map(|bucket| bucket.keys.keys().rev().cloned());
                watch.again = keys.into_iter().flatten().collect();
            }
            // Buckets are not removed.
            Ok(Err(broadcast::error::RecvError::Closed)) => return None,
            Err(_) => drop(watch.buckets.state()),
        }
    }
}

/// Somebody who watches a bucket.
struct Watch {
    buckets: Arc<Buckets>,
    name: String,
    changes: broadcast::Receiver<String>,
    /// The last comes first.
    again: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes_max: usize) -> Store {
        Store {
            buckets: Arc::new(Buckets::new(bytes_max)),
            scope: Scope::Flat,
            create: true,
            limits: Limits::NONE,
        }
    }

    fn put<'a>(key: &'a str, bytes: usize, ttl: Option<Duration>) -> Put<'a> {
        Put {
            key,
            value: vec![0; bytes].into(),
            guard: Guard::Any,
            ttl,
        }
    }

    #[tokio::test]
    async fn the_bound_holds_and_deleting_makes_room() {
        let store = store(1000);
        store.open("b").await.unwrap();
        store.put("b", put("a", 500, None)).await.unwrap();
        let full = store.put("b", put("c", 500, None)).await;
        assert!(matches!(full, Err(Error::Full(_))), "{full:?}");
        store.put("b", put("a", 700, None)).await.unwrap();
        store.delete("b", "a").await.unwrap();
        store.put("b", put("c", 800, None)).await.unwrap();
        assert!(store.open(&"n".repeat(100)).await.is_err());
    }

    #[tokio::test]
    async fn expired_keys_free_their_room() {
        let store = store(1000);
        store.open("b").await.unwrap();
        let start = Instant::now();
        store
            .put("b", put("a", 800, Some(Duration::from_millis(1))))
            .await
            .unwrap();
        while store.put("b", put("c", 800, None)).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(start.elapsed() >= Duration::from_secs(1));
        let state = store.buckets.state();
        assert!(state.expiries.is_empty());
        assert_eq!(state.bytes, cost("b", &[]) + cost("c", &[0; 800]));
    }
}
