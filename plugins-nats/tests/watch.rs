//! Watches of buckets, when the connection or the bucket goes away.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream;
use capabilities::keyvalue::{Changes, Guard, KeyValueStore, Put};
use capabilities::plugin::{Ask, Plugin, Settings};
use fleet::nats::NatsServer;
use fleet::proxy::Proxy;
use futures::StreamExt;
use plugins_nats::Nats;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

async fn store(url: &str) -> Arc<dyn KeyValueStore> {
    let plugin = Nats::new(async_nats::connect(url).await.unwrap());
    let settings = BTreeMap::new();
    let ask = Ask {
        namespace: "default",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&settings),
    };
    plugin.keyvalue(&ask).await.unwrap()
}

async fn set(store: &Arc<dyn KeyValueStore>, key: &str) {
    let put = Put {
        key,
        value: "value".into(),
        guard: Guard::Any,
        ttl: None,
    };
    store.put("b", put).await.unwrap();
}

/// Waits until all of `keys` are told.
async fn told(changes: &mut Changes, keys: &[&str]) {
    let mut untold: BTreeSet<&str> = keys.iter().copied().collect();
    while !untold.is_empty() {
        let key = tokio::time::timeout(DEADLINE, changes.next()).await;
        untold.remove(key.unwrap().unwrap().as_str());
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let server = NatsServer::start().await.unwrap();
    let proxy = Proxy::start(&server.address()).await.unwrap();
    let near = store(&server.url()).await;
    let far = store(&format!("nats://{}", proxy.address())).await;
    near.open("b").await.unwrap();
    set(&near, "before").await;
    let mut changes = far.watch("b").await.unwrap();
    set(&near, "first").await;
    assert_eq!(changes.next().await.as_deref(), Some("first"));
    proxy.pause();
    for key in ["one", "two", "three"] {
        set(&near, key).await;
    }
    near.delete("b", "first").await.unwrap();
    proxy.cut();
    proxy.resume();
    told(&mut changes, &["one", "two", "three", "first"]).await;
    // A bucket that is made anew is another, whose changes are told all the same.
    let jetstream = jetstream::new(server.client().await.unwrap());
    jetstream.delete_key_value("default__b").await.unwrap();
    while near.open("b").await.is_err() || near.get("b", "one").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    set(&near, "anew").await;
    told(&mut changes, &["anew"]).await;
}
