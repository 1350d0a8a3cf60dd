//! The harness itself: what the other tests lean on.

use std::num::NonZeroU32;

use anyhow::{Context, Result, bail};
use fleet::{
    nats::NatsServer, postgres::PostgresServer, proxy::Proxy, registry, registry::Registry, wait,
    workload::component,
};
use futures::StreamExt;

#[tokio::test]
async fn a_nats_server_keeps_port_and_data_over_a_kill() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let url = server.url();
    let client = server.client().await?;
    let kv = async_nats::jetstream::new(client)
        .create_key_value(async_nats::jetstream::kv::Config {
            bucket: "b".to_owned(),
            ..Default::default()
        })
        .await?;
    kv.put("k", "v".into()).await?;
    server.kill();
    assert!(
        async_nats::connect(&url).await.is_err(),
        "a killed server accepts nobody"
    );
    server.restart().await?;
    assert_eq!(server.url(), url);
    let kv = async_nats::jetstream::new(server.client().await?)
        .get_key_value("b")
        .await?;
    assert_eq!(kv.get("k").await?.as_deref(), Some(&b"v"[..]));
    Ok(())
}

#[tokio::test]
async fn a_nats_server_takes_configuration_and_reports_a_bad_one() -> Result<()> {
    let server = NatsServer::start_with("authorization { token: \"t\" }").await?;
    assert!(server.client().await.is_err());
    async_nats::ConnectOptions::with_token("t".to_owned())
        .connect(server.url())
        .await?;
    let Err(error) = NatsServer::start_with("no such setting {").await else {
        bail!("a server with a bad configuration started");
    };
    assert!(format!("{error:#}").contains("ended at once"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_postgres_server_accepts_nobody_while_it_is_killed() -> Result<()> {
    let mut server = PostgresServer::start().await?;
    let (url, address) = (server.url(), server.address());
    let connect = async || tokio::net::TcpStream::connect(&address).await;
    connect().await?;
    server.kill();
    assert!(connect().await.is_err(), "a killed server accepts nobody");
    server.restart().await?;
    assert_eq!(server.url(), url);
    connect().await?;
    let log = server.log();
    assert!(log.contains("not properly shut down"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_registry_counts_requests_and_asks_for_a_login() -> Result<()> {
    let mut open = Registry::start().await?;
    let url = format!("http://{}/v2/", open.address());
    assert_eq!(reqwest::get(&url).await?.status(), 200);
    wait::until(wait::SOON, "the request is logged", async || {
        (open.requests("\"GET /v2/ ") == 1).then_some(())
    })
    .await?;
    open.kill();
    assert!(reqwest::get(&url).await.is_err());
    open.restart().await?;
    assert_eq!(reqwest::get(&url).await?.status(), 200);

    let image = open.push("hello:1", component("http-hello")?).await?;
    assert_eq!(image, format!("{}/hello:1", open.address()));

    let closed = Registry::start_with_login().await?;
    let image = closed.push("hello:1", component("http-hello")?).await?;
    let manifest = format!("http://{}/v2/hello/manifests/1", closed.address());
    assert_eq!(reqwest::get(&manifest).await?.status(), 401, "{image}");
    let url = format!("http://{}/v2/", closed.address());
    assert_eq!(reqwest::get(&url).await?.status(), 401);
    let request = reqwest::Client::new().get(&url);
    let reply = request
        .basic_auth(registry::USER, Some(registry::PASSWORD))
        .send()
        .await?;
    assert_eq!(reply.status(), 200);
    Ok(())
}

#[tokio::test]
async fn a_proxy_counts_holds_back_and_cuts() -> Result<()> {
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(&server.address()).await?;
    let client = async_nats::connect(proxy.address()).await?;
    let direct = server.client().await?;
    let mut heard = direct.subscribe("s").await?;
    direct.flush().await?;
    assert_eq!(proxy.connections(), 1);
    assert!(proxy.bytes() > 0, "the server greets with its name");

    proxy.pause();
    client.publish("s", "held".into()).await?;
    // A round trip past the proxy, after which anything the proxy let through would be here.
    let mut own = direct.subscribe("t").await?;
    direct.publish("t", "".into()).await?;
    assert!(own.next().await.is_some());
    assert!(futures::poll!(heard.next()).is_pending());
    proxy.resume();
    assert_eq!(heard.next().await.map(|m| m.payload), Some("held".into()));

    // Held back only on the way to the client, who can still speak.
    let mut deaf = client.subscribe("u").await?;
    client.flush().await?;
    proxy.mute();
    client.publish("s", "spoken".into()).await?;
    client.publish("u", "unheard".into()).await?;
    assert_eq!(heard.next().await.map(|m| m.payload), Some("spoken".into()));
    assert!(futures::poll!(deaf.next()).is_pending());
    proxy.resume();
    assert_eq!(deaf.next().await.map(|m| m.payload), Some("unheard".into()));

    // What takes its time comes whole.
    proxy.slow(NonZeroU32::new(100_000).context("a rate")?);
    let large = "x".repeat(20_000);
    client.publish("s", large.clone().into()).await?;
    assert_eq!(heard.next().await.map(|m| m.payload), Some(large.into()));
    proxy.resume();

    proxy.cut();
    wait::until(wait::SOON, "the client connects again", async || {
        (proxy.connections() >= 2).then_some(())
    })
    .await
}
