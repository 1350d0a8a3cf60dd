//! C28: a bad guest hurts nobody else.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fleet::{http::get, washlet::Washlet};
use futures::future::{join_all, try_join_all};
use serde_json::json;

use crate::{HOST, app, one_host};

/// The most memory the host's process ever had, in MiB.
pub(crate) fn peak_mib(host: &Washlet) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no peak")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib >> 10)
}

/// With every core in an endless loop, others are served and the host answers.
#[tokio::test]
async fn endless_loops_leave_room_for_others() -> Result<()> {
    let (fleet, host) = one_host(&["--heartbeat-interval", "1s"]).await?;
    let (hostile, hello) = tokio::try_join!(fleet.push("hostile"), fleet.push("http-hello"))?;
    host.run_well(&app("bad", &hostile, json!({}))).await?;
    let good = fleet::workload::Workload::new("good")
        .component("app", &hello, json!({}))
        .http("good.test");
    host.run_well(&good).await?;

    let loops = join_all((0..8).map(|_| get(host.http_port(), HOST, "/loop")));
    let others = async {
        for _ in 0..5 {
            let since = Instant::now();
            assert_eq!(get(host.http_port(), "good.test", "/").await?.status, 200);
            assert!(
                since.elapsed() < Duration::from_secs(3),
                "served after {:?}",
                since.elapsed()
            );
            let since = Instant::now();
            assert_eq!(host.status("bad").await?.state, "RUNNING");
            host.request("heartbeat", &json!({})).await?;
            assert!(
                since.elapsed() < Duration::from_secs(1),
                "answered after {:?}",
                since.elapsed()
            );
        }
        // A start compiles on the same cores.
        host.run_well(&app("late", &hello, json!({}))).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = loops => panic!("an endless loop ended: {ended:?}"),
        done = others => done?,
    }
    // The clients of the loops are gone, and stopping does not wait for them.
    let since = Instant::now();
    host.stop("bad").await?;
    assert!(
        since.elapsed() < Duration::from_secs(25),
        "stopped after {:?}",
        since.elapsed()
    );
    Ok(())
}

/// Memory is bounded for all instances of a component together.
#[tokio::test]
async fn memory_is_bounded() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("hostile").await?;
    let limit = json!({ "localResources": { "memoryLimitMb": 64 } });
    host.run_well(&app("app", &image, limit)).await?;
    let ask = async |path: &str| anyhow::Ok(get(host.http_port(), HOST, path).await?.status);
    assert_eq!(ask("/grow?mb=32").await?, 200);
    let before = peak_mib(&host)?;

    assert_eq!(ask("/grow?mb=512").await?, 500);
    // Each fits alone; together they do not.
    let together = try_join_all((0..6).map(|_| ask("/grow?mb=40&ms=1000"))).await?;
    let given = together.iter().filter(|status| **status == 200).count();
    assert_eq!(given, 1, "{together:?}");
    assert_eq!(ask("/ok").await?, 200);
    assert_eq!(ask("/grow?mb=32").await?, 200);

    let grown = peak_mib(&host)? - before;
    assert!(grown < 150, "the host's peak grew by {grown} MiB");
    Ok(())
}

/// A client that leaves, or a body that nobody reads, holds nothing back.
#[tokio::test]
async fn large_bodies_do_not_pile_up() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("hostile").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    assert_eq!(get(host.http_port(), HOST, "/ok").await?.status, 200);
    let before = peak_mib(&host)?;
    let url = format!("http://127.0.0.1:{}/huge?mb=400", host.http_port());
    // Held open, not read.
    let request =
        || fleet::http::client().map(|client| client.get(&url).header("host", HOST).send());
    let unread = try_join_all((0..4).map(|_| async { anyhow::Ok(request()?.await?) })).await?;
    assert_eq!(get(host.http_port(), HOST, "/ok").await?.status, 200);
    let read = get(host.http_port(), HOST, "/huge?mb=64").await?;
    assert_eq!(read.body.len(), 64 << 20);
    drop(unread);
    let grown = peak_mib(&host)? - before;
    assert!(grown < 200, "the host's peak grew by {grown} MiB");
    Ok(())
}
