//! What a fleet promises, seen from outside: the real binary, real servers, the wire.
//!
//! The names C1 to C28 are those of the conformance list; a test says in its comment which of
//! them it covers.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use fleet::{
    tools,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use serde_json::{Value, json};

mod admin;
mod artifacts;
mod blobstore;
mod canary;
mod code;
mod config;
mod control;
mod crash;
mod drain;
mod durable;
mod http;
mod interfaces;
mod journal;
mod keyvalue;
mod limits;
mod manifests;
mod messaging;
mod named;
mod nats;
mod packages;
mod permissions;
mod postgres;
mod profiles;
mod replace;
mod retries;
mod sealed;
mod secrets;
mod soak;
mod sql;
mod watchers;

/// The virtual host of most workloads here.
const HOST: &str = "app.test";

/// A fleet with one host.
async fn one_host(args: &[&str]) -> Result<(Fleet, Washlet)> {
    let fleet = Fleet::start().await?;
    let host = fleet.host(args).await?;
    Ok((fleet, host))
}

/// Runs `wash` with the words of `line`; gives its exit code and its result for programs.
async fn wash(fleet: &Fleet, line: &str) -> Result<(i32, Value)> {
    wash_with(fleet, line, Stdio::null()).await
}

/// As [`wash`], with something to read.
async fn wash_with(fleet: &Fleet, line: &str, stdin: Stdio) -> Result<(i32, Value)> {
    let mut command = Command::new(tools::built("wash")?);
    command
        .args(line.split_whitespace())
        .args(["--output", "json"])
        .env("WASH_NATS_URL", fleet.nats.url())
        .stdin(stdin);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let result = serde_json::from_slice(&output.stdout).context(stderr)?;
    Ok((output.status.code().unwrap_or(-1), result))
}

/// A workload with one component that answers HTTP for [`HOST`].
fn app(id: &str, image: &str, fields: Value) -> Workload {
    Workload::new(id).component("app", image, fields).http(HOST)
}

/// A fleet with one host on which the component `name` of this repository answers for [`HOST`].
async fn serving(name: &str) -> Result<(Fleet, Washlet)> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push(name).await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    Ok((fleet, host))
}
