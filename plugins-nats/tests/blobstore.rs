//! The blob store of the NATS plugin, against a real server with JetStream.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use capabilities::blobstore::{BlobStore, ByteStream, Error, KeyRange, ObjectId};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use capabilities::{BoxError, contract};
use fleet::nats::NatsServer;
use futures::StreamExt;
use futures::future::join_all;
use plugins_nats::Nats;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

const DEADLINE: Duration = Duration::from_secs(60);
const WHOLE: RangeInclusive<u64> = 0..=u64::MAX;
const CHUNK: usize = 128 << 10;

async fn plugin(server: &NatsServer) -> Nats {
    Nats::new(server.client().await.unwrap())
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

async fn ask(plugin: &Nats, pairs: &[(&str, &str)]) -> Result<Arc<dyn BlobStore>, OpenError> {
    let settings = settings(pairs);
    let ask = Ask {
        namespace: "default",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&settings),
    };
    let store = plugin.blobstore(&ask).await?;
    ask.settings.finish()?;
    Ok(store)
}

/// A store with the container `c`, and how another client sees that.
async fn container(server: &NatsServer) -> (Arc<dyn BlobStore>, ObjectStore) {
    let store = ask(&plugin(server).await, &[]).await.unwrap();
    store.create_container("c").await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    let theirs = jetstream.get_object_store("default__c").await.unwrap();
    (store, theirs)
}

/// How many messages the container `c` has, and consumers.
async fn counts(server: &NatsServer) -> (u64, usize) {
    let jetstream = jetstream::new(server.client().await.unwrap());
    let mut stream = jetstream.get_stream("OBJ_default__c").await.unwrap();
    let state = &stream.info().await.unwrap().state;
    (state.messages, state.consumer_count)
}

fn id(object: &str) -> ObjectId<'_> {
    ObjectId {
        container: "c",
        object,
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn body(content: impl Into<Bytes>) -> ByteStream {
    let content = content.into();
    Box::pin(futures::stream::once(async { Ok(content) }))
}

/// `count` pieces of 64 KiB, each filled with its number.
fn pieces(count: usize) -> ByteStream {
    let piece = |i: usize| Ok(Bytes::from(vec![i as u8; 64 << 10]));
    Box::pin(futures::stream::iter((0..count).map(piece)))
}

async fn read(
    store: &Arc<dyn BlobStore>,
    object: &str,
    range: RangeInclusive<u64>,
) -> Result<Vec<u8>, BoxError> {
    let mut content = store.read(id(object), range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = content.body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    assert_eq!(bytes.len() as u64, content.size);
    Ok(bytes)
}

fn is_damaged(error: &BoxError) -> bool {
    matches!(error.downcast_ref(), Some(Error::Damaged(_)))
}

async fn names(store: &Arc<dyn BlobStore>) -> Vec<String> {
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1000,
    };
    store.objects("c", range).await.unwrap().keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobstore() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::blobstore::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn blobstore_in_memory() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    contract::blobstore::run(&plugin, &settings(&[("storage", "memory")]))
        .await
        .unwrap();
}

#[tokio::test]
async fn blobstore_on_a_server_with_small_messages() {
    let server = NatsServer::start_with("max_payload: 65536").await.unwrap();
    let plugin = plugin(&server).await;
    contract::blobstore::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn containers_are_made_as_configured_and_used_as_they_are() {
    let server = NatsServer::start().await.unwrap();
    let nats = plugin(&server).await;
    let configured = [
        ("replicas", "1"),
        ("ttl", "2h"),
        ("max_bytes", "1000000"),
        ("storage", "memory"),
    ];
    let store = ask(&nats, &configured).await.unwrap();
    store.create_container("c_1").await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    // The encoded name is part of what is stored: it must not change.
    let stream = jetstream.get_stream("OBJ_default__c_5F1").await.unwrap();
    let config = stream.cached_info().config.clone();
    assert_eq!(config.num_replicas, 1);
    assert_eq!(config.max_age, Duration::from_secs(2 * 60 * 60));
    assert_eq!(config.max_bytes, 1_000_000);
    assert_eq!(config.storage, stream::StorageType::Memory);

    // Another host with other settings uses it as it is.
    let other = ask(&plugin(&server).await, &[]).await.unwrap();
    other.create_container("c_1").await.unwrap();
    let object = ObjectId {
        container: "c_1",
        object: "too large for it",
    };
    assert!(other.write(object, pieces(32)).await.is_err());
    assert_eq!(other.object(object).await.unwrap(), None);
    other.write(object, pieces(4)).await.unwrap();
}

#[tokio::test]
async fn hosts_that_create_a_container_at_once_all_get_it() {
    let server = NatsServer::start().await.unwrap();
    let nats = plugin(&server).await;
    let creations = (1..=8).map(|hours| {
        let nats = &nats;
        async move {
            let store = ask(nats, &[("ttl", &format!("{hours}h"))]).await.unwrap();
            store.create_container("c").await.unwrap()
        }
    });
    let made = join_all(creations).await;
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    let server = NatsServer::start().await.unwrap();
    let nats = plugin(&server).await;
    for (key, value) in [
        ("create", "maybe"),
        ("replicas", "6"),
        ("ttl", "soon"),
        ("max_bytes", "-1"),
        ("storage", "tape"),
        ("max_object_bytes", "0"),
        ("max_object_bytes", "1073741825"),
    ] {
        let refused = ask(&nats, &[(key, value)]).await.map(drop);
        assert!(
            matches!(refused, Err(OpenError::Setting { key: k, .. }) if k == key),
            "{key}"
        );
    }
    // What only buckets have.
    let refused = ask(&nats, &[("history", "3")]).await.map(drop);
    assert!(matches!(refused, Err(OpenError::UnknownSettings { .. })));
}

#[tokio::test]
async fn other_clients_read_what_this_one_writes() {
    let server = NatsServer::start().await.unwrap();
    let (store, theirs) = container(&server).await;
    for (name, size) in [("an object/имя", 300_000), ("one", 1), ("empty", 0)] {
        store.write(id(name), body(pattern(size))).await.unwrap();
        let info = theirs.info(name).await.unwrap();
        assert_eq!((info.size, info.name.as_str()), (size, name));
        let mut bytes = Vec::new();
        // It checks the digest.
        let mut object = theirs.get(name).await.unwrap();
        object.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, pattern(size));
    }
    let listed = theirs.list().await.unwrap();
    let mut listed: Vec<String> = listed.map(|info| info.unwrap().name).collect().await;
    listed.sort();
    assert_eq!(listed, ["an object/имя", "empty", "one"]);
    store.delete(id("one")).await.unwrap();
    assert!(theirs.get("one").await.is_err());
}

#[tokio::test]
async fn what_other_clients_write_is_read() {
    let server = NatsServer::start().await.unwrap();
    let (store, theirs) = container(&server).await;
    let content = pattern(1_000_000);
    theirs.put("large", &mut content.as_slice()).await.unwrap();
    theirs.put("one", &mut b"1".as_slice()).await.unwrap();
    theirs.put("gone", &mut b"x".as_slice()).await.unwrap();
    theirs.delete("gone").await.unwrap();
    assert_eq!(read(&store, "large", WHOLE).await.unwrap(), content);
    let range = read(&store, "large", 700_000..=700_009).await.unwrap();
    assert_eq!(range, content[700_000..=700_009]);
    assert_eq!(names(&store).await, ["large", "one"]);
    assert_eq!(store.object(id("gone")).await.unwrap(), None);
    // A link may lead where this caller may not read.
    let large = theirs.info("large").await.unwrap();
    theirs.add_link("link", &large).await.unwrap();
    let refused = store.read(id("link"), WHOLE).await;
    assert!(
        matches!(refused, Err(Error::InvalidArgument(_))),
        "{refused:?}"
    );
    store.write(id("large"), body("small now")).await.unwrap();
    assert_eq!(read(&store, "large", WHOLE).await.unwrap(), b"small now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_of_what_is_replaced_deleted_or_given_up() {
    let server = NatsServer::start().await.unwrap();
    let (store, _) = container(&server).await;
    let content = || body(pattern(3 * CHUNK));
    let writes = (0..8).map(|_| store.write(id("a"), content()));
    for write in join_all(writes).await {
        write.unwrap();
    }
    assert_eq!(counts(&server).await, (4, 0));
    let broken = content().chain(futures::stream::iter([Err("broken".into())]));
    assert!(store.write(id("a"), Box::pin(broken)).await.is_err());
    assert_eq!(counts(&server).await, (4, 0));
    let endless = content().chain(futures::stream::pending());
    let write = store.write(id("b"), Box::pin(endless));
    let cut = tokio::time::timeout(Duration::from_millis(500), write).await;
    assert!(cut.is_err());
    assert_eq!(counts(&server).await.0, 7);
    // The next write or delete in the container removes what was given up.
    store.delete(id("b")).await.unwrap();
    assert_eq!(counts(&server).await, (4, 0));
    assert_eq!(read(&store, "a", WHOLE).await.unwrap().len(), 3 * CHUNK);
    store.delete(id("a")).await.unwrap();
    assert_eq!(counts(&server).await, (0, 0));
}

#[tokio::test]
async fn damage_is_found() {
    let server = NatsServer::start().await.unwrap();
    let (store, theirs) = container(&server).await;
    store
        .write(id("gap"), body(pattern(5 * CHUNK)))
        .await
        .unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    let stream = jetstream.get_stream("OBJ_default__c").await.unwrap();
    stream.delete_message(3).await.unwrap();
    let error = read(&store, "gap", WHOLE).await.unwrap_err();
    assert!(is_damaged(&error), "{error:?}");
    // The parts before and after it are as they were.
    let at = 4 * CHUNK as u64;
    assert_eq!(read(&store, "gap", 0..=9).await.unwrap(), pattern(10));
    let whole = pattern(5 * CHUNK);
    assert_eq!(
        read(&store, "gap", at..=at).await.unwrap(),
        whole[4 * CHUNK..=4 * CHUNK]
    );

    // Other bytes than were written.
    store.write(id("other"), body("one")).await.unwrap();
    let mut info = theirs.info("other").await.unwrap();
    info.digest = Some("SHA-256=AAAA".to_owned());
    let subject = "$O.default__c.M.b3RoZXI=";
    let payload = serde_json::to_vec(&info).unwrap();
    let ack = jetstream.publish(subject, payload.into()).await.unwrap();
    ack.await.unwrap();
    let error = read(&store, "other", WHOLE).await.unwrap_err();
    assert!(is_damaged(&error), "{error:?}");
}

#[tokio::test]
async fn a_container_deleted_by_others_is_an_error() {
    let server = NatsServer::start().await.unwrap();
    let (store, _) = container(&server).await;
    store.write(id("a"), body("content")).await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    jetstream.delete_object_store("default__c").await.unwrap();
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    for gone in [
        store.read(id("a"), WHOLE).await.map(drop),
        store.write(id("a"), body("content")).await,
        store.delete(id("a")).await,
        store.objects("c", range).await.map(drop),
    ] {
        assert!(
            matches!(&gone, Err(Error::NoSuchContainer(name)) if name == "c"),
            "{gone:?}"
        );
    }
    store.create_container("c").await.unwrap();
    assert_eq!(store.object(id("a")).await.unwrap(), None);
}

/// The most memory this process had so far.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_pass_through_little_memory() {
    const PIECES: usize = 1024;
    const SIZE: u64 = 64 << 20;
    let server = NatsServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    let store = ask(&Nats::new(client.clone()), &[]).await.unwrap();
    store.create_container("c").await.unwrap();
    store.write(id("warm"), pieces(32)).await.unwrap();
    let before = peak_bytes();
    store.write(id("large"), pieces(PIECES)).await.unwrap();
    let mut content = store.read(id("large"), WHOLE).await.unwrap();
    assert_eq!(content.size, SIZE);
    let mut at = 0;
    while let Some(piece) = content.body.next().await {
        let piece = piece.unwrap();
        assert_eq!(piece[0], (at >> 16) as u8);
        at += piece.len();
        // As slow as a client far away: what is not asked for is not sent.
        tokio::task::yield_now().await;
    }
    assert_eq!(at as u64, SIZE);
    let grown = peak_bytes() - before;
    assert!(grown < 24 << 20, "{grown}");

    // A small range of it is little work, also when others wrote in between.
    store.write(id("other"), pieces(8)).await.unwrap();
    for at in [0, SIZE / 3, SIZE / 2 + 1, SIZE - 10] {
        let received = client.statistics().in_bytes.load(Ordering::Relaxed);
        let found = read(&store, "large", at..=at + 9).await.unwrap();
        assert_eq!(found, [(at >> 16) as u8; 10]);
        let received = client.statistics().in_bytes.load(Ordering::Relaxed) - received;
        assert!(received < 1 << 20, "{received} bytes for 10 at {at}");
    }
    assert_eq!(counts(&server).await.1, 0);
}

/// Two objects written at once lie chunk beside chunk.
#[tokio::test]
async fn ranges_are_found_among_the_chunks_of_others() {
    const PIECES: usize = 256;
    let server = NatsServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    let store = ask(&Nats::new(client.clone()), &[]).await.unwrap();
    store.create_container("c").await.unwrap();
    let objects = ["a", "b", "c", "d"];
    for write in join_all(objects.map(|name| store.write(id(name), pieces(PIECES)))).await {
        write.unwrap();
    }
    let size = (PIECES as u64) << 16;
    for name in objects {
        for at in (0..size).step_by(1_000_003) {
            let received = client.statistics().in_bytes.load(Ordering::Relaxed);
            let found = read(&store, name, at..=at).await.unwrap();
            assert_eq!(found, [(at >> 16) as u8], "{name} {at}");
            let received = client.statistics().in_bytes.load(Ordering::Relaxed) - received;
            assert!(
                received < size / 2,
                "{received} bytes for one at {at} of {name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = NatsServer::start_with("").await.unwrap();
    let (store, _) = container(&server).await;
    let stop = AtomicBool::new(false);
    let failed = AtomicBool::new(false);
    let work = async {
        let (mut acknowledged, mut after_failure) = (Vec::new(), 0);
        for i in 0.. {
            let name = format!("object{i}");
            match store.write(id(&name), pieces(16)).await {
                Ok(()) => {
                    acknowledged.push(name);
                    after_failure += u32::from(failed.load(Ordering::Relaxed));
                }
                Err(Error::Timeout(_) | Error::Unavailable(_)) => {
                    failed.store(true, Ordering::Relaxed);
                }
                Err(error) => panic!("{error:?}"),
            }
            if stop.load(Ordering::Relaxed) && after_failure > 5 {
                return (acknowledged, i);
            }
        }
        unreachable!("the loop has no end of its own");
    };
    let kill = async {
        let start = Instant::now();
        while names(&store).await.len() < 20 {
            assert!(start.elapsed() < DEADLINE);
        }
        server.kill();
        while !failed.load(Ordering::Relaxed) {
            assert!(start.elapsed() < DEADLINE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.restart().await.unwrap();
        stop.store(true, Ordering::Relaxed);
    };
    let both = async { tokio::join!(work, kill) };
    let ((acknowledged, tried), ()) = tokio::time::timeout(2 * DEADLINE, both).await.unwrap();
    assert!(acknowledged.len() >= 20 && tried >= acknowledged.len());
    // What was not acknowledged is there as a whole or not at all.
    let there = names(&store).await;
    for name in &acknowledged {
        assert!(there.contains(name), "{name}");
    }
    for name in &there {
        let content = read(&store, name, WHOLE).await.unwrap();
        assert_eq!(content.len(), 16 << 16, "{name}");
    }
    // And in the end nothing else is: eight chunks and one meta message for each. What may have been
    // committed when the server was killed is waited for.
    let start = Instant::now();
    while counts(&server).await.0 != 9 * there.len() as u64 {
        assert!(start.elapsed() < DEADLINE, "{:?}", counts(&server).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
        store.delete(id("never")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_goes_on_after_the_server_was_restarted() {
    let mut server = NatsServer::start_with("").await.unwrap();
    let (store, _) = container(&server).await;
    store.write(id("a"), pieces(256)).await.unwrap();
    let mut content = store.read(id("a"), WHOLE).await.unwrap();
    let mut at = 0;
    while let Some(piece) = content.body.next().await {
        let piece = piece.unwrap();
        assert_eq!(piece[0], (at >> 16) as u8);
        at += piece.len();
        if at == 8 << 20 {
            server.kill();
            server.restart().await.unwrap();
        }
    }
    assert_eq!(at, 16 << 20);
}

#[tokio::test]
async fn without_a_server_operations_end_and_say_so() {
    let mut server = NatsServer::start().await.unwrap();
    let (store, _) = container(&server).await;
    store.write(id("a"), body("content")).await.unwrap();
    server.kill();
    let start = Instant::now();
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    let (read, write, object, objects, create) = tokio::join!(
        store.read(id("a"), WHOLE),
        store.write(id("a"), body("content")),
        store.object(id("a")),
        store.objects("c", range),
        store.create_container("d"),
    );
    for error in [
        read.map(drop),
        write,
        object.map(drop),
        objects.map(drop),
        create.map(drop),
    ] {
        assert!(matches!(error, Err(Error::Unavailable(_))), "{error:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}
