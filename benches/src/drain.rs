//! A host that leaves under load while another stays: what becomes of the requests of clients that look.

use std::time::{Duration, Instant};

use anyhow::Result;
use fleet::{
    balance::{Load, under_load},
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
};
use serde_json::json;

use crate::{
    Options, load,
    report::{Bound, Row, Table},
    starts::hello,
};

/// How many clients send at the same time.
const CALLERS: usize = 32;

/// How many requests are answered before the host is told to leave.
const BEFORE: usize = 1_000;

/// The same for a look whether it works.
const BEFORE_SHORT: usize = 50;

const HOST: &str = "wash host";

/// The row `drain`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    let delay = if options.short { "200ms" } else { "2s" };
    let args = ["--admin-addr", "127.0.0.1:0", "--drain-delay", delay];
    let (stays, mut leaves) = tokio::try_join!(fleet.host(&args), fleet.host(&args))?;
    for host in [&stays, &leaves] {
        host.run_well(&hello("w", &image)).await?;
    }
    let (mut requests, mut failures, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let load = Load::default();
        let hosts = [&stays, &leaves];
        let drain = drained(options, &leaves, &load);
        let took = under_load(&hosts, "w.test", CALLERS, &load, drain).await?;
        requests.push(load::real(load.requests() as u64));
        failures.push(load::real(load.failures() as u64));
        times.push(took.as_secs_f64());
        leaves.restart().await?;
        until(SOON, "what ran before runs again", async || {
            (leaves.status("w").await.ok()?.state == "RUNNING").then_some(())
        })
        .await?;
    }
    let mut row = Row::default();
    let table = |what: &str| Table::new("drain", what);
    row.push(table("requests while one of two hosts leaves").side(HOST, requests));
    let failed = table("requests that failed").side(HOST, failures);
    row.push(failed.hope(HOST, Bound::AtMost(0.0)));
    row.push(table("from the command to the end of the process in s").side(HOST, times));
    row.note(format!(
        "{CALLERS} clients, each sends to a host until /readyz is red or goodbye is heard; --drain-delay {delay}"
    ));
    Ok(row)
}

/// Has `host` leave once there is a load; how long that took.
async fn drained(options: &Options, host: &Washlet, load: &Load) -> Result<Duration> {
    let before = if options.short { BEFORE_SHORT } else { BEFORE };
    until(SOON, "the load has begun", async || {
        (load.requests() >= before).then_some(())
    })
    .await?;
    let began = Instant::now();
    host.request("host.drain", &json!({})).await?;
    host.gone().await?;
    Ok(began.elapsed())
}
