//! Key-value: what a bucket means, once, whatever the WIT package and the storage.

pub(crate) mod p2;
mod p3;
pub(crate) mod watcher;

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::keyvalue::{Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, check_key};
use capabilities::plugin::Settings;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::Linker;

use super::{Interface, InterfaceError, Need};
use crate::ctx::Ctx;
use crate::wit::{Import, Served};

/// How many operations of one batch are under way at once.
const BATCH_IN_FLIGHT: usize = 32;

/// The most bytes of values one batch returns: they are in the host's memory before the guest has them.
const BATCH_BYTES_MAX: usize = 32 << 20;

/// How many keys one page of a listing holds.
const PAGE_KEYS: usize = 1_000;

/// Serves `wasi:keyvalue` and `wasmcloud:keyvalue`.
pub(crate) struct KeyValue;

#[async_trait]
impl Interface for KeyValue {
    fn serves(&self) -> &'static [Served] {
        &[
            Served {
                namespace: "wasi",
                package: "keyvalue",
                interfaces: &["store", "atomics", "batch"],
                version: "0.2.0-draft",
            },
            Served {
                namespace: "wasmcloud",
                package: "keyvalue",
                interfaces: &["types", "store", "atomics", "cas", "batch"],
                version: "0.2.0",
            },
        ]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["store"]
    }

    fn reaches_named(&self, _interface: &str) -> bool {
        true
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        // Each package has entries of its own, which may have the same names.
        let (wasmcloud, wasi): (Vec<_>, Vec<_>) = imports
            .iter()
            .cloned()
            .partition(|import| import.wit.namespace == "wasmcloud");
        for (imports, add) in [(wasi, p2::link as Add), (wasmcloud, p3::link)] {
            let stores = Arc::new(Stores::open_all(&imports, need).await?);
            for import in &imports {
                let stores = match &import.label {
                    None => Arc::clone(&stores),
                    Some(label) => Arc::new(stores.of(label)),
                };
                add(linker, import, &stores)?;
            }
        }
        Ok(())
    }
}

/// Links one import of a package.
type Add = fn(&mut Linker<Ctx>, &Import, &Arc<Stores>) -> Result<(), InterfaceError>;

impl Stores {
    async fn open_all(imports: &[Import], need: &Need<'_>) -> Result<Self, InterfaceError> {
        let mut stores = Self::default();
        for entry in need.entries(imports) {
            let elsewhere: &[&str] = match (entry.name.is_empty(), entry.namespace == "wasi") {
                (true, true) => &["watch"],
                (true, false) => &[],
                (false, true) => &["bucket", "watch"],
                (false, false) => &["bucket"],
            };
            let store = need
                .open("keyvalue", entry, elsewhere, |plugin, ask| async move {
                    plugin.keyvalue(&ask).await
                })
                .await?;
            if entry.name.is_empty() {
                stores.plain = Some(store);
                continue;
            }
            let bucket = Settings::new(&entry.config).text("bucket");
            let named = Named {
                store,
                bucket: bucket.unwrap_or(&entry.name).to_owned(),
            };
            stores.named.insert(entry.name.clone(), named);
        }
        Ok(stores)
    }
}

/// What serves the functions of one import.
#[derive(Default)]
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Stores {
    /// That of the entry without a name, or that of a label's.
    plain: Option<Arc<dyn KeyValueStore>>,
    /// Those that a bucket's name selects.
    named: BTreeMap<String, Named>,
}

/// The store of an entry with a name.
#[derive(Clone)]
struct Named {
    store: Arc<dyn KeyValueStore>,
    /// The bucket that is opened by the entry's name.
    bucket: String,
}

impl Stores {
    /// What an import labelled `label` reaches: its entry alone.
    fn of(&self, label: &str) -> Self {
        let named = self.named.get(label);
        Self {
            plain: named.map(|named| Arc::clone(&named.store)),
            named: named
                .map(|named| (label.to_owned(), named.clone()))
                .into_iter()
                .collect(),
        }
    }

    pub(crate) async fn open(&self, identifier: &str) -> Result<Bucket, Error> {
        match (self.named.get(identifier), &self.plain) {
            (Some(named), _) => Bucket::open(&named.store, &named.bucket).await,
            (None, Some(store)) => Bucket::open(store, identifier).await,
            (None, None) => Err(Error::NoSuchBucket(identifier.to_owned())),
        }
    }
}

/// An open bucket.
#[derive(Clone)]
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Bucket {
    store: Arc<dyn KeyValueStore>,
    name: Arc<str>,
}

/// What came of a compare-and-swap.
pub(crate) enum Swapped {
    Yes,
    /// What is there instead.
    Stale(Option<Entry>),
}

impl Bucket {
    /// One that is known to be there.
    pub(crate) fn new(store: Arc<dyn KeyValueStore>, name: &str) -> Self {
        let name = name.into();
        Self { store, name }
    }

    async fn open(store: &Arc<dyn KeyValueStore>, name: &str) -> Result<Self, Error> {
        store.open(name).await?;
        Ok(Self::new(Arc::clone(store), name))
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.entry(key).await?.map(|entry| entry.value))
    }

    pub(crate) async fn entry(&self, key: &str) -> Result<Option<Entry>, Error> {
        check_key(key)?;
        self.store.get(&self.name, key).await
    }

    pub(crate) async fn set(&self, key: &str, value: Bytes) -> Result<(), Error> {
        self.put(key, value, Guard::Any, None).await.map(drop)
    }

    /// Sets a value that lives for `ttl`, `new` only where there is none. Whether it was set.
    pub(crate) async fn set_with(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        new: bool,
    ) -> Result<bool, Error> {
        let guard = match new {
            true => Guard::Absent,
            false => Guard::Any,
        };
        self.put(key, value, guard, ttl).await
    }

    /// Sets a value where there is one that `holds`. Whoever loses a race finds it stale.
    pub(crate) async fn swap(
        &self,
        key: &str,
        value: Bytes,
        holds: impl Fn(&Entry) -> bool + Send,
    ) -> Result<Swapped, Error> {
        let current = self.entry(key).await?;
        let Some(entry) = current.as_ref().filter(|entry| holds(entry)) else {
            return Ok(Swapped::Stale(current));
        };
        match self
            .put(key, value, Guard::Version(entry.version), None)
            .await?
        {
            true => Ok(Swapped::Yes),
            false => Ok(Swapped::Stale(self.entry(key).await?)),
        }
    }

    /// Whether `guard` held.
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        guard: Guard,
        ttl: Option<Duration>,
    ) -> Result<bool, Error> {
        check_key(key)?;
        let put = Put {
            key,
            value,
            guard,
            ttl,
        };
        Ok(self.store.put(&self.name, put).await?.is_some())
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), Error> {
        check_key(key)?;
        self.store.delete(&self.name, key).await
    }

    pub(crate) async fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        check_key(key)?;
        self.store.increment(&self.name, key, delta).await
    }

    pub(crate) async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        let range = KeyRange {
            prefix,
            after,
            limit,
        };
        self.store.keys(&self.name, range).await
    }

    /// In the order of `keys`.
    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, Error> {
        let gets = keys
            .iter()
            .cloned()
            .map(|key| async move { self.get(&key).await });
        let mut gets = stream::iter(gets).buffered(BATCH_IN_FLIGHT);
        let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        while let Some(value) = gets.try_next().await? {
            bytes += value.as_ref().map_or(0, Bytes::len);
            if bytes > BATCH_BYTES_MAX {
                let text = format!("values exceed {BATCH_BYTES_MAX} bytes; ask for fewer keys");
                return Err(Error::InvalidArgument(text));
            }
            values.push(value);
        }
        Ok(values)
    }

    pub(crate) async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        // A key named twice must end with its last value, so repeats are dropped before writing at once.
        let last: BTreeMap<String, Vec<u8>> = pairs.into_iter().collect();
        let sets = last
            .into_iter()
            .map(|(key, value)| async move { self.set(&key, value.into()).await });
        stream::iter(sets)
            .buffer_unordered(BATCH_IN_FLIGHT)
            .try_collect()
            .await
    }

    pub(crate) async fn delete_many(&self, keys: &[String]) -> Result<(), Error> {
        let deletes = keys
            .iter()
            .cloned()
            .map(|key| async move { self.delete(&key).await });
        stream::iter(deletes)
            .buffer_unordered(BATCH_IN_FLIGHT)
            .try_collect()
            .await
    }
}
