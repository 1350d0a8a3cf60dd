//! After a restart: what ran before runs again, and what was moved elsewhere meanwhile goes.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use subjects::{WorkloadId, wire};
use tokio::sync::watch;

use super::{Host, StartError};
use crate::health::Restoring;
use crate::journal;
use crate::workload::State;

/// The first and the longest pause before a restored workload that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// An operator that probes less often than this was away: what it did not ask for meanwhile says nothing.
/// Units: operators probe once a minute.
const PROBES_APART_MAX: Duration = Duration::from_secs(150);

/// Orphans that are stopped at once.
const ORPHANS_AT_ONCE: usize = 64;

/// Workloads that run because they did before the restart, and that nobody asked for since.
#[derive(Default)]
pub(super) struct Restored {
    ids: BTreeSet<WorkloadId>,
    /// Since when an operator has probed this host, without being away, and when it last did.
    probed: Option<(Instant, Instant)>,
    /// Orphans are being stopped.
    stopping: bool,
}

impl Restored {
    /// An operator probes at `now`; whether it has done so for `after`, and so knows what it wants.
    fn probe(&mut self, now: Instant, after: Duration) -> bool {
        let (since, last) = self.probed.get_or_insert((now, now));
        if now.saturating_duration_since(*last) > PROBES_APART_MAX {
            *since = now;
        }
        *last = now;
        now.saturating_duration_since(*since) >= after
    }
}

impl Host {
    /// Starts what ran before, each by a task of its own that tries again while it fails.
    ///
    /// Shape: all of it is registered when this returns, so that no command finds it missing.
    pub fn restore(&self, entries: Vec<journal::Entry>) {
        if entries.is_empty() {
            return;
        }
        let workloads = entries.len();
        tracing::info!(workloads, "starting what ran before the restart");
        for journal::Entry { id, workload } in entries {
            self.restored().ids.insert(id.clone());
            let restoring = self.0.health.restoring();
            if let Some(state) = self.registered(&id, &workload, None) {
                let host = self.clone();
                let keep_up = async move { host.keep_up(id, workload, state, restoring).await };
                self.0.control.spawn("restore", keep_up);
            }
        }
    }

    /// Tries to start a workload until it runs, or somebody else decides about it.
    async fn keep_up(
        &self,
        id: WorkloadId,
        workload: wire::Workload,
        mut state: watch::Receiver<State>,
        restoring: Restoring,
    ) {
        let mut restoring = Some(restoring);
        let failed = |state: &State| matches!(state, State::Failed(_));
        let mut pause = RETRY.0;
        loop {
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
            match self.registered(&id, &workload, Some(&state)) {
                Some(again) => state = again,
                None => return,
            }
            pause = pause.saturating_mul(2).min(RETRY.1);
        }
    }

    /// As [`register_again`](Self::register_again); the log says why it cannot be.
    fn registered(
        &self,
        id: &WorkloadId,
        workload: &wire::Workload,
        before: Option<&watch::Receiver<State>>,
    ) -> Option<watch::Receiver<State>> {
        let registered = self.register_again(id, workload.clone(), before);
        registered.unwrap_or_else(|error| {
            let error = capabilities::report(&error);
            tracing::warn!(%id, error, "what ran before the restart cannot be started");
            None
        })
    }

    /// Registers what ran before, for the first time or after the try that left `before`; `None` when a
    /// command came between, which is looked at under the lock under which commands act.
    fn register_again(
        &self,
        id: &WorkloadId,
        workload: wire::Workload,
        before: Option<&watch::Receiver<State>>,
    ) -> Result<Option<watch::Receiver<State>>, StartError> {
        let spec = self.spec(id, workload)?;
        let table = self.table();
        let journal = self.0.journal.as_ref();
        let wanted = journal.is_some_and(|journal| journal.wants(id));
        let ours = match (table.get(id), before) {
            (None, None) => true,
            (Some(entry), Some(before)) => {
                entry.state.same_channel(before)
                    && !entry.stop.is_cancelled()
                    && entry.coming().is_none()
                    && matches!(*entry.state.borrow(), State::Failed(_))
            }
            _ => false,
        };
        match wanted && ours {
            true => self.insert(table, spec, true, || {}).map(Some),
            false => Ok(None),
        }
    }

    /// Somebody knows of this workload.
    pub(crate) fn confirm(&self, id: &WorkloadId) {
        self.restored().ids.remove(id);
    }

    /// An operator probes this host: what it never asked for, though it had the time, it moved elsewhere.
    pub(crate) fn probed(&self) {
        let orphans: Vec<_> = {
            let mut restored = self.restored();
            if restored.ids.is_empty() {
                return;
            }
            if !restored.probe(Instant::now(), self.0.orphan_after) || restored.stopping {
                return;
            }
            restored.stopping = true;
            restored.ids.iter().cloned().collect()
        };
        let host = self.clone();
        self.0.control.spawn("orphans", async move {
            let stops = stream::iter(orphans).for_each_concurrent(ORPHANS_AT_ONCE, async |id| {
                // Unless it was asked for meanwhile.
                if host.restored().ids.remove(&id) {
                    let after = host.0.orphan_after;
                    tracing::warn!(
                        %id, ?after,
                        "stopping what ran before the restart: the operator did not ask for it"
                    );
                    host.stop(&id).await;
                }
            });
            stops.await;
            host.restored().stopping = false;
        });
    }

    fn restored(&self) -> MutexGuard<'_, Restored> {
        let restored = self.0.restored.lock();
        restored.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what is wanted of `id` is on disk; the log says, too, why it is not.
    pub(super) async fn keep(&self, id: &WorkloadId) -> Result<(), journal::Error> {
        let Some(journal) = &self.0.journal else {
            return Ok(());
        };
        journal.flush(id).await.inspect_err(|error| {
            let error = capabilities::report(error);
            tracing::warn!(%id, error, "a command is not in the journal, and not acknowledged");
        })
    }

    /// Notes that `id` is to be gone after a restart, too; `false` without a journal.
    pub(super) fn unwant(&self, id: &WorkloadId) -> bool {
        // Whatever is known to be there: the start may be on its way to the disk at this moment.
        let journal = self.0.journal.as_ref();
        let journal = journal.filter(|journal| journal.knows(id));
        if let Some(journal) = journal {
            journal.want(id, None);
        }
        journal.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_that_was_away_has_the_time_again() {
        let (mut restored, begin) = (Restored::default(), Instant::now());
        let after = Duration::from_secs(300);
        let mut probe = |seconds| restored.probe(begin + Duration::from_secs(seconds), after);
        assert!(!probe(0));
        // An hour later: it did not see this host meanwhile.
        assert!(!probe(3_600));
        assert!((1..5).all(|minute| !probe(3_600 + 60 * minute)));
        assert!(probe(3_600 + 300));
    }

    #[test]
    fn an_operator_that_needs_no_time_is_believed() {
        assert!(Restored::default().probe(Instant::now(), Duration::ZERO));
    }
}
