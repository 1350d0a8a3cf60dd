//! Live configuration from NATS.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream::{self, kv};
use fleet::{
    http::get,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use serde_json::json;

use crate::{HOST, app};

const STORE: &str = "wasi:config/store@0.2.0-rc.1";

/// How soon a change is promised to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// The bucket `name`, as an operator makes it with any NATS client.
async fn bucket(fleet: &Fleet, name: &str) -> Result<kv::Store> {
    let jetstream = jetstream::new(fleet.nats.client().await?);
    let config = kv::Config {
        bucket: name.to_owned(),
        ..kv::Config::default()
    };
    Ok(jetstream.create_key_value(config).await?)
}

async fn read(host: &Washlet, path: &str) -> Result<(u16, String)> {
    let reply = get(host.http_port(), HOST, path).await?;
    Ok((reply.status, reply.body))
}

/// Asks until `path` answers `body`, which must not take longer than `within`.
async fn seen(host: &Washlet, path: &str, body: &str, within: Duration) -> Result<()> {
    let start = Instant::now();
    until(within.max(SOON), &format!("{body:?} is seen"), async || {
        let answer = read(host, path).await.ok()?;
        (answer.1 == body).then_some(())
    })
    .await?;
    assert!(start.elapsed() < within, "after {:?}", start.elapsed());
    Ok(())
}

fn live(image: &str, fields: serde_json::Value, name: &str) -> Workload {
    let mut resources = json!({ "localResources": {
        "config": { "both": "component", "own": "1" },
    } });
    if let (Some(resources), Some(fields)) = (resources.as_object_mut(), fields.as_object()) {
        resources.extend(fields.clone());
    }
    let entry = [
        ("backend", "nats"),
        ("bucket", name),
        ("both", "entry"),
        ("shared-value", "2"),
    ];
    app("app", image, resources).interface(STORE, &entry)
}

/// C22: what is written into the bucket is read by the next call, on every host, warm instances included.
#[tokio::test]
async fn a_change_reaches_components_that_run() -> Result<()> {
    let fleet = Fleet::start().await?;
    let kv = bucket(&fleet, "default__app").await?;
    kv.put("both", "live".into()).await?;
    let image = fleet.push("config-reader").await?;
    let (fresh, warm) = tokio::try_join!(fleet.host(&[]), fleet.host(&[]))?;
    fresh.run_well(&live(&image, json!({}), "app")).await?;
    warm.run_well(&live(&image, json!({ "poolSize": 1 }), "app"))
        .await?;
    let layers = "both=live\nown=1\nshared-value=2\n";
    for host in [&fresh, &warm] {
        assert_eq!(read(host, "/").await?, (200, layers.to_owned()));
    }
    for round in 0..5 {
        let value = format!("round {round}");
        kv.put("both", value.clone().into()).await?;
        for host in [&fresh, &warm] {
            seen(host, "/both", &format!("{value}\n"), SEEN_WITHIN).await?;
        }
    }
    kv.put("new", "there".into()).await?;
    kv.delete("both").await?;
    let layers = "both=component\nnew=there\nown=1\nshared-value=2\n";
    for host in [&fresh, &warm] {
        seen(host, "/", layers, SEEN_WITHIN).await?;
    }
    Ok(())
}

/// C22: a bucket belongs to its namespace, unless it says that it is shared.
#[tokio::test]
async fn buckets_of_configuration_belong_to_their_namespace() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mine = bucket(&fleet, "default__app").await?;
    let everybodys = bucket(&fleet, "app").await?;
    mine.put("whose", "mine".into()).await?;
    everybodys.put("whose", "everybody's".into()).await?;
    let image = fleet.push("config-reader").await?;
    let host = fleet.host(&[]).await?;
    for (namespace, shared, expected) in [
        ("default", "false", (200, "mine\n")),
        ("other", "false", (404, "no value for \"whose\"\n")),
        ("other", "true", (200, "everybody's\n")),
    ] {
        let entry = [("backend", "nats"), ("bucket", "app"), ("shared", shared)];
        let workload = app("app", &image, json!({})).interface(STORE, &entry);
        host.run_well(&workload.with(json!({ "namespace": namespace })))
            .await?;
        let (status, body) = read(&host, "/whose").await?;
        assert_eq!((status, body.as_str()), expected, "{namespace} {shared}");
        host.stop("app").await?;
    }
    Ok(())
}

/// C22: with the storage killed, components read what was there last; with it back, what is there now.
#[tokio::test]
async fn configuration_outlives_its_storage() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let kv = bucket(&fleet, "default__app").await?;
    kv.put("both", "before".into()).await?;
    let image = fleet.push("config-reader").await?;
    let host = fleet.host(&[]).await?;
    host.run_well(&live(&image, json!({ "poolSize": 2 }), "app"))
        .await?;
    fleet.nats.kill();
    for _ in 0..20 {
        assert_eq!(read(&host, "/both").await?, (200, "before\n".to_owned()));
    }
    fleet.nats.restart().await?;
    let kv = until(SOON, "the bucket is back", async || {
        let kv = bucket(&fleet, "default__app").await.ok()?;
        kv.put("both", "after".into()).await.ok().map(|_| kv)
    })
    .await?;
    // The host first has to find its way back.
    seen(&host, "/both", "after\n", Duration::from_secs(20)).await?;
    kv.put("both", "as ever".into()).await?;
    seen(&host, "/both", "as ever\n", SEEN_WITHIN).await
}

/// C22: what cannot be followed is an error of the start.
#[tokio::test]
async fn a_bucket_that_is_not_there_is_refused_if_it_is_not_to_be_made() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("config-reader").await?;
    let host = fleet.host(&[]).await?;
    let entry = [("backend", "nats"), ("bucket", "app"), ("create", "false")];
    let workload = app("app", &image, json!({})).interface(STORE, &entry);
    let status = host.run(&workload).await?;
    assert!(
        status.message.contains("bucket 'app' does not exist"),
        "{status:?}"
    );
    Ok(())
}
