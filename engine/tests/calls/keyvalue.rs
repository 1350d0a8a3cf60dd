//! `wasi:keyvalue` and `wasmcloud:keyvalue` as a guest sees them, over memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use engine::Runnable;
use engine::wit::WitInterface;
use http::Method;
use tokio::task::JoinSet;

use crate::host::{grant, pairs, read, send, shared, start, text};

/// A package, by the guest that calls all of it.
#[derive(Clone, Copy, Debug)]
struct Package {
    guest: &'static str,
    namespace: &'static str,
    interfaces: &'static [&'static str],
}

const WASI: Package = Package {
    guest: "kv",
    namespace: "wasi",
    interfaces: &["store", "atomics", "batch"],
};

const WASMCLOUD: Package = Package {
    guest: "kv3",
    namespace: "wasmcloud",
    interfaces: &["store", "atomics", "cas", "batch"],
};

const PACKAGES: [Package; 2] = [WASI, WASMCLOUD];

async fn kv(package: Package, workload: &str, config: &[(&str, &str)]) -> Runnable {
    let entry = |name: &str| WitInterface {
        name: name.to_owned(),
        namespace: package.namespace.to_owned(),
        package: "keyvalue".to_owned(),
        interfaces: package.interfaces.iter().map(ToString::to_string).collect(),
        version: None,
        config: pairs(config),
    };
    let mut grant = grant(&format!("{workload}-{}", package.guest));
    // The label of an import of `kv3`.
    grant.declared = Arc::new([entry(""), entry("cache")]);
    start(shared(), package.guest, grant).await
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
    for package in PACKAGES {
        let guest = kv(package, "crud", &[]).await;
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
}

#[tokio::test]
async fn names_belong_to_a_namespace_unless_they_are_shared() {
    for package in PACKAGES {
        let path = format!("/spaces-{}/k", package.guest);
        let (a, b) = (
            kv(package, "space-a", &[]).await,
            kv(package, "space-b", &[]).await,
        );
        assert_eq!(ask(&a, Method::PUT, &path, "a").await.0, 204);
        assert_eq!(ask(&b, Method::GET, &path, "").await.0, 404);
        let (a, b) = (
            kv(package, "space-a", &[("shared", "true")]).await,
            kv(package, "space-b", &[("shared", "true")]).await,
        );
        assert_eq!(ask(&b, Method::GET, &path, "").await.0, 404);
        assert_eq!(ask(&a, Method::PUT, &path, "both").await.0, 204);
        assert_eq!(read(&b, &path).await, "both");
    }
}

#[tokio::test]
async fn a_bucket_that_may_not_be_created_does_not_exist() {
    for package in PACKAGES {
        let guest = kv(package, "no-create", &[("create", "false")]).await;
        assert_eq!(
            ask(&guest, Method::GET, "/none/k", "").await,
            (500, "error: no-such-store\n".to_owned())
        );
    }
}

#[tokio::test]
async fn batches_keep_their_order() {
    for package in PACKAGES {
        let guest = kv(package, "batches", &[]).await;
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
}

#[tokio::test]
async fn a_listing_has_every_key_once_over_its_pages() {
    for package in PACKAGES {
        let guest = kv(package, "pages", &[]).await;
        let keys: Vec<String> = (0..2_500).map(|n| format!("k{n:04}")).collect();
        let pairs: String = keys.iter().map(|key| format!("{key}=v\n")).collect();
        let set = ask(&guest, Method::POST, "/b?many=set", pairs).await;
        assert_eq!(set.0, 204);

        let page = async |target: &str| {
            let (mut keys, mut cursor) = (Vec::new(), None);
            for line in read(&guest, target).await.lines() {
                match line.split_once(' ').unwrap() {
                    ("cursor", next) => cursor = Some(next.to_owned()),
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

        if package.namespace != "wasi" {
            continue;
        }
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_at_once_are_all_counted() {
    for package in PACKAGES {
        let guest = kv(package, "increments", &[]).await;
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
}

#[tokio::test]
async fn a_value_may_be_set_only_where_there_is_none_and_for_a_while() {
    let guest = kv(WASMCLOUD, "options", &[]).await;
    let put =
        async |target: &str, value: &'static str| ask(&guest, Method::PUT, target, value).await;
    assert_eq!(put("/b/k?new", "first").await.0, 204);
    let failed = (500, "error: precondition-failed\n".to_owned());
    assert_eq!(put("/b/k?new", "second").await, failed);
    assert_eq!(put("/b/k?new&ttl=60000", "third").await, failed);
    assert_eq!(read(&guest, "/b/k").await, "first");
    assert_eq!(put("/b/k?ttl=60000", "fourth").await.0, 204);
    assert_eq!(read(&guest, "/b/k").await, "fourth");
    let invalid = (500, "error: invalid-argument\n".to_owned());
    assert_eq!(put("/b/k?ttl=0", "x").await, invalid);
    assert_eq!(put("/b/k?ttl=18446744073709551615", "x").await, invalid);
    assert_eq!(put("/b/", "x").await, invalid);
    // It ends by itself.
    assert_eq!(put("/b/short?ttl=1", "x").await.0, 204);
    let deadline = std::time::Instant::now() + crate::host::DEADLINE;
    while ask(&guest, Method::GET, "/b/short", "").await.0 != 404 {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn a_swap_happens_only_where_what_it_requires_holds() {
    let guest = kv(WASMCLOUD, "cas", &[]).await;
    let swap = async |requires: &str, value: &'static str| {
        let target = format!("/b/k?swap{requires}");
        ask(&guest, Method::PUT, &target, value).await
    };
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(swap("&value=a", "b").await, ok("stale"));
    assert_eq!(ask(&guest, Method::GET, "/b/k?current", "").await.0, 404);
    assert_eq!(ask(&guest, Method::PUT, "/b/k", "a").await.0, 204);
    let current = read(&guest, "/b/k?current").await;
    let (version, value) = current.split_once(' ').unwrap();
    assert_eq!(value, "a");
    assert_eq!(swap("&value=x", "b").await, ok("stale a"));
    assert_eq!(
        swap(&format!("&version={version}&value=x"), "b").await,
        ok("stale a")
    );
    assert_eq!(
        swap(&format!("&version={version}&value=a"), "b").await,
        ok("swapped")
    );
    assert_eq!(
        swap(&format!("&version={version}"), "c").await,
        ok("stale b")
    );
    assert_eq!(swap("&version=none", "c").await, ok("stale b"));
    assert_eq!(swap("&value=b", "c").await, ok("swapped"));
    assert_eq!(read(&guest, "/b/k").await, "c");
    assert_eq!(
        swap("", "d").await,
        (500, "error: invalid-argument\n".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_swaps_at_once_one_wins() {
    let guest = kv(WASMCLOUD, "race", &[]).await;
    assert_eq!(ask(&guest, Method::PUT, "/b/k", "0").await.0, 204);
    let mut calls = JoinSet::new();
    for n in 1..=16 {
        let guest = guest.clone();
        let swap = async move {
            ask(&guest, Method::PUT, "/b/k?swap&value=0", n.to_string())
                .await
                .1
        };
        calls.spawn(swap);
    }
    let results = calls.join_all().await;
    let won = results.iter().filter(|result| *result == "swapped");
    assert_eq!(won.count(), 1, "{results:?}");
}

#[tokio::test]
async fn a_listing_may_be_of_a_prefix() {
    let guest = kv(WASMCLOUD, "prefix", &[]).await;
    let set = ask(&guest, Method::POST, "/b?many=set", "a/1=x\na/2=x\nb/1=x\n").await;
    assert_eq!(set.0, 204);
    assert_eq!(
        read(&guest, "/b?list&prefix=a/").await,
        "key a/1\nkey a/2\n"
    );
    assert_eq!(
        read(&guest, "/b?list&prefix=a/&cursor=a/1").await,
        "key a/2\n"
    );
    assert_eq!(read(&guest, "/b?list&prefix=c").await, "");
}

#[tokio::test]
async fn a_label_reaches_its_entry() {
    let guest = kv(WASMCLOUD, "labelled", &[]).await;
    assert_eq!(ask(&guest, Method::PUT, "/~cache/b/k", "v").await.0, 204);
    assert_eq!(read(&guest, "/~cache/b/k").await, "v");
    // A plain import reaches it by its name.
    assert_eq!(ask(&guest, Method::PUT, "/cache/k", "named").await.0, 204);
    assert_eq!(read(&guest, "/~cache/cache/k").await, "named");
}

#[tokio::test]
async fn calls_under_way_at_once_are_bounded_in_bytes() {
    let guest = kv(WASMCLOUD, "at-once", &[]).await;
    assert_eq!(
        ask(&guest, Method::PUT, "/b/k", vec![b'x'; 900 << 10])
            .await
            .0,
        204
    );
    // More than may be carried out at once; the others wait.
    assert_eq!(read(&guest, "/b/k?at-once=200").await, "200 0\n");
    assert_eq!(
        ask(&guest, Method::PUT, "/b/k?at-once=8&kb=1000", "").await,
        (200, "8 0\n".to_owned())
    );
}
