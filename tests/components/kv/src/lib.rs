//! Every call of `wasi:keyvalue` over HTTP.
//!
//! | request | call |
//! |---|---|
//! | `GET /BUCKET/KEY` | `get`; 404 if absent |
//! | `GET /BUCKET/KEY?times=N` | `get` so many times, the last one's answer; likewise `PUT` and `set` |
//! | `GET /BUCKET/KEY?exists` | `exists`: `true` or `false` |
//! | `PUT /BUCKET/KEY` | `set` to the body |
//! | `DELETE /BUCKET/KEY` | `delete` |
//! | `POST /BUCKET/KEY?increment=N` | `increment`: the sum |
//! | `GET /BUCKET?list`, `&cursor=N` | `list-keys`: `key K` lines, then `cursor N` if there are more |
//! | `POST /BUCKET?many=set` | `set-many` of the body's `KEY=VALUE` lines |
//! | `POST /BUCKET?many=get` | `get-many` of the body's lines: `KEY=VALUE`, or `-` if absent |
//! | `POST /BUCKET?many=delete` | `delete-many` of the body's lines |
//!
//! An error of the interface is status 500 and `error: no-such-store`, `access-denied` or `other: …`.

use bindings::wasi::keyvalue::store::{Bucket, Error};
use bindings::wasi::keyvalue::{atomics, batch, store};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/keyvalue",
        world: "imports",
        generate_all,
    });
}

struct Kv;

wasip2::http::proxy::export!(Kv);

type Answer = (u16, Vec<u8>);

impl Guest for Kv {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (status, body) = answer(&request).unwrap_or_else(|error| {
            let error = match error {
                Error::NoSuchStore => "no-such-store".to_owned(),
                Error::AccessDenied => "access-denied".to_owned(),
                Error::Other(why) => format!("other: {why}"),
            };
            (500, format!("error: {error}\n").into_bytes())
        });
        reply::bytes(out, status, &body);
    }
}

fn answer(request: &IncomingRequest) -> Result<Answer, Error> {
    let target = Target::of(request);
    let (name, key) = match target.path.split_once('/') {
        Some((name, key)) => (name, Some(key)),
        None => (target.path.as_str(), None),
    };
    let bucket = store::open(name)?;
    match key {
        Some(key) => one(request, &target, &bucket, key),
        None => many(request, &target, &bucket),
    }
}

fn one(
    request: &IncomingRequest,
    target: &Target,
    bucket: &Bucket,
    key: &str,
) -> Result<Answer, Error> {
    match request.method() {
        Method::Get if target.param("exists").is_some() => text(bucket.exists(key)?),
        Method::Get => {
            let mut value = bucket.get(key)?;
            for _ in 1..target.number("times", 1) {
                value = bucket.get(key)?;
            }
            Ok(match value {
                Some(value) => (200, value),
                None => (404, b"absent\n".to_vec()),
            })
        }
        Method::Put => {
            let value = reply::body(request);
            for _ in 0..target.number("times", 1) {
                bucket.set(key, &value)?;
            }
            Ok((204, Vec::new()))
        }
        Method::Delete => bucket.delete(key).map(|()| (204, Vec::new())),
        Method::Post => text(atomics::increment(
            bucket,
            key,
            target.number("increment", 1),
        )?),
        _ => Ok((405, Vec::new())),
    }
}

fn many(request: &IncomingRequest, target: &Target, bucket: &Bucket) -> Result<Answer, Error> {
    if target.param("list").is_some() {
        let cursor = target
            .param("cursor")
            .and_then(|cursor| cursor.parse().ok());
        let page = bucket.list_keys(cursor)?;
        let mut lines: String = page.keys.iter().map(|key| format!("key {key}\n")).collect();
        if let Some(cursor) = page.cursor {
            lines.push_str(&format!("cursor {cursor}\n"));
        }
        return Ok((200, lines.into_bytes()));
    }
    let body = String::from_utf8_lossy(&reply::body(request)).into_owned();
    let keys: Vec<String> = body.lines().map(str::to_owned).collect();
    match target.param("many") {
        Some("set") => {
            let pairs: Vec<(String, Vec<u8>)> = body
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
                .collect();
            batch::set_many(bucket, &pairs).map(|()| (204, Vec::new()))
        }
        Some("get") => {
            let mut lines = Vec::new();
            for pair in batch::get_many(bucket, &keys)? {
                match pair {
                    Some((key, value)) => lines.extend([key.as_bytes(), b"=", &value].concat()),
                    None => lines.push(b'-'),
                }
                lines.push(b'\n');
            }
            Ok((200, lines))
        }
        Some("delete") => batch::delete_many(bucket, &keys).map(|()| (204, Vec::new())),
        _ => Ok((404, b"unknown call\n".to_vec())),
    }
}

fn text(value: impl std::fmt::Display) -> Result<Answer, Error> {
    Ok((200, format!("{value}\n").into_bytes()))
}
