//! `wasi:keyvalue@0.2.0-draft` as words: every method ends in one call of [`Bucket`].

use capabilities::keyvalue;
use capabilities::report;
use std::collections::VecDeque;
use std::sync::Arc;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::{Bucket, PAGE_KEYS, Stores};
use crate::ctx::Ctx;
use crate::interface::{InterfaceError, instance};
use crate::wit::Import;
use bindings::named_imports::wasi::keyvalue::store as routed;
use bindings::wasi::keyvalue::store::{Error, KeyResponse};
use bindings::wasi::keyvalue::{atomics, batch};

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/keyvalue",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Open },
        named_imports: { "wasi:keyvalue/store": super::Route },
    });
}

/// What serves the functions of one import.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<Stores>;

/// How many pages of unfinished listings a bucket remembers.
const CURSORS_MAX: usize = 64;

/// The resource: a bucket, and where its listings stand.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Open {
    bucket: Bucket,
    /// Position → the last key before it. The WIT's cursor is a number; the storages' is a key.
    cursors: VecDeque<(u64, String)>,
}

impl Open {
    pub(crate) fn new(bucket: Bucket) -> Self {
        Self {
            bucket,
            cursors: VecDeque::new(),
        }
    }
}

/// The fewest things an interface needs of a store.
struct View<'a>(&'a mut ResourceTable);

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(ctx: &mut Ctx) -> View<'_> {
    View(&mut ctx.table)
}

pub(super) fn link(
    linker: &mut Linker<Ctx>,
    import: &Import,
    stores: &Route,
) -> Result<(), InterfaceError> {
    instance(linker, import, |instance| {
        match import.wit.interface.as_str() {
            "atomics" => atomics::add_to_linker_instance::<Ctx, HasView>(instance, view),
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
            error => Self::Other(report(&error)),
        }
    }
}

impl View<'_> {
    /// Cloned out of the table, so that nothing of the store is borrowed across I/O.
    fn bucket(&self, bucket: &Resource<Open>) -> wasmtime::Result<Bucket> {
        Ok(self.0.get(bucket)?.bucket.clone())
    }
}

impl routed::Host for View<'_> {
    async fn open(&mut self, stores: Route, identifier: String) -> Wit<Resource<Open>> {
        match stores.open(&identifier).await {
            Ok(bucket) => Ok(Ok(self.0.push(Open::new(bucket))?)),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl routed::HostBucket for View<'_> {
    async fn get(&mut self, _: Route, this: Resource<Open>, key: String) -> Wit<Option<Vec<u8>>> {
        let value = self.bucket(&this)?.get(&key).await;
        Ok(value.map(|value| value.map(Vec::from)).map_err(Error::from))
    }

    async fn set(
        &mut self,
        _: Route,
        this: Resource<Open>,
        key: String,
        value: Vec<u8>,
    ) -> Wit<()> {
        Ok(self
            .bucket(&this)?
            .set(&key, value.into())
            .await
            .map_err(Error::from))
    }

    async fn delete(&mut self, _: Route, this: Resource<Open>, key: String) -> Wit<()> {
        Ok(self.bucket(&this)?.delete(&key).await.map_err(Error::from))
    }

    async fn exists(&mut self, _: Route, this: Resource<Open>, key: String) -> Wit<bool> {
        let value = self.bucket(&this)?.get(&key).await;
        Ok(value.map(|value| value.is_some()).map_err(Error::from))
    }

    async fn list_keys(
        &mut self,
        _: Route,
        this: Resource<Open>,
        cursor: Option<u64>,
    ) -> Wit<KeyResponse> {
        let open = self.0.get_mut(&this)?;
        let bucket = open.bucket.clone();
        let start = cursor.unwrap_or(0);
        let after = open.cursors.iter().find(|(position, _)| *position == start);
        let after = after.map(|(_, key)| key.clone());
        let page = match (&after, start) {
            (Some(_), _) | (None, 0) => bucket.page("", after.as_deref(), PAGE_KEYS).await,
            // A cursor this bucket did not hand out counts keys from the start.
            (None, skip) => page_at(&bucket, skip).await,
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => return Ok(Err(error.into())),
        };
        let next = match (page.more, page.keys.last()) {
            (true, Some(last)) => {
                let position = start.saturating_add(page.keys.len() as u64);
                let open = self.0.get_mut(&this)?;
                open.cursors.retain(|(known, _)| *known != position);
                if open.cursors.len() == CURSORS_MAX {
                    open.cursors.pop_front();
                }
                open.cursors.push_back((position, last.clone()));
                Some(position)
            }
            _ => None,
        };
        Ok(Ok(KeyResponse {
            keys: page.keys,
            cursor: next,
        }))
    }

    async fn drop(&mut self, _: Route, this: Resource<Open>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

async fn page_at(bucket: &Bucket, skip: u64) -> Result<keyvalue::Page, keyvalue::Error> {
    let mut after: Option<String> = None;
    let mut left = skip;
    while left > 0 {
        let limit = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_KEYS);
        let page = bucket.page("", after.as_deref(), limit).await?;
        left = left.saturating_sub(page.keys.len() as u64);
        after = page.keys.last().cloned();
        if !page.more && left > 0 || after.is_none() {
            return Ok(keyvalue::Page::default());
        }
    }
    bucket.page("", after.as_deref(), PAGE_KEYS).await
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, this: Resource<Open>, key: String, delta: u64) -> Wit<u64> {
        let Ok(delta) = i64::try_from(delta) else {
            return Ok(Err(Error::Other("delta exceeds i64::MAX".to_owned())));
        };
        let sum = match self.bucket(&this)?.increment(&key, delta).await {
            Ok(sum) => {
                u64::try_from(sum).map_err(|_| Error::Other("counter is negative".to_owned()))
            }
            Err(error) => Err(error.into()),
        };
        Ok(sum)
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        this: Resource<Open>,
        keys: Vec<String>,
    ) -> Wit<Vec<Option<(String, Vec<u8>)>>> {
        let values = match self.bucket(&this)?.get_many(&keys).await {
            Ok(values) => values,
            Err(error) => return Ok(Err(error.into())),
        };
        let pairs = keys.into_iter().zip(values);
        Ok(Ok(pairs
            .map(|(key, value)| value.map(|value| (key, value.into())))
            .collect()))
    }

    async fn set_many(&mut self, this: Resource<Open>, pairs: Vec<(String, Vec<u8>)>) -> Wit<()> {
        Ok(self
            .bucket(&this)?
            .set_many(pairs)
            .await
            .map_err(Error::from))
    }

    async fn delete_many(&mut self, this: Resource<Open>, keys: Vec<String>) -> Wit<()> {
        Ok(self
            .bucket(&this)?
            .delete_many(&keys)
            .await
            .map_err(Error::from))
    }
}
