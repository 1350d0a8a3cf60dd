//! Blobs: what a container means, once, whatever the WIT package and the storage.

mod p2;
mod p3;
mod streams;

use async_trait::async_trait;
use capabilities::blobstore::{
    self, BlobStore, ByteStream, ContainerInfo, Content, KeyRange, ObjectId, ObjectInfo, Page,
    check_object_name,
};
use capabilities::plugin::{OpenError, Settings};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Linker;

use super::{Interface, InterfaceError, Need};
use crate::ctx::Ctx;
use crate::wit::{Import, Served, WitInterface};

/// How many deletions of one call are under way at once.
const DELETIONS_IN_FLIGHT: usize = 32;

/// How many names one page of a listing holds.
const PAGE_NAMES: usize = 1_000;

/// How many bodies one component's instances may have open; each may hold half a mebibyte.
const BODIES_MAX: usize = 256;

/// How long one more body waits for one to be closed.
const BODY_WAIT: Duration = Duration::from_secs(5);

/// Serves `wasi:blobstore` and `wasmcloud:blobstore`.
pub(crate) struct Blobstore;

#[async_trait]
impl Interface for Blobstore {
    fn serves(&self) -> &'static [Served] {
        &[
            Served {
                namespace: "wasi",
                package: "blobstore",
                interfaces: &["blobstore", "container", "types"],
                version: "0.2.0-draft",
            },
            Served {
                namespace: "wasmcloud",
                package: "blobstore",
                interfaces: &["blobstore", "container", "types"],
                version: "0.1.0",
            },
        ]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["blobstore"]
    }

    fn reaches_named(&self, interface: &str) -> bool {
        interface == "container"
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        let bodies = Arc::new(Semaphore::new(BODIES_MAX));
        // Each package has entries of its own, which may have the same names.
        let (wasmcloud, wasi): (Vec<_>, Vec<_>) = imports
            .iter()
            .partition(|import| import.wit.namespace == "wasmcloud");
        link(linker, &wasi, need, &bodies, p2::link).await?;
        link(linker, &wasmcloud, need, &bodies, p3::link).await
    }
}

/// Links one import of a package.
type Add = fn(&mut Linker<Ctx>, &Import, &Arc<Containers>) -> Result<(), InterfaceError>;

async fn link(
    linker: &mut Linker<Ctx>,
    imports: &[&Import],
    need: &Need<'_>,
    bodies: &Arc<Semaphore>,
    add: Add,
) -> Result<(), InterfaceError> {
    // Containers know their storage, so what takes them may be linked with any.
    let mut any = None;
    let mut without = Vec::new();
    for import in imports {
        let Some(entry) = need.entry(import) else {
            without.push(*import);
            continue;
        };
        let route = match &any {
            Some((opened, route)) if *opened == &entry.name => Arc::clone(route),
            _ => open(need, entry, bodies).await?,
        };
        add(linker, import, &route)?;
        any.get_or_insert((&entry.name, route));
    }
    let Some((_, route)) = any else {
        return Ok(());
    };
    without
        .into_iter()
        .try_for_each(|import| add(linker, import, &route))
}

async fn open(
    need: &Need<'_>,
    entry: &WitInterface,
    bodies: &Arc<Semaphore>,
) -> Result<Arc<Containers>, InterfaceError> {
    let access = Access::read(&Settings::new(&entry.config));
    let access = access.map_err(|source| InterfaceError::Open {
        capability: "blobstore",
        entry: entry.to_string(),
        source,
    })?;
    let store = need
        .open(
            "blobstore",
            entry,
            &Access::KEYS,
            |plugin, ask| async move { plugin.blobstore(&ask).await },
        )
        .await?;
    Ok(Arc::new(Containers {
        store,
        access,
        bodies: Arc::clone(bodies),
    }))
}

/// Why a blob operation failed.
#[derive(thiserror::Error, Debug)]
pub(crate) enum Error {
    #[error("unauthorized: container '{0}' is not among the host interface's 'buckets'")]
    NotListed(String),
    #[error("unauthorized: the host interface is 'read_only'")]
    ReadOnly,
    #[error("more than {BODIES_MAX} values are open in this component; close some")]
    Busy,
    #[error(transparent)]
    Storage(#[from] blobstore::Error),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What a host interface entry allows.
struct Access {
    /// `None` is all.
    containers: Option<BTreeSet<String>>,
    read_only: bool,
}

impl Access {
    const KEYS: [&str; 2] = ["buckets", "read_only"];

    fn read(settings: &Settings<'_>) -> Result<Self, OpenError> {
        let names = |list: &str| {
            let names = list.split(',').map(str::trim);
            names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect()
        };
        Ok(Self {
            containers: settings.text("buckets").map(names),
            read_only: settings.boolean("read_only")?.unwrap_or(false),
        })
    }
}

/// The containers of one component, and how much of them it has open.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Containers {
    store: Arc<dyn BlobStore>,
    access: Access,
    bodies: Arc<Semaphore>,
}

impl Containers {
    fn check_read(&self, container: &str) -> Result<()> {
        match &self.access.containers {
            Some(listed) if !listed.contains(container) => {
                Err(Error::NotListed(container.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn check_write(&self, container: &str) -> Result<()> {
        self.check_read(container)?;
        match self.access.read_only {
            true => Err(Error::ReadOnly),
            false => Ok(()),
        }
    }

    /// The right to hold `count` more bodies.
    pub(crate) async fn bodies(&self, count: u32) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.bodies).acquire_many_owned(count);
        match tokio::time::timeout(BODY_WAIT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::Busy),
        }
    }

    pub(crate) async fn create(self: &Arc<Self>, name: &str) -> Result<Container> {
        self.check_write(name)?;
        self.store.create_container(name).await?;
        Ok(self.container(name))
    }

    pub(crate) async fn open(self: &Arc<Self>, name: &str) -> Result<Container> {
        match self.exists(name).await? {
            true => Ok(self.container(name)),
            false => Err(blobstore::Error::NoSuchContainer(name.to_owned()).into()),
        }
    }

    pub(crate) async fn exists(&self, name: &str) -> Result<bool> {
        self.check_read(name)?;
        Ok(self.store.container(name).await?.is_some())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        self.check_write(name)?;
        Ok(self.store.delete_container(name).await?)
    }

    /// Copies as it reads; onto itself, it only looks whether it is there.
    pub(crate) async fn copy(&self, from: ObjectId<'_>, to: ObjectId<'_>) -> Result<()> {
        self.check_read(from.container)?;
        self.check_write(to.container)?;
        let _both = self.bodies(2).await?;
        let content = self.store.read(from, 0..=u64::MAX).await?;
        if from == to {
            return Ok(());
        }
        Ok(self.store.write(to, content.body).await?)
    }

    pub(crate) async fn rename(&self, from: ObjectId<'_>, to: ObjectId<'_>) -> Result<()> {
        self.check_write(from.container)?;
        self.copy(from, to).await?;
        match from == to {
            true => Ok(()),
            false => Ok(self.store.delete(from).await?),
        }
    }

    fn container(self: &Arc<Self>, name: &str) -> Container {
        Container {
            of: Arc::clone(self),
            name: name.into(),
        }
    }
}

/// An open container.
#[derive(Clone)]
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Container {
    of: Arc<Containers>,
    name: Arc<str>,
}

impl Container {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn containers(&self) -> &Containers {
        &self.of
    }

    pub(crate) async fn info(&self) -> Result<ContainerInfo> {
        let info = self.of.store.container(&self.name).await?;
        Ok(info.ok_or_else(|| blobstore::Error::NoSuchContainer(self.name.to_string()))?)
    }

    pub(crate) async fn read(&self, object: &str, range: RangeInclusive<u64>) -> Result<Content> {
        Ok(self.of.store.read(self.id(object), range).await?)
    }

    /// What [`write`](Self::write) refuses at once.
    pub(crate) fn check_write(&self, object: &str) -> Result<()> {
        check_object_name(object)?;
        self.of.check_write(&self.name)
    }

    pub(crate) async fn write(&self, object: &str, body: ByteStream) -> Result<()> {
        self.check_write(object)?;
        Ok(self.of.store.write(self.id(object), body).await?)
    }

    pub(crate) async fn object(&self, object: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.of.store.object(self.id(object)).await?)
    }

    pub(crate) async fn delete(&self, object: &str) -> Result<()> {
        self.of.check_write(&self.name)?;
        Ok(self.of.store.delete(self.id(object)).await?)
    }

    pub(crate) async fn delete_many(&self, objects: Vec<String>) -> Result<()> {
        let deletions = objects
            .into_iter()
            .map(|object| async move { self.delete(&object).await });
        stream::iter(deletions)
            .buffer_unordered(DELETIONS_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// Deletes all that is there when its turn comes.
    pub(crate) async fn clear(&self) -> Result<()> {
        self.of.check_write(&self.name)?;
        let mut after = None;
        loop {
            let page = self.page(after.as_deref()).await?;
            after = page.keys.last().cloned();
            self.delete_many(page.keys).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    pub(crate) async fn page(&self, after: Option<&str>) -> Result<Page> {
        let range = KeyRange {
            prefix: "",
            after,
            limit: PAGE_NAMES,
        };
        Ok(self.of.store.objects(&self.name, range).await?)
    }

    fn id<'a>(&'a self, object: &'a str) -> ObjectId<'a> {
        ObjectId {
            container: &self.name,
            object,
        }
    }
}
