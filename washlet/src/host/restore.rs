//! After a restart: what ran before runs again, and what was moved elsewhere meanwhile goes.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subjects::{WorkloadId, wire};

use super::{Entry, Host};
use crate::health::Restoring;
use crate::journal;
use crate::workload::State;

/// The first and the longest pause before a restored workload that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Workloads that run because they did before the restart, and that nobody asked for since.
#[derive(Default)]
pub(super) struct Restored {
    ids: BTreeSet<WorkloadId>,
    /// When an operator first showed that it knows of this host.
    probed: Option<Instant>,
}

impl Host {
    /// Starts what ran before, each by a task of its own that tries again while it fails.
    pub fn restore(&self, entries: Vec<journal::Entry>) {
        if entries.is_empty() {
            return;
        }
        let workloads = entries.len();
        tracing::info!(workloads, "starting what ran before the restart");
        for journal::Entry { id, workload } in entries {
            self.restored().ids.insert(id.clone());
            let (host, restoring) = (self.clone(), self.0.health.restoring());
            let keep_up = async move { host.keep_up(id, workload, restoring).await };
            self.0.control.spawn("restore", keep_up);
        }
    }

    /// Starts a workload until it runs, or somebody else decides about it.
    async fn keep_up(&self, id: WorkloadId, workload: wire::Workload, restoring: Restoring) {
        let mut restoring = Some(restoring);
        let failed = |state: &State| matches!(state, State::Failed(_));
        let mut pause = RETRY.0;
        loop {
            let mut state = match self.register(&id, workload.clone(), None) {
                Ok((state, _)) => state,
                Err(error) => {
                    let error = capabilities::report(&error);
                    tracing::warn!(%id, error, "what ran before the restart cannot be started");
                    return;
                }
            };
            let settled = state.wait_for(|state| *state != State::Starting).await;
            // Whichever way: one that fails is not what the others wait for.
            drop(restoring.take());
            if !settled.is_ok_and(|state| failed(&state)) {
                return;
            }
            // Not all that ran before at the same time. Every RandomState has keys of its own.
            let chance = RandomState::new().build_hasher().finish() % 1_000;
            let pause_now = pause / 2 + (pause / 2).mul_f64(chance as f64 / 1_000.0);
            tokio::select! {
                () = tokio::time::sleep(pause_now) => {}
                () = self.0.draining.stopping() => return,
            }
            let still = |entry: &Entry| failed(&entry.state.borrow());
            if !self.table().get(&id).is_some_and(still) {
                return;
            }
            pause = pause.saturating_mul(2).min(RETRY.1);
        }
    }

    /// Somebody knows of this workload.
    pub(crate) fn confirm(&self, id: &WorkloadId) {
        self.restored().ids.remove(id);
    }

    /// An operator probes this host: what it never asked for, though it had the time, it moved elsewhere.
    pub(crate) fn probed(&self) {
        let orphans = {
            let mut restored = self.restored();
            if restored.ids.is_empty() {
                return;
            }
            let since = *restored.probed.get_or_insert_with(Instant::now);
            if since.elapsed() < self.0.orphan_after {
                return;
            }
            std::mem::take(&mut restored.ids)
        };
        let host = self.clone();
        self.0.control.spawn("orphans", async move {
            for id in orphans {
                let after = host.0.orphan_after;
                tracing::warn!(
                    %id, ?after,
                    "stopping what ran before the restart: the operator did not ask for it"
                );
                host.stop(&id).await;
            }
        });
    }

    fn restored(&self) -> MutexGuard<'_, Restored> {
        let restored = self.0.restored.lock();
        restored.unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of `id` is on disk, or the log says why not.
    pub(super) async fn keep(&self, id: &WorkloadId) {
        if let Some(journal) = &self.0.journal
            && let Err(error) = journal.flush(id).await
        {
            let error = capabilities::report(&error);
            tracing::warn!(%id, error, "a restart of this host will not know of this command");
        }
    }

    /// Notes that `id` is to be gone after a restart, too; `false` without a journal.
    pub(super) fn unwant(&self, id: &WorkloadId) -> bool {
        // Whatever is known to be there: the start may be on its way to the disk at this moment.
        let journal = self.0.journal.as_ref();
        journal.inspect(|journal| journal.want(id, None)).is_some()
    }
}
