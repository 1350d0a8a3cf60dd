//! What NATS can do to a host, and what the host makes of it: in every case it serves on, says what is wrong,
//! and is whole again without a restart.

use std::{
    fs,
    num::NonZeroU32,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use fleet::{
    accounts::{Account, Operator},
    http::{Reply, get, send},
    nats::NatsServer,
    proxy::Proxy,
    registry::Registry,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::{self, Workload},
};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    HOST,
    admin::{ADMIN, ask, sample, until_ready},
    app,
};

/// A silent server is given up after 1.5 s.
const WATCHFUL: [&str; 6] = [
    "--nats-ping-interval",
    "500ms",
    "--heartbeat-interval",
    "500ms",
    ADMIN[0],
    ADMIN[1],
];

const STORE: &str = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
const MESSAGING: &str = "wasmcloud:messaging/consumer@0.2.0";

/// Where the component answers that stores nothing.
const HELLO: &str = "hello.test";

/// Runs a component that stores what it is sent, for [`HOST`], and one that needs nobody, for [`HELLO`].
async fn start_both(registry: &Registry, host: &Washlet) -> Result<()> {
    let kv = registry.push("kv:1", workload::component("kv")?);
    let hello = registry.push("http-hello:1", workload::component("http-hello")?);
    let (kv, hello) = tokio::try_join!(kv, hello)?;
    host.run_well(&app("kv", &kv, json!({})).interface(STORE, &[]))
        .await?;
    let hello = Workload::new("hello").component("app", &hello, json!({}));
    host.run_well(&hello.http(HELLO)).await
}

async fn put(host: &Washlet, key: &str, value: &str) -> Result<Reply> {
    let path = format!("/bucket/{key}");
    send(host.http_port(), HOST, Method::PUT, &path, value.to_owned()).await
}

/// A value that is stored comes back.
async fn stores(host: &Washlet, key: &str, value: &str) -> Result<()> {
    let reply = put(host, key, value).await?;
    ensure!(reply.status == 204, "put {key}: {}", reply.body);
    let reply = get(host.http_port(), HOST, &format!("/bucket/{key}")).await?;
    ensure!(reply.body == value, "get {key}: {}", reply.body);
    Ok(())
}

/// What needs no NATS is answered.
async fn serves(host: &Washlet) -> Result<()> {
    let reply = get(host.http_port(), HELLO, "/").await?;
    ensure!(reply.status == 200, "{}", reply.body);
    ensure!(ask(host, "/livez").await?.0 == 200, "not alive");
    Ok(())
}

/// The host hears commands and sends heartbeats, and none of its workloads was started anew.
async fn commanded(host: &Washlet, workloads: usize) -> Result<()> {
    until_ready(host, true).await?;
    until(SOON, "the host answers", async || {
        (host.status("hello").await.ok()?.state == "RUNNING").then_some(())
    })
    .await?;
    let subject = format!("runtime.operator.heartbeat.{}", host.id());
    let mut heartbeats = host.nats().subscribe(subject).await?;
    let heartbeat = tokio::time::timeout(SOON, heartbeats.next()).await?;
    heartbeat.context("a heartbeat")?;
    let starts = host.log().matches("workload is running").count();
    ensure!(starts == workloads, "workloads started {starts} times");
    Ok(())
}

/// How often each connection was made: for commands, and for data.
async fn connections(host: &Washlet) -> Result<(u64, u64)> {
    Ok((
        sample(host, "washlet_nats_connects_total").await?,
        sample(host, "washlet_data_nats_connects_total").await?,
    ))
}

/// A server that says nothing is noticed, however open its connections are.
#[tokio::test]
async fn a_silent_server_is_noticed_and_heard_again() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let host = fleet.host(&WATCHFUL).await?;
    start_both(&fleet.registry, &host).await?;
    stores(&host, "k", "before").await?;
    fleet.nats.pause();
    until_ready(&host, false).await?;
    let (_, reason) = ask(&host, "/readyz").await?;
    assert_eq!(reason, "control plane: not connected to NATS\n");
    serves(&host).await?;
    let data = "washlet_data_nats_connected";
    until(SOON, "the connection for data is given up", async || {
        (sample(&host, data).await.ok()? == 0).then_some(())
    })
    .await?;
    fleet.nats.resume();
    commanded(&host, 2).await?;
    until(SOON, "the connection for data is back", async || {
        (sample(&host, data).await.ok()? == 1).then_some(())
    })
    .await?;
    stores(&host, "k", "after").await
}

/// Commands and data go over connections of their own: the loss of one is not that of the other.
#[tokio::test]
async fn a_partition_costs_what_lies_behind_it_alone() -> Result<()> {
    let fleet = Fleet::start().await?;
    let address = fleet.nats.address();
    let (control, data) = tokio::try_join!(Proxy::start(&address), Proxy::start(&address))?;
    let urls = [&control, &data].map(|proxy| format!("nats://{}", proxy.address()));
    let [scheduler, storage] = &urls;
    let host = Washlet::start_at(&fleet.nats, [scheduler, storage], &WATCHFUL, &[]).await?;
    start_both(&fleet.registry, &host).await?;
    stores(&host, "k", "before").await?;

    // In both directions, and then only towards the host, which can speak but is not told anything.
    for interrupt in [Proxy::pause, Proxy::mute] {
        interrupt(&control);
        until_ready(&host, false).await?;
        stores(&host, "k", "without commands").await?;
        serves(&host).await?;
        control.resume();
        commanded(&host, 2).await?;
    }
    let before = connections(&host).await?.0;
    control.cut();
    until(SOON, "it is connected again", async || {
        (connections(&host).await.ok()?.0 > before).then_some(())
    })
    .await?;
    commanded(&host, 2).await?;

    data.pause();
    let reply = put(&host, "k", "lost").await?;
    assert_eq!(reply.status, 500);
    let why = ["no answer within 5s", "not connected to NATS"];
    assert!(
        why.iter().any(|why| reply.body.contains(why)),
        "{}",
        reply.body
    );
    until(SOON, "the connection for data is given up", async || {
        let up = sample(&host, "washlet_data_nats_connected").await.ok()?;
        (up == 0).then_some(())
    })
    .await?;
    serves(&host).await?;
    commanded(&host, 2).await?;
    data.resume();
    until(SOON, "the component can store again", async || {
        stores(&host, "k", "with data").await.ok()
    })
    .await
}

/// A server that is about to end sends its connections away; they go to the other.
#[tokio::test]
async fn a_lame_duck_is_left_for_another_server() -> Result<()> {
    const SOON_GONE: &str = "lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"";
    let mut lame = NatsServer::start_with(SOON_GONE).await?;
    let (registry, mut other) = tokio::try_join!(Registry::start(), NatsServer::start())?;
    let both = format!("{},{}", lame.url(), other.url());
    // So that the host begins where it is waited for.
    other.kill();
    let host = Washlet::start_at(&lame, [&both, &both], &WATCHFUL, &[]).await?;
    start_both(&registry, &host).await?;
    other.restart().await?;
    let client = other.client().await?;
    let heartbeats = format!("runtime.operator.heartbeat.{}", host.id());
    let mut heartbeats = client.subscribe(heartbeats).await?;
    client.flush().await?;
    lame.lame_duck();
    tokio::time::timeout(SOON, heartbeats.next())
        .await?
        .context("a heartbeat at the other server")?;
    let payload = json!({ "workloadId": "hello" }).to_string();
    let subject = format!("runtime.host.{}.workload.status", host.id());
    until(SOON, "the host answers there", async || {
        let reply = client.request(subject.clone(), payload.clone().into());
        let reply = reply.await.ok()?;
        String::from_utf8_lossy(&reply.payload)
            .contains("RUNNING")
            .then_some(())
    })
    .await?;
    serves(&host).await?;
    assert!(host.log().contains("NATS server is about to shut down"));
    until(SOON, "the component can store there", async || {
        stores(&host, "k", "v").await.ok()
    })
    .await
}

/// A slow link delays, and is not taken for a dead one.
#[tokio::test]
async fn a_slow_link_is_no_dead_one() -> Result<()> {
    let fleet = Fleet::start().await?;
    let link = Proxy::start(&fleet.nats.address()).await?;
    let url = format!("nats://{}", link.address());
    let args = [&ADMIN[..], &["--heartbeat-interval", "1s"]].concat();
    let host = Washlet::start_at(&fleet.nats, [&url, &url], &args, &[]).await?;
    link.slow(NonZeroU32::new(24 << 10).context("a rate")?);
    start_both(&fleet.registry, &host).await?;
    // Two seconds each way.
    stores(&host, "large", &"x".repeat(48 << 10)).await?;
    commanded(&host, 2).await?;
    assert_eq!(connections(&host).await?, (1, 1));
    Ok(())
}

/// Replaces the file as a whole, as whoever renews credentials should.
fn renew(file: &Path, creds: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, creds)?;
    Ok(fs::rename(new, file)?)
}

/// Credentials that expire cost the host its connections until there are new ones in their file.
#[tokio::test]
async fn expired_credentials_are_read_again() -> Result<()> {
    let (operator, account) = (Operator::default(), Account::default());
    let mut nats = NatsServer::start_for(&operator, &account).await?;
    let registry = Registry::start().await?;
    let dir = TempDir::new()?;
    let file = dir.path().join("host.creds");
    let path = file.display().to_string();
    renew(&file, &account.creds(None)?)?;
    let args = [&WATCHFUL[..], &["--nats-creds", &path]].concat();
    let host = Washlet::start_with(&nats, &args, &[]).await?;
    start_both(&registry, &host).await?;

    let short = account.creds(Some(SystemTime::now() + Duration::from_secs(3)))?;
    renew(&file, &short)?;
    nats.restart().await?;
    until(SOON, "the server finds them expired", async || {
        let refusals = ["Authentication Expired", "authorization violation"];
        let log = host.log();
        refusals
            .iter()
            .any(|refusal| log.contains(refusal))
            .then_some(())
    })
    .await?;
    until_ready(&host, false).await?;
    serves(&host).await?;
    // Half of a file, as one that is written in place may be seen, ends nothing either.
    fs::write(&file, short.get(..100).unwrap_or_default())?;
    serves(&host).await?;
    renew(&file, &account.creds(None)?)?;
    commanded(&host, 2).await?;
    until(SOON, "the component can store again", async || {
        stores(&host, "k", "v").await.ok()
    })
    .await?;
    let seed = short.lines().find(|line| line.starts_with("SU"));
    assert!(!host.log().contains(seed.context("a seed")?));
    Ok(())
}

/// What is more than the server takes is refused by who would have sent it, and costs no connection.
#[tokio::test]
async fn what_is_too_large_for_the_server_is_not_sent() -> Result<()> {
    let (mut control, data, registry) = tokio::try_join!(
        NatsServer::start_with("max_payload: 4096"),
        NatsServer::start_with("max_payload: 65536"),
        Registry::start(),
    )?;
    let urls = [control.url(), data.url()];
    let host = Washlet::start_at(&control, [&urls[0], &urls[1]], &WATCHFUL, &[]).await?;
    start_both(&registry, &host).await?;

    // A reply, to a request that fits.
    for n in 0..40 {
        host.run_well(&Workload::new(&format!("one-of-many-{n}")))
            .await?;
    }
    let reply = host.send("workload.list", "{}").await?;
    let text = String::from_utf8_lossy(&reply.payload).into_owned();
    assert!(text.contains("exceeds the NATS server's 4096"), "{text}");
    let headers = reply.headers.context("it says that it is an error")?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Nats-Service-Error-Code").as_deref(), Some("500"));
    assert_eq!(header("Washlet-Retry").as_deref(), Some("false"));

    // A value, which has headers beside it, and a message.
    let reply = put(&host, "k", &"x".repeat(60_000)).await?;
    assert_eq!(reply.status, 500);
    assert!(reply.body.contains("57344"), "{}", reply.body);
    stores(&host, "k", &"x".repeat(50_000)).await?;
    let image = registry.push("messenger:1", workload::component("messenger")?);
    let messenger = Workload::new("messenger").component("app", &image.await?, json!({}));
    let messenger = messenger.interface(MESSAGING, &[]).http("messenger.test");
    host.run_well(&messenger).await?;
    let publish = "/publish?subject=large";
    let large = "x".repeat(65_537);
    let reply = send(
        host.http_port(),
        "messenger.test",
        Method::POST,
        publish,
        large,
    );
    let reply = reply.await?;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("65536"), "{}", reply.body);

    assert_eq!(connections(&host).await?, (1, 1));
    assert!(!data.log().contains("maximum payload"), "{}", data.log());
    // A server that takes more is believed.
    control.restart_with("").await?;
    commanded(&host, 43).await?;
    let reply = host.request("workload.list", &json!({})).await?;
    let workloads = reply.get("workloads").and_then(|all| all.as_array());
    assert_eq!(workloads.map(Vec::len), Some(43));
    Ok(())
}

/// A server without JetStream takes commands; what needs JetStream says that it is not there, until it is.
#[tokio::test]
async fn without_jetstream_components_are_told_so() -> Result<()> {
    const CONFIG: &str = "wasi:config/store@0.2.0-rc.1";
    let (mut nats, registry) = tokio::try_join!(
        NatsServer::start_with("jetstream: disabled"),
        Registry::start()
    )?;
    let host = Washlet::start(&nats, &WATCHFUL).await?;
    start_both(&registry, &host).await?;
    let reply = put(&host, "k", "v").await?;
    assert_eq!(reply.status, 500);
    let missing = "JetStream does not answer; it is not enabled";
    assert!(reply.body.contains(missing), "{}", reply.body);
    // What is needed from the start on keeps a workload from starting.
    let image = registry.push("config-reader:1", workload::component("config-reader")?);
    let live = [("backend", "nats"), ("bucket", "settings")];
    let reader = Workload::new("reader")
        .component("app", &image.await?, json!({}))
        .interface(CONFIG, &live);
    let status = host.run(&reader).await?;
    assert_eq!(status.state, "ERROR");
    assert!(status.message.contains(missing), "{}", status.message);
    commanded(&host, 2).await?;

    nats.restart_with("").await?;
    until(SOON, "the component can store", async || {
        stores(&host, "k", "v").await.ok()
    })
    .await?;
    until_ready(&host, true).await?;
    host.run_well(&reader).await
}

/// A full JetStream refuses what is new, says so to who asked, and gives what it has.
#[tokio::test]
async fn a_full_jetstream_refuses_and_gives() -> Result<()> {
    let store = TempDir::new()?;
    let lines = format!(
        "jetstream {{ store_dir: {:?}, max_file_store: 1MB }}",
        store.path().display().to_string()
    );
    let (nats, registry) = tokio::try_join!(NatsServer::start_with(&lines), Registry::start())?;
    let host = Washlet::start(&nats, &WATCHFUL).await?;
    start_both(&registry, &host).await?;
    let value = "x".repeat(100_000);
    let mut stored = 0;
    let refused = loop {
        let reply = put(&host, &format!("k-{stored}"), &value).await?;
        if reply.status != 204 {
            break reply;
        }
        stored += 1;
        ensure!(stored < 20, "a full storage takes everything");
    };
    assert_eq!(refused.status, 500);
    assert!(refused.body.contains("resource"), "{}", refused.body);
    assert!(stored > 5, "only {stored} values fit");
    let reply = get(host.http_port(), HOST, "/bucket/k-0").await?;
    assert_eq!(reply.body, value);
    commanded(&host, 2).await?;
    assert_eq!(connections(&host).await?, (1, 1));
    Ok(())
}
