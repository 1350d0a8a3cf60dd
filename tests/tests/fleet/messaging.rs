//! `wasmcloud:messaging` on NATS.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use async_nats::Client;
use fleet::{
    http::send,
    wait::SOON,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{FutureExt, StreamExt};
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use crate::{HOST, app, one_host};

const MESSAGING: &str = "wasmcloud:messaging/consumer,handler@0.2.0";

/// A replica that listens to `tasks.>`; all replicas have one name.
fn listener(id: &str, image: &str, config: &[(&str, &str)]) -> Workload {
    let config: Vec<_> = [("subscriptions", "tasks.>")]
        .iter()
        .chain(config)
        .copied()
        .collect();
    Workload::new(id)
        .component("messenger", image, json!({}))
        .with(json!({ "name": "listener" }))
        .interface(MESSAGING, &config)
}

async fn ask(client: &Client, subject: &str, body: &str) -> Result<String> {
    let request = async_nats::Request::new()
        .payload(body.to_owned().into())
        .timeout(Some(SOON));
    let reply = client.send_request(subject.to_owned(), request).await?;
    Ok(String::from_utf8_lossy(&reply.payload).into_owned())
}

/// C21: a message is handled and answered; a bad one costs itself only.
#[tokio::test]
async fn a_message_is_handled_and_answered() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("messenger").await?;
    host.run_well(&listener("w", &image, &[])).await?;
    assert_eq!(ask(host.nats(), "tasks.a", "echo:hello").await?, "hello");
    for bad in ["trap", "err", "nothing"] {
        host.nats().publish("tasks.a", bad.into()).await?;
    }
    assert_eq!(
        ask(host.nats(), "tasks.b.c", "echo:still here").await?,
        "still here"
    );
    host.stop("w").await?;
    let ask = host.nats().request("tasks.a", "echo:hello".into()).await;
    assert!(ask.is_err(), "a stopped workload hears nothing");
    Ok(())
}

/// C21: replicas of one workload share its messages, each once, also far more than fit at once.
#[tokio::test]
async fn replicas_share_messages_and_lose_none() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("messenger").await?;
    let (a, b) = tokio::try_join!(fleet.host(&[]), fleet.host(&[]))?;
    for (host, id) in [(&a, "w-a"), (&b, "w-b")] {
        host.run_well(&listener(id, &image, &[])).await?;
    }
    let (client, count) = (a.nats(), 1_000);
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(format!("{inbox}.*")).await?;
    for n in 0..count {
        let (subject, reply_to) = (format!("tasks.{n}"), format!("{inbox}.{n}"));
        let body = format!("echo:{n}");
        client
            .publish_with_reply(subject, reply_to, body.into())
            .await?;
    }
    let mut numbers = BTreeSet::new();
    while numbers.len() < count {
        let reply = timeout(SOON, replies.next()).await;
        let reply = reply.with_context(|| format!("{} of {count} came", numbers.len()))?;
        let body = reply.context("the server went away")?.payload;
        assert!(numbers.insert(body.clone()), "{body:?} was answered twice");
    }
    // Once both have finished and stopped, whatever they sent is here.
    a.stop("w-a").await?;
    b.stop("w-b").await?;
    let late = replies.next().now_or_never();
    assert!(late.is_none(), "one more answer than messages: {late:?}");
    Ok(())
}

/// C21: without a group, every replica gets every message.
#[tokio::test]
async fn a_broadcast_reaches_every_replica() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("messenger").await?;
    let (a, b) = tokio::try_join!(fleet.host(&[]), fleet.host(&[]))?;
    for (host, id) in [(&a, "w-a"), (&b, "w-b")] {
        host.run_well(&listener(id, &image, &[("consumer_group", "broadcast")]))
            .await?;
    }
    let inbox = a.nats().new_inbox();
    let mut replies = a.nats().subscribe(inbox.clone()).await?;
    a.nats()
        .publish_with_reply("tasks.x", inbox, "echo:x".into())
        .await?;
    for _ in 0..2 {
        timeout(SOON, replies.next())
            .await?
            .context("a reply from each replica")?;
    }
    Ok(())
}

/// C21: a component publishes and asks.
#[tokio::test]
async fn a_component_publishes_and_asks() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("messenger").await?;
    host.run_well(&app("app", &image, json!({})).interface(MESSAGING, &[]))
        .await?;
    let mut heard = host.listen("outside.>").await?;

    let publish = post(&host, "/publish?subject=outside.news", "news").await?;
    assert_eq!(publish, (200, String::new()));
    let news = timeout(SOON, heard.next()).await?.context("news")?;
    assert_eq!(
        (news.subject.as_str(), &news.payload[..]),
        ("outside.news", &b"news"[..])
    );

    let answer = async {
        let question = timeout(SOON, heard.next()).await?.context("a question")?;
        let to = question.reply.context("a question says where to answer")?;
        anyhow::Ok(host.nats().publish(to, "42".into()).await?)
    };
    let (reply, answer) = tokio::join!(
        post(&host, "/request?subject=outside.q&timeout=20000", "?"),
        answer
    );
    answer?;
    assert_eq!(reply?, (200, "42".to_owned()));

    // Nobody there, nobody answering, nowhere to go.
    let failures = [
        (
            "/request?subject=nobody.there&timeout=5000",
            "no responders",
        ),
        (
            "/request?subject=outside.silence&timeout=300",
            "timed out after 300ms",
        ),
    ];
    let mut words = BTreeSet::new();
    for (path, word) in failures {
        let (status, text) = post(&host, path, "?").await?;
        assert_eq!(status, 502, "{path}");
        assert!(text.contains(word), "{path}: {text}");
        words.insert(text);
    }
    assert_eq!(words.len(), failures.len());
    Ok(())
}

async fn post(host: &Washlet, path: &str, body: &str) -> Result<(u16, String)> {
    let reply = send(host.http_port(), HOST, Method::POST, path, body.to_owned()).await?;
    Ok((reply.status, reply.body))
}

/// A component cannot command hosts, nor write to what NATS itself goes by, whatever the host may do there.
#[tokio::test]
async fn a_component_has_no_way_to_the_fleets_own_subjects() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("messenger").await?;
    host.run_well(&listener("w", &image, &[]).http(HOST))
        .await?;
    let stop = format!("runtime.host.{}.workload.stop", host.id());
    let body = r#"{"workloadId":"w"}"#;
    let taken = [
        format!("/publish?subject={stop}"),
        format!("/publish?subject=tasks.a&reply-to={stop}"),
        format!("/request?subject={stop}"),
        "/request?subject=$JS.API.STREAM.NAMES".to_owned(),
        "/publish?subject=$KV.theirs.key".to_owned(),
    ];
    for path in taken {
        let reply = send(host.http_port(), HOST, Method::POST, &path, body).await?;
        assert_eq!(reply.status, 502, "{path}: {}", reply.body);
        assert!(
            reply.body.contains("not for components"),
            "{path}: {}",
            reply.body
        );
    }
    assert_eq!(host.status("w").await?.state, "RUNNING");
    let refused = host
        .run(&listener("all", &image, &[("subscriptions", "runtime.>")]))
        .await?;
    assert_eq!(refused.state, "ERROR");
    assert!(
        refused.message.contains("begin with a word of your own"),
        "{}",
        refused.message
    );
    Ok(())
}
