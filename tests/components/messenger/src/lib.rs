//! Receives messages and sends them.
//!
//! As a handler its behaviour is the message's body: `echo:TEXT` publishes TEXT to the reply subject,
//! `trap` traps, `loop` never returns, `err` returns an error, `slow:MS` prints `began`, sleeps and prints
//! `done`, `refuse:TEXT` returns an error unless the subject begins with `dead.`, where it prints TEXT; anything
//! else is taken in silence.
//! Over HTTP, `POST /publish?subject=S` publishes the body (`&reply-to=R` names a reply subject) and
//! `POST /request?subject=S&timeout=MS` answers the reply's body; an error is status 502 with its text.

use bindings::exports::wasmcloud::messaging::handler;
use bindings::wasmcloud::messaging::consumer;
use bindings::wasmcloud::messaging::types::BrokerMessage;
use reply::Target;
use wasip2::exports::http::incoming_handler;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/messaging-0.2",
        inline: "
            package test:messenger;
            world messenger {
                import wasmcloud:messaging/consumer@0.2.0;
                export wasmcloud:messaging/handler@0.2.0;
            }
        ",
        generate_all,
    });
}

struct Messenger;

wasip2::http::proxy::export!(Messenger);
bindings::export!(Messenger with_types_in bindings);

impl handler::Guest for Messenger {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        match message.body.as_slice() {
            b"trap" => core::arch::wasm32::unreachable(),
            b"loop" => loop {
                std::hint::black_box(());
            },
            b"err" => Err("asked to fail".to_owned()),
            body if body.starts_with(b"slow:") => {
                let ms = String::from_utf8_lossy(&body[5..]).parse().unwrap_or(0);
                println!("began {}", message.subject);
                std::thread::sleep(std::time::Duration::from_millis(ms));
                println!("done {}", message.subject);
                Ok(())
            }
            body if body.starts_with(b"refuse:") => {
                if !message.subject.starts_with("dead.") {
                    return Err("asked to refuse".to_owned());
                }
                println!("{}: {}", message.subject, String::from_utf8_lossy(&body[7..]));
                Ok(())
            }
            body => match (body.strip_prefix(b"echo:"), message.reply_to) {
                (Some(text), Some(subject)) => consumer::publish(&BrokerMessage {
                    subject,
                    body: text.to_vec(),
                    reply_to: None,
                }),
                _ => Ok(()),
            },
        }
    }
}

impl incoming_handler::Guest for Messenger {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let subject = target.param("subject").unwrap_or_default().to_owned();
        let body = reply::body(&request);
        let sent = match target.path.as_str() {
            "publish" => {
                let reply_to = target.param("reply-to").map(str::to_owned);
                consumer::publish(&BrokerMessage {
                    subject,
                    body,
                    reply_to,
                })
                .map(|()| Vec::new())
            }
            "request" => {
                let timeout = u32::try_from(target.number("timeout", 1000)).unwrap_or(u32::MAX);
                consumer::request(&subject, &body, timeout).map(|reply| reply.body)
            }
            _ => return reply::text(out, 404, "not found\n"),
        };
        match sent {
            Ok(body) => reply::bytes(out, 200, &body),
            Err(why) => reply::text(out, 502, &format!("{why}\n")),
        }
    }
}
