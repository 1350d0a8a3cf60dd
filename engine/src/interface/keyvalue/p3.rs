//! `wasmcloud:keyvalue@0.2.0` as words: every method ends in one call of [`Bucket`].

use capabilities::keyvalue::{self, Entry};
use capabilities::report;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};

use super::{Bucket, PAGE_KEYS, Stores, Swapped};
use crate::ctx::Ctx;
use crate::interface::{InterfaceError, instance};
use crate::under_way::{Turn, UnderWay};
use crate::wit::Import;
use bindings::named_imports::wasmcloud::keyvalue::store as routed;
use bindings::wasmcloud::keyvalue::cas::{self, CasOptions, CasResult};
use bindings::wasmcloud::keyvalue::types::{self, Error, KeyResponse, SetOptions};
use bindings::wasmcloud::keyvalue::{atomics, batch};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/keyvalue-0.2",
        world: "wasmcloud:keyvalue/imports",
        imports: { default: trappable },
        with: { "wasmcloud:keyvalue/types.bucket": crate::interface::keyvalue::Bucket },
        named_imports: { "wasmcloud:keyvalue/store": super::Route },
    });
}

/// What serves the functions of one import.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<Stores>;

/// The fewest things an interface needs of a store.
struct View<'a> {
    table: &'a mut ResourceTable,
    under_way: &'a UnderWay,
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(ctx: &mut Ctx) -> View<'_> {
    View {
        table: &mut ctx.table,
        under_way: ctx.under_way.get_or_insert_default(),
    }
}

pub(super) fn link(
    linker: &mut Linker<Ctx>,
    import: &Import,
    stores: &Route,
) -> Result<(), InterfaceError> {
    instance(linker, import, |instance| {
        match import.wit.interface.as_str() {
            "types" => types::add_to_linker_instance::<Ctx, HasView>(instance, view),
            "atomics" => atomics::add_to_linker_instance::<Ctx, HasView>(instance, view),
            "cas" => cas::add_to_linker_instance::<Ctx, HasView>(instance, view),
            "batch" => batch::add_to_linker_instance::<Ctx, HasView>(instance, view),
            _ => routed::add_to_linker_instance::<Ctx, HasView>(instance, Arc::clone(stores), view),
        }
    })
}

type Wit<T> = wasmtime::Result<Result<T, Error>>;

impl From<keyvalue::Error> for Error {
    fn from(error: keyvalue::Error) -> Self {
        match error {
            keyvalue::Error::NoSuchBucket(_) => Self::NoSuchStore,
            keyvalue::Error::AccessDenied => Self::AccessDenied,
            keyvalue::Error::InvalidArgument(_) => Self::InvalidArgument,
            keyvalue::Error::Timeout(_) => Self::Timeout,
            keyvalue::Error::Unavailable(_) => Self::StoreUnavailable,
            keyvalue::Error::TooLarge { .. } | keyvalue::Error::Full(_) => Self::QuotaExceeded,
            error => Self::Other(report(&error)),
        }
    }
}

/// Waits for the turn of a call on `bucket` with arguments of `bytes`.
async fn begin<T: 'static>(
    accessor: &Accessor<T, HasView>,
    bucket: &Resource<Bucket>,
    bytes: usize,
) -> wasmtime::Result<Result<(Bucket, Turn), Error>> {
    let (bucket, under_way) = accessor.with(|mut access| {
        let view = access.get();
        let bucket = view.table.get(bucket).cloned();
        bucket.map(|bucket| (bucket, view.under_way.clone()))
    })?;
    let turn = under_way.begin(bytes).await;
    Ok(turn.map(|turn| (bucket, turn)).ok_or(Error::QuotaExceeded))
}

/// The bucket and the turn, or the guest is told why not.
macro_rules! turn {
    ($begun:expr) => {
        match $begun.await? {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        }
    };
}

impl routed::Host for View<'_> {}

impl<T: 'static> routed::HostWithStore<T> for HasView {
    async fn open(
        accessor: &Accessor<T, Self>,
        stores: Route,
        identifier: String,
    ) -> Wit<Resource<Bucket>> {
        let under_way = accessor.with(|mut access| access.get().under_way.clone());
        let Some(_turn) = under_way.begin(identifier.len()).await else {
            return Ok(Err(Error::QuotaExceeded));
        };
        match stores.open(&identifier).await {
            Ok(bucket) => Ok(Ok(
                accessor.with(|mut access| access.get().table.push(bucket))?
            )),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl types::Host for View<'_> {}

impl types::HostBucket for View<'_> {
    fn drop(&mut self, this: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl<T: 'static> types::HostBucketWithStore<T> for HasView {
    async fn get(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
    ) -> Wit<Option<Vec<u8>>> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len()));
        let value = bucket.get(&key).await;
        Ok(value.map(|value| value.map(Vec::from)).map_err(Error::from))
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
        options: Option<SetOptions>,
    ) -> Wit<()> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len() + value.len()));
        let (ttl, new) = match options {
            None => (None, false),
            Some(SetOptions {
                ttl_ms: Some(0), ..
            }) => return Ok(Err(Error::InvalidArgument)),
            Some(options) => (
                options.ttl_ms.map(Duration::from_millis),
                options.if_not_exists,
            ),
        };
        Ok(match bucket.set_with(&key, value.into(), ttl, new).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::PreconditionFailed),
            Err(error) => Err(error.into()),
        })
    }

    async fn delete(accessor: &Accessor<T, Self>, this: Resource<Bucket>, key: String) -> Wit<()> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len()));
        Ok(bucket.delete(&key).await.map_err(Error::from))
    }

    async fn exists(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
    ) -> Wit<bool> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len()));
        let value = bucket.get(&key).await;
        Ok(value.map(|value| value.is_some()).map_err(Error::from))
    }

    async fn list_keys(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        prefix: Option<String>,
        cursor: Option<String>,
    ) -> Wit<KeyResponse> {
        let bytes = [&prefix, &cursor].map(|text| text.as_ref().map_or(0, String::len));
        let (bucket, _turn) = turn!(begin(accessor, &this, bytes.iter().sum()));
        let prefix = prefix.unwrap_or_default();
        // A cursor is the last key of its page.
        let page = bucket.page(&prefix, cursor.as_deref(), PAGE_KEYS).await;
        Ok(page.map_err(Error::from).map(|page| KeyResponse {
            cursor: page.keys.last().filter(|_| page.more).cloned(),
            keys: page.keys,
        }))
    }
}

impl atomics::Host for View<'_> {}

impl<T: 'static> atomics::HostWithStore<T> for HasView {
    async fn increment(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> Wit<i64> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len()));
        Ok(bucket.increment(&key, delta).await.map_err(Error::from))
    }
}

impl From<Entry> for cas::Entry {
    fn from(entry: Entry) -> Self {
        Self {
            value: entry.value.into(),
            version: entry.version.0.to_string(),
        }
    }
}

impl cas::Host for View<'_> {}

impl<T: 'static> cas::HostWithStore<T> for HasView {
    async fn current(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
    ) -> Wit<Option<cas::Entry>> {
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len()));
        let entry = bucket.entry(&key).await;
        Ok(entry
            .map(|entry| entry.map(Into::into))
            .map_err(Error::from))
    }

    async fn swap(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
        options: CasOptions,
    ) -> Wit<CasResult> {
        let CasOptions {
            require_version,
            require_value,
        } = options;
        let required = require_value.as_ref().map_or(0, Vec::len);
        let (bucket, _turn) = turn!(begin(accessor, &this, key.len() + value.len() + required));
        if require_version.is_none() && require_value.is_none() {
            return Ok(Err(Error::InvalidArgument));
        }
        let holds = |entry: &Entry| {
            require_version
                .as_ref()
                .is_none_or(|version| *version == entry.version.0.to_string())
                && require_value
                    .as_ref()
                    .is_none_or(|value| *value == entry.value)
        };
        Ok(match bucket.swap(&key, value.into(), holds).await {
            Ok(Swapped::Yes) => Ok(CasResult::Swapped),
            Ok(Swapped::Stale(entry)) => Ok(CasResult::Stale(entry.map(Into::into))),
            Err(error) => Err(error.into()),
        })
    }
}

impl batch::Host for View<'_> {}

impl<T: 'static> batch::HostWithStore<T> for HasView {
    async fn get_many(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Wit<Vec<Option<(String, Vec<u8>)>>> {
        let bytes = keys.iter().map(String::len).sum();
        let (bucket, _turn) = turn!(begin(accessor, &this, bytes));
        let values = match bucket.get_many(&keys).await {
            Ok(values) => values,
            Err(error) => return Ok(Err(error.into())),
        };
        let pairs = keys.into_iter().zip(values);
        Ok(Ok(pairs
            .map(|(key, value)| value.map(|value| (key, value.into())))
            .collect()))
    }

    async fn set_many(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        pairs: Vec<(String, Vec<u8>)>,
    ) -> Wit<()> {
        let bytes = pairs
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let (bucket, _turn) = turn!(begin(accessor, &this, bytes));
        Ok(bucket.set_many(pairs).await.map_err(Error::from))
    }

    async fn delete_many(
        accessor: &Accessor<T, Self>,
        this: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Wit<()> {
        let bytes = keys.iter().map(String::len).sum();
        let (bucket, _turn) = turn!(begin(accessor, &this, bytes));
        Ok(bucket.delete_many(&keys).await.map_err(Error::from))
    }
}
