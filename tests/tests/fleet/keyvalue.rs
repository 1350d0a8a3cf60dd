//! `wasi:keyvalue` on NATS.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use fleet::{
    http::{Reply, send},
    washlet::{Fleet, Washlet},
};
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app};

const STORE: &str = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";

/// A host on which the component `kv` answers, in `namespace`.
async fn store(fleet: &Fleet, namespace: &str) -> Result<Washlet> {
    let host = fleet.host(&[]).await?;
    let image = fleet.push("kv").await?;
    let workload = app("kv", &image, json!({})).interface(STORE, &[]);
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

/// C18: create, read, update, delete; on two hosts it is one store.
#[tokio::test]
async fn hosts_share_what_they_store() -> Result<()> {
    let fleet = Fleet::start().await?;
    let (a, b) = tokio::try_join!(store(&fleet, "ns"), store(&fleet, "ns"))?;
    for (key, value) in [
        ("k", "v"),
        ("empty", ""),
        ("a/b.c=d-e_f", "x"),
        ("k", "again"),
    ] {
        let path = format!("/bucket/{key}");
        assert_eq!(
            call(&a, Method::PUT, &path, value).await?.status,
            204,
            "{key}"
        );
        assert_eq!(get(&b, &path).await?, (200, value.to_owned()), "{key}");
        assert_eq!(
            get(&b, &format!("{path}?exists")).await?.1,
            "true\n",
            "{key}"
        );
    }
    assert_eq!(call(&b, Method::DELETE, "/bucket/k", "").await?.status, 204);
    assert_eq!(get(&a, "/bucket/k").await?.0, 404);
    assert_eq!(get(&a, "/bucket/k?exists").await?.1, "false\n");
    assert_eq!(
        call(&b, Method::DELETE, "/bucket/never", "").await?.status,
        204
    );
    assert_eq!(get(&a, "/other/empty").await?.0, 404);

    call(&a, Method::POST, "/many?many=set", "x=1\ny=2\nz=3").await?;
    let many = call(&b, Method::POST, "/many?many=get", "z\nnone\nx").await?;
    assert_eq!(many.body, "z=3\n-\nx=1\n");
    call(&b, Method::POST, "/many?many=delete", "x\nz").await?;
    assert_eq!(get(&a, "/many?list").await?.1, "key y\n");
    Ok(())
}

/// C18: a bucket's name means something only within a namespace.
#[tokio::test]
async fn namespaces_do_not_see_each_other() -> Result<()> {
    let fleet = Fleet::start().await?;
    let (a, b) = tokio::try_join!(store(&fleet, "one"), store(&fleet, "two"))?;
    assert_eq!(
        call(&a, Method::PUT, "/bucket/k", "mine").await?.status,
        204
    );
    assert_eq!(get(&b, "/bucket/k").await?.0, 404);
    Ok(())
}

/// C18: pages of at most 1,000 keys that together are all keys, each once.
#[tokio::test]
async fn keys_come_in_pages() -> Result<()> {
    let fleet = Fleet::start().await?;
    let host = store(&fleet, "ns").await?;
    let all: BTreeSet<_> = (0..2_345).map(|n| format!("key-{n:05}")).collect();
    let lines: Vec<_> = all.iter().map(|key| format!("{key}=v")).collect();
    for lines in lines.chunks(500) {
        let set = call(&host, Method::POST, "/pages?many=set", &lines.join("\n")).await?;
        assert_eq!(set.status, 204, "{}", set.body);
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        let (status, page) = get(&host, &format!("/pages?list{cursor}")).await?;
        assert_eq!(status, 200, "{page}");
        let keys: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("key "))
            .collect();
        assert!(keys.len() <= 1_000);
        for key in keys {
            assert!(seen.insert(key.to_owned()), "{key} came twice");
        }
        pages += 1;
        assert!(pages <= 10, "the pages do not end");
        match page.lines().find_map(|line| line.strip_prefix("cursor ")) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, all);
    Ok(())
}

/// C18: counting is exact, and never an error, however many count at once.
#[tokio::test]
async fn counting_together_is_exact() -> Result<()> {
    let fleet = Fleet::start().await?;
    let hosts = tokio::try_join!(store(&fleet, "ns"), store(&fleet, "ns"))?;
    let hosts = [hosts.0, hosts.1];
    let calls = (0..32).flat_map(|_| &hosts).map(async |host| {
        let mut sums = Vec::new();
        for _ in 0..5 {
            let reply = call(host, Method::POST, "/bucket/n?increment=1", "").await?;
            let sum: u64 = reply
                .body
                .trim()
                .parse()
                .with_context(|| reply.body.clone())?;
            sums.push(sum);
        }
        anyhow::Ok(sums)
    });
    let sums: BTreeSet<_> = try_join_all(calls).await?.into_iter().flatten().collect();
    assert_eq!(sums, (1..=320).collect());
    Ok(())
}
