//! What one `workload.start` starts: the checked request, its state, and the task that owns it.
//!
//! ```text
//!            start                  ready
//! (absent) ─────────► Starting ───────────► Running
//!     ▲                │    │ cause            │ stop
//!     │           stop │    ▼                  ▼
//!     └────────────────┴─ Failed ─ stop ─► Stopping ─► (absent)
//!                           │ start
//!                           └──────────► Starting
//! ```
//! A workload's task is the only writer of its state; everybody else reads a `watch`. A failed workload
//! keeps its place, so that its cause can be asked for, until it is stopped or started again.

pub(crate) mod actor;
mod redelivery;
pub mod sealed;
pub mod spec;

use std::fmt;
use subjects::wire::WorkloadState;

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Images are pulled, compiled and linked.
    Starting,
    /// Every export is attached: it can be reached.
    Running,
    /// Nothing new is taken; calls in flight finish.
    Stopping,
    /// It could not start, for this reason.
    Failed(String),
    /// Nothing of it is left.
    Gone,
}

impl State {
    /// The same on the wire.
    pub fn wire(&self) -> WorkloadState {
        match self {
            Self::Starting => WorkloadState::Starting,
            Self::Running => WorkloadState::Running,
            Self::Stopping => WorkloadState::Stopping,
            Self::Failed(_) => WorkloadState::Error,
            Self::Gone => WorkloadState::NotFound,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("Workload is Starting"),
            Self::Running => f.write_str("Workload is Running"),
            Self::Stopping => f.write_str("Workload is Stopping"),
            Self::Failed(cause) => write!(f, "Workload is Error: {cause}"),
            Self::Gone => f.write_str("Workload not found"),
        }
    }
}
