//! Flags of `wash workload start`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use subjects::{HostId, WorkloadId};

use super::{ClientNats, duration, label, label_value, pair};

pub(crate) const EXAMPLES: &str = "\
Examples:
  wash workload start counter.yaml --wait
  wash workload start --image ghcr.io/acme/counter:1.2 --http-host counter.example.com \\
      --interface wasi:keyvalue/store,atomics --host-group edge --replicas 2 --wait
  wash workload start --image ghcr.io/acme/worker:1 --subscribe orders.new --dry-run

A manifest holds resources of kind WorkloadDeployment or Workload, as for Kubernetes.";

/// `wash workload start`.
#[derive(Args)]
pub(crate) struct StartArgs {
    /// A manifest; `-` reads stdin
    #[arg(value_name = "FILE", required_unless_present = "image")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) component: ComponentArgs,
    #[command(flatten)]
    pub(crate) pull: PullSecretArgs,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
    #[command(flatten)]
    pub(crate) reply: ReplyArgs,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// A workload of one component, instead of a manifest.
#[derive(Args)]
#[command(next_help_heading = "Workload, instead of a manifest")]
#[group(
    id = "component",
    multiple = true,
    requires = "image",
    conflicts_with = "file"
)]
pub(crate) struct ComponentArgs {
    /// The component's image
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// The workload's and the component's name [default: from the image]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Scopes the names of buckets and containers [default: default]
    #[arg(long)]
    pub(crate) namespace: Option<String>,
    /// The HTTP host name it answers to
    #[arg(long, value_name = "NAME")]
    pub(crate) http_host: Option<String>,
    /// A further HTTP host name; may be repeated
    #[arg(long = "http-alias", requires = "http_host", value_name = "NAME")]
    pub(crate) http_aliases: Vec<String>,
    /// Interfaces it uses: [NAME=]NAMESPACE:PACKAGE/INTERFACE[,INTERFACE..][@VERSION]; may be repeated
    ///
    /// Like wasi:keyvalue/store,atomics or team-a=wasi:keyvalue/store@0.2.0-draft, where NAME is the
    /// import the entry is for.
    #[arg(long = "interface", value_name = "INTERFACES")]
    pub(crate) interfaces: Vec<Interface>,
    /// A setting of such an entry, like wasi:keyvalue/bucket=orders or team-a/bucket=orders; may be
    /// repeated
    #[arg(long, requires = "interfaces", value_name = "ENTRY/KEY=VALUE")]
    pub(crate) interface_config: Vec<InterfaceConfig>,
    /// A subject whose messages it handles; may be repeated
    #[arg(long = "subscribe", value_name = "SUBJECT")]
    pub(crate) subscriptions: Vec<String>,
    /// A value for `wasi:config`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) config: Vec<(String, String)>,
    /// An environment variable; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Where it may send requests; `*` is anywhere; may be repeated
    #[arg(long = "allowed-host", value_name = "HOST")]
    pub(crate) allowed_hosts: Vec<String>,
    /// The memory of all its instances together, in MiB [default: the host's]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) memory_limit_mb: Option<i32>,
    /// Its share of the processors, in thousandths of one [default: no limit]
    #[arg(long, value_name = "MILLIS", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) cpu_limit: Option<i32>,
    /// When the host asks the registry
    #[arg(long, value_enum)]
    pub(crate) pull_policy: Option<PullPolicy>,
}

/// How hosts sign in at the registry.
#[derive(Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct PullSecretArgs {
    /// Who the host signs in as at the registry [default: as the host is configured]
    #[arg(
        long,
        env = "WASH_PULL_USER",
        requires = "pull_password",
        value_name = "NAME"
    )]
    pub(crate) pull_user: Option<String>,
    /// The password; better given by the variable
    #[arg(
        long,
        env = "WASH_PULL_PASSWORD",
        hide_env_values = true,
        requires = "pull_user",
        value_name = "TEXT"
    )]
    pub(crate) pull_password: Option<String>,
}

/// Where workloads go.
#[derive(Args)]
#[command(next_help_heading = "Placement")]
pub(crate) struct PlacementArgs {
    /// On this host, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["host_group", "selector", "environment"])]
    pub(crate) host: Option<HostId>,
    /// On hosts of this group
    #[arg(long, value_name = "NAME", value_parser = label_value)]
    pub(crate) host_group: Option<String>,
    /// On hosts with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) selector: Vec<(String, String)>,
    /// On hosts of this environment
    #[arg(long, value_name = "NAME", value_parser = label_value)]
    pub(crate) environment: Option<String>,
    /// On so many different hosts [default: as the manifest says, else 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) replicas: Option<u16>,
    /// The id of the workload, if it is a single one [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<WorkloadId>,
}

/// What to wait for.
#[derive(Args)]
#[command(next_help_heading = "Outcome")]
pub(crate) struct ReplyArgs {
    /// Wait until the workloads run or failed
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait for hosts
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Print what would be asked of the hosts, and ask nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// When a host asks the registry for an image.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PullPolicy {
    /// At every start
    Always,
    /// When it does not have it
    #[value(alias = "ifNotPresent")]
    IfNotPresent,
    /// Never
    Never,
}

/// An entry of host interfaces as typed: `[NAME=]NAMESPACE:PACKAGE/INTERFACE[,INTERFACE..][@VERSION]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) package: String,
    pub(crate) interfaces: Vec<String>,
    pub(crate) version: String,
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').unwrap_or(("", text));
        let (path, version) = rest.split_once('@').unwrap_or((rest, ""));
        let (package, interfaces) = path
            .split_once('/')
            .ok_or("names no interface; like wasi:keyvalue/store")?;
        let (namespace, package) = package
            .split_once(':')
            .ok_or("names no package; like wasi:keyvalue/store")?;
        let interfaces: Vec<String> = interfaces.split(',').map(str::to_owned).collect();
        let names = [namespace, package]
            .into_iter()
            .chain(interfaces.iter().map(String::as_str));
        if let Some(wrong) = names.into_iter().find(|name| !is_wit_name(name)) {
            return Err(format!(
                "'{wrong}' must be lower-case letters, digits and '-'"
            ));
        }
        if !name.is_empty() && !is_wit_name(name) || text.starts_with('=') {
            return Err("the name must be lower-case letters, digits and '-'".into());
        }
        if rest.contains('@') && !version.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("the version must be like 0.2.0".into());
        }
        let [name, namespace, package, version] =
            [name, namespace, package, version].map(str::to_owned);
        Ok(Self {
            name,
            namespace,
            package,
            interfaces,
            version,
        })
    }
}

fn is_wit_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-')
}

/// A setting of an entry of host interfaces as typed: `ENTRY/KEY=VALUE`.
#[derive(Clone)]
pub(crate) struct InterfaceConfig {
    /// The entry: its name, or its package like `wasi:keyvalue`.
    pub(crate) entry: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for InterfaceConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = pair(text)?;
        match path.split_once('/') {
            Some((entry, key)) if !entry.is_empty() && !key.is_empty() => Ok(Self {
                entry: entry.to_owned(),
                key: key.to_owned(),
                value,
            }),
            _ => Err("must be ENTRY/KEY=VALUE, like wasi:keyvalue/bucket=orders".into()),
        }
    }
}

impl InterfaceConfig {
    /// Whether it is meant for the entry `name` of `package` (`namespace:package`).
    pub(crate) fn is_for(&self, name: &str, package: &str) -> bool {
        if name.is_empty() {
            self.entry == package
        } else {
            self.entry == name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_flag_is_an_entry() {
        let parse = |text: &str| text.parse::<Interface>();
        let entry = parse("team-a=wasi:keyvalue/store,atomics@0.2.0-draft").unwrap();
        assert_eq!(entry.name, "team-a");
        assert_eq!(
            (entry.namespace.as_str(), entry.package.as_str()),
            ("wasi", "keyvalue")
        );
        assert_eq!(entry.interfaces, ["store", "atomics"]);
        assert_eq!(entry.version, "0.2.0-draft");
        let entry = parse("wasi:http/incoming-handler").unwrap();
        assert_eq!((entry.name.as_str(), entry.version.as_str()), ("", ""));
        for wrong in [
            "",
            "wasi:keyvalue",
            "keyvalue/store",
            "wasi:keyvalue/",
            "wasi:keyvalue/store,",
            "wasi:keyvalue/store@",
            "=wasi:keyvalue/store",
            "Wasi:keyvalue/store",
            "A=wasi:keyvalue/store",
            "wasi:keyvalue/store@x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_interface_setting_names_its_entry() {
        let setting: InterfaceConfig = "wasi:keyvalue/bucket=a=b/c".parse().unwrap();
        assert_eq!(
            (
                setting.entry.as_str(),
                setting.key.as_str(),
                setting.value.as_str()
            ),
            ("wasi:keyvalue", "bucket", "a=b/c")
        );
        assert!(setting.is_for("", "wasi:keyvalue") && !setting.is_for("team-a", "wasi:keyvalue"));
        let setting: InterfaceConfig = "team-a/url=nats://x:1/y".parse().unwrap();
        assert!(setting.is_for("team-a", "wasi:keyvalue") && !setting.is_for("", "wasi:keyvalue"));
        for wrong in [
            "bucket=x",
            "/bucket=x",
            "wasi:keyvalue/=x",
            "wasi:keyvalue/bucket",
        ] {
            assert!(wrong.parse::<InterfaceConfig>().is_err(), "{wrong}");
        }
    }
}
