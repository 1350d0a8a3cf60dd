//! Every call of `wasmcloud:keyvalue` over HTTP; where `wasi:keyvalue` has it, the request is that of `kv`.
//!
//! | request | call |
//! |---|---|
//! | `GET /BUCKET/KEY` | `get`; 404 if absent |
//! | `GET /BUCKET/KEY?exists` | `exists`: `true` or `false` |
//! | `PUT /BUCKET/KEY` | `set` to the body; `?new`, `?ttl=MS` are its options |
//! | `DELETE /BUCKET/KEY` | `delete` |
//! | `POST /BUCKET/KEY?increment=N` | `increment`: the sum |
//! | `GET /BUCKET/KEY?current` | `current`: `VERSION VALUE`; 404 if absent |
//! | `PUT /BUCKET/KEY?swap`, `&version=V`, `&value=X` | `swap`: `swapped`, `stale VALUE` or `stale` |
//! | `GET /BUCKET?list`, `&prefix=P`, `&cursor=K` | `list-keys`: `key K` lines, then `cursor K` if there are more |
//! | `POST /BUCKET?many=set`, `get`, `delete` | the batches, as in `kv` |
//! | `GET /BUCKET/KEY?at-once=N` | as many `get`, all under way before one is waited for: how many succeeded |
//! | `PUT /BUCKET/KEY?at-once=N&kb=M` | the same with `set` of M KiB: how many succeeded, how many were refused |
//!
//! With `/~cache/BUCKET..` the bucket is opened through the import labelled `cache`. An error of the interface
//! is status 500 and `error: no-such-store` and so on, or `other: …`.

use answer::Target;
use bindings::wasmcloud::keyvalue::cas::{self, CasOptions, CasResult};
use bindings::wasmcloud::keyvalue::types::{Bucket, Error, SetOptions};
use bindings::wasmcloud::keyvalue::{atomics, batch, store};
use wasip3::http::types::{ErrorCode, Method, Request, Response};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package tests:kv3;
            world kv3 {
                import wasmcloud:keyvalue/store@0.2.0;
                import wasmcloud:keyvalue/atomics@0.2.0;
                import wasmcloud:keyvalue/cas@0.2.0;
                import wasmcloud:keyvalue/batch@0.2.0;
                import cache: wasmcloud:keyvalue/store@0.2.0;
            }
        ",
        path: "../../../wit/keyvalue-0.2",
        world: "tests:kv3/kv3",
        generate_all,
    });
}

struct Kv;

wasip3::http::service::export!(Kv);

type Answer = (u16, Vec<u8>);

impl wasip3::exports::http::handler::Guest for Kv {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = Target::of(&request);
        let method = request.get_method();
        let body = answer::body(request).await;
        let (status, body) = reply(&method, &target, body).await.unwrap_or_else(|error| {
            let error = match error {
                Error::NoSuchStore => "no-such-store".to_owned(),
                Error::AccessDenied => "access-denied".to_owned(),
                Error::InvalidArgument => "invalid-argument".to_owned(),
                Error::PreconditionFailed => "precondition-failed".to_owned(),
                Error::Timeout => "timeout".to_owned(),
                Error::StoreUnavailable => "store-unavailable".to_owned(),
                Error::QuotaExceeded => "quota-exceeded".to_owned(),
                Error::Other(why) => format!("other: {why}"),
            };
            (500, format!("error: {error}\n").into_bytes())
        });
        Ok(answer::bytes(status, body))
    }
}

async fn reply(method: &Method, target: &Target, body: Vec<u8>) -> Result<Answer, Error> {
    let (path, cached) = match target.path.strip_prefix("~cache/") {
        Some(path) => (path, true),
        None => (target.path.as_str(), false),
    };
    let (name, key) = match path.split_once('/') {
        Some((name, key)) => (name, Some(key)),
        None => (path, None),
    };
    let bucket = match cached {
        true => bindings::cache::open(name.to_owned()).await?,
        false => store::open(name.to_owned()).await?,
    };
    match key {
        Some(key) => one(method, target, &bucket, key.to_owned(), body).await,
        None => many(target, &bucket, body).await,
    }
}

async fn one(
    method: &Method,
    target: &Target,
    bucket: &Bucket,
    key: String,
    body: Vec<u8>,
) -> Result<Answer, Error> {
    if let Some(calls) = target.param("at-once").and_then(|calls| calls.parse().ok()) {
        return at_once(method, target, bucket, key, calls).await;
    }
    match method {
        Method::Get if target.param("exists").is_some() => text(bucket.exists(key).await?),
        Method::Get if target.param("current").is_some() => {
            Ok(match cas::current(bucket, key).await? {
                Some(entry) => (200, [entry.version.as_bytes(), b" ", &entry.value].concat()),
                None => (404, b"absent\n".to_vec()),
            })
        }
        Method::Get => Ok(match bucket.get(key).await? {
            Some(value) => (200, value),
            None => (404, b"absent\n".to_vec()),
        }),
        Method::Put if target.param("swap").is_some() => {
            let options = CasOptions {
                require_version: target.param("version").map(str::to_owned),
                require_value: target.param("value").map(|value| value.as_bytes().to_vec()),
            };
            Ok(match cas::swap(bucket, key, body, options).await? {
                CasResult::Swapped => (200, b"swapped".to_vec()),
                CasResult::Stale(Some(entry)) => (200, [b"stale ".as_slice(), &entry.value].concat()),
                CasResult::Stale(None) => (200, b"stale".to_vec()),
            })
        }
        Method::Put => {
            let ttl_ms = target.param("ttl").and_then(|ttl| ttl.parse().ok());
            let if_not_exists = target.param("new").is_some();
            let options = (ttl_ms.is_some() || if_not_exists).then_some(SetOptions {
                ttl_ms,
                if_not_exists,
            });
            bucket.set(key, body, options).await?;
            Ok((204, Vec::new()))
        }
        Method::Delete => bucket.delete(key).await.map(|()| (204, Vec::new())),
        Method::Post => {
            let delta = target.param("increment").and_then(|delta| delta.parse().ok());
            text(atomics::increment(bucket, key, delta.unwrap_or(1)).await?)
        }
        _ => Ok((405, Vec::new())),
    }
}

async fn at_once(
    method: &Method,
    target: &Target,
    bucket: &Bucket,
    key: String,
    calls: usize,
) -> Result<Answer, Error> {
    let kb = usize::try_from(target.number("kb", 0)).expect("fits");
    let calls = (0..calls).map(|_| async {
        match method {
            Method::Put => bucket.set(key.clone(), vec![b'x'; kb << 10], None).await,
            _ => bucket.get(key.clone()).await.map(drop),
        }
    });
    let results = answer::join_all(calls).await;
    let refused = results.iter().filter(|result| matches!(result, Err(Error::QuotaExceeded)));
    let done = results.iter().filter(|result| result.is_ok()).count();
    text(format!("{done} {}", refused.count()))
}

async fn many(target: &Target, bucket: &Bucket, body: Vec<u8>) -> Result<Answer, Error> {
    if target.param("list").is_some() {
        let prefix = target.param("prefix").map(str::to_owned);
        let cursor = target.param("cursor").map(str::to_owned);
        let page = bucket.list_keys(prefix, cursor).await?;
        let mut lines: String = page.keys.iter().map(|key| format!("key {key}\n")).collect();
        if let Some(cursor) = page.cursor {
            lines.push_str(&format!("cursor {cursor}\n"));
        }
        return Ok((200, lines.into_bytes()));
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    let keys: Vec<String> = body.lines().map(str::to_owned).collect();
    match target.param("many") {
        Some("set") => {
            let pairs: Vec<(String, Vec<u8>)> = body
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
                .collect();
            batch::set_many(bucket, pairs).await.map(|()| (204, Vec::new()))
        }
        Some("get") => {
            let mut lines = Vec::new();
            for pair in batch::get_many(bucket, keys).await? {
                match pair {
                    Some((key, value)) => lines.extend([key.as_bytes(), b"=", &value].concat()),
                    None => lines.push(b'-'),
                }
                lines.push(b'\n');
            }
            Ok((200, lines))
        }
        Some("delete") => batch::delete_many(bucket, keys).await.map(|()| (204, Vec::new())),
        _ => Ok((404, b"unknown call\n".to_vec())),
    }
}

fn text(value: impl std::fmt::Display) -> Result<Answer, Error> {
    Ok((200, format!("{value}\n").into_bytes()))
}
