//! Shows a request as the guest sees it, and streams in both directions.

use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    IncomingBody, IncomingRequest, Method, OutgoingBody, ResponseOutparam, Scheme,
};

struct Mirror;

wasip2::http::proxy::export!(Mirror);

impl Guest for Mirror {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        match target.path.as_str() {
            "echo" => echo(&request, out),
            "headers" => reply::text(out, 200, &describe(&request)),
            "drip" => {
                let body = reply::head(out, 200);
                let mut stream = body.write().expect("a new body has its stream");
                for n in 0..target.number("n", 10) {
                    if n > 0 {
                        reply::sleep(target.number("ms", 100));
                    }
                    if !reply::send(&mut stream, format!("{n}\n").as_bytes()) {
                        return;
                    }
                }
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            _ => reply::text(out, 404, "not found\n"),
        }
    }
}

/// Sends every chunk back as it arrives, the head before the first.
///
/// A request that breaks off leaves the response unfinished, so its sender sees a broken body.
fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().expect("a request gives its body once");
    let input = incoming.stream().expect("a body gives its stream once");
    let body = reply::head(out, 200);
    let mut output = body.write().expect("a new body has its stream");
    if !reply::pipe(&input, &mut output) {
        return;
    }
    drop((input, output));
    let _ = IncomingBody::finish(incoming);
    let _ = OutgoingBody::finish(body, None);
}

/// `method`, `path`, `scheme` and `authority`, then one `header NAME: VALUE` line each.
fn describe(request: &IncomingRequest) -> String {
    let method = match request.method() {
        Method::Other(name) => name,
        standard => format!("{standard:?}")
            .trim_start_matches("Method::")
            .to_uppercase(),
    };
    let scheme = match request.scheme() {
        Some(Scheme::Http) => "http".to_owned(),
        Some(Scheme::Https) => "https".to_owned(),
        Some(Scheme::Other(name)) => name,
        None => "-".to_owned(),
    };
    let path = request.path_with_query().unwrap_or_else(|| "-".to_owned());
    let authority = request.authority().unwrap_or_else(|| "-".to_owned());
    let mut text =
        format!("method: {method}\npath: {path}\nscheme: {scheme}\nauthority: {authority}\n");
    for (name, value) in request.headers().entries() {
        text.push_str(&format!(
            "header {name}: {}\n",
            String::from_utf8_lossy(&value)
        ));
    }
    text
}
