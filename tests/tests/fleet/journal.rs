//! A host that was killed runs again what it ran, whoever can be reached.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fleet::http;
use fleet::proxy::Proxy;
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

/// Servers that take connections and say nothing hold up no host that comes back, whatever the pull policy.
#[tokio::test]
async fn silent_servers_delay_nobody() -> Result<()> {
    let (mut fleet, mut host) = one_host(&["--registry-pull-timeout", "10m"]).await?;
    let registry = Proxy::start(&fleet.registry.address()).await?;
    let image = fleet.push("http-hello").await?;
    let image = image.replace(&fleet.registry.address(), &registry.address());
    let always = json!({ "imagePullPolicy": "IMAGE_PULL_POLICY_ALWAYS" });
    host.run_well(&app("app", &image, always)).await?;
    host.kill();
    fleet.nats.pause();
    registry.pause();
    let port = host.restart_cut_off().await?;
    serves(port).await?;
    fleet.nats.resume();
    until(SOON, "the host is in the fleet again", async || {
        let listed = listed(&host).await.ok()??;
        (listed == "WORKLOAD_STATE_RUNNING").then_some(())
    })
    .await
}

/// What cannot be noted is not acknowledged: neither a start that a restart would forget, nor a stop that it
/// would undo.
#[tokio::test]
async fn what_is_not_on_disk_is_not_acknowledged() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    let journal = host.state_dir().join("journal");
    let away = host.state_dir().join("away");
    fs::rename(&journal, &away)?;

    let status = host.run(&app("late", &image, json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    assert!(status.message.contains("journal"), "{}", status.message);
    until(SOON, "nothing of it is left", async || {
        (host.status("late").await.ok()?.state == "NOT_FOUND").then_some(())
    })
    .await?;
    let status = host.stop("app").await?;
    assert_eq!(status.state, "ERROR");
    assert!(status.message.contains("once more"), "{}", status.message);
    // What runs is not disturbed by the disk, and what does not run is not said to.
    assert_eq!(host.stop("app").await?.state, "ERROR");

    fs::rename(&away, &journal)?;
    assert_eq!(host.stop("app").await?.state, "NOT_FOUND");
    host.run_well(&app("late", &image, json!({}))).await?;
    host.restart().await?;
    assert_eq!(listed(&host).await?, None);
    serves(host.http_port()).await
}

/// What is being tried again gives way to commands: a stop, or another start.
#[tokio::test]
async fn a_retry_gives_way_to_commands() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let missing = |tag: &str| format!("{}/http-hello:{tag}", fleet.registry.address());
    for id in ["app", "other"] {
        let workload = app(id, &missing("1"), json!({}));
        assert_eq!(host.run(&workload).await?.state, "ERROR");
    }
    host.restart().await?;
    until(SOON, "both have failed again", async || {
        let app = host.status("app").await.ok()?.state == "ERROR";
        let other = host.status("other").await.ok()?.state == "ERROR";
        (app && other).then_some(())
    })
    .await?;
    host.stop("app").await?;
    let status = host.run(&app("other", &missing("2"), json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    // From now on a retry of what ran before would succeed.
    fleet.push("http-hello").await?;
    let since = std::time::Instant::now();
    until(SOON, "three seconds have passed", async || {
        let other = host.status("other").await.ok()?;
        // It is tried again, too, but as what was asked for last.
        assert_ne!(other.state, "RUNNING");
        assert!(other.message.contains(":2"), "{}", other.message);
        let app = host.status("app").await.ok()?;
        assert_eq!(app.state, "NOT_FOUND");
        (since.elapsed().as_secs() >= 3).then_some(())
    })
    .await
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
