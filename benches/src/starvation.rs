//! How soon a host answers commands when its guests leave it no processor and its pulls hang.

use std::{
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fleet::{
    http,
    proxy::Proxy,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{
    StreamExt,
    future::{Either, join_all, select},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Options,
    load::Times,
    report::{Bound, Row, Table},
    server::serve,
};

/// How many pulls hang: as many as are made at once from one registry, and as many wait.
const PULLS: usize = 8;

/// How often a host is asked in a round.
const QUESTIONS: usize = 500;

/// The same for a look whether it works.
const QUESTIONS_SHORT: usize = 10;

/// How often it says how it is.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The same for a look whether it works.
const HEARTBEAT_SHORT: Duration = Duration::from_millis(200);

/// How many heartbeats are waited for in a round.
const HEARTBEATS: usize = 5;

const IDLE: &str = "idle";
const STARVED: &str = "starved";

/// The row `starvation`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let fleet = Fleet::start().await?;
    let every = match options.short {
        true => HEARTBEAT_SHORT,
        false => HEARTBEAT,
    };
    let interval = format!("{}ms", every.as_millis());
    let args = [
        "--heartbeat-interval",
        &interval,
        "--admin-addr",
        "127.0.0.1:0",
    ];
    let host = fleet.host(&args).await?;
    let image = fleet.push("hostile").await?;
    let address = serve(&host, "loops", &image, json!({})).await?;
    let registry = Proxy::start(&fleet.registry.address()).await?;
    registry.pause();
    let idle = rounds(options, &host, every).await?;

    let image = image.replace(&fleet.registry.address(), &registry.address());
    let pulls: Vec<_> = (0..PULLS)
        .map(|n| Workload::new(&format!("hangs-{n}")).component("app", &image, json!({})))
        .collect();
    let pulls = join_all(pulls.iter().map(|workload| host.run(workload)));
    let cores = thread::available_parallelism()?.get();
    let loops = (0..2 * cores).map(|_| http::get(host.http_port(), &address, "/loop"));
    let hanging = pin!(async { tokio::join!(pulls, join_all(loops)) });
    let asked = pin!(async {
        until(SOON, "the pulls hang and the loops run", async || {
            let (_, page) = host.admin("/metrics").await.ok()?;
            let sample = |name: &str| {
                let line = page.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|sample| sample.trim().parse::<usize>().ok())
            };
            let loops = sample("washlet_calls_in_flight ")?;
            let pulls = sample("washlet_workloads{state=\"starting\"} ")?;
            (loops >= 2 * cores && pulls == PULLS).then_some(())
        })
        .await?;
        rounds(options, &host, every).await
    });
    let starved = match select(asked, hanging).await {
        Either::Left((starved, _)) => starved?,
        Either::Right(_) => bail!("the endless loops and hanging pulls ended"),
    };

    let mut row = Row::default();
    let figures = [
        ("status request, p50 in ms", None),
        ("status request, p99 in ms", Some(50.0)),
        ("status request, longest in ms", None),
        (
            "latest heartbeat, late by percent of its interval",
            Some(10.0),
        ),
    ];
    for (place, (what, most)) in figures.into_iter().enumerate() {
        let of = |rounds: &[[f64; 4]]| {
            rounds
                .iter()
                .filter_map(|r| r.get(place).copied())
                .collect()
        };
        let table = Table::new("starvation", what);
        let table = table.side(IDLE, of(&idle)).side(STARVED, of(&starved));
        row.push(match most {
            Some(most) => table.hope(STARVED, Bound::AtMost(most)),
            None => table,
        });
    }
    row.note(format!(
        "starved: {} endless loops on {cores} processors, {PULLS} pulls from a silent registry",
        2 * cores
    ));
    Ok(row)
}

/// What each round shows: see the tables.
async fn rounds(options: &Options, host: &Washlet, every: Duration) -> Result<Vec<[f64; 4]>> {
    let questions = if options.short {
        QUESTIONS_SHORT
    } else {
        QUESTIONS
    };
    let heartbeats = if options.short { 2 } else { HEARTBEATS };
    let subject = format!("runtime.operator.heartbeat.{}", host.id());
    let mut figures = Vec::new();
    for _ in 0..options.rounds {
        let mut times = Vec::new();
        for _ in 0..questions {
            let began = Instant::now();
            host.status("loops").await?;
            times.push(began.elapsed());
        }
        let times = Times::new(times);
        let mut beats = host.nats().subscribe(subject.clone()).await?;
        let mut next = async || {
            let beat = timeout(SOON, beats.next()).await?;
            beat.context("the NATS server went away")
                .map(|_| Instant::now())
        };
        let mut before = next().await?;
        let mut late = Duration::ZERO;
        for _ in 1..heartbeats {
            let now = next().await?;
            late = late.max((now - before).saturating_sub(every));
            before = now;
        }
        figures.push([
            times.percentile(50) / 1e3,
            times.percentile(99) / 1e3,
            times.longest() / 1e3,
            100.0 * late.as_secs_f64() / every.as_secs_f64(),
        ]);
    }
    Ok(figures)
}
