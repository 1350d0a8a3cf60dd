//! Compiled code: made by a process of its own, kept on disk, and used after a restart.

use std::fs;

use anyhow::{Context, Result};
use fleet::http;
use fleet::wait::{SOON, until};
use fleet::washlet::Washlet;
use fleet::workload::{Workload, component};
use serde_json::json;

use crate::{HOST, app, one_host};

/// The host's log says it for each component that it compiles.
const COMPILED: &str = "component compiled";

/// And for each that it did not have to compile.
const FOUND: &str = "compiled code was on disk";

/// Waits until the host's log has `text`: it comes through a pipe.
async fn logged(host: &Washlet, text: &str) -> Result<()> {
    let found = until(SOON, text, async || host.log().contains(text).then_some(()));
    found.await
}

/// A component is compiled once, whatever ends the host; with the registry gone it is there at once.
#[tokio::test]
async fn a_restarted_host_does_not_compile_again() -> Result<()> {
    let (mut fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("first", &image, json!({}))).await?;
    logged(&host, COMPILED).await?;
    let other = Workload::new("second").component("app", &image, json!({}));
    host.run_well(&other.http("other.test")).await?;
    assert_eq!(host.log().matches(COMPILED).count(), 1, "{}", host.log());

    fleet.registry.kill();
    host.restart().await?;
    host.run_well(&app("first", &image, json!({}))).await?;
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    logged(&host, FOUND).await?;
    assert!(!host.log().contains(COMPILED), "{}", host.log());
    Ok(())
}

/// What somebody else put there, or a power cut left, is compiled anew instead of executed.
#[tokio::test]
async fn damaged_code_is_compiled_anew() -> Result<()> {
    let (fleet, mut host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    host.kill();
    let dir = host.state_dir().join("compiled");
    let mut damaged = 0;
    for entry in fs::read_dir(&dir).with_context(|| format!("no {}", dir.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != "key") {
            let length = fs::metadata(&path)?.len();
            fs::File::options()
                .write(true)
                .open(&path)?
                .set_len(length / 2)?;
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    host.restart().await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    logged(&host, "compiled code is not usable").await?;
    logged(&host, COMPILED).await
}

/// A component the compiler refuses is a failed workload, in the compiler's words.
#[tokio::test]
async fn what_the_compiler_refuses_is_a_failed_workload() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let mut broken = component("http-hello")?;
    broken.truncate(broken.len() / 2);
    let image = fleet.registry.push("broken:1", broken).await?;
    let status = host.run(&app("app", &image, json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    assert!(
        status.message.contains("is not a valid component"),
        "{status:?}"
    );
    assert!(host.status("app").await.is_ok());
    Ok(())
}
