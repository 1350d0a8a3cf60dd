//! Callers that add one to one key: through a component on two hosts, and bare.

use std::{cell::Cell, time::Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, kv};
use fleet::{
    http::get,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::future::try_join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Options, load,
    load::{CALLERS, ROUND_MAX},
    report::{Figure, interleave},
};

const HOST: &str = "counter.test";

/// The row `keyvalue`.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-counter").await?;
    let workload = Workload::new("counter")
        .component("counter", &image, json!({}))
        .interface("wasi:keyvalue/store,atomics@0.2.0-draft", &[])
        .http(HOST);
    let host = async || {
        let host = fleet.host(&["--log-level", "warn"]).await?;
        host.run_well(&workload).await?;
        anyhow::Ok(host)
    };
    let hosts = [host().await?, host().await?];
    let store = jetstream::new(fleet.nats.client().await?)
        .create_key_value(kv::Config {
            bucket: "bare".to_owned(),
            history: 1,
            ..Default::default()
        })
        .await?;
    let (wash, peer) = interleave(
        options.rounds,
        async |round| through_hosts(&hosts, &format!("key-{round}"), options.total).await,
        async |round| bare(&store, &format!("key-{round}"), options.total).await,
    )
    .await?;
    Ok(vec![Figure {
        row: "keyvalue",
        what: "additions per second",
        peer_name: "bare compare-and-swap",
        wash,
        peer,
    }])
}

/// One for each addition that is still to be begun.
struct Tickets(Cell<u64>);

impl Tickets {
    fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// Half of the callers on each host; gives additions per second.
async fn through_hosts(hosts: &[Washlet], key: &str, total: u64) -> Result<f64> {
    let ports: Vec<u16> = hosts.iter().map(Washlet::http_port).collect();
    let tickets = Tickets(Cell::new(total));
    let done = load::get_all(&ports, HOST, &format!("/{key}"), || tickets.take()).await?;
    for port in ports {
        let reply = get(port, HOST, &format!("/{key}?read")).await?;
        exact(reply.body.trim(), total)?;
    }
    Ok(done.rate())
}

/// All callers on one connection, as NATS clients are meant to be used; gives additions per second.
async fn bare(store: &kv::Store, key: &str, total: u64) -> Result<f64> {
    store.create(key, "0".into()).await?;
    let tickets = Tickets(Cell::new(total));
    let began = Instant::now();
    let callers = (0..CALLERS).map(async |_| {
        while tickets.take() {
            add(store, key).await?;
        }
        anyhow::Ok(())
    });
    timeout(ROUND_MAX, try_join_all(callers))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    let took = began.elapsed();
    let sum = store.get(key).await?.context("the key is gone")?;
    exact(std::str::from_utf8(&sum)?, total)?;
    Ok(load::rate(total, took))
}

/// Reads and writes until nobody came between; who fails, fails because another got on.
async fn add(store: &kv::Store, key: &str) -> Result<()> {
    loop {
        let entry = store.entry(key).await?.context("the key is gone")?;
        let sum: u64 = std::str::from_utf8(&entry.value)?.parse()?;
        let sum = (sum + 1).to_string();
        match store.update(key, sum.into(), entry.revision).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exact(sum: &str, total: u64) -> Result<()> {
    ensure!(
        sum.parse() == Ok(total),
        "{total} additions gave the sum \"{sum}\""
    );
    Ok(())
}
