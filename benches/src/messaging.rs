//! Messages that are sent back: by a component on a host, and by a client of NATS.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fleet::{process::Process, wait, washlet::Fleet, workload::Workload};
use futures::{StreamExt, future::try_join_all};
use serde_json::json;
use tokio::{runtime::Builder, time::timeout};

use crate::{
    Options, load,
    load::{CALLERS, ROUND_MAX, Tickets, Times},
    proc,
    report::{Row, Table, interleave},
};

/// What is sent back.
const PAYLOAD: &str = "sixty-four bytes, which is what many messages have, more or less";

/// Where the client of NATS listens.
const BARE: &str = "bare.echo";
const CLIENT: &str = "async-nats";
const HOST: &str = "wash host";

/// The row `messaging`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("echo-messaging").await?;
    let host = fleet.host(&[]).await?;
    let workload = Workload::new("echo")
        .component("echo", &image, json!({}))
        .interface(
            "wasmcloud:messaging/handler,consumer@0.2.0",
            &[("subscriptions", "bench.echo")],
        );
    host.run_well(&workload).await?;
    let this = env::current_exe()?;
    let peer = Process::start(&this, ["peer-echo", &fleet.nats.url()], &[])?;
    let client = fleet.nats.client().await?;
    wait::until(wait::SOON, "the peer answers", async || {
        client.request(BARE, "".into()).await.ok()
    })
    .await?;
    let total = options.total;
    let sides = [(HOST, host.pid(), "bench.echo"), (CLIENT, peer.id(), BARE)];
    let figures = interleave(options.rounds, &sides, async |_, (_, pid, subject)| {
        let before = proc::cpu(*pid)?;
        let (rate, times) = ask(&client, subject, total).await?;
        let used = proc::cpu(*pid)?.saturating_sub(before);
        let used = used.as_secs_f64() * 1e6 / load::real(total);
        Ok([rate, used, times.percentile(50), times.percentile(99)])
    })
    .await?;
    let mut row = Row::default();
    let what = [
        "messages sent back per second, 32 under way",
        "CPU time per message in µs",
        "p50 in µs",
        "p99 in µs",
    ];
    for (place, what) in what.into_iter().enumerate() {
        let mut table = Table::new("messaging", what);
        for ((name, ..), rounds) in sides.iter().zip(&figures) {
            let rounds = rounds.iter().filter_map(|round| round.get(place).copied());
            table = table.side(*name, rounds.collect());
        }
        row.push(table.peer(CLIENT));
    }
    Ok(row)
}

/// Asks `total` times, 32 at once; gives the rate, and how long each took.
async fn ask(client: &async_nats::Client, subject: &str, total: u64) -> Result<(f64, Times)> {
    let tickets = Tickets::new(total);
    let began = Instant::now();
    let callers = (0..CALLERS).map(async |_| {
        let mut times = Vec::new();
        while tickets.take() {
            let sent = Instant::now();
            let reply = client.request(subject.to_owned(), PAYLOAD.into()).await?;
            ensure!(reply.payload == PAYLOAD, "another message came back");
            times.push(sent.elapsed());
        }
        anyhow::Ok(times)
    });
    let times: Vec<Vec<Duration>> = timeout(ROUND_MAX, try_join_all(callers))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    let rate = load::rate(total, began.elapsed());
    Ok((rate, Times::new(times.concat())))
}

/// The peer: sends messages back until it is killed.
///
/// # Errors
/// When the NATS server is not there, or goes away.
pub(crate) fn echo(url: &str) -> Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = async_nats::connect(url).await?;
        let mut messages = client.subscribe(BARE).await?;
        while let Some(message) = messages.next().await {
            let reply = message.reply.context("a request wants a reply")?;
            client.publish(reply, message.payload).await?;
        }
        Ok(())
    })
}
