//! `wasi:blobstore` on NATS.

use anyhow::{Result, ensure};
use async_nats::jetstream;
use fleet::{
    http::{Reply, client, send},
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app, limits::peak_mib};

const BLOBSTORE: &str = "wasi:blobstore/blobstore,container,types@0.2.0-draft";

/// A host on which the component `blob` answers, in `namespace`.
async fn store(fleet: &Fleet, namespace: &str, config: &[(&str, &str)]) -> Result<Washlet> {
    let host = fleet.host(&[]).await?;
    let image = fleet.push("blob").await?;
    let workload = app("blob", &image, json!({})).interface(BLOBSTORE, config);
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

/// Put and get 8 MiB, ranges, lists, copies, moves, clears; on two hosts it is one store.
#[tokio::test]
async fn hosts_share_their_objects() -> Result<()> {
    let fleet = Fleet::start().await?;
    let (a, b) = tokio::try_join!(store(&fleet, "ns", &[]), store(&fleet, "ns", &[]))?;
    assert_eq!(get(&a, "/c/o").await?.0, 404);
    done(&a, Method::POST, "/c?create", "").await?;
    done(&b, Method::POST, "/c?create", "").await?;
    let content: String = (0..1 << 20).map(|n| format!("{n:07}\n")).collect();
    assert_eq!(content.len(), 8 << 20);
    done(&a, Method::PUT, "/c/dir/o", &content).await?;
    let (status, found) = get(&b, "/c/dir/o").await?;
    assert!(status == 200 && found == content, "{}", found.len());
    assert_eq!(get(&b, "/c/dir/o?size").await?.1, "8388608\n");
    let range = "/c/dir/o?start=7999992&end=8000007";
    assert_eq!(get(&b, range).await?.1, "0999999\n1000000\n");
    assert_eq!(get(&b, "/c/dir/o?start=8388600").await?.1, "1048575\n");
    assert_eq!(
        get(&b, "/c/dir/o?start=9000000").await?,
        (200, String::new())
    );

    done(&b, Method::POST, "/d?create", "").await?;
    done(&b, Method::POST, "/c/dir/o?copy=d/copy", "").await?;
    done(&b, Method::POST, "/c/dir/o?move=c/moved", "").await?;
    assert_eq!(get(&a, "/c?list").await?.1, "moved\n");
    assert_eq!(get(&a, "/c/dir/o?has").await?.1, "false\n");
    for path in ["/d/copy", "/c/moved"] {
        assert!(get(&a, path).await?.1 == content, "{path}");
    }
    for n in 0..20 {
        done(&a, Method::PUT, &format!("/c/{n:02}"), "x").await?;
    }
    assert_eq!(get(&b, "/c?list&len=7").await?.1.lines().count(), 23);
    done(&b, Method::POST, "/c?delete-many", "00\n01\nnone\n").await?;
    assert_eq!(get(&a, "/c?list&skip=10").await?.1.lines().count(), 11);
    done(&a, Method::POST, "/c?clear", "").await?;
    assert_eq!(get(&b, "/c?list").await?, (200, String::new()));
    assert_eq!(get(&b, "/d/copy?has").await?.1, "true\n");
    done(&b, Method::POST, "/d?delete", "").await?;
    assert_eq!(get(&a, "/d?exists").await?.1, "false\n");
    Ok(())
}

/// A container's name means something only within a namespace, and an entry may allow less.
#[tokio::test]
async fn containers_are_seen_by_who_may() -> Result<()> {
    let fleet = Fleet::start().await?;
    let reader = [("buckets", "c, e"), ("read_only", "true")];
    let (one, two, reader) = tokio::try_join!(
        store(&fleet, "one", &[]),
        store(&fleet, "two", &[]),
        store(&fleet, "one", &reader),
    )?;
    for container in ["/c", "/d"] {
        done(&one, Method::POST, &format!("{container}?create"), "").await?;
        done(&one, Method::PUT, &format!("{container}/o"), "mine").await?;
    }
    assert_eq!(get(&two, "/c?exists").await?.1, "false\n");
    assert_eq!(get(&two, "/c/o").await?.0, 404);
    assert_eq!(get(&reader, "/c/o").await?, (200, "mine".to_owned()));
    let refused = get(&reader, "/d/o").await?;
    assert!(
        refused.0 == 500 && refused.1.contains("'buckets'"),
        "{refused:?}"
    );
    let refused = call(&reader, Method::PUT, "/c/o", "other").await?;
    assert!(
        refused.status == 500 && refused.body.contains("'read_only'"),
        "{}",
        refused.body
    );
    Ok(())
}

/// 128 MiB pass through a component, in and out, and the host holds little of it.
#[tokio::test]
async fn large_objects_take_little_memory() -> Result<()> {
    const MIB: usize = 128;
    let fleet = Fleet::start().await?;
    let host = store(&fleet, "ns", &[]).await?;
    done(&host, Method::POST, "/c?create", "").await?;
    done(&host, Method::PUT, "/c/small?fill=2", "").await?;
    let before = peak_mib(&host)?;
    done(&host, Method::PUT, &format!("/c/large?fill={MIB}"), "").await?;
    let url = format!("http://127.0.0.1:{}/c/large", host.http_port());
    let reply = client()?.get(url).header("host", HOST).send().await?;
    let (mut body, mut at) = (reply.bytes_stream(), 0);
    while let Some(piece) = body.next().await {
        let piece = piece?;
        let (first, last) = (at >> 20, (at + piece.len() - 1) >> 20);
        assert_eq!(
            (piece[0], piece[piece.len() - 1]),
            (first as u8, last as u8),
            "at {at}"
        );
        at += piece.len();
    }
    assert_eq!(at, MIB << 20);
    let grown = peak_mib(&host)? - before;
    assert!(grown < 48, "{grown} MiB more");
    Ok(())
}

/// A guest that traps and a client that goes away leave no object, and in the end no chunks.
#[tokio::test]
async fn what_is_not_finished_leaves_nothing() -> Result<()> {
    let fleet = Fleet::start().await?;
    let host = store(&fleet, "ns", &[]).await?;
    done(&host, Method::POST, "/c?create", "").await?;
    done(&host, Method::PUT, "/c/o", "before").await?;
    assert_eq!(
        call(&host, Method::PUT, "/c/o?trap&fill=4", "")
            .await?
            .status,
        500
    );
    assert_eq!(
        call(&host, Method::PUT, "/c/o?abandon&fill=4", "")
            .await?
            .status,
        202
    );
    // The client goes away while the guest writes, and while it waits.
    let chunks = futures::stream::iter((0..100).map(|_| anyhow::Ok(vec![b'x'; 64 << 10])));
    let endless = reqwest::Body::wrap_stream(chunks.chain(futures::stream::pending()));
    let write = send(host.http_port(), HOST, Method::PUT, "/c/o", endless);
    let hang = call(&host, Method::PUT, "/c/o?hang&fill=4", "");
    let client = jetstream::new(fleet.nats.client().await?);
    let messages = async || {
        let mut stream = client.get_stream("OBJ_ns__c").await.ok()?;
        Some(stream.info().await.ok()?.state.messages)
    };
    tokio::select! {
        reply = write => anyhow::bail!("answered {reply:?}"),
        reply = hang => anyhow::bail!("answered {reply:?}"),
        seen = until(SOON, "chunks arrive", async || messages().await.filter(|n| *n > 32)) => seen?,
    };
    assert_eq!(get(&host, "/c/o").await?, (200, "before".to_owned()));
    until(SOON, "all chunks are gone", async || {
        // Each write takes with it what others left.
        done(&host, Method::PUT, "/c/o", "after").await.ok()?;
        messages().await.filter(|n| *n == 2)
    })
    .await?;
    assert_eq!(get(&host, "/c/o").await?, (200, "after".to_owned()));
    Ok(())
}
