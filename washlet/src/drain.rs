//! Who owns tasks, and how they end. The only place of this crate that spawns.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The runtimes that tasks run on, in turns. Shape: clones are the same.
#[derive(Clone)]
pub struct Lanes(Arc<(Vec<Handle>, AtomicUsize)>);

impl From<Handle> for Lanes {
    fn from(runtime: Handle) -> Self {
        Self(Arc::new((vec![runtime], AtomicUsize::new(0))))
    }
}

impl Lanes {
    /// `None` without a runtime.
    pub fn new(runtimes: Vec<Handle>) -> Option<Self> {
        (!runtimes.is_empty()).then(|| Self(Arc::new((runtimes, AtomicUsize::new(0)))))
    }

    /// The first of them.
    pub fn first(&self) -> Option<&Handle> {
        self.0.0.first()
    }

    fn next(&self) -> Option<&Handle> {
        let (runtimes, turn) = &*self.0;
        match runtimes.as_slice() {
            [only] => Some(only),
            _ => runtimes.get(turn.fetch_add(1, Ordering::Relaxed) % runtimes.len().max(1)),
        }
    }
}

/// Owns tasks: tells them to stop, waits until they have.
///
/// Shape: clones are the same owner; a [`child`](Drain::child) is told to stop when its parent is, but is
/// waited for on its own.
#[derive(Clone)]
pub struct Drain {
    lanes: Lanes,
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
    /// Tasks run on `lanes`, each on the next one.
    pub fn new(lanes: impl Into<Lanes>) -> Self {
        Self {
            lanes: lanes.into(),
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    /// An owner that stops when this one does, on the same runtimes.
    pub fn child(&self) -> Self {
        Self {
            lanes: self.lanes.clone(),
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
        }
    }

    /// Runs `task` until it ends by itself; it is expected to watch [`stopping`](Drain::stopping).
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // There is always one: an owner cannot be made without.
        if let Some(runtime) = self.lanes.next() {
            self.spawn_on_runtime(name, task, runtime);
        }
    }

    /// As [`spawn`](Drain::spawn), on the runtime of the task that calls.
    pub(crate) fn spawn_here(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_on_runtime(name, task, &Handle::current());
    }

    fn spawn_on_runtime(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        runtime: &Handle,
    ) {
        let span = tracing::debug_span!("task", name);
        self.tracker.spawn_on(task.instrument(span), runtime);
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
