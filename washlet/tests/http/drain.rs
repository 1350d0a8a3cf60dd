//! How a listener ends.

use super::support::*;
use futures::SinkExt;
use std::time::Duration;
use tokio::net::TcpStream;
use washlet::config::Limits;

async fn until_refused(up: &Up) {
    soon(async { while TcpStream::connect(up.address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn draining_cuts_nothing_and_then_closes() {
    let setup = Setup {
        drain_delay: Duration::from_secs(3),
        ..Setup::default()
    };
    let mut up = setup.start().await.unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let (mut one, _) = up.serve_stream("one.test");
    let (mut two, _) = up.serve_stream("two.test");
    let (mut h1, mut h2) = (up.h1().await, up.h2().await);
    let mut first = h1
        .send_request(request("/", Some("one.test")))
        .await
        .unwrap();
    let mut second = h2
        .send_request(request("http://two.test/", None))
        .await
        .unwrap();
    let mut idle = up.h1().await;
    let response = idle
        .send_request(request("/", Some("a.test")))
        .await
        .unwrap();
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(whole(response).await, "hello\n");

    up.drain.stop();
    // Still taken, and told to go elsewhere next time.
    soon(async {
        loop {
            let mut client = up.h1().await;
            let response = client
                .send_request(request("/", Some("a.test")))
                .await
                .unwrap();
            let close = response
                .headers()
                .get("connection")
                .is_some_and(|value| value == "close");
            assert_eq!(whole(response).await, "hello\n");
            if close {
                break;
            }
        }
    })
    .await;
    until_refused(&up).await;

    // What was begun is finished.
    for (frames, response) in [(&mut one, &mut first), (&mut two, &mut second)] {
        frames.send(Ok("late".into())).await.unwrap();
        assert_eq!(frame(response).await.unwrap().unwrap(), "late");
        frames.close_channel();
        assert!(frame(response).await.is_none());
    }
    up.drain.drain(Duration::from_secs(20)).await.unwrap();
    assert!(
        idle.send_request(request("/", Some("a.test")))
            .await
            .is_err()
    );
    assert!(
        h2.send_request(request("http://a.test/", None))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut() {
    let limits = Limits {
        grace: Duration::from_millis(100),
        ..Limits::default()
    };
    let mut up = Setup {
        limits,
        ..Setup::default()
    }
    .start()
    .await
    .unwrap();
    let (mut frames, gone) = up.serve_stream("a.test");
    let mut client = up.h1().await;
    let mut response = client
        .send_request(request("/", Some("a.test")))
        .await
        .unwrap();
    frames.send(Ok("first".into())).await.unwrap();
    assert_eq!(frame(&mut response).await.unwrap().unwrap(), "first");
    up.drain.drain(Duration::from_secs(20)).await.unwrap();
    assert!(gone.is_cancelled(), "the guest goes on");
    assert!(frame(&mut response).await.unwrap().is_err());
}
