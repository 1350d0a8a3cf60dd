//! What every HTTP guest of the tests needs: the request's path and query, its body, an answer.

use std::io::{Read, Write};
use std::time::Duration;

use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

/// A request's target, split and percent-decoded.
pub struct Target {
    /// Without the leading `/`.
    pub path: String,
    query: Vec<(String, String)>,
}

impl Target {
    pub fn of(request: &IncomingRequest) -> Self {
        let target = request.path_with_query().unwrap_or_default();
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
pub fn body(request: &IncomingRequest) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(body) = request.consume() {
        read(&body, &mut bytes);
    }
    bytes
}

/// Appends all of `body` to `bytes`.
pub fn read(body: &IncomingBody, bytes: &mut Vec<u8>) {
    if let Ok(mut stream) = body.stream() {
        let _ = stream.read_to_end(bytes);
    }
}

/// Answers with a plain text.
pub fn text(out: ResponseOutparam, status: u16, text: &str) {
    bytes(out, status, text.as_bytes());
}

/// Answers with `content` in one body.
pub fn bytes(out: ResponseOutparam, status: u16, content: &[u8]) {
    let body = head(out, status);
    if let Ok(mut stream) = body.write() {
        let _ = send(&mut stream, content);
    }
    let _ = OutgoingBody::finish(body, None);
}

/// Sends the head and returns the body to write; dropped unfinished, the client sees a broken one.
pub fn head(out: ResponseOutparam, status: u16) -> OutgoingBody {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let body = response.body().expect("a new response has its body");
    ResponseOutparam::set(out, Ok(response));
    body
}

/// Writes all of `bytes` and flushes; false once nobody reads any more.
#[must_use]
pub fn send(stream: &mut OutputStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok() && stream.blocking_flush().is_ok()
}

/// Passes `input` on to `output` as it arrives; false if either side breaks off.
#[must_use]
pub fn pipe(input: &InputStream, output: &mut OutputStream) -> bool {
    loop {
        match input.blocking_read(64 << 10) {
            Ok(chunk) if send(output, &chunk) => {}
            Ok(_) | Err(StreamError::LastOperationFailed(_)) => return false,
            Err(StreamError::Closed) => return true,
        }
    }
}

/// Waits `ms` milliseconds in the host.
pub fn sleep(ms: u64) {
    let nanos = Duration::from_millis(ms).as_nanos();
    monotonic_clock::subscribe_duration(u64::try_from(nanos).unwrap_or(u64::MAX)).block();
}
