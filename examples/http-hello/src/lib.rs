//! The smallest HTTP component: it answers every request with one line of text.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

// Makes `Hello` the component's `wasi:http/incoming-handler`.
wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    /// Called by the host once per request, each time in a fresh or a reused instance.
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let headers = Fields::new();
        let _ = headers.append("content-type", b"text/plain");
        let response = OutgoingResponse::new(headers);
        // A new response gives its body exactly once, so this cannot fail.
        let Ok(body) = response.body() else { return };

        // The head goes first: the client sees the status while the body is still being written.
        ResponseOutparam::set(out, Ok(response));

        // The stream is a child of the body and must be gone before the body is finished.
        if let Ok(stream) = body.write() {
            let _ = stream.blocking_write_and_flush(b"Hello from a washlet!\n");
        }
        let _ = OutgoingBody::finish(body, None);
    }
}
