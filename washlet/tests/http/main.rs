//! The HTTP listener, from outside: real sockets, with targets that are plain Rust.

mod answers;
mod drain;
mod limits;
mod support;
mod tls;
