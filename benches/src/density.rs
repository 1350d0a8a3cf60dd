//! What a host takes that does nothing, what each further workload adds, and what becomes of
//! everything else when there are many.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fleet::{
    tools,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::future::try_join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    Options, load,
    load::{Dice, Times},
    proc,
    report::{Bound, Row, Table, interleave},
    server::Turn,
    starts::{hello, start, stop},
};

/// How many workloads there are on each of the hosts.
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// The same for a look whether it works.
const SIZES_SHORT: [usize; 2] = [5, 20];

/// How many are started at once.
const BATCH: usize = 1_000;

/// How many are started beside those that run, to see how fast that goes.
const FURTHER: usize = 200;

/// How often a host is asked in a round.
const QUESTIONS: usize = 500;

/// How long memory may settle.
const SETTLE: Duration = Duration::from_secs(2);

/// A host with workloads.
struct Full {
    name: &'static str,
    host: Washlet,
    ids: Vec<String>,
    requests: Vec<Vec<u8>>,
}

/// The row `density`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    let fleet = Fleet::start().await?;
    idle(options, &fleet, &mut row).await?;
    growth(options, &fleet, &mut row).await?;
    Ok(row)
}

/// A host that has nothing to do.
async fn idle(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    const HOST: &str = "wash host";
    const OWN: &str = "of it private";
    let (mut awake, mut resident, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let host = fleet.host(&[]).await?;
        awake.push(host.awake_after.as_secs_f64() * 1e3);
        settle(options).await;
        resident.push(proc::resident(host.pid())?);
        own.push(proc::private(host.pid())?);
    }
    let binary = fs::metadata(tools::built("wash")?)?.len();
    let binary = load::real(binary) / load::real(1 << 20);
    let table = |what| Table::new("density", what);
    let awake = table("from its start to the first heartbeat in ms").side(HOST, awake);
    row.push(awake.hope(HOST, Bound::AtMost(100.0)));
    let memory = table("memory of an idle host in MiB").side(HOST, resident);
    row.push(memory.side(OWN, own).hope(HOST, Bound::AtMost(20.0)));
    let size = table("size of the binary in MiB").once("wash", binary);
    row.push(size.hope("wash", Bound::AtMost(35.0)));
    Ok(())
}

async fn settle(options: &Options) {
    if !options.short {
        sleep(SETTLE).await;
    }
}

/// Hosts with ever more workloads, side by side.
async fn growth(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let image = fleet.push("http-hello").await?;
    let sizes = if options.short {
        SIZES_SHORT.as_slice()
    } else {
        SIZES.as_slice()
    };
    let (mut hosts, mut memory, mut each) = (
        Vec::new(),
        Table::new(
            "density",
            "memory of a host with so many idle workloads in MiB",
        ),
        Table::new("density", "memory of each further idle workload in KiB"),
    );
    let mut rates = Table::new("density", "starts per second, until so many run");
    for size in sizes {
        let full = fill(fleet, &image, *size, options).await?;
        memory = memory.once(full.host.name, full.resident);
        each = each.once(
            full.host.name,
            full.added * 1024.0 / load::real(*size as u64),
        );
        rates = rates.once(full.host.name, full.rate);
        hosts.push(full.host);
    }
    row.push(memory.hope("10000 workloads", Bound::AtMost(300.0)));
    row.push(
        each.hope("1000 workloads", Bound::AtMost(10.0))
            .hope("10000 workloads", Bound::AtMost(10.0)),
    );
    row.push(rates);
    let what = [
        "starts per second, further ones at once",
        "requests per second, each to any workload, 32 connections",
        "status request, p50 in µs",
        "status request, p99 in µs",
        "heartbeat request, p50 in µs",
        "heartbeat request, p99 in µs",
    ];
    let figures = interleave(options.rounds, &hosts, async |round, full: &Full| {
        let further = further(full, &image, round, options).await?;
        let routed = routed(full, Turn::new(options.short)).await?;
        let dice = Dice::new();
        let status = asked(options, async || {
            let id = dice.pick(&full.ids).context("there are no workloads")?;
            full.host.status(id).await?;
            Ok(())
        });
        let status = status.await?;
        let heartbeat = asked(options, async || {
            full.host.request("heartbeat", &json!({})).await?;
            Ok(())
        });
        let heartbeat = heartbeat.await?;
        Ok([
            further,
            routed,
            status.percentile(50),
            status.percentile(99),
            heartbeat.percentile(50),
            heartbeat.percentile(99),
        ])
    })
    .await?;
    let first = hosts.first().context("there are no hosts")?.name;
    for (place, what) in what.into_iter().enumerate() {
        let mut table = Table::new("density", what);
        for (full, rounds) in hosts.iter().zip(&figures) {
            let rounds = rounds.iter().filter_map(|round| round.get(place).copied());
            table = table.side(full.name, rounds.collect());
        }
        row.push(table.peer(first));
    }
    Ok(())
}

/// What came of starting many.
struct Filled {
    host: Full,
    /// Starts per second.
    rate: f64,
    /// Resident memory with all of them, in MiB.
    resident: f64,
    /// How much of it came after the first, in MiB.
    added: f64,
}

/// A new host with `size` workloads of `image` besides the one that pulled and compiled it.
async fn fill(fleet: &Fleet, image: &str, size: usize, options: &Options) -> Result<Filled> {
    let host = fleet.host(&[]).await?;
    host.run_well(&hello("first", image)).await?;
    settle(options).await;
    let before = proc::resident(host.pid())?;
    let workloads: Vec<Workload> = (0..size).map(|n| hello(&format!("w-{n}"), image)).collect();
    let mut took = Duration::ZERO;
    for batch in workloads.chunks(BATCH) {
        took += start(&host, batch).await?;
    }
    settle(options).await;
    let resident = proc::resident(host.pid())?;
    let ids: Vec<String> = workloads.into_iter().map(|workload| workload.id).collect();
    let requests = ids.iter().map(|id| load::get(&format!("{id}.test"), "/"));
    Ok(Filled {
        rate: load::rate(size as u64, took),
        resident,
        added: resident - before,
        host: Full {
            name: named(size),
            host,
            requests: requests.collect(),
            ids,
        },
    })
}

/// What a host with so many workloads is called.
fn named(size: usize) -> &'static str {
    match size {
        5 => "5 workloads",
        20 => "20 workloads",
        10 => "10 workloads",
        100 => "100 workloads",
        1_000 => "1000 workloads",
        _ => "10000 workloads",
    }
}

/// Starts some more at once and stops them again; gives the rate.
async fn further(full: &Full, image: &str, round: usize, options: &Options) -> Result<f64> {
    let count = if options.short { 5 } else { FURTHER };
    let workloads: Vec<_> = (0..count)
        .map(|n| hello(&format!("further-{round}-{n}"), image))
        .collect();
    let took = start(&full.host, &workloads).await?;
    stop(&full.host, &workloads).await?;
    Ok(load::rate(count as u64, took))
}

/// Requests to workloads at random; gives the rate.
async fn routed(full: &Full, turn: Turn) -> Result<f64> {
    let dice = Dice::new();
    let ports = [full.host.http_port()];
    let run = async |time: Duration| {
        let began = Instant::now();
        let next = || {
            let more = began.elapsed() < time;
            more.then(|| dice.pick(&full.requests))?.map(Vec::as_slice)
        };
        load::drive(&ports, next).await
    };
    run(turn.warm_up).await?;
    Ok(run(turn.time).await?.rate())
}

/// Asks one after the other, four at once.
async fn asked(options: &Options, question: impl AsyncFn() -> Result<()>) -> Result<Times> {
    let count = if options.short { 10 } else { QUESTIONS };
    let question = &question;
    let askers = (0..4).map(async |_| {
        let mut times = Vec::new();
        for _ in 0..count {
            let began = Instant::now();
            question().await?;
            times.push(began.elapsed());
        }
        anyhow::Ok(times)
    });
    let times: Vec<Vec<Duration>> = try_join_all(askers).await?;
    Ok(Times::new(times.concat()))
}
