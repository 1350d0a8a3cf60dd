//! What one client, or many, cannot do.

use super::support::*;
use bytes::Bytes;
use futures::{FutureExt, SinkExt};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use washlet::config::Limits;
use washlet::trigger::http::Timeouts;

const SHORT: Duration = Duration::from_millis(100);
/// For limits that what is allowed must keep to, also on a busy machine.
const ENOUGH: Duration = Duration::from_millis(500);

fn one_request(admission: Duration) -> Setup {
    Setup {
        limits: Limits {
            http_requests: 1,
            ..Limits::default()
        },
        timeouts: Timeouts {
            admission,
            ..Timeouts::default()
        },
        ..Setup::default()
    }
}

/// A target that answers when told to; tells when it was asked and when it was dropped.
fn blocked(up: &mut Up, host: &str) -> (Arc<Notify>, Arc<Notify>, CancellationToken) {
    let (asked, go, gone) = <(Arc<Notify>, Arc<Notify>, CancellationToken)>::default();
    let (told, wait, token) = (asked.clone(), go.clone(), gone.clone());
    up.serve(host, move |_, _| {
        let (told, wait, guard) = (told.clone(), wait.clone(), token.clone().drop_guard());
        async move {
            told.notify_one();
            wait.notified().await;
            drop(guard);
            text("done\n")
        }
    });
    (asked, go, gone)
}

#[tokio::test]
async fn connections_are_bounded() {
    let setup = Setup {
        limits: Limits {
            http_connections: 1,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let mut up = setup.start().await.unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let mut first = up.h1().await;
    let ask = async |client: &mut hyper::client::conn::http1::SendRequest<Body>| {
        let response = soon(client.send_request(request("/", Some("a.test"))))
            .await
            .unwrap();
        assert_eq!(whole(response).await, "hello\n");
    };
    ask(&mut first).await;
    let mut second = Box::pin(up.get("a.test"));
    for _ in 0..10 {
        assert!(
            second.as_mut().now_or_never().is_none(),
            "two connections at once"
        );
        ask(&mut first).await;
    }
    drop(first);
    assert_eq!(soon(second).await.body, "hello\n");
}

#[tokio::test]
async fn requests_are_bounded() {
    let mut up = one_request(SHORT).start().await.unwrap();
    let (asked, go, _) = blocked(&mut up, "a.test");
    let first = up.get("a.test");
    let others = async {
        soon(asked.notified()).await;
        let refused = up.get("a.test").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(
            up.get("unknown.test").await.status,
            StatusCode::NOT_FOUND,
            "needs no permit"
        );
        go.notify_one();
    };
    let (first, ()) = soon(futures::future::join(first, others)).await;
    assert_eq!(first.body, "done\n");
}

#[tokio::test]
async fn a_request_waits_for_its_turn() {
    let mut up = one_request(Duration::from_secs(60)).start().await.unwrap();
    let (asked, go, _) = blocked(&mut up, "a.test");
    let (one, two) = (up.get("a.test"), up.get("a.test"));
    let control = async {
        for _ in 0..2 {
            soon(asked.notified()).await;
            go.notify_one();
        }
    };
    let (one, two, ()) = soon(futures::future::join3(one, two, control)).await;
    assert_eq!((one.body.as_str(), two.body.as_str()), ("done\n", "done\n"));
}

#[tokio::test]
async fn a_call_is_cancelled_when_its_client_goes() {
    let mut up = one_request(SHORT).start().await.unwrap();
    for h2 in [false, true] {
        let host = format!("h2-{h2}.test");
        let (asked, _, gone) = blocked(&mut up, &host);
        let uri = format!("http://{host}/");
        let response = async {
            match h2 {
                false => up.h1().await.send_request(request("/", Some(&host))).await,
                true => up.h2().await.send_request(request(&uri, None)).await,
            }
        };
        tokio::select! {
            _ = response => panic!("answered"),
            () = soon(asked.notified()) => {}
        }
        soon(gone.cancelled()).await;
    }
}

#[tokio::test]
async fn a_permit_is_freed_when_the_client_goes_in_the_middle_of_a_body() {
    let mut up = one_request(SHORT).start().await.unwrap();
    up.serve("free.test", |_, _| async { text("free\n") });
    for h2 in [false, true] {
        let host = format!("h2-{h2}.test");
        let (mut frames, gone) = up.serve_stream(&host);
        {
            let uri = format!("http://{host}/");
            let mut response = match h2 {
                false => up
                    .h1()
                    .await
                    .send_request(request("/", Some(&host)))
                    .await
                    .unwrap(),
                true => up
                    .h2()
                    .await
                    .send_request(request(&uri, None))
                    .await
                    .unwrap(),
            };
            frames.send(Ok("first".into())).await.unwrap();
            assert_eq!(frame(&mut response).await.unwrap().unwrap(), "first");
            assert_eq!(
                up.get("free.test").await.status,
                StatusCode::SERVICE_UNAVAILABLE
            );
        }
        soon(gone.cancelled()).await;
        assert_eq!(up.get("free.test").await.body, "free\n");
    }
}

#[tokio::test]
async fn slow_heads_and_silent_clients_are_closed() {
    let timeouts = Timeouts {
        head: ENOUGH,
        ..Timeouts::default()
    };
    let mut up = Setup {
        timeouts,
        ..Setup::default()
    }
    .start()
    .await
    .unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let start = "GET / HTTP/1.1\r\nhost: a.test\r\n";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let silent = ["", "P", "PRI * HTTP/2.0\r\n", preface, start].map(async |sent| {
        let mut stream = up.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // Closed or reset.
        let _ = soon(stream.read_to_end(&mut bytes)).await;
        assert!(
            !String::from_utf8_lossy(&bytes).contains("hello\n"),
            "{sent:?}"
        );
    });
    futures::future::join_all(silent).await;
    // A later head of the same connection.
    let mut stream = BufReader::new(up.connect().await);
    stream
        .write_all(format!("{start}\r\n").as_bytes())
        .await
        .unwrap();
    let mut line = String::new();
    while line != "hello\n" {
        line.clear();
        assert_ne!(
            soon(stream.read_line(&mut line)).await.unwrap(),
            0,
            "closed"
        );
    }
    stream.write_all(start.as_bytes()).await.unwrap();
    let _ = soon(stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let timeouts = Timeouts {
        idle: ENOUGH,
        ..Timeouts::default()
    };
    let mut up = Setup {
        timeouts,
        ..Setup::default()
    }
    .start()
    .await
    .unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let mut stream = up.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert!(text.ends_with("hello\n"));

    let mut client = up.h2().await;
    let response = client
        .send_request(request("http://a.test/", None))
        .await
        .unwrap();
    assert_eq!(whole(response).await, "hello\n");
    soon(std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if client.is_closed() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    }))
    .await;
}

#[tokio::test]
async fn a_response_that_does_not_move_is_ended() {
    let timeouts = Timeouts {
        idle: ENOUGH,
        ..Timeouts::default()
    };
    let mut up = Setup {
        timeouts,
        ..Setup::default()
    }
    .start()
    .await
    .unwrap();
    for (h2, reads) in [(false, true), (true, true), (false, false), (true, false)] {
        let host = format!("h2-{h2}-reads-{reads}.test");
        let (mut frames, gone) = up.serve_stream(&host);
        let (mut one, mut two) = (up.h1().await, up.h2().await);
        let mut response = match h2 {
            false => one.send_request(request("/", Some(&host))).await.unwrap(),
            true => two
                .send_request(request(&format!("http://{host}/"), None))
                .await
                .unwrap(),
        };
        if reads {
            // The guest falls silent.
            frames.send(Ok("first".into())).await.unwrap();
            assert_eq!(frame(&mut response).await.unwrap().unwrap(), "first");
            assert!(
                frame(&mut response).await.unwrap().is_err(),
                "{host} ended well"
            );
        } else {
            // The client stops reading; the guest goes on for as long as somebody takes it.
            let chunk = Bytes::from(vec![0; 1 << 20]);
            while soon(frames.send(Ok(chunk.clone()))).await.is_ok() {}
        }
        soon(gone.cancelled()).await;
    }
}

#[tokio::test]
async fn a_response_without_end_breaks_off() {
    let setup = Setup {
        limits: Limits {
            response_bytes_max: 1_000,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let mut up = setup.start().await.unwrap();
    up.serve("fits.test", |_, _| async { text(vec![b'x'; 1_000]) });
    assert_eq!(up.get("fits.test").await.body.len(), 1_000);
    let (mut frames, gone) = up.serve_stream("endless.test");
    let endless = async {
        // Until nobody takes any more.
        while frames
            .send(Ok(Bytes::from_static(&[b'x'; 300])))
            .await
            .is_ok()
        {}
    };
    let read = async {
        let mut stream = up.connect().await;
        let request = "GET / HTTP/1.1\r\nhost: endless.test\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // A reset or an end, as the kernel has it: either is no whole body.
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    };
    let (bytes, ()) = soon(futures::future::join(read, endless)).await;
    assert!(bytes.len() < 1_300, "{}", bytes.len());
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "it looks complete");
    soon(gone.cancelled()).await;
}
