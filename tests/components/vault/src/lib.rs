//! `wasmcloud:secrets` over HTTP.
//!
//! `GET /KEY` reveals a secret, the word `text` or `bytes` before it; `GET /KEY?has` says only that it
//! is there. A secret that is not found is 404, any other error is 500 and its case.

use bindings::wasmcloud::secrets::store::{SecretValue, SecretsError};
use bindings::wasmcloud::secrets::{reveal, store};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/secrets",
        world: "imports",
        generate_all,
    });
}

struct Vault;

wasip2::http::proxy::export!(Vault);

impl Guest for Vault {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let (status, body) = match store::get(&target.path) {
            Ok(_) if target.param("has").is_some() => (200, b"there".to_vec()),
            Ok(secret) => match reveal::reveal(&secret) {
                SecretValue::String(text) => (200, [b"text ", text.as_bytes()].concat()),
                SecretValue::Bytes(bytes) => (200, [b"bytes ", &bytes[..]].concat()),
            },
            Err(SecretsError::NotFound) => (404, b"not found".to_vec()),
            Err(SecretsError::Upstream(why)) => (500, format!("upstream: {why}").into_bytes()),
            Err(SecretsError::Io(why)) => (500, format!("io: {why}").into_bytes()),
        };
        reply::bytes(out, status, &body);
    }
}
