//! A connection to NATS: where to, who we say we are, and what the log says about it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use capabilities::{BoxError, report};
use nkeys::KeyPair;
use tokio::time::{sleep, timeout};

use crate::config::{NatsAuth, NatsConfig, NatsTls};
use crate::drain::Drain;

/// How long the first and the longest pause between attempts to connect or subscribe are.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(15));
/// How long a connection has to last before its loss is the first; a server that takes connections and ends
/// them at once is one that does not answer.
const LASTING: Duration = Duration::from_secs(5);
/// How long a server may take before what does not need it goes on without.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// How often the log repeats what is being waited for.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// Messages of one subscription that wait for this process; more are dropped by the client.
const SUBSCRIPTION_MESSAGES: usize = 65_536;

/// Messages dropped for that, on all connections of this process.
static SLOW: AtomicU64 = AtomicU64::new(0);

/// How many messages the client dropped because too many were waiting for this process.
pub(crate) fn slow_consumers() -> u64 {
    SLOW.load(Ordering::Relaxed)
}

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

/// Looks at the URL, the credentials and the files in `config`, and not at any server.
///
/// # Errors
/// Those for which the configuration has to change: [`ConnectError::is_configuration`].
pub async fn usable(config: &NatsConfig) -> Result<(), ConnectError> {
    let (_, auth) = servers(config)?;
    // The client reads these again whenever it connects; here it can still be said which one is bad.
    credentials(&auth, b"").await?;
    check(&config.tls)
}

/// Tries each server of `config` once; the connection shows as `name` and is made again when lost.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_once(config: &NatsConfig, name: &str) -> Result<Client, ConnectError> {
    let (addresses, auth) = servers(config)?;
    let servers = quoted(&addresses);
    usable(config).await?;
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
/// When the configuration has to change: [`ConnectError::is_configuration`]. Only at first: a file that was
/// good and is not any more may be about to be replaced, and is waited for like a server.
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
            Err(error) if error.is_configuration() && attempt == 0 => return Err(error),
            Err(error) if reminder.due() => {
                tracing::warn!(reason = report(&error), "waiting for NATS");
            }
            Err(_) => {}
        }
        attempt += 1;
        tokio::select! {
            () = drain.stopping() => return Ok(None),
            () = sleep(backoff(attempt, chance())) => {}
        }
    }
}

/// As [`connect_once`], but a server that is not there, or silent for a second, is no error: what is asked of
/// the connection fails until it is.
///
/// # Errors
/// When the configuration has to change: [`ConnectError::is_configuration`].
pub async fn connect_later(config: &NatsConfig, name: &str) -> Result<Client, ConnectError> {
    let reason = match timeout(FIRST_WITHIN, connect_once(config, name)).await {
        Ok(Err(error)) if !error.is_configuration() => report(&error),
        Ok(done) => return done,
        Err(_) => format!("no answer within {FIRST_WITHIN:?}"),
    };
    tracing::warn!(reason, "waiting for NATS for data");
    let (addresses, auth) = servers(config)?;
    let servers = quoted(&addresses);
    let connected = options(config, auth, name, &servers)
        .retry_on_initial_connect()
        .connect(addresses)
        .await;
    connected.map_err(|source| ConnectError::Unreachable {
        servers,
        source: source.into(),
    })
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
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    let pauses = Arc::new(Pauses::default());
    let log = Arc::new(EventLog {
        servers: servers.to_owned(),
        reminder: Reminder::default(),
        pauses: Arc::clone(&pauses),
    });
    options
        .name(name)
        // Whoever names an authority or a certificate wants no connection without them.
        .require_tls(*first || ca.is_some() || identity.is_some())
        .ping_interval(config.ping_interval)
        .subscription_capacity(SUBSCRIPTION_MESSAGES)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| pauses.before(attempt))
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

/// From 0 to 1.
pub(super) fn chance() -> f64 {
    // Every RandomState has keys of its own.
    let chance = RandomState::new().build_hasher().finish() % 1000;
    chance as f64 / 1000.0
}

/// How long to wait after the `attempt`th failure: doubling, between half and all of it by `chance`.
pub(super) fn backoff(attempt: usize, chance: f64) -> Duration {
    let (first, longest) = BACKOFF;
    let doublings = u32::try_from(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(16);
    let pause = first.saturating_mul(1 << doublings).min(longest);
    pause / 2 + (pause / 2).mul_f64(chance)
}

/// How long to wait before each attempt to connect.
#[derive(Default)]
struct Pauses {
    attempted: AtomicBool,
    /// When the last connection was made, until its loss is seen.
    made: Mutex<Option<Instant>>,
    /// Connections in a row that did not last.
    short: AtomicUsize,
}

impl Pauses {
    /// A connection was made.
    fn made(&self) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The pause before the `attempt`th attempt since the last connection.
    ///
    /// Shape: the first attempt ever is made at once, the first after a loss not quite, because all hosts lose
    /// the same server at the same time.
    fn before(&self, attempt: usize) -> Duration {
        if !self.attempted.swap(true, Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let made = self
            .made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match made.map(|made| made.elapsed()) {
            Some(lasted) if lasted < LASTING => {
                self.short.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => self.short.store(0, Ordering::Relaxed),
            None => {}
        }
        let attempts = attempt.saturating_add(self.short.load(Ordering::Relaxed));
        backoff(attempts, chance())
    }
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
    pauses: Arc<Pauses>,
}

impl EventLog {
    fn write(&self, event: Event) {
        let servers = &self.servers;
        if matches!(event, Event::Connected) {
            self.pauses.made();
        }
        match event {
            Event::Connected => tracing::info!(%servers, "connected to NATS"),
            Event::Disconnected => tracing::warn!(%servers, "lost NATS: connecting again"),
            Event::SlowConsumer(_) => {
                SLOW.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "more than {SUBSCRIPTION_MESSAGES} NATS messages were waiting: some were dropped"
                );
            }
            Event::LameDuckMode => tracing::warn!(%servers, "NATS server is about to shut down"),
            Event::ServerError(error) => tracing::error!(%error, "NATS server reports an error"),
            Event::ClientError(error) if self.reminder.due() => {
                tracing::warn!(%servers, reason = %error, "waiting for NATS");
            }
            event => tracing::debug!(%event, "NATS"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_do_not_last_are_failures() {
        let pauses = Pauses::default();
        assert_eq!(pauses.before(1), Duration::ZERO);
        let (first, longest) = BACKOFF;
        for losses in 1..12 {
            pauses.made();
            let pause = pauses.before(1);
            let most = first.saturating_mul(1 << losses).min(longest);
            assert!((most / 2..=most).contains(&pause), "{losses}: {pause:?}");
        }
        // One that lasted is as good as the first.
        let lasted = Instant::now().checked_sub(LASTING);
        *pauses.made.lock().unwrap() = Some(lasted.unwrap());
        assert!(pauses.before(1) <= first);
        assert!(pauses.before(2) > first / 2);
    }
}
