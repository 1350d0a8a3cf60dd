//! `wasmcloud:messaging/consumer@0.3.0`: what an asynchronous component sends, its bodies as streams. What it
//! receives is in `invoke/messaging_p3.rs`.

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::messaging::{self, Message, MessageBus};
use capabilities::report;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use wasmtime::component::{
    Accessor, HasData, Linker, Source, StreamConsumer, StreamReader, StreamResult,
};
use wasmtime::{AsContextMut, StoreContextMut};

use super::messaging::{allowed, buses};
use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::under_way::{Turn, UnderWay};
use crate::wit::{Import, Served};
use bindings::named_imports::wasmcloud::messaging::consumer;
use bindings::wasmcloud::messaging::types::Error;
pub(crate) use bindings::wasmcloud::messaging::types::{BrokerMessage, HandleMessageError};
pub(crate) use bindings::{MessagingHandler, MessagingHandlerPre};

mod bindings {
    wasmtime::component::bindgen!({
        inline: "
            package washlet:host;
            world messaging-handler {
                import wasmcloud:messaging/consumer@0.3.0;
                export wasmcloud:messaging/handler@0.3.0;
            }
        ",
        path: "../wit/messaging-0.3",
        world: "washlet:host/messaging-handler",
        imports: { default: trappable },
        exports: { default: async | store },
        named_imports: { "wasmcloud:messaging/consumer": super::Route },
    });
}

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<dyn MessageBus>;

/// The largest body that a component sends, in bytes; the broker may take less.
const BODY_BYTES_MAX: usize = 16 << 20;

/// How long a request waits that sets no time.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Serves `wasmcloud:messaging/consumer@0.3.0`.
pub(crate) struct Messaging;

#[async_trait]
impl Interface for Messaging {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasmcloud",
            package: "messaging",
            interfaces: &["consumer", "types"],
            version: "0.3.0",
        }]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["consumer"]
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        for (import, bus) in buses(imports, need).await? {
            instance(linker, import, |instance| {
                consumer::add_to_linker_instance::<Ctx, HasView>(instance, bus, view)
            })?;
        }
        Ok(())
    }
}

/// The fewest things an interface needs of a store.
struct View<'a>(&'a UnderWay);

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(ctx: &mut Ctx) -> View<'_> {
    View(ctx.under_way.get_or_insert_default())
}

impl From<messaging::Error> for Error {
    fn from(error: messaging::Error) -> Self {
        match error {
            messaging::Error::InvalidSubject(_) => Self::SubjectInvalid,
            messaging::Error::AccessDenied | messaging::Error::Reserved(_) => Self::AccessDenied,
            messaging::Error::TooLarge { .. } => Self::MessageTooLarge,
            messaging::Error::Timeout(_) => Self::Timeout,
            messaging::Error::Unavailable(_) => Self::BrokerUnavailable,
            error => Self::Other(report(&error)),
        }
    }
}

/// Shape: the body is a stream of `store`, and is to be passed to a guest there.
pub(crate) fn broker_message(
    store: impl AsContextMut,
    message: Message,
) -> wasmtime::Result<BrokerMessage> {
    Ok(BrokerMessage {
        subject: message.subject,
        body: StreamReader::new(store, message.body)?,
        reply_to: message.reply_to,
    })
}

impl consumer::Host for View<'_> {}

impl<T: 'static> consumer::HostWithStore<T> for HasView {
    async fn request(
        accessor: &Accessor<T, Self>,
        bus: Route,
        subject: String,
        body: StreamReader<u8>,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<BrokerMessage, Error>> {
        let (body, _turn) = match collect(accessor, body, subject.len()).await? {
            Ok(collected) => collected,
            Err(error) => return Ok(Err(error)),
        };
        let message = Message {
            subject,
            body,
            reply_to: None,
        };
        if let Err(error) = allowed(&message) {
            return Ok(Err(error.into()));
        }
        let timeout = timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        match bus
            .request(message, timeout.unwrap_or(TIMEOUT_DEFAULT))
            .await
        {
            Ok(reply) => Ok(Ok(accessor.with(|access| broker_message(access, reply))?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn publish(
        accessor: &Accessor<T, Self>,
        bus: Route,
        message: BrokerMessage,
    ) -> wasmtime::Result<Result<(), Error>> {
        let BrokerMessage {
            subject,
            body,
            reply_to,
        } = message;
        let bytes = subject.len() + reply_to.as_ref().map_or(0, String::len);
        let (body, _turn) = match collect(accessor, body, bytes).await? {
            Ok(collected) => collected,
            Err(error) => return Ok(Err(error)),
        };
        let message = Message {
            subject,
            body,
            reply_to,
        };
        if let Err(error) = allowed(&message) {
            return Ok(Err(error.into()));
        }
        Ok(bus.publish(message).await.map_err(Error::from))
    }
}

type Collected = Result<(Bytes, Turn), Error>;

/// All of `body`, and the turn of its call, which has `bytes` of other arguments.
async fn collect<T: 'static>(
    accessor: &Accessor<T, HasView>,
    mut body: StreamReader<u8>,
    bytes: usize,
) -> wasmtime::Result<Collected> {
    let under_way = accessor.with(|mut access| access.get().0.clone());
    let Some(turn) = under_way.begin(bytes).await else {
        accessor.with(|access| body.close(access))?;
        return Ok(Err(Error::QuotaExceeded));
    };
    let (sender, receiver) = oneshot::channel();
    let collect = Collect(Some(Collecting {
        bytes: Vec::new(),
        turn,
        done: sender,
    }));
    accessor.with(|access| body.pipe(access, collect))?;
    // The other end is with the stream, and ends with it.
    Ok(receiver
        .await
        .unwrap_or_else(|_| Err(Error::Other("the body was lost".to_owned()))))
}

/// Takes a stream until its writer drops it.
struct Collect(Option<Collecting>);

struct Collecting {
    bytes: Vec<u8>,
    turn: Turn,
    done: oneshot::Sender<Collected>,
}

impl Collect {
    fn finish(&mut self, error: Option<Error>) {
        if let Some(Collecting { bytes, turn, done }) = self.0.take() {
            let _ = done.send(match error {
                None => Ok((bytes.into(), turn)),
                Some(error) => Err(error),
            });
        }
    }
}

impl Drop for Collect {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl<D> StreamConsumer<D> for Collect {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some(collecting) = &mut self.0 else {
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        let mut source = source.as_direct(store);
        let part = source.remaining();
        let size = part.len();
        let error = if collecting.bytes.len().saturating_add(size) > BODY_BYTES_MAX {
            Some(Error::MessageTooLarge)
        } else if !collecting.turn.grow(size) {
            Some(Error::QuotaExceeded)
        } else {
            None
        };
        if error.is_some() {
            self.finish(error);
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        collecting.bytes.extend_from_slice(part);
        source.mark_read(size);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
