//! Keeps a diary of what a clock says: each tick is two lines, and `GET /` answers the last ones. Needs a host
//! with `example:diary` and `example:clock`, as `../host` is one.

use bindings::example::diary::lines;
use bindings::exports::example::clock::tick;
use std::time::Duration;
use wasip2::exports::http::incoming_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

mod bindings {
    wit_bindgen::generate!({
        path: ["../host/wit/clock", "../host/wit/diary"],
        inline: "
            package example:guest;
            world guest {
                import example:diary/lines@0.1.0;
                export example:clock/tick@0.1.0;
            }
        ",
        generate_all,
    });
}

/// How many lines an answer has.
const SHOWN: u64 = 100;

struct Diary;

wasip2::http::proxy::export!(Diary);
bindings::export!(Diary with_types_in bindings);

impl tick::Guest for Diary {
    /// Takes as long as the variable `PAUSE_MS` says.
    fn tick(number: u64) {
        let pause = std::env::var("PAUSE_MS").ok();
        let pause = pause.and_then(|text| text.parse().ok());
        write(&format!("tick {number} begins"));
        std::thread::sleep(Duration::from_millis(pause.unwrap_or(0)));
        write(&format!("tick {number} ends"));
    }
}

/// A line that cannot be written ends the call; the host says why.
fn write(text: &str) {
    if let Err(why) = lines::add(text) {
        panic!("\"{text}\" was not written down: {why}");
    }
}

impl incoming_handler::Guest for Diary {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        match read() {
            Ok(text) => respond(out, 200, &text),
            Err(why) => respond(out, 500, &format!("{why}\n")),
        }
    }
}

/// The last lines, the newest at the end.
fn read() -> Result<String, String> {
    let last = lines::last()?;
    let mut text = String::new();
    for number in last.saturating_sub(SHOWN) + 1..=last {
        if let Some(line) = lines::get(number)? {
            text += &format!("{number}: {line}\n");
        }
    }
    Ok(text)
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        for chunk in text.as_bytes().chunks(4096) {
            let _ = stream.blocking_write_and_flush(chunk);
        }
    }
    let _ = OutgoingBody::finish(body, None);
}
