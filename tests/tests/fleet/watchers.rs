//! `wasi:keyvalue/watcher`: components that are told of changes.

use anyhow::{Result, ensure};
use fleet::{
    http::send,
    postgres::PostgresServer,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app, one_host};

const STORE: &str = "wasi:keyvalue/store,atomics,watcher@0.2.0-draft";

/// The component `watcher`, which answers for its storage's name.
struct Site<'a> {
    host: &'a Washlet,
    name: &'a str,
}

impl Site<'_> {
    async fn call(&self, method: Method, path: &str, body: &str) -> Result<()> {
        let port = self.host.http_port();
        let reply = send(port, self.name, method, path, body.to_owned()).await?;
        ensure!(reply.status == 204, "{path}: {}", reply.body);
        Ok(())
    }

    async fn put(&self, key: &str, value: &str) -> Result<()> {
        self.call(Method::PUT, &format!("/b/{key}"), value).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("/b/{key}"), "").await
    }

    /// Waits until the component has noted `value` of `key`, or that it is gone.
    async fn noted(&self, key: &str, value: Option<&str>) -> Result<()> {
        let what = format!("{}: {key} is noted as {value:?}", self.name);
        // What it was told, and what its handle of the bucket had.
        let wanted = value.map(|value| format!("{value} {value}"));
        until(SOON, &what, async || {
            let path = format!("/seen/{key}");
            let port = self.host.http_port();
            let reply = send(port, self.name, Method::GET, &path, "").await.ok()?;
            let found = (reply.status == 200).then_some(reply.body);
            ([200, 404].contains(&reply.status) && found == wanted).then_some(())
        })
        .await
    }
}

/// What is set and deleted is told, on every storage, also after a trap and after the storage was away.
#[tokio::test]
async fn changes_are_told() -> Result<()> {
    let (mut fleet, mut server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let image = fleet.push("watcher").await?;
    let host = fleet.host(&["--postgres-url", &server.url()]).await?;
    let sites = ["memory", "nats", "postgres"].map(|name| Site { host: &host, name });
    for site in &sites {
        let entry = [("backend", site.name), ("watch", "b, other")];
        // A fresh instance for each, and one that is kept.
        let pool = u8::from(site.name == "nats");
        let workload = Workload::new(site.name)
            .component("app", &image, json!({ "poolSize": pool }))
            .http(site.name)
            .interface(STORE, &entry);
        host.run_well(&workload).await?;
        for value in ["one", "two"] {
            site.put("k", value).await?;
            site.noted("k", Some(value)).await?;
        }
        site.put("gone", "briefly").await?;
        site.noted("gone", Some("briefly")).await?;
        site.delete("gone").await?;
        site.noted("gone", None).await?;
        site.put("bad", "trap").await?;
        site.call(Method::PUT, "/other/a=b/c.d", "three").await?;
        site.noted("a=b/c.d", Some("three")).await?;
        site.noted("bad", None).await?;
    }
    server.kill();
    server.restart().await?;
    fleet.nats.kill();
    fleet.nats.restart().await?;
    for site in &sites {
        until(SOON, "a value is written", async || {
            site.put("k", "after").await.ok()
        })
        .await?;
        site.noted("k", Some("after")).await?;
        site.delete("k").await?;
        site.noted("k", None).await?;
    }
    Ok(())
}

/// What names nothing to watch, or nobody who does, is refused.
#[tokio::test]
async fn what_cannot_be_watched_is_refused() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let (watcher, kv) = tokio::try_join!(fleet.push("watcher"), fleet.push("kv"))?;
    let store = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
    for (image, interface, config, why) in [
        (&watcher, STORE, ("history", "1"), "must name the buckets"),
        (
            &kv,
            store,
            ("watch", "b"),
            "no component exports wasi:keyvalue/watcher",
        ),
    ] {
        let workload = app("app", image, json!({})).interface(interface, &[config]);
        let status = host.run(&workload).await?;
        let is_refused = status.state != "RUNNING" && status.message.contains(why);
        ensure!(is_refused, "{status:?}");
        host.stop("app").await?;
    }
    // Who exports it need not be told of anything.
    let workload = app("app", &watcher, json!({})).interface("wasi:keyvalue/store,atomics", &[]);
    host.run_well(&workload).await?;
    let reply = send(host.http_port(), HOST, Method::PUT, "/b/k", "unseen").await?;
    assert_eq!(reply.status, 204, "{}", reply.body);
    Ok(())
}
