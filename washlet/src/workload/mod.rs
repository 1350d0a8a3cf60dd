//! What one `workload.start` starts: the checked request, its state, and the task that owns it.
//!
//! ```text
//!            start                  ready
//! (absent) ─────────► Starting ───────────► Running
//!     ▲                │    │ cause            │ stop
//!     │           stop │    ▼                  ▼
//!     └────────────────┴─ Failed ─ stop ─► Stopping ─► (absent)
//!                        ▲  │ pause, or start
//!          Running ──────┘  └──────────► Starting
//!        a part fails
//! ```
//! A workload's task is the only writer of its state; everybody else reads it by `progress`. A failed workload
//! keeps its place and is started again (`host/retry.rs`), until it is stopped.

pub(crate) mod actor;
pub(crate) mod progress;
mod redelivery;
pub mod sealed;
pub mod spec;

use std::fmt;
use subjects::wire::WorkloadState;
use time::OffsetDateTime;
use tokio::time::Instant;

use actor::{InFlight, Resolved};

/// Why a workload does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words, with all there is to know.
    pub cause: String,
    /// Attempts that failed in a row.
    pub attempts: u32,
    /// When it is started again; `None`: this host does not by itself.
    pub next: Option<Instant>,
}

impl Failure {
    /// One after which nothing more is tried.
    pub(crate) fn last(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            attempts: 1,
            next: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        let Some(next) = self.next else { return Ok(()) };
        let left = next.saturating_duration_since(Instant::now());
        let seconds = left.as_secs_f64().ceil();
        write!(f, "; attempt {}, next in {seconds} s", self.attempts)
    }
}

/// What else others may know of a workload.
#[derive(Clone)]
pub(crate) struct Course {
    /// What it runs.
    pub(crate) components: Vec<Resolved>,
    /// Its calls.
    pub(crate) in_flight: InFlight,
    /// Attempts that failed in a row, before the one under way.
    pub(crate) attempts: u32,
    /// Why the last of them did; empty without one.
    pub(crate) reason: String,
    /// When its state last changed.
    pub(crate) changed_at: OffsetDateTime,
    /// When it is started again, if it has failed.
    pub(crate) next_at: Option<OffsetDateTime>,
}

impl Course {
    pub(crate) fn new() -> Self {
        Self {
            components: Vec::new(),
            in_flight: InFlight::default(),
            attempts: 0,
            reason: String::new(),
            changed_at: OffsetDateTime::now_utc(),
            next_at: None,
        }
    }
}

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Images are pulled, compiled and linked.
    Starting,
    /// Every export is attached: it can be reached.
    Running,
    /// Nothing new is taken; calls in flight finish.
    Stopping,
    /// It could not start, or a part of it failed.
    Failed(Failure),
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
            Self::Failed(failure) => write!(f, "Workload is Error: {failure}"),
            Self::Gone => f.write_str("Workload not found"),
        }
    }
}
