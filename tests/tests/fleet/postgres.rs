//! `wasi:keyvalue`, `wasi:blobstore` and `wasi:config` on Postgres.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use fleet::{
    http::{Reply, client, send},
    postgres::{PASSWORD, PostgresServer},
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{StreamExt, future::try_join_all};
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app, limits::peak_mib};

const STORE: &str = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
const BLOBSTORE: &str = "wasi:blobstore/blobstore,container,types@0.2.0-draft";
const BACKEND: (&str, &str) = ("backend", "postgres");

/// The component `name`, whose `interface` is served by Postgres.
async fn workload(fleet: &Fleet, name: &str, interface: &str) -> Result<Workload> {
    let image = fleet.push(name).await?;
    Ok(app(name, &image, json!({})).interface(interface, &[BACKEND]))
}

/// A host that knows `server`, on which the component `name` answers, in `namespace`.
async fn serving(
    fleet: &Fleet,
    server: &PostgresServer,
    name: &str,
    interface: &str,
    namespace: &str,
) -> Result<Washlet> {
    let host = fleet.host(&["--postgres-url", &server.url()]).await?;
    let workload = workload(fleet, name, interface).await?;
    host.run_well(&workload.with(json!({ "namespace": namespace })))
        .await?;
    Ok(host)
}

async fn call(host: &Washlet, method: Method, path: &str, body: &str) -> Result<Reply> {
    send(host.http_port(), HOST, method, path, body.to_owned()).await
}

async fn get(host: &Washlet, path: &str) -> Result<(u16, String)> {
    let reply = call(host, Method::GET, path, "").await?;
    Ok((reply.status, reply.body))
}

/// A call that must answer 204.
async fn done(host: &Washlet, method: Method, path: &str, body: &str) -> Result<()> {
    let reply = call(host, method, path, body).await?;
    ensure!(reply.status == 204, "{path}: {}", reply.body);
    Ok(())
}

/// On two hosts it is one store, within a namespace; counting together is exact; pages are sorted.
#[tokio::test]
async fn hosts_share_what_they_store() -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let (a, b, other) = tokio::try_join!(
        serving(&fleet, &server, "kv", STORE, "ns"),
        serving(&fleet, &server, "kv", STORE, "ns"),
        serving(&fleet, &server, "kv", STORE, "other"),
    )?;
    for (key, value) in [("k", "v"), ("empty", ""), ("a/b.c=d-e_f", "x"), ("k", "2")] {
        let path = format!("/bucket/{key}");
        done(&a, Method::PUT, &path, value).await?;
        assert_eq!(get(&b, &path).await?, (200, value.to_owned()), "{key}");
        assert_eq!(get(&other, &path).await?.0, 404, "{key}");
    }
    done(&b, Method::DELETE, "/bucket/k", "").await?;
    assert_eq!(get(&a, "/bucket/k?exists").await?.1, "false\n");
    call(&a, Method::POST, "/many?many=set", "z=1\ny=2\nx=3").await?;
    let many = call(&b, Method::POST, "/many?many=get", "z\nnone\nx").await?;
    assert_eq!(many.body, "z=1\n-\nx=3\n");
    assert_eq!(get(&b, "/many?list").await?.1, "key x\nkey y\nkey z\n");

    let hosts = [a, b];
    let calls = (0..16).flat_map(|_| &hosts).map(async |host| {
        let reply = call(host, Method::POST, "/bucket/n?increment=1", "").await?;
        let sum = reply.body.trim().parse::<u64>();
        sum.with_context(|| reply.body.clone())
    });
    let sums: BTreeSet<_> = try_join_all(calls).await?.into_iter().collect();
    assert_eq!(sums, (1..=32).collect());
    Ok(())
}

/// Put and get 8 MiB, ranges, lists, copies, clears; what a guest does not finish is not there.
#[tokio::test]
async fn hosts_share_their_objects() -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let (a, b) = tokio::try_join!(
        serving(&fleet, &server, "blob", BLOBSTORE, "ns"),
        serving(&fleet, &server, "blob", BLOBSTORE, "ns"),
    )?;
    done(&a, Method::POST, "/c?create", "").await?;
    let content: String = (0..1 << 20).map(|n| format!("{n:07}\n")).collect();
    done(&a, Method::PUT, "/c/dir/o", &content).await?;
    let (status, found) = get(&b, "/c/dir/o").await?;
    assert!(status == 200 && found == content, "{}", found.len());
    assert_eq!(get(&b, "/c/dir/o?size").await?.1, "8388608\n");
    let range = "/c/dir/o?start=7999992&end=8000007";
    assert_eq!(get(&b, range).await?.1, "0999999\n1000000\n");
    done(&b, Method::POST, "/d?create", "").await?;
    done(&b, Method::POST, "/c/dir/o?copy=d/copy", "").await?;
    assert!(get(&a, "/d/copy").await?.1 == content);

    done(&a, Method::PUT, "/c/o", "before").await?;
    let trapped = call(&a, Method::PUT, "/c/o?trap&fill=4", "").await?;
    assert_eq!(trapped.status, 500);
    let abandoned = call(&a, Method::PUT, "/c/o?abandon&fill=4", "").await?;
    assert_eq!(abandoned.status, 202);
    assert_eq!(get(&b, "/c/o").await?, (200, "before".to_owned()));
    assert_eq!(get(&b, "/c?list").await?.1, "dir/o\no\n");
    done(&a, Method::POST, "/c?clear", "").await?;
    assert_eq!(get(&b, "/c?list").await?, (200, String::new()));
    done(&b, Method::POST, "/d?delete", "").await?;
    assert_eq!(get(&a, "/d?exists").await?.1, "false\n");
    Ok(())
}

/// 128 MiB pass through a component, in and out, and the host holds little of it.
#[tokio::test]
async fn large_objects_take_little_memory() -> Result<()> {
    const MIB: usize = 128;
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let host = serving(&fleet, &server, "blob", BLOBSTORE, "ns").await?;
    done(&host, Method::POST, "/c?create", "").await?;
    done(&host, Method::PUT, "/c/small?fill=2", "").await?;
    let before = peak_mib(&host)?;
    done(&host, Method::PUT, &format!("/c/large?fill={MIB}"), "").await?;
    let url = format!("http://127.0.0.1:{}/c/large", host.http_port());
    let reply = client()?.get(url).header("host", HOST).send().await?;
    let (mut body, mut at) = (reply.bytes_stream(), 0);
    while let Some(piece) = body.next().await {
        at += piece?.len();
    }
    assert_eq!(at, MIB << 20);
    let grown = peak_mib(&host)? - before;
    assert!(grown < 48, "{grown} MiB more");
    Ok(())
}

/// A host starts and takes workloads while Postgres is down; calls say so, without saying the password; and
/// all goes on when it is back, however often.
#[tokio::test]
async fn postgres_may_be_down_and_come_back() -> Result<()> {
    let (fleet, mut server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    server.kill();
    let host = serving(&fleet, &server, "kv", STORE, "ns").await?;
    for round in 0..2 {
        let (status, text) = get(&host, "/bucket/k").await?;
        assert!(status == 500 && text.contains("unavailable"), "{text}");
        assert!(
            !text.contains(PASSWORD) && !text.contains("guest"),
            "{text}"
        );
        server.restart().await?;
        until(SOON, "a value is written", async || {
            done(&host, Method::PUT, &format!("/bucket/{round}"), "v")
                .await
                .ok()
        })
        .await?;
        assert_eq!(get(&host, "/bucket/0").await?, (200, "v".to_owned()));
        server.kill();
    }
    assert!(!host.log().contains(PASSWORD), "{}", host.log());
    Ok(())
}

/// Without a database to ask, and for what it does not offer, the start is refused.
#[tokio::test]
async fn what_postgres_does_not_serve_is_refused() -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let without = fleet.host(&[]).await?;
    let status = without.run(&workload(&fleet, "kv", STORE).await?).await?;
    assert!(
        status.state == "ERROR" && status.message.contains("--postgres-url"),
        "{status:?}"
    );
    let host = fleet.host(&["--postgres-url", &server.url()]).await?;
    let image = fleet.push("messenger").await?;
    let transient = [BACKEND, ("delivery", "transient")];
    let messaging = "wasmcloud:messaging/consumer,handler@0.2.0";
    let messenger = app("messenger", &image, json!({})).interface(messaging, &transient);
    let status = host.run(&messenger).await?;
    assert!(
        status.state == "ERROR" && status.message.contains("does not offer transient delivery"),
        "{status:?}"
    );
    let image = fleet.push("kv").await?;
    let history = [BACKEND, ("history", "5")];
    let workload = app("kv", &image, json!({})).interface(STORE, &history);
    let status = host.run(&workload).await?;
    assert!(
        status.state == "ERROR" && status.message.contains("history"),
        "{status:?}"
    );
    Ok(())
}

/// What is written into the bucket is read by the next call, by warm instances, too; a killed server leaves what
/// was there last.
#[tokio::test]
async fn configuration_is_live() -> Result<()> {
    let (fleet, mut server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let host = serving(&fleet, &server, "kv", STORE, "default").await?;
    let image = fleet.push("config-reader").await?;
    let entry = [BACKEND, ("bucket", "app"), ("both", "entry"), ("own", "1")];
    for (id, fields) in [("fresh", json!({})), ("warm", json!({ "poolSize": 1 }))] {
        let reader = Workload::new(id).component("app", &image, fields).http(id);
        let reader = reader.interface("wasi:config/store@0.2.0-rc.1", &entry);
        host.run_well(&reader).await?;
    }
    let seen = async |value: &str| {
        for id in ["fresh", "warm"] {
            until(SOON, &format!("{value:?} is seen"), async || {
                let reply = send(host.http_port(), id, Method::GET, "/", String::new()).await;
                let wanted = format!("both={value}\nown=1\n");
                reply.ok().filter(|reply| reply.body == wanted)
            })
            .await?;
        }
        anyhow::Ok(())
    };
    seen("entry").await?;
    for round in 0..2 {
        let (before, after) = (format!("before {round}"), format!("after {round}"));
        done(&host, Method::PUT, "/app/both", &before).await?;
        seen(&before).await?;
        server.kill();
        seen(&before).await?;
        server.restart().await?;
        until(SOON, "a value is written", async || {
            done(&host, Method::PUT, "/app/both", &after).await.ok()
        })
        .await?;
        seen(&after).await?;
    }
    done(&host, Method::DELETE, "/app/both", "").await?;
    seen("entry").await
}
