//! What a host is tuned for, and what it does on a machine that cannot bear it.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use fleet::{http::get, process::Process, tools, wait::SOON, workload::Workload};
use futures::future::try_join_all;
use serde_json::json;

use crate::{HOST, app, one_host};

const COMPONENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/http-hello/http-hello.wasm"
);

/// In every profile a host serves many connections at once, fresh and warm, and drains when told to.
#[tokio::test]
async fn every_profile_serves_and_drains() -> Result<()> {
    for profile in ["standard", "throughput", "compact"] {
        let args = [
            "--profile",
            profile,
            "--drain-delay",
            "0s",
            "--threads",
            "2",
        ];
        let (fleet, mut host) = one_host(&args).await?;
        let image = fleet.push("http-hello").await?;
        host.run_well(&app("fresh", &image, json!({}))).await?;
        let warm = json!({ "poolSize": 2, "maxInvocations": 3 });
        let warm = Workload::new("warm").component("app", &image, warm);
        host.run_well(&warm.http("warm.test")).await?;
        for name in [HOST, "warm.test"] {
            let calls = (0..50).map(|_| get(host.http_port(), name, "/"));
            for reply in try_join_all(calls).await? {
                assert_eq!(reply.status, 200, "{profile}, {name}: {}", reply.body);
            }
        }
        host.terminate();
        let ended = host.wait_exit(Duration::from_secs(60)).await?;
        assert!(ended.success(), "{profile}: {ended}");
    }
    Ok(())
}

/// Address spaces too small for guarded memories, for a full pool, for any pool: the host says so and
/// serves.
#[tokio::test]
async fn a_small_address_space_is_enough() -> Result<()> {
    for (kib, said) in [
        (64_000_000, "instances come from"),
        (8_000_000, "instances come from a smaller pool"),
        (1_500_000, "memory is allocated on demand"),
    ] {
        let limited = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
        let wash = tools::built("wash")?;
        let args = [
            "-c",
            &limited,
            wash.to_str().unwrap_or_default(),
            "dev",
            COMPONENT,
            "--http-addr",
            "127.0.0.1:0",
        ];
        let mut host = Process::start(Path::new("/bin/sh"), args, &[])?;
        let port: u16 = host
            .wait_ready(SOON, |host| {
                host.stderr.text().contains(" serves ").then_some(())?;
                host.stderr.after("http://127.0.0.1:")?.trim().parse().ok()
            })
            .await?;
        let calls = (0..20).map(|_| get(port, HOST, "/"));
        for reply in try_join_all(calls).await? {
            assert_eq!(reply.status, 200, "{kib} KiB: {}", reply.body);
        }
        ensure!(
            host.stderr.text().contains(said),
            "{kib} KiB: \"{said}\" is not in its log: {}",
            host.stderr.text()
        );
    }
    Ok(())
}
