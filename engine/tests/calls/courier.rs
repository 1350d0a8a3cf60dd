//! `wasmcloud:messaging@0.3.0`, `wasmcloud:blobstore@0.1.0` and `wasmcloud:secrets@2.1.0` as a guest sees them, over
//! memory.

use std::sync::Arc;

use bytes::Bytes;
use capabilities::messaging::Message;
use engine::Runnable;
use engine::invoke::{Error, Unhandled};
use engine::wit::WitInterface;
use http::Method;
use http_body_util::BodyExt;

use crate::host::{get, grant, pairs, read, send, shared, start, text};

async fn courier(workload: &str) -> Runnable {
    let entry = |package: &str, interfaces: &[&str], config: &[(&str, &str)]| WitInterface {
        name: String::new(),
        namespace: "wasmcloud".to_owned(),
        package: package.to_owned(),
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
        version: None,
        config: pairs(config),
    };
    let mut grant = grant(workload);
    grant.declared = Arc::new([
        entry("messaging", &["consumer", "handler"], &[]),
        entry("blobstore", &["blobstore", "container"], &[]),
        entry("secrets", &["store", "reveal"], &[("password", "canary")]),
    ]);
    start(shared(), "courier", grant).await
}

async fn ask(
    guest: &Runnable,
    method: Method,
    target: &str,
    body: impl Into<Bytes>,
) -> (u16, String) {
    text(send(guest, method, target, body).await.unwrap()).await
}

fn message(body: &'static str) -> Message {
    Message {
        subject: "s".to_owned(),
        body: body.into(),
        reply_to: None,
    }
}

#[tokio::test]
async fn a_message_is_handled_or_it_is_said_what_is_to_become_of_it() {
    let guest = courier("handler").await;
    assert!(guest.handles_messages());
    for (body, handled) in [
        ("fine", Ok(())),
        ("", Ok(())),
        ("reject", Err(Unhandled::Reject)),
        ("retry", Err(Unhandled::Retry)),
        ("fail", Err(Unhandled::Failed("failed".to_owned()))),
    ] {
        assert_eq!(guest.message(message(body)).await, Ok(handled), "{body}");
    }
    let trapped = guest.message(message("trap")).await;
    assert!(matches!(trapped, Err(Error::Trap(_))), "{trapped:?}");
}

#[tokio::test]
async fn what_is_sent_is_checked() {
    let guest = courier("sender").await;
    assert_eq!(
        ask(&guest, Method::POST, "/publish/a.b?reply=c", "x")
            .await
            .0,
        204
    );
    for (target, error) in [
        ("/publish/a.*", "Error::SubjectInvalid"),
        ("/request/nobody?ms=50", "no responders"),
    ] {
        let (status, said) = ask(&guest, Method::POST, target, "x").await;
        assert_eq!(status, 500, "{target}");
        assert!(said.contains(error), "{target}: {said}");
    }
}

#[tokio::test]
async fn objects_are_streamed_both_ways() {
    let guest = courier("blobs").await;
    let body: Bytes = (0..3 << 20)
        .map(|n| b'a' + (n % 23) as u8)
        .collect::<Vec<_>>()
        .into();
    assert_eq!(
        ask(&guest, Method::PUT, "/blob/c/o", body.clone()).await.0,
        204
    );
    assert_eq!(read(&guest, "/size/c/o").await, (3 << 20).to_string());
    let got = get(&guest, "/blob/c/o")
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert!(got.to_bytes() == body);
    let part = get(&guest, "/blob/c/o?start=5&end=9")
        .await
        .unwrap()
        .into_body()
        .collect()
        .await;
    assert_eq!(part.unwrap().to_bytes(), body.slice(5..10));
    assert_eq!(ask(&guest, Method::PUT, "/blob/c/empty", "").await.0, 204);
    assert_eq!(read(&guest, "/blob/c/empty").await, "");
    assert_eq!(
        ask(&guest, Method::POST, "/copy/c/empty/p", "").await.0,
        204
    );
    assert_eq!(read(&guest, "/blob/c").await, "empty\no\np\n");
    assert_eq!(ask(&guest, Method::DELETE, "/blob/c/o", "").await.0, 204);
    let (status, said) = ask(&guest, Method::GET, "/blob/c/o", "").await;
    assert_eq!((status, said.as_str()), (500, "Error::NoSuchObject"));
}

#[tokio::test]
async fn a_guest_that_dies_while_it_writes_leaves_no_object() {
    let guest = courier("half").await;
    assert!(
        send(&guest, Method::PUT, "/half/c/o", "body")
            .await
            .is_err()
    );
    assert_eq!(read(&guest, "/blob/c").await, "");
}

#[tokio::test]
async fn a_secret_is_shown_to_whom_reveals_it() {
    let guest = courier("secrets").await;
    assert_eq!(read(&guest, "/secret/password").await, "text canary");
    let (status, said) = ask(&guest, Method::GET, "/secret/none", "").await;
    assert_eq!(status, 500);
    assert!(said.contains("NotFound"), "{said}");
}
