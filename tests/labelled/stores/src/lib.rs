//! One interface, three imports of it: `wasi:keyvalue/store` by its own name, and under the labels
//! `cache` and `archive`.
//!
//! | request | call, through the import `plain`, `cache` or `archive` |
//! |---|---|
//! | `GET /IMPORT/BUCKET/KEY` | `get`; 404 if absent |
//! | `PUT /IMPORT/BUCKET/KEY` | `set` to the body |
//!
//! An error of the interface is status 500 and its case.

use bindings::wasi::keyvalue::store as plain;
use bindings::{archive, cache};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package tests:stores;
            world stores {
                import wasi:keyvalue/store@0.2.0-draft;
                import cache: wasi:keyvalue/store@0.2.0-draft;
                import archive: wasi:keyvalue/store@0.2.0-draft;
            }
        ",
        path: "../../../wit/keyvalue",
        world: "tests:stores/stores",
        generate_all,
    });
}

struct Stores;

wasip2::http::proxy::export!(Stores);

/// The same call through any of the imports, each with types of its own.
macro_rules! through {
    ($store:ident, $request:expr, $bucket:expr, $key:expr) => {
        $store::open($bucket)
            .and_then(|bucket| match $request.method() {
                Method::Put => bucket
                    .set($key, &reply::body($request))
                    .map(|()| (204, Vec::new())),
                _ => Ok(match bucket.get($key)? {
                    Some(value) => (200, value),
                    None => (404, b"absent\n".to_vec()),
                }),
            })
            .unwrap_or_else(|error| (500, format!("{error:?}\n").into_bytes()))
    };
}

impl Guest for Stores {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let mut parts = target.path.splitn(3, '/');
        let mut part = || parts.next().unwrap_or_default();
        let (import, bucket, key) = (part(), part(), part());
        let (status, body) = match import {
            "plain" => through!(plain, &request, bucket, key),
            "cache" => through!(cache, &request, bucket, key),
            "archive" => through!(archive, &request, bucket, key),
            _ => (404, b"no such import\n".to_vec()),
        };
        reply::bytes(out, status, &body);
    }
}
