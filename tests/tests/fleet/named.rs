//! Several backends of one interface in one workload.

use anyhow::{Context, Result};
use async_nats::jetstream;
use fleet::{http::send, wait::SOON, washlet::Washlet};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app, one_host};

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft";

async fn put(host: &Washlet, path: &str, value: &str) -> Result<u16> {
    let reply = send(host.http_port(), HOST, Method::PUT, path, value.to_owned()).await?;
    Ok(reply.status)
}

async fn get(host: &Washlet, path: &str) -> Result<(u16, String)> {
    let reply = send(host.http_port(), HOST, Method::GET, path, String::new()).await?;
    Ok((reply.status, reply.body))
}

/// C20: labels and names of buckets choose the backend; what is written where is where it belongs.
#[tokio::test]
async fn labels_and_names_choose_the_backend() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("stores").await?;
    let workload = app("app", &image, json!({}))
        .interface(STORE, &[("backend", "nats")])
        .named_interface("cache", STORE, &[("backend", "memory")])
        .named_interface(
            "archive",
            STORE,
            &[("backend", "nats"), ("bucket", "old"), ("history", "3")],
        );
    host.run_well(&workload).await?;
    // The same bucket and key through three imports.
    for import in ["plain", "cache", "archive"] {
        let path = format!("/{import}/b/key");
        assert_eq!(put(&host, &path, import).await?, 204, "{import}");
    }
    assert_eq!(get(&host, "/cache/b/key").await?.1, "cache");
    // Both on NATS, in one namespace: the last of them.
    for import in ["plain", "archive"] {
        assert_eq!(get(&host, &format!("/{import}/b/key")).await?.1, "archive");
    }
    let jetstream = jetstream::new(fleet.nats.client().await?);
    let kv = jetstream.get_key_value("default__b").await?;
    assert_eq!(kv.get("key").await?.as_deref(), Some(&b"archive"[..]));

    // A bucket called as an entry is: that entry, through the plain import, too.
    assert_eq!(put(&host, "/plain/cache/key", "in memory").await?, 204);
    assert_eq!(get(&host, "/cache/cache/key").await?.1, "in memory");
    assert!(jetstream.get_key_value("default__cache").await.is_err());
    assert_eq!(put(&host, "/plain/archive/key", "kept").await?, 204);
    assert_eq!(get(&host, "/archive/archive/key").await?.1, "kept");
    let kv = jetstream.get_key_value("default__old").await?;
    assert_eq!(kv.get("key").await?.as_deref(), Some(&b"kept"[..]));
    assert_eq!(kv.status().await?.history(), 3);
    // A label reaches its own entry alone.
    assert_eq!(
        put(&host, "/cache/archive/key", "a bucket in memory").await?,
        204
    );
    assert_eq!(get(&host, "/plain/archive/key").await?.1, "kept");
    Ok(())
}

/// C20: labels work for blobs, messages and configuration, too.
#[tokio::test]
async fn labels_of_all_that_has_backends() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("outlets").await?;
    let jetstream = jetstream::new(fleet.nats.client().await?);
    let bucket = jetstream::kv::Config {
        bucket: "default__app".to_owned(),
        ..jetstream::kv::Config::default()
    };
    let kv = jetstream.create_key_value(bucket).await?;
    kv.put("key", "live".into()).await?;
    let live = [("backend", "nats"), ("bucket", "app"), ("own", "entry")];
    let workload = app("app", &image, json!({}))
        .named_interface("settings", "wasi:config/store@0.2.0-rc.1", &live)
        .named_interface("outbox", "wasmcloud:messaging/consumer", &[])
        .named_interface(
            "files",
            "wasi:blobstore/blobstore",
            &[("backend", "memory")],
        );
    host.run_well(&workload).await?;
    assert_eq!(get(&host, "/config/key").await?, (200, "live".to_owned()));
    assert_eq!(get(&host, "/config/own").await?, (200, "entry".to_owned()));
    assert_eq!(get(&host, "/config/bucket").await?.0, 404);

    let client = fleet.nats.client().await?;
    let mut inbox = client.subscribe("outlets.a").await?;
    // A round trip: the subscription is in force.
    let _ = client.request("nobody.listens", "".into()).await;
    let sent = send(
        host.http_port(),
        HOST,
        Method::POST,
        "/message/outlets.a",
        "hello".to_owned(),
    )
    .await?;
    assert_eq!(sent.status, 204, "{}", sent.body);
    let message = tokio::time::timeout(SOON, inbox.next()).await?;
    assert_eq!(message.context("no message")?.payload, "hello");

    let made = send(
        host.http_port(),
        HOST,
        Method::POST,
        "/container/c",
        String::new(),
    )
    .await?;
    assert_eq!(made.status, 204, "{}", made.body);
    assert_eq!(get(&host, "/container/c").await?, (200, "true".to_owned()));
    // It is in memory.
    assert!(jetstream.get_object_store("default__c").await.is_err());
    Ok(())
}

/// C20: what is missing or misspelt is named, with what to do.
#[tokio::test]
async fn what_is_missing_or_misspelt_is_named() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("stores").await?;
    let both = app("app", &image, json!({}))
        .interface(STORE, &[])
        .named_interface("cache", STORE, &[]);
    let status = host.run(&both).await?;
    for part in [
        "no wasi:keyvalue backend bound for import 'archive'",
        "{name: archive, namespace: wasi, package: keyvalue, interfaces: [store]}",
    ] {
        assert!(status.message.contains(part), "{}", status.message);
    }
    host.stop("app").await?;
    let misspelt = both.named_interface("archive", STORE, &[("bukket", "s3cret")]);
    let status = host.run(&misspelt).await?;
    for part in [
        "archive",
        "bukket",
        "known: backend, bucket, create, history",
    ] {
        assert!(status.message.contains(part), "{}", status.message);
    }
    assert!(!status.message.contains("s3cret"), "{}", status.message);
    Ok(())
}
