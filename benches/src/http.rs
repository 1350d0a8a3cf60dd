//! Components that answer HTTP: on a host of a fleet, under `wasmtime serve`, and a bare server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fleet::washlet::Fleet;
use serde_json::json;

use crate::{
    Options,
    report::{Bound, Row, Table, interleave},
    server::{Contender, HELLO, Server, Turn, place, push, serve, warm},
};

pub(crate) const HYPER: &str = "raw hyper";
const WASMTIME: &str = "wasmtime serve";
pub(crate) const FRESH: &str = "wash host";
const FRESH_FAST: &str = "wash host, throughput";
const WARM: &str = "wash host, warm";
const WARM_FAST: &str = "wash host, throughput, warm";
const COMPACT: &str = "wash host, compact";

/// Instances of the Python component that are kept: each holds some MiB.
const PYTHON_WARM: usize = 4;

/// What the Python component answers.
const PYTHON: &str = "Hello from Python!\n";

/// A file of this repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The row `http`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    if options.wasmtime.is_none() {
        row.note("no `wasmtime serve` beside it: WASMTIME names none (`cargo xtask bench` does)");
    }
    let fleet = Fleet::start().await?;
    hello(options, &fleet, &mut row).await?;
    grow(options, &fleet, &mut row).await?;
    match (&options.python, options.short) {
        (Some(component), _) => python(options, &fleet, component, &mut row).await?,
        (None, true) => {}
        (None, false) => row.note(
            "no Python component: BENCHES_PYTHON_COMPONENT names none (`cargo xtask bench` does)",
        ),
    }
    Ok(row)
}

/// The smallest component, 32 connections.
async fn hello(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let image = fleet.push("http-hello").await?;
    let hyper = Server::hyper().await?;
    let default = fleet.host(&[]).await?;
    let fast = fleet.host(&["--profile", "throughput"]).await?;
    let mut sides = vec![Contender::new(HYPER, hyper.place(), "hello.test", HELLO).await?];
    let wasmtime = wasmtime(options, "examples/http-hello/http-hello.wasm").await?;
    if let Some(server) = &wasmtime {
        sides.push(Contender::new(WASMTIME, server.place(), "hello.test", HELLO).await?);
    }
    let hosts = [(&default, FRESH, WARM), (&fast, FRESH_FAST, WARM_FAST)];
    for (host, fresh, kept) in hosts {
        for (name, id, fields) in [(fresh, "fresh", json!({})), (kept, "warm", warm())] {
            let address = serve(host, id, &image, fields).await?;
            sides.push(Contender::new(name, place(host), &address, HELLO).await?);
        }
    }
    let (rates, cpu) = tables(options, &sides, "hello, 32 connections").await?;
    let rates = rates.peer(WASMTIME).peer(HYPER);
    let targets = [(FRESH, 3.3, 0.44), (FRESH_FAST, 3.8, 0.52)];
    let targets = targets
        .into_iter()
        .chain([(WARM, 5.0, 0.66), (WARM_FAST, 5.5, 0.72)]);
    let rates = targets.fold(rates, |rates, (side, of_wasmtime, of_hyper)| {
        rates
            .hope_over(side, WASMTIME, Bound::AtLeast(of_wasmtime))
            .hope_over(side, HYPER, Bound::AtLeast(of_hyper))
    });
    row.push(rates);
    let targets = [
        (FRESH, 22.0),
        (FRESH_FAST, 19.0),
        (WARM, 12.0),
        (WARM_FAST, 11.0),
    ];
    let cpu = cpu.peer(HYPER);
    row.push(
        targets
            .into_iter()
            .fold(cpu, |cpu, (side, most)| cpu.hope(side, Bound::AtMost(most))),
    );
    Ok(())
}

/// A component that grows its memory by 64 KiB in each request.
async fn grow(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    const ANSWER: &str = "grown\n";
    let image = fleet.push("grow").await?;
    let default = fleet.host(&[]).await?;
    let compact = fleet.host(&["--profile", "compact"]).await?;
    let mut sides = Vec::new();
    let wasmtime = wasmtime(options, "tests/components/wasm/grow.wasm").await?;
    if let Some(server) = &wasmtime {
        sides.push(Contender::new(WASMTIME, server.place(), "grow.test", ANSWER).await?);
    }
    for (name, host) in [(FRESH, &default), (COMPACT, &compact)] {
        let address = serve(host, "grow", &image, json!({})).await?;
        sides.push(Contender::new(name, place(host), &address, ANSWER).await?);
    }
    let (rates, cpu) = tables(options, &sides, "64 KiB more memory, 32 connections").await?;
    row.push(
        rates
            .peer(WASMTIME)
            .hope_over(FRESH, WASMTIME, Bound::AtLeast(2.5))
            .hope_over(COMPACT, WASMTIME, Bound::AtLeast(5.0)),
    );
    row.push(cpu);
    Ok(())
}

/// A component with an interpreter in it: warm beside fresh under `wasmtime serve`.
async fn python(options: &Options, fleet: &Fleet, component: &Path, row: &mut Row) -> Result<()> {
    let image = push(fleet, "python", component).await?;
    let host = fleet.host(&[]).await?;
    let mut sides = Vec::new();
    let wasmtime = match &options.wasmtime {
        Some(wasmtime) => Some(Server::wasmtime(wasmtime, component).await?),
        None => None,
    };
    if let Some(server) = &wasmtime {
        sides.push(Contender::new(WASMTIME, server.place(), "python.test", PYTHON).await?);
    }
    let fields = json!({ "poolSize": PYTHON_WARM });
    let address = serve(&host, "python", &image, fields).await?;
    sides.push(Contender::new(WARM, place(&host), &address, PYTHON).await?);
    let (rates, cpu) = tables(options, &sides, "Python, 32 connections").await?;
    row.push(
        rates
            .peer(WASMTIME)
            .hope_over(WARM, WASMTIME, Bound::AtLeast(90.0)),
    );
    row.push(cpu);
    Ok(())
}

/// `wasmtime serve` with a component of this repository, if there is one.
async fn wasmtime(options: &Options, component: &str) -> Result<Option<Server>> {
    let Some(wasmtime) = &options.wasmtime else {
        return Ok(None);
    };
    let server = Server::wasmtime(wasmtime, &file(component)).await;
    server.context("failed to start `wasmtime serve`").map(Some)
}

/// Rates and CPU times of `sides`.
async fn tables(options: &Options, sides: &[Contender], what: &str) -> Result<(Table, Table)> {
    let turn = Turn::new(options.short);
    let figures = interleave(options.rounds, sides, async |_, side: &Contender| {
        side.measure(turn).await
    })
    .await?;
    let mut rates = Table::new("http", format!("requests per second, {what}"));
    let mut cpu = Table::new("http", format!("CPU time per request in µs, {what}"));
    for (side, rounds) in sides.iter().zip(figures) {
        let (rate, time) = rounds.into_iter().unzip();
        rates = rates.side(side.name, rate);
        cpu = cpu.side(side.name, time);
    }
    Ok((rates, cpu))
}
