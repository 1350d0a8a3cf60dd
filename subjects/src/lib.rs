//! Every NATS subject a washlet speaks, and the message on it.
//!
//! | subject | direction | pattern | message |
//! |---|---|---|---|
//! | `runtime.operator.heartbeat.<host>` | host → all | publish | [`HostHeartbeat`](wire::HostHeartbeat) |
//! | `runtime.host.<host>.heartbeat` | → host | request | empty → [`HostHeartbeat`](wire::HostHeartbeat) |
//! | `runtime.host.<host>.workload.start` | → host | request | [`WorkloadStartRequest`](wire::WorkloadStartRequest) → [`WorkloadStartResponse`](wire::WorkloadStartResponse) |
//! | `runtime.host.<host>.workload.status` | → host | request | [`WorkloadStatusRequest`](wire::WorkloadStatusRequest) → [`WorkloadStatusResponse`](wire::WorkloadStatusResponse) |
//! | `runtime.host.<host>.workload.stop` | → host | request | [`WorkloadStopRequest`](wire::WorkloadStopRequest) → [`WorkloadStopResponse`](wire::WorkloadStopResponse) |
//! | `runtime.host.<host>.workload.list` | → host | request | empty → [`WorkloadList`](wire::WorkloadList) |
//! | `runtime.host.<host>.workload.inspect` | → host | request | [`WorkloadInspectRequest`](wire::WorkloadInspectRequest) → [`WorkloadInspect`](wire::WorkloadInspect) |
//! | `runtime.host.<host>.workload.handover` | → host | request | [`WorkloadHandoverRequest`](wire::WorkloadHandoverRequest) → [`WorkloadHandover`](wire::WorkloadHandover) |
//! | `runtime.host.<host>.host.{cordon,uncordon}` | → host | request | empty → [`HostState`](wire::HostState) |
//! | `runtime.host.<host>.host.drain` | → host | request | [`HostDrainRequest`](wire::HostDrainRequest) or empty → [`HostState`](wire::HostState) |
//! | `washlet.ping` | → all hosts | scatter request | empty → [`HostHeartbeat`](wire::HostHeartbeat) from each |
//! | `washlet.event.<host>.{started,goodbye}` | host → all | publish | [`HostEvent`](wire::HostEvent) |
//! | `washlet.event.<host>.pressure` | host → all | publish | [`HostEvent`](wire::HostEvent) |
//! | `washlet.event.<host>.{draining,workload}` | host → all | publish | reserved; not published yet |
//!
//! The first five are wasmCloud's; an operator refuses fields it does not know on them, so nothing
//! is ever added to their messages. The others are ours.
//!
//! Invariant: this crate does no I/O and depends on no other crate of the workspace.

pub mod control;
mod id;
pub mod wire;

pub use id::{Error as IdError, HostId, WorkloadId};

/// `text` fit for an error: escaped and at most 64 characters, because it came from a stranger.
fn clip(text: &str) -> String {
    let mut chars = text.chars();
    let mut clipped: String = chars
        .by_ref()
        .take(64)
        .flat_map(char::escape_debug)
        .collect();
    if chars.next().is_some() {
        clipped.push('…');
    }
    clipped
}
