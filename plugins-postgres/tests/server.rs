//! What becomes of calls when the server, its role or other hosts are not as one would wish.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use bytes::Bytes;
use capabilities::blobstore::{self, BlobStore, ByteStream, ObjectId};
use capabilities::keyvalue::{self, Guard, KeyRange, KeyValueStore, Put, counter};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::postgres::{PASSWORD, PostgresServer};
use fleet::proxy::Proxy;
use fleet::wait;
use futures::future::{join_all, select_all};
use futures::{StreamExt, stream};
use plugins_postgres::{Dsn, Postgres};
use sqlx::postgres::PgPool;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

const OBJECT: ObjectId<'static> = ObjectId {
    container: "c",
    object: "o",
};

fn plugin(url: &str) -> Postgres {
    Postgres::new(Some(&Dsn::parse(url).unwrap()))
}

fn ask(settings: &BTreeMap<String, String>) -> Ask<'_> {
    Ask {
        namespace: "default",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(settings),
    }
}

async fn store(plugin: &Postgres) -> Arc<dyn KeyValueStore> {
    plugin.keyvalue(&ask(&BTreeMap::new())).await.unwrap()
}

async fn blobs(plugin: &Postgres) -> Arc<dyn BlobStore> {
    plugin.blobstore(&ask(&BTreeMap::new())).await.unwrap()
}

fn put<'a>(key: &'a str, value: &str) -> Put<'a> {
    Put {
        key,
        value: Bytes::from(value.to_owned()),
        guard: Guard::Any,
        ttl: None,
    }
}

fn body(chunks: usize) -> ByteStream {
    let chunk = Bytes::from(vec![7; 256 << 10]);
    Box::pin(stream::iter((0..chunks).map(move |_| Ok(chunk.clone()))))
}

async fn count(pool: &PgPool, question: &'static str) -> i64 {
    let counted = sqlx::query_scalar(question).fetch_one(pool).await;
    counted.unwrap()
}

const CHUNKS: &str = "SELECT count(*) FROM washlet.chunk";

/// Hosts that come to an empty database at once all find their way, and one that comes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_make_the_schema_together() {
    let server = PostgresServer::start().await.unwrap();
    let plugins: Vec<_> = (0..8).map(|_| plugin(&server.url())).collect();
    let opened = join_all(plugins.iter().map(async |plugin| {
        let store = store(plugin).await;
        let opens = (0..4).map(|_| store.open("b"));
        for opened in join_all(opens).await {
            opened.unwrap();
        }
        store.increment("b", "n", 1).await.unwrap()
    }));
    let sums: BTreeSet<_> = opened.await.into_iter().collect();
    assert_eq!(sums, (1..=8).collect());
    let later = store(&plugin(&server.url())).await;
    assert_eq!(later.increment("b", "n", 1).await.unwrap(), 9);
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let applied_twice = "SELECT count(*) - max(version) FROM washlet.migration";
    assert_eq!(count(&pool, applied_twice).await, 0);
}

/// A schema of a later version is left alone, and the reason is said.
#[tokio::test]
async fn a_schema_of_a_later_version_is_refused() {
    let server = PostgresServer::start().await.unwrap();
    store(&plugin(&server.url())).await.open("b").await.unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let later = "INSERT INTO washlet.migration (version) VALUES (99)";
    sqlx::query(later).execute(&pool).await.unwrap();
    let refused = store(&plugin(&server.url())).await.open("b").await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(&refused, keyvalue::Error::Internal(why) if why.to_string().contains("version 99")),
        "{refused:?}"
    );
}

/// A role that may not make the schema is refused, and needs no more than to find it.
#[tokio::test]
async fn a_role_needs_a_schema_of_its_own_or_the_right_to_make_it() {
    let server = PostgresServer::start().await.unwrap();
    let owner = PgPool::connect(&server.url()).await.unwrap();
    let refuse = "REVOKE CREATE ON DATABASE fleet FROM PUBLIC, guest";
    sqlx::query(refuse).execute(&owner).await.unwrap();
    let plugin = plugin(&server.url());
    let store = store(&plugin).await;
    let refused = store.open("b").await;
    assert!(
        matches!(refused, Err(keyvalue::Error::AccessDenied)),
        "{refused:?}"
    );
    let prepare = "GRANT CREATE ON DATABASE fleet TO guest; CREATE SCHEMA washlet; \
                   REVOKE CREATE ON DATABASE fleet FROM guest";
    sqlx::raw_sql(prepare).execute(&owner).await.unwrap();
    store.open("b").await.unwrap();
}

#[tokio::test]
async fn what_cannot_sign_in_or_be_reached_says_so_without_the_secret() {
    let server = PostgresServer::start().await.unwrap();
    let address = server.address();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    for (url, denied) in [
        (
            format!("postgres://guest:{PASSWORD}-wrong@{address}/fleet"),
            true,
        ),
        (
            format!("postgres://nobody:{PASSWORD}@{address}/fleet"),
            true,
        ),
        (
            format!("postgres://guest:{PASSWORD}@{address}/other"),
            false,
        ),
        (format!("postgres://guest:{PASSWORD}@{silent}/fleet"), false),
        (format!("{}?sslmode=require", server.url()), false),
        (
            format!("{}?sslrootcert=/none&sslmode=verify-ca", server.url()),
            false,
        ),
    ] {
        let start = Instant::now();
        let error = store(&plugin(&url)).await.open("b").await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(15), "{url}");
        match denied {
            true => assert!(matches!(error, keyvalue::Error::AccessDenied), "{error:?}"),
            false => assert!(
                matches!(error, keyvalue::Error::Unavailable(_)),
                "{error:?}"
            ),
        }
        let text = format!("{error:?} {}", capabilities::report(&error));
        for secret in [PASSWORD, "guest", "other"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// TLS is used when it is there, and asked for and checked as the URL says.
#[tokio::test]
async fn the_server_is_known_by_its_certificate() {
    let made = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (own, other) = (made(), made());
    let key = own.signing_key.serialize_pem();
    let server = PostgresServer::start_with_tls(&own.cert.pem(), &key).await;
    let server = server.unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, cert) in [("own", own.cert), ("other", other.cert)] {
        std::fs::write(dir.path().join(name), cert.pem()).unwrap();
    }
    let root = |name: &str| format!("&sslrootcert={}", dir.path().join(name).display());
    for (parameters, is_known) in [
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=verify-full{}", root("own")), true),
        (format!("sslmode=verify-full{}", root("other")), false),
        ("sslmode=verify-full".to_owned(), false),
    ] {
        let opened = store(&plugin(&format!("{}?{parameters}", server.url())))
            .await
            .open("b")
            .await;
        match is_known {
            true => opened.unwrap(),
            false => assert!(
                matches!(opened, Err(keyvalue::Error::Unavailable(_))),
                "{parameters}: {opened:?}"
            ),
        }
    }
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let encrypted = "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()";
    assert_eq!(count(&pool, encrypted).await, 1);
}

#[tokio::test]
async fn settings_that_nothing_reads_are_refused() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server.url());
    let settings = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let unread = settings("history", "5");
    let unread = ask(&unread);
    plugin.keyvalue(&unread).await.unwrap();
    assert!(matches!(
        unread.settings.finish(),
        Err(OpenError::UnknownSettings { .. })
    ));
    let wrong = settings("create", "maybe");
    let refused = plugin.keyvalue(&ask(&wrong)).await.map(drop);
    assert!(matches!(
        refused,
        Err(OpenError::Setting { key: "create", .. })
    ));
    let none = BTreeMap::new();
    let refused = plugin.secrets(&ask(&none)).await.map(drop);
    assert!(matches!(refused, Err(OpenError::NotOffered(_))));
}

/// What has expired is deleted when others are written that will expire.
#[tokio::test]
async fn expired_values_do_not_stay() {
    let server = PostgresServer::start().await.unwrap();
    let store = store(&plugin(&server.url())).await;
    store.open("b").await.unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let ttl = Some(Duration::from_secs(1));
    let put = |key| Put {
        ttl,
        ..put(key, "")
    };
    store.put("b", put("old")).await.unwrap();
    wait::until(DEADLINE, "the old value is gone", async || {
        store.put("b", put("new")).await.ok()?;
        let old = "SELECT count(*) FROM washlet.entry WHERE key = 'old'";
        (count(&pool, old).await == 0).then_some(())
    })
    .await
    .unwrap();
}

/// Writers that go away, wherever they are, leave the object, and no chunk once somebody has written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_go_away_leave_nothing() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server.url());
    let blobs = blobs(&plugin).await;
    blobs.create_container("c").await.unwrap();
    blobs.write(OBJECT, body(2)).await.unwrap();
    for millis in (0..60).step_by(3) {
        let endless = Box::pin(body(10).chain(stream::pending()));
        let write = blobs.write(OBJECT, endless);
        let cut = tokio::time::timeout(Duration::from_millis(millis), write).await;
        assert!(cut.is_err());
    }
    let size = blobs.object(OBJECT).await.unwrap().unwrap().size;
    assert_eq!(size, 512 << 10);
    let pool = PgPool::connect(&server.url()).await.unwrap();
    wait::until(DEADLINE, "only the object's chunks are left", async || {
        blobs.write(OBJECT, body(3)).await.ok()?;
        (count(&pool, CHUNKS).await == 3).then_some(())
    })
    .await
    .unwrap();
    blobs.delete_container("c").await.unwrap();
    assert_eq!(count(&pool, CHUNKS).await, 0);
    let contents = "SELECT count(*) FROM washlet.content WHERE expires_at IS NULL";
    assert_eq!(count(&pool, contents).await, 0);
}

/// What a host that died left is deleted by another, and a writer whose hour is over fails.
#[tokio::test]
async fn chunks_of_the_dead_are_deleted_after_their_hour() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server.url());
    let blobs = blobs(&plugin).await;
    blobs.create_container("c").await.unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let other = ObjectId {
        object: "other",
        ..OBJECT
    };
    // The hour of the writer passes while its body is waited for.
    let (passing, beside) = (pool.clone(), blobs.clone());
    let slow = stream::unfold(0, move |n| {
        let (blobs, pool) = (beside.clone(), passing.clone());
        async move {
            if n == 8 {
                let pass = "UPDATE washlet.content SET expires_at = now() - interval '1 minute' \
                            WHERE expires_at IS NOT NULL";
                sqlx::query(pass).execute(&pool).await.unwrap();
                blobs.write(other, body(0)).await.unwrap();
            }
            (n < 10).then(|| (Ok(Bytes::from(vec![1; 256 << 10])), n + 1))
        }
    });
    let written = blobs.write(OBJECT, Box::pin(slow)).await;
    assert!(
        matches!(written, Err(blobstore::Error::Unavailable(_))),
        "{written:?}"
    );
    assert_eq!(blobs.object(OBJECT).await.unwrap(), None);
    assert_eq!(count(&pool, CHUNKS).await, 0);
}

/// A body that lacks a chunk ends with an error, whoever took it away.
#[tokio::test]
async fn a_body_with_a_hole_says_so() {
    let server = PostgresServer::start().await.unwrap();
    let blobs = blobs(&plugin(&server.url())).await;
    blobs.create_container("c").await.unwrap();
    blobs.write(OBJECT, body(4)).await.unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    for cut in [
        "DELETE FROM washlet.chunk WHERE at = 512 * 1024",
        "UPDATE washlet.chunk SET bytes = substring(bytes FROM 1 FOR 9) WHERE at = 256 * 1024",
    ] {
        sqlx::query(cut).execute(&pool).await.unwrap();
        let mut content = blobs.read(OBJECT, 0..=u64::MAX).await.unwrap();
        let mut last = None;
        while let Some(piece) = content.body.next().await {
            last = Some(piece);
        }
        let error = last.unwrap().unwrap_err();
        let error = error.downcast_ref::<blobstore::Error>().unwrap();
        assert!(matches!(error, blobstore::Error::Damaged(_)), "{error:?}");
    }
}

/// Callers that go away take no connection with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_calls_neither_lose_nor_hang_others() {
    let server = PostgresServer::start().await.unwrap();
    let store = store(&plugin(&server.url())).await;
    store.open("b").await.unwrap();
    let done = AtomicBool::new(false);
    let cancelling = async {
        let mut dropped = 0;
        while !done.load(Ordering::Relaxed) {
            let calls = (0..5).map(|_| store.increment("b", "key", 1_000_000));
            let (sum, _, others) = select_all(calls).await;
            sum.unwrap();
            dropped += others.len();
        }
        dropped
    };
    let counting = async {
        let steady = (0..8).map(|_| async {
            for _ in 0..25 {
                store.increment("b", "key", 1).await.unwrap();
            }
        });
        join_all(steady).await;
        done.store(true, Ordering::Relaxed);
    };
    let both = async { tokio::join!(cancelling, counting) };
    let (dropped, ()) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert!(dropped > 0);
    let sum = store.increment("b", "key", 0).await.unwrap();
    assert_eq!(sum % 1_000_000, 200);
}

/// Calls to a server that fell silent end, whoever waits for them, and take no place from those to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_no_place() {
    let server = PostgresServer::start().await.unwrap();
    let proxy = Proxy::start(&server.address()).await.unwrap();
    let url = format!("postgres://guest:{PASSWORD}@{}/fleet", proxy.address());
    let store = store(&plugin(&url)).await;
    store.open("b").await.unwrap();
    proxy.pause();
    let gone = (0..30).map(|_| {
        let get = store.get("b", "key");
        tokio::time::timeout(Duration::from_millis(200), get)
    });
    assert!(join_all(gone).await.iter().all(Result::is_err));
    let start = Instant::now();
    for silent in join_all((0..15).map(|_| store.get("b", "key"))).await {
        assert!(
            matches!(
                silent,
                Err(keyvalue::Error::Timeout(_) | keyvalue::Error::Unavailable(_))
            ),
            "{silent:?}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(15));
    proxy.resume();
    let start = Instant::now();
    wait::until(DEADLINE, "calls are answered", async || {
        store.get("b", "key").await.ok()
    })
    .await
    .unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn without_a_server_calls_end_and_say_so_and_go_on_when_it_is_back() {
    let mut server = PostgresServer::start().await.unwrap();
    let (early, late) = (plugin(&server.url()), plugin(&server.url()));
    let (early, late) = (store(&early).await, store(&late).await);
    early.open("b").await.unwrap();
    server.kill();
    let start = Instant::now();
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    let (get, increment, keys, never) = tokio::join!(
        early.get("b", "key"),
        early.increment("b", "key", 1),
        early.keys("b", range),
        join_all((0..20).map(|_| late.open("b"))),
    );
    assert!(start.elapsed() < Duration::from_secs(15));
    let never = never.into_iter().collect::<Result<(), _>>();
    let all = [get.map(drop), increment.map(drop), keys.map(drop), never];
    for silent in all {
        assert!(
            matches!(silent, Err(keyvalue::Error::Unavailable(_))),
            "{silent:?}"
        );
    }
    server.restart().await.unwrap();
    for store in [early, late] {
        wait::until(DEADLINE, "calls are answered", async || {
            store.put("b", put("key", "value")).await.ok()?
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server.url());
    let (store, blobs) = (store(&plugin).await, blobs(&plugin).await);
    store.open("b").await.unwrap();
    blobs.create_container("c").await.unwrap();
    let stop = AtomicBool::new(false);
    let failed = AtomicBool::new(false);
    let written = AtomicBool::new(false);
    let work = async {
        let (mut keys, mut objects, mut sums, mut after_failure) = (vec![], vec![], vec![], 0);
        for i in 0.. {
            let key = format!("key{i}");
            let object = ObjectId {
                object: &key,
                ..OBJECT
            };
            let put = store.put("b", put(&key, &key)).await;
            let sum = store.increment("b", "counter", 1).await;
            let wrote = blobs.write(object, body(1 + i % 3)).await;
            for silent in [put.as_ref().err(), sum.as_ref().err()]
                .into_iter()
                .flatten()
            {
                assert!(
                    matches!(
                        silent,
                        keyvalue::Error::Timeout(_) | keyvalue::Error::Unavailable(_)
                    ),
                    "{silent:?}"
                );
                failed.store(true, Ordering::Relaxed);
            }
            if wrote.is_ok() {
                objects.push((key.clone(), ((1 + i % 3) as u64) << 18));
            }
            if put.is_ok() {
                keys.push(key);
            }
            if let Ok(sum) = sum {
                sums.push(sum);
                after_failure += u32::from(failed.load(Ordering::Relaxed));
            }
            written.store(sums.len() > 20, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) && after_failure > 5 {
                break;
            }
        }
        (keys, objects, sums)
    };
    let kill = async {
        let is = async |flag: &AtomicBool| {
            let set = async || flag.load(Ordering::Relaxed).then_some(());
            wait::until(DEADLINE, "it is so", set).await.unwrap();
        };
        is(&written).await;
        server.kill();
        is(&failed).await;
        server.restart().await.unwrap();
        stop.store(true, Ordering::Relaxed);
    };
    let both = async { tokio::join!(work, kill) };
    let ((keys, objects, sums), ()) = tokio::time::timeout(2 * DEADLINE, both).await.unwrap();
    for key in keys {
        let entry = store.get("b", &key).await.unwrap().unwrap();
        assert_eq!(entry.value, Bytes::from(key));
    }
    for (object, size) in objects {
        let object = ObjectId {
            object: &object,
            ..OBJECT
        };
        let mut content = blobs.read(object, 0..=u64::MAX).await.unwrap();
        assert_eq!(content.size, size);
        let mut bytes = 0;
        while let Some(piece) = content.body.next().await {
            bytes += piece.unwrap().len() as u64;
        }
        assert_eq!(bytes, size);
    }
    assert!(sums.is_sorted_by(|a, b| a < b));
    let last = store.get("b", "counter").await.unwrap().unwrap();
    assert!(counter::decode(&last.value).unwrap() >= *sums.last().unwrap());
}
