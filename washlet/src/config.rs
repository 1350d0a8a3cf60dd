//! What a host is told before it starts: plain values, already parsed and checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use subjects::HostId;

use crate::artifact::{Registries, RegistryOptions};
use crate::seal::SealKey;

/// Everything a [`Washlet`](crate::Washlet) needs to know.
///
/// Shape: `wash` says every field; [`new`](Config::new) is for hosts that say a few.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this host is.
    pub identity: Identity,
    /// The NATS server that commands come from.
    pub scheduler: NatsConfig,
    /// How often a heartbeat is published.
    pub heartbeat_interval: Duration,
    /// The HTTP listener; `None` means no ingress.
    pub http: Option<HttpConfig>,
    /// Where the admin endpoint is; `None`: nowhere. Port 0 picks a free one.
    pub admin: Option<SocketAddr>,
    /// Where images come from and are kept.
    pub artifacts: ArtifactConfig,
    /// The state directory in which the journal is; `None`: a restart forgets what ran.
    pub journal: Option<PathBuf>,
    /// What opens values that are sealed to this host.
    pub seal_key: Arc<SealKey>,
    /// How long an operator may probe this host without asking for a workload of before the restart.
    pub orphan_after: Duration,
    /// Bounds on what runs at once.
    pub limits: Limits,
    /// `allowedHosts` of a component that names none; empty denies everything.
    pub default_allowed_hosts: Vec<String>,
    /// Bucket names are the storage's own, not scoped by the workload's namespace.
    pub flat_names: bool,
}

impl Config {
    /// A host with the usual bounds that keeps images below `images` and opens what is sealed to `seal_key`: without listener, admin endpoint and
    /// journal; its components may send no HTTP requests, unless their workload says where to.
    pub fn new(
        identity: Identity,
        scheduler: NatsConfig,
        images: PathBuf,
        seal_key: Arc<SealKey>,
    ) -> Self {
        Self {
            identity,
            scheduler,
            heartbeat_interval: Duration::from_secs(15),
            http: None,
            admin: None,
            artifacts: ArtifactConfig {
                dir: images,
                budget_bytes: 1 << 30,
                allow_insecure: false,
                ca: Vec::new(),
                registries: Registries::new(),
                pull_timeout: Duration::from_secs(30),
                allow_file: false,
            },
            journal: None,
            seal_key,
            orphan_after: Duration::from_secs(300),
            limits: Limits::default(),
            default_allowed_hosts: Vec::new(),
            flat_names: false,
        }
    }
}

/// What the fleet sees of a host.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Stable across restarts when kept in a state directory.
    pub id: HostId,
    /// `hostname` of the heartbeat: an address the fleet can reach, or the machine's name.
    pub hostname: String,
    /// The label `hostgroup`.
    pub group: String,
    /// Empty for none.
    pub environment: String,
    /// Further labels; `hostgroup` is not among them.
    pub labels: BTreeMap<String, String>,
}

impl Identity {
    /// In `group`, without an environment and further labels.
    pub fn new(id: HostId, hostname: &str, group: &str) -> Self {
        Self {
            id,
            hostname: hostname.to_owned(),
            group: group.to_owned(),
            environment: String::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// How to reach a NATS server.
#[derive(Clone)]
pub struct NatsConfig {
    /// One or more server URLs, separated by commas; user and password in them are used.
    pub url: String,
    /// TLS towards the server.
    pub tls: NatsTls,
    /// Who we say we are.
    pub auth: NatsAuth,
    /// What subjects of answers to us begin with; `_INBOX` unless given.
    pub inbox_prefix: Option<String>,
    /// How long a server may say nothing before it is asked for a sign of life. One that is silent for three
    /// times as long is connected to anew.
    pub ping_interval: Duration,
}

impl NatsConfig {
    /// Without TLS of our own, and without credentials but those in `url`.
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            tls: NatsTls::default(),
            auth: NatsAuth::None,
            inbox_prefix: None,
            ping_interval: Duration::from_secs(5),
        }
    }
}

impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL and the credentials may hold secrets.
        f.debug_struct("NatsConfig")
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// TLS options of a NATS connection.
#[derive(Clone, Debug, Default)]
pub struct NatsTls {
    /// PEM file of the authorities to trust instead of the usual ones.
    pub ca: Option<PathBuf>,
    /// PEM files of our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// TLS handshake before the server's greeting.
    pub first: bool,
}

/// Credentials of a NATS connection.
#[derive(Clone, Default)]
pub enum NatsAuth {
    /// Those in the URL, if any.
    #[default]
    None,
    /// A `.creds` file, read again on every reconnect.
    CredsFile(PathBuf),
    /// A file with an nkey seed.
    NkeyFile(PathBuf),
    /// User and password.
    UserPassword(String, String),
    /// A token.
    Token(String),
}

/// The HTTP listener.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Port 0 picks a free one.
    pub address: SocketAddr,
    /// TLS, if the listener speaks it.
    pub tls: Option<TlsConfig>,
    /// How long new connections are still taken after draining began.
    pub drain_delay: Duration,
}

impl HttpConfig {
    /// Without TLS; ends at once when draining begins.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            drain_delay: Duration::ZERO,
        }
    }
}

/// TLS of the HTTP listener.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file of authorities; when given, clients must show a certificate signed by one of them.
    pub client_ca: Option<PathBuf>,
}

/// Where images come from and are kept.
#[derive(Clone, Debug)]
pub struct ArtifactConfig {
    /// Directory of the cache.
    pub dir: PathBuf,
    /// The cleaner starts above [`HIGH_WATERMARK`] of this many bytes.
    pub budget_bytes: u64,
    /// Plain HTTP instead of HTTPS for every registry that `registries` does not say otherwise of.
    pub allow_insecure: bool,
    /// PEM files of further authorities to trust.
    pub ca: Vec<PathBuf>,
    /// What is different with single registries.
    pub registries: Registries,
    /// How long a pull may go without progress.
    pub pull_timeout: Duration,
    /// Whether images named `file:///path` may be started.
    pub allow_file: bool,
}

impl ArtifactConfig {
    /// How registries are spoken to, for artifacts of at most `bytes_max`.
    pub(crate) fn registry_options(&self, bytes_max: u64) -> RegistryOptions {
        RegistryOptions {
            allow_insecure: self.allow_insecure,
            ca: self.ca.clone(),
            registries: self.registries.clone(),
            credentials: None,
            timeout: self.pull_timeout,
            bytes_max,
        }
    }
}

/// Bounds on what runs at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Commands being handled at once, beyond status, stop and heartbeat.
    pub starts_in_queue: usize,
    /// Pulls at once on this host.
    pub pulls_in_flight: usize,
    /// Pulls at once from one registry.
    pub pulls_per_registry: usize,
    /// The largest artifact, in bytes.
    pub artifact_bytes_max: u64,
    /// HTTP connections at once.
    pub http_connections: usize,
    /// HTTP requests at once.
    pub http_requests: usize,
    /// The largest body of one response, in bytes; a longer one breaks off.
    pub response_bytes_max: u64,
    /// Messages being handled at once by one component, and calls of it by one trigger.
    pub messages_per_component: usize,
    /// Messages being handled at once on this host, and calls of its triggers.
    pub messages_per_host: usize,
    /// How long a start may take before it is answered STARTING and goes on.
    pub start_reply: Duration,
    /// How long stopping a workload waits for its calls in flight.
    pub stop_grace: Duration,
    /// How long the process takes to drain before it gives up.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            starts_in_queue: 10_000,
            pulls_in_flight: 16,
            pulls_per_registry: 4,
            artifact_bytes_max: 256 << 20,
            http_connections: 4_096,
            http_requests: 1_024,
            response_bytes_max: 4 << 30,
            messages_per_component: 32,
            messages_per_host: 128,
            start_reply: Duration::from_secs(50),
            stop_grace: Duration::from_secs(20),
            grace: Duration::from_secs(30),
        }
    }
}
