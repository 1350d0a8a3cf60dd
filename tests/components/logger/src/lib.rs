//! Says the same text once on every level of `wasi:logging`, on stdout and on stderr.
//!
//! `GET /?text=TEXT` logs `LEVEL TEXT` with the context `logger` and prints `stdout TEXT`, `stderr TEXT`.

use bindings::wasi::logging::logging::{Level, log};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/logging",
        world: "imports",
        generate_all,
    });
}

struct Logger;

wasip2::http::proxy::export!(Logger);

impl Guest for Logger {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let text = target.param("text").unwrap_or("hello");
        for (level, name) in [
            (Level::Trace, "trace"),
            (Level::Debug, "debug"),
            (Level::Info, "info"),
            (Level::Warn, "warn"),
            (Level::Error, "error"),
            (Level::Critical, "critical"),
        ] {
            log(level, "logger", &format!("{name} {text}"));
        }
        println!("stdout {text}");
        eprintln!("stderr {text}");
        reply::text(out, 200, "logged\n");
    }
}
