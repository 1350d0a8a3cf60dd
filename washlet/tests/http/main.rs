//! The HTTP listener, from outside: real sockets, with targets that are plain Rust.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod answers;
mod drain;
mod hostile;
mod limits;
mod support;
mod tls;
