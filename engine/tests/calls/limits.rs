//! CPU time, wall time and memory end a call, and only the one that used them up.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use engine::invoke::Error;
use engine::{Config, Grant};

use crate::host::{config, get, grant, hostile, read, shared, start};

#[tokio::test]
async fn a_guest_that_computes_on_is_ended_while_others_are_served() {
    let call_cpu_max = Duration::from_secs(1);
    let guest = hostile(Config {
        call_cpu_max,
        ..config()
    })
    .await;
    // All on one thread: the loop must let go of it.
    let ended = RefCell::new(Vec::new());
    let looping = async {
        let called = get(&guest, "/loop").await;
        ended.borrow_mut().push("loop");
        called
    };
    let serving = async {
        for _ in 0..3 {
            assert_eq!(read(&guest, "/ok").await, "ok\n");
            ended.borrow_mut().push("ok");
        }
    };
    let (looped, ()) = futures::join!(looping, serving);
    assert_eq!(looped.err(), Some(Error::CpuExceeded(call_cpu_max)));
    assert_eq!(*ended.borrow(), ["ok", "ok", "ok", "loop"]);
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

#[tokio::test]
async fn waiting_is_not_charged_as_cpu_time() {
    let guest = hostile(Config {
        call_cpu_max: Duration::from_millis(500),
        ..config()
    })
    .await;
    assert_eq!(read(&guest, "/slow?ms=1500").await, "slow\n");
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_is_a_timeout() {
    let call_time_max = Duration::from_millis(500);
    let guest = hostile(Config {
        call_time_max,
        ..config()
    })
    .await;
    let timeout = Some(Error::Timeout(call_time_max));
    assert_eq!(get(&guest, "/slow?ms=600000").await.err(), timeout);
    assert_eq!(get(&guest, "/loop").await.err(), timeout);
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

#[tokio::test]
async fn instances_share_the_memory_of_their_component() {
    let grant = |workload| Grant {
        memory_bytes_max: 48 << 20,
        ..grant(workload)
    };
    let guest = start(shared(), "hostile", grant("memory")).await;
    let other = start(shared(), "hostile", grant("more-memory")).await;
    let held = get(&guest, "/hold?mb=30").await.unwrap();
    match get(&guest, "/grow?mb=30").await {
        Err(Error::Trap(why)) => {
            let limit = format!("memory limit of {} bytes", 48 << 20);
            assert!(why.contains(&limit), "{why}");
        }
        called => panic!("{:?}", called.map(|response| response.status())),
    }
    // What is left still serves, and another component has a limit of its own.
    assert_eq!(read(&guest, "/ok").await, "ok\n");
    assert_eq!(read(&other, "/grow?mb=30").await, "30\n");
    drop(held);
    for _ in 0..3 {
        assert_eq!(read(&guest, "/grow?mb=30").await, "30\n");
    }
}

#[tokio::test]
async fn an_instance_for_which_others_left_no_memory_is_busy_not_broken() {
    let grant = Grant {
        memory_bytes_max: 16 << 20,
        ..grant("crowded")
    };
    let guest = start(shared(), "hostile", grant).await;
    let mut held = Vec::new();
    let refused = loop {
        match get(&guest, "/hold?mb=1").await {
            Ok(response) => held.push(response),
            Err(error) => break error,
        }
        assert!(held.len() < 64, "there is no end");
    };
    // One that begins and then asks for more than is left fails by itself; one that cannot begin has to
    // wait for the others.
    assert!(!held.is_empty());
    let crowded = match refused {
        Error::Busy => true,
        Error::Trap(_) => {
            // Take what is left, by calls that ask for nothing more.
            let mut error = None;
            while error.is_none() && held.len() < 128 {
                match get(&guest, "/hold?mb=0").await {
                    Ok(response) => held.push(response),
                    Err(refused) => error = Some(refused),
                }
            }
            error == Some(Error::Busy)
        }
        _ => false,
    };
    assert!(crowded);
    drop(held);
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

/// Over its share a component is held back, at the next call and in the middle of one, and never ended; its
/// neighbour is served meanwhile.
#[tokio::test]
async fn a_share_of_the_processors_holds_for_long_and_for_short_calls() {
    let share = |workload, millis: u32| Grant {
        cpu_millis_max: millis.try_into().ok(),
        ..grant(workload)
    };
    let looping = start(shared(), "hostile", share("looping", 100)).await;
    let busy = start(shared(), "hostile", share("busy", 10)).await;
    let other = start(shared(), "hostile", grant("neighbour")).await;
    let since = Instant::now();
    let long = async {
        // Longer than what it has at once.
        while looping.usage().used().delayed.is_zero() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let short = async {
        while busy.usage().used().delayed < Duration::from_millis(500) {
            assert_eq!(read(&busy, "/ok").await, "ok\n");
        }
    };
    let served = async {
        let all = async { tokio::join!(long, short) };
        tokio::pin!(all);
        loop {
            assert_eq!(read(&other, "/ok").await, "ok\n");
            let pause = tokio::time::sleep(Duration::from_millis(10));
            tokio::select! {
                _ = &mut all => break,
                () = pause => {}
            }
        }
    };
    tokio::select! {
        ended = get(&looping, "/loop") => panic!("it ended: {:?}", ended.err()),
        () = served => {}
    }
    // The bound is its share of the time, one second more, and the poll that used it up.
    let elapsed = since.elapsed();
    let (looped, called) = (looping.usage().used(), busy.usage().used());
    let most = |share: u32| (elapsed + Duration::from_secs(1)) * share / 1_000;
    let poll = Duration::from_millis(500);
    assert!(looped.cpu <= most(100) + poll, "{looped:?} in {elapsed:?}");
    assert!(called.cpu <= most(10) + poll, "{called:?} in {elapsed:?}");
    assert_eq!(looped.calls, 1);
    assert!(called.calls > 1, "{called:?}");
    assert_eq!(other.usage().used().delayed, Duration::ZERO);
    // Its loop is gone, and it has its share again.
    assert_eq!(read(&looping, "/ok").await, "ok\n");
}

/// What calls used is known afterwards, too: also of those that never waited for anything.
#[tokio::test]
async fn usage_is_counted_by_component() {
    let guest = start(shared(), "hostile", grant("counted")).await;
    assert_eq!(guest.usage().used(), engine::Used::default());
    for _ in 0..3 {
        assert_eq!(read(&guest, "/grow?mb=8").await, "8\n");
    }
    let used = guest.usage().used();
    assert_eq!((used.calls, used.memory_bytes), (3, 0));
    assert!(used.memory_bytes_peak >= 8 << 20, "{used:?}");
    assert!(!used.cpu.is_zero(), "{used:?}");
    let held = get(&guest, "/hold?mb=4").await.unwrap();
    assert!(guest.usage().used().memory_bytes >= 4 << 20);
    drop(held);
    assert_eq!(guest.usage().used().memory_bytes, 0);
}
