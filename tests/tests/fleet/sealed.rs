//! Secrets that are sealed to the keys of hosts: they open there, and are in the clear nowhere on the way.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use async_nats::jetstream;
use fleet::http::get;
use fleet::wait::{SOON, until};
use fleet::washlet::{Fleet, Washlet};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::secrets::{SECRETS, heard};
use crate::{HOST, app, one_host, wash, wash_with};

/// What `wash secrets seal` prints for `value`.
async fn seal(fleet: &Fleet, line: &str, value: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("{value}\n"))?;
    let stdin = fs::File::open(file.path())?.into();
    let (code, result) = wash_with(fleet, &format!("secrets seal {line}"), stdin).await?;
    assert_eq!(code, 0, "{result}");
    let sealed = text_at(&result, "/data/sealed");
    Ok(sealed.to_owned())
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default()
}

fn key(host: &Washlet) -> &str {
    text_at(host.heartbeat(), "/labels/washlet.dev~1xkey")
}

async fn read(host: &Washlet) -> Result<(u16, String)> {
    let reply = get(host.http_port(), HOST, "/key").await?;
    Ok((reply.status, reply.body))
}

/// A manifest of `vault` with one secret in its entry.
fn manifest(dir: &TempDir, image: &str, replicas: u16, more: &str) -> Result<PathBuf> {
    let file = dir.path().join("app.yaml");
    fs::write(
        &file,
        format!(
            "apiVersion: runtime.wasmcloud.dev/v1alpha1
kind: WorkloadDeployment
metadata: {{name: app}}
spec:
  replicas: {replicas}
  template:
    spec:
      {more}
      components:
        - name: app
          image: {image}
          localResources:
            environment: {{config: {{TOKEN: canary-environment}}}}
      hostInterfaces:
        - {{namespace: wasi, package: http, interfaces: [incoming-handler], config: {{host: {HOST}}}}}
        - {{namespace: wasmcloud, package: secrets, interfaces: [store, reveal], config: {{key: canary-entry}}}}
"
        ),
    )?;
    Ok(file)
}

/// Seals `manifest` to the hosts with `keys`, into a file beside it.
async fn sealed_manifest(fleet: &Fleet, manifest: &Path, keys: &[&str]) -> Result<PathBuf> {
    let keys: Vec<_> = keys.iter().map(|key| format!("--key {key}")).collect();
    let file = manifest.display();
    let line = format!("secrets seal --manifest {} {file}", keys.join(" "));
    let (code, result) = wash(fleet, &line).await?;
    assert_eq!(
        (code, result.pointer("/data/values")),
        (0, Some(&json!(2))),
        "{result}"
    );
    let text = text_at(&result, "/data/manifest");
    assert!(!text.contains("canary"), "{text}");
    let sealed = manifest.with_file_name("sealed.yaml");
    fs::write(&sealed, text)?;
    Ok(sealed)
}

/// C22: a bucket of NATS holds secrets that only the host can open, for one namespace.
#[tokio::test]
async fn a_bucket_holds_secrets_that_only_the_host_opens() -> Result<()> {
    let (fleet, mut host) = one_host(&["--log-level", "trace"]).await?;
    let image = fleet.push("vault").await?;
    let config = [("backend", "nats"), ("bucket", "vault")];
    let workload = app("app", &image, json!({})).interface(SECRETS, &config);
    let status = host.run(&workload).await?;
    assert!(
        status.message.contains("wash secrets seal --put vault/KEY"),
        "{}",
        status.message
    );

    let mut stored = host.listen("$KV.>").await?;
    let to_host = format!("--host {} --put vault/key", host.id());
    seal(&fleet, &to_host, "canary-1").await?;
    host.run_well(&workload).await?;
    assert_eq!(read(&host).await?, (200, "text canary-1".to_owned()));
    seal(&fleet, &to_host, "canary-2").await?;
    assert_eq!(read(&host).await?, (200, "text canary-2".to_owned()));

    // In the clear, for another host, for another namespace: none of it is shown.
    let bucket = jetstream::new(host.nats().clone())
        .get_key_value("default__vault")
        .await?;
    let other = "XAJ34T7K5LZAJR75GNMPZHAAOIMIDULUE6ASQIT6YZ2PG7375F5W23BG";
    let foreign = seal(&fleet, &format!("--key {other}"), "canary-3").await?;
    let elsewhere = "--host-group default --namespace other";
    let elsewhere = seal(&fleet, elsewhere, "canary-4").await?;
    let mut replies = String::new();
    for (value, why) in [
        ("canary-5", "it is not sealed"),
        (&foreign, other),
        (&elsewhere, "sealed for another namespace than 'default'"),
    ] {
        bucket.put("key", value.to_owned().into()).await?;
        let (status, text) = read(&host).await?;
        assert_eq!(status, 500, "{text}");
        assert!(text.contains(why), "{text}");
        replies.push_str(&text);
    }
    bucket.delete("key").await?;
    assert_eq!(read(&host).await?.0, 404);

    // The key outlasts a restart.
    seal(
        &fleet,
        &format!("--key {} --put vault/key", key(&host)),
        "canary-6",
    )
    .await?;
    host.restart().await?;
    until(SOON, "what ran before has its secret", async || {
        let (status, text) = read(&host).await.ok()?;
        (status == 200 && text == "text canary-6").then_some(())
    })
    .await?;
    let stored = heard(&mut stored).replace("canary-5", "");
    for (place, text) in [
        ("the log", host.log()),
        ("a reply", replies),
        ("NATS", stored),
    ] {
        let seen = text.lines().find(|line| line.contains("canary"));
        assert_eq!(seen, None, "{place} shows a secret");
    }
    Ok(())
}

/// A start request with sealed values opens on its host, is sealed on the way and in the journal, and starts
/// nothing on another host.
#[tokio::test]
async fn a_sealed_request_starts_on_its_hosts_alone() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("vault").await?;
    let trace = ["--log-level", "trace"];
    let mut hosts = [
        fleet.host(&trace).await?,
        fleet.host(&trace).await?,
        fleet.host(&trace).await?,
    ];
    let client = hosts[0].nats().clone();
    let mut said = client.subscribe(">").await?;
    client.flush().await?;
    let dir = TempDir::new()?;
    let plain = manifest(&dir, &image, 2, "")?;

    // Two can open it: there it goes, and nowhere else, not even for a drain.
    let keys: Vec<_> = hosts.iter().map(key).collect();
    let sealed = sealed_manifest(&fleet, &plain, &keys[1..]).await?;
    let start = format!("workload start --wait {}", sealed.display());
    let (code, result) = wash(&fleet, &start).await?;
    assert_eq!(code, 0, "{result}");
    assert_eq!(
        read(&hosts[1]).await?,
        (200, "text canary-entry".to_owned())
    );
    assert_eq!(read(&hosts[2]).await?.0, 200);
    assert_eq!(read(&hosts[0]).await?.0, 404);
    let drain = format!("hosts drain {} --wait 500ms", hosts[1].id());
    let (code, result) = wash(&fleet, &drain).await?;
    assert_eq!(code, 1, "{result}");
    let why = result["data"][0]["message"].as_str().unwrap_or_default();
    assert!(why.contains("1 unable to open its sealed values"), "{why}");
    let handed = result["data"][0]["workloadId"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let payload = json!({ "workloadId": handed });
    let handed = hosts[1].request("workload.handover", &payload).await?;
    // Whoever sends it elsewhere all the same is told why it does not start.
    let refused = hosts[0].request("workload.start", &handed["start"]).await?;
    let refused = refused.to_string();
    assert!(
        refused.contains("environment.TOKEN cannot be opened: it is sealed to X"),
        "{refused}"
    );
    assert!(refused.contains(key(&hosts[0])), "{refused}");
    assert_eq!(read(&hosts[0]).await?.0, 404);

    // After a restart without its registry, the journal has it still.
    let mut fleet = fleet;
    fleet.registry.kill();
    hosts[1].restart().await?;
    until(SOON, "what ran before runs again", async || {
        (read(&hosts[1]).await.ok()? == (200, "text canary-entry".to_owned())).then_some(())
    })
    .await?;
    fleet.registry.restart().await?;

    // Sealed to all, it moves.
    let (code, result) = wash(&fleet, &format!("hosts uncordon {}", hosts[1].id())).await?;
    assert_eq!(code, 0, "{result}");
    let list = wash(&fleet, "workload list").await?.1;
    for workload in list["data"].as_array().into_iter().flatten() {
        let id = workload["workloadId"].as_str().unwrap_or_default();
        wash(&fleet, &format!("workload stop {id}")).await?;
    }
    let keys: Vec<_> = hosts.iter().map(key).collect();
    let sealed = sealed_manifest(&fleet, &plain, &keys).await?;
    let (code, result) = wash(
        &fleet,
        &format!("workload start --wait {}", sealed.display()),
    )
    .await?;
    assert_eq!(code, 0, "{result}");
    let (leaving, spare) = match read(&hosts[0]).await?.0 {
        404 => (1, 0),
        _ if read(&hosts[1]).await?.0 == 404 => (0, 1),
        _ => (0, 2),
    };
    let drain = format!(
        "hosts drain {} --wait 500ms --deadline 5s",
        hosts[leaving].id()
    );
    let (code, result) = wash(&fleet, &drain).await?;
    assert_eq!(code, 0, "{result}");
    assert_eq!(
        read(&hosts[spare]).await?,
        (200, "text canary-entry".to_owned())
    );

    let logs: String = hosts.iter().map(Washlet::log).collect();
    for (place, text) in [("a log", logs), ("NATS", heard(&mut said))] {
        let seen = text.lines().find(|line| line.contains("canary"));
        assert_eq!(seen, None, "{place} shows a secret");
    }
    Ok(())
}

/// Damaged values, those of another namespace, and pull secrets.
#[tokio::test]
async fn what_does_not_open_starts_nothing() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("vault").await?;
    let to = format!("--key {}", key(&host));
    let good = seal(&fleet, &to, "canary").await?;
    let other = seal(&fleet, &format!("{to} --namespace other"), "canary").await?;
    let damaged = format!("{}AAAA", good.get(..good.len() - 4).unwrap_or_default());
    for (value, why) in [
        (
            &*damaged,
            "it is damaged, or sealed for another namespace than 'default'",
        ),
        (
            &other,
            "it is damaged, or sealed for another namespace than 'default'",
        ),
        (
            "washlet-sealed:9:AAAA",
            "no sealed value that this version can read",
        ),
    ] {
        let secret = json!({ "imagePullSecret": { "username": "u", "password": value } });
        let workload = app("app", &image, secret).interface(SECRETS, &[("key", &good)]);
        let reply = host
            .send("workload.start", &workload.request().to_string())
            .await?;
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        assert!(
            text.contains("components[0].imagePullSecret.password cannot be opened"),
            "{text}"
        );
        assert!(text.contains(why), "{text}");
        let headers = reply.headers.context("a refusal has headers")?;
        let code = headers
            .get("Nats-Service-Error-Code")
            .map(|code| code.as_str());
        assert_eq!(code, Some("400"));
        assert_eq!(host.status("app").await?.state, "NOT_FOUND");
    }
    let secret = json!({ "imagePullSecret": { "username": "u", "password": &good } });
    let workload = app("app", &image, secret).interface(SECRETS, &[("key", &good)]);
    host.run_well(&workload).await?;
    assert_eq!(read(&host).await?, (200, "text canary".to_owned()));
    Ok(())
}

/// A directory of manifests may hold sealed values, too.
#[tokio::test]
async fn a_sealed_manifest_runs_from_a_directory() -> Result<()> {
    let (manifests, work) = (TempDir::new()?, TempDir::new()?);
    let path = manifests.path().to_string_lossy().into_owned();
    let (fleet, host) = one_host(&["--manifest-dir", &path]).await?;
    let image = fleet.push("vault").await?;
    let plain = manifest(&work, &image, 1, "")?;
    let sealed = sealed_manifest(&fleet, &plain, &[key(&host)]).await?;
    fs::copy(sealed, manifests.path().join("app.yaml"))?;
    until(SOON, "the manifest is in force", async || {
        (read(&host).await.ok()? == (200, "text canary-entry".to_owned())).then_some(())
    })
    .await?;
    assert!(!host.log().contains("canary"));
    Ok(())
}
