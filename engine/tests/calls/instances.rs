//! Every call has an instance of its own, and gives it back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::invoke::Error;
use engine::wit::WitInterface;
use engine::{Config, Runnable};
use futures::future::{join_all, try_join_all};
use tokio::task::JoinSet;

use crate::host::{config, engine, get, grant, hostile, read, shared, start, wasm};

/// The fewest instances a pool has.
const INSTANCES: usize = 8;

/// What one component may have of them.
const SHARE: usize = 6;

/// A pool that is used up soon.
fn small() -> Config {
    Config {
        instances_max: INSTANCES as u32,
        instance_wait: Duration::from_millis(300),
        ..config()
    }
}

/// Writes to `mb` MiB of new memory and to most of the stack, in words of 8 bytes.
async fn stain(guest: &Runnable, mb: usize) {
    let stains: usize = read(guest, &format!("/stain?mb={mb}"))
        .await
        .trim()
        .parse()
        .unwrap();
    let stack = 800 << 10;
    assert!(stains > ((mb << 20) + stack) / 8, "{stains}");
}

#[tokio::test]
async fn memory_of_one_call_is_never_seen_by_the_next() {
    let guest = hostile(small()).await;
    assert_eq!(read(&guest, "/scan?mb=4").await, "0\n");
    for _ in 0..150 {
        stain(&guest, 4).await;
        assert_eq!(read(&guest, "/scan?mb=4").await, "0\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_of_one_call_is_never_seen_by_those_beside_it() {
    let guest = hostile(Config {
        instance_wait: config().instance_wait,
        ..small()
    })
    .await;
    let mut calls = JoinSet::new();
    for n in 0..400 {
        let guest = guest.clone();
        calls.spawn(async move {
            match n % 2 {
                0 => stain(&guest, 3).await,
                _ => assert_eq!(read(&guest, "/scan?mb=3").await, "0\n"),
            }
        });
    }
    // In parallel on the pool's 8 instances, which it reuses many times.
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
}

#[tokio::test]
async fn a_trap_ends_the_call_alone() {
    let guest = start(shared(), "hostile", grant("trap")).await;
    let beside = get(&guest, "/hold?mb=1").await.unwrap();
    let trapped = get(&guest, "/trap").await;
    assert!(matches!(trapped, Err(Error::Trap(_))));
    assert_eq!(read(&guest, "/ok").await, "ok\n");
    drop(beside);
}

#[tokio::test]
async fn a_guest_without_a_response_is_an_error() {
    let guest = start(shared(), "hostile", grant("no-response")).await;
    assert_eq!(
        get(&guest, "/no-response").await.err(),
        Some(Error::NoResponse)
    );
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

#[tokio::test]
async fn what_is_not_exported_is_not_called() {
    let mut grant = grant("not-exported");
    grant.declared = Arc::new([WitInterface {
        namespace: "wasmcloud".to_owned(),
        package: "messaging".to_owned(),
        interfaces: vec!["consumer".to_owned()],
        ..WitInterface::default()
    }]);
    let guest = start(shared(), "echo-messaging", grant).await;
    assert!(guest.handles_messages() && !guest.serves_http());
    assert!(matches!(get(&guest, "/").await, Err(Error::NotExported(_))));
}

#[tokio::test]
async fn a_call_that_finds_no_instance_waits_and_is_refused() {
    let engine = engine(small());
    let compiled = engine.compile("hostile", wasm("hostile")).await.unwrap();
    let guest = engine.link(&compiled, grant("busy")).await.unwrap();
    let held = (0..SHARE).map(|_| get(&guest, "/hold"));
    let held = try_join_all(held).await.unwrap();
    let since = Instant::now();
    assert_eq!(get(&guest, "/ok").await.err(), Some(Error::Busy));
    assert!(since.elapsed() >= small().instance_wait);

    // Nobody else is touched by that: what is left of the pool is for others.
    let other = engine.link(&compiled, grant("other")).await.unwrap();
    assert_eq!(read(&other, "/ok").await, "ok\n");

    // One that waits gets the first that is free.
    let (_, served) = futures::join!(async { drop(held) }, read(&guest, "/ok"));
    assert_eq!(served, "ok\n");
}

#[tokio::test]
async fn dropping_a_call_before_its_head_ends_the_guest() {
    let guest = hostile(small()).await;
    let calls = (0..SHARE).map(|_| get(&guest, "/slow?ms=600000"));
    let calls = join_all(calls);
    tokio::select! {
        biased;
        ended = calls => panic!("{} calls ended", ended.len()),
        // They are polled first, so that they have all instances.
        refused = get(&guest, "/ok") => assert_eq!(refused.err(), Some(Error::Busy)),
    }
    let again = (0..SHARE).map(|_| get(&guest, "/hold"));
    assert_eq!(try_join_all(again).await.unwrap().len(), SHARE);
}

#[tokio::test]
async fn dropping_a_body_ends_the_guest() {
    let guest = hostile(small()).await;
    for _ in 0..3 {
        let held = (0..SHARE).map(|_| get(&guest, "/hold"));
        let held = try_join_all(held).await.unwrap();
        assert_eq!(get(&guest, "/ok").await.err(), Some(Error::Busy));
        drop(held);
    }
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

#[tokio::test]
async fn a_call_that_fails_gives_its_instance_back() {
    let guest = hostile(small()).await;
    for target in ["/trap", "/no-response", "/half", "/late-trap"] {
        // More often than there are instances.
        for _ in 0..=INSTANCES {
            drop(get(&guest, target).await);
        }
        assert_eq!(read(&guest, "/ok").await, "ok\n", "{target}");
    }
}
