//! Shows the configuration a component is given: `GET /` lists all values of `wasi:config` as
//! sorted `key=value` lines, `GET /KEY` answers one value, `GET /?env` lists the environment.

use std::io::Write;

use bindings::wasi::config::store;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/config",
        world: "imports",
        generate_all,
    });
}

struct ConfigReader;

wasip2::http::proxy::export!(ConfigReader);

impl Guest for ConfigReader {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));

        let (status, text) = match path.trim_matches('/') {
            // The environment is plain std; only configuration needs an interface.
            "" if query == "env" => (200, lines(std::env::vars().collect())),
            "" => match store::get_all() {
                Ok(values) => (200, lines(values)),
                Err(error) => (500, explain(error)),
            },
            key => match store::get(key) {
                Ok(Some(value)) => (200, value + "\n"),
                Ok(None) => (404, format!("no value for \"{key}\"\n")),
                Err(error) => (500, explain(error)),
            },
        };
        respond(out, status, &text);
    }
}

fn lines(mut values: Vec<(String, String)>) -> String {
    values.sort();
    values
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect()
}

fn explain(error: store::Error) -> String {
    match error {
        store::Error::Upstream(why) => format!("the source of the configuration said no: {why}\n"),
        store::Error::Io(why) => format!("the source of the configuration is away: {why}\n"),
    }
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    // The stream takes as much as the host allows at a time; `write_all` waits for the rest.
    if let Ok(mut stream) = body.write()
        && stream.write_all(text.as_bytes()).is_ok()
    {
        let _ = stream.blocking_flush();
    }
    let _ = OutgoingBody::finish(body, None);
}
