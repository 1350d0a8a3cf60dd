//! `wasmcloud:messaging` with durable delivery, on NATS and on Postgres.

use anyhow::{Context, Result};
use fleet::{
    http::send,
    postgres::PostgresServer,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    HOST,
    admin::{ADMIN, sample},
    one_host,
};

const MESSAGING: &str = "wasmcloud:messaging/consumer,handler@0.2.0";

/// What keeps messages, and how an entry says so.
enum Keeper {
    Nats,
    Postgres(PostgresServer),
}

impl Keeper {
    fn entry(&self, stream: &'static str) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Nats => vec![("delivery", "durable"), ("stream", stream)],
            Self::Postgres(_) => vec![("backend", "postgres")],
        }
    }

    async fn host(&self, fleet: &Fleet) -> Result<Washlet> {
        match self {
            Self::Nats => fleet.host(&ADMIN).await,
            Self::Postgres(server) => {
                let url = server.url();
                let postgres = ["--postgres-url", url.as_str()];
                fleet.host(&[&ADMIN[..], &postgres].concat()).await
            }
        }
    }
}

/// A replica of a workload that hears what `config` says; all have one name.
fn listener(id: &str, image: &str, config: &[(&str, &str)]) -> Workload {
    Workload::new(id)
        .component("messenger", image, json!({}))
        .with(json!({ "name": "listener" }))
        .interface(MESSAGING, config)
        .http(HOST)
}

async fn publish(host: &Washlet, subject: &str, body: &str) -> Result<()> {
    let path = format!("/publish?subject={subject}");
    let reply = send(host.http_port(), HOST, Method::POST, &path, body.to_owned()).await?;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    Ok(())
}

async fn says(host: &Washlet, words: &str) -> Result<()> {
    until(SOON, words, async || {
        host.log().contains(words).then_some(())
    })
    .await
}

/// A component that fails a message is given it again, and at last it is a dead letter, which another hears.
async fn what_fails_comes_again(keeper: Keeper) -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("messenger").await?;
    let host = keeper.host(&fleet).await?;
    let mut config = keeper.entry("tasks");
    config.extend([
        ("subscriptions", "tasks.>"),
        ("max_deliver", "2"),
        ("backoff", "200ms"),
        ("dead_letter", "dead.tasks"),
    ]);
    host.run_well(&listener("w", &image, &config)).await?;
    publish(&host, "tasks.bad", "refuse:hello").await?;
    publish(&host, "tasks.good", "slow:0").await?;
    let came = async |outcome: &str, count: u64| {
        let name = format!("washlet_messages_total{{outcome=\"{outcome}\"}}");
        until(SOON, outcome, async || {
            (sample(&host, &name).await.ok()? == count).then_some(())
        })
        .await
    };
    came("dead_letter", 1).await?;
    came("failed", 2).await?;
    came("handled", 1).await?;
    says(&host, "done tasks.good").await?;
    host.stop("w").await?;

    let mut config = keeper.entry("tasks-dead");
    config.push(("subscriptions", "dead.tasks"));
    let dead = listener("dead", &image, &config).with(json!({ "name": "dead" }));
    host.run_well(&dead).await?;
    says(&host, "dead.tasks: hello").await?;
    came("handled", 2).await?;
    came("dropped", 0).await
}

#[tokio::test]
async fn what_fails_comes_again_on_nats() -> Result<()> {
    what_fails_comes_again(Keeper::Nats).await
}

#[tokio::test]
async fn what_fails_comes_again_on_postgres() -> Result<()> {
    what_fails_comes_again(Keeper::Postgres(PostgresServer::start().await?)).await
}

/// A host that is killed while it handles a message leaves it to another, which handles it to the end.
async fn a_killed_host_leaves_its_messages(keeper: Keeper) -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("messenger").await?;
    let (mut a, b) = tokio::try_join!(keeper.host(&fleet), keeper.host(&fleet))?;
    let mut config = keeper.entry("tasks");
    config.extend([("subscriptions", "tasks.>"), ("ack_wait", "1s")]);
    a.run_well(&listener("w-a", &image, &config)).await?;
    publish(&a, "tasks.1", "slow:2500").await?;
    says(&a, "began tasks.1").await?;
    b.run_well(&listener("w-b", &image, &config)).await?;
    publish(&b, "tasks.2", "slow:0").await?;
    assert!(!b.log().contains("tasks.1"), "{}", b.log());
    a.kill();
    says(&b, "done tasks.1").await?;
    assert!(!a.log().contains("done tasks.1"), "{}", a.log());
    Ok(())
}

#[tokio::test]
async fn a_killed_host_leaves_its_messages_on_nats() -> Result<()> {
    a_killed_host_leaves_its_messages(Keeper::Nats).await
}

#[tokio::test]
async fn a_killed_host_leaves_its_messages_on_postgres() -> Result<()> {
    a_killed_host_leaves_its_messages(Keeper::Postgres(PostgresServer::start().await?)).await
}

/// A message that takes longer than `ack_wait` is handled once; a stop waits for it, and what is not begun then
/// is another host's.
#[tokio::test]
async fn what_takes_long_is_handled_once() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("messenger").await?;
    let (a, b) = tokio::try_join!(fleet.host(&ADMIN), fleet.host(&ADMIN))?;
    let config = [
        ("delivery", "durable"),
        ("stream", "tasks"),
        ("subscriptions", "tasks.>"),
        ("ack_wait", "1s"),
        ("max_in_flight", "1"),
    ];
    a.run_well(&listener("w-a", &image, &config)).await?;
    publish(&a, "tasks.1", "slow:3000").await?;
    for n in 2..=5 {
        publish(&a, &format!("tasks.{n}"), "slow:0").await?;
    }
    says(&a, "began tasks.1").await?;
    b.run_well(&listener("w-b", &image, &config)).await?;
    for n in 2..=5 {
        says(&b, &format!("done tasks.{n}")).await?;
    }
    a.stop("w-a").await?;
    assert!(a.log().contains("done tasks.1"), "{}", a.log());
    assert!(!b.log().contains("tasks.1"), "{}", b.log());
    assert!(!a.log().contains("tasks.2"), "{}", a.log());
    Ok(())
}

/// An asynchronous component rejects a message at once; whoever reads dead letters is told why.
#[tokio::test]
async fn a_rejected_message_is_a_dead_letter_that_says_why() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("courier").await?;
    let config = [
        ("delivery", "durable"),
        ("stream", "letters"),
        ("subscriptions", "letters.>"),
        ("dead_letter", "dead.letters"),
    ];
    let courier = Workload::new("courier")
        .component("courier", &image, json!({}))
        .interface("wasmcloud:messaging/consumer,handler@0.3.0", &config)
        .interface("wasmcloud:blobstore/blobstore,container,types@0.1.0", &[])
        .interface("wasmcloud:secrets/store,reveal@2.1.0", &[]);
    host.run_well(&courier).await?;
    let mut dead = host.nats().subscribe("dead.>").await?;
    host.nats().publish("letters.a", "reject".into()).await?;
    let letter = timeout(SOON, dead.next()).await?.context("a dead letter")?;
    assert_eq!(&letter.payload[..], b"reject");
    let headers = letter.headers.context("headers")?;
    for (name, value) in [
        ("Washlet-Subject", "letters.a"),
        ("Washlet-Reason", "rejected"),
        ("Washlet-Deliveries", "1"),
    ] {
        let found = headers.get(name).map(|found| found.as_str());
        assert_eq!(found, Some(value), "{name}");
    }
    Ok(())
}

/// What cannot be meant is refused at the start, with the key and what to do.
#[tokio::test]
async fn an_entry_that_cannot_be_meant_is_refused() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("messenger").await?;
    let durable = [("delivery", "durable"), ("stream", "s")];
    let with = |more: &[(&'static str, &'static str)]| [&durable[..], more].concat();
    for (config, words) in [
        (
            vec![("ack_wait", "5s")],
            "'ack_wait' is for durable delivery",
        ),
        (
            vec![("backend", "memory"), ("delivery", "durable")],
            "does not offer durable delivery; 'nats' and 'postgres' do",
        ),
        (
            vec![("delivery", "durable")],
            "config key 'stream' must be the name of a stream",
        ),
        (
            with(&[("consumer_group", "broadcast")]),
            "cannot be durable: name a group",
        ),
        (with(&[("admission_wait", "5s")]), "leave it out"),
        (
            with(&[("max_delivery", "5")]),
            "unknown config keys: max_delivery (known: ack_wait,",
        ),
        (
            with(&[("dead_letter", "tasks.dead")]),
            "dead letters would come again for ever",
        ),
        (with(&[("create", "false")]), "stream 's' does not exist"),
    ] {
        let config = [&[("subscriptions", "tasks.>")], &config[..]].concat();
        let status = host.run(&listener("w", &image, &config)).await?;
        assert_eq!(status.state, "ERROR", "{config:?}");
        assert!(status.message.contains(words), "{}", status.message);
        host.stop("w").await?;
    }
    Ok(())
}
