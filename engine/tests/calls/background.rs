//! A guest whose response is complete works on in the background; one whose client left does not.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use engine::Background;
use engine::invoke::GuestBody;
use futures::future::{BoxFuture, join_all};
use http::{Method, Response};
use http_body_util::BodyExt;

use crate::host::{call, grant, shared, start};
use crate::log;

/// What was handed to the background.
type Handed = Arc<Mutex<Vec<BoxFuture<'static, ()>>>>;

/// A response of a guest that prints `worked KEY` a second after it.
async fn respond(method: Method, key: &str, code: u16) -> (Response<GuestBody>, Handed) {
    log::capture();
    let guest = start(shared(), "hostile", grant(key)).await;
    let handed = Handed::default();
    let background: Background = {
        let handed = Arc::clone(&handed);
        Arc::new(move |work| handed.lock().unwrap().push(work))
    };
    let target = format!("/length-then-work?key={key}&code={code}&ms=1000");
    let response = call(&guest, method, &target, Bytes::new(), background).await;
    (response.unwrap(), handed)
}

/// Runs what was handed over; the guest must have worked, and not before.
async fn finish(key: &str, handed: &Handed) {
    let work: Vec<_> = handed.lock().unwrap().drain(..).collect();
    assert_eq!(work.len(), 1, "{key}");
    let line = format!("worked {key}");
    assert_eq!(log::lines(&line), Vec::<String>::new());
    join_all(work).await;
    assert_eq!(log::lines(&line).len(), 1, "{key}");
}

#[tokio::test]
async fn after_the_announced_length() {
    let (response, handed) = respond(Method::GET, "after-length", 200).await;
    let mut body = response.into_body();
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(data, "done\n");
    assert_eq!(handed.lock().unwrap().len(), 0);
    // A server stops reading here.
    drop(body);
    finish("after-length", &handed).await;
}

#[tokio::test]
async fn after_the_head_of_a_head_request() {
    let (response, handed) = respond(Method::HEAD, "after-head", 200).await;
    drop(response);
    finish("after-head", &handed).await;
}

#[tokio::test]
async fn after_the_head_of_a_response_without_content() {
    let (response, handed) = respond(Method::GET, "after-204", 204).await;
    assert_eq!(response.status(), 204);
    drop(response);
    finish("after-204", &handed).await;
}

#[tokio::test]
async fn not_when_the_client_left_before_the_end() {
    let (response, handed) = respond(Method::GET, "client-left", 200).await;
    drop(response);
    assert_eq!(handed.lock().unwrap().len(), 0);
    assert_eq!(log::lines("worked client-left"), Vec::<String>::new());
}
