//! A host leaves, or takes no more work, and nobody who looks misses a request.

use anyhow::{Context, Result};
use async_nats::Message;
use fleet::balance::{Load, under_load};
use fleet::http;
use fleet::wait::{SOON, until};
use fleet::washlet::{Fleet, Washlet};
use futures::StreamExt;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::admin::{ADMIN, ask};
use crate::{HOST, app, one_host, wash};

/// Clients that send at the same time.
const CALLERS: usize = 16;

/// The code in a reply that is a failure, and whether to try again.
fn failure(reply: &Message) -> Option<(String, String)> {
    let headers = reply.headers.as_ref()?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    Some((header("Nats-Service-Error-Code")?, header("Washlet-Retry")?))
}

/// What a host says in a ping's reply about being cordoned.
async fn cordoned(host: &Washlet) -> Result<Option<String>> {
    let reply = host.request("heartbeat", &json!({})).await?;
    let label = reply
        .get("labels")
        .and_then(|l| l.get("washlet.dev/cordoned"));
    Ok(label.and_then(Value::as_str).map(str::to_owned))
}

/// A cordoned host refuses what is new in a way that sends it elsewhere, goes on with what it has, and is
/// cordoned still after a restart.
#[tokio::test]
async fn a_cordoned_host_takes_nothing_new() -> Result<()> {
    let (fleet, mut host) = one_host(&ADMIN).await?;
    let image = fleet.push("http-hello").await?;
    let old = app("old", &image, json!({}));
    let new = app("new", &image, json!({}));
    host.run_well(&old).await?;
    assert_eq!(cordoned(&host).await?, None);

    let (code, result) = wash(&fleet, &format!("hosts cordon {}", host.id())).await?;
    assert_eq!(
        (code, &result["data"]["cordoned"]),
        (0, &json!(true)),
        "{result}"
    );
    let reply = host
        .send("workload.start", &new.request().to_string())
        .await?;
    assert_eq!(failure(&reply), Some(("503".into(), "true".into())));
    let status = host.run(&new).await?;
    assert_eq!(status.state, "ERROR");
    assert!(status.message.contains("cordoned"), "{}", status.message);
    assert_eq!(host.status("new").await?.state, "NOT_FOUND");
    host.run_well(&old).await?;
    let (_, ready) = ask(&host, "/readyz").await?;
    assert!(!ready.contains("cordon"), "{ready}");
    let (code, result) = wash(
        &fleet,
        &format!("workload start --wait --image {image} --name new"),
    )
    .await?;
    assert_eq!(code, 4, "{result}");
    let message = result["message"].as_str().unwrap_or_default();
    assert!(message.contains("1 cordoned"), "{message}");

    host.restart().await?;
    assert_eq!(cordoned(&host).await?.as_deref(), Some("true"));
    assert_eq!(host.run(&new).await?.state, "ERROR");
    until(SOON, "what ran before runs", async || {
        (host.status("old").await.ok()?.state == "RUNNING").then_some(())
    })
    .await?;

    let (code, result) = wash(&fleet, &format!("hosts uncordon {}", host.id())).await?;
    assert_eq!(
        (code, &result["data"]["cordoned"]),
        (0, &Value::Null),
        "{result}"
    );
    host.run_well(&new).await?;
    host.restart().await?;
    assert_eq!(cordoned(&host).await?, None);
    Ok(())
}

/// Secrets leave a host only for a workload that `wash` may move, and only when it is to leave.
#[tokio::test]
async fn a_handover_is_refused_unless_it_is_meant() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let placement = json!({ "washlet.dev/placement": "{\"replicas\":2}" });
    let movable = app("movable", &image, json!({})).with(json!({ "annotations": placement }));
    host.run_well(&movable).await?;
    host.run_well(&app("pinned", &image, json!({}))).await?;
    let code = async |id: &str| {
        let payload = json!({ "workloadId": id }).to_string();
        let reply = host.send("workload.handover", &payload).await?;
        anyhow::Ok(failure(&reply).map(|(code, _)| code))
    };
    assert_eq!(code("movable").await?.as_deref(), Some("409"));
    host.request("host.cordon", &json!({})).await?;
    assert_eq!(code("pinned").await?.as_deref(), Some("409"));
    assert_eq!(code("nobody").await?.as_deref(), Some("404"));
    assert_eq!(code("movable").await?, None);
    let payload = json!({ "workloadId": "movable" });
    let given = host.request("workload.handover", &payload).await?;
    let (given, asked) = (&given["start"], movable.request());
    assert_eq!(given["workloadId"], asked["workloadId"]);
    for field in ["/workload/annotations", "/workload/witWorld/components"] {
        let asked = asked.pointer(field).context("it is asked for")?;
        assert_eq!(given.pointer(field), Some(asked));
    }
    Ok(())
}

/// `wash hosts drain` under load: not one request of a client that looks fails, the host ends well, its
/// replica runs on the third host, and the journal does not bring it back.
#[tokio::test]
async fn a_drain_under_load_fails_no_request() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    let args = [&ADMIN[..], &["--drain-delay", "2s"]].concat();
    let mut hosts = try_join_all((0..3).map(|_| fleet.host(&args))).await?;
    let start =
        format!("workload start --wait --replicas 2 --image {image} --name app --http-host {HOST}");
    let (code, started) = wash(&fleet, &start).await?;
    assert_eq!(code, 0, "{started}");
    let placed: Vec<_> = started["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["hostId"].as_str()?, one["workloadId"].as_str()?)))
        .collect();
    let at = |id: &str| hosts.iter().position(|host| host.id() == id);
    let leaving = at(placed[0].0).context("a host")?;
    let staying = at(placed[1].0).context("a host")?;
    let spare = 3 - leaving - staying;
    let moved = placed[0].1.to_owned();
    // Nobody's but its host's.
    hosts[leaving]
        .run_well(&app("single", &image, json!({})).with(json!({ "name": "other" })))
        .await?;

    let load = Load::default();
    let drain = async {
        until(SOON, "the load has begun", async || {
            (load.requests() > 200).then_some(())
        })
        .await?;
        let line = format!("hosts drain {} --deadline 20s", hosts[leaving].id());
        let drained = wash(&fleet, &line).await;
        hosts[leaving].gone().await.and(drained)
    };
    let both = [&hosts[leaving], &hosts[staying]];
    let drained = under_load(&both, HOST, CALLERS, &load, drain).await?;
    let (requests, failures) = (load.requests(), load.failures());
    eprintln!("drain under load: {requests} requests, {failures} failures");
    assert_eq!(failures, 0, "of {requests} requests");

    let (code, result) = drained;
    assert_eq!(code, 0, "{result}");
    assert_eq!(result["data"]["goodbye"], json!(true), "{result}");
    let fate = |id: &str| {
        let all = result["data"]["workloads"].as_array()?;
        let one = all.iter().find(|one| one["workloadId"] == id)?;
        Some((one["fate"].clone(), one["movedTo"].clone()))
    };
    let to = hosts[spare].id();
    assert_eq!(fate(&moved), Some((json!("runs elsewhere"), json!(to))));
    assert_eq!(
        fate("single"),
        Some((json!("ends with its host"), Value::Null))
    );
    assert_eq!(hosts[spare].status(&moved).await?.state, "RUNNING");
    let answer = http::get(hosts[spare].http_port(), HOST, "/").await?;
    assert_eq!(answer.status, 200);
    let status = hosts[leaving].wait_exit(SOON).await?;
    assert_eq!(status.code(), Some(0));

    let left = &mut hosts[leaving];
    left.restart().await?;
    until(SOON, "what was not moved runs again", async || {
        (left.status("single").await.ok()?.state == "RUNNING").then_some(())
    })
    .await?;
    assert_eq!(left.status(&moved).await?.state, "NOT_FOUND");
    assert_eq!(cordoned(left).await?.as_deref(), Some("true"));
    Ok(())
}

/// With nowhere to go, the host stays, and says for what.
#[tokio::test]
async fn a_host_stays_when_its_replicas_fit_nowhere() -> Result<()> {
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    let hosts = [fleet.host(&[]).await?, fleet.host(&[]).await?];
    let start = format!("workload start --wait --replicas 2 --image {image} --name app");
    let (code, started) = wash(&fleet, &start).await?;
    assert_eq!(code, 0, "{started}");
    let line = format!("hosts drain {} --wait 500ms", hosts[0].id());
    let (code, result) = wash(&fleet, &line).await?;
    assert_eq!(code, 1, "{result}");
    assert_eq!(result["data"][0]["fate"], json!("could not be moved"));
    assert_eq!(cordoned(&hosts[0]).await?.as_deref(), Some("true"));
    // Longer than the host has.
    let reply = hosts[0]
        .send("host.drain", r#"{"deadlineSeconds":31}"#)
        .await?;
    assert_eq!(failure(&reply), Some(("400".into(), "false".into())));
    let (code, result) = wash(&fleet, &format!("{line} --force")).await?;
    assert_eq!(code, 0, "{result}");
    let mut hosts = hosts;
    assert_eq!(hosts[0].wait_exit(SOON).await?.code(), Some(0));
    Ok(())
}

/// SIGINT drains as SIGTERM does, and a second signal ends what has no end.
#[tokio::test]
async fn a_second_signal_ends_a_host_at_once() -> Result<()> {
    let (fleet, mut host) = one_host(&["--grace", "10m", "--drain-delay", "10m"]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    let subject = format!("washlet.event.{}.goodbye", host.id());
    let mut goodbye = host.listen(&subject).await?;
    host.interrupt();
    timeout(SOON, goodbye.next()).await?.context("a goodbye")?;
    // Draining, it serves on.
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    host.terminate();
    assert_eq!(host.wait_exit(SOON).await?.code(), Some(1));
    Ok(())
}
