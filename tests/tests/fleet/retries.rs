//! What fails is started again by itself, and everybody can see why and when.

use anyhow::{Context, Result};
use fleet::http;
use fleet::wait::{SOON, until};
use fleet::washlet::Washlet;
use serde_json::{Value, json};

use crate::admin::{ADMIN, sample};
use crate::wash;
use crate::{HOST, app, one_host};

/// What the host lists of the workload "app".
async fn listed(host: &Washlet) -> Result<Value> {
    let list = host.request("workload.list", &json!({})).await?;
    let workloads = list.get("workloads").and_then(Value::as_array);
    let app = workloads.into_iter().flatten();
    let mut app = app.filter(|one| one.get("workloadId").is_some_and(|id| id == "app"));
    app.next().cloned().context("the workload is listed")
}

/// Waits until `count` attempts have failed.
async fn failed(host: &Washlet, count: u64) -> Result<()> {
    until(SOON, "it has failed again", async || {
        let attempts = listed(host).await.ok()?.get("attempts")?.as_u64()?;
        (attempts >= count).then_some(())
    })
    .await
}

/// An image that comes late is found without a further command; until then reason, attempts and times show.
#[tokio::test]
async fn what_cannot_start_is_tried_again_and_says_so() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let image = format!("{}/http-hello:1", fleet.registry.address());
    let status = host.run(&app("app", &image, json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    let message = &status.message;
    assert!(message.starts_with("failed to pull image"), "{message}");
    assert!(message.ends_with("; attempt 1, next in 1 s"), "{message}");
    failed(&host, 2).await?;
    let summary = listed(&host).await?;
    let text = |field: &str| summary.get(field).and_then(Value::as_str);
    assert!(
        text("reason").is_some_and(|reason| reason.contains(&image)),
        "{summary}"
    );
    assert!(text("changedAt") > text("startedAt"), "{summary}");
    let (code, result) = wash(&fleet, "workload status app").await?;
    assert_eq!(code, 0, "{result}");
    let shown = &result["data"][0];
    assert!(shown["attempts"].as_u64() >= Some(2), "{result}");
    assert!(shown["reason"].is_string(), "{result}");
    assert!(shown["changedAt"].is_string(), "{result}");
    assert!(sample(&host, "washlet_workload_retries_total").await? >= 1);

    fleet.push("http-hello").await?;
    until(SOON, "the workload answers", async || {
        let answer = http::get(host.http_port(), HOST, "/").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    assert_eq!(host.status("app").await?.message, "Workload is Running");
    Ok(())
}

/// A stop ends the attempts, a start does not wait for the next one, and what was refused is not tried again.
#[tokio::test]
async fn commands_win_over_attempts() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let image = format!("{}/http-hello:1", fleet.registry.address());
    for id in ["app", "stopped"] {
        let status = host.run(&app(id, &image, json!({}))).await?;
        assert_eq!(status.state, "ERROR");
    }
    assert_eq!(host.stop("stopped").await?.state, "STOPPING");
    let refused = app("refused", &image, json!({})).interface("acme:nothing/at-all", &[]);
    assert_eq!(host.run(&refused).await?.state, "ERROR");
    failed(&host, 3).await?;
    fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    let attempts = sample(&host, "washlet_workload_retries_total").await?;
    let since = std::time::Instant::now();
    until(SOON, "five seconds have passed", async || {
        for gone in ["stopped", "refused"] {
            let status = host.status(gone).await.ok()?;
            assert_eq!(status.state, "NOT_FOUND", "{status:?}");
        }
        assert_eq!(host.status("app").await.ok()?.state, "RUNNING");
        (since.elapsed().as_secs() >= 5).then_some(())
    })
    .await?;
    let now = sample(&host, "washlet_workload_retries_total").await?;
    assert_eq!(now, attempts, "something was started again");
    assert_eq!(host.log().matches("workload is running").count(), 1);
    Ok(())
}
