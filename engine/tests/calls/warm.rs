//! Instances that serve more than one call, where the component asked for it and only there.

use std::time::Duration;

use engine::{Config, Grant, Reuse, Runnable};
use futures::future::join_all;

use crate::host::{config, engine, get, grant, read, shared, start};

const REUSE: Reuse = Reuse {
    instances_max: 1,
    calls_max: 1_000,
    age_max: Duration::from_secs(600),
};

async fn reused(reuse: Reuse) -> Runnable {
    let grant = Grant {
        reuse,
        ..grant("warm")
    };
    start(shared(), "hostile", grant).await
}

/// Whether an earlier call of the same instance wrote to its memory.
async fn is_used(guest: &Runnable) -> bool {
    read(guest, "/scan?mb=4").await != "0\n"
}

#[tokio::test]
async fn an_instance_serves_again_and_keeps_its_memory() {
    let guest = reused(REUSE).await;
    assert!(!is_used(&guest).await);
    read(&guest, "/stain?mb=4").await;
    for _ in 0..10 {
        assert!(is_used(&guest).await);
    }
}

#[tokio::test]
async fn an_instance_serves_every_thread() {
    let guest = reused(REUSE).await;
    read(&guest, "/stain?mb=4").await;
    // More threads than a workload has shards.
    for _ in 0..9 {
        let guest = guest.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(is_used(&guest))
        });
        assert!(thread.join().unwrap());
    }
}

#[tokio::test]
async fn an_instance_serves_no_more_calls_than_it_may() {
    let guest = reused(Reuse {
        calls_max: 2,
        ..REUSE
    })
    .await;
    for _ in 0..3 {
        read(&guest, "/stain?mb=4").await;
        assert!(is_used(&guest).await);
        assert!(!is_used(&guest).await);
        assert!(!is_used(&guest).await);
    }
}

#[tokio::test]
async fn an_old_instance_is_not_used_again() {
    let guest = reused(Reuse {
        age_max: Duration::ZERO,
        ..REUSE
    })
    .await;
    read(&guest, "/stain?mb=4").await;
    assert!(!is_used(&guest).await);
}

#[tokio::test]
async fn a_trap_ends_the_instance() {
    let guest = reused(REUSE).await;
    read(&guest, "/stain?mb=4").await;
    assert!(get(&guest, "/trap").await.is_err());
    assert!(!is_used(&guest).await);
    read(&guest, "/stain?mb=4").await;
    assert!(is_used(&guest).await, "the next one is used again");
}

#[tokio::test]
async fn a_call_that_was_dropped_ends_the_instance() {
    let guest = reused(REUSE).await;
    read(&guest, "/stain?mb=4").await;
    drop(get(&guest, "/hold?mb=1").await.unwrap());
    assert!(!is_used(&guest).await);
}

#[tokio::test]
async fn calls_beside_a_busy_instance_have_fresh_ones() {
    let guest = reused(REUSE).await;
    read(&guest, "/stain?mb=4").await;
    let busy = get(&guest, "/hold?mb=1").await.unwrap();
    read(&guest, "/stain?mb=4").await;
    assert!(!is_used(&guest).await);
    drop(busy);
}

#[tokio::test]
async fn one_workload_never_sees_the_instances_of_another() {
    let (one, other) = (reused(REUSE).await, reused(REUSE).await);
    read(&one, "/stain?mb=4").await;
    assert!(is_used(&one).await && !is_used(&other).await);
}

#[tokio::test]
async fn idle_instances_leave_room_for_others() {
    let engine = engine(Config {
        instances_max: 8,
        ..config()
    });
    let hungry = Grant {
        reuse: Reuse {
            instances_max: 100,
            ..REUSE
        },
        ..grant("hungry")
    };
    let hungry = start(&engine, "hostile", hungry).await;
    join_all((0..6).map(|_| read(&hungry, "/stain?mb=1"))).await;
    let modest = start(&engine, "hostile", grant("modest")).await;
    assert_eq!(read(&modest, "/ok").await, "ok\n");
}
