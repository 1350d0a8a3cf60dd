//! Commands over NATS: connect, subscribe, bound, reply, heartbeat.
//!
//! The only file of this crate that knows the NATS client.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use async_nats::Client;
use async_nats::connection::State;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{
    Auth, AuthError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, ServerAddr,
    Subscriber,
};
use async_trait::async_trait;
use bytes::Bytes;
use capabilities::{BoxError, report};
use futures::{FutureExt, StreamExt};
use nkeys::KeyPair;
use subjects::control::{self, Command};
use subjects::{HostId, wire::HostEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::config::{NatsAuth, NatsConfig, NatsTls};
use crate::drain::Drain;

/// How long the first and the longest pause between attempts to connect or subscribe are.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How often the log repeats what is being waited for.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// How often the connection is checked while nothing is sent.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Messages of one subscription that wait for this process; more are dropped by the client.
const SUBSCRIPTION_MESSAGES: usize = 4_096;
/// Commands other than starts that are answered at once; most take no time, a stop takes its grace.
const FAST_IN_FLIGHT: usize = 1_024;
/// How long handing one message to the client may take; long only while the connection is down.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// How long the server has to show that it knows our subscriptions.
const ROUND_TRIP_WITHIN: Duration = Duration::from_secs(2);
/// What headers of a reply take at most. Units: bytes.
const HEADER_BYTES: usize = 256;

/// Why there is no connection.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// Shape: without user and password.
    #[error("NATS URL \"{0}\" is invalid: it must be like nats://host:4222")]
    Url(String),
    /// A file of the configuration cannot be read, or does not hold what it should.
    #[error("file \"{}\" is not usable", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No server answers as it should.
    #[error("NATS server {servers} is not reachable")]
    Unreachable {
        /// Shape: quoted, separated by commas, without user and password.
        servers: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A server refuses who we say we are.
    #[error("NATS server {servers} refuses the credentials")]
    Auth {
        /// Shape: quoted, separated by commas, without user and password.
        servers: String,
        /// What it said.
        #[source]
        source: BoxError,
    },
}

impl ConnectError {
    /// Whether the configuration has to change before trying again makes sense.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url(_) | Self::File { .. })
    }
}

/// Tries each server of `config` once; the connection shows as `name` and is made again when lost.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_once(config: &NatsConfig, name: &str) -> Result<Client, ConnectError> {
    let (addresses, auth) = servers(config)?;
    let servers = quoted(&addresses);
    // The client reads these again whenever it connects; here it can still be said which one is bad.
    credentials(&auth, b"").await?;
    check(&config.tls)?;
    let connected = options(config, auth, name, &servers)
        .connect(addresses)
        .await;
    connected.map_err(|error| match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Auth {
                servers,
                source: error.into(),
            }
        }
        _ => ConnectError::Unreachable {
            servers,
            source: error.into(),
        },
    })
}

/// As [`connect_once`], until a server takes us; `None` when `drain` stops first.
///
/// # Errors
/// When the configuration has to change: [`ConnectError::is_configuration`].
pub async fn connect(
    config: &NatsConfig,
    name: &str,
    drain: &Drain,
) -> Result<Option<Client>, ConnectError> {
    let reminder = Reminder::default();
    let mut attempt = 0;
    loop {
        let tried = tokio::select! {
            () = drain.stopping() => return Ok(None),
            tried = connect_once(config, name) => tried,
        };
        match tried {
            Ok(client) => return Ok(Some(client)),
            Err(error) if error.is_configuration() => return Err(error),
            Err(error) if reminder.due() => {
                tracing::warn!(reason = report(&error), "waiting for NATS");
            }
            Err(_) => {}
        }
        attempt += 1;
        tokio::select! {
            () = drain.stopping() => return Ok(None),
            () = sleep(backoff(attempt)) => {}
        }
    }
}

/// The servers of `config` as a person may see them: without user and password.
pub fn server(config: &NatsConfig) -> String {
    match servers(config) {
        Ok((addresses, _)) => {
            let shown: Vec<&str> = addresses.iter().map(ServerAddr::as_url_str).collect();
            shown.join(", ")
        }
        Err(error) => error.to_string(),
    }
}

/// The addresses in `config`, bare, and the credentials that count. The client would ignore those in
/// a URL, and show them in its log.
fn servers(config: &NatsConfig) -> Result<(Vec<ServerAddr>, NatsAuth), ConnectError> {
    let mut auth = config.auth.clone();
    let mut addresses = Vec::new();
    for text in config.url.split(',').map(str::trim) {
        let invalid = || {
            let shown = text.rsplit('@').next().unwrap_or_default();
            ConnectError::Url(shown.chars().take(256).collect())
        };
        let url: ServerAddr = text.parse().map_err(|_| invalid())?;
        if !matches!(url.scheme(), "nats" | "tls") || url.host().is_empty() {
            return Err(invalid());
        }
        if let (NatsAuth::None, Some(user)) = (&auth, url.username()) {
            let user = unescape(user).ok_or_else(invalid)?;
            auth = match url.password() {
                Some(password) => {
                    NatsAuth::UserPassword(user, unescape(password).ok_or_else(invalid)?)
                }
                None => NatsAuth::Token(user),
            };
        }
        let host = match url.host() {
            v6 if v6.contains(':') => format!("[{v6}]"),
            host => host.to_owned(),
        };
        let bare = format!("{}://{host}:{}", url.scheme(), url.port());
        addresses.push(bare.parse().map_err(|_| invalid())?);
    }
    Ok((addresses, auth))
}

fn quoted(addresses: &[ServerAddr]) -> String {
    let quoted: Vec<String> = addresses
        .iter()
        .map(|address| format!("\"{}\"", address.as_url_str()))
        .collect();
    quoted.join(", ")
}

/// `%41` → `A`; `None` when the result is not UTF-8 or an escape is cut short.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(plain).ok()
}

fn options(config: &NatsConfig, auth: NatsAuth, name: &str, servers: &str) -> ConnectOptions {
    let auth = Arc::new(auth);
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = Arc::clone(&auth);
        async move {
            credentials(&auth, &nonce)
                .await
                .map_err(|error| AuthError::new(report(&error)))
        }
    });
    let NatsTls {
        ca,
        identity,
        first,
    } = &config.tls;
    if let Some(ca) = ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = identity {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if *first {
        options = options.tls_first();
    }
    let fresh = AtomicBool::new(true);
    let log = Arc::new(EventLog {
        servers: servers.to_owned(),
        reminder: Reminder::default(),
    });
    options
        .name(name)
        // Whoever names an authority or a certificate wants no connection without them.
        .require_tls(*first || ca.is_some() || identity.is_some())
        .ping_interval(PING_EVERY)
        .subscription_capacity(SUBSCRIPTION_MESSAGES)
        .max_reconnects(None)
        // The first attempt ever is made at once, the first after a loss not quite: all hosts lose
        // the same server at the same time.
        .reconnect_delay_callback(move |attempt| match fresh.swap(false, Ordering::Relaxed) {
            true => Duration::ZERO,
            false => backoff(attempt),
        })
        .event_callback(move |event| {
            log.write(event);
            std::future::ready(())
        })
}

/// What to answer to the server's `nonce`, with files read anew.
async fn credentials(auth: &NatsAuth, nonce: &[u8]) -> Result<Auth, ConnectError> {
    let mut answer = Auth::new();
    match auth {
        NatsAuth::None => {}
        NatsAuth::UserPassword(user, password) => {
            answer.username = Some(user.clone());
            answer.password = Some(password.clone());
        }
        NatsAuth::Token(token) => answer.token = Some(token.clone()),
        NatsAuth::CredsFile(path) => {
            let text = read(path).await?;
            let token =
                section(&text, "USER JWT").ok_or_else(|| unusable(path, "it has no user JWT"))?;
            let seed = section(&text, "NKEY SEED").unwrap_or_default();
            answer.jwt = Some(token.to_owned());
            answer.signature = Some(sign(path, seed, nonce)?.1);
        }
        NatsAuth::NkeyFile(path) => {
            let text = read(path).await?;
            let seed = text
                .lines()
                .map(str::trim)
                .find(|line| line.starts_with('S'));
            let (key, signature) = sign(path, seed.unwrap_or_default(), nonce)?;
            answer.nkey = Some(key);
            answer.signature = Some(signature);
        }
    }
    Ok(answer)
}

async fn read(path: &Path) -> Result<String, ConnectError> {
    let read = tokio::fs::read_to_string(path).await;
    read.map_err(|source| ConnectError::File {
        path: path.to_owned(),
        source,
    })
}

fn unusable(path: &Path, reason: &str) -> ConnectError {
    let source = io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    ConnectError::File {
        path: path.to_owned(),
        source,
    }
}

/// The public key of `seed`, and its signature of `nonce`.
fn sign(path: &Path, seed: &str, nonce: &[u8]) -> Result<(String, Vec<u8>), ConnectError> {
    // The reason could quote the seed.
    let key = KeyPair::from_seed(seed).map_err(|_| unusable(path, "it has no valid nkey seed"))?;
    let signature = key
        .sign(nonce)
        .map_err(|_| unusable(path, "its nkey cannot sign"))?;
    Ok((key.public_key(), signature))
}

/// The line after the one that begins the section `name` of a `.creds` file.
fn section<'a>(creds: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = creds.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(name))?;
    lines.find(|line| !line.is_empty())
}

fn check(tls: &NatsTls) -> Result<(), ConnectError> {
    let certificates = tls
        .ca
        .iter()
        .chain(tls.identity.as_ref().map(|(cert, _)| cert));
    for path in certificates {
        let bad = |error| ConnectError::File {
            path: path.clone(),
            source: io::Error::other(error),
        };
        let read: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<_, _>>)
            .map_err(bad)?;
        if read.is_empty() {
            return Err(unusable(path, "it has no certificate in PEM"));
        }
    }
    if let Some((_, key)) = &tls.identity {
        PrivateKeyDer::from_pem_file(key).map_err(|error| ConnectError::File {
            path: key.clone(),
            source: io::Error::other(error),
        })?;
    }
    Ok(())
}

/// How long to wait after the `attempt`th failure: doubling, between half and all of it by chance.
fn backoff(attempt: usize) -> Duration {
    let (first, longest) = BACKOFF;
    let doublings = u32::try_from(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(16);
    let pause = first.saturating_mul(1 << doublings).min(longest);
    // Every RandomState has keys of its own.
    let chance = RandomState::new().build_hasher().finish() % 1000;
    pause / 2 + (pause / 2).mul_f64(chance as f64 / 1000.0)
}

/// Says when to repeat oneself.
#[derive(Default)]
struct Reminder(Mutex<Option<Instant>>);

impl Reminder {
    /// True at first, then once in [`REMIND_EVERY`].
    fn due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= REMIND_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// What the log says about a connection.
struct EventLog {
    servers: String,
    reminder: Reminder,
}

impl EventLog {
    fn write(&self, event: Event) {
        let servers = &self.servers;
        match event {
            Event::Connected => tracing::info!(servers, "connected to NATS"),
            Event::Disconnected => tracing::warn!(servers, "lost NATS: connecting again"),
            Event::SlowConsumer(_) => tracing::warn!(
                "more than {SUBSCRIPTION_MESSAGES} NATS messages were waiting: some were dropped"
            ),
            Event::LameDuckMode => tracing::warn!(servers, "NATS server is about to shut down"),
            Event::ServerError(error) => tracing::error!(%error, "NATS server reports an error"),
            Event::ClientError(error) if self.reminder.due() => {
                tracing::warn!(servers, reason = %error, "waiting for NATS");
            }
            event => tracing::debug!(%event, "NATS"),
        }
    }
}

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
pub struct Control {
    /// From [`connect`].
    pub client: Client,
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

impl Control {
    /// Subscribes, says so, and serves commands until `drain` stops; then says goodbye, refuses what
    /// still comes in and finishes what is in flight.
    ///
    /// # Errors
    /// [`ControlError::Lost`].
    pub async fn run(mut self, answer: Arc<dyn Answer>, drain: Drain) -> Result<(), ControlError> {
        let mut ready = self.ready.take();
        let session = Arc::new(Session {
            fast: Arc::new(Semaphore::new(FAST_IN_FLIGHT)),
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
                    session.event(control::Event::Started).await;
                    in_flight.spawn("heartbeat", Arc::clone(&session).heartbeats(drain.clone()));
                }
                let since = Instant::now();
                if session.serve(&mut subscribed, &in_flight, &drain).await == Ended::Stopping {
                    session.leave(subscribed, &in_flight).await;
                    return Ok(());
                }
                if since.elapsed() > BACKOFF.1 {
                    (attempt, lost_at) = (0, None);
                }
            }
            if session.control.client.connection_state() == State::Connected {
                let within = session.control.restore_within;
                if lost_at.get_or_insert_with(Instant::now).elapsed() >= within {
                    let subject = control::commands_subject(&session.control.host);
                    return Err(ControlError::Lost { subject, within });
                }
            } else {
                lost_at = None;
            }
            attempt += 1;
            let pause = backoff(attempt);
            tracing::warn!(
                ?pause,
                "lost the subscription to commands: subscribing again"
            );
            tokio::select! {
                () = drain.stopping() => return Ok(()),
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

struct Subscribed {
    commands: Subscriber,
    pings: Subscriber,
}

struct Session {
    control: Control,
    answer: Arc<dyn Answer>,
    fast: Arc<Semaphore>,
    starts: Arc<Semaphore>,
}

impl Session {
    async fn subscribe(&self) -> Option<Subscribed> {
        let client = &self.control.client;
        let subscribe = async {
            let commands = client
                .subscribe(control::commands_subject(&self.control.host))
                .await?;
            let pings = client.subscribe(control::PING).await?;
            Ok::<_, async_nats::SubscribeError>(Subscribed { commands, pings })
        };
        let subscribed = timeout(SEND_WITHIN, subscribe).await.ok()?;
        let subscribed = subscribed.inspect_err(|error| tracing::debug!(%error, "not subscribed"));
        // Whoever hears of us next may ask at once: the server has to know our subscriptions by then.
        // An account may forbid inboxes, so this is worth a try and no more.
        if timeout(ROUND_TRIP_WITHIN, round_trip(client))
            .await
            .is_err()
        {
            tracing::debug!("no round trip to the NATS server within {ROUND_TRIP_WITHIN:?}");
        }
        subscribed.ok()
    }

    async fn serve(
        self: &Arc<Self>,
        from: &mut Subscribed,
        in_flight: &Drain,
        drain: &Drain,
    ) -> Ended {
        loop {
            let message = tokio::select! {
                () = drain.stopping() => return Ended::Stopping,
                message = from.commands.next() => message,
                message = from.pings.next() => message,
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
        let (bytes, max) = (answered.payload.len(), self.control.client.max_payload());
        if bytes.saturating_add(HEADER_BYTES) > max {
            let text = format!("reply of {bytes} bytes exceeds the NATS server's {max}");
            let failure = Failure {
                code: 500,
                text,
                retry: false,
            };
            answered = self.failure(command, message, failure);
        }
        // The name of an unknown command is a stranger's: quoted and escaped.
        let name = command.name();
        if let Some(Failure { code, text, retry }) = &answered.failure {
            tracing::warn!(command = ?name, code, retry, text, "command failed");
        }
        let Some(to) = message.reply.clone() else {
            return;
        };
        let client = &self.control.client;
        let sent = match answered.failure {
            None => timeout(SEND_WITHIN, client.publish(to, answered.payload)).await,
            Some(failure) => {
                let mut headers = HeaderMap::new();
                headers.insert(control::ERROR_CODE_HEADER, failure.code.to_string());
                headers.insert(control::RETRY_HEADER, failure.retry.to_string());
                let publish = client.publish_with_headers(to, headers, answered.payload);
                timeout(SEND_WITHIN, publish).await
            }
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(command = ?name, reason = report(&error), "reply not sent");
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
                () = drain.stopping() => return,
                _ = ticks.tick() => {}
            }
            match catch_unwind(AssertUnwindSafe(|| self.answer.heartbeat())) {
                Ok(body) => self.publish(&subject, body).await,
                Err(_) => tracing::error!("failed to make a heartbeat"),
            }
        }
    }

    async fn event(&self, event: control::Event) {
        let at = Some(time::OffsetDateTime::now_utc());
        let body = HostEvent {
            id: self.control.host.to_string(),
            at,
            message: String::new(),
        };
        self.publish(&event.subject(&self.control.host), body.encode().into())
            .await;
    }

    /// For what is worthless later: it is not kept while the connection is down.
    async fn publish(&self, subject: &str, body: Bytes) {
        let client = &self.control.client;
        if client.connection_state() != State::Connected {
            tracing::debug!(subject, "not sent: NATS is not connected");
            return;
        }
        match timeout(SEND_WITHIN, client.publish(subject.to_owned(), body)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(subject, reason = report(&error), "not sent"),
            Err(_) => tracing::warn!(subject, "not sent within {SEND_WITHIN:?}"),
        }
    }

    async fn leave(&self, mut from: Subscribed, in_flight: &Drain) {
        let last_words = async {
            self.event(control::Event::Goodbye).await;
            // An unsubscribed stream ends after what it holds already.
            let _ = from.commands.unsubscribe().await;
            let _ = from.pings.unsubscribe().await;
            while let Some(message) = from.commands.next().await {
                if let Some(command) = Command::parse(&self.control.host, &message.subject) {
                    self.refuse(&command, &message, "the host is draining")
                        .await;
                }
            }
        };
        let flush = || timeout(SEND_WITHIN, self.control.client.flush());
        let said = timeout(SEND_WITHIN, last_words).await.is_ok() && flush().await.is_ok();
        if !said {
            tracing::warn!("NATS was not told that this host leaves");
        }
        if let Err(overdue) = in_flight.drain(self.control.grace).await {
            tracing::warn!(reason = %overdue, "commands were not finished");
        }
        if flush().await.is_err() {
            tracing::warn!("the last replies were not sent within {SEND_WITHIN:?}");
        }
    }
}

async fn round_trip(client: &Client) {
    let inbox = client.new_inbox();
    if let Ok(mut own) = client.subscribe(inbox.clone()).await
        && client.publish(inbox, Bytes::new()).await.is_ok()
    {
        own.next().await;
    }
}
