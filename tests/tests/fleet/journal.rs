//! A host that was killed runs again what it ran, whoever can be reached.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fleet::http;
use fleet::wait::{SOON, until};
use fleet::washlet::Washlet;
use serde_json::{Value, json};

use crate::{HOST, app, one_host};

/// The state of the workload "app", without asking for it: asking shows that somebody knows it.
async fn listed(host: &Washlet) -> Result<Option<String>> {
    let list = host.request("workload.list", &json!({})).await?;
    let workloads = list.get("workloads").and_then(Value::as_array);
    let app = |one: &&Value| one.get("workloadId").is_some_and(|id| id == "app");
    let state = workloads.and_then(|all| all.iter().find(app)?.get("state")?.as_str());
    Ok(state.map(str::to_owned))
}

async fn serves(port: u16) -> Result<()> {
    until(SOON, "the workload answers again", async || {
        let answer = http::get(port, HOST, "/").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

/// Killed, with NATS and the registry down: all that was cached serves, and nothing is started anew when
/// NATS is back.
#[tokio::test]
async fn a_killed_host_serves_again_without_nats_and_registry() -> Result<()> {
    let (mut fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let workload = app(
        "app",
        &image,
        json!({ "imagePullPolicy": "IMAGE_PULL_POLICY_ALWAYS" }),
    );
    host.run_well(&workload).await?;
    fleet.registry.kill();
    fleet.nats.kill();

    let port = host.restart_cut_off().await?;
    serves(port).await?;

    fleet.nats.restart().await?;
    until(SOON, "the host is in the fleet again", async || {
        let listed = listed(&host).await.ok()??;
        (listed == "WORKLOAD_STATE_RUNNING").then_some(())
    })
    .await?;
    // The same again disturbs nothing.
    let status = host.run(&workload).await?;
    assert_eq!(
        (status.state.as_str(), status.message.as_str()),
        ("RUNNING", "Workload is Running")
    );
    assert_eq!(host.log().matches("workload is running").count(), 1);
    Ok(())
}

/// What was stopped stays stopped, and what was acknowledged is there, at whatever moment the host is killed.
#[tokio::test]
async fn what_was_stopped_stays_stopped() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    host.stop("app").await?;
    host.restart().await?;
    assert_eq!(listed(&host).await?, None);

    for _ in 0..3 {
        host.run_well(&app("app", &image, json!({}))).await?;
        host.restart().await?;
        serves(host.http_port()).await?;
        host.stop("app").await?;
        host.restart().await?;
        assert_eq!(listed(&host).await?, None);
    }
    Ok(())
}

/// A workload that had no image when the host came back starts as soon as there is one.
#[tokio::test]
async fn what_cannot_start_yet_is_tried_again() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let image = format!("{}/http-hello:1", fleet.registry.address());
    let status = host.run(&app("app", &image, json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    host.restart().await?;
    fleet.push("http-hello").await?;
    serves(host.http_port()).await
}

/// Entries that cannot be read are set aside and said; the others run.
#[tokio::test]
async fn damaged_entries_cost_nobody_else() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    host.kill();
    let journal = host.state_dir().join("journal");
    fs::write(journal.join("torn"), b"washlet journal 1\n")?;
    fs::write(
        journal.join("newer"),
        b"washlet journal 9\n and what follows",
    )?;
    host.restart().await?;
    serves(host.http_port()).await?;
    until(SOON, "the log says it of both", async || {
        let log = host.log();
        let said = log.matches("an entry of the journal cannot be read");
        (said.count() == 2).then_some(())
    })
    .await?;
    assert_eq!(
        fs::read_dir(host.state_dir().join("quarantine"))?.count(),
        2
    );
    Ok(())
}

/// An operator that probes the host and never asks for a workload has moved it elsewhere.
#[tokio::test]
async fn what_the_operator_does_not_ask_for_is_stopped() -> Result<()> {
    let (fleet, mut host) = one_host(&["--orphan-after", "1s"]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    host.restart().await?;
    serves(host.http_port()).await?;
    // With nobody probing it stays, however long; then one does.
    until(SOON, "the orphan is stopped", async || {
        host.request("heartbeat", &json!({})).await.ok()?;
        // Nobody waits for an answer that would say when it is also forgotten.
        let forgotten = fs::read_dir(host.state_dir().join("journal")).ok()?.count() == 0;
        (forgotten && listed(&host).await.ok()?.is_none()).then_some(())
    })
    .await?;
    // For good.
    host.restart().await?;
    assert_eq!(listed(&host).await?, None);
    Ok(())
}

/// And one that it asks for stays.
#[tokio::test]
async fn what_the_operator_asks_for_stays() -> Result<()> {
    let (fleet, mut host) = one_host(&["--orphan-after", "500ms"]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    host.restart().await?;
    serves(host.http_port()).await?;
    assert_eq!(host.status("app").await?.state, "RUNNING");
    let since = std::time::Instant::now();
    until(
        SOON,
        "the operator has probed for longer than that",
        async || {
            host.request("heartbeat", &json!({})).await.ok()?;
            (since.elapsed().as_millis() > 1_500).then_some(())
        },
    )
    .await?;
    assert_eq!(host.status("app").await?.state, "RUNNING");
    Ok(())
}

/// Nothing secret that a start request holds can be read on the disk.
#[tokio::test]
async fn secrets_are_sealed_on_disk() -> Result<()> {
    const CANARY: &str = "canary-8d0c61";
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let fields = json!({
        "localResources": { "environment": { "PASSWORD": CANARY }, "config": { "token": CANARY } },
        "imagePullSecret": { "username": "somebody", "password": CANARY },
    });
    host.run(&app("app", &image, fields)).await?;
    assert_eq!(fs::read_dir(host.state_dir().join("journal"))?.count(), 1);
    assert_eq!(holding(host.state_dir(), CANARY)?, Vec::<String>::new());
    // The search finds what is there.
    fs::write(host.state_dir().join("note"), CANARY)?;
    assert_eq!(holding(host.state_dir(), CANARY)?.len(), 1);
    Ok(())
}

/// The files below `dir` that hold `text`.
fn holding(dir: &Path, text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(holding(&path, text)?);
            continue;
        }
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        if bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}
