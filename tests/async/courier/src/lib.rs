//! `wasmcloud:messaging@0.3.0`, `wasmcloud:blobstore@0.1.0` and `wasmcloud:secrets@2.1.0` over HTTP.
//!
//! | request | call |
//! |---|---|
//! | `POST /publish/SUBJECT?reply=R` | `publish` of the body |
//! | `POST /request/SUBJECT?ms=N` | `request` with the body: the answer's body |
//! | `PUT /blob/CONTAINER/OBJECT` | `write-data` of the body, while it arrives |
//! | `PUT /half/CONTAINER/OBJECT` | the same, but traps when all of it was written |
//! | `GET /blob/CONTAINER/OBJECT?start=N&end=M` | `get-data`, passed on as it comes |
//! | `GET /blob/CONTAINER` | `list-objects`: a name a line |
//! | `GET /size/CONTAINER/OBJECT` | `object-info`: the size |
//! | `DELETE /blob/CONTAINER/OBJECT` | `delete-object` |
//! | `POST /copy/CONTAINER/FROM/TO` | `copy-object` |
//! | `GET /secret/KEY` | `get` and `reveal` |
//!
//! A message is answered with its body at its `reply-to`; one that says `reject`, `retry` or `fail` is not
//! handled. An error of an interface is status 500 and its case.

use answer::Target;
use bindings::exports::wasmcloud::messaging::handler::{BrokerMessage, HandleMessageError};
use bindings::wasmcloud::blobstore::blobstore;
use bindings::wasmcloud::blobstore::container::Container;
use bindings::wasmcloud::blobstore::types::{Error as BlobError, ObjectId};
use bindings::wasmcloud::messaging::consumer;
use bindings::wasmcloud::secrets::store::SecretValue;
use bindings::wasmcloud::secrets::{reveal, store};
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::{wit_future, wit_stream};
use wit_bindgen::StreamReader;

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package tests:courier;
            world courier {
                import wasmcloud:messaging/consumer@0.3.0;
                import wasmcloud:blobstore/blobstore@0.1.0;
                import wasmcloud:secrets/store@2.1.0;
                import wasmcloud:secrets/reveal@2.1.0;
                export wasmcloud:messaging/handler@0.3.0;
            }
        ",
        path: ["../../../wit/messaging-0.3", "../../../wit/blobstore-0.1", "../../../wit/secrets-2.1"],
        world: "tests:courier/courier",
        generate_all,
    });
}

struct Courier;

wasip3::http::service::export!(Courier);
bindings::export!(Courier with_types_in bindings);

impl bindings::exports::wasmcloud::messaging::handler::Guest for Courier {
    async fn handle_message(message: BrokerMessage) -> Result<(), HandleMessageError> {
        let body = message.body.collect().await;
        match body.as_slice() {
            b"reject" => return Err(HandleMessageError::Reject),
            b"retry" => return Err(HandleMessageError::Retry),
            b"fail" => return Err(HandleMessageError::Other("failed".to_owned())),
            b"trap" => core::arch::wasm32::unreachable(),
            _ => {}
        }
        if let Some(subject) = message.reply_to {
            let answer = BrokerMessage {
                subject,
                body: stream(body),
                reply_to: None,
            };
            let sent = consumer::publish(answer).await;
            sent.map_err(|error| HandleMessageError::Other(format!("{error:?}")))?;
        }
        Ok(())
    }
}

impl wasip3::exports::http::handler::Guest for Courier {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = Target::of(&request);
        let (call, rest) = target.path.split_once('/').unwrap_or((&target.path, ""));
        Ok(match call {
            "publish" | "request" => message(call, rest, &target, request).await,
            "secret" => secret(rest).await,
            _ => match blob(call, rest, &target, request).await {
                Ok(response) => response,
                Err(error) => answer::text(500, format!("{error:?}")),
            },
        })
    }
}

/// A stream of `bytes`, written beside what reads it.
fn stream(bytes: Vec<u8>) -> StreamReader<u8> {
    let (mut writer, reader) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        writer.write_all(bytes).await;
    });
    reader
}

async fn message(call: &str, subject: &str, target: &Target, request: Request) -> Response {
    let body = stream(answer::body(request).await);
    if call == "publish" {
        let message = BrokerMessage {
            subject: subject.to_owned(),
            body,
            reply_to: target.param("reply").map(str::to_owned),
        };
        return match consumer::publish(message).await {
            Ok(()) => answer::text(204, ""),
            Err(error) => answer::text(500, format!("{error:?}")),
        };
    }
    let ms = target.param("ms").and_then(|ms| ms.parse().ok());
    match consumer::request(subject.to_owned(), body, ms).await {
        Ok(reply) => answer::bytes(200, reply.body.collect().await),
        Err(error) => answer::text(500, format!("{error:?}")),
    }
}

async fn secret(key: &str) -> Response {
    match store::get(key.to_owned()).await {
        Ok(secret) => match reveal::reveal(&secret).await {
            SecretValue::String(text) => answer::text(200, format!("text {text}")),
            SecretValue::Bytes(bytes) => answer::bytes(200, [b"bytes ", &bytes[..]].concat()),
        },
        Err(error) => answer::text(500, format!("{error:?}")),
    }
}

async fn container(name: &str) -> Result<Container, BlobError> {
    match blobstore::container_exists(name.to_owned()).await? {
        true => blobstore::get_container(name.to_owned()).await,
        false => blobstore::create_container(name.to_owned()).await,
    }
}

async fn blob(
    call: &str,
    rest: &str,
    target: &Target,
    request: Request,
) -> Result<Response, BlobError> {
    let (name, object) = rest.split_once('/').unwrap_or((rest, ""));
    let method = request.get_method();
    let container = container(name).await?;
    Ok(match (call, method) {
        ("blob" | "half", Method::Put) => {
            let (_, done) = wit_future::new(|| Ok(()));
            let (body, _) = Request::consume_body(request, done);
            match call {
                "blob" => container.write_data(object.to_owned(), body).await?,
                _ => {
                    let (mut writer, reader) = wit_stream::new();
                    let write = container.write_data(object.to_owned(), reader);
                    let trap = async move {
                        writer.write_all(body.collect().await).await;
                        core::arch::wasm32::unreachable()
                    };
                    wit_bindgen::spawn_local(trap);
                    write.await?;
                }
            }
            answer::text(204, "")
        }
        ("blob", Method::Delete) => {
            container.delete_object(object.to_owned()).await?;
            answer::text(204, "")
        }
        ("blob", _) if object.is_empty() => {
            let names = container.list_objects().await?.collect().await;
            answer::text(200, names.iter().map(|name| format!("{name}\n")).collect::<String>())
        }
        ("blob", _) => {
            let (start, end) = (target.number("start", 0), target.number("end", u64::MAX));
            let body = container.get_data(object.to_owned(), start, end).await?;
            let (_, trailers) = wit_future::new(|| Ok(None));
            Response::new(Fields::new(), Some(body), trailers).0
        }
        ("size", _) => {
            let info = container.object_info(object.to_owned()).await?;
            answer::text(200, info.size.to_string())
        }
        ("copy", _) => {
            let (from, to) = object.split_once('/').unwrap_or((object, ""));
            let id = |object: &str| ObjectId {
                container: name.to_owned(),
                object: object.to_owned(),
            };
            blobstore::copy_object(id(from), id(to)).await?;
            answer::text(204, "")
        }
        _ => answer::text(404, "unknown call"),
    })
}
