//! Flags of the commands that run workloads themselves.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::{Layout, Outbound};
use plugins_postgres::Dsn;
use subjects::HostId;
use washlet::config::{ArtifactConfig, HttpConfig, Limits, NatsAuth, NatsConfig, TlsConfig};

use super::start::{Interface, InterfaceConfig};
use super::{
    CommonAuth, duration, inbox_prefix, label, label_value, nats_auth, nats_server, nats_url, pair,
};
use crate::output::Failure;
use crate::registries;

nats_auth!(
    SchedulerAuth,
    "scheduler-nats",
    "WASH_SCHEDULER_NATS",
    "NATS for commands"
);
nats_server!(
    SchedulerServer,
    "scheduler-nats",
    "WASH_SCHEDULER_NATS",
    "NATS for commands"
);
nats_auth!(DataAuth, "data-nats", "WASH_DATA_NATS", "NATS for data");
nats_server!(DataServer, "data-nats", "WASH_DATA_NATS", "NATS for data");

/// `wash host`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    #[command(flatten)]
    scheduler: SchedulerServer,
    #[command(flatten)]
    scheduler_auth: SchedulerAuth,
    #[command(flatten)]
    data: DataServer,
    #[command(flatten)]
    data_auth: DataAuth,
    #[command(flatten)]
    common_auth: CommonAuth,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    postgres: PostgresArgs,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    #[command(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  wash host --http-addr 0.0.0.0:8080
  wash host --host-group edge --label zone=a --scheduler-nats-url tls://nats:4222 \\
      --nats-creds host.creds --http-addr 0.0.0.0:8080 --state-dir /var/lib/washlet

A host ends with 0 after it was told to stop and has finished what it was doing.";

/// Who the host is.
#[derive(Args)]
#[command(next_help_heading = "Identity")]
pub(crate) struct IdentityArgs {
    /// The group this host belongs to, its label `hostgroup`
    #[arg(long, env = "WASH_HOST_GROUP", default_value = "default", value_name = "NAME", value_parser = label_value)]
    pub(crate) host_group: String,
    /// An address the fleet can reach [default: the machine's name]
    #[arg(long, env = "WASH_HOST_NAME", value_name = "NAME", value_parser = host_name)]
    pub(crate) host_name: Option<String>,
    /// The environment workloads select by
    #[arg(long, env = "WASMCLOUD_HOST_ENVIRONMENT", default_value = "", hide_default_value = true, value_name = "NAME", value_parser = label_value)]
    pub(crate) environment: String,
    /// A further label; may be repeated
    #[arg(long = "label", env = "WASH_LABELS", value_delimiter = ',', value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// The id of this host [default: kept in the state directory]
    #[arg(long, env = "WASH_HOST_ID", value_name = "ID")]
    pub(crate) host_id: Option<HostId>,
    /// Where this host keeps its id, its images and what it runs [default: a free place below
    /// ~/.local/state/washlet]
    #[arg(long, env = "WASH_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Stop a workload of before a restart when an operator probes this host for so long without asking
    /// for it
    #[arg(long, env = "WASH_ORPHAN_AFTER", default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub(crate) orphan_after: Duration,
    /// Run what the manifests in this directory describe (*.yaml, *.yml, *.json), and follow their changes
    #[arg(long, env = "WASH_MANIFEST_DIR", value_name = "DIR")]
    pub(crate) manifest_dir: Option<PathBuf>,
    /// Serve /livez, /readyz and /metrics here, without TLS; port 0 picks a free one [default: nowhere]
    #[arg(long, env = "WASH_ADMIN_ADDR", value_name = "ADDRESS:PORT")]
    pub(crate) admin_addr: Option<SocketAddr>,
    /// How often to tell the fleet how this host is
    #[arg(long, env = "WASH_HEARTBEAT_INTERVAL", default_value = "15s", value_name = "DURATION", value_parser = duration)]
    pub(crate) heartbeat_interval: Duration,
}

/// Where components' secrets come from.
#[derive(Args)]
#[command(next_help_heading = "Secrets")]
pub(crate) struct SecretArgs {
    /// Files DIR/NAMESPACE/KEY are secrets of workloads with `backend: files` [default: none]
    #[arg(long, env = "WASH_SECRETS_DIR", value_name = "DIR")]
    pub(crate) secrets_dir: Option<PathBuf>,
    /// Variables of this host's environment PREFIX + NAMESPACE + __ + KEY are secrets of workloads with
    /// `backend: env` [default: none]
    #[arg(long, env = "WASH_SECRETS_ENV_PREFIX", value_name = "PREFIX", value_parser = secrets_prefix)]
    pub(crate) secrets_env_prefix: Option<String>,
}

/// At least a few letters, or all of the environment would be secrets of workloads.
fn secrets_prefix(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match text.len() >= 3 && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("must be at least 3 letters, digits and '_', such as SECRET_".to_owned()),
    }
}

/// How a connection to NATS is found to be dead, whichever it is.
#[derive(Args)]
#[command(next_help_heading = "NATS")]
struct WatchArgs {
    /// Ask a NATS server that says nothing for a sign of life this often; one that is silent for three times
    /// as long is given up and connected to anew
    #[arg(long, env = "WASH_NATS_PING_INTERVAL", default_value = "5s", value_name = "DURATION", value_parser = ping_interval)]
    nats_ping_interval: Duration,
}

/// Short enough to notice, long enough for an answer.
fn ping_interval(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(100)..=Duration::from_secs(300);
    match duration(text) {
        Ok(interval) if bounds.contains(&interval) => Ok(interval),
        Ok(_) => Err("must be from 100ms to 5m".to_owned()),
        Err(error) => Err(error),
    }
}

/// Postgres, beside NATS.
#[derive(Args)]
#[command(next_help_heading = "Postgres for data")]
struct PostgresArgs {
    /// The database of host interfaces with `backend: postgres`, like
    /// postgres://user:password@host:5432/database?sslmode=verify-full; better given by the variable
    #[arg(
        long,
        env = "WASH_POSTGRES_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    postgres_url: Option<String>,
}

/// How HTTP comes in and goes out.
#[derive(Args)]
#[command(next_help_heading = "HTTP")]
pub(crate) struct HttpArgs {
    /// Serve HTTP here; port 0 picks a free one [default: no HTTP]
    #[arg(long, env = "WASH_HTTP_ADDR", value_name = "ADDRESS:PORT")]
    pub(crate) http_addr: Option<SocketAddr>,
    /// Serve HTTPS with the certificate chain in this PEM file
    #[arg(long, env = "WASH_TLS_CERT_PATH", value_name = "FILE", requires_all = ["tls_key_path", "http_addr"])]
    tls_cert_path: Option<PathBuf>,
    /// PEM file of the certificate's key
    #[arg(
        long,
        env = "WASH_TLS_KEY_PATH",
        value_name = "FILE",
        requires = "tls_cert_path"
    )]
    tls_key_path: Option<PathBuf>,
    /// Ask clients for a certificate of the authorities in this PEM file
    #[arg(
        long,
        env = "WASH_TLS_CA_PATH",
        value_name = "FILE",
        requires = "tls_cert_path"
    )]
    tls_ca_path: Option<PathBuf>,
    /// How long to take new connections after stopping began
    #[arg(long, env = "WASH_DRAIN_DELAY", default_value = "5s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain_delay: Duration,
    /// PEM files of authorities that components' requests trust, too
    #[arg(
        long,
        env = "WASH_HTTP_CLIENT_CA_PATHS",
        value_delimiter = ',',
        value_name = "FILE"
    )]
    pub(crate) http_client_ca_path: Vec<PathBuf>,
    /// Which authorities components' requests trust
    #[arg(
        long,
        env = "WASH_HTTP_CLIENT_TRUST_ROOTS",
        value_enum,
        default_value = "webpki"
    )]
    pub(crate) http_client_trust_roots: TrustRoots,
    /// Components' requests under way at once from this host [default: half of the files it may open,
    /// 64 to 32768]
    #[arg(long, env = "WASH_MAX_CONNECTIONS", value_name = "COUNT")]
    max_connections: Option<NonZeroUsize>,
    /// Components' requests under way at once from one workload
    #[arg(
        long,
        env = "WASH_MAX_OUTBOUND_HTTP_CONNECTIONS_PER_WORKLOAD",
        default_value = "128",
        value_name = "COUNT"
    )]
    max_outbound_http_connections_per_workload: NonZeroUsize,
    /// How long a component's request waits for its turn
    #[arg(long, env = "WASH_HTTP_CONNECTION_WAIT", default_value = "5s", value_name = "DURATION", value_parser = duration)]
    http_connection_wait: Duration,
}

/// Which authorities are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrustRoots {
    /// The public ones and those of --http-client-ca-path
    Webpki,
    /// Those of --http-client-ca-path alone
    ExtraOnly,
}

/// Where images come from.
#[derive(Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImageArgs {
    /// What is different with single registries: authorities, mirrors, plain HTTP, credentials
    ///
    /// YAML, read at the start: `registries: {HOST[:PORT]: {ca: FILE, plainHttp: true, mirrors:
    /// [HOST[:PORT][/PATH]], credentials: {username: NAME, passwordFile: FILE}}}`, or `credentials:
    /// {dockerConfig: FILE}`. Mirrors are asked first, in their order, and not about images with a
    /// pull secret, but for the bytes. Files with credentials are read for each pull.
    #[arg(long, env = "WASH_REGISTRIES_CONFIG", value_name = "FILE")]
    registries_config: Option<PathBuf>,
    /// Speak plain HTTP to every registry
    #[arg(long, env = "WASH_ALLOW_INSECURE_REGISTRIES")]
    allow_insecure_registries: bool,
    /// PEM files of further authorities that registries may be signed by
    #[arg(
        long,
        env = "WASH_OCI_CA_PATHS",
        value_delimiter = ',',
        value_name = "FILE"
    )]
    oci_ca_path: Vec<PathBuf>,
    /// How long a pull may go without progress
    #[arg(long, env = "WASH_REGISTRY_PULL_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    registry_pull_timeout: Duration,
    /// Where to keep images; hosts may share it [default: in the state directory]
    #[arg(long, env = "WASH_OCI_CACHE_DIR", value_name = "DIR")]
    pub(crate) oci_cache_dir: Option<PathBuf>,
    /// Keep about so many bytes of images that nothing uses, like 500MiB
    #[arg(long, env = "WASH_ARTIFACT_BUDGET", default_value = "4GiB", value_name = "BYTES", value_parser = bytes)]
    artifact_budget: u64,
    /// Keep so many bytes of compiled code in the state directory
    #[arg(long, env = "WASH_COMPILED_BUDGET", default_value = "1GiB", value_name = "BYTES", value_parser = bytes)]
    pub(crate) compiled_budget: u64,
    /// Start images named file:///path, which lets whoever commands this host read its files
    #[arg(long, env = "WASH_ALLOW_FILE_IMAGES")]
    allow_file_images: bool,
}

/// The flag that every command has which runs components.
#[derive(Args)]
pub(crate) struct Tuning {
    /// What the host is tuned for
    #[arg(
        long,
        env = "WASH_PROFILE",
        value_enum,
        default_value = "standard",
        value_name = "PROFILE"
    )]
    pub(crate) profile: Profile,
}

/// What a host is tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Fast, and a slow component delays nobody else
    Standard,
    /// Faster still: each thread keeps its connections, so a slow component delays those beside it
    Throughput,
    /// For little address space, and components that grow their memory in each call: an instance has
    /// 64 MiB at most, and code that computes is slower
    Compact,
}

impl Profile {
    /// How memories lie in the address space.
    pub(crate) fn layout(self) -> Layout {
        match self {
            Self::Standard | Self::Throughput => Layout::Guarded,
            Self::Compact => Layout::Checked,
        }
    }
}

/// What workloads may do and how much.
#[derive(Args)]
#[command(next_help_heading = "Workloads")]
pub(crate) struct RunArgs {
    /// Where components that say nothing about it may send requests; `*` is anywhere [default: nowhere]
    #[arg(
        long,
        env = "WASH_DEFAULT_ALLOWED_HOSTS",
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub(crate) default_allowed_hosts: Vec<String>,
    /// Use names of buckets as they are, shared between namespaces
    #[arg(long, env = "WASH_FLAT_NAMES")]
    pub(crate) flat_names: bool,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    /// Threads that run components [default: one per core]
    #[arg(long, env = "WASH_THREADS", value_name = "COUNT")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Messages being handled at once on this host [default: 128]
    #[arg(
        long,
        env = "WASH_WASMCLOUD_MESSAGING_MAX_IN_FLIGHT",
        value_name = "COUNT"
    )]
    wasmcloud_messaging_max_in_flight: Option<NonZeroUsize>,
    /// Messages being handled at once by one component [default: a quarter of the host's]
    #[arg(
        long,
        env = "WASH_WASMCLOUD_MESSAGING_MAX_IN_FLIGHT_PER_COMPONENT",
        value_name = "COUNT"
    )]
    wasmcloud_messaging_max_in_flight_per_component: Option<NonZeroUsize>,
    /// The largest body of one response; a longer one breaks off
    #[arg(long, env = "WASH_HTTP_RESPONSE_MAX", default_value = "4GiB", value_name = "BYTES", value_parser = bytes)]
    http_response_max: u64,
    /// How long to finish what is being done when told to stop
    #[arg(long, env = "WASH_GRACE", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    grace: Duration,
}

impl HostArgs {
    /// The server that commands come from.
    pub(crate) fn scheduler(&self) -> Result<NatsConfig, Failure> {
        let auth = self.or_common(self.scheduler_auth.auth()?)?;
        Ok(self.watched(self.scheduler.config(auth)))
    }

    /// The server that components' data is at.
    pub(crate) fn data(&self) -> Result<NatsConfig, Failure> {
        let auth = self.or_common(self.data_auth.auth()?)?;
        Ok(self.watched(self.data.config(auth)))
    }

    fn watched(&self, config: NatsConfig) -> NatsConfig {
        NatsConfig {
            ping_interval: self.watch.nats_ping_interval,
            ..config
        }
    }

    /// The database that components' data is in, if there is one.
    pub(crate) fn postgres(&self) -> Result<Option<Dsn>, Failure> {
        // Not read by the parser of flags, which repeats what it refuses.
        let dsn = self.postgres.postgres_url.as_deref().map(Dsn::parse);
        dsn.transpose()
            .map_err(|error| Failure::usage(format!("--postgres-url: {error}")))
    }

    fn or_common(&self, auth: NatsAuth) -> Result<NatsAuth, Failure> {
        match auth {
            NatsAuth::None => self.common_auth.auth(),
            auth => Ok(auth),
        }
    }

    /// Refuses what no single flag can know: files that cannot be read, trust in nobody.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let trusts_nobody = self.http.http_client_trust_roots == TrustRoots::ExtraOnly
            && self.http.http_client_ca_path.is_empty();
        if trusts_nobody {
            return Err(
                Failure::usage("--http-client-trust-roots extra-only trusts nobody")
                    .hint("name the authorities by --http-client-ca-path"),
            );
        }
        self.postgres()?;
        for nats in [self.scheduler()?, self.data()?] {
            let auth = match &nats.auth {
                NatsAuth::CredsFile(file) | NatsAuth::NkeyFile(file) => Some(file),
                _ => None,
            };
            let (cert, key) = nats.tls.identity.clone().unzip();
            readable(nats.tls.ca.iter().chain(&cert).chain(&key).chain(auth))?;
        }
        let http = &self.http;
        readable(
            http.tls_cert_path
                .iter()
                .chain(&http.tls_key_path)
                .chain(&http.tls_ca_path),
        )?;
        readable(
            http.http_client_ca_path
                .iter()
                .chain(&self.images.oci_ca_path),
        )?;
        match &self.secrets.secrets_dir {
            Some(dir) if !dir.is_dir() => Err(Failure::usage(format!(
                "\"{}\", named by --secrets-dir, is not a directory",
                dir.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// Refuses files that cannot be read.
fn readable<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), Failure> {
    for file in files {
        File::open(file).map_err(|error| {
            Failure::usage(format!("cannot read \"{}\": {error}", file.display()))
        })?;
    }
    Ok(())
}

impl IdentityArgs {
    /// The labels besides `hostgroup`; the last of a key counts.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
        labels.remove("hostgroup");
        labels
    }
}

impl HttpArgs {
    /// The listener, if there is to be one.
    pub(crate) fn listener(&self) -> Option<HttpConfig> {
        let certificate = self.tls_cert_path.clone().zip(self.tls_key_path.clone());
        let tls = certificate.map(|(cert, key)| TlsConfig {
            cert,
            key,
            client_ca: self.tls_ca_path.clone(),
        });
        let drain_delay = self.drain_delay;
        self.http_addr.map(|address| HttpConfig {
            address,
            tls,
            drain_delay,
        })
    }
}

impl HttpArgs {
    /// How much may go out at once.
    pub(crate) fn outbound(&self) -> Outbound {
        let derived = || files().map_or(512, |files| usize::try_from(files / 2).unwrap_or(512));
        Outbound {
            per_workload: self.max_outbound_http_connections_per_workload.get(),
            per_host: self
                .max_connections
                .map_or_else(|| derived().clamp(64, 32_768), NonZeroUsize::get),
            wait: self.http_connection_wait,
        }
    }
}

impl ImageArgs {
    /// Where images come from, kept in `dir` unless a flag names another place.
    pub(crate) fn artifacts(&self, dir: &Path) -> Result<ArtifactConfig, Failure> {
        let registries = self.registries_config.as_deref().map(registries::read);
        let registries = registries
            .transpose()
            .map_err(|error| Failure::usage(format!("--registries-config {error}")))?;
        Ok(ArtifactConfig {
            registries: registries.unwrap_or_default(),
            dir: self.oci_cache_dir.clone().unwrap_or_else(|| dir.to_owned()),
            budget_bytes: self.artifact_budget,
            allow_insecure: self.allow_insecure_registries,
            ca: self.oci_ca_path.clone(),
            pull_timeout: self.registry_pull_timeout,
            allow_file: self.allow_file_images,
        })
    }
}

/// How many files and sockets this process may open; `None`: any number.
fn files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// How many of `most` connections are taken at once by a process that may open so many files: a quarter of them,
/// beside the half that components' requests have.
pub(super) fn connections(most: usize, files: Option<u64>) -> usize {
    let part = files.map_or(most, |files| usize::try_from(files / 4).unwrap_or(most));
    part.clamp(16, most.max(16))
}

impl RunArgs {
    /// The bounds these flags set, the others as usual.
    pub(crate) fn limits(&self) -> Limits {
        let usual = Limits::default();
        let mut limits = Limits {
            grace: self.grace,
            response_bytes_max: self.http_response_max,
            http_connections: connections(usual.http_connections, files()),
            ..usual
        };
        if let Some(per_host) = self.wasmcloud_messaging_max_in_flight {
            limits.messages_per_host = per_host.get();
        }
        limits.messages_per_component = match self.wasmcloud_messaging_max_in_flight_per_component {
            Some(per_component) => per_component.get().min(limits.messages_per_host),
            None => (limits.messages_per_host / 4).max(1),
        };
        limits
    }
}

/// `wash dev`.
#[derive(Args)]
#[command(
    after_long_help = "Example:\n  wash dev counter.wasm --interface wasi:keyvalue/store,atomics"
)]
pub(crate) struct DevArgs {
    /// The component
    #[arg(value_name = "FILE")]
    pub(crate) component: PathBuf,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    /// Serve HTTP here, whatever host name a request has
    #[arg(
        long,
        env = "WASH_HTTP_ADDR",
        default_value = "127.0.0.1:8000",
        value_name = "ADDRESS:PORT"
    )]
    pub(crate) http_addr: SocketAddr,
    /// Interfaces the component uses, like wasi:keyvalue/store,atomics; may be repeated
    #[arg(long = "interface", value_name = "INTERFACES")]
    pub(crate) interfaces: Vec<Interface>,
    /// A setting of such an entry, like wasi:keyvalue/bucket=orders; may be repeated
    #[arg(long, value_name = "ENTRY/KEY=VALUE")]
    pub(crate) interface_config: Vec<InterfaceConfig>,
    /// A value for `wasi:config`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) config: Vec<(String, String)>,
    /// An environment variable of the component; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Where the component may send requests; `*` is anywhere
    #[arg(long = "allowed-host", value_delimiter = ',', value_name = "HOST")]
    pub(crate) allowed_hosts: Vec<String>,
}

/// A name or address for the heartbeat.
fn host_name(text: &str) -> Result<String, String> {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'_');
    if (1..=253).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be a host name or an address".into())
    }
}

/// A size above zero: a number with B, K, M, G or T, alone or followed by iB (1024) or B (1000).
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "must be a size like 500MiB or 4GiB".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let unit = unit.trim().to_ascii_lowercase();
    let (power, base) = match unit.strip_suffix("ib").map(|prefix| (prefix, 1024)) {
        Some(binary) => binary,
        None if unit.len() == 2 => (unit.strip_suffix('b').ok_or_else(wrong)?, 1000),
        None => (unit.strip_suffix('b').unwrap_or(&unit), 1024_u64),
    };
    let exponent = match power {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    base.checked_pow(exponent)
        .and_then(|factor| number.checked_mul(factor))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        let sizes = [
            ("1", 1),
            ("7B", 7),
            ("2k", 2048),
            ("2kB", 2000),
            ("500MiB", 500 << 20),
            ("4GiB", 4 << 30),
            ("1T", 1 << 40),
        ];
        for (text, size) in sizes {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "0",
            "GiB",
            "1.5GiB",
            "4XiB",
            "1iB2",
            "99999999T",
            "-1",
            "4 quux",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
