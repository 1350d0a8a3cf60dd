//! What clients see.

use super::support::*;
use bytes::Bytes;
use capabilities::BoxError;
use futures::SinkExt;
use futures::channel::mpsc;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;
use washlet::trigger::http::CallError;

#[tokio::test]
async fn every_code() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("ok.test", |_, _| async { text("hello\n") });
    up.serve("trap.test", |_, _| async {
        Err(CallError::Trap("wasm backtrace: secret".into()))
    });
    up.serve("silent.test", |_, _| async { Err(CallError::NoResponse) });
    up.serve("late.test", |_, _| async {
        Err(CallError::Timeout(Duration::from_secs(600)))
    });
    up.serve("busy.test", |_, _| async { Err(CallError::Busy) });
    up.serve("draining.test", |_, _| async { text("unreachable") });
    up.attachments.last().unwrap().drain();

    let close = "connection: close\r\n\r\n";
    for (head, status) in [
        ("GET / HTTP/1.1\r\nhost: ok.test\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: OK.Test.:8080\r\n", 200),
        ("GET / HTTP/1.0\r\nhost: ok.test\r\n", 200),
        ("GET http://ok.test/ HTTP/1.1\r\n", 200),
        ("GET http://ok.test/ HTTP/1.1\r\nhost: ok.test\r\n", 200),
        ("GET http://ok.test/ HTTP/1.1\r\nhost: trap.test\r\n", 400),
        (
            "GET / HTTP/1.1\r\nhost: ok.test\r\nhost: trap.test\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\nhost: \r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a/b\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: \u{e9}.test\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.0\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: other.test\r\n", 404),
        ("GET / HTTP/1.1\r\nhost: [::1]:80\r\n", 404),
        ("GET / HTTP/1.1\r\nhost: trap.test\r\n", 500),
        ("GET / HTTP/1.1\r\nhost: silent.test\r\n", 500),
        ("GET / HTTP/1.1\r\nhost: busy.test\r\n", 503),
        ("GET / HTTP/1.1\r\nhost: draining.test\r\n", 503),
        ("GET / HTTP/1.1\r\nhost: late.test\r\n", 504),
    ] {
        let reply = up.ask(&format!("{head}{close}")).await;
        assert_eq!(reply.status, status, "{head:?}");
        let id = reply.header("x-request-id").expect("an id");
        assert!(reply.body.ends_with('\n'), "{reply:?}");
        assert_eq!(
            reply.header("retry-after"),
            (status == 503).then_some("1"),
            "{head:?}"
        );
        if status != 200 {
            assert!(
                reply.body.contains(id) && reply.body.len() < 200,
                "{reply:?}"
            );
            assert!(
                reply
                    .header("content-type")
                    .unwrap()
                    .starts_with("text/plain")
            );
            assert!(!reply.body.contains("secret"), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_request_id_goes_through_if_it_is_plain() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("a.test", |request, _| async move {
        let id = request.headers()["x-request-id"].as_bytes().to_vec();
        let mut response = text(id)?;
        response
            .headers_mut()
            .insert("x-request-id", "the-guests-own".parse().unwrap());
        Ok(response)
    });
    let long = "a".repeat(129);
    for (given, kept) in [
        ("abc-1.2:3/4", true),
        ("a b", false),
        ("", false),
        ("<b>", false),
        (&long, false),
    ] {
        let head = format!("GET / HTTP/1.1\r\nhost: a.test\r\nx-request-id: {given}\r\n");
        let reply = up.ask(&format!("{head}connection: close\r\n\r\n")).await;
        let id = reply.header("x-request-id").unwrap();
        assert_eq!(id == given, kept, "{given:?}");
        assert_eq!(reply.body, id);
    }
}

#[tokio::test]
async fn workloads_of_one_name_take_turns() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("a.test", |_, _| async { text("one") });
    up.serve("a.test", |_, _| async { text("two") });
    assert_ne!(up.get("a.test").await.body, up.get("a.test").await.body);
    up.attachments.pop();
    assert_eq!(up.get("a.test").await.body, "one");
    assert_eq!(up.get("a.test").await.body, "one");
    up.attachments.pop();
    assert_eq!(up.get("a.test").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn http1_keeps_connections() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let mut stream = BufReader::new(up.connect().await);
    for _ in 0..3 {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
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
            assert!(!line.starts_with("connection"), "{line:?}");
        }
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("a.test", |request, scheme| async move {
        text(format!(
            "{:?} {scheme} {}",
            request.version(),
            request.uri()
        ))
    });
    let mut client = up.h2().await;
    let both = [
        request("http://A.test:80/x", None),
        request("http://b.test/", None),
    ];
    let [found, unknown] = both.map(|request| client.send_request(request));
    let (found, unknown) = soon(futures::future::join(found, unknown)).await;
    let (found, unknown) = (found.unwrap(), unknown.unwrap());
    assert_eq!(
        (found.version(), unknown.status()),
        (Version::HTTP_2, StatusCode::NOT_FOUND)
    );
    assert!(found.headers().contains_key("x-request-id"));
    assert_eq!(whole(found).await, "HTTP/2.0 http http://A.test:80/x");

    // An authority and a Host that disagree.
    let response = client
        .send_request(request("http://a.test/", Some("b.test")))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

fn echo(up: &mut Up) {
    up.serve("a.test", |request, _| async move {
        Ok(Response::new(
            request.into_body().map_err(Into::into).boxed_unsync(),
        ))
    });
}

async fn streams_both_ways(
    send: impl AsyncFnOnce(Request<Body>) -> hyper::Result<Response<hyper::body::Incoming>>,
) {
    let (mut frames, body) = mpsc::channel::<Result<Bytes, BoxError>>(0);
    let body = stream(body, CancellationToken::new().drop_guard());
    let request = Request::post("http://a.test/")
        .header("host", "a.test")
        .body(body)
        .unwrap();
    let (response, sent) = soon(futures::future::join(
        send(request),
        frames.send(Ok("first".into())),
    ))
    .await;
    sent.unwrap();
    let mut response = response.unwrap();
    assert_eq!(frame(&mut response).await.unwrap().unwrap(), "first");
    frames.send(Ok("second".into())).await.unwrap();
    assert_eq!(frame(&mut response).await.unwrap().unwrap(), "second");
    drop(frames);
    assert!(frame(&mut response).await.is_none());
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let mut up = Setup::default().start().await.unwrap();
    echo(&mut up);
    let mut client = up.h1().await;
    streams_both_ways(async |request| client.send_request(request).await).await;
    let mut client = up.h2().await;
    streams_both_ways(async |request| client.send_request(request).await).await;
}

#[tokio::test]
async fn trailers_arrive_on_http2() {
    let mut up = Setup::default().start().await.unwrap();
    up.serve("a.test", |_, _| async {
        let trailers = async {
            Some(Ok([("grpc-status", "0")]
                .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
                .into_iter()
                .collect()))
        };
        Ok(text("x")?.map(|body| body.with_trailers(trailers).boxed_unsync()))
    });
    let response = up
        .h2()
        .await
        .send_request(request("http://a.test/", None))
        .await
        .unwrap();
    let body = soon(response.collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn an_error_after_the_head_is_a_reset() {
    let mut up = Setup::default().start().await.unwrap();
    for (host, h2) in [("one.test", false), ("two.test", true)] {
        let (mut frames, gone) = up.serve_stream(host);
        let mut response = if h2 {
            let request = request(&format!("http://{host}/"), None);
            soon(up.h2().await.send_request(request)).await.unwrap()
        } else {
            soon(up.h1().await.send_request(request("/", Some(host))))
                .await
                .unwrap()
        };
        frames.send(Ok("first".into())).await.unwrap();
        assert_eq!(frame(&mut response).await.unwrap().unwrap(), "first");
        frames.send(Err("trap".into())).await.unwrap();
        assert!(
            frame(&mut response).await.unwrap().is_err(),
            "{host} ended well"
        );
        soon(gone.cancelled()).await;
    }
}
