//! Misbehaves on request; the path says how.

use std::arch::wasm32;
use std::hint::black_box;
use std::time::SystemTime;

use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse,
    RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

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
            // The head says that the memory is held; it is, until `ms` later.
            "hold" => {
                let bytes = target.number("mb", 1) << 20;
                let memory = vec![1u8; usize::try_from(bytes).expect("fits a 32-bit memory")];
                black_box(&memory);
                let body = reply::head(out, 200);
                reply::sleep(target.number("ms", 600_000));
                black_box(&memory);
                let _ = OutgoingBody::finish(body, None);
            }
            // Leaves stains and answers how many: /scan in a fresh instance must find none.
            "stain" => {
                let mut areas = unused(target.number("mb", 1));
                for area in &mut areas {
                    area.fill(STAIN);
                }
                reply::text(out, 200, &format!("{}\n", stains(black_box(&areas))));
            }
            "scan" => {
                let areas = unused(target.number("mb", 1));
                reply::text(out, 200, &format!("{}\n", stains(&areas)));
            }
            "half" => {
                let body = reply::head(out, 200);
                let mut stream = body.write().expect("a new body has its stream");
                let _ = reply::send(&mut stream, b"half");
                wasm32::unreachable()
            }
            "late-trap" => {
                reply::text(out, 200, "whole\n");
                wasm32::unreachable()
            }
            "length-then-work" => length_then_work(&target, out),
            // Each chunk begins with the nanoseconds since 1970 when it was made, in 20 digits.
            "stamps" => {
                let body = reply::head(out, 200);
                let mut stream = body.write().expect("a new body has its stream");
                let mut chunk = vec![b' '; 64 << 10];
                for _ in 0..target.number("n", 1) {
                    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
                    let stamp = format!("{:020}", now.as_nanos());
                    chunk[..stamp.len()].copy_from_slice(stamp.as_bytes());
                    if !reply::send(&mut stream, &chunk) {
                        return;
                    }
                }
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            "impatient" => {
                let end = match impatient(&target) {
                    Ok(bytes) => format!("{bytes} bytes\n"),
                    Err(why) => format!("error: {why}\n"),
                };
                reply::text(out, 200, &end);
            }
            "no-response" => {}
            "recurse" => {
                let depth = recurse(target.number("n", 1));
                reply::text(out, 200, &format!("{depth}\n"));
            }
            // Resources that are never given back, of `kb` KiB each: the host holds what is in them.
            "hoard" => {
                let value = vec![b'a'; usize::try_from(target.number("kb", 1) << 10).expect("fits")];
                for _ in 0..target.number("n", 1) {
                    let fields = Fields::new();
                    let _ = fields.append("x", &value);
                    std::mem::forget(fields);
                }
                reply::text(out, 200, "hoarded\n");
            }
            "headers" => {
                let value = vec![b'a'; usize::try_from(target.number("kb", 1) << 10).expect("fits")];
                let headers = Fields::new();
                for _ in 0..target.number("n", 1) {
                    // What is not taken is left out.
                    let _ = headers.append("x", &value);
                }
                let response = OutgoingResponse::new(headers);
                let body = response.body().expect("a new response has its body");
                ResponseOutparam::set(out, Ok(response));
                let _ = OutgoingBody::finish(body, None);
            }
            "line" => {
                let bytes = usize::try_from(target.number("mb", 1) << 20).expect("fits");
                println!("{}", "x".repeat(bytes));
                reply::text(out, 200, "printed\n");
            }
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

/// Calls itself `left` times.
#[inline(never)]
fn recurse(left: u64) -> u64 {
    match black_box(left) {
        0 => 0,
        left => 1 + black_box(recurse(left - 1)),
    }
}

/// What `/stain` leaves behind.
const STAIN: u64 = 0x5ec2_e7da_7a5e_c2e7;

/// Memory that this call has not written: the deep end of the stack, and `mb` MiB of new pages.
fn unused(mb: u64) -> [&'static mut [u64]; 2] {
    // The stack grows down to 0; what is called from here stays within 64 KiB.
    let here = 0u8;
    let stack_end = (&raw const here).addr() - (64 << 10);
    let pages = usize::try_from(mb << 4).expect("fits a 32-bit memory");
    let grown = wasm32::memory_grow::<0>(pages);
    assert_ne!(grown, usize::MAX, "the memory was not given");
    [1024..stack_end, grown << 16..(grown + pages) << 16].map(|bytes| {
        let start = std::ptr::with_exposed_provenance_mut::<u64>(bytes.start);
        // SAFETY: both ranges lie in the memory, start on a multiple of 8, and hold nothing of ours.
        unsafe { std::slice::from_raw_parts_mut(start, bytes.len() / 8) }
    })
}

fn stains(areas: &[&mut [u64]]) -> usize {
    let words = areas.iter().flat_map(|area| area.iter());
    words.filter(|word| **word == STAIN).count()
}

/// Announces a length, sends that much, and goes on: `ms` later it prints `worked KEY`.
///
/// With the status 204 there is no body at all.
fn length_then_work(target: &Target, out: ResponseOutparam) {
    let status = u16::try_from(target.number("code", 200)).unwrap_or(500);
    let content: &[u8] = if status == 204 { b"" } else { b"done\n" };
    let headers = Fields::new();
    if status != 204 {
        let length = content.len().to_string();
        let _ = headers.append("content-length", length.as_bytes());
    }
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let body = response.body().expect("a new response has its body");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("a new body has its stream");
    let _ = reply::send(&mut stream, content);
    drop(stream);
    reply::sleep(target.number("ms", 0));
    println!("worked {}", target.param("key").unwrap_or_default());
    let _ = OutgoingBody::finish(body, None);
}

/// The bytes of `http://AUTHORITY/`, waiting at most `ms` for the next of them.
fn impatient(target: &Target) -> Result<usize, String> {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(target.param("authority"));
    let _ = request.set_path_with_query(Some("/"));
    let options = RequestOptions::new();
    let nanos = target.number("ms", 100).saturating_mul(1_000_000);
    let _ = options.set_between_bytes_timeout(Some(nanos));
    let failed = |code: ErrorCode| format!("{code:?}");
    let response = outgoing_handler::handle(request, Some(options)).map_err(failed)?;
    response.subscribe().block();
    let response = response.get().expect("ready after waiting");
    let response = response.expect("taken once").map_err(failed)?;
    let body = response.consume().expect("a response gives its body once");
    let input = body.stream().expect("a body gives its stream once");
    let mut bytes = 0;
    loop {
        match input.blocking_read(64 << 10) {
            Ok(chunk) => bytes += chunk.len(),
            Err(StreamError::Closed) => return Ok(bytes),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(error.to_debug_string());
            }
        }
    }
}
