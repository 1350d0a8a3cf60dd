//! `wasi:blobstore@0.2.0-draft` as words: every method ends in one call of [`Container`] or of
//! [`Containers`](super::Containers).

use capabilities::blobstore::{self, ObjectId};
use capabilities::report;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use super::{Containers, Error};
use crate::ctx::Ctx;
use crate::interface::{InterfaceError, instance};
use crate::wit::Import;
use bindings::named_imports::wasi::blobstore::{blobstore as routed, types as routed_types};
use bindings::wasi::blobstore::container;
use bindings::wasi::blobstore::types::{ContainerMetadata, ObjectId as WitId, ObjectMetadata};

// The resources of the bindings.
#[expect(unreachable_pub, reason = "generated bindings re-export them")]
pub use super::Container;
#[expect(unreachable_pub, reason = "generated bindings re-export them")]
pub use super::streams::{Incoming, Outgoing};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/blobstore",
        world: "wasi:blobstore/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:blobstore/types.outgoing-value": super::Outgoing,
            "wasi:blobstore/types.incoming-value": super::Incoming,
            "wasi:blobstore/container.container": super::Container,
            "wasi:blobstore/container.stream-object-names": super::Names,
        },
        named_imports: {
            "wasi:blobstore/blobstore": super::Route,
            "wasi:blobstore/types": super::Route,
        },
    });
}

/// What serves the functions of one import.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<Containers>;

/// The most bytes that are given at once: they are in the host's memory before the guest has them.
const SYNC_BYTES_MAX: u64 = 32 << 20;

/// The resource `stream-object-names`: a listing, and where it stands.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Names {
    container: Container,
    page: VecDeque<String>,
    /// The last name of the page, while there are more after it.
    more_after: Option<String>,
}

impl Names {
    async fn begin(container: Container) -> Result<Self, Error> {
        let mut names = Self {
            container,
            page: VecDeque::new(),
            more_after: None,
        };
        names.turn(None).await?;
        Ok(names)
    }

    async fn turn(&mut self, after: Option<&str>) -> Result<(), Error> {
        let page = self.container.page(after).await?;
        self.more_after = page.keys.last().filter(|_| page.more).cloned();
        self.page = page.keys.into();
        Ok(())
    }

    /// The next names, at most `count` and those of one page.
    async fn next(&mut self, count: u64) -> Result<Vec<String>, Error> {
        if self.page.is_empty()
            && count > 0
            && let Some(after) = self.more_after.clone()
        {
            self.turn(Some(&after)).await?;
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(self.page.drain(..count.min(self.page.len())).collect())
    }

    fn is_at_end(&self) -> bool {
        self.page.is_empty() && self.more_after.is_none()
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
    route: &Route,
) -> Result<(), InterfaceError> {
    let route = Arc::clone(route);
    instance(linker, import, |instance| {
        match import.wit.interface.as_str() {
            "container" => container::add_to_linker_instance::<Ctx, HasView>(instance, view),
            "types" => routed_types::add_to_linker_instance::<Ctx, HasView>(instance, route, view),
            _ => routed::add_to_linker_instance::<Ctx, HasView>(instance, route, view),
        }
    })
}

/// The WIT's error is a text.
type Wit<T> = wasmtime::Result<Result<T, String>>;

fn wit<T>(result: Result<T, Error>) -> Wit<T> {
    Ok(result.map_err(|error| report(&error)))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn id(id: &WitId) -> ObjectId<'_> {
    ObjectId {
        container: &id.container,
        object: &id.object,
    }
}

impl View<'_> {
    /// Cloned out of the table, so that nothing of the store is borrowed across I/O.
    fn container(&self, container: &Resource<Container>) -> wasmtime::Result<Container> {
        Ok(self.0.get(container)?.clone())
    }

    /// `result` as a resource of the guest's.
    fn push<T: Send + 'static>(&mut self, result: Result<T, Error>) -> Wit<Resource<T>> {
        match result {
            Ok(value) => Ok(Ok(self.0.push(value)?)),
            Err(error) => wit(Err(error)),
        }
    }
}

impl routed::Host for View<'_> {
    async fn create_container(&mut self, route: Route, name: String) -> Wit<Resource<Container>> {
        let container = route.create(&name).await;
        self.push(container)
    }

    async fn get_container(&mut self, route: Route, name: String) -> Wit<Resource<Container>> {
        let container = route.open(&name).await;
        self.push(container)
    }

    async fn delete_container(&mut self, route: Route, name: String) -> Wit<()> {
        wit(route.delete(&name).await)
    }

    async fn container_exists(&mut self, route: Route, name: String) -> Wit<bool> {
        wit(route.exists(&name).await)
    }

    async fn copy_object(&mut self, route: Route, src: WitId, dest: WitId) -> Wit<()> {
        wit(route.copy(id(&src), id(&dest)).await)
    }

    async fn move_object(&mut self, route: Route, src: WitId, dest: WitId) -> Wit<()> {
        wit(route.rename(id(&src), id(&dest)).await)
    }
}

impl container::Host for View<'_> {}

impl container::HostContainer for View<'_> {
    async fn name(&mut self, this: Resource<Container>) -> Wit<String> {
        Ok(Ok(self.container(&this)?.name().to_owned()))
    }

    async fn info(&mut self, this: Resource<Container>) -> Wit<ContainerMetadata> {
        let info = self.container(&this)?.info().await;
        wit(info.map(|info| ContainerMetadata {
            name: info.name,
            created_at: seconds(info.created_at),
        }))
    }

    async fn get_data(
        &mut self,
        this: Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Wit<Resource<Incoming>> {
        let container = self.container(&this)?;
        let read = async {
            let permit = container.containers().bodies(1).await?;
            let range = RangeInclusive::new(start, end);
            Ok(Incoming::new(container.read(&name, range).await?, permit))
        };
        let incoming = read.await;
        self.push(incoming)
    }

    async fn write_data(
        &mut self,
        this: Resource<Container>,
        name: String,
        data: Resource<Outgoing>,
    ) -> Wit<()> {
        let container = self.container(&this)?;
        if let Err(error) = container.check_write(&name) {
            return wit(Err(error));
        }
        Ok(self.0.get(&data)?.name(container, name))
    }

    async fn list_objects(&mut self, this: Resource<Container>) -> Wit<Resource<Names>> {
        let names = Names::begin(self.container(&this)?).await;
        self.push(names)
    }

    async fn delete_object(&mut self, this: Resource<Container>, name: String) -> Wit<()> {
        wit(self.container(&this)?.delete(&name).await)
    }

    async fn delete_objects(&mut self, this: Resource<Container>, names: Vec<String>) -> Wit<()> {
        wit(self.container(&this)?.delete_many(names).await)
    }

    async fn has_object(&mut self, this: Resource<Container>, name: String) -> Wit<bool> {
        let object = self.container(&this)?.object(&name).await;
        wit(object.map(|object| object.is_some()))
    }

    async fn object_info(
        &mut self,
        this: Resource<Container>,
        name: String,
    ) -> Wit<ObjectMetadata> {
        let container = self.container(&this)?;
        let info = container.object(&name).await;
        wit(info.and_then(|info| {
            let info = info.ok_or_else(|| blobstore::Error::NoSuchObject(name.clone()))?;
            Ok(ObjectMetadata {
                name: info.name,
                container: container.name().to_owned(),
                created_at: seconds(info.created_at),
                size: info.size,
            })
        }))
    }

    async fn clear(&mut self, this: Resource<Container>) -> Wit<()> {
        wit(self.container(&this)?.clear().await)
    }

    async fn drop(&mut self, this: Resource<Container>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

impl container::HostStreamObjectNames for View<'_> {
    async fn read_stream_object_names(
        &mut self,
        this: Resource<Names>,
        len: u64,
    ) -> Wit<(Vec<String>, bool)> {
        let names = self.0.get_mut(&this)?;
        let read = names.next(len).await;
        wit(read.map(|read| (read, names.is_at_end())))
    }

    async fn skip_stream_object_names(
        &mut self,
        this: Resource<Names>,
        num: u64,
    ) -> Wit<(u64, bool)> {
        let names = self.0.get_mut(&this)?;
        let mut skipped = 0;
        while skipped < num && !names.is_at_end() {
            match names.next(num - skipped).await {
                Ok(read) => skipped += read.len() as u64,
                Err(error) => return wit(Err(error)),
            }
        }
        Ok(Ok((skipped, names.is_at_end())))
    }

    async fn drop(&mut self, this: Resource<Names>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

impl routed_types::Host for View<'_> {}

impl routed_types::HostOutgoingValue for View<'_> {
    async fn new_outgoing_value(&mut self, _: Route) -> wasmtime::Result<Resource<Outgoing>> {
        Ok(self.0.push(Outgoing::new())?)
    }

    async fn outgoing_value_write_body(
        &mut self,
        route: Route,
        this: Resource<Outgoing>,
    ) -> wasmtime::Result<Result<Resource<DynOutputStream>, ()>> {
        let Ok(permit) = route.bodies(1).await else {
            return Ok(Err(()));
        };
        let Some(writer) = self.0.get(&this)?.writer(permit) else {
            return Ok(Err(()));
        };
        let writer: DynOutputStream = Box::new(writer);
        Ok(Ok(self.0.push(writer)?))
    }

    async fn finish(&mut self, _: Route, this: Resource<Outgoing>) -> Wit<()> {
        let value = self.0.delete(this)?;
        Ok(value.finish().await)
    }

    async fn drop(&mut self, _: Route, this: Resource<Outgoing>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

impl routed_types::HostIncomingValue for View<'_> {
    async fn incoming_value_consume_sync(
        &mut self,
        _: Route,
        this: Resource<Incoming>,
    ) -> Wit<Vec<u8>> {
        let value = self.0.delete(this)?;
        let size = value.size();
        Ok(match value.bytes(SYNC_BYTES_MAX).await {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(format!(
                "{size} bytes are more than {SYNC_BYTES_MAX}: consume them as a stream"
            )),
            Err(error) => Err(report(&error)),
        })
    }

    async fn incoming_value_consume_async(
        &mut self,
        _: Route,
        this: Resource<Incoming>,
    ) -> Wit<Resource<DynInputStream>> {
        let reader: DynInputStream = Box::new(self.0.delete(this)?.reader());
        Ok(Ok(self.0.push(reader)?))
    }

    async fn size(&mut self, _: Route, this: Resource<Incoming>) -> wasmtime::Result<u64> {
        Ok(self.0.get(&this)?.size())
    }

    async fn drop(&mut self, _: Route, this: Resource<Incoming>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}
