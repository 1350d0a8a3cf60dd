//! Buckets of sorted keys behind one lock; no operation waits while it holds it.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use crate::keyvalue::{
    Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, Result, VALUE_BYTES_MAX, Version,
    check_key, check_value, ttl_seconds,
};
use crate::names;
use crate::plugin::Scope;

/// What a key or bucket costs besides its own bytes.
const OVERHEAD_BYTES: usize = 64;

/// One view of the buckets: that of who asked.
pub(super) struct Store {
    pub(super) buckets: Arc<Buckets>,
    pub(super) scope: Scope,
    pub(super) create: bool,
}

/// All buckets of a plugin.
pub(super) struct Buckets {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Stored>>,
    /// What expires when; the version tells entries of the same instant apart.
    expiries: BTreeMap<(Instant, u64), (String, String)>,
    bytes: usize,
    /// Counts writes to all buckets, so no version repeats.
    version: u64,
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
        match bytes > self.bytes_max {
            true => Err(Error::Internal(Box::new(Full {
                bytes_max: self.bytes_max,
            }))),
            false => Ok(()),
        }
    }
}

#[derive(thiserror::Error, Debug)]
#[error("more than {bytes_max} bytes would be in memory")]
struct Full {
    bytes_max: usize,
}

impl State {
    /// The bucket called `name` here and `bucket` by the guest.
    fn bucket(&self, name: &str, bucket: &str) -> Result<&BTreeMap<String, Stored>> {
        self.buckets
            .get(name)
            .ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))
    }

    fn insert(&mut self, name: &str, key: &str, stored: Stored) {
        self.remove(name, key);
        if let Some(expires) = stored.expires {
            self.expiries
                .insert((expires, stored.version), (name.to_owned(), key.to_owned()));
        }
        self.bytes += cost(key, &stored.value);
        if let Some(bucket) = self.buckets.get_mut(name) {
            bucket.insert(key.to_owned(), stored);
        }
    }

    fn remove(&mut self, name: &str, key: &str) {
        let Some(old) = self
            .buckets
            .get_mut(name)
            .and_then(|bucket| bucket.remove(key))
        else {
            return;
        };
        self.bytes -= cost(key, &old.value);
        if let Some(expires) = old.expires {
            self.expiries.remove(&(expires, old.version));
        }
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
        state.buckets.insert(name, BTreeMap::new());
        Ok(())
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let state = self.buckets.state();
        Ok(state.bucket(&name, bucket)?.get(key).map(|stored| Entry {
            value: stored.value.clone(),
            version: Version(stored.version),
        }))
    }

    async fn put(&self, bucket: &str, put: Put<'_>) -> Result<Option<Version>> {
        check_key(put.key)?;
        check_value(&put.value, VALUE_BYTES_MAX)?;
        let ttl = put.ttl.map(ttl_seconds).transpose()?;
        let name = self.name(bucket)?;
        let mut state = self.buckets.state();
        let old = state.bucket(&name, bucket)?.get(put.key);
        let holds = match put.guard {
            Guard::Any => true,
            Guard::Absent => old.is_none(),
            Guard::Version(version) => old.is_some_and(|old| old.version == version.0),
        };
        if !holds {
            return Ok(None);
        }
        let freed = old.map_or(0, |old| cost(put.key, &old.value));
        self.buckets
            .check_room(state.bytes - freed + cost(put.key, &put.value))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes_max: usize) -> Store {
        Store {
            buckets: Arc::new(Buckets::new(bytes_max)),
            scope: Scope::Flat,
            create: true,
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
        assert!(matches!(full, Err(Error::Internal(_))), "{full:?}");
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
