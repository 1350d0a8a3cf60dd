//! Live configuration follows its bucket, whatever happens to the server.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream::{self, kv};
use capabilities::config::{BYTES_MAX, ConfigSource, Error, KEYS_MAX};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::nats::NatsServer;
use plugins_nats::Nats;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `test` while the plugin runs.
async fn with<T>(plugin: &Nats, test: impl Future<Output = T>) -> T {
    tokio::select! {
        () = plugin.run() => panic!("the plugin stopped"),
        done = test => done,
    }
}

async fn source(plugin: &Nats, pairs: &[(&str, &str)]) -> Result<Arc<dyn ConfigSource>, OpenError> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let settings: BTreeMap<_, _> = pairs.iter().map(owned).collect();
    let ask = Ask {
        namespace: "default",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&settings),
    };
    plugin.config(&ask).await
}

/// A bucket that nobody made through this host, and a source of it.
async fn app(server: &NatsServer, plugin: &Nats) -> (kv::Store, Arc<dyn ConfigSource>) {
    let jetstream = jetstream::new(server.client().await.unwrap());
    let bucket = kv::Config {
        bucket: "default__app".to_owned(),
        ..kv::Config::default()
    };
    let kv = jetstream.create_key_value(bucket).await.unwrap();
    let source = source(plugin, &[("bucket", "app")]).await.unwrap();
    (kv, source)
}

async fn until(what: &str, within: Duration, look: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !look().await {
        assert!(start.elapsed() < within, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn seen(source: &Arc<dyn ConfigSource>, value: &str, within: Duration) {
    until(value, within, async || {
        source.get("key").await.unwrap().as_deref() == Some(value)
    })
    .await;
}

/// Looks for so long, and always sees `value`.
async fn stays(source: &Arc<dyn ConfigSource>, value: &str, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(source.get("key").await.unwrap().as_deref(), Some(value));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_any_client_writes_is_seen() {
    let server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (kv, source) = app(&server, &plugin).await;
        let soon = Duration::from_secs(1);
        kv.put("key", "1".into()).await.unwrap();
        seen(&source, "1", soon).await;
        kv.purge("key").await.unwrap();
        until("purged", soon, async || {
            source.get("key").await.unwrap().is_none()
        })
        .await;
        // Quiet for longer than the server may be silent.
        kv.put("key", "2".into()).await.unwrap();
        seen(&source, "2", soon).await;
        stays(&source, "2", Duration::from_secs(12)).await;
        kv.put("key", "3".into()).await.unwrap();
        seen(&source, "3", soon).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_server_leaves_what_was_there_and_is_followed_when_it_is_back() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (kv, source) = app(&server, &plugin).await;
        for round in 0..3 {
            let before = format!("before {round}");
            kv.put("key", before.clone().into()).await.unwrap();
            seen(&source, &before, Duration::from_secs(10)).await;
            server.kill();
            stays(&source, &before, Duration::from_secs(1)).await;
            server.restart().await.unwrap();
            let after = format!("after {round}");
            let jetstream = jetstream::new(server.client().await.unwrap());
            let kv = jetstream.get_key_value("default__app").await.unwrap();
            until("written", DEADLINE, async || {
                kv.put("key", after.clone().into()).await.is_ok()
            })
            .await;
            seen(&source, &after, Duration::from_secs(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_hangs_is_followed_when_it_goes_on() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (kv, source) = app(&server, &plugin).await;
        kv.put("key", "before".into()).await.unwrap();
        seen(&source, "before", Duration::from_secs(1)).await;
        server.pause();
        // Longer than it may be silent: the copy is asked for anew, in vain.
        stays(&source, "before", Duration::from_secs(13)).await;
        server.resume();
        until("written", DEADLINE, async || {
            kv.put("key", "after".into()).await.is_ok()
        })
        .await;
        seen(&source, "after", Duration::from_secs(20)).await;
    })
    .await;
}

#[tokio::test]
async fn a_bucket_made_again_is_followed() {
    let server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (kv, source) = app(&server, &plugin).await;
        kv.put("key", "old".into()).await.unwrap();
        kv.put("other", "old".into()).await.unwrap();
        seen(&source, "old", Duration::from_secs(1)).await;
        let jetstream = jetstream::new(server.client().await.unwrap());
        jetstream.delete_key_value("default__app").await.unwrap();
        // It is not known to be meant: what was there stays.
        stays(&source, "old", Duration::from_secs(2)).await;
        let bucket = kv::Config {
            bucket: "default__app".to_owned(),
            ..kv::Config::default()
        };
        let kv = jetstream.create_key_value(bucket).await.unwrap();
        kv.put("key", "new".into()).await.unwrap();
        seen(&source, "new", Duration::from_secs(20)).await;
        assert_eq!(source.get("other").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn one_bucket_has_one_consumer_which_ends_with_its_last_reader() {
    let server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (_, source) = app(&server, &plugin).await;
        let mut others = Vec::new();
        for _ in 0..10 {
            others.push(self::source(&plugin, &[("bucket", "app")]).await.unwrap());
        }
        let jetstream = jetstream::new(server.client().await.unwrap());
        let stream = jetstream.get_stream("KV_default__app").await.unwrap();
        let consumers = async || stream.get_info().await.unwrap().state.consumer_count;
        assert_eq!(consumers().await, 1);
        drop((source, others));
        until("the consumer ended", DEADLINE, async || {
            consumers().await == 0
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_bucket_that_is_too_large_is_said_to_be() {
    let server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    with(&plugin, async {
        let (kv, source) = app(&server, &plugin).await;
        kv.put("key", "1".into()).await.unwrap();
        let part = "x".repeat(BYTES_MAX / 8);
        for n in 0..8 {
            kv.put(n.to_string(), part.clone().into()).await.unwrap();
        }
        until("too much", DEADLINE, async || source.all().await.is_err()).await;
        assert!(matches!(source.all().await, Err(Error::TooMuch)));
        // What has room is followed on.
        kv.put("key", "2".into()).await.unwrap();
        seen(&source, "2", Duration::from_secs(1)).await;
        let refused = self::source(&plugin, &[("bucket", "app")]).await;
        assert!(matches!(refused.map(drop), Err(OpenError::Storage(_))));
        kv.delete("3").await.unwrap();
        until("all have room", DEADLINE, async || {
            source
                .all()
                .await
                .is_ok_and(|all| all.len() == 8 && all.len() < KEYS_MAX)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn without_a_server_opening_ends_and_says_so() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    server.kill();
    with(&plugin, async {
        let refused = source(&plugin, &[("bucket", "app")]).await.map(drop);
        assert!(matches!(refused, Err(OpenError::Storage(_))), "{refused:?}");
    })
    .await;
}
