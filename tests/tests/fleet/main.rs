//! What a fleet promises, seen from outside: the real binary, real servers, the wire.
//!
//! The names C1 to C28 are those of the conformance list; a test says in its comment which of
//! them it covers.

use anyhow::Result;
use fleet::{
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use serde_json::{Value, json};

mod admin;
mod artifacts;
mod blobstore;
mod code;
mod config;
mod control;
mod drain;
mod http;
mod interfaces;
mod journal;
mod keyvalue;
mod limits;
mod manifests;
mod messaging;
mod named;
mod permissions;
mod postgres;
mod profiles;
mod replace;
mod retries;
mod secrets;

/// The virtual host of most workloads here.
const HOST: &str = "app.test";

/// A fleet with one host.
async fn one_host(args: &[&str]) -> Result<(Fleet, Washlet)> {
    let fleet = Fleet::start().await?;
    let host = fleet.host(args).await?;
    Ok((fleet, host))
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
