//! Messages by subject.
//!
//! Subjects are those of NATS: tokens joined by `.`; a subscription may use `*` for one token and `>` for
//! the rest. [`durable`] is about deliveries that come again until they are settled.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::Stream;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::BoxError;
pub use durable::{Fate, Group, Redelivery};

pub mod durable;

/// A message bus.
#[async_trait]
pub trait MessageBus: Send + Sync + 'static {
    /// Which kinds of delivery this bus has; anything else asked of it is [`Error::Unsupported`].
    fn offers(&self) -> Offers;

    /// Sends `message` to whoever listens; nobody listening is success.
    ///
    /// Errors: [`Error::InvalidSubject`], [`Error::TooLarge`], [`Error::Unavailable`].
    /// Source: `wasmcloud:messaging/consumer.publish`.
    async fn publish(&self, message: Message) -> Result<()>;

    /// Sends `message` (whose `reply_to` is not used) and waits for the first answer.
    ///
    /// Errors: [`Error::NoResponders`] when nobody listens, [`Error::Timeout`] after `timeout`.
    /// Source: `wasmcloud:messaging/consumer.request`.
    async fn request(&self, message: Message, timeout: Duration) -> Result<Message>;

    /// Messages on `subject` from now on: when this returns, the subscription is in force.
    ///
    /// With a `group`, each message goes to one subscriber of the group; without, to every one.
    /// Dropping the subscription ends it.
    ///
    /// Errors: [`Error::InvalidSubject`], [`Error::InvalidGroup`].
    async fn subscribe(&self, subject: &str, group: Option<&str>) -> Result<Subscription>;

    /// As one more member of `group`, messages that it has not settled yet; when this returns, the bus knows
    /// the group.
    ///
    /// Shape: a message is fetched when the subscription is polled, so that none waits here meanwhile; it
    /// goes on when the bus was away. Dropping it ends the membership, not the group.
    ///
    /// Errors: those of [`Group::check`]; [`Error::Setup`]; [`Error::Unsupported`] unless
    /// [`durable`](Offers::durable).
    async fn consume(&self, group: &Group) -> Result<Subscription> {
        let _ = group;
        Err(Error::Unsupported("durable delivery"))
    }
}

/// Which kinds of delivery a bus has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Subscriptions without a group.
    pub broadcast: bool,
    /// [`MessageBus::request`].
    pub request: bool,
    /// [`MessageBus::consume`], and that alone: there is no [`subscribe`](MessageBus::subscribe).
    pub durable: bool,
}

impl Offers {
    /// At most once, to whoever listens.
    pub const TRANSIENT: Self = Self {
        broadcast: true,
        request: true,
        durable: false,
    };

    /// To groups, until it is settled.
    pub const DURABLE: Self = Self {
        broadcast: false,
        request: false,
        durable: true,
    };
}

/// A stream of deliveries; dropping it unsubscribes.
pub type Subscription = Pin<Box<dyn Stream<Item = Delivery> + Send>>;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it goes, or came from.
    pub subject: String,
    /// Any bytes.
    pub body: Bytes,
    /// Where an answer is expected, if one is.
    pub reply_to: Option<String>,
}

/// One message handed to a subscriber.
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// 1 for the first time this message is delivered.
    pub attempt: u32,
    /// How the subscriber says what came of it.
    pub settle: Settle,
}

/// Says what came of a delivery. Dropped unsettled means retry; on a bus without durable delivery
/// settling does nothing.
pub struct Settle(Option<Box<dyn Settlement>>);

/// What a durable bus does when a delivery is settled.
#[async_trait]
pub trait Settlement: Send + Sync {
    /// Carries out `outcome`.
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<Settled>;

    /// Says that the message is still being handled. It is tried again if it fails.
    async fn renew(&self);

    /// How often that must be said.
    fn renew_every(&self) -> Duration;
}

/// What came of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ack,
    /// It was not handled, for this reason: deliver it again, until it was delivered too often.
    Retry(String),
    /// It never will be handled, for this reason: dead letter.
    Reject(String),
    /// It was not tried: deliver it again at once.
    Release,
}

/// What a bus has done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is gone.
    Done,
    /// It will come again.
    Again,
    /// It is a dead letter now.
    Dead,
}

impl Settle {
    /// For a bus that delivers at most once.
    pub fn none() -> Self {
        Self(None)
    }

    /// For a bus that wants to know.
    pub fn by(settlement: impl Settlement + 'static) -> Self {
        Self(Some(Box::new(settlement)))
    }

    /// What `work` comes to; meanwhile the bus is told that the message is being handled.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(settlement) = &self.0 else {
            return work.await;
        };
        let renewing = async {
            loop {
                tokio::time::sleep(settlement.renew_every()).await;
                settlement.renew().await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = renewing => never,
        }
    }

    /// Tells the bus `outcome`.
    ///
    /// # Errors
    /// Those of the bus; the message is then delivered again.
    pub async fn settle(mut self, outcome: Outcome) -> Result<Settled> {
        match self.0.take() {
            Some(settlement) => settlement.settle(outcome).await,
            None => Ok(Settled::Done),
        }
    }
}

/// Why a messaging operation failed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Not a subject, or one with wildcards where none may be.
    #[error("invalid subject '{0}'")]
    InvalidSubject(String),
    /// Not the name of a group.
    #[error("invalid queue group '{0}'")]
    InvalidGroup(String),
    /// A subject that is not for components: [`may_send`].
    #[error(
        "subject '{0}' belongs to the fleet or to the broker itself, and is not for components"
    )]
    Reserved(String),
    /// The broker refused this host's credentials for the subject.
    #[error("access denied")]
    AccessDenied,
    /// The body is larger than the broker takes.
    #[error("message of {bytes} bytes exceeds {bytes_max}")]
    TooLarge {
        /// The body's size.
        bytes: usize,
        /// The limit in force.
        bytes_max: usize,
    },
    /// Nobody listens on the subject of a request.
    #[error("no responders")]
    NoResponders,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The broker cannot be reached; trying again may help.
    #[error("broker unavailable")]
    Unavailable(#[source] BoxError),
    /// What was asked for does not fit what the broker has; the text says what to change.
    #[error("{0}")]
    Setup(String),
    /// The message was given to another member before it was settled.
    #[error("the message was delivered again before it was settled")]
    Lost,
    /// The bus has no such function.
    #[error("{0} is not supported by this bus")]
    Unsupported(&'static str),
    /// Anything else the broker's client said.
    #[error("broker error")]
    Internal(#[source] BoxError),
}

/// What messaging operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest subject, subscription or group, in bytes. NATS closes a connection, which others share, whose
/// command line is over 4096 bytes; subject, reply and group are on one line.
pub const SUBJECT_BYTES_MAX: usize = 1024;

/// Whether `subject` may be published to: tokens without wildcards or white space.
pub fn is_subject(subject: &str) -> bool {
    is_filter(subject) && !subject.split('.').any(|token| token == "*" || token == ">")
}

/// Whether `filter` may be subscribed to: `*` stands for one token, a last `>` for one or more.
pub fn is_filter(filter: &str) -> bool {
    if filter.len() > SUBJECT_BYTES_MAX {
        return false;
    }
    let tokens = filter.split('.').count();
    filter.split('.').enumerate().all(|(i, token)| {
        !token.is_empty()
            && !token.chars().any(|c| c.is_whitespace() || c.is_control())
            && (token != ">" || i + 1 == tokens)
    })
}

/// Whether `group` may name a group of subscribers: something without white space.
pub fn is_group(group: &str) -> bool {
    (1..=SUBJECT_BYTES_MAX).contains(&group.len())
        && !group.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Whether a component may send to `subject`: not what hosts, their operator and the server itself go by. Who
/// may send commands to a host can run anything on it, and who may write to the server's own subjects has
/// everybody's buckets.
///
/// Source: `runtime.host.>`, `runtime.operator.>`, `washlet.>`; NATS' `$JS`, `$KV`, `$O`, `$SYS`.
pub fn may_send(subject: &str) -> bool {
    let mut tokens = subject.split('.');
    match (tokens.next().unwrap_or_default(), tokens.next()) {
        (first, _) if first.starts_with('$') => false,
        ("washlet", _) | ("runtime", Some("host" | "operator" | "*" | ">")) => false,
        _ => true,
    }
}

/// Whether a component may subscribe to `filter`: nothing that it might not send to, and no answers meant for
/// others.
///
/// Shape: `>` and `*.a` are all subjects, or many, and so also those.
pub fn may_hear(filter: &str) -> bool {
    match filter.split_once('.') {
        Some(("*", _)) => false,
        _ => filter != ">" && !filter.starts_with("_INBOX") && may_send(filter),
    }
}

/// Whether a message on `subject` belongs to a subscription to `filter`; of another filter, whether all its
/// messages do.
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(token)) if token != ">" => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_close_a_shared_connection_is_refused() {
        let longest = "a".repeat(SUBJECT_BYTES_MAX);
        assert!(is_subject(&longest) && is_filter(&longest) && is_group(&longest));
        let longer = longest + "a";
        assert!(!is_subject(&longer) && !is_filter(&longer) && !is_group(&longer));
    }

    #[test]
    fn what_commands_hosts_is_not_for_components() {
        let neither = [
            "runtime.host.a.workload.start",
            "runtime.operator.heartbeat.a",
            "washlet.ping",
            "$JS.API.STREAM.DELETE.KV_theirs",
            "$KV.theirs.key",
        ];
        for subject in neither {
            assert!(!may_send(subject) && !may_hear(subject), "{subject}");
        }
        for filter in [
            ">",
            "*.>",
            "*.host.a.>",
            "runtime.>",
            "runtime.*.a",
            "_INBOX.>",
            "_INBOX_a.b",
        ] {
            assert!(!may_hear(filter), "{filter}");
        }
        assert!(may_send("_INBOX.x.1"), "an answer");
        for subject in [
            "orders.new",
            "runtimes.host",
            "runtime.errors",
            "runtime",
            "orders.>",
            "*",
        ] {
            assert!(may_send(subject) && may_hear(subject), "{subject}");
        }
    }
}
