//! Commands in, replies out: [`answer`] knows the host and no NATS, [`nats`] knows NATS and no host.

mod answer;
pub mod nats;
