//! Exports `wasi:keyvalue/watcher`: notes what it is told, and changes keys over HTTP.
//!
//! | request | call |
//! |---|---|
//! | `GET /BUCKET/KEY` | `get`; 404 if absent |
//! | `PUT /BUCKET/KEY` | `set` to the body |
//! | `DELETE /BUCKET/KEY` | `delete` |
//!
//! `on-set` adds 1 to `set/KEY` of the bucket `seen`, and sets `KEY` there to the value it is given, a space and
//! what the bucket it is given has; `on-delete` adds 1 to `deleted/KEY` and deletes `KEY`. A value `trap` traps.
//! An error of the interface is status 500 and its case.

use bindings::exports::wasi::keyvalue::watcher;
use bindings::wasi::keyvalue::store::{self, Bucket, Error};
use bindings::wasi::keyvalue::atomics;
use reply::Target;
use wasip2::exports::http::incoming_handler;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/keyvalue",
        inline: "
            package tests:watcher;
            world watching {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                export wasi:keyvalue/watcher@0.2.0-draft;
            }
        ",
        world: "tests:watcher/watching",
        generate_all,
    });
}

struct Watcher;

wasip2::http::proxy::export!(Watcher);
bindings::export!(Watcher with_types_in bindings);

impl watcher::Guest for Watcher {
    fn on_set(bucket: Bucket, key: String, value: Vec<u8>) {
        if value == b"trap" {
            core::arch::wasm32::unreachable();
        }
        let held = bucket.get(&key).expect("the bucket can be read");
        let note = [&value[..], b" ", &held.unwrap_or_default()].concat();
        let seen = store::open("seen").expect("the notes can be opened");
        atomics::increment(&seen, &format!("set/{key}"), 1).expect("it is counted");
        seen.set(&key, &note).expect("it is noted");
    }

    fn on_delete(_: Bucket, key: String) {
        let seen = store::open("seen").expect("the notes can be opened");
        atomics::increment(&seen, &format!("deleted/{key}"), 1).expect("it is counted");
        seen.delete(&key).expect("it is noted");
    }
}

impl incoming_handler::Guest for Watcher {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let (status, body) = answer(&request, &target)
            .unwrap_or_else(|error| (500, format!("{error:?}\n").into_bytes()));
        reply::bytes(out, status, &body);
    }
}

fn answer(request: &IncomingRequest, target: &Target) -> Result<(u16, Vec<u8>), Error> {
    let (name, key) = target.path.split_once('/').unwrap_or_default();
    let bucket = store::open(name)?;
    match request.method() {
        Method::Put => bucket.set(key, &reply::body(request)).map(|()| (204, Vec::new())),
        Method::Delete => bucket.delete(key).map(|()| (204, Vec::new())),
        _ => Ok(match bucket.get(key)? {
            Some(value) => (200, value),
            None => (404, b"absent\n".to_vec()),
        }),
    }
}
