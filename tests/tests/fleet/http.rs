//! HTTP towards components.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use fleet::http::{client, get, raw, send};
use fleet::wait::{SOON, until};
use futures::{SinkExt, StreamExt, TryStreamExt, channel::mpsc};
use reqwest::{Body, Method};
use serde_json::json;

use crate::{HOST, app, one_host, serving};

/// C12: who gets a request.
#[tokio::test]
async fn requests_go_where_the_host_header_says() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("http-hello").await?;
    let workload = fleet::workload::Workload::new("app")
        .component("app", &image, json!({}))
        .interface(
            "wasi:http/incoming-handler",
            &[
                ("host", "app.test"),
                ("host-aliases", "app, app.ns.svc,, bad_name"),
            ],
        );
    host.run_well(&workload).await?;
    let cases = [
        ("app.test", 200),
        ("app", 200),
        ("app.ns.svc", 200),
        ("app.test:8080", 200),
        ("APP.test", 200),
        ("app.test.", 200),
        ("bad_name", 404),
        ("test", 404),
        ("other.test", 404),
        ("x.app.test", 404),
        ("127.0.0.1", 404),
        ("[::1]:80", 404),
    ];
    for (name, status) in cases {
        let reply = get(host.http_port(), name, "/").await?;
        assert_eq!(reply.status, status, "{name}: {}", reply.body);
        assert!(reply.headers.contains_key("x-request-id"), "{name}");
    }
    for (request, status) in [
        (
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("nonsense\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let reply = raw(host.http_port(), request).await?;
        assert!(reply.starts_with(status), "{request:?}: {reply:?}");
    }
    Ok(())
}

/// Several workloads may share a name; every one of them gets requests, and who stops, gets none.
#[tokio::test]
async fn workloads_of_one_name_share_its_requests() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("config-reader").await?;
    for id in ["a", "b"] {
        let config = json!({ "localResources": { "environment": { "WHO": id } } });
        host.run_well(&app(id, &image, config).interface("wasi:config/store", &[]))
            .await?;
    }
    let ask = async || anyhow::Ok(get(host.http_port(), HOST, "/?env").await?.body);
    let mut heard = [0, 0];
    for _ in 0..40 {
        let body = ask().await?;
        heard[usize::from(body.contains("WHO=b"))] += 1;
    }
    assert!(heard.iter().all(|n| *n >= 5), "{heard:?}");
    host.stop("a").await?;
    for _ in 0..10 {
        assert!(ask().await?.contains("WHO=b"));
    }
    Ok(())
}

/// C13: HTTP/2 without TLS, and what the guest sees of a request.
#[tokio::test]
async fn the_guest_sees_the_request_over_http_1_and_2() -> Result<()> {
    let (_fleet, host) = serving("mirror").await?;
    // In HTTP/2 the authority is the host; a different header beside it is an error.
    let url = format!("http://{HOST}:{}/headers?q=1", host.http_port());
    let client = || {
        reqwest::Client::builder()
            .no_proxy()
            .resolve(HOST, ([127, 0, 0, 1], 0).into())
    };
    for (client, version) in [
        (client().http1_only(), reqwest::Version::HTTP_11),
        (client().http2_prior_knowledge(), reqwest::Version::HTTP_2),
    ] {
        let request = client.build()?.put(&url).header("x-thing", "yes");
        let reply = request.body("b").send().await?;
        assert_eq!((reply.version(), reply.status().as_u16()), (version, 200));
        let seen = reply.text().await?;
        for line in [
            "method: PUT",
            "path: /headers?q=1",
            "scheme: http",
            "header x-thing: yes",
        ] {
            assert!(
                seen.lines().any(|seen| seen == line),
                "{version:?}: no \"{line}\" in\n{seen}"
            );
        }
        assert!(
            seen.contains(&format!("authority: {HOST}")),
            "{version:?}:\n{seen}"
        );
    }
    Ok(())
}

/// C14: bytes go both ways while both bodies are open.
#[tokio::test]
async fn bodies_stream_in_both_directions() -> Result<()> {
    let (_fleet, host) = serving("mirror").await?;
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", host.http_port());

    let (mut sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let request = client()?.post(url("/echo")).header("host", HOST);
    let request = request.body(Body::wrap_stream(receiver)).send();
    sender.send(Ok("one".into())).await?;
    let mut echoed = request.await?.bytes_stream();
    assert_eq!(echoed.next().await.context("a first chunk")??, "one");
    sender.send(Ok("two".into())).await?;
    assert_eq!(echoed.next().await.context("a second chunk")??, "two");
    drop(sender);
    assert!(echoed.next().await.is_none());

    let since = Instant::now();
    let reply = client()?
        .get(url("/drip?n=4&ms=500"))
        .header("host", HOST)
        .send()
        .await?;
    let mut drips = reply.bytes_stream();
    assert_eq!(drips.next().await.context("a first drip")??, "0\n");
    let first = since.elapsed();
    let rest: Vec<Bytes> = drips.try_collect().await?;
    assert_eq!(rest.concat(), b"1\n2\n3\n");
    let whole = since.elapsed();
    assert!(
        whole - first > Duration::from_secs(1),
        "first after {first:?}, last after {whole:?}"
    );

    let large = "x".repeat(3 << 20);
    let reply = send(host.http_port(), HOST, Method::POST, "/echo", large.clone()).await?;
    assert!(
        reply.body == large,
        "{} of {} bytes came back",
        reply.body.len(),
        large.len()
    );
    Ok(())
}

/// C15: a failing call is one failed call.
#[tokio::test]
async fn a_trap_is_one_failed_call() -> Result<()> {
    let (_fleet, host) = serving("hostile").await?;
    for path in ["/trap", "/no-response"] {
        let reply = get(host.http_port(), HOST, path).await?;
        assert_eq!(reply.status, 500, "{path}");
        let id = reply
            .headers
            .get("x-request-id")
            .context("a request id")?
            .to_str()?;
        assert!(
            reply.body.contains(id),
            "{path}: {:?} does not name {id}",
            reply.body
        );
        // The log comes through a pipe, a moment after the answer.
        until(SOON, "the log names the request", async || {
            host.log().contains(id).then_some(())
        })
        .await?;
        assert_eq!(get(host.http_port(), HOST, "/ok").await?.status, 200);
    }
    for code in [201, 404, 418, 503] {
        assert_eq!(
            get(host.http_port(), HOST, &format!("/status?code={code}"))
                .await?
                .status,
            code
        );
    }
    Ok(())
}
