//! The admin endpoint says how a host is, whatever the host is busy with.

use anyhow::{Context, Result};
use fleet::http;
use fleet::proxy::Proxy;
use fleet::wait::{SOON, until};
use fleet::washlet::Washlet;
use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use tokio::time::timeout;

use crate::{HOST, app, one_host};

/// With an admin endpoint on a port of its own.
pub(crate) const ADMIN: [&str; 2] = ["--admin-addr", "127.0.0.1:0"];

/// What `host` answers at `path`.
pub(crate) async fn ask(host: &Washlet, path: &str) -> Result<(StatusCode, String)> {
    let address = until(SOON, "the admin endpoint is up", async || {
        let log = host.log();
        let (_, rest) = log.split_once("serving the admin endpoint address=")?;
        rest.split_once('\n')
            .map(|(address, _)| address.trim().to_owned())
    })
    .await?;
    let response = reqwest::get(format!("http://{address}{path}")).await?;
    Ok((response.status(), response.text().await?))
}

/// The sample of `name`, with its labels, on the page of metrics.
pub(crate) async fn sample(host: &Washlet, name: &str) -> Result<u64> {
    let (status, page) = ask(host, "/metrics").await?;
    assert_eq!(status, StatusCode::OK);
    let value = page.lines().find_map(|line| {
        let (found, value) = line.rsplit_once(' ')?;
        (found == name).then_some(value)
    });
    let value = value.with_context(|| format!("no {name} in\n{page}"))?;
    Ok(value.parse()?)
}

/// What runs and what was answered can be counted from outside.
#[tokio::test]
async fn metrics_count_what_happened() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    for _ in 0..3 {
        assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    }
    let nobody = http::get(host.http_port(), "nobody.test", "/").await?;
    assert_eq!(nobody.status, 404);
    for (name, expected) in [
        ("washlet_workloads{state=\"running\"}", 1),
        ("washlet_workloads{state=\"failed\"}", 0),
        ("washlet_http_responses_total{class=\"2xx\"}", 3),
        ("washlet_http_responses_total{class=\"4xx\"}", 1),
        ("washlet_components_compiled_total", 1),
        ("washlet_artifacts", 1),
        ("washlet_nats_connected", 1),
        ("washlet_nats_connects_total", 1),
        ("washlet_journal_entries", 1),
        ("washlet_journal_quarantined", 0),
        ("washlet_ready", 1),
        ("washlet_calls_waiting", 0),
    ] {
        assert_eq!(sample(&host, name).await?, expected, "{name}");
    }
    let labels = "namespace=\"default\",workload=\"app\",workload_id=\"app\"";
    let of_app = format!("washlet_workload_http_responses_total{{{labels},class=\"2xx\"}}");
    assert_eq!(sample(&host, &of_app).await?, 3);
    until(SOON, "no call is in flight", async || {
        let of_app = format!("washlet_workload_calls_in_flight{{{labels}}}");
        let calls = sample(&host, &of_app).await.ok()?;
        (calls == 0 && sample(&host, "washlet_calls_in_flight").await.ok()? == 0).then_some(())
    })
    .await?;
    assert!(sample(&host, "washlet_commands_total").await? >= 1);
    assert_eq!(ask(&host, "/livez").await?.0, StatusCode::OK);
    assert_eq!(ask(&host, "/").await?.0, StatusCode::NOT_FOUND);
    Ok(())
}

/// A host that is cut off is alive, and says why it is not ready.
#[tokio::test]
async fn a_host_that_is_cut_off_is_not_ready() -> Result<()> {
    let (mut fleet, host) =
        one_host(&[&ADMIN[..], &["--heartbeat-interval", "1s"]].concat()).await?;
    assert_eq!(
        ask(&host, "/readyz").await?,
        (StatusCode::OK, "ok\n".to_owned())
    );
    fleet.nats.kill();
    until(SOON, "a heartbeat was not sent", async || {
        (sample(&host, "washlet_heartbeats_failed_total")
            .await
            .ok()?
            > 0)
        .then_some(())
    })
    .await?;
    until(SOON, "it is not ready", async || {
        let (status, text) = ask(&host, "/readyz").await.ok()?;
        let named = text.contains("not connected to NATS");
        (status == StatusCode::SERVICE_UNAVAILABLE && named).then_some(())
    })
    .await?;
    assert_eq!(ask(&host, "/livez").await?.0, StatusCode::OK);
    fleet.nats.restart().await?;
    until(SOON, "it is ready again", async || {
        (ask(&host, "/readyz").await.ok()?.0 == StatusCode::OK).then_some(())
    })
    .await?;
    assert_eq!(sample(&host, "washlet_nats_connects_total").await?, 2);
    Ok(())
}

/// With every core in an endless loop, and pulls that hang, those who look still see, and commands are answered.
#[tokio::test]
async fn neither_guests_nor_pulls_hide_the_host() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let hostile = fleet.push("hostile").await?;
    host.run_well(&app("bad", &hostile, json!({}))).await?;
    let registry = Proxy::start(&fleet.registry.address()).await?;
    registry.pause();
    let image = hostile.replace(&fleet.registry.address(), &registry.address());
    let hanging: Vec<_> = (0..32)
        .map(|number| app(&format!("hangs-{number}"), &image, json!({})))
        .collect();
    let cores = std::thread::available_parallelism()?.get();
    let loops = join_all((0..4 * cores).map(|_| http::get(host.http_port(), HOST, "/loop")));
    let starts = join_all(hanging.iter().map(|workload| host.run(workload)));
    let looks = async {
        until(SOON, "the loops run, and the starts hang", async || {
            let calls = sample(&host, "washlet_calls_in_flight").await.ok()?;
            let starting = sample(&host, "washlet_workloads{state=\"starting\"}")
                .await
                .ok()?;
            (calls as usize >= cores && starting == 32).then_some(())
        })
        .await?;
        for _ in 0..10 {
            timeout(SOON, async {
                assert_eq!(ask(&host, "/livez").await?.0, StatusCode::OK);
                assert_eq!(ask(&host, "/readyz").await?.0, StatusCode::OK);
                assert_eq!(host.status("bad").await?.state, "RUNNING");
                assert_eq!(host.status("hangs-0").await?.state, "STARTING");
                host.request("heartbeat", &json!({})).await
            })
            .await??;
        }
        // A stop, too, does not wait for the pull.
        timeout(SOON, host.stop("hangs-31")).await??;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = loops => panic!("an endless loop ended: {ended:?}"),
        ended = starts => panic!("a pull that hangs ended: {ended:?}"),
        done = looks => done,
    }
}

/// A host that came back without NATS says both: that it serves, and that it is not in its fleet.
#[tokio::test]
async fn a_restored_host_is_not_ready_before_nats_is_there() -> Result<()> {
    let (mut fleet, mut host) = one_host(&ADMIN).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    fleet.nats.kill();
    host.restart_cut_off().await?;
    until(SOON, "the workload runs", async || {
        let running = sample(&host, "washlet_workloads{state=\"running\"}").await;
        (running.ok()? == 1).then_some(())
    })
    .await?;
    let (status, text) = ask(&host, "/readyz").await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "control plane: not connected to NATS\n");
    assert_eq!(sample(&host, "washlet_code_loaded_total").await?, 1);
    Ok(())
}
