//! Tries `wasi:sockets` and says what came of it, in status 200.
//!
//! `/connect?addr=IPV4:PORT` answers `connected`, `/lookup?name=NAME` one address a line; a failure is
//! `error: ` with the call and the error code, as in `error: start-connect: access-denied`.

use std::net::SocketAddrV4;

use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

struct Sockets;

wasip2::http::proxy::export!(Sockets);

impl Guest for Sockets {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let tried = match target.path.as_str() {
            "connect" => connect(target.param("addr").unwrap_or("127.0.0.1:1")),
            "lookup" => lookup(target.param("name").unwrap_or("localhost")),
            _ => return reply::text(out, 404, "not found\n"),
        };
        let text = tried.unwrap_or_else(|(call, code)| format!("error: {call}: {}\n", code.name()));
        reply::text(out, 200, &text);
    }
}

type Tried = Result<String, (&'static str, ErrorCode)>;

fn connect(address: &str) -> Tried {
    let address: SocketAddrV4 = address
        .parse()
        .map_err(|_| ("parse", ErrorCode::InvalidArgument))?;
    let [a, b, c, d] = address.ip().octets();
    let remote = Ipv4SocketAddress {
        port: address.port(),
        address: (a, b, c, d),
    };

    let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(|e| ("create-tcp-socket", e))?;
    socket
        .start_connect(&instance_network(), IpSocketAddress::Ipv4(remote))
        .map_err(|e| ("start-connect", e))?;
    loop {
        match socket.finish_connect() {
            Ok(_) => return Ok("connected\n".to_owned()),
            Err(ErrorCode::WouldBlock) => socket.subscribe().block(),
            Err(code) => return Err(("finish-connect", code)),
        }
    }
}

fn lookup(name: &str) -> Tried {
    let found =
        resolve_addresses(&instance_network(), name).map_err(|e| ("resolve-addresses", e))?;
    let mut lines = String::new();
    loop {
        match found.resolve_next_address() {
            Ok(Some(address)) => lines.push_str(&format!("{address:?}\n")),
            Ok(None) => return Ok(lines),
            Err(ErrorCode::WouldBlock) => found.subscribe().block(),
            Err(code) => return Err(("resolve-next-address", code)),
        }
    }
}
