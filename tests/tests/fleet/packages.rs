//! Every version of every package of storage, on every storage that serves it, through plain and labelled imports.

use anyhow::{Context, Result, ensure};
use fleet::{
    http::{Reply, send},
    postgres::PostgresServer,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeSet;

/// The storages of a host.
const STORAGES: [&str; 3] = ["memory", "nats", "postgres"];

/// A component that calls a package, and how.
struct Calls {
    guest: &'static str,
    interface: &'static str,
    /// What its entry says besides the storage.
    config: &'static [(&'static str, &'static str)],
    /// The label of the import, if it has one, and what a path begins with then.
    label: Option<(&'static str, &'static str)>,
}

/// A component that runs.
struct Site<'a> {
    host: &'a Washlet,
    name: String,
    prefix: &'static str,
}

impl Site<'_> {
    async fn send(&self, method: Method, path: &str, body: &str) -> Result<Reply> {
        let path = format!("{}{path}", self.prefix);
        let reply = send(
            self.host.http_port(),
            &self.name,
            method,
            &path,
            body.to_owned(),
        )
        .await;
        reply.with_context(|| format!("{}: {path}", self.name))
    }

    /// A call that must answer `expected`.
    async fn call(&self, method: Method, path: &str, body: &str, expected: &str) -> Result<()> {
        let reply = self.send(method, path, body).await?;
        let (status, found) = (reply.status, reply.body);
        ensure!(
            (200..300).contains(&status) && found == expected,
            "{}{path} on {}: {status} {found}",
            self.prefix,
            self.name
        );
        Ok(())
    }

    async fn get(&self, path: &str, expected: &str) -> Result<()> {
        self.call(Method::GET, path, "", expected).await
    }

    async fn put(&self, path: &str, body: &str) -> Result<()> {
        self.call(Method::PUT, path, body, "").await
    }

    async fn post(&self, path: &str, body: &str, expected: &str) -> Result<()> {
        self.call(Method::POST, path, body, expected).await
    }

    async fn is_absent(&self, path: &str) -> Result<()> {
        let reply = self.send(Method::GET, path, "").await?;
        let (status, body) = (reply.status, reply.body);
        ensure!(
            [404, 500].contains(&status),
            "{path} on {}: {body}",
            self.name
        );
        Ok(())
    }
}

/// Runs `test` with each of `calls` on each storage, at the same host.
async fn on_all(
    calls: &[Calls],
    test: impl AsyncFn(&Site<'_>, &Calls) -> Result<()>,
) -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let host = fleet.host(&["--postgres-url", &server.url()]).await?;
    let mut cases = Vec::new();
    for calls in calls {
        let image = fleet.push(calls.guest).await?;
        cases.extend(STORAGES.map(|storage| (calls, image.clone(), storage)));
    }
    let (host, test) = (&host, &test);
    let all = cases.into_iter().map(async |(calls, image, storage)| {
        let label = calls.label.map_or("", |(label, _)| label);
        let name = format!("{}{label}-{storage}.test", calls.guest);
        let entry = [&[("backend", storage)], calls.config].concat();
        // What is not labelled goes elsewhere.
        let other = STORAGES.iter().find(|other| **other != storage);
        let other = [("backend", *other.context("another storage")?)];
        let workload = Workload::new(&name)
            .component("app", &image, json!({}))
            .http(&name)
            .with(json!({ "namespace": name }));
        let mut workload = match calls.label {
            Some((label, _)) => workload.interface(calls.interface, &other).named_interface(
                label,
                calls.interface,
                &entry,
            ),
            None => workload.interface(calls.interface, &entry),
        };
        for (guest, label, interface) in BESIDE {
            if guest == calls.guest && calls.label.is_none_or(|(own, _)| own != label) {
                workload = workload.named_interface(label, interface, &[]);
            }
        }
        host.run_well(&workload).await?;
        let prefix = calls.label.map_or("", |(_, prefix)| prefix);
        let site = Site { host, name, prefix };
        test(&site, calls).await
    });
    try_join_all(all).await.map(drop)
}

/// What components import beside what is looked at: the component, the label, the interfaces.
const BESIDE: [(&str, &str, &str); 8] = [
    ("kv3", "cache", "wasmcloud:keyvalue/store@0.2.0"),
    ("stores", "cache", "wasi:keyvalue/store@0.2.0-draft"),
    ("stores", "archive", "wasi:keyvalue/store@0.2.0-draft"),
    ("courier", "", "wasmcloud:messaging/consumer@0.3.0"),
    ("courier", "", "wasmcloud:secrets/store,reveal@2.1.0"),
    ("outlets", "settings", "wasi:config/store@0.2.0-rc.1"),
    ("outlets", "outbox", "wasmcloud:messaging/consumer@0.2.0"),
    ("outlets", "files", "wasi:blobstore/blobstore@0.2.0-draft"),
];

/// C18: all of `wasi:keyvalue` and `wasmcloud:keyvalue`.
#[tokio::test]
async fn keyvalue() -> Result<()> {
    const WASI: &str = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
    const WASMCLOUD: &str = "wasmcloud:keyvalue/store,atomics,cas,batch@0.2.0";
    let calls = |guest, interface, label| Calls {
        guest,
        interface,
        config: &[("max_value_bytes", "4096")],
        label,
    };
    let all = [
        calls("kv", WASI, None),
        calls("kv3", WASMCLOUD, None),
        calls("kv3", WASMCLOUD, Some(("cache", "/~cache"))),
    ];
    on_all(&all, async |site, calls| {
        site.is_absent("/b/k").await?;
        for value in ["one", "two", ""] {
            site.put("/b/k", value).await?;
            site.get("/b/k", value).await?;
        }
        site.get("/b/k?exists", "true\n").await?;
        site.call(Method::DELETE, "/b/k", "", "").await?;
        site.get("/b/k?exists", "false\n").await?;
        let large = "x".repeat(4097);
        let refused = site.send(Method::PUT, "/b/k", &large).await?.body;
        let why = match calls.guest {
            "kv3" => "error: quota-exceeded\n",
            _ => "error: other: value of 4097 bytes exceeds 4096\n",
        };
        ensure!(refused == why, "{refused}");
        site.put("/b/k", &large[..4096]).await?;
        let adds = (0..32).map(async |_| {
            let reply = site.send(Method::POST, "/b/n?increment=1", "").await?;
            let sum = reply.body.trim().parse::<u64>();
            sum.with_context(|| reply.body.clone())
        });
        let sums: BTreeSet<u64> = try_join_all(adds).await?.into_iter().collect();
        ensure!(sums == (1..=32).collect(), "{sums:?}");
        site.post("/many?many=set", "z=1\ny=2\nx=3\ny=4", "")
            .await?;
        site.post("/many?many=get", "z\nnone\ny", "z=1\n-\ny=4\n")
            .await?;
        site.get("/many?list", "key x\nkey y\nkey z\n").await?;
        site.post("/many?many=delete", "x\nz", "").await?;
        site.get("/many?list", "key y\n").await?;
        if calls.guest != "kv3" {
            return Ok(());
        }
        // What only the asynchronous package has.
        site.put("/b/new?new", "first").await?;
        let again = site.send(Method::PUT, "/b/new?new", "second").await?;
        ensure!(
            again.body == "error: precondition-failed\n",
            "{}",
            again.body
        );
        let current = site.send(Method::GET, "/b/new?current", "").await?.body;
        let version = current.split(' ').next().unwrap_or_default();
        let swap = format!("/b/new?swap&version={version}");
        site.call(Method::PUT, &swap, "swapped", "swapped").await?;
        site.call(Method::PUT, &swap, "late", "stale swapped")
            .await?;
        site.put("/b/brief?ttl=1000", "brief").await?;
        until(SOON, "the value has expired", async || {
            site.get("/b/brief?exists", "false\n").await.ok()
        })
        .await?;
        site.get("/b?list&prefix=ne", "key new\n").await
    })
    .await?;
    let stores = [("cache", "/cache"), ("archive", "/archive")]
        .map(|label| calls("stores", "wasi:keyvalue/store@0.2.0-draft", Some(label)));
    on_all(&stores, async |site, _| {
        site.is_absent("/b/k").await?;
        site.put("/b/k", "value").await?;
        site.get("/b/k", "value").await?;
        // Its own storage has it, no other.
        let plain = Site {
            name: site.name.clone(),
            prefix: "/plain",
            ..*site
        };
        plain.is_absent("/b/k").await
    })
    .await
}

/// C19: all of `wasi:blobstore` and `wasmcloud:blobstore`.
#[tokio::test]
async fn blobstore() -> Result<()> {
    let content: String = (0..1 << 17).map(|n| format!("{n:07}\n")).collect();
    let wasi = Calls {
        guest: "blob",
        interface: "wasi:blobstore/blobstore,container,types@0.2.0-draft",
        config: &[],
        label: None,
    };
    on_all(&[wasi], async |site, _| {
        site.is_absent("/c/o").await?;
        site.post("/c?create", "", "").await?;
        site.put("/c/dir/o", &content).await?;
        site.get("/c/dir/o", &content).await?;
        site.get("/c/dir/o?size", "1048576\n").await?;
        site.get("/c/dir/o?start=524280&end=524295", "0065535\n0065536\n")
            .await?;
        site.post("/c/dir/o?copy=c/copy", "", "").await?;
        let trapped = site.send(Method::PUT, "/c/half?trap&fill=1", "").await?;
        ensure!(trapped.status == 500, "{}", trapped.body);
        site.get("/c?list", "copy\ndir/o\n").await?;
        site.call(Method::DELETE, "/c/dir/o", "", "").await?;
        site.get("/c?list", "copy\n").await?;
        site.get("/c/copy", &content).await
    })
    .await?;
    let wasmcloud = Calls {
        guest: "courier",
        interface: "wasmcloud:blobstore/blobstore,container,types@0.1.0",
        config: &[],
        label: None,
    };
    on_all(&[wasmcloud], async |site, _| {
        site.is_absent("/blob/c/o").await?;
        site.put("/blob/c/o", &content).await?;
        site.get("/blob/c/o", &content).await?;
        site.get("/size/c/o", "1048576").await?;
        site.get("/blob/c/o?start=524280&end=524295", "0065535\n0065536\n")
            .await?;
        site.post("/copy/c/o/copy", "", "").await?;
        let trapped = site.send(Method::PUT, "/half/c/half", "half").await?;
        ensure!(trapped.status == 500, "{}", trapped.body);
        site.get("/blob/c", "copy\no\n").await?;
        site.call(Method::DELETE, "/blob/c/o", "", "").await?;
        site.get("/blob/c", "copy\n").await?;
        site.get("/blob/c/copy", &content).await
    })
    .await?;
    let labelled = Calls {
        guest: "outlets",
        interface: "wasi:blobstore/blobstore@0.2.0-draft",
        config: &[],
        label: Some(("files", "")),
    };
    on_all(&[labelled], async |site, _| {
        site.get("/container/c", "false").await?;
        site.post("/container/c", "", "").await?;
        site.get("/container/c", "true").await
    })
    .await
}

/// C21: a message is handled and answered, in either version, by the component itself or another; what is sent
/// through a label arrives.
#[tokio::test]
async fn messaging() -> Result<()> {
    let fleet = Fleet::start().await?;
    let host = fleet.host(&[]).await?;
    let (sync, later) = (
        "wasmcloud:messaging/consumer,handler@0.2.0",
        "wasmcloud:messaging/consumer,handler@0.3.0",
    );
    for storage in ["memory", "nats"] {
        let mut sites = Vec::new();
        for (guest, interface) in [("messenger", sync), ("courier", later)] {
            let image = fleet.push(guest).await?;
            let name = format!("{guest}-{storage}.test");
            let subjects = format!("{guest}.>");
            let config = [("backend", storage), ("subscriptions", &subjects)];
            let mut workload = Workload::new(&name)
                .component("app", &image, json!({}))
                .http(&name)
                .interface(interface, &config);
            if guest == "courier" {
                workload = workload
                    .interface("wasmcloud:secrets/store,reveal@2.1.0", &[])
                    .interface(
                        "wasmcloud:blobstore/blobstore@0.1.0",
                        &[("backend", "memory")],
                    );
            }
            host.run_well(&workload).await?;
            sites.push(Site {
                host: &host,
                name,
                prefix: "",
            });
        }
        let [messenger, courier] = sites.as_slice() else {
            anyhow::bail!("two components");
        };
        let ask = |subject: &str| format!("/request?subject={subject}&timeout=20000");
        messenger
            .post(&ask("messenger.a"), "echo:one", "one")
            .await?;
        messenger.post(&ask("courier.a"), "two", "two").await?;
        courier
            .post("/request/courier.a.b?ms=20000", "three", "three")
            .await?;
        courier
            .post("/request/messenger.a?ms=20000", "echo:four", "four")
            .await?;
        courier
            .post("/request/courier.empty?ms=20000", "", "")
            .await?;
        let refused = courier
            .send(Method::POST, "/request/courier.a?ms=300", "reject")
            .await?;
        ensure!(refused.status == 500, "{}", refused.body);
        courier.post("/publish/messenger.a", "nothing", "").await?;

        // Through a label: the other component's host says what it could not handle.
        let image = fleet.push("outlets").await?;
        let name = format!("outlets-{storage}.test");
        let mut workload = Workload::new(&name)
            .component("app", &image, json!({}))
            .http(&name);
        for (guest, label, interface) in BESIDE {
            if guest == "outlets" {
                let of_outbox = [("backend", storage)];
                let config: &[(&str, &str)] = match label {
                    "outbox" => &of_outbox,
                    _ => &[],
                };
                workload = workload.named_interface(label, interface, config);
            }
        }
        host.run_well(&workload).await?;
        let outlets = Site {
            host: &host,
            name,
            prefix: "",
        };
        let subject = format!("messenger.labelled-{storage}");
        outlets
            .post(&format!("/message/{subject}"), "err", "")
            .await?;
        until(SOON, "the message arrives", async || {
            host.log().contains(&subject).then_some(())
        })
        .await?;
        for name in [&messenger.name, &courier.name, &outlets.name] {
            host.stop(name).await?;
        }
    }
    Ok(())
}
