//! Misbehaves on request; the path says how.

use std::hint::black_box;

use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, OutgoingBody, ResponseOutparam};

struct Hostile;

wasip2::http::proxy::export!(Hostile);

impl Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        match target.path.as_str() {
            "ok" => reply::text(out, 200, "ok\n"),
            "loop" => loop {
                black_box(());
            },
            "trap" => core::arch::wasm32::unreachable(),
            // Memory that is not given is a trap; what is given is held for `ms`.
            "grow" => {
                let bytes = target.number("mb", 1) << 20;
                let memory = vec![1u8; usize::try_from(bytes).expect("fits a 32-bit memory")];
                black_box(&memory);
                reply::sleep(target.number("ms", 0));
                reply::text(out, 200, &format!("{}\n", memory.len() >> 20));
            }
            "huge" => {
                let body = reply::head(out, 200);
                let mebibyte = vec![b'x'; 1 << 20];
                let mut stream = body.write().expect("a new body has its stream");
                for _ in 0..target.number("mb", 1) {
                    // The client may leave before the end.
                    if !reply::send(&mut stream, &mebibyte) {
                        return;
                    }
                }
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            "no-response" => {}
            "slow" => {
                reply::sleep(target.number("ms", 1000));
                reply::text(out, 200, "slow\n");
            }
            "status" => {
                let code = target.number("code", 200);
                reply::text(
                    out,
                    u16::try_from(code).unwrap_or(500),
                    &format!("{code}\n"),
                );
            }
            _ => reply::text(out, 404, "no such misbehaviour\n"),
        }
    }
}
