//! The permissions of `deploy/nats/permissions.conf`, in force on a real server.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use async_nats::{Client, ConnectOptions, Event};
use fleet::{
    http::send,
    nats::NatsServer,
    registry::Registry,
    wait::{SOON, until},
    washlet::Washlet,
    workload::{self, Workload},
};
use futures::{FutureExt, StreamExt};
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use crate::{HOST, app};

/// A server with the template's permissions; who shows no name is the test, and may do all in the account of hosts.
async fn server() -> Result<NatsServer> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/permissions.conf");
    let template = fs::read_to_string(path)?;
    let with_test = template.replacen("users = [", "users = [ { user: test, password: test }", 1);
    let passwords = ["OPERATOR", "WASH", "EDGE_1", "EDGE_2", "DATA"]
        .map(|name| format!("{name}_PASSWORD: \"of-{name}\"\n"))
        .concat();
    NatsServer::start_with(&format!("{passwords}{with_test}\nno_auth_user: test")).await
}

async fn host(server: &NatsServer, id: &str, password: &str) -> Result<Washlet> {
    let inbox = format!("_INBOX_{id}");
    let args = [
        "--host-id",
        id,
        "--heartbeat-interval",
        "500ms",
        "--scheduler-nats-user",
        id,
        "--scheduler-nats-inbox-prefix",
        &inbox,
        "--data-nats-user",
        "data",
    ];
    let variables = [
        ("WASH_SCHEDULER_NATS_PASSWORD", password),
        ("WASH_DATA_NATS_PASSWORD", "of-DATA"),
    ];
    Washlet::start_with(server, &args, &variables).await
}

/// A connection as `user`, and how often the server denied it something.
async fn connect(
    server: &NatsServer,
    user: &str,
    password: &str,
) -> Result<(Client, Arc<AtomicUsize>)> {
    let denied = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&denied);
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    let client = options
        .event_callback(move |event| {
            let says = event.to_string().to_lowercase();
            if matches!(event, Event::ServerError(_)) && says.contains("permissions violation") {
                count.fetch_add(1, Ordering::SeqCst);
            }
            std::future::ready(())
        })
        .connect(server.url())
        .await?;
    Ok((client, denied))
}

async fn denied(count: &AtomicUsize, times: usize) -> Result<()> {
    until(SOON, "the server denies it", async || {
        (count.load(Ordering::SeqCst) >= times).then_some(())
    })
    .await
}

/// Issue 5, item 11: a host works with no more than the template gives it.
#[tokio::test]
async fn a_host_works_with_the_template() -> Result<()> {
    let server = server().await?;
    let registry = Registry::start().await?;
    let host = host(&server, "edge-1", "of-EDGE_1").await?;
    let counter = registry
        .push("counter:1", workload::component("http-counter")?)
        .await?;
    let messenger = registry
        .push("messenger:1", workload::component("messenger")?)
        .await?;
    let counts = Workload::new("counts")
        .component("counter", &counter, json!({}))
        .interface("wasi:keyvalue/store,atomics@0.2.0-draft", &[])
        .http("counts.test");
    host.run_well(&counts).await?;
    let port = host.http_port();
    let count = send(port, "counts.test", Method::GET, "/visits", "").await?;
    assert_eq!((count.status, count.body.trim()), (200, "1"));

    let listens = Workload::new("listens")
        .component("messenger", &messenger, json!({}))
        .interface(
            "wasmcloud:messaging/consumer,handler@0.2.0",
            &[("subscriptions", "tasks.>")],
        )
        .http(HOST);
    host.run_well(&listens).await?;
    let (data, _) = connect(&server, "data", "of-DATA").await?;
    let ask = async_nats::Request::new().payload("echo:hello".into());
    let reply = data
        .send_request("tasks.a", ask.timeout(Some(SOON)))
        .await?;
    assert_eq!(reply.payload, "hello");
    let asked = send(
        port,
        HOST,
        Method::POST,
        "/request?subject=tasks.b&timeout=5000",
        "echo:x",
    );
    assert_eq!(
        asked.await?.body,
        "x",
        "answers come back through the host's own inbox"
    );

    // The operator and people reach it, within their own permissions.
    for (user, password) in [("operator", "of-OPERATOR"), ("wash", "of-WASH")] {
        let (client, _) = connect(&server, user, password).await?;
        let mut heartbeats = client.subscribe("runtime.operator.heartbeat.>").await?;
        let asked = client.request(
            "runtime.host.edge-1.workload.status",
            r#"{"workloadId":"counts"}"#.into(),
        );
        let status = String::from_utf8_lossy(&asked.await?.payload).into_owned();
        assert!(
            status.contains("WORKLOAD_STATE_RUNNING"),
            "{user}: {status}"
        );
        let heartbeat = timeout(SOON, heartbeats.next()).await;
        let heartbeat = heartbeat.with_context(|| format!("{user} hears no heartbeat"))?;
        let heartbeat = heartbeat.context("the server went away")?;
        assert_eq!(
            heartbeat.subject.as_str(),
            "runtime.operator.heartbeat.edge-1"
        );
    }
    host.stop("counts").await?;
    Ok(())
}

/// Issue 5, item 11: a host can neither hear nor command another one, nor speak in its name.
#[tokio::test]
async fn a_host_has_no_power_over_another() -> Result<()> {
    let server = server().await?;
    let registry = Registry::start().await?;
    let image = registry
        .push("hello:1", workload::component("http-hello")?)
        .await?;
    let victim = host(&server, "edge-2", "of-EDGE_2").await?;
    victim.run_well(&app("w", &image, json!({}))).await?;
    let (intruder, denials) = connect(&server, "edge-1", "of-EDGE_1").await?;
    let everything = server.client().await?;
    let mut said = everything.subscribe(">").await?;
    everything.flush().await?;

    let mut heard = Vec::new();
    let wanted = [
        "runtime.host.edge-2.>",
        "runtime.host.>",
        "runtime.operator.heartbeat.>",
        "washlet.event.>",
        "_INBOX.>",
        "_INBOX_edge-2.>",
        ">",
    ];
    for subject in wanted {
        heard.push(intruder.subscribe(subject).await?);
    }
    denied(&denials, wanted.len()).await?;
    let forged = [
        ("runtime.host.edge-2.workload.stop", r#"{"workloadId":"w"}"#),
        ("runtime.host.edge-2.workload.start", "{}"),
        ("runtime.operator.heartbeat.edge-2", "{}"),
        ("washlet.event.edge-2.goodbye", "{}"),
        ("washlet.ping", ""),
    ];
    for (subject, body) in forged {
        intruder.publish(subject, body.into()).await?;
    }
    denied(&denials, wanted.len() + forged.len()).await?;
    // What is allowed comes after what is not, on one connection: whatever got through is there by then.
    intruder
        .publish("washlet.event.edge-1.last", "".into())
        .await?;
    let status = victim.status("w").await?;
    assert_eq!(status.state, "RUNNING", "{}", status.message);
    loop {
        let message = timeout(SOON, said.next())
            .await?
            .context("the server went away")?;
        let subject = message.subject.as_str();
        if subject == "washlet.event.edge-1.last" {
            break;
        }
        assert!(
            !matches!(
                subject,
                "runtime.host.edge-2.workload.stop" | "runtime.host.edge-2.workload.start"
            ) && message.payload != "{}",
            "{subject} got through"
        );
    }
    for mut subscription in heard {
        let heard = subscription.next().now_or_never().flatten();
        assert!(heard.is_none(), "heard {heard:?}");
    }
    Ok(())
}
