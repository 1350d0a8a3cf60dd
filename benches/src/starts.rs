//! Starts: of one image that is in the cache, all at once, beside bare requests of the same bytes;
//! and the first of an image, before and after a restart of the host.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_nats::Client;
use fleet::{
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{StreamExt, future::try_join_all};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Options,
    http::file,
    load,
    load::ROUND_MAX,
    proc,
    report::{Bound, Row, Table, interleave},
    server::push,
};

/// How many batches are timed together in one round.
const BATCHES: u64 = 4;

/// A bare request takes less.
const REQUESTS_PER_START: u64 = 4;

/// The subject of bare requests.
const SUBJECT: &str = "bare";

const HOST: &str = "wash host";
const BARE: &str = "NATS requests";

/// The row `starts`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    let fleet = Fleet::start().await?;
    at_once(options, &fleet, &mut row).await?;
    let hello = file("examples/http-hello/http-hello.wasm");
    first(
        options,
        &fleet,
        ("http-hello", &hello),
        options.rounds,
        &mut row,
    )
    .await?;
    match &options.python {
        Some(component) => first(options, &fleet, ("python", component), 1, &mut row).await?,
        None if options.short => {}
        None => row.note(
            "no first start of a large component: BENCHES_PYTHON_COMPONENT names none (`cargo \
             xtask bench` does)",
        ),
    }
    Ok(row)
}

/// Many starts of one cached image.
async fn at_once(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let (count, batches) = if options.short {
        (20, 1)
    } else {
        (1_000, BATCHES)
    };
    let image = fleet.push("http-hello").await?;
    let host = fleet.host(&[]).await?;
    let workload = |id: &str| hello(id, &image);
    // The one that pulls and compiles.
    host.run_well(&workload("first")).await?;
    let (asker, answerer) = (fleet.nats.client().await?, fleet.nats.client().await?);
    let payload = workload("bare").request().to_string();
    let sides = [HOST, BARE];
    let figures = interleave(options.rounds, &sides, async |round, side| {
        if *side == BARE {
            let batches = batches * REQUESTS_PER_START;
            let took = bare(&asker, &answerer, &payload, count, batches).await?;
            return Ok(load::rate(count * batches, took));
        }
        let mut took = Duration::ZERO;
        for batch in 0..batches {
            let ids = (0..count).map(|n| format!("w-{round}-{batch}-{n}"));
            let workloads: Vec<_> = ids.map(|id| workload(&id)).collect();
            took += start(&host, &workloads).await?;
            stop(&host, &workloads).await?;
        }
        Ok(load::rate(count * batches, took))
    })
    .await?;
    let table = Table::new("starts", format!("starts per second, {count} at once"));
    let sides = sides.into_iter().zip(figures);
    let table = sides.fold(table, |table, (name, rounds)| table.side(name, rounds));
    row.push(table.peer(BARE).hope(HOST, Bound::AtLeast(1_000.0)));
    Ok(())
}

/// A workload that answers hello.
pub(crate) fn hello(id: &str, image: &str) -> Workload {
    let name = format!("{id}.test");
    Workload::new(id)
        .component("hello", image, json!({}))
        .http(&name)
}

/// Starts all at once; gives how long it took until the last of them ran.
///
/// # Errors
/// When one does not run.
pub(crate) async fn start(host: &Washlet, workloads: &[Workload]) -> Result<Duration> {
    let began = Instant::now();
    let started = workloads.iter().map(|workload| host.run_well(workload));
    timeout(ROUND_MAX, try_join_all(started))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    Ok(began.elapsed())
}

/// Stops all.
///
/// # Errors
/// When a reply is missing.
pub(crate) async fn stop(host: &Washlet, workloads: &[Workload]) -> Result<()> {
    try_join_all(workloads.iter().map(|workload| host.stop(&workload.id))).await?;
    Ok(())
}

/// Lets one connection ask another, `count` times at once and that `batches` times; gives how long it
/// took.
async fn bare(
    asker: &Client,
    answerer: &Client,
    payload: &str,
    count: u64,
    batches: u64,
) -> Result<Duration> {
    let mut requests = answerer.subscribe(SUBJECT).await?;
    // What comes back to its sender has passed the subscription, which so is in place.
    answerer.publish(SUBJECT, "".into()).await?;
    requests.next().await.context("the NATS server went away")?;
    let answers = async {
        while let Some(request) = requests.next().await {
            let reply = request.reply.context("a request wants a reply")?;
            answerer.publish(reply, request.payload).await?;
        }
        bail!("the NATS server went away")
    };
    let began = Instant::now();
    let asked = async {
        for _ in 0..batches {
            let batch = (0..count).map(|_| asker.request(SUBJECT, payload.to_owned().into()));
            try_join_all(batch).await?;
        }
        Ok(began.elapsed())
    };
    tokio::select! {
        took = asked => took,
        failed = answers => failed,
    }
}

/// The first start of an image, on `hosts` new hosts, and again on each after restarts.
async fn first(
    options: &Options,
    fleet: &Fleet,
    (name, component): (&str, &Path),
    hosts: usize,
    row: &mut Row,
) -> Result<()> {
    let image = push(fleet, name, component).await?;
    let workload = Workload::new("first")
        .component("guest", &image, json!({}))
        .http("first.test");
    let restarts = options.rounds.div_ceil(hosts);
    let (mut new, mut known) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..hosts {
        let mut host = fleet.host(&[]).await?;
        let run = async |host: &Washlet| {
            let began = Instant::now();
            host.run_well(&workload).await?;
            let took = began.elapsed();
            Ok::<_, anyhow::Error>((took.as_secs_f64() * 1e3, proc::resident(host.pid())?))
        };
        let (took, resident) = run(&host).await?;
        new.0.push(took);
        new.1.push(resident);
        for _ in 0..restarts {
            host.restart().await?;
            let (took, resident) = run(&host).await?;
            known.0.push(took);
            known.1.push(resident);
        }
    }
    const NEW: &str = "pulled and compiled";
    const KNOWN: &str = "after a restart";
    let time = Table::new("starts", format!("first start of {name} in ms"));
    let time = time.side(NEW, new.0).side(KNOWN, known.0);
    row.push(time.hope(KNOWN, Bound::AtMost(50.0)));
    let resident = format!("resident memory of the host after it in MiB ({name})");
    let resident = Table::new("starts", resident);
    row.push(resident.side(NEW, new.1).side(KNOWN, known.1));
    Ok(())
}
