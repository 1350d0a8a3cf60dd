//! A host that is kept busy with starts, calls, replacements, failures and stops keeps nothing of them.
//!
//! `SOAK_S` says for how many seconds; a run of hours finds what a short one cannot.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fleet::{
    http,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::future::try_join_all;
use serde_json::json;

use crate::{
    admin::{ADMIN, sample},
    one_host,
};

/// How long every run lasts. Units: seconds.
const SECONDS: u64 = 6;

/// Workloads at once.
const WORKLOADS: usize = 6;

/// Requests to each of them in a round.
const REQUESTS: usize = 4;

/// What a host may keep: memory that its allocator has not given back, connections that idle.
/// Units: MiB, and files.
const KEPT_MAX: (u64, u64) = (32, 24);

/// What the process holds: MiB of memory of its own, and open files.
fn held(host: &Washlet) -> Result<(u64, u64)> {
    let of = format!("/proc/{}", host.pid());
    let status = fs::read_to_string(format!("{of}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.context("no RssAnon in /proc/_/status")?.parse()?;
    let files = fs::read_dir(format!("{of}/fd"))?.count();
    Ok((kib / 1024, u64::try_from(files)?))
}

/// Each workload is started, called, replaced or made to fail, called and stopped.
async fn round(host: &Washlet, images: &[String; 2], number: usize) -> Result<()> {
    let [serves, hostile] = images;
    let each = (0..WORKLOADS).map(async |one| {
        let id = format!("soak-{one}");
        let name = format!("{id}.test");
        let plain = |text: &str| {
            let fields = json!({ "localResources": { "config": { "text": text } } });
            Workload::new(&id)
                .component("app", serves, fields)
                .http(&name)
        };
        host.run_well(&plain("before")).await?;
        let port = host.http_port();
        let good = async || {
            let reply = http::get(port, &name, "/").await?;
            ensure!(reply.status == 200, "{id} answered {}", reply.status);
            Ok(())
        };
        try_join_all((0..REQUESTS).map(|_| good())).await?;
        match (one + number) % 3 {
            0 => host.run_well(&plain("after")).await?,
            1 => {
                let fields = json!({});
                let bad = Workload::new(&id)
                    .component("app", hostile, fields)
                    .http(&name);
                host.run_well(&bad).await?;
                // Requests of a moment go to what it replaces.
                let traps = async || http::get(port, &name, "/trap").await.ok();
                let trapped = async || traps().await.filter(|reply| reply.status == 500);
                until(SOON, "the new content traps", trapped).await?;
            }
            _ => good().await?,
        }
        host.stop(&id).await?;
        Ok::<_, anyhow::Error>(())
    });
    try_join_all(each).await?;
    Ok(())
}

/// Nothing runs, is called or waits any more.
async fn at_rest(host: &Washlet) -> Result<()> {
    until(SOON, "nothing is under way", async || {
        let calls = sample(host, "washlet_calls_in_flight").await.ok()?;
        let list = host.request("workload.list", &json!({})).await.ok()?;
        let none = list.get("workloads").and_then(|all| all.as_array());
        (calls == 0 && none.is_none_or(Vec::is_empty)).then_some(())
    })
    .await
}

async fn images(fleet: &Fleet) -> Result<[String; 2]> {
    Ok([
        fleet.push("http-hello").await?,
        fleet.push("hostile").await?,
    ])
}

#[tokio::test]
async fn a_busy_host_keeps_nothing() -> Result<()> {
    let seconds = match env::var_os("SOAK_S") {
        Some(seconds) => seconds.to_string_lossy().parse()?,
        None => SECONDS,
    };
    let (fleet, host) = one_host(&ADMIN).await?;
    let images = images(&fleet).await?;
    // What is made once is made, and the allocator has its share.
    let (warm, all) = (
        Duration::from_secs(seconds) / 3,
        Duration::from_secs(seconds),
    );
    let began = Instant::now();
    let mut before = None;
    let mut rounds = 0;
    while began.elapsed() < all || before.is_none() {
        round(&host, &images, rounds).await?;
        rounds += 1;
        if before.is_none() && began.elapsed() >= warm {
            at_rest(&host).await?;
            before = Some(held(&host)?);
        }
    }
    at_rest(&host).await?;
    let (memory, files) = held(&host)?;
    let (memory_before, files_before) = before.context("no round was over")?;
    eprintln!(
        "{rounds} rounds of {WORKLOADS} workloads: {memory_before} MiB and {files_before} files before, \
         {memory} MiB and {files} files after"
    );
    ensure!(
        memory <= memory_before + KEPT_MAX.0 && files <= files_before + KEPT_MAX.1,
        "it keeps {memory} MiB and {files} files, {memory_before} and {files_before} at first"
    );
    Ok(())
}
