//! Commands in, replies out.

pub mod nats;
