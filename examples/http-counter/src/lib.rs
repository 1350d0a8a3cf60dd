//! Counts visits in a key-value bucket: `GET /cats` adds one to the key `cats` of the bucket
//! `counter` and answers the sum, `GET /cats?read` answers it without counting, `/` is the key
//! `default`. The host decides where the bucket lives: in memory, in NATS, …

use bindings::wasi::keyvalue::{atomics, store};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/keyvalue",
        world: "imports",
        generate_all,
    });
}

struct Counter;

wasip2::http::proxy::export!(Counter);

impl Guest for Counter {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let key = match path.trim_matches('/') {
            "" => "default",
            key => key,
        };
        // Adding nothing is a read, and needs no knowledge of how the host stores a counter.
        let delta = if query == "read" { 0 } else { 1 };

        match count(key, delta) {
            Ok(sum) => respond(out, 200, &format!("{sum}\n")),
            Err(store::Error::AccessDenied) => respond(out, 403, "access denied\n"),
            Err(store::Error::NoSuchStore) => respond(out, 500, "no such store\n"),
            Err(store::Error::Other(why)) => respond(out, 500, &format!("{why}\n")),
        }
    }
}

/// Adds `delta` to the counter at `key` and returns the sum.
///
/// `increment` is atomic: visitors of any number of hosts are all counted.
fn count(key: &str, delta: u64) -> Result<u64, store::Error> {
    let bucket = store::open("counter")?;
    atomics::increment(&bucket, key, delta)
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}
