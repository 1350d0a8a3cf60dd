//! `wasi:keyvalue` as a guest sees it, over memory.

use std::collections::BTreeSet;

use bytes::Bytes;
use engine::Runnable;
use http::Method;
use tokio::task::JoinSet;

use crate::host::{entry, grant, read, send, shared, start, text};

async fn kv(workload: &str, config: &[(&str, &str)]) -> Runnable {
    let mut grant = grant(workload);
    grant.declared = entry("keyvalue", &["store", "atomics", "batch"], config);
    start(shared(), "kv", grant).await
}

async fn ask(
    guest: &Runnable,
    method: Method,
    target: &str,
    body: impl Into<Bytes>,
) -> (u16, String) {
    text(send(guest, method, target, body).await.unwrap()).await
}

#[tokio::test]
async fn values_are_set_read_and_deleted() {
    let guest = kv("crud", &[]).await;
    let absent = (404, "absent\n".to_owned());
    assert_eq!(ask(&guest, Method::GET, "/b/k", "").await, absent);
    assert_eq!(read(&guest, "/b/k?exists").await, "false\n");
    for value in ["one", "two", ""] {
        assert_eq!(ask(&guest, Method::PUT, "/b/k", value).await.0, 204);
        assert_eq!(read(&guest, "/b/k").await, value);
    }
    assert_eq!(read(&guest, "/b/k?exists").await, "true\n");
    assert_eq!(ask(&guest, Method::GET, "/other/k", "").await, absent);
    for _ in 0..2 {
        assert_eq!(ask(&guest, Method::DELETE, "/b/k", "").await.0, 204);
        assert_eq!(ask(&guest, Method::GET, "/b/k", "").await, absent);
    }
}

#[tokio::test]
async fn names_belong_to_a_namespace_unless_they_are_shared() {
    let (a, b) = (kv("space-a", &[]).await, kv("space-b", &[]).await);
    assert_eq!(ask(&a, Method::PUT, "/spaces/k", "a").await.0, 204);
    assert_eq!(ask(&b, Method::GET, "/spaces/k", "").await.0, 404);
    let (a, b) = (
        kv("space-a", &[("shared", "true")]).await,
        kv("space-b", &[("shared", "true")]).await,
    );
    assert_eq!(ask(&b, Method::GET, "/spaces/k", "").await.0, 404);
    assert_eq!(ask(&a, Method::PUT, "/spaces/k", "both").await.0, 204);
    assert_eq!(read(&b, "/spaces/k").await, "both");
}

#[tokio::test]
async fn a_bucket_that_may_not_be_created_does_not_exist() {
    let guest = kv("no-create", &[("create", "false")]).await;
    assert_eq!(
        ask(&guest, Method::GET, "/none/k", "").await,
        (500, "error: no-such-store\n".to_owned())
    );
}

#[tokio::test]
async fn batches_keep_their_order() {
    let guest = kv("batches", &[]).await;
    let set = ask(&guest, Method::POST, "/b?many=set", "c=3\na=1\nb=2\na=4\n").await;
    assert_eq!(set.0, 204);
    let keys = "b\nnone\na\nc\nb\n";
    let got = ask(&guest, Method::POST, "/b?many=get", keys).await;
    // A key set twice has its last value; one asked for twice is answered twice.
    assert_eq!(got, (200, "b=2\n-\na=4\nc=3\nb=2\n".to_owned()));
    let deleted = ask(&guest, Method::POST, "/b?many=delete", "a\nnone\nb\n").await;
    assert_eq!(deleted.0, 204);
    assert_eq!(read(&guest, "/b?list").await, "key c\n");
}

#[tokio::test]
async fn a_listing_has_every_key_once_over_its_pages() {
    let guest = kv("pages", &[]).await;
    let keys: Vec<String> = (0..2_500).map(|n| format!("k{n:04}")).collect();
    let pairs: String = keys.iter().map(|key| format!("{key}=v\n")).collect();
    let set = ask(&guest, Method::POST, "/b?many=set", pairs).await;
    assert_eq!(set.0, 204);

    let page = async |target: &str| {
        let (mut keys, mut cursor) = (Vec::new(), None);
        for line in read(&guest, target).await.lines() {
            match line.split_once(' ').unwrap() {
                ("cursor", next) => cursor = Some(next.parse::<u64>().unwrap()),
                (_, key) => keys.push(key.to_owned()),
            }
        }
        (keys, cursor)
    };
    let (mut listed, mut cursor) = page("/b?list").await;
    let mut pages = 1;
    while let Some(position) = cursor {
        let (keys, next) = page(&format!("/b?list&cursor={position}")).await;
        listed.extend(keys);
        (cursor, pages) = (next, pages + 1);
        assert!(pages <= 3);
    }
    assert_eq!((listed, pages), (keys.clone(), 3));

    // A cursor that was never handed out counts keys from the start.
    for (offset, count) in [
        (1, 1_000),
        (1_001, 1_000),
        (2_499, 1),
        (2_500, 0),
        (1 << 40, 0),
    ] {
        let (page, _) = page(&format!("/b?list&cursor={offset}")).await;
        let expected: Vec<String> = keys.iter().skip(offset).take(count).cloned().collect();
        assert_eq!(page, expected, "{offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_at_once_are_all_counted() {
    let guest = kv("increments", &[]).await;
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let guest = guest.clone();
        calls.spawn(async move {
            let (_, sum) = ask(&guest, Method::POST, "/b/sum?increment=3", "").await;
            sum.trim().parse::<u64>().unwrap()
        });
    }
    let sums: BTreeSet<u64> = calls.join_all().await.into_iter().collect();
    assert_eq!(sums, (1..=32).map(|n| n * 3).collect());
    // What is no counter is an error, and stays as it is.
    assert_eq!(ask(&guest, Method::PUT, "/b/text", "text").await.0, 204);
    assert_eq!(ask(&guest, Method::POST, "/b/text", "").await.0, 500);
    assert_eq!(read(&guest, "/b/text").await, "text");
}
