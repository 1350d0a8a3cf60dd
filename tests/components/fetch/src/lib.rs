//! Performs a request and relays the answer: `GET /?url=URL` (percent-encoded).
//!
//! `&timeout=MS` limits connecting and waiting for the first byte. A request with a body is sent on
//! as a POST. A failure is status 502 and `error: ` with the name of the error code.

use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    RequestOptions, ResponseOutparam, Scheme,
};

struct Fetch;

wasip2::http::proxy::export!(Fetch);

impl Guest for Fetch {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        match fetch(&request, &target) {
            Ok(response) => relay(&response, out),
            Err(code) => {
                let code = format!("{code:?}");
                let name = code.strip_prefix("ErrorCode::").unwrap_or(&code);
                reply::text(out, 502, &format!("error: {name}\n"));
            }
        }
    }
}

fn fetch(request: &IncomingRequest, target: &Target) -> Result<IncomingResponse, ErrorCode> {
    let url = target
        .param("url")
        .ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let (scheme, rest) = url
        .split_once("://")
        .ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };

    let outgoing = OutgoingRequest::new(Fields::new());
    let invalid = |()| ErrorCode::HttpRequestUriInvalid;
    outgoing.set_scheme(Some(&scheme)).map_err(invalid)?;
    outgoing.set_authority(Some(authority)).map_err(invalid)?;
    outgoing
        .set_path_with_query(Some(if path.is_empty() { "/" } else { path }))
        .map_err(invalid)?;
    let content = reply::body(request);
    if !content.is_empty() {
        let _ = outgoing.set_method(&Method::Post);
    }
    let body = outgoing.body().expect("a new request has its body");

    let options = RequestOptions::new();
    if target.param("timeout").is_some() {
        let timeout = Some(target.number("timeout", 0).saturating_mul(1_000_000));
        let _ = options.set_connect_timeout(timeout);
        let _ = options.set_first_byte_timeout(timeout);
    }

    let response = outgoing_handler::handle(outgoing, Some(options))?;
    if let Ok(mut stream) = body.write() {
        let _ = reply::send(&mut stream, &content);
    }
    // The response says why a request failed, better than the body that broke with it.
    let _ = OutgoingBody::finish(body, None);
    response.subscribe().block();
    response
        .get()
        .expect("ready after waiting")
        .expect("taken once")
}

/// Passes status and body on as they arrive; a body that breaks off breaks off here too.
fn relay(response: &IncomingResponse, out: ResponseOutparam) {
    let incoming = response.consume().expect("a response gives its body once");
    let input = incoming.stream().expect("a body gives its stream once");
    let body = reply::head(out, response.status());
    let mut output = body.write().expect("a new body has its stream");
    if !reply::pipe(&input, &mut output) {
        return;
    }
    drop((input, output));
    let _ = OutgoingBody::finish(body, None);
}
