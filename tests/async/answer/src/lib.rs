//! What every asynchronous HTTP guest of the tests needs: the request's path and query, its body, an answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_future, wit_stream};
use wit_bindgen::{FutureWriter, StreamWriter};

/// The end of a body: trailers, or that there are none.
pub type End = FutureWriter<Result<Option<Fields>, ErrorCode>>;

/// A request's target, split and percent-decoded.
pub struct Target {
    /// Without the leading `/`.
    pub path: String,
    query: Vec<(String, String)>,
}

impl Target {
    pub fn of(request: &Request) -> Self {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            });
        Self {
            path: decode(path.strip_prefix('/').unwrap_or(path)),
            query: query.collect(),
        }
    }

    /// The value of `name`; empty for a name without one.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The number given as `name`, or `default`.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.param(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The whole body of `request`; what arrived, if it breaks off.
pub async fn body(request: Request) -> Vec<u8> {
    let (_, done) = wit_future::new(|| Ok(()));
    let (body, _) = Request::consume_body(request, done);
    body.collect().await
}

/// A response whose body is still to be written and ended.
pub fn head(status: u16) -> (Response, StreamWriter<u8>, End) {
    with(status, Fields::new())
}

/// The same with headers.
pub fn with(status: u16, headers: Fields) -> (Response, StreamWriter<u8>, End) {
    let (writer, body) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(headers, Some(body), trailers);
    response.set_status_code(status).expect("a valid status");
    (response, writer, end)
}

/// A response with all of its body.
pub fn bytes(status: u16, bytes: Vec<u8>) -> Response {
    let (response, mut writer, end) = head(status);
    wit_bindgen::spawn_local(async move {
        writer.write_all(bytes).await;
        drop(writer);
        // The default that was set says that there are no trailers.
        drop(end);
    });
    response
}

pub fn text(status: u16, text: impl Into<String>) -> Response {
    bytes(status, text.into().into_bytes())
}

/// All results, of futures that run side by side.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<(Pin<Box<F>>, Option<F::Output>)> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(is) => *output = Some(is),
                    Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
