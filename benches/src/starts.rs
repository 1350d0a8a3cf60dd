//! Starts of one image that is in the cache, all at once, beside bare requests of the same bytes.

use std::time::{Duration, Instant};

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
    Options, load,
    load::ROUND_MAX,
    report::{Figure, interleave},
};

/// How many batches are timed together in one round: one takes too little.
const BATCHES: u64 = 20;

/// A bare request takes still less.
const REQUESTS_PER_START: u64 = 10;

/// The subject of bare requests.
const SUBJECT: &str = "bare";

/// The row `starts`.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let (count, batches) = if options.short {
        (20, 1)
    } else {
        (200, BATCHES)
    };
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    let host = fleet.host(&["--log-level", "warn"]).await?;
    let workload = |id: String| {
        let name = format!("{id}.test");
        Workload::new(&id)
            .component("hello", &image, json!({}))
            .http(&name)
    };
    // The one that pulls and compiles.
    host.run_well(&workload("first".to_owned())).await?;
    let (asker, answerer) = (fleet.nats.client().await?, fleet.nats.client().await?);
    let payload = workload("bare".to_owned()).request().to_string();
    let (wash, peer) = interleave(
        options.rounds,
        async |round| {
            let mut took = Duration::ZERO;
            for batch in 0..batches {
                let workloads = (0..count).map(|n| workload(format!("w-{round}-{batch}-{n}")));
                took += starts(&host, &workloads.collect::<Vec<_>>()).await?;
            }
            Ok(load::rate(count * batches, took))
        },
        async |_| {
            let batches = batches * REQUESTS_PER_START;
            let took = bare(&asker, &answerer, &payload, count, batches).await?;
            Ok(load::rate(count * batches, took))
        },
    )
    .await?;
    Ok(vec![Figure {
        row: "starts",
        what: "starts per second",
        peer_name: "bare NATS requests",
        wash,
        peer,
    }])
}

/// Starts all and, when the last of them runs, stops them; gives how long the starts took.
async fn starts(host: &Washlet, workloads: &[Workload]) -> Result<Duration> {
    let began = Instant::now();
    let started = workloads.iter().map(|workload| host.run_well(workload));
    timeout(ROUND_MAX, try_join_all(started))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    let took = began.elapsed();
    try_join_all(workloads.iter().map(|workload| host.stop(&workload.id))).await?;
    Ok(took)
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
