//! After a restart: what ran before runs again, and what was moved elsewhere meanwhile goes.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use subjects::{WorkloadId, wire};
use tokio::time::Instant;

use super::{Host, StartError};
use crate::journal;
use crate::workload::{State, progress};

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
    /// Starts what ran before.
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
            match self.register_again(&id, workload) {
                Ok(Some(state)) => self.0.control.spawn("restore", async move {
                    let settled = state.wait_for(|state| *state != State::Starting);
                    // An error: its task ended, and with it the wait.
                    let _ = settled.await;
                    // Whichever way: one that fails is not what the others wait for.
                    drop(restoring);
                }),
                Ok(None) => {}
                Err(error) => {
                    let error = capabilities::report(&error);
                    tracing::warn!(%id, error, "what ran before the restart cannot be started");
                }
            }
        }
    }

    /// Registers what ran before; `None` when a command came between, which is looked at under the lock under
    /// which commands act.
    fn register_again(
        &self,
        id: &WorkloadId,
        workload: wire::Workload,
    ) -> Result<Option<progress::Receiver>, StartError> {
        let spec = self.spec(id, workload)?;
        let table = self.table();
        let journal = self.0.journal.as_ref();
        let wanted = journal.is_some_and(|journal| journal.wants(id));
        match wanted && !table.contains_key(id) {
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
