//! Flags of `wash secrets seal`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use subjects::HostId;
use washlet::seal::PublicKey;

use super::{ClientNats, duration, label_value};

const EXAMPLES: &str = "\
Examples:
  wash secrets seal --host-group edge password.txt
  wash secrets seal --host-group edge --put vault/db-password < password.txt
  wash secrets seal --host-group edge --manifest app.yaml > app-sealed.yaml

What is printed may stand in a manifest for any value of environment or config, and for the password
of a pull secret. It opens only on the hosts it is sealed to, and only for workloads of its
namespace; a start on another host is refused. A bucket serves workloads whose entry of
wasmcloud:secrets has `backend: nats` and `bucket: vault`.";

/// `wash secrets ..`.
#[derive(Subcommand)]
pub(crate) enum SecretsCommand {
    /// Seal a value, or those of a manifest, so that only hosts you name can open it
    Seal(Box<SealArgs>),
}

/// `wash secrets seal`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SealArgs {
    /// Where the value is; `-` reads stdin
    ///
    /// A line break at its very end is left out.
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// FILE is a manifest: seal its values of environment and config, and those of wasmcloud:secrets,
    /// and print it
    #[arg(long, conflicts_with_all = ["put", "namespace"])]
    pub(crate) manifest: bool,
    /// Namespace of the workloads it opens for [default: default; that of a manifest is in it]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Put it into this bucket of the namespace, under this key, instead of printing it
    ///
    /// The server is that of the hosts' data. The bucket is made if it is missing.
    #[arg(long, value_name = "BUCKET/KEY")]
    pub(crate) put: Option<Place>,
    /// The bucket is of hosts that run with --flat-names
    #[arg(long, requires = "put")]
    pub(crate) flat_names: bool,
    #[command(flatten)]
    pub(crate) to: RecipientArgs,
    /// How long to look for hosts
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) nats: ClientNats,
}

/// Who can open it.
#[derive(Args)]
#[command(next_help_heading = "Who can open it")]
#[group(id = "recipients", required = true, multiple = true)]
pub(crate) struct RecipientArgs {
    /// The host with this id, asked for its key; may be repeated
    #[arg(long = "host", value_name = "ID")]
    pub(crate) hosts: Vec<HostId>,
    /// Every host of this group that answers, asked for its key; may be repeated
    #[arg(long = "host-group", value_name = "NAME", value_parser = label_value)]
    pub(crate) groups: Vec<String>,
    /// The host with this key, which it logs when it starts and `wash hosts` shows; may be repeated
    ///
    /// Needs no trust in what NATS says, and no NATS but for --put.
    #[arg(long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<PublicKey>,
}

/// A key of a bucket, as components name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => Ok(Self {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
            }),
            _ => Err("must be BUCKET/KEY"),
        }
    }
}
