//! Commands over NATS: subscribe, bound, reply, heartbeat.
//!
//! This file and the folder beside it are all of this crate that knows the NATS client.

mod bus;
mod connect;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

pub use async_nats::{Client, HeaderMap, Message, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use capabilities::{BoxError, report};
use futures::FutureExt;
use subjects::control::{self, Command};
use subjects::{HostId, wire::HostEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::drain::Drain;
use crate::health::Health;
pub use bus::{Bus, Incoming};
pub(crate) use connect::slow_consumers;
use connect::{BACKOFF, backoff};
pub use connect::{ConnectError, connect, connect_later, connect_once, server, usable};

/// Stops being waited for; each takes its grace at most.
const STOPS_IN_FLIGHT: usize = 20_000;
/// Commands other than starts and stops that are answered at once; they take no time.
const FAST_IN_FLIGHT: usize = 1_024;
/// How long handing one message to the client may take; long only while the connection is down.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// How long the server has to show that it knows our subscriptions.
const ROUND_TRIP_WITHIN: Duration = Duration::from_secs(2);
/// What headers of a reply take at most. Units: bytes.
const HEADER_BYTES: usize = 256;

/// Answers commands. Knows nothing of NATS.
#[async_trait]
pub trait Answer: Send + Sync + 'static {
    /// Which bound `command` counts against.
    fn lane(&self, command: &Command) -> Lane;

    /// Does what `command` asks, and says what to reply; each call has a task of its own.
    ///
    /// Shape: up to its first wait it runs before the answer to any later command, so it can queue
    /// in the order of arrival; that far it must not take long. It is never dropped half-way.
    async fn answer(&self, command: Command, payload: Bytes) -> Answered;

    /// The body of a reply that says that `command` failed with `text`.
    fn failed(&self, command: &Command, payload: &Bytes, text: &str) -> Bytes;

    /// The body of a heartbeat.
    ///
    /// Shape: takes no time.
    fn heartbeat(&self) -> Bytes;
}

/// Which bound a command counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Commands that are answered soon.
    Fast,
    /// Stops, which take as long as calls in flight do.
    Stop,
    /// Starts, of which [`Control::starts_in_queue`] may be unanswered.
    Start,
}

/// What to reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The body.
    pub payload: Bytes,
    /// Set when the body says that the command failed.
    pub failure: Option<Failure>,
}

/// How a command failed; goes into headers of the reply, and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As in HTTP.
    pub code: u16,
    /// For the log.
    pub text: String,
    /// Whether the same command may succeed later.
    pub retry: bool,
}

/// Why the control loop ended by itself.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// The subscription ended and could not be made again though NATS is connected.
    #[error("subscription to \"{subject}\" could not be restored within {within:?}")]
    Lost {
        /// What was subscribed to.
        subject: String,
        /// How long it was tried.
        within: Duration,
    },
}

/// The control plane's side of a host.
pub struct Control<B = Client> {
    /// From [`connect`].
    pub client: B,
    /// Told how this goes.
    pub health: Health,
    /// Whose commands these are.
    pub host: HostId,
    /// How often a heartbeat is published.
    pub heartbeat_interval: Duration,
    /// Starts that may be unanswered; more are refused.
    pub starts_in_queue: usize,
    /// How long commands in flight have to finish when draining.
    pub grace: Duration,
    /// How long a subscription may be lost while the connection is up.
    pub restore_within: Duration,
    /// Told once the server knows the subscriptions, just before the first heartbeat.
    pub ready: Option<oneshot::Sender<()>>,
}

impl<B: Bus> Control<B> {
    /// Subscribes, says so, and serves commands until `drain` stops; then says goodbye, refuses what
    /// still comes in and finishes what is in flight.
    ///
    /// # Errors
    /// [`ControlError::Lost`].
    pub async fn run(mut self, answer: Arc<dyn Answer>, drain: Drain) -> Result<(), ControlError> {
        let mut ready = self.ready.take();
        let client = self.client.clone();
        self.health.watch(move || client.link());
        let session = Arc::new(Session {
            fast: Arc::new(Semaphore::new(FAST_IN_FLIGHT)),
            stops: Arc::new(Semaphore::new(STOPS_IN_FLIGHT)),
            starts: Arc::new(Semaphore::new(
                self.starts_in_queue.min(Semaphore::MAX_PERMITS),
            )),
            answer,
            control: self,
        });
        let in_flight = drain.child();
        let mut started = false;
        let mut attempt = 0;
        let mut lost_at = None;
        loop {
            if let Some(mut subscribed) = session.subscribe().await {
                if !started {
                    started = true;
                    // Nobody has to listen.
                    let _ = ready.take().map(|ready| ready.send(()));
                    session.event(control::Event::Started, String::new()).await;
                    in_flight.spawn("heartbeat", Arc::clone(&session).heartbeats(drain.clone()));
                    in_flight.spawn("pressure", Arc::clone(&session).pressure(drain.clone()));
                }
                let since = Instant::now();
                session.control.health.hears(true);
                if session.serve(&mut subscribed, &in_flight, &drain).await == Ended::Stopping {
                    session.leave(Some(subscribed), &in_flight).await;
                    return Ok(());
                }
                session.control.health.hears(false);
                if since.elapsed() > BACKOFF.1 {
                    (attempt, lost_at) = (0, None);
                }
            }
            if session.control.client.link().up {
                let within = session.control.restore_within;
                if lost_at.get_or_insert_with(Instant::now).elapsed() >= within {
                    let subject = control::commands_subject(&session.control.host);
                    return Err(ControlError::Lost { subject, within });
                }
            } else {
                lost_at = None;
            }
            attempt += 1;
            let pause = backoff(attempt, session.control.client.chance());
            tracing::warn!(
                ?pause,
                "lost the subscription to commands: subscribing again"
            );
            tokio::select! {
                biased;
                () = drain.stopping() => {
                    if started {
                        session.leave(None, &in_flight).await;
                    }
                    return Ok(());
                }
                () = sleep(pause) => {}
            }
        }
    }
}

#[derive(PartialEq)]
enum Ended {
    Stopping,
    Lost,
}

struct Subscribed<I> {
    commands: I,
    pings: I,
}

impl<I: Incoming> Subscribed<I> {
    /// Of whichever comes first.
    async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            message = self.commands.next() => message,
            message = self.pings.next() => message,
        }
    }
}

struct Session<B> {
    control: Control<B>,
    answer: Arc<dyn Answer>,
    fast: Arc<Semaphore>,
    stops: Arc<Semaphore>,
    starts: Arc<Semaphore>,
}

impl<B: Bus> Session<B> {
    async fn subscribe(&self) -> Option<Subscribed<B::Incoming>> {
        let client = &self.control.client;
        let subscribe = async {
            let commands = client
                .subscribe(control::commands_subject(&self.control.host))
                .await?;
            let pings = client.subscribe(control::PING.to_owned()).await?;
            Ok::<_, BoxError>(Subscribed { commands, pings })
        };
        let subscribed = timeout(SEND_WITHIN, subscribe).await.ok()?;
        let subscribed = subscribed.inspect_err(|error| tracing::debug!(%error, "not subscribed"));
        // Whoever hears of us next may ask at once: the server has to know our subscriptions by then.
        // An account may forbid inboxes, so this is worth a try and no more.
        if timeout(ROUND_TRIP_WITHIN, client.round_trip())
            .await
            .is_err()
        {
            tracing::debug!("no round trip to the NATS server within {ROUND_TRIP_WITHIN:?}");
        }
        subscribed.ok()
    }

    async fn serve(
        self: &Arc<Self>,
        from: &mut Subscribed<B::Incoming>,
        in_flight: &Drain,
        drain: &Drain,
    ) -> Ended {
        loop {
            let message = tokio::select! {
                biased;
                () = drain.stopping() => return Ended::Stopping,
                message = from.next() => message,
            };
            match message {
                Some(message) => self.take(message, in_flight).await,
                None => return Ended::Lost,
            }
        }
    }

    /// Answers `message` in a task of its own, within the bound of its lane.
    async fn take(self: &Arc<Self>, message: Message, in_flight: &Drain) {
        let Some(command) = Command::parse(&self.control.host, &message.subject) else {
            return;
        };
        let permits = match self.answer.lane(&command) {
            Lane::Fast => &self.fast,
            Lane::Stop => &self.stops,
            Lane::Start => &self.starts,
        };
        match Arc::clone(permits).try_acquire_owned() {
            Ok(permit) => {
                let mut work = Box::pin(Arc::clone(self).work(command, message, permit));
                // Up to its first wait here, so in the order of arrival; most commands need no more.
                if (&mut work).now_or_never().is_none() {
                    in_flight.spawn("command", work);
                }
            }
            Err(_) => {
                self.refuse(&command, &message, "too many commands in flight")
                    .await
            }
        }
    }

    async fn work(
        self: Arc<Self>,
        command: Command,
        message: Message,
        _permit: OwnedSemaphorePermit,
    ) {
        let answer = self.answer.answer(command.clone(), message.payload.clone());
        let answered = AssertUnwindSafe(answer)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                let text = "the host failed to handle the command: its log tells more";
                self.failure(
                    &command,
                    &message,
                    Failure {
                        code: 500,
                        text: text.to_owned(),
                        retry: true,
                    },
                )
            });
        self.reply(&command, &message, answered).await;
    }

    async fn refuse(&self, command: &Command, message: &Message, text: &str) {
        let failure = Failure {
            code: 503,
            text: text.to_owned(),
            retry: true,
        };
        self.reply(command, message, self.failure(command, message, failure))
            .await;
    }

    fn failure(&self, command: &Command, message: &Message, failure: Failure) -> Answered {
        let body = || self.answer.failed(command, &message.payload, &failure.text);
        let payload = catch_unwind(AssertUnwindSafe(body)).unwrap_or_default();
        Answered {
            payload,
            failure: Some(failure),
        }
    }

    async fn reply(&self, command: &Command, message: &Message, mut answered: Answered) {
        let (bytes, max) = (
            answered.payload.len(),
            self.control.client.payload_bytes_max(),
        );
        if bytes.saturating_add(HEADER_BYTES) > max {
            let text = format!("reply of {bytes} bytes exceeds the NATS server's {max}");
            let failure = Failure {
                code: 500,
                text,
                retry: false,
            };
            answered = self.failure(command, message, failure);
        }
        self.control.health.command();
        // The name of an unknown command is a stranger's: quoted and escaped.
        let name = command.name();
        match &answered.failure {
            Some(Failure {
                code: code @ 500..,
                text,
                retry,
            }) => {
                tracing::warn!(command = ?name, code, retry, text, "command failed");
            }
            Some(Failure { code, text, retry }) => {
                tracing::debug!(command = ?name, code, retry, text, "command failed");
            }
            None => {}
        }
        let Some(to) = message.reply.clone() else {
            return;
        };
        let client = &self.control.client;
        let sent = match answered.failure {
            None => timeout(SEND_WITHIN, client.publish(to, None, answered.payload)).await,
            Some(failure) => {
                let mut headers = HeaderMap::new();
                headers.insert(control::ERROR_CODE_HEADER, failure.code.to_string());
                headers.insert(control::RETRY_HEADER, failure.retry.to_string());
                let publish = client.publish(to, Some(headers), answered.payload);
                timeout(SEND_WITHIN, publish).await
            }
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(command = ?name, reason = report(&*error), "reply not sent");
            }
            Err(_) => tracing::warn!(command = ?name, "reply not sent within {SEND_WITHIN:?}"),
        }
    }

    async fn heartbeats(self: Arc<Self>, drain: Drain) {
        let mut ticks = interval(
            self.control
                .heartbeat_interval
                .max(Duration::from_millis(1)),
        );
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subject = control::heartbeat_subject(&self.control.host);
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => return,
                _ = ticks.tick() => {}
            }
            match catch_unwind(AssertUnwindSafe(|| self.answer.heartbeat())) {
                Ok(body) => {
                    let published = self.publish(&subject, body).await;
                    self.control.health.heartbeat(published);
                }
                Err(_) => {
                    self.control.health.heartbeat(false);
                    tracing::error!("failed to make a heartbeat");
                }
            }
        }
    }

    /// Says what the machine is short of, as soon as that changes.
    async fn pressure(self: Arc<Self>, drain: Drain) {
        let mut short_of = self.control.health.pressure();
        if !short_of.borrow().is_empty() {
            short_of.mark_changed();
        }
        loop {
            tokio::select! {
                () = drain.stopping() => return,
                changed = short_of.changed() => if changed.is_err() { return },
            }
            let resources = short_of.borrow_and_update().join(".");
            let message = match resources.as_str() {
                "" => "none".to_owned(),
                _ => resources,
            };
            self.event(control::Event::Pressure, message).await;
        }
    }

    async fn event(&self, event: control::Event, message: String) {
        let at = Some(time::OffsetDateTime::now_utc());
        let body = HostEvent {
            id: self.control.host.to_string(),
            at,
            message,
        };
        self.publish(&event.subject(&self.control.host), body.encode().into())
            .await;
    }

    /// For what is worthless later: it is not kept while the connection is down. Whether it was sent.
    async fn publish(&self, subject: &str, body: Bytes) -> bool {
        let client = &self.control.client;
        if !client.link().up {
            tracing::debug!(subject, "not sent: NATS is not connected");
            return false;
        }
        let sent = timeout(SEND_WITHIN, client.publish(subject.into(), None, body)).await;
        match &sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(subject, reason = report(&**error), "not sent"),
            Err(_) => tracing::warn!(subject, "not sent within {SEND_WITHIN:?}"),
        }
        matches!(sent, Ok(Ok(())))
    }

    async fn leave(&self, from: Option<Subscribed<B::Incoming>>, in_flight: &Drain) {
        let last_words = async {
            self.event(control::Event::Goodbye, String::new()).await;
            // An unsubscribed stream ends after what it holds already.
            let Some(mut from) = from else { return };
            from.commands.unsubscribe().await;
            from.pings.unsubscribe().await;
            while let Some(message) = from.commands.next().await {
                if let Some(command) = Command::parse(&self.control.host, &message.subject) {
                    self.refuse(&command, &message, "the host is draining")
                        .await;
                }
            }
        };
        let said = timeout(SEND_WITHIN, last_words).await.is_ok() && self.flush().await;
        if !said {
            tracing::warn!("NATS was not told that this host leaves");
        }
        if let Err(overdue) = in_flight.drain(self.control.grace).await {
            tracing::warn!(reason = %overdue, "commands were not finished");
        }
        if !self.flush().await {
            tracing::warn!("the last replies were not sent");
        }
    }

    /// Whether all that was published has left; not waited for without a connection.
    async fn flush(&self) -> bool {
        let client = &self.control.client;
        client.link().up && timeout(SEND_WITHIN, client.flush()).await.unwrap_or(false)
    }
}

/// Has `health` tell how `client` is, the connection that data goes over.
pub fn show_data(health: &Health, client: Client) {
    health.watch_data(move || client.link());
}
