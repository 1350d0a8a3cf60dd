//! Key-value: what a bucket means, once, whatever the WIT package and the storage.

mod p2;

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::keyvalue::{Error, Guard, KeyRange, KeyValueStore, Page, Put, check_key};
use capabilities::plugin::Settings;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
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

/// Serves `wasi:keyvalue`.
pub(crate) struct KeyValue;

#[async_trait]
impl Interface for KeyValue {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasi",
            package: "keyvalue",
            interfaces: &["store", "atomics", "batch"],
            version: "0.2.0-draft",
        }]
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
        let mut stores = Stores::default();
        for entry in need.entries(imports) {
            let elsewhere: &[&str] = match entry.name.is_empty() {
                true => &[],
                false => &["bucket"],
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
        let stores = Arc::new(stores);
        imports.iter().try_for_each(|import| {
            let stores = match &import.label {
                None => Arc::clone(&stores),
                Some(label) => Arc::new(stores.of(label)),
            };
            p2::link(linker, import, &stores)
        })
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
pub(crate) struct Bucket {
    store: Arc<dyn KeyValueStore>,
    name: Arc<str>,
}

impl Bucket {
    async fn open(store: &Arc<dyn KeyValueStore>, name: &str) -> Result<Self, Error> {
        store.open(name).await?;
        Ok(Self {
            store: Arc::clone(store),
            name: name.into(),
        })
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        check_key(key)?;
        Ok(self
            .store
            .get(&self.name, key)
            .await?
            .map(|entry| entry.value))
    }

    pub(crate) async fn set(&self, key: &str, value: Bytes) -> Result<(), Error> {
        check_key(key)?;
        let put = Put {
            key,
            value,
            guard: Guard::Any,
            ttl: None,
        };
        self.store.put(&self.name, put).await.map(drop)
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), Error> {
        check_key(key)?;
        self.store.delete(&self.name, key).await
    }

    pub(crate) async fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        check_key(key)?;
        self.store.increment(&self.name, key, delta).await
    }

    pub(crate) async fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        let range = KeyRange {
            prefix: "",
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
