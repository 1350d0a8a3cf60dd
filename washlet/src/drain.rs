//! Who owns tasks, and how they end. The only place of this crate that spawns.

use std::future::Future;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Owns tasks: tells them to stop, waits until they have.
///
/// Shape: clones are the same owner; a [`child`](Drain::child) is told to stop when its parent is, but is
/// waited for on its own.
#[derive(Clone)]
pub struct Drain {
    runtime: Handle,
    token: CancellationToken,
    tracker: TaskTracker,
}

/// Tasks were still running when the grace period ended.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
#[error("{tasks} tasks still running after {grace:?}")]
pub struct Overdue {
    /// How many.
    pub tasks: usize,
    /// How long they had.
    pub grace: Duration,
}

impl Drain {
    /// Tasks run on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    /// An owner that stops when this one does, on the same runtime.
    pub fn child(&self) -> Self {
        self.child_on(self.runtime.clone())
    }

    /// An owner that stops when this one does, with its tasks on `runtime`.
    pub fn child_on(&self, runtime: Handle) -> Self {
        Self {
            runtime,
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
        }
    }

    /// Runs `task` until it ends by itself; it is expected to watch [`stopping`](Drain::stopping).
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let span = tracing::debug_span!("task", name);
        self.tracker.spawn_on(task.instrument(span), &self.runtime);
    }

    /// Tells every task to stop.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Whether the tasks were told to stop.
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when the tasks are told to stop.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Tells every task to stop and waits for them.
    ///
    /// # Errors
    /// [`Overdue`] when some still run after `grace`; they are left to themselves.
    pub async fn drain(&self, grace: Duration) -> Result<(), Overdue> {
        self.stop();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .map_err(|_| Overdue {
                tasks: self.tracker.len(),
                grace,
            })
    }
}
