//! A host of WebAssembly components: workloads, artifacts, triggers, control plane.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | what a host is told before it starts |
//! | [`identity`], [`node`] | who it is: state directory, id, name; the machine's memory and CPU |
//! | `pressure` | what the machine is short of |
//! | [`artifact`] | image reference → verified bytes, by digest |
//! | [`workload`] | the checked start request, its states, and the task that owns it |
//! | [`health`], [`admin`] | how the host is: what is not ready, metrics |
//! | [`host`] | the table of workloads: start, stop, status, heartbeat |
//! | [`journal`] | what is to run, kept on disk |
//! | [`seal`] | values that only the hosts they are sealed to can open |
//! | [`trigger`] | what drives exports: HTTP, messages, and what a host is built with |
//! | [`control`] | NATS requests in, replies out |
//! | [`drain`] | who owns tasks; the only place that spawns |
//!
//! [`Washlet`] puts them together.

pub mod admin;
pub mod artifact;
pub mod config;
pub mod control;
pub mod drain;
pub mod health;
pub mod host;
pub mod identity;
pub mod journal;
pub mod node;
mod pressure;
pub mod seal;
#[cfg(test)]
mod simulation;
pub mod telemetry;
pub mod trigger;
mod washlet;
pub mod workload;

pub use washlet::{EngineOptions, Error, Washlet, check};
