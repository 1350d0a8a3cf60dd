//! What a host is told before it starts: plain values, already parsed and checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use subjects::HostId;

/// Everything a [`Washlet`](crate::Washlet) needs to know. Shape: no defaults here; the command line has them.
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
    /// How long an operator may probe this host without asking for a workload of before the restart.
    pub orphan_after: Duration,
    /// Bounds on what runs at once.
    pub limits: Limits,
    /// `allowedHosts` of a component that names none; empty denies everything.
    pub default_allowed_hosts: Vec<String>,
    /// Bucket names are the storage's own, not scoped by the workload's namespace.
    pub flat_names: bool,
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
    /// Plain HTTP instead of HTTPS for every registry.
    pub allow_insecure: bool,
    /// PEM files of further authorities to trust.
    pub ca: Vec<PathBuf>,
    /// How long a pull may go without progress.
    pub pull_timeout: Duration,
    /// Whether images named `file:///path` may be started.
    pub allow_file: bool,
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
    /// Messages being handled at once by one component.
    pub messages_per_component: usize,
    /// Messages being handled at once on this host.
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
