//! `wasmcloud:messaging/consumer@0.2.0`: what a component sends. What it receives is in
//! `invoke/messaging.rs`.

use async_trait::async_trait;
use capabilities::messaging::{Error, Message, MessageBus, may_send};
use capabilities::report;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::{HasData, Linker};

use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::wit::{Import, Served};
use bindings::named_imports::wasmcloud::messaging::consumer;
pub(crate) use bindings::wasmcloud::messaging::types::BrokerMessage;
pub(crate) use bindings::{MessagingHandler, MessagingHandlerPre};

mod bindings {
    wasmtime::component::bindgen!({
        inline: "
            package washlet:host;
            world messaging-handler {
                import wasmcloud:messaging/consumer@0.2.0;
                export wasmcloud:messaging/handler@0.2.0;
            }
        ",
        path: "../wit/messaging-0.2",
        world: "washlet:host/messaging-handler",
        imports: { default: async | trappable },
        exports: { default: async },
        named_imports: { "wasmcloud:messaging/consumer": super::Route },
    });
}

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<dyn MessageBus>;

/// Config keys of a messaging entry that whoever subscribes reads.
pub const SUBSCRIPTION_KEYS: &[&str] = &[
    "subscriptions",
    "consumer_group",
    "max_in_flight",
    "admission_wait",
    "ack_wait",
    "max_deliver",
    "backoff",
    "dead_letter",
    "forget_after",
];

/// Serves `wasmcloud:messaging/consumer`.
pub(crate) struct Messaging;

#[async_trait]
impl Interface for Messaging {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasmcloud",
            package: "messaging",
            interfaces: &["consumer", "types"],
            version: "0.2.0",
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
                consumer::add_to_linker_instance::<Ctx, Stateless>(instance, bus, |_| View)
            })?;
        }
        Ok(())
    }
}

/// The bus behind each import of a consumer, of any version.
pub(super) async fn buses<'a>(
    imports: &'a [Import],
    need: &Need<'_>,
) -> Result<Vec<(&'a Import, Route)>, InterfaceError> {
    let mut buses = Vec::new();
    let consumers = imports.iter();
    for import in consumers.filter(|import| import.wit.interface == "consumer") {
        let Some(entry) = need.entry(import) else {
            continue;
        };
        // Messages come in through the entry without a name.
        let elsewhere = match entry.name.is_empty() {
            true => SUBSCRIPTION_KEYS,
            false => &[],
        };
        let bus = need
            .open("messaging", entry, elsewhere, |plugin, ask| async move {
                plugin.messaging(&ask).await
            })
            .await?;
        buses.push((import, bus));
    }
    Ok(buses)
}

struct View;

struct Stateless;

impl HasData for Stateless {
    type Data<'a> = View;
}

impl consumer::Host for View {
    async fn request(
        &mut self,
        bus: Route,
        subject: String,
        body: Vec<u8>,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<BrokerMessage, String>> {
        let message = Message {
            subject,
            body: body.into(),
            reply_to: None,
        };
        let timeout = Duration::from_millis(timeout_ms.into());
        let reply = match allowed(&message) {
            Ok(()) => bus.request(message, timeout).await,
            Err(error) => Err(error),
        };
        Ok(match reply {
            Ok(reply) => Ok(reply.into()),
            Err(Error::Timeout(_)) => Err(format!("request timed out after {timeout_ms}ms")),
            Err(error) => Err(format!("failed to send request: {}", report(&error))),
        })
    }

    async fn publish(
        &mut self,
        bus: Route,
        message: BrokerMessage,
    ) -> wasmtime::Result<Result<(), String>> {
        let message = Message::from(message);
        let sent = match allowed(&message) {
            Ok(()) => bus.publish(message).await,
            Err(error) => Err(error),
        };
        Ok(sent.map_err(|error| format!("failed to publish: {}", report(&error))))
    }
}

/// Neither the message nor an answer to it, which others send, may go where components have no business.
pub(super) fn allowed(message: &Message) -> Result<(), Error> {
    let mut to = std::iter::once(&message.subject).chain(&message.reply_to);
    match to.find(|subject| !may_send(subject)) {
        Some(subject) => Err(Error::Reserved(subject.clone())),
        None => Ok(()),
    }
}

impl From<Message> for BrokerMessage {
    fn from(message: Message) -> Self {
        let Message {
            subject,
            body,
            reply_to,
        } = message;
        Self {
            subject,
            body: body.into(),
            reply_to,
        }
    }
}

impl From<BrokerMessage> for Message {
    fn from(message: BrokerMessage) -> Self {
        let BrokerMessage {
            subject,
            body,
            reply_to,
        } = message;
        Self {
            subject,
            body: body.into(),
            reply_to,
        }
    }
}
