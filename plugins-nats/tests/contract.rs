//! The NATS plugin keeps the contract, against a real server with JetStream.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream;
use bytes::Bytes;
use capabilities::contract;
use capabilities::keyvalue::{Error, Guard, KeyRange, KeyValueStore, Put, counter};
use capabilities::messaging::{self, Message};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::nats::NatsServer;
use futures::future::{join_all, select_all};
use futures::{FutureExt, StreamExt};
use plugins_nats::Nats;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

async fn plugin(server: &NatsServer) -> Nats {
    Nats::new(server.client().await.unwrap())
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn ask(
    plugin: &Nats,
    settings: &BTreeMap<String, String>,
) -> Result<Arc<dyn KeyValueStore>, OpenError> {
    let settings = Settings::new(settings);
    let (namespace, workload, component) = ("default", "tests", "tests");
    let ask = Ask {
        namespace,
        workload,
        component,
        flat_names: false,
        settings,
    };
    let store = plugin.keyvalue(&ask).await?;
    ask.settings.finish()?;
    Ok(store)
}

async fn store(plugin: &Nats) -> Arc<dyn KeyValueStore> {
    ask(plugin, &BTreeMap::new()).await.unwrap()
}

fn put<'a>(key: &'a str, value: &str) -> Put<'a> {
    Put {
        key,
        value: Bytes::from(value.to_owned()),
        guard: Guard::Any,
        ttl: None,
    }
}

#[tokio::test]
async fn keyvalue() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let settings = BTreeMap::new();
    contract::keyvalue::run(&plugin, &settings).await.unwrap();
    contract::keyvalue::run_bounds(&plugin, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn keyvalue_in_memory() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let settings = settings(&[("storage", "memory")]);
    contract::keyvalue::run(&plugin, &settings).await.unwrap();
    contract::keyvalue::run_bounds(&plugin, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn keyvalue_with_history() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let settings = settings(&[("history", "5")]);
    contract::keyvalue::run(&plugin, &settings).await.unwrap();
    contract::keyvalue::run_bounds(&plugin, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn buckets_that_are_full() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::keyvalue::run_max_bytes(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn watches() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::keyvalue::run_watch(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn config() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::config::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn config_with_history_in_memory() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let settings = settings(&[("history", "5"), ("storage", "memory")]);
    contract::config::run(&plugin, &settings).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messaging() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::messaging::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn buckets_are_made_as_configured_and_used_as_they_are() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let configured = settings(&[
        ("history", "3"),
        ("replicas", "1"),
        ("ttl", "2h"),
        ("max_bytes", "1000000"),
        ("storage", "memory"),
    ]);
    ask(&plugin, &configured)
        .await
        .unwrap()
        .open("b_1")
        .await
        .unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    // The encoded name is part of what is stored: it must not change.
    let config = jetstream
        .get_stream("KV_default__b_5F1")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert_eq!(config.max_messages_per_subject, 3);
    assert_eq!(config.num_replicas, 1);
    assert_eq!(config.max_age, Duration::from_secs(2 * 60 * 60));
    assert_eq!(config.max_bytes, 1_000_000);
    assert_eq!(config.storage, jetstream::stream::StorageType::Memory);

    // Another plugin with other settings uses it as it is.
    let other = store(&Nats::new(server.client().await.unwrap())).await;
    other.open("b_1").await.unwrap();
    other.put("b_1", put("a key", "value")).await.unwrap();
    let kv = jetstream.get_key_value("default__b_5F1").await.unwrap();
    assert_eq!(kv.get("=x=a=20key").await.unwrap().unwrap(), "value");
    assert_eq!(kv.status().await.unwrap().history(), 3);
}

#[tokio::test]
async fn hosts_that_create_a_bucket_at_once_all_get_it() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let stores = join_all((1..=8).map(|i| {
        let (plugin, history) = (&plugin, i.to_string());
        async move {
            ask(plugin, &settings(&[("history", &history)]))
                .await
                .unwrap()
        }
    }))
    .await;
    for opened in join_all(stores.iter().map(|store| store.open("b"))).await {
        opened.unwrap();
    }
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    for (key, value) in [
        ("create", "maybe"),
        ("history", "0"),
        ("history", "65"),
        ("replicas", "6"),
        ("ttl", "soon"),
        ("max_bytes", "-1"),
        ("storage", "tape"),
    ] {
        let refused = ask(&plugin, &settings(&[(key, value)])).await.map(drop);
        assert!(
            matches!(refused, Err(OpenError::Setting { key: k, .. }) if k == key),
            "{key}"
        );
    }
}

#[tokio::test]
async fn buckets_without_ttl_of_their_own_say_so() {
    let server = NatsServer::start().await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    let bucket = "default__old".to_owned();
    let config = jetstream::kv::Config {
        bucket,
        ..Default::default()
    };
    jetstream.create_key_value(config).await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("old").await.unwrap();
    let ttl = Some(Duration::from_secs(1));
    let refused = store
        .put(
            "old",
            Put {
                ttl,
                ..put("key", "value")
            },
        )
        .await;
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    store.put("old", put("key", "value")).await.unwrap();
    store.delete("old", "key").await.unwrap();
    assert_eq!(store.get("old", "key").await.unwrap(), None);
}

#[tokio::test]
async fn a_bucket_deleted_by_others_can_be_opened_again() {
    let server = NatsServer::start().await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    store.put("b", put("key", "value")).await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    jetstream.delete_key_value("default__b").await.unwrap();
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    for gone in [
        store.get("b", "key").await.map(drop),
        store.put("b", put("key", "value")).await.map(drop),
        store.keys("b", range).await.map(drop),
        store.increment("b", "key", 1).await.map(drop),
    ] {
        assert!(
            matches!(&gone, Err(Error::NoSuchBucket(name)) if name == "b"),
            "{gone:?}"
        );
    }
    store.open("b").await.unwrap();
    assert_eq!(store.get("b", "key").await.unwrap(), None);
}

#[tokio::test]
async fn the_server_says_how_large_values_may_be() {
    let server = NatsServer::start_with("max_payload: 65536").await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    let bytes_max = 65_536 - 8192;
    store
        .put("b", put("key", &"v".repeat(bytes_max)))
        .await
        .unwrap();
    let refused = store.put("b", put("key", &"v".repeat(bytes_max + 1))).await;
    assert!(matches!(refused, Err(Error::TooLarge { bytes_max: max, .. }) if max == bytes_max));
}

#[tokio::test]
async fn listings_go_on_beyond_what_is_kept_of_them() {
    const KEYS: usize = 10_050;
    let server = NatsServer::start().await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    for keys in (0..KEYS).collect::<Vec<_>>().chunks(500) {
        let writes = keys.iter().map(|i| {
            let key = format!("{i:06}");
            let store = &store;
            async move { store.put("b", put(&key, "")).await.unwrap() }
        });
        join_all(writes).await;
    }
    let mut keys: Vec<String> = Vec::new();
    loop {
        let range = KeyRange {
            prefix: "",
            after: keys.last().map(String::as_str),
            limit: 4000,
        };
        let page = store.keys("b", range).await.unwrap();
        keys.extend(page.keys);
        if !page.more {
            break;
        }
    }
    assert_eq!(
        keys,
        (0..KEYS).map(|i| format!("{i:06}")).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_of_two_hosts_are_exact() {
    const CALLERS: usize = 32;
    const CALLS: usize = 100;
    let server = NatsServer::start().await.unwrap();
    let stores = [
        store(&plugin(&server).await).await,
        store(&plugin(&server).await).await,
    ];
    for store in &stores {
        store.open("b").await.unwrap();
    }
    let callers = (0..CALLERS).map(|caller| {
        let store = &stores[caller % 2];
        async move {
            let mut sums = Vec::new();
            for _ in 0..CALLS {
                sums.push(store.increment("b", "key", 1).await.unwrap());
            }
            assert!(sums.is_sorted());
            sums
        }
    });
    let sums: BTreeSet<i64> = join_all(callers).await.concat().into_iter().collect();
    let total = (CALLERS * CALLS) as i64;
    assert_eq!(sums, (1..=total).collect());
    let entry = stores[0].get("b", "key").await.unwrap().unwrap();
    assert_eq!(entry.value, counter::encode(total));
}

/// Cancelled callers take nobody with them: each round one of several callers finishes and the others
/// are dropped wherever they are, while callers that are never cancelled count along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_increments_neither_lose_nor_hang_others() {
    const STEADY: i64 = 8;
    const CALLS: i64 = 50;
    let server = NatsServer::start().await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    let done = AtomicBool::new(false);
    let cancelling = async {
        let mut dropped = 0;
        while !done.load(Ordering::Relaxed) {
            let calls = (0..5).map(|_| store.increment("b", "key", 1_000_000));
            let (sum, _, others) = select_all(calls).await;
            sum.unwrap();
            dropped += others.len();
        }
        dropped
    };
    let counting = async {
        let steady = (0..STEADY).map(|_| async {
            for _ in 0..CALLS {
                store.increment("b", "key", 1).await.unwrap();
            }
        });
        join_all(steady).await;
        done.store(true, Ordering::Relaxed);
    };
    let both = async { tokio::join!(cancelling, counting) };
    let (dropped, ()) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert!(dropped > 0);
    // Of the cancelled ones any number may have been added, of the others exactly all.
    let sum = store.increment("b", "key", 0).await.unwrap();
    assert_eq!(sum % 1_000_000, STEADY * CALLS);
}

/// A caller dropped before it was ever polled again leaves the line, and the next one goes on.
#[tokio::test]
async fn a_line_of_cancelled_callers_is_left_behind() {
    let server = NatsServer::start().await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    for _ in 0..100 {
        assert!(
            store
                .increment("b", "key", 1_000_000)
                .now_or_never()
                .is_none()
        );
    }
    let sum = tokio::time::timeout(DEADLINE, store.increment("b", "key", 1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(sum % 1_000_000, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = NatsServer::start_with("").await.unwrap();
    let store = store(&plugin(&server).await).await;
    store.open("b").await.unwrap();
    let stop = AtomicBool::new(false);
    let failed = AtomicBool::new(false);
    // Puts of distinct keys, and one counter.
    let work = async {
        let (mut acknowledged, mut sums, mut after_failure) = (Vec::new(), Vec::new(), 0);
        for i in 0.. {
            let key = format!("key{i}");
            match store.put("b", put(&key, &key)).await {
                Ok(_) => acknowledged.push(key),
                Err(Error::Timeout(_) | Error::Unavailable(_)) => {
                    failed.store(true, Ordering::Relaxed)
                }
                Err(error) => panic!("{error:?}"),
            }
            match store.increment("b", "counter", 1).await {
                Ok(sum) => {
                    sums.push(sum);
                    after_failure += u32::from(failed.load(Ordering::Relaxed));
                }
                Err(Error::Timeout(_) | Error::Unavailable(_)) => {
                    failed.store(true, Ordering::Relaxed)
                }
                Err(error) => panic!("{error:?}"),
            }
            if stop.load(Ordering::Relaxed) && after_failure > 20 {
                break;
            }
        }
        (acknowledged, sums)
    };
    let kill = async {
        let start = Instant::now();
        loop {
            let range = KeyRange {
                prefix: "key",
                after: None,
                limit: 50,
            };
            if store
                .keys("b", range)
                .await
                .is_ok_and(|page| page.keys.len() == 50)
            {
                break;
            }
            assert!(start.elapsed() < DEADLINE);
        }
        server.kill();
        while !failed.load(Ordering::Relaxed) {
            assert!(start.elapsed() < DEADLINE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.restart().await.unwrap();
        stop.store(true, Ordering::Relaxed);
    };
    let ((acknowledged, sums), ()) =
        tokio::time::timeout(2 * DEADLINE, async { tokio::join!(work, kill) })
            .await
            .unwrap();
    for key in &acknowledged {
        let entry = store.get("b", key).await.unwrap();
        assert_eq!(
            entry.map(|entry| entry.value),
            Some(Bytes::from(key.clone())),
            "{key}"
        );
    }
    // Each acknowledged sum is larger than the one before; unacknowledged additions may be among them.
    assert!(sums.is_sorted_by(|a, b| a < b));
    let last = store.get("b", "counter").await.unwrap().unwrap();
    assert!(counter::decode(&last.value).unwrap() >= *sums.last().unwrap());
    assert!(sums.len() >= 20);
}

#[tokio::test]
async fn without_a_server_operations_end_and_say_so() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let store = store(&plugin).await;
    store.open("b").await.unwrap();
    let none = BTreeMap::new();
    let settings = Settings::new(&none);
    let ask = Ask {
        namespace: "a",
        workload: "",
        component: "",
        flat_names: false,
        settings,
    };
    let bus = plugin.messaging(&ask).await.unwrap();
    server.kill();
    let message = || Message {
        subject: "a".into(),
        body: Bytes::new(),
        reply_to: None,
    };
    let start = Instant::now();
    let (get, increment, request, subscribe) = tokio::join!(
        store.get("b", "key"),
        store.increment("b", "key", 1),
        bus.request(message(), Duration::from_millis(300)),
        bus.subscribe("a", None),
    );
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    assert!(matches!(get, Err(Error::Unavailable(_))), "{get:?}");
    assert!(
        matches!(increment, Err(Error::Unavailable(_))),
        "{increment:?}"
    );
    assert!(
        matches!(request, Err(messaging::Error::Unavailable(_))),
        "{request:?}"
    );
    assert!(matches!(
        subscribe.map(drop),
        Err(messaging::Error::Unavailable(_))
    ));
}

#[tokio::test]
async fn subscriptions_are_in_force_for_other_connections() {
    let server = NatsServer::start().await.unwrap();
    let none = BTreeMap::new();
    let ask = || Ask {
        namespace: "a",
        workload: "",
        component: "",
        flat_names: false,
        settings: Settings::new(&none),
    };
    let (here, there) = (plugin(&server).await, plugin(&server).await);
    let here = here.messaging(&ask()).await.unwrap();
    let there = there.messaging(&ask()).await.unwrap();
    for i in 0..200 {
        let subject = format!("a.{i}");
        let mut inbox = here.subscribe(&subject, Some("group")).await.unwrap();
        there
            .publish(Message {
                subject,
                body: "x".into(),
                reply_to: None,
            })
            .await
            .unwrap();
        let delivery = tokio::time::timeout(DEADLINE, inbox.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(delivery.message.body, "x");
    }
}

#[tokio::test]
async fn closing_sends_what_was_published_and_ends_the_connection() {
    let server = NatsServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    let mut inbox = client.subscribe("a").await.unwrap();
    client.flush().await.unwrap();
    let plugin = plugin(&server).await;
    let none = BTreeMap::new();
    let settings = Settings::new(&none);
    let ask = Ask {
        namespace: "a",
        workload: "",
        component: "",
        flat_names: false,
        settings,
    };
    let bus = plugin.messaging(&ask).await.unwrap();
    // A round trip of the other connection: its subscription is in force.
    let _ = client.request("nobody", Bytes::new()).await;
    for _ in 0..100 {
        let message = Message {
            subject: "a".into(),
            body: "x".into(),
            reply_to: None,
        };
        bus.publish(message).await.unwrap();
    }
    plugin.close().await;
    for _ in 0..100 {
        tokio::time::timeout(DEADLINE, inbox.next())
            .await
            .unwrap()
            .unwrap();
    }
    let message = Message {
        subject: "a".into(),
        body: "x".into(),
        reply_to: None,
    };
    assert!(bus.publish(message).await.is_err());
}
