//! A host of WebAssembly components.

pub mod artifact;
pub mod config;
pub mod control;
pub mod drain;
pub mod identity;
pub mod node;
pub mod telemetry;
pub mod trigger;
