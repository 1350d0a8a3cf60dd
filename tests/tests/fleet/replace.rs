//! New content for an id that runs takes its place without a gap, or leaves it as it was.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use fleet::http;
use fleet::proxy::Proxy;
use fleet::wait::{SOON, until};
use fleet::washlet::{Fleet, Washlet};
use fleet::workload::Workload;
use futures::future::join_all;
use serde_json::json;

use crate::{HOST, app, one_host};

/// Clients that send at the same time.
const CALLERS: usize = 8;

/// What the first content answers everywhere, and the second at [`PATH`].
const BODIES: [&str; 2] = ["Hello from a washlet!\n", "slow\n"];

/// The second content takes its time there.
const PATH: &str = "/slow?ms=5";

/// A host that runs "app" with the first content; and the images of both.
async fn replaceable(args: &[&str]) -> Result<(Fleet, Washlet, [String; 2])> {
    let (fleet, host) = one_host(args).await?;
    let images = [
        fleet.push("http-hello").await?,
        fleet.push("hostile").await?,
    ];
    host.run_well(&app("app", &images[0], json!({}))).await?;
    Ok((fleet, host, images))
}

/// The same, and "app" with the second content through a registry that says nothing.
async fn held_up(fleet: &Fleet, images: &[String; 2]) -> Result<(Proxy, Workload)> {
    let registry = Proxy::start(&fleet.registry.address()).await?;
    let image = images[1].replace(&fleet.registry.address(), &registry.address());
    registry.pause();
    Ok((registry, app("app", &image, json!({}))))
}

async fn body(host: &Washlet) -> Result<String> {
    Ok(http::get(host.http_port(), HOST, PATH).await?.body)
}

/// Waits until something is on its way to replace what runs.
async fn coming(host: &Washlet) -> Result<()> {
    until(SOON, "the new content is being started", async || {
        let status = host.status("app").await.ok()?;
        assert_eq!(status.state, "RUNNING");
        status.message.contains("is being started").then_some(())
    })
    .await
}

/// To and fro under load: not a request fails, what was replaced is gone, and a restart runs what came last.
#[tokio::test]
async fn a_replacement_under_load_fails_no_request() -> Result<()> {
    let (_fleet, mut host, images) = replaceable(&[]).await?;
    let (done, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let bad = std::sync::Mutex::new(Vec::new());
    {
        let caller = async |_: usize| {
            let client = reqwest::Client::builder().no_proxy().build()?;
            while !done.load(Ordering::SeqCst) {
                let url = format!("http://127.0.0.1:{}{PATH}", host.http_port());
                let answer = async {
                    let answer = client.get(url).header("host", HOST).send().await?;
                    let status = answer.status().as_u16();
                    anyhow::Ok((status, answer.text().await?))
                };
                let answer = answer.await.map_err(|error| format!("{error:#}"));
                requests.fetch_add(1, Ordering::SeqCst);
                match answer {
                    Ok((200, body)) if BODIES.contains(&body.as_str()) => {}
                    answer => bad
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(format!("{answer:?}")),
                }
            }
            anyhow::Ok(())
        };
        let replace = async {
            for turn in 1..=9 {
                let seen = requests.load(Ordering::SeqCst);
                host.run_well(&app("app", &images[turn % 2], json!({})))
                    .await?;
                // Said to run, it is the only one.
                assert_eq!(body(&host).await?, BODIES[turn % 2]);
                until(SOON, "requests go on", async || {
                    (requests.load(Ordering::SeqCst) > seen + CALLERS).then_some(())
                })
                .await?;
            }
            anyhow::Ok(())
        };
        let replace = async {
            let replaced = replace.await;
            done.store(true, Ordering::SeqCst);
            replaced
        };
        let callers = join_all((0..CALLERS).map(caller));
        let (replaced, callers) = tokio::join!(replace, callers);
        replaced?;
        callers.into_iter().collect::<Result<()>>()?;
    }
    let bad = bad.into_inner()?;
    let requests = requests.into_inner();
    eprintln!(
        "9 replacements under load: {requests} requests, {} failures",
        bad.len()
    );
    assert!(bad.is_empty(), "of {requests}: {bad:?}");
    host.restart().await?;
    until(SOON, "what came last runs again", async || {
        (body(&host).await.ok()? == BODIES[1]).then_some(())
    })
    .await
}

/// New content that fails leaves what runs as it is, says why, and is forgotten by a restart.
#[tokio::test]
async fn new_content_that_fails_changes_nothing() -> Result<()> {
    let (fleet, mut host, images) = replaceable(&[]).await?;
    let missing = format!("{}/nothing:1", fleet.registry.address());
    let status = host.run(&app("app", &missing, json!({}))).await?;
    assert_eq!(status.state, "ERROR");
    assert!(
        status.message.contains("what ran before goes on"),
        "{status:?}"
    );
    assert!(status.message.contains("nothing:1"), "{status:?}");
    let status = host.status("app").await?;
    assert_eq!(status.state, "RUNNING");
    assert!(
        status.message.contains("could not be started"),
        "{status:?}"
    );
    assert_eq!(body(&host).await?, BODIES[0]);
    // What cannot be honoured is refused before anything is begun.
    let refused = app("app", &images[1], json!({})).interface("acme:nothing/at-all", &[]);
    let status = host.run(&refused).await?;
    assert_eq!(status.state, "ERROR");
    assert_eq!(body(&host).await?, BODIES[0]);

    host.restart().await?;
    until(SOON, "what ran before runs again", async || {
        (body(&host).await.ok()? == BODIES[0]).then_some(())
    })
    .await?;
    let status = host.status("app").await?;
    assert_eq!(
        (status.state.as_str(), status.message.as_str()),
        ("RUNNING", "Workload is Running")
    );
    // It may be tried again, and work.
    host.run_well(&app("app", &images[1], json!({}))).await?;
    assert_eq!(body(&host).await?, BODIES[1]);
    Ok(())
}

/// A stop takes back what is coming, too; no restart brings either of them back.
#[tokio::test]
async fn a_stop_ends_both() -> Result<()> {
    let (fleet, mut host, images) = replaceable(&[]).await?;
    let (registry, next) = held_up(&fleet, &images).await?;
    let stop = async {
        coming(&host).await?;
        host.stop("app").await
    };
    let (started, stopped) = tokio::join!(host.run(&next), stop);
    assert_eq!(stopped?.state, "STOPPING");
    assert_eq!(started?.state, "STOPPING");
    registry.resume();
    assert_eq!(host.status("app").await?.state, "NOT_FOUND");
    assert_eq!(http::get(host.http_port(), HOST, PATH).await?.status, 404);
    host.restart().await?;
    assert_eq!(host.status("app").await?.state, "NOT_FOUND");
    Ok(())
}

/// A host that is killed while new content comes up runs what it ran.
#[tokio::test]
async fn a_restart_in_between_runs_what_ran() -> Result<()> {
    let (fleet, mut host, images) = replaceable(&[]).await?;
    let (_registry, next) = held_up(&fleet, &images).await?;
    let subject = format!("runtime.host.{}.workload.start", host.id());
    let request = next.request().to_string();
    host.nats().publish(subject, request.into()).await?;
    coming(&host).await?;
    host.restart().await?;
    until(SOON, "what ran before runs again", async || {
        (body(&host).await.ok()? == BODIES[0]).then_some(())
    })
    .await?;
    assert_eq!(host.status("app").await?.message, "Workload is Running");
    Ok(())
}

/// The last word counts: what was coming gives way to newer content, and to what runs.
#[tokio::test]
async fn the_last_content_counts() -> Result<()> {
    let (fleet, host, images) = replaceable(&[]).await?;
    let (_registry, held) = held_up(&fleet, &images).await?;
    let again = async {
        coming(&host).await?;
        host.run(&app("app", &images[0], json!({}))).await
    };
    let (superseded, same) = tokio::join!(host.run(&held), again);
    assert_eq!(superseded?.state, "STOPPING");
    assert_eq!(same?.message, "Workload is Running");
    let newer = async {
        coming(&host).await?;
        host.run(&app("app", &images[1], json!({}))).await
    };
    let (superseded, newer) = tokio::join!(host.run(&held), newer);
    assert_eq!(superseded?.state, "STOPPING");
    assert_eq!(newer?.state, "RUNNING");
    assert_eq!(body(&host).await?, BODIES[1]);
    let status = host.status("app").await.context("a status")?;
    assert_eq!(status.message, "Workload is Running");
    Ok(())
}
