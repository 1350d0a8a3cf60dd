//! Imports an interface that no host serves, so its start must be refused with the import's name.

use bindings::acme::missing::thing;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package acme:missing@1.0.0;
            interface thing {
                name: func() -> string;
            }
            world imports {
                import thing;
            }
        ",
    });
}

struct Unserved;

wasip2::http::proxy::export!(Unserved);

impl Guest for Unserved {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        reply::text(out, 200, &thing::name());
    }
}
