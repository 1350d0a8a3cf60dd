//! `wasmcloud:blobstore@0.1.0` as words: every method ends in one call of [`Container`] or of
//! [`Containers`](super::Containers).
//!
//! A body is a stream of the component model, which ends but does not fail: one that breaks off traps its guest,
//! because it would look complete.

use bytes::Bytes;
use capabilities::blobstore::{self, ByteStream, ObjectId};
use capabilities::report;
use futures::future::BoxFuture;
use futures::stream::StreamExt as _;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::PollSender;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Destination, HasData, Linker, Resource, ResourceTable, Source, StreamConsumer,
    StreamProducer, StreamReader, StreamResult, VecBuffer,
};

use super::{Container, Containers, Error};
use crate::ctx::Ctx;
use crate::interface::{InterfaceError, instance};
use crate::under_way::{Turn, UnderWay};
use crate::wit::Import;
use bindings::named_imports::wasmcloud::blobstore::blobstore as routed;
use bindings::wasmcloud::blobstore::container;
use bindings::wasmcloud::blobstore::types::{
    self, ContainerMetadata, Error as WitError, ObjectId as WitId, ObjectMetadata,
};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/blobstore-0.1",
        world: "wasmcloud:blobstore/imports",
        imports: { default: trappable },
        with: {
            "wasmcloud:blobstore/container.container": crate::interface::blobstore::Container,
        },
        named_imports: { "wasmcloud:blobstore/blobstore": super::Route },
    });
}

/// What serves the functions of one import.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<Containers>;

/// Bytes that are taken from a guest at once.
const PART_BYTES: usize = 64 << 10;

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
    route: &Route,
) -> Result<(), InterfaceError> {
    let route = Arc::clone(route);
    instance(linker, import, |instance| {
        match import.wit.interface.as_str() {
            "container" => container::add_to_linker_instance::<Ctx, HasView>(instance, view),
            "types" => types::add_to_linker_instance::<Ctx, HasView>(instance, view),
            _ => routed::add_to_linker_instance::<Ctx, HasView>(instance, route, view),
        }
    })
}

type Wit<T> = wasmtime::Result<Result<T, WitError>>;

impl From<Error> for WitError {
    fn from(error: Error) -> Self {
        use blobstore::Error as Storage;
        match error {
            Error::NotListed(_) | Error::ReadOnly => Self::AccessDenied,
            Error::Busy => Self::QuotaExceeded,
            Error::Storage(error) => match error {
                Storage::NoSuchContainer(_) => Self::NoSuchContainer,
                Storage::NoSuchObject(_) => Self::NoSuchObject,
                Storage::AccessDenied => Self::AccessDenied,
                Storage::TooLarge { .. } => Self::QuotaExceeded,
                Storage::Timeout(_) => Self::Timeout,
                Storage::Unavailable(_) => Self::StoreUnavailable,
                error => Self::Other(report(&error)),
            },
        }
    }
}

fn wit<T>(result: Result<T, Error>) -> Wit<T> {
    Ok(result.map_err(WitError::from))
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

/// Waits for the turn of a call with arguments of `bytes`.
async fn begin<T: 'static>(
    accessor: &Accessor<T, HasView>,
    bytes: usize,
) -> Result<Turn, WitError> {
    let under_way = accessor.with(|mut access| access.get().under_way.clone());
    under_way.begin(bytes).await.ok_or(WitError::QuotaExceeded)
}

/// The same of a call on `container`, with that.
async fn begin_on<T: 'static>(
    accessor: &Accessor<T, HasView>,
    container: &Resource<Container>,
    bytes: usize,
) -> wasmtime::Result<Result<(Container, Turn), WitError>> {
    let container = accessor.with(|mut access| access.get().table.get(container).cloned())?;
    Ok(begin(accessor, bytes).await.map(|turn| (container, turn)))
}

/// What was begun, or the guest is told why not.
macro_rules! begun {
    ($begun:expr) => {
        match $begun {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        }
    };
}

fn push<T: 'static>(
    accessor: &Accessor<T, HasView>,
    container: Result<Container, Error>,
) -> Wit<Resource<Container>> {
    match container {
        Ok(container) => Ok(Ok(
            accessor.with(|mut access| access.get().table.push(container))?
        )),
        Err(error) => wit(Err(error)),
    }
}

impl routed::Host for View<'_> {}

impl<T: 'static> routed::HostWithStore<T> for HasView {
    async fn create_container(
        accessor: &Accessor<T, Self>,
        route: Route,
        name: String,
    ) -> Wit<Resource<Container>> {
        let _turn = begun!(begin(accessor, name.len()).await);
        match route.exists(&name).await {
            Ok(false) => {}
            Ok(true) => return Ok(Err(WitError::ContainerAlreadyExists)),
            Err(error) => return wit(Err(error)),
        }
        push(accessor, route.create(&name).await)
    }

    async fn get_container(
        accessor: &Accessor<T, Self>,
        route: Route,
        name: String,
    ) -> Wit<Resource<Container>> {
        let _turn = begun!(begin(accessor, name.len()).await);
        push(accessor, route.open(&name).await)
    }

    async fn delete_container(accessor: &Accessor<T, Self>, route: Route, name: String) -> Wit<()> {
        let _turn = begun!(begin(accessor, name.len()).await);
        wit(route.delete(&name).await)
    }

    async fn container_exists(
        accessor: &Accessor<T, Self>,
        route: Route,
        name: String,
    ) -> Wit<bool> {
        let _turn = begun!(begin(accessor, name.len()).await);
        wit(route.exists(&name).await)
    }

    async fn copy_object(
        accessor: &Accessor<T, Self>,
        route: Route,
        src: WitId,
        dest: WitId,
    ) -> Wit<()> {
        let _turn = begun!(begin(accessor, src.object.len() + dest.object.len()).await);
        wit(route.copy(id(&src), id(&dest)).await)
    }

    async fn move_object(
        accessor: &Accessor<T, Self>,
        route: Route,
        src: WitId,
        dest: WitId,
    ) -> Wit<()> {
        let _turn = begun!(begin(accessor, src.object.len() + dest.object.len()).await);
        wit(route.rename(id(&src), id(&dest)).await)
    }
}

impl types::Host for View<'_> {}

impl container::Host for View<'_> {}

impl container::HostContainer for View<'_> {
    fn drop(&mut self, this: Resource<Container>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl<T: 'static> container::HostContainerWithStore<T> for HasView {
    async fn name(accessor: &Accessor<T, Self>, this: Resource<Container>) -> Wit<String> {
        let container = accessor.with(|mut access| access.get().table.get(&this).cloned())?;
        Ok(Ok(container.name().to_owned()))
    }

    async fn info(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
    ) -> Wit<ContainerMetadata> {
        let (container, _turn) = begun!(begin_on(accessor, &this, 0).await?);
        let info = container.info().await;
        wit(info.map(|info| ContainerMetadata {
            name: info.name,
            created_at: seconds(info.created_at),
        }))
    }

    async fn get_data(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Wit<StreamReader<u8>> {
        let (container, _turn) = begun!(begin_on(accessor, &this, name.len()).await?);
        let read = async {
            let permit = container.containers().bodies(1).await?;
            let content = container
                .read(&name, RangeInclusive::new(start, end))
                .await?;
            Ok(Download {
                body: content.body,
                piece: None,
                _permit: permit,
            })
        };
        match read.await {
            Ok(download) => Ok(Ok(
                accessor.with(|access| StreamReader::new(access, download))?
            )),
            Err(error) => wit(Err(error)),
        }
    }

    async fn write_data(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        name: String,
        mut data: StreamReader<u8>,
    ) -> Wit<()> {
        let begun = async {
            let (container, turn) = match begin_on(accessor, &this, name.len()).await? {
                Ok(begun) => begun,
                Err(error) => return Ok(Err(error)),
            };
            // A body waits for its guest, so it has a permit of its own instead of a turn.
            drop(turn);
            if let Err(error) = container.check_write(&name) {
                return wit(Err(error));
            }
            let permit = container.containers().bodies(1).await;
            wit(permit.map(|permit| (container, permit)))
        };
        let (container, _permit) = match begun.await? {
            Ok(begun) => begun,
            Err(error) => {
                accessor.with(|access| data.close(access))?;
                return Ok(Err(error));
            }
        };
        let (sender, mut parts) = mpsc::channel(1);
        accessor.with(|access| data.pipe(access, Upload(PollSender::new(sender))))?;
        let body = futures::stream::poll_fn(move |cx| parts.poll_recv(cx).map(|part| part.map(Ok)));
        wit(container.write(&name, Box::pin(body)).await)
    }

    async fn list_objects(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
    ) -> Wit<StreamReader<String>> {
        let (container, _turn) = begun!(begin_on(accessor, &this, 0).await?);
        match container.page(None).await {
            Ok(page) => {
                let names = Names {
                    container,
                    page: page.keys.into(),
                    more: page.more,
                    next: None,
                };
                Ok(Ok(accessor.with(|access| StreamReader::new(access, names))?))
            }
            Err(error) => wit(Err(error)),
        }
    }

    async fn delete_object(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        name: String,
    ) -> Wit<()> {
        let (container, _turn) = begun!(begin_on(accessor, &this, name.len()).await?);
        wit(container.delete(&name).await)
    }

    async fn delete_objects(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        names: Vec<String>,
    ) -> Wit<()> {
        let bytes = names.iter().map(String::len).sum();
        let (container, _turn) = begun!(begin_on(accessor, &this, bytes).await?);
        wit(container.delete_many(names).await)
    }

    async fn has_object(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        name: String,
    ) -> Wit<bool> {
        let (container, _turn) = begun!(begin_on(accessor, &this, name.len()).await?);
        let object = container.object(&name).await;
        wit(object.map(|object| object.is_some()))
    }

    async fn object_info(
        accessor: &Accessor<T, Self>,
        this: Resource<Container>,
        name: String,
    ) -> Wit<ObjectMetadata> {
        let (container, _turn) = begun!(begin_on(accessor, &this, name.len()).await?);
        let info = container.object(&name).await;
        wit(info.and_then(|info| {
            let info = info.ok_or(blobstore::Error::NoSuchObject(name))?;
            Ok(ObjectMetadata {
                name: info.name,
                container: container.name().to_owned(),
                created_at: seconds(info.created_at),
                size: info.size,
            })
        }))
    }

    async fn clear(accessor: &Accessor<T, Self>, this: Resource<Container>) -> Wit<()> {
        let (container, _turn) = begun!(begin_on(accessor, &this, 0).await?);
        wit(container.clear().await)
    }
}

/// The stream a guest writes an object through; nothing is taken that the storage has no room for.
struct Upload(PollSender<Bytes>);

impl<D> StreamConsumer<D> for Upload {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        match self.0.poll_reserve(cx) {
            Poll::Ready(Ok(())) => {}
            // The write has ended, and says why.
            Poll::Ready(Err(_)) => return Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        }
        let mut source = source.as_direct(store);
        let part = source.remaining();
        let part = Bytes::copy_from_slice(part.get(..PART_BYTES).unwrap_or(part));
        // A write of nothing asks whether there is room.
        if part.is_empty() {
            self.0.abort_send();
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let size = part.len();
        Poll::Ready(Ok(match self.0.send_item(part) {
            Ok(()) => {
                source.mark_read(size);
                StreamResult::Completed
            }
            Err(_) => StreamResult::Dropped,
        }))
    }
}

/// The stream a guest reads an object from.
struct Download {
    body: ByteStream,
    /// What has arrived and was not asked for yet.
    piece: Option<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl<D> StreamProducer<D> for Download {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, u8, Bytes>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        while this.piece.as_ref().is_none_or(Bytes::is_empty) {
            match this.body.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(piece))) => this.piece = Some(piece),
                Poll::Ready(Some(Err(error))) => {
                    let why = format!("an object ended early: {}", report(&*error));
                    return Poll::Ready(Err(wasmtime::Error::msg(why)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(StreamResult::Dropped)),
                Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // A read of nothing asks whether there is something.
        if destination.remaining(&mut store) != Some(0)
            && let Some(piece) = this.piece.take()
        {
            destination.set_buffer(piece);
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

/// The stream of a container's object names.
struct Names {
    container: Container,
    page: VecDeque<String>,
    more: bool,
    /// The page that is being read.
    next: Option<BoxFuture<'static, Result<blobstore::Page, Error>>>,
}

impl Names {
    fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let next = match &mut self.next {
            Some(next) => next,
            None => return Poll::Ready(Ok(())),
        };
        let page = ready!(next.as_mut().poll(cx));
        self.next = None;
        let page = page?;
        self.page = page.keys.into();
        self.more = page.more;
        Poll::Ready(Ok(()))
    }
}

impl<D> StreamProducer<D> for Names {
    type Item = String;
    type Buffer = VecBuffer<String>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, String, VecBuffer<String>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        match this.poll_page(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                let why = format!("a listing ended early: {}", report(&error));
                return Poll::Ready(Err(wasmtime::Error::msg(why)));
            }
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        }
        let wanted = destination.remaining(&mut store).unwrap_or(this.page.len());
        let taken = wanted.min(this.page.len());
        let last = this.page.back().cloned();
        let names: Vec<String> = this.page.drain(..taken).collect();
        destination.set_buffer(names.into());
        if this.page.is_empty() {
            if !this.more {
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
            let container = this.container.clone();
            this.next = Some(Box::pin(
                async move { container.page(last.as_deref()).await },
            ));
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
