//! Images: pulled once, kept, and given only to those who may have them.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use fleet::{
    http,
    registry::{PASSWORD, Registry, USER},
    wait::{SOON, until},
    workload::{Workload, component},
};
use futures::future::try_join_all;
use serde_json::json;
use tempfile::TempDir;

use crate::{HOST, app, one_host};

/// C24: what was pulled once starts without the registry, also after a restart of the host.
#[tokio::test]
async fn a_kept_image_starts_without_its_registry() -> Result<()> {
    let (mut fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("first", &image, json!({}))).await?;
    fleet.registry.kill();
    host.stop("first").await?;
    host.run_well(&app("second", &image, json!({}))).await?;
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    host.restart().await?;
    host.run_well(&app("third", &image, json!({}))).await?;
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    Ok(())
}

/// C25: twenty starts of one image are one download.
#[tokio::test]
async fn many_starts_of_an_image_pull_it_once() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let workloads: Vec<_> = (0..20)
        .map(|n| app(&format!("w{n}"), &image, json!({})))
        .collect();
    try_join_all(workloads.iter().map(|workload| host.run_well(workload))).await?;
    // The access log is written after the answer; a later request flushes it.
    reqwest::get(format!("http://{}/v2/", fleet.registry.address())).await?;
    let log = until(SOON, "the registry logs", async || {
        let log = fleet.registry.log();
        log.contains("\"GET /v2/ ").then_some(log)
    })
    .await?;
    let pulls: Vec<_> = log
        .lines()
        .filter_map(|line| line.split('"').nth(1))
        .filter(|request| request.starts_with("GET /v2/http-hello/blobs/"))
        .collect();
    assert!(!pulls.is_empty(), "{log}");
    assert_eq!(
        pulls.len(),
        pulls.iter().collect::<BTreeSet<_>>().len(),
        "{pulls:?}"
    );
    Ok(())
}

/// Credentials open a private image, and only for those who have them, whatever the host keeps.
#[tokio::test]
async fn a_private_image_needs_its_credentials() -> Result<()> {
    let (_fleet, host) = one_host(&[]).await?;
    let registry = Registry::start_with_login().await?;
    let image = registry
        .push("http-hello:1", component("http-hello")?)
        .await?;
    let secret =
        |password: &str| json!({ "imagePullSecret": { "username": USER, "password": password } });
    let wrong = host.run(&app("wrong", &image, secret("hunter2"))).await?;
    assert_eq!(wrong.state, "ERROR");
    assert!(wrong.message.contains(&image), "{}", wrong.message);
    host.run_well(&app("right", &image, secret(PASSWORD)))
        .await?;
    for (id, fields) in [("none", json!({})), ("wrong-again", secret("hunter2"))] {
        let refused = host.run(&app(id, &image, fields)).await?;
        assert_eq!(refused.state, "ERROR", "{id}: {}", refused.message);
        assert!(!refused.message.contains("hunter2"), "{}", refused.message);
    }
    let log = host.log();
    assert!(
        !log.contains("hunter2") && !log.contains(PASSWORD),
        "the log tells a secret"
    );
    Ok(())
}

/// What is not a component is refused with the reason.
#[tokio::test]
async fn what_is_no_component_is_refused() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let mut cut = component("http-hello")?;
    cut.truncate(cut.len() / 2);
    let cases = [
        ("text", b"this is not wasm".to_vec()),
        ("module", b"\0asm\x01\0\0\0".to_vec()),
        ("cut", cut),
        ("empty", Vec::new()),
    ];
    for (name, bytes) in cases {
        let image = fleet.registry.push(&format!("{name}:1"), bytes).await?;
        let refused = host.run(&app(name, &image, json!({}))).await?;
        assert_eq!(refused.state, "ERROR", "{name}");
        assert!(
            refused.message.contains("app"),
            "{name}: {}",
            refused.message
        );
    }
    host.run_well(&Workload::new("still-there")).await
}

/// `IMAGE_PULL_POLICY_NEVER` does not ask the registry.
#[tokio::test]
async fn the_pull_policy_is_kept() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let never = json!({ "imagePullPolicy": "IMAGE_PULL_POLICY_NEVER" });
    let refused = host.run(&app("never", &image, never.clone())).await?;
    assert_eq!(refused.state, "ERROR");
    assert!(
        refused.message.contains("pull policy is 'Never'"),
        "{}",
        refused.message
    );
    host.run_well(&app("first", &image, json!({}))).await?;
    host.run_well(&app("never", &image, never)).await?;

    // A moved tag reaches those who always ask.
    let bytes = component("config-reader")?;
    fleet.registry.push("http-hello:1", bytes).await?;
    let always = json!({ "imagePullPolicy": "IMAGE_PULL_POLICY_ALWAYS" });
    let moved = Workload::new("always")
        .component("app", &image, always)
        .interface("wasi:config/store", &[("k", "moved")])
        .http("moved.test");
    host.run_well(&moved).await?;
    assert_eq!(
        http::get(host.http_port(), "moved.test", "/k").await?.body,
        "moved\n"
    );
    Ok(())
}

/// A host signs in at its registries as their file says, asks their mirrors first, and does not start with a
/// file that it does not understand.
#[tokio::test]
async fn registries_are_spoken_to_as_their_file_says() -> Result<()> {
    let registry = Registry::start_with_login().await?;
    let (mut down, mirror) = (Registry::start().await?, Registry::start().await?);
    let (hello, vault) = (component("http-hello")?, component("vault")?);
    let own = registry.push("own:1", hello.clone()).await?;
    mirror.push("mirrored:1", hello).await?;
    let private = registry.push("private:1", vault).await?;
    down.kill();
    let dir = TempDir::new()?;
    fs::write(dir.path().join("password"), PASSWORD)?;
    let file = dir.path().join("registries.yaml");
    let (at, mirrors) = (
        registry.address(),
        [down.address(), mirror.address()].join(", "),
    );
    fs::write(
        &file,
        format!(
            "registries:
  {at}:
    mirrors: [{mirrors}]
    credentials: {{username: {USER}, passwordFile: password}}
"
        ),
    )?;
    let path = file.to_string_lossy().into_owned();
    let (_fleet, host) = one_host(&["--registries-config", &path]).await?;
    let mirrored = format!("{at}/mirrored:1");
    for (id, image) in [("own", &own), ("mirrored", &mirrored)] {
        host.run_well(&app(id, image, json!({}))).await?;
        assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
        host.stop(id).await?;
    }
    assert_eq!(registry.requests("\"GET /v2/mirrored/"), 0);
    until(SOON, "the mirror logs that it was asked", async || {
        (mirror.requests("\"GET /v2/mirrored/manifests/") > 0).then_some(())
    })
    .await?;
    assert!(host.log().contains(&down.address()) && !host.log().contains(PASSWORD));
    // A workload that brings others does not have its own.
    let secret = json!({ "imagePullSecret": { "username": USER, "password": "wrong" } });
    let status = host.run(&app("other", &private, secret)).await?;
    assert!(
        status.message.contains("denies access"),
        "{}",
        status.message
    );

    fs::write(&file, format!("registries:\n  {at}:\n    mirors: []\n"))?;
    let refused = one_host(&["--registries-config", &path]).await.err();
    let text = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(
        text.contains("registries.yaml\": ") && text.contains("line 3"),
        "{text}"
    );
    Ok(())
}
