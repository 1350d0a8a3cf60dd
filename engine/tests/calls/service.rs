//! `wasi:http@0.3`: an asynchronous guest is served, bounded and ended as a synchronous one is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engine::invoke::Error;
use engine::{Background, Config, Grant, Reuse, Runnable};
use futures::future::{BoxFuture, join_all};
use futures::stream;
use http::uri::Scheme;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::host::{
    DEADLINE, call, config, engine, get, grant, pairs, read, send, shared, start, text,
};

async fn relay(workload: &str) -> Runnable {
    start(shared(), "relay", grant(workload)).await
}

async fn limited(config: Config) -> Runnable {
    start(&engine(config), "relay", grant("limited")).await
}

#[tokio::test]
async fn an_asynchronous_guest_answers() {
    let guest = relay("hello").await;
    assert!(guest.serves_http());
    assert_eq!(read(&guest, "/hello").await, "hello\n");
    assert_eq!(text(get(&guest, "/none").await.unwrap()).await.0, 404);
}

#[tokio::test]
async fn calls_have_fresh_instances_and_run_side_by_side() {
    let guest = relay("fresh").await;
    let calls = (0..20).map(|_| read(&guest, "/visits"));
    assert!(join_all(calls).await.iter().all(|visits| visits == "1"));
}

#[tokio::test]
async fn it_is_given_what_was_granted() {
    let mut grant = grant("granted");
    grant.environment = pairs(&[("COLOUR", "blue")]);
    let guest = start(shared(), "relay", grant).await;
    assert_eq!(read(&guest, "/env?name=COLOUR").await, "blue");
    assert_eq!(read(&guest, "/env?name=PATH").await, "");
    assert_eq!(read(&guest, "/wait?ms=5").await, "waited\n");
    let refused = read(&guest, "/connect").await;
    assert!(refused.contains("AccessDenied"), "{refused}");
}

#[tokio::test]
async fn a_body_goes_both_ways_at_once_with_its_trailers() {
    let guest = relay("mirror").await;
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(1);
    let frames = stream::unfold(receiver, |mut receiver| async {
        let frame = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(frame), receiver))
    });
    let request = Request::post("/mirror")
        .body(StreamBody::new(frames))
        .unwrap();
    let background: Background = Arc::new(drop);
    let scheme = Scheme::HTTP;
    // The head is there before the request has ended, and each part before the next is sent.
    let response = guest.http(request, &scheme, &background).await.unwrap();
    let mut body = response.into_body();
    for part in ["one", "two", "three"] {
        sender.send(Frame::data(part.into())).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "abc".parse().unwrap());
    sender
        .send(Frame::trailers(trailers.clone()))
        .await
        .unwrap();
    drop(sender);
    let last = body.frame().await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_whole_one() {
    let guest = relay("broken").await;
    let frames = stream::iter([
        Ok(Frame::data(Bytes::from("half"))),
        Err(std::io::Error::other("gone")),
    ]);
    let request = Request::post("/mirror")
        .body(StreamBody::new(frames))
        .unwrap();
    let background: Background = Arc::new(drop);
    let response = guest
        .http(request, &Scheme::HTTP, &background)
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_body_is_as_long_as_the_guest_makes_it() {
    let guest = relay("long").await;
    let mut body = get(&guest, "/stream?chunks=64&bytes=1048576")
        .await
        .unwrap()
        .into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        // No more of it lies in the host than one part.
        assert!(data.len() <= 64 << 10);
        bytes += data.len();
    }
    assert_eq!(bytes, 64 << 20);
    // An empty one.
    assert_eq!(read(&guest, "/drop").await, "");
}

#[tokio::test]
async fn what_ends_early_never_looks_complete() {
    let guest = limited(Config {
        call_cpu_max: Duration::from_millis(300),
        ..config()
    })
    .await;
    for target in ["/late-trap", "/late-loop", "/short"] {
        let mut body = get(&guest, target).await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert!(!first.into_data().unwrap().is_empty(), "{target}");
        match body.frame().await {
            Some(Err(_)) => {}
            other => panic!("{target}: {other:?}"),
        }
    }
    assert_eq!(read(&guest, "/hello").await, "hello\n");
}

#[tokio::test]
async fn what_misbehaves_is_ended() {
    let (call_cpu_max, call_time_max) = (Duration::from_millis(300), Duration::from_secs(2));
    let guest = limited(Config {
        call_cpu_max,
        call_time_max,
        ..config()
    })
    .await;
    let failed = async |target: &str| get(&guest, target).await.err().unwrap();
    assert_eq!(failed("/loop").await, Error::CpuExceeded(call_cpu_max));
    assert_eq!(failed("/never").await, Error::Timeout(call_time_max));
    let trapped = failed("/trap").await;
    assert!(
        matches!(&trapped, Error::Trap(why) if why.contains("unreachable")),
        "{trapped:?}"
    );
    let code = failed("/code").await;
    assert!(
        matches!(&code, Error::Code(code) if code.contains("HttpRequestDenied")),
        "{code:?}"
    );
    assert_eq!(read(&guest, "/hello").await, "hello\n");
}

#[tokio::test]
async fn instances_share_the_memory_of_their_component() {
    let grant = Grant {
        memory_bytes_max: 48 << 20,
        ..grant("memory")
    };
    let guest = start(shared(), "relay", grant).await;
    assert_eq!(read(&guest, "/grow?mb=30").await, "30\n");
    match get(&guest, "/grow?mb=60").await {
        Err(Error::Trap(why)) => assert!(why.contains("memory limit of 50331648 bytes"), "{why}"),
        called => panic!("{:?}", called.map(|response| response.status())),
    }
    assert_eq!(read(&guest, "/grow?mb=30").await, "30\n");
}

#[tokio::test]
async fn what_a_guest_has_under_way_is_bounded() {
    let guest = relay("flood").await;
    assert_eq!(
        text(get(&guest, "/flood?n=1000").await.unwrap()).await.0,
        200
    );
    // Each call under way is remembered by the host.
    let response = get(&guest, "/flood?n=100000").await;
    let ended = match response {
        Err(error) => Some(error),
        Ok(response) => response.into_body().collect().await.err(),
    };
    assert!(matches!(&ended, Some(Error::Trap(_))), "{ended:?}");
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_guest_along() {
    let guest = limited(Config {
        instances_max: 32,
        instance_wait: Duration::from_millis(500),
        ..config()
    })
    .await;
    // More often than there are instances.
    for _ in 0..40 {
        let background: Background = Arc::new(|_| panic!("the guest was handed on"));
        let response = call(&guest, Method::GET, "/late-never", Bytes::new(), background);
        drop(response.await.unwrap());
        let never = get(&guest, "/never");
        assert!(
            tokio::time::timeout(Duration::from_millis(1), never)
                .await
                .is_err()
        );
    }
    assert_eq!(read(&guest, "/hello").await, "hello\n");
}

#[tokio::test]
async fn work_after_the_answer_is_finished_in_the_background() {
    let guest = relay("after").await;
    let (sender, mut receiver) = mpsc::channel::<BoxFuture<'static, ()>>(1);
    let background: Background = Arc::new(move |work| sender.try_send(work).unwrap());
    let response = call(
        &guest,
        Method::GET,
        "/after?ms=50",
        Bytes::new(),
        background,
    )
    .await;
    assert_eq!(
        text(response.unwrap()).await,
        (200, "answered\n".to_owned())
    );
    let work = receiver.try_recv().unwrap();
    tokio::time::timeout(DEADLINE, work).await.unwrap();
}

#[tokio::test]
async fn every_instance_busy_is_said_after_a_while() {
    let guest = limited(Config {
        instances_max: 32,
        instance_wait: Duration::from_millis(100),
        ..config()
    })
    .await;
    // A quarter of the first pool, of which one component may have three quarters.
    let held = join_all((0..6).map(|_| get(&guest, "/late-never"))).await;
    assert!(held.iter().all(Result::is_ok));
    let calls = join_all((0..6).map(|_| get(&guest, "/hello"))).await;
    assert!(calls.iter().any(|call| matches!(call, Err(Error::Busy))));
    drop(held);
    assert_eq!(read(&guest, "/hello").await, "hello\n");
}

#[tokio::test]
async fn a_warm_instance_serves_again_unless_it_misbehaved() {
    let reuse = Reuse {
        instances_max: 1,
        calls_max: 1_000,
        age_max: Duration::from_secs(600),
    };
    let grant = Grant {
        reuse,
        ..grant("warm-service")
    };
    let guest = start(shared(), "relay", grant).await;
    for n in 1..=5 {
        assert_eq!(read(&guest, "/visits").await, n.to_string());
    }
    // A body that comes later than the guest's end.
    assert_eq!(
        text(send(&guest, Method::POST, "/mirror", "x").await.unwrap())
            .await
            .1,
        "x"
    );
    assert!(get(&guest, "/trap").await.is_err());
    assert_eq!(read(&guest, "/visits").await, "1");
    drop(get(&guest, "/late-never").await.unwrap());
    assert_eq!(read(&guest, "/visits").await, "1");
}

#[tokio::test]
async fn synchronous_and_asynchronous_components_run_beside_each_other() {
    let engine = engine(config());
    let before = engine.instances().max;
    let old = start(&engine, "http-hello", grant("old")).await;
    assert_eq!(engine.instances().max, before);
    let new = start(&engine, "relay", grant("new")).await;
    // The second pool is there.
    assert!(engine.instances().max > before);
    let done = AtomicBool::new(false);
    let looping = async {
        while !done.load(Ordering::Relaxed) {
            assert_eq!(get(&old, "/").await.unwrap().status(), 200);
        }
    };
    let serving = async {
        for _ in 0..20 {
            assert_eq!(read(&new, "/hello").await, "hello\n");
        }
        done.store(true, Ordering::Relaxed);
    };
    futures::join!(looping, serving);
}
