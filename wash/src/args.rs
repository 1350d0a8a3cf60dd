//! What can be typed: every command, flag and environment variable.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand, ValueEnum};
use subjects::{HostId, WorkloadId};
use washlet::config::{NatsAuth, NatsConfig};

use crate::output::{Failure, Format};

pub(crate) mod host;
mod secrets;
pub(crate) mod start;

pub(crate) use host::{DevArgs, HostArgs, Profile, TrustRoots};
pub(crate) use secrets::{SealArgs, SecretsCommand};
pub(crate) use start::{Interface, ReplyArgs, StartArgs};

/// How long a NATS server may say nothing before it is asked for a sign of life.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The command line.
#[derive(Parser)]
#[command(
    name = "wash",
    version,
    max_term_width = 100,
    propagate_version = false
)]
#[command(about = "Run and place WebAssembly components", long_about = LONG_ABOUT)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG_ABOUT: &str = "\
Run and place WebAssembly components.

A host runs workloads; hosts and this command meet at a NATS server. Results go to stdout, all
else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by a host, 4 unreachable,
130 interrupted.";

/// Flags of every command.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// How to print the result
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    pub(crate) output: Format,
    /// Least severe log lines to show [default: info for `host` and `dev`, else warn]
    ///
    /// A level (error, warn, info, debug, trace) or directives such as `info,washlet=debug`. Without
    /// it, RUST_LOG counts.
    #[arg(
        short,
        long,
        global = true,
        env = "WASH_LOG_LEVEL",
        value_name = "LEVEL"
    )]
    pub(crate) log_level: Option<String>,
    /// How to write log lines to stderr
    #[arg(
        long,
        global = true,
        env = "WASH_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// Short for `--log-level debug`
    #[arg(long, global = true, conflicts_with = "log_level")]
    pub(crate) verbose: bool,
}

/// How log lines look.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Global {
    /// The log filter: the flag, `--verbose`, `RUST_LOG` or `default`, in this order.
    pub(crate) fn log_filter(&self, default: &str) -> String {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads configuration"
        )]
        let rust_log = || {
            std::env::var("RUST_LOG")
                .ok()
                .filter(|filter| !filter.is_empty())
        };
        match &self.log_level {
            Some(level) => level.clone(),
            None if self.verbose => "debug".to_owned(),
            None => rust_log().unwrap_or_else(|| default.to_owned()),
        }
    }
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a host until it is told to stop
    Host(Box<HostArgs>),
    /// Run one component here, again whenever its file changes
    Dev(Box<DevArgs>),
    /// List the hosts of a fleet, cordon and drain them
    Hosts(Box<HostsArgs>),
    /// Start, stop and list workloads
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Seal secrets so that only hosts can open them
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Move components to and from OCI registries
    #[command(subcommand, visible_alias = "docker")]
    Oci(OciCommand),
    /// Show what a component imports and exports, as WIT
    Inspect(InspectArgs),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Compile a component from stdin to stdout; hosts call it
    #[command(hide = true)]
    CompileComponent {
        /// How memories lie in the address space
        layout: engine::Layout,
    },
}

/// `wash workload ..`.
#[derive(Subcommand)]
pub(crate) enum WorkloadCommand {
    /// Start workloads from a manifest or from flags
    #[command(after_long_help = start::EXAMPLES)]
    Start(Box<StartArgs>),
    /// Stop workloads
    Stop(StopArgs),
    /// Show how far a workload is
    Status(StatusArgs),
    /// List the workloads of all hosts
    List(ListArgs),
}

/// `wash oci ..`.
#[derive(Subcommand)]
pub(crate) enum OciCommand {
    /// Copy a component from a registry into a file
    Pull(PullArgs),
    /// Copy a component from a file to a registry
    Push(PushArgs),
}

/// `wash hosts`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:\n  wash hosts\n  wash hosts --nats-url nats://nats:4222 -o json\n  wash hosts drain 0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d"
)]
pub(crate) struct HostsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<HostsCommand>,
    /// How long to listen for hosts
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// `wash hosts ..`.
#[derive(Subcommand)]
pub(crate) enum HostsCommand {
    /// Have a host take no new workloads, also after a restart
    ///
    /// What runs on it goes on. `wash workload start` and `wash hosts drain` leave it out.
    Cordon(OneHostArgs),
    /// Have a host take new workloads again
    Uncordon(OneHostArgs),
    /// Have a host leave the fleet in good order
    ///
    /// The host is cordoned. What was started with `wash workload start` and more than one replica
    /// is started on other hosts; then the host says goodbye, finishes its calls and ends, as on
    /// SIGTERM. Started again, it runs the rest of what it ran, and is cordoned still.
    Drain(DrainArgs),
}

/// `wash hosts cordon` and `uncordon`.
#[derive(Args)]
pub(crate) struct OneHostArgs {
    /// Id of the host
    #[arg(value_name = "ID")]
    pub(crate) id: HostId,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// `wash hosts drain`.
#[derive(Args)]
#[command(
    after_long_help = "Example:\n  wash hosts drain 0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d --deadline 20s"
)]
pub(crate) struct DrainArgs {
    /// Id of the host
    #[arg(value_name = "ID")]
    pub(crate) id: HostId,
    /// How long the host may take to leave [default: its --grace, which is also the most]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// Have it leave also when workloads could not be placed on other hosts
    #[arg(long)]
    pub(crate) force: bool,
    /// How long to wait for a workload to run on another host
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How long to look for other hosts
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// `wash workload stop`.
#[derive(Args)]
#[command(after_long_help = "Example:\n  wash workload stop 6f9c3f0e-9b0e-4a39-8d7a-1f5d3d1c0b55")]
pub(crate) struct StopArgs {
    /// Ids of the workloads
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<WorkloadId>,
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
}

/// `wash workload status`.
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Id of the workload
    #[arg(value_name = "ID")]
    pub(crate) id: WorkloadId,
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
}

/// `wash workload list`.
#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
}

/// Which hosts to ask, and where they are.
#[derive(Args)]
pub(crate) struct FleetArgs {
    /// Ask this host only, by its id
    #[arg(long, value_name = "ID")]
    pub(crate) host: Option<HostId>,
    /// How long to look for hosts
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// `wash oci pull`.
#[derive(Args)]
#[command(after_long_help = "Example:\n  wash oci pull ghcr.io/acme/counter:1.2 counter.wasm")]
pub(crate) struct PullArgs {
    /// Where it is, like `ghcr.io/acme/counter:1.2`
    pub(crate) reference: String,
    /// Where to write it
    #[arg(default_value = "component.wasm")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// `wash oci push`.
#[derive(Args)]
#[command(after_long_help = "Example:\n  wash oci push ghcr.io/acme/counter:1.2 counter.wasm")]
pub(crate) struct PushArgs {
    /// Where to put it, like `ghcr.io/acme/counter:1.2`
    pub(crate) reference: String,
    /// The component
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// `wash inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A file, or an image if there is no such file
    ///
    /// Taken for a file when it exists, starts with `/`, `~`, `./` or `../`, or ends in `.wasm`.
    #[arg(value_name = "FILE|IMAGE")]
    pub(crate) component: String,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How to talk to a registry.
#[derive(Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct RegistryArgs {
    /// Speak plain HTTP
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Who to sign in as [default: as Docker does, else anonymous]
    #[arg(short, long, env = "WASH_OCI_USER", requires = "password")]
    pub(crate) user: Option<String>,
    /// The password; better given by the variable
    #[arg(
        short,
        long,
        env = "WASH_OCI_PASSWORD",
        hide_env_values = true,
        requires = "user"
    )]
    pub(crate) password: Option<String>,
    /// PEM files of further authorities to trust
    #[arg(
        long,
        env = "WASH_OCI_CA_PATHS",
        value_delimiter = ',',
        value_name = "FILE"
    )]
    pub(crate) ca_path: Vec<PathBuf>,
}

/// Declares credentials for a NATS server, as flags that begin with `$prefix`.
macro_rules! nats_auth {
    ($name:ident, $prefix:literal, $env:literal, $heading:literal) => {
        #[derive(Args, Default)]
        #[command(next_help_heading = $heading)]
        pub(crate) struct $name {
            #[arg(id = concat!($prefix, "-creds"), long, env = concat!($env, "_CREDS"), value_name = "FILE",
                help = "Sign in with this .creds file, read again at every connect")]
            creds: Option<PathBuf>,
            #[arg(id = concat!($prefix, "-nkey"), long, env = concat!($env, "_NKEY"), value_name = "FILE",
                help = "Sign in with the nkey seed in this file")]
            nkey: Option<PathBuf>,
            #[arg(id = concat!($prefix, "-user"), long, env = concat!($env, "_USER"), value_name = "NAME",
                help = "Sign in as this user")]
            user: Option<String>,
            #[arg(id = concat!($prefix, "-password"), long, env = concat!($env, "_PASSWORD"), value_name = "TEXT",
                hide_env_values = true, help = "The user's password; better given by the variable")]
            password: Option<String>,
            #[arg(id = concat!($prefix, "-token"), long, env = concat!($env, "_TOKEN"), value_name = "TEXT",
                hide_env_values = true, help = "Sign in with this token; better given by the variable")]
            token: Option<String>,
        }

        impl $name {
            /// The one way to sign in that was given.
            fn auth(&self) -> Result<NatsAuth, Failure> {
                let mut given = Vec::new();
                given.extend(self.creds.clone().map(NatsAuth::CredsFile));
                given.extend(self.nkey.clone().map(NatsAuth::NkeyFile));
                given.extend(self.token.clone().map(NatsAuth::Token));
                match (self.user.clone(), self.password.clone()) {
                    (Some(user), Some(password)) => given.push(NatsAuth::UserPassword(user, password)),
                    (None, None) => {}
                    _ => return Err(Failure::usage(concat!("--", $prefix, "-user and --", $prefix, "-password need each other"))),
                }
                match given.pop() {
                    Some(_) if !given.is_empty() => Err(Failure::usage("more than one way to sign in at NATS was given")
                        .hint(concat!("give one of --", $prefix, "-creds, -nkey, -user with -password, -token, or its variable"))),
                    auth => Ok(auth.unwrap_or_default()),
                }
            }
        }
    };
}

/// Declares the address of a NATS server and TLS towards it, as flags that begin with `$prefix`.
macro_rules! nats_server {
    ($name:ident, $prefix:literal, $env:literal, $heading:literal) => {
        #[derive(Args)]
        #[command(next_help_heading = $heading)]
        pub(crate) struct $name {
            #[arg(id = concat!($prefix, "-url"), long, env = concat!($env, "_URL"), hide_env_values = true,
                default_value = "nats://localhost:4222", value_name = "URL", value_parser = nats_url,
                help = "The server, or several separated by commas")]
            url: String,
            #[arg(id = concat!($prefix, "-tls-ca"), long, env = concat!($env, "_TLS_CA"), value_name = "FILE",
                help = "PEM file of the authorities to trust instead of the usual ones")]
            tls_ca: Option<PathBuf>,
            #[arg(id = concat!($prefix, "-tls-cert"), long, env = concat!($env, "_TLS_CERT"), value_name = "FILE",
                requires = concat!($prefix, "-tls-key"), help = "PEM file of our certificate")]
            tls_cert: Option<PathBuf>,
            #[arg(id = concat!($prefix, "-tls-key"), long, env = concat!($env, "_TLS_KEY"), value_name = "FILE",
                requires = concat!($prefix, "-tls-cert"), help = "PEM file of our certificate's key")]
            tls_key: Option<PathBuf>,
            #[arg(id = concat!($prefix, "-tls-first"), long, env = concat!($env, "_TLS_FIRST"),
                help = "Begin TLS before the server's greeting")]
            tls_first: bool,
            #[arg(id = concat!($prefix, "-inbox-prefix"), long, env = concat!($env, "_INBOX_PREFIX"), value_name = "SUBJECT",
                value_parser = inbox_prefix, help = "What subjects of answers to us begin with [default: _INBOX]")]
            inbox_prefix: Option<String>,
        }

        impl $name {
            /// The same as configuration, signing in by `auth`.
            fn config(&self, auth: NatsAuth) -> NatsConfig {
                let identity = self.tls_cert.clone().zip(self.tls_key.clone());
                let tls = washlet::config::NatsTls { ca: self.tls_ca.clone(), identity, first: self.tls_first };
                let inbox_prefix = self.inbox_prefix.clone();
                NatsConfig { url: self.url.clone(), tls, auth, inbox_prefix, ping_interval: $crate::args::PING_INTERVAL }
            }
        }
    };
}

nats_auth!(CommonAuth, "nats", "WASH_NATS", "NATS");
nats_server!(CommonServer, "nats", "WASH_NATS", "NATS");
pub(crate) use {nats_auth, nats_server};

/// Where a client finds the fleet.
#[derive(Args)]
pub(crate) struct ClientNats {
    #[command(flatten)]
    server: CommonServer,
    #[command(flatten)]
    auth: CommonAuth,
}

impl ClientNats {
    /// The same as configuration.
    pub(crate) fn config(&self) -> Result<NatsConfig, Failure> {
        Ok(self.server.config(self.auth.auth()?))
    }
}

/// Subjects that begin with it are for answers alone, so it begins as they do for everybody.
fn inbox_prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let tokens = text.split('.').all(|token| !token.is_empty());
    match text.starts_with("_INBOX") && tokens && text.len() <= 128 && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("must be like _INBOX_edge-1: _INBOX, then letters, digits, '_', '-' and '.', at most 128".into()),
    }
}

/// A list of NATS addresses; the text never repeats the value, which may hold a password.
/// Takes user and password out of the URL that `error` repeats.
pub(crate) fn conceal(error: &mut clap::Error) {
    let argument = error.get(ContextKind::InvalidArg);
    let url = argument.is_some_and(|argument| argument.to_string().contains("-url"));
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((_, server)) = value.rsplit_once('@')
        && url
    {
        let shown = ContextValue::String(format!("***@{server}"));
        error.insert(ContextKind::InvalidValue, shown);
    }
}

fn nats_url(text: &str) -> Result<String, String> {
    for url in text.split(',') {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        if !matches!(scheme, "nats" | "tls") {
            return Err("must begin with nats:// or tls://".into());
        }
        if rest
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .trim_matches('/')
            .is_empty()
        {
            return Err("names no server".into());
        }
    }
    Ok(text.to_owned())
}

/// A time span above zero, like `500ms` or `1m 30s`.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; like 500ms, 30s or 5m")),
    }
}

/// A `key=value` pair with a key.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

/// A `key=value` pair in the syntax of Kubernetes labels.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = pair(text)?;
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key.as_str()),
    };
    let domain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
    };
    let domain_ok = prefix.is_none_or(|p| (1..=253).contains(&p.len()) && p.bytes().all(domain));
    if !domain_ok || name.is_empty() || !is_label_value(name) {
        return Err("the key must be 1 to 63 letters, digits, '-', '_' and '.', after an optional domain and '/'".into());
    }
    label_value(&value)?;
    Ok((key, value))
}

/// A value in the syntax of Kubernetes labels.
fn label_value(text: &str) -> Result<String, String> {
    if is_label_value(text) {
        Ok(text.to_owned())
    } else {
        Err("must be at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit".into())
    }
}

fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    let (first, last) = (text.bytes().next(), text.bytes().next_back());
    text.len() <= 63 && text.bytes().all(inner) && edge(first) && edge(last)
}

#[cfg(test)]
mod tests;
