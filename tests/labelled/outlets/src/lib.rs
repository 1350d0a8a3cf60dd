//! Labelled imports of blobs, messages and configuration.
//!
//! | request | call |
//! |---|---|
//! | `GET /config/KEY` | `get` of the import `settings`; 404 if absent |
//! | `POST /message/SUBJECT` | `publish` of the body through the import `outbox` |
//! | `POST /container/NAME` | `create-container` through the import `files` |
//! | `GET /container/NAME` | `container-exists` through the import `files` |
//!
//! An error of an interface is status 500 and its text.

use bindings::wasmcloud::messaging::types::BrokerMessage;
use bindings::{files, outbox, settings};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package tests:outlets;
            world outlets {
                import settings: wasi:config/store@0.2.0-rc.1;
                import outbox: wasmcloud:messaging/consumer@0.2.0;
                import files: wasi:blobstore/blobstore@0.2.0-draft;
            }
        ",
        path: ["../../../wit/config", "../../../wit/messaging-0.2", "../../../wit/blobstore"],
        world: "tests:outlets/outlets",
        generate_all,
    });
}

struct Outlets;

wasip2::http::proxy::export!(Outlets);

impl Guest for Outlets {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let (what, name) = target.path.split_once('/').unwrap_or_default();
        let answer = match (what, request.method()) {
            ("config", _) => settings::get(name)
                .map(|value| value.map_or((404, String::new()), |value| (200, value)))
                .map_err(|error| format!("{error:?}")),
            ("message", _) => outbox::publish(&BrokerMessage {
                subject: name.to_owned(),
                body: reply::body(&request),
                reply_to: None,
            })
            .map(|()| (204, String::new())),
            ("container", Method::Post) => {
                files::create_container(name).map(|_| (204, String::new()))
            }
            ("container", _) => files::container_exists(name).map(|is| (200, is.to_string())),
            _ => Ok((404, "no such call".to_owned())),
        };
        let (status, body) = answer.unwrap_or_else(|error| (500, error));
        reply::bytes(out, status, body.as_bytes());
    }
}
