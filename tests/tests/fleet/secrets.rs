//! Secrets of workloads: who gets them, and that nobody else sees them.

use std::fs;

use anyhow::Result;
use async_nats::Subscriber;
use fleet::{
    http::get,
    washlet::{Fleet, Washlet},
};
use futures::{FutureExt, StreamExt};
use serde_json::json;
use tempfile::TempDir;

use crate::{HOST, app};

pub(crate) const SECRETS: &str = "wasmcloud:secrets/store,reveal@0.1.0-draft";

/// A host with secrets in files and in its environment, whose log says all there is to say.
async fn host(fleet: &Fleet) -> Result<(Washlet, TempDir)> {
    let dir = TempDir::new()?;
    for (namespace, value) in [("default", "canary-file"), ("other", "canary-other")] {
        fs::create_dir(dir.path().join(namespace))?;
        fs::write(dir.path().join(namespace).join("key"), value)?;
    }
    fs::write(dir.path().join("default/binary"), [0xff, b'c', 0])?;
    let path = dir.path().to_string_lossy().into_owned();
    let args = [
        "--secrets-dir",
        &path,
        "--secrets-env-prefix",
        "TEST_SECRET_",
    ];
    let args: Vec<_> = args.into_iter().chain(["--log-level", "trace"]).collect();
    let variables = [
        ("TEST_SECRET_default__key", "canary-env"),
        ("TEST_SECRET_other__key", "canary-other"),
    ];
    let host = Washlet::start_with(&fleet.nats, &args, &variables).await?;
    Ok((host, dir))
}

async fn read(host: &Washlet, path: &str) -> Result<(u16, String)> {
    let reply = get(host.http_port(), HOST, path).await?;
    Ok((reply.status, reply.body))
}

/// What a subscription has by now.
pub(crate) fn heard(messages: &mut Subscriber) -> String {
    let mut all = String::new();
    while let Some(Some(message)) = messages.next().now_or_never() {
        all.push_str(&String::from_utf8_lossy(&message.payload));
    }
    all
}

/// C22: secrets reach the component that reveals them, of its own namespace, and no log, reply, heartbeat,
/// event or error.
#[tokio::test]
async fn secrets_are_seen_by_who_reveals_them_and_by_nobody_else() -> Result<()> {
    let fleet = Fleet::start().await?;
    let (host, dir) = host(&fleet).await?;
    let image = fleet.push("vault").await?;
    let mut said = host.nats().subscribe("washlet.>").await?;
    let mut beats = host.nats().subscribe("runtime.operator.>").await?;
    let mut replies = String::new();
    for (config, value) in [
        (&[("key", "canary-entry")][..], "text canary-entry"),
        (&[("backend", "files")], "text canary-file"),
        (&[("backend", "env")], "text canary-env"),
    ] {
        let workload = app("app", &image, json!({})).interface(SECRETS, config);
        let reply = host.request("workload.start", &workload.request()).await?;
        replies.push_str(&reply.to_string());
        host.run_well(&workload).await?;
        assert_eq!(read(&host, "/key").await?, (200, value.to_owned()));
        assert_eq!(read(&host, "/key?has").await?, (200, "there".to_owned()));
        for absent in ["/none", "/../other/key", "/PATH", "/backend"] {
            assert_eq!(read(&host, absent).await?.0, 404, "{absent} {config:?}");
        }
        for command in ["workload.status", "workload.inspect", "workload.list"] {
            let reply = host
                .request(command, &json!({ "workloadId": "app" }))
                .await?;
            replies.push_str(&reply.to_string());
        }
        if config == [("backend", "files")] {
            let bytes = get(host.http_port(), HOST, "/binary").await?;
            assert!(bytes.body.starts_with("bytes "), "{}", bytes.body);
            fs::write(dir.path().join("default/key"), "canary-again")?;
            let again = read(&host, "/key").await?.1;
            assert_eq!(again, "text canary-again", "a replaced file is read anew");
        }
        host.stop("app").await?;
    }
    // Refusals, with values that must not be in them.
    for config in [
        &[
            ("backend", "canary-backend-is-no-secret"),
            ("key", "canary-value"),
        ][..],
        &[("backend", "files"), ("token", "canary-value")],
        &[("backend", "memory"), ("token", "canary-value")],
    ] {
        let workload = app("app", &image, json!({})).interface(SECRETS, config);
        let status = host.run(&workload).await?;
        assert_ne!(status.state, "RUNNING", "{config:?}");
        replies.push_str(&status.message.replace("canary-backend-is-no-secret", ""));
        host.stop("app").await?;
    }
    assert!(host.log().contains("TRACE"), "the log says little");
    for (place, text) in [
        (
            "the log",
            host.log().replace("canary-backend-is-no-secret", ""),
        ),
        ("a reply", replies),
        ("an event", heard(&mut said)),
        ("a heartbeat", heard(&mut beats)),
    ] {
        let seen = text.lines().find(|line| line.contains("canary"));
        assert_eq!(seen, None, "{place} shows a secret");
    }
    Ok(())
}

/// C22: what this host does not offer is refused with what it does.
#[tokio::test]
async fn secrets_that_this_host_does_not_have_are_refused() -> Result<()> {
    let fleet = Fleet::start().await?;
    let host = fleet.host(&[]).await?;
    let image = fleet.push("vault").await?;
    let workload = app("app", &image, json!({})).interface(SECRETS, &[("backend", "files")]);
    let status = host.run(&workload).await?;
    assert!(
        status
            .message
            .contains("no backend 'files' on this host (there are: memory, nats, postgres)"),
        "{}",
        status.message
    );
    host.stop("app").await?;
    let memory = app("app", &image, json!({})).interface(SECRETS, &[("backend", "memory")]);
    let status = host.run(&memory).await?;
    assert!(
        status
            .message
            .contains("this backend does not offer secrets"),
        "{}",
        status.message
    );
    host.stop("app").await?;
    let later = app("app", &image, json!({})).interface("wasmcloud:secrets/store@3.0.0", &[]);
    let status = host.run(&later).await?;
    assert!(
        status.message.contains("wasmcloud:secrets/store@3.0.0"),
        "{}",
        status.message
    );
    Ok(())
}
