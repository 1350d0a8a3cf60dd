//! A directory of manifests runs without anybody who commands the host.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fleet::http;
use fleet::proxy::Proxy;
use fleet::wait::{SOON, until};
use fleet::washlet::{Fleet, Washlet};
use serde_json::{Value, json};

/// A manifest of one component that answers for `host`.
fn manifest(name: &str, image: &str, host: &str) -> String {
    format!(
        "apiVersion: runtime.wasmcloud.dev/v1alpha1
kind: Workload
metadata:
  name: {name}
  namespace: default
spec:
  components:
    - name: {name}
      image: {image}
  hostInterfaces:
    - namespace: wasi
      package: http
      interfaces: [incoming-handler]
      config:
        host: {host}
"
    )
}

async fn answers(port: u16, host: &str, expected: u16) -> Result<()> {
    until(SOON, &format!("{host} answers {expected}"), async || {
        let answer = http::get(port, host, "/").await.ok()?;
        (answer.status == expected).then_some(())
    })
    .await
}

async fn with(dir: &Path) -> Result<(Fleet, Washlet, String)> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    let dir = dir.to_str().context("a path in UTF-8")?;
    let host = fleet.host(&["--manifest-dir", dir]).await?;
    Ok((fleet, host, image))
}

/// Files come, change, break, are mended and go, and what runs follows.
#[tokio::test]
async fn workloads_follow_their_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_fleet, host, image) = with(dir.path()).await?;
    let (port, file) = (host.http_port(), dir.path().join("app.yaml"));
    fs::write(&file, manifest("app", &image, "one.test"))?;
    answers(port, "one.test", 200).await?;

    fs::write(&file, manifest("app", &image, "two.test"))?;
    answers(port, "two.test", 200).await?;
    answers(port, "one.test", 404).await?;

    // What cannot be read, and what cannot start, leaves what runs.
    for (broken, named) in [
        ("kind: [", "not valid YAML".to_owned()),
        (
            &manifest("app", &format!("{image}-none"), "three.test"),
            "workload 'app'".to_owned(),
        ),
    ] {
        fs::write(&file, broken)?;
        until(SOON, "the host says what is wrong", async || {
            let log = host.log();
            let mut lines = log.lines();
            let said = lines.any(|line| line.contains("not in force") && line.contains(&named));
            said.then_some(())
        })
        .await?;
        assert_eq!(http::get(port, "two.test", "/").await?.status, 200);
    }

    fs::remove_file(&file)?;
    answers(port, "two.test", 404).await
}

/// A change that takes long to start leaves what runs, until it is there; and holds up no other file.
#[tokio::test]
async fn what_takes_long_leaves_what_runs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (fleet, host, image) = with(dir.path()).await?;
    let registry = Proxy::start(&fleet.registry.address()).await?;
    let slow = image.replace(&fleet.registry.address(), &registry.address());
    let (port, file) = (host.http_port(), dir.path().join("app.yaml"));
    fs::write(&file, manifest("app", &image, "one.test"))?;
    answers(port, "one.test", 200).await?;

    registry.pause();
    fs::write(&file, manifest("app", &slow, "two.test"))?;
    until(SOON, "the pull hangs", async || {
        (registry.connections() > 0).then_some(())
    })
    .await?;
    fs::write(
        dir.path().join("other.yaml"),
        manifest("other", &image, "other.test"),
    )?;
    answers(port, "other.test", 200).await?;
    assert_eq!(http::get(port, "one.test", "/").await?.status, 200);
    // It is not wanted any more, while it still starts.
    fs::write(&file, manifest("app", &slow, "three.test"))?;
    until(SOON, "the first change is given up", async || {
        (starting(&host).await.ok()? == ["three.test"]).then_some(())
    })
    .await?;
    registry.resume();
    answers(port, "three.test", 200).await?;
    answers(port, "one.test", 404).await?;
    assert_eq!(http::get(port, "two.test", "/").await?.status, 404);
    Ok(())
}

/// The host names of workloads that are starting.
async fn starting(host: &Washlet) -> Result<Vec<String>> {
    let list = host.request("workload.list", &json!({})).await?;
    let all = list.get("workloads").and_then(Value::as_array);
    let starting = all.into_iter().flatten().filter(|one| {
        one.get("state")
            .is_some_and(|state| state == "WORKLOAD_STATE_STARTING")
    });
    let names = starting.flat_map(|one| one.get("hosts").and_then(Value::as_array));
    Ok(names
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect())
}

/// What a change does not concern is left alone.
#[tokio::test]
async fn what_did_not_change_is_not_disturbed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_fleet, host, image) = with(dir.path()).await?;
    let (port, file) = (host.http_port(), dir.path().join("app.yaml"));
    let one = manifest("one", &image, "one.test");
    fs::write(&file, &one)?;
    answers(port, "one.test", 200).await?;
    let two = manifest("two", &image, "two.test");
    fs::write(&file, format!("# Another one.\n{two}---\n{one}"))?;
    answers(port, "two.test", 200).await?;
    fs::write(&file, &two)?;
    answers(port, "one.test", 404).await?;
    assert_eq!(http::get(port, "two.test", "/").await?.status, 200);
    // Each was started once.
    assert_eq!(host.log().matches("workload is running").count(), 2);
    Ok(())
}

/// With NATS gone and the process killed, the files are enough; and they are all there is: what was a file
/// that is gone meanwhile does not come back.
#[tokio::test]
async fn manifests_need_no_control_plane() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut fleet, mut host, image) = with(dir.path()).await?;
    for name in ["stays", "goes"] {
        let file = dir.path().join(format!("{name}.yaml"));
        fs::write(file, manifest(name, &image, &format!("{name}.test")))?;
        answers(host.http_port(), &format!("{name}.test"), 200).await?;
    }
    fleet.nats.kill();
    fleet.registry.kill();
    host.kill();
    fs::remove_file(dir.path().join("goes.yaml"))?;
    let port = host.restart_cut_off().await?;
    answers(port, "stays.test", 200).await?;
    assert_eq!(http::get(port, "goes.test", "/").await?.status, 404);
    Ok(())
}
