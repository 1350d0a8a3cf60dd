//! Grows its memory by one page of 64 KiB, fills it, and answers with a line: what any guest does
//! that allocates more than it was linked with.

use std::arch::wasm32;
use std::hint::black_box;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct Grow;

wasip2::http::proxy::export!(Grow);

const PAGE_BYTES: usize = 64 << 10;

impl Guest for Grow {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let page = wasm32::memory_grow::<0>(1);
        if page == usize::MAX {
            return reply::text(out, 500, "the memory was not given\n");
        }
        let start = std::ptr::with_exposed_provenance_mut::<u8>(page * PAGE_BYTES);
        // SAFETY: the page is new, so it is in the memory and nobody else's.
        let page = unsafe { std::slice::from_raw_parts_mut(start, PAGE_BYTES) };
        page.fill(1);
        black_box(page);
        reply::text(out, 200, "grown\n");
    }
}
