//! What a call promises, with real guests: a fresh instance, bounded, that is given what was granted.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod background;
mod blobstore;
mod bodies;
mod compile;
mod courier;
mod egress;
mod export;
mod host;
mod hostile;
mod instances;
mod keyvalue;
mod limits;
mod link;
mod log;
mod named;
mod service;
mod sql;
mod warm;
