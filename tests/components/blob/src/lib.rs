//! Every call of `wasi:blobstore` over HTTP.
//!
//! | request | call |
//! |---|---|
//! | `POST /C?create`, `?delete`, `?clear` | `create-container`, `delete-container`, `clear` |
//! | `GET /C?exists`, `?name`, `?info` | `container-exists`, `name`, `info`: `NAME CREATED` |
//! | `GET /C?list`, `&skip=N`, `&len=N` | `list-objects`: one name a line, pages apart by an empty line |
//! | `POST /C?delete-many` | `delete-objects` of the body's lines |
//! | `GET /C/O`, `&start=N`, `&end=N` | `get-data`, as a stream; 404 if it does not exist |
//! | `GET /C/O?sync`, `?size`, `?drain` | `get-data`, all at once; only its size; how much was read |
//! | `GET /C/O?has`, `?info` | `has-object`; `object-info`: `NAME CONTAINER SIZE CREATED` |
//! | `PUT /C/O` | `write-data` of the body, as a stream |
//! | `PUT /C/O?abandon`, `?trap`, `?hang` | the same, and then not finished: dropped, trapped, never |
//! | `PUT /C/O?late`, `?nowhere` | the body before `write-data`; without it |
//! | `PUT /C/O?fill=N`, `?bytes=N` | `write-data` of N mebibytes, or bytes: each mebibyte is of its number |
//! | `DELETE /C/O` | `delete-object` |
//! | `POST /C/O?copy=C2/O2`, `?move=C2/O2` | `copy-object`, `move-object` |
//! | `POST /C/O?hoard=N` | N values of `get-data` at once: how many were given |
//!
//! An error of the interface is status 500 and `error: TEXT`.

use bindings::wasi::blobstore::blobstore;
use bindings::wasi::blobstore::container::Container;
use bindings::wasi::blobstore::types::{IncomingValue, ObjectId, OutgoingValue};
use reply::Target;
use std::io::Write;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, OutgoingBody, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/blobstore",
        world: "imports",
        with: { "wasi:io/streams@0.2.1": wasip2::io::streams },
        generate_all,
    });
}

struct Blob;

wasip2::http::proxy::export!(Blob);

enum Answer {
    Text(u16, String),
    Value(IncomingValue),
}

impl Guest for Blob {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match answer(&request) {
            Ok(Answer::Text(status, text)) => reply::text(out, status, &text),
            Ok(Answer::Value(value)) => stream(value, out),
            Err(why) if why.contains("does not exist") => {
                reply::text(out, 404, &format!("error: {why}\n"));
            }
            Err(why) => reply::text(out, 500, &format!("error: {why}\n")),
        }
    }
}

/// Sends what `value` has; a value that breaks off leaves the response broken.
fn stream(value: IncomingValue, out: ResponseOutparam) {
    let input = match IncomingValue::incoming_value_consume_async(value) {
        Ok(input) => input,
        Err(why) => return reply::text(out, 500, &format!("error: {why}\n")),
    };
    let body = reply::head(out, 200);
    let mut output = body.write().expect("a new body has its stream");
    if reply::pipe(&input, &mut output) {
        drop((input, output));
        let _ = OutgoingBody::finish(body, None);
    }
}

fn answer(request: &IncomingRequest) -> Result<Answer, String> {
    let target = Target::of(request);
    match target.path.split_once('/') {
        Some((container, object)) => one(request, &target, container, object),
        None => whole(request, &target, &target.path),
    }
}

fn whole(request: &IncomingRequest, target: &Target, name: &str) -> Result<Answer, String> {
    let has = |param| target.param(param).is_some();
    if has("create") {
        return done(blobstore::create_container(name).map(drop));
    } else if has("delete") {
        return done(blobstore::delete_container(name));
    } else if has("exists") {
        return text(blobstore::container_exists(name)?);
    }
    let container = blobstore::get_container(name)?;
    if has("clear") {
        done(container.clear())
    } else if has("name") {
        text(container.name()?)
    } else if has("info") {
        let info = container.info()?;
        text(format!("{} {}", info.name, info.created_at))
    } else if has("delete-many") {
        let body = String::from_utf8_lossy(&reply::body(request)).into_owned();
        let names: Vec<String> = body.lines().map(str::to_owned).collect();
        done(container.delete_objects(&names))
    } else {
        list(target, &container)
    }
}

fn list(target: &Target, container: &Container) -> Result<Answer, String> {
    let names = container.list_objects()?;
    let mut text = String::new();
    let mut end = false;
    if let Some(skip) = target.param("skip").and_then(|skip| skip.parse().ok()) {
        let (skipped, ended) = names.skip_stream_object_names(skip)?;
        text.push_str(&format!("skipped {skipped}\n\n"));
        end = ended;
    }
    while !end {
        let (page, ended) = names.read_stream_object_names(target.number("len", 100))?;
        page.iter()
            .for_each(|name| text.push_str(&format!("{name}\n")));
        end = ended;
        if !end {
            text.push('\n');
        }
    }
    Ok(Answer::Text(200, text))
}

fn one(
    request: &IncomingRequest,
    target: &Target,
    container: &str,
    object: &str,
) -> Result<Answer, String> {
    let has = |param| target.param(param).is_some();
    let id = |container: &str, object: &str| ObjectId {
        container: container.to_owned(),
        object: object.to_owned(),
    };
    for call in ["copy", "move"] {
        let Some((to, name)) = target.param(call).and_then(|to| to.split_once('/')) else {
            continue;
        };
        let (from, to) = (id(container, object), id(to, name));
        return done(match call {
            "copy" => blobstore::copy_object(&from, &to),
            _ => blobstore::move_object(&from, &to),
        });
    }
    let container = blobstore::get_container(container)?;
    let data = || {
        let (start, end) = (target.number("start", 0), target.number("end", u64::MAX));
        container.get_data(object, start, end)
    };
    match request.method() {
        Method::Get if has("has") => text(container.has_object(object)?),
        Method::Get if has("info") => {
            let info = container.object_info(object)?;
            text(format!(
                "{} {} {} {}",
                info.name, info.container, info.size, info.created_at
            ))
        }
        Method::Get if has("size") => text(data()?.size()),
        Method::Get if has("drain") => text(drain(data()?)?),
        Method::Get if has("sync") => {
            let bytes = IncomingValue::incoming_value_consume_sync(data()?)?;
            Ok(Answer::Text(
                200,
                String::from_utf8_lossy(&bytes).into_owned(),
            ))
        }
        Method::Get => Ok(Answer::Value(data()?)),
        Method::Put => put(request, target, &container, object),
        Method::Delete => done(container.delete_object(object)),
        Method::Post if has("hoard") => {
            let values = (0..target.number("hoard", 1)).map_while(|_| data().ok());
            text(values.collect::<Vec<_>>().len())
        }
        _ => Ok(Answer::Text(405, String::new())),
    }
}

fn put(
    request: &IncomingRequest,
    target: &Target,
    container: &Container,
    object: &str,
) -> Result<Answer, String> {
    let has = |param| target.param(param).is_some();
    let value = OutgoingValue::new_outgoing_value();
    let mut output = value
        .outgoing_value_write_body()
        .map_err(|()| "no stream to write to")?;
    if value.outgoing_value_write_body().is_ok() {
        return Err("a value gave two streams".to_owned());
    }
    if !has("late") && !has("nowhere") {
        container.write_data(object, &value)?;
    }
    if has("fill") || has("bytes") {
        let bytes = target.number("fill", 0) << 20;
        fill(&mut output, target.number("bytes", bytes));
    } else {
        pass(request, &mut output)?;
    }
    if has("late") {
        container.write_data(object, &value)?;
    }
    if has("trap") {
        panic!("as it was told");
    } else if has("hang") {
        reply::sleep(1_000_000_000);
    } else if has("abandon") {
        return Ok(Answer::Text(202, String::new()));
    }
    drop(output);
    done(OutgoingValue::finish(value))
}

/// Writes as much as the storage takes; why it took no more, `finish` tells.
fn fill(output: &mut OutputStream, bytes: u64) {
    let mut left = bytes;
    for n in 0_u64.. {
        let piece = left.min(1 << 20);
        if piece == 0 || output.write_all(&vec![n as u8; piece as usize]).is_err() {
            return;
        }
        left -= piece;
    }
}

/// Reads all and gives it to nobody.
fn drain(value: IncomingValue) -> Result<u64, String> {
    let input = IncomingValue::incoming_value_consume_async(value)?;
    let mut bytes = 0;
    loop {
        match input.blocking_read(1 << 20) {
            Ok(piece) => bytes += piece.len() as u64,
            Err(StreamError::Closed) => return Ok(bytes),
            Err(StreamError::LastOperationFailed(why)) => return Err(why.to_debug_string()),
        }
    }
}

/// Passes the request's body on. One that breaks off must not be finished; why the storage took no
/// more, `finish` tells.
fn pass(request: &IncomingRequest, output: &mut OutputStream) -> Result<(), String> {
    let body = request.consume().expect("a request gives its body once");
    let input = body.stream().expect("a body gives its stream once");
    loop {
        match input.blocking_read(64 << 10) {
            Ok(piece) if output.write_all(&piece).is_err() => return Ok(()),
            Ok(_) => {}
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(_)) => return Err("the body broke off".to_owned()),
        }
    }
}

fn done(result: Result<(), String>) -> Result<Answer, String> {
    result.map(|()| Answer::Text(204, String::new()))
}

fn text(value: impl std::fmt::Display) -> Result<Answer, String> {
    Ok(Answer::Text(200, format!("{value}\n")))
}
