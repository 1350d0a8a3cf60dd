//! New content for an id that is live: it comes up beside what runs, and then takes its place.
//!
//! ```text
//! runs A │ start with B: pull, compile, link, attach B │ journal: B instead of A │ B in the table, A ends
//!        └──────────── fails, is stopped, or the host restarts: A goes on ───────┘
//! ```
//! Until B is in the journal, A is what was asked for: whatever happens before leaves A as it was. Requests
//! and messages of a moment go to either; calls that A has begun have their usual grace.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use futures::future::BoxFuture;
use subjects::WorkloadId;

use super::{Entry, Host, StartError};
use crate::journal;
use crate::workload::spec::WorkloadSpec;
use crate::workload::{State, progress};

/// What a workload that replaces another waits for between being reachable and being the one.
pub(crate) type Turn = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Whether a workload in `state` is what it will be.
pub(super) fn ended(state: &State) -> bool {
    matches!(state, State::Gone | State::Failed(_))
}

/// Waits until the workload of `state` is what it will be.
pub(super) async fn wait_ended(state: progress::Receiver) {
    // An error means that its task has ended.
    let _ = state.wait_for(ended).await;
}

impl Entry {
    /// Whether its task may still do something. Shape: one that panicked may not.
    pub(super) fn is_coming(&self) -> bool {
        !self.state.is(ended) && !self.state.has_ended()
    }

    /// What is coming up to replace it.
    pub(super) fn coming(&self) -> Option<&Entry> {
        self.next.as_deref().filter(|next| next.is_coming())
    }

    /// Tells it to stop, and what is to replace it or waits for its place.
    pub(super) fn cancel(&self) {
        self.stop.cancel();
        for other in [&self.next, &self.instead_of].into_iter().flatten() {
            other.stop.cancel();
        }
    }

    /// Everything of this id whose end a stop waits for.
    pub(super) fn states(&self) -> impl Iterator<Item = progress::Receiver> {
        let next = self.next.iter().map(|next| next.state.clone());
        let own = std::iter::once(self.state.clone());
        own.chain(next).chain(self.before.clone())
    }

    /// How far it is, as others see it.
    pub(super) fn shown(&self) -> State {
        let own = self.state.get();
        match own {
            State::Failed(_) if self.coming().is_some() => State::Starting,
            own => own,
        }
    }

    /// The same in words, with what comes of its replacement.
    pub(super) fn words(&self) -> String {
        let mut words = self.shown().to_string();
        let course = self.course.borrow();
        if course.attempts > 0 && self.state.is(|state| *state == State::Starting) {
            let (next, reason) = (course.attempts.saturating_add(1), &course.reason);
            words = format!("{words}; attempt {next}, after: {reason}");
        }
        drop(course);
        let next = self.next.as_ref().map(|next| next.state.get());
        match next {
            Some(State::Starting | State::Running) => {
                format!("{words}; its new content is being started")
            }
            Some(State::Failed(failure)) => {
                format!("{words}; its new content could not be started: {failure}")
            }
            _ => words,
        }
    }
}

impl Host {
    /// Brings up `spec` beside what lives under its id. Shape: what was coming up for it gives way.
    pub(super) fn replace(
        &self,
        mut table: MutexGuard<'_, BTreeMap<WorkloadId, Entry>>,
        spec: Arc<WorkloadSpec>,
        request: Option<Vec<u8>>,
    ) -> Result<progress::Receiver, StartError> {
        if self.0.draining.is_stopping() {
            return Err(StartError::Draining);
        }
        let id = spec.id.clone();
        let taken = || StartError::Exists(id.clone());
        let entry = table.get_mut(&id).ok_or_else(taken)?;
        if entry.stop.is_cancelled() {
            return Err(taken());
        }
        if let Some(next) = entry.coming() {
            if next.committing {
                return Err(taken());
            }
            next.stop.cancel();
        }
        tracing::info!(%id, workload = spec.name, "new content for a workload is being started");
        let (host, replaced) = (self.clone(), id.clone());
        let next = self.launch(spec, false, |state| {
            let turn = move || -> BoxFuture<'static, Result<(), String>> {
                Box::pin(async move { host.take_over(&replaced, &state, request).await })
            };
            Some(Box::new(turn) as Turn)
        });
        let state = next.state.clone();
        entry.next = Some(Box::new(next));
        Ok(state)
    }

    /// What came up with `state` to replace `id` is in the journal, and then in the table.
    async fn take_over(
        &self,
        id: &WorkloadId,
        state: &progress::Receiver,
        request: Option<Vec<u8>>,
    ) -> Result<(), String> {
        let stopped = || "it was stopped while starting".to_owned();
        let forgotten = |error: journal::Error| {
            let error = capabilities::report(&error);
            format!("a restart of this host would forget it: {error}")
        };
        // What runs is on disk before anything takes its place there, so that it can be put back.
        self.keep(id).await.map_err(forgotten)?;
        let number = {
            let mut table = self.table();
            let next = next(&mut table, id, state).ok_or_else(stopped)?;
            // From now on nothing but a stop comes between.
            next.committing = true;
            match (&self.0.journal, request) {
                (Some(journal), Some(request)) => Some(journal.want(id, Some(request))),
                _ => {
                    self.unwant(id);
                    None
                }
            }
        };
        if let Err(error) = self.keep(id).await {
            {
                let mut table = self.table();
                next(&mut table, id, state).ok_or_else(stopped)?.committing = false;
                if let (Some(journal), Some(number)) = (&self.0.journal, number) {
                    journal.give_up(id, number);
                }
            }
            // What goes on is what a restart is to bring back.
            let _ = self.keep(id).await;
            return Err(forgotten(error));
        }
        let mut table = self.table();
        let next = next(&mut table, id, state).ok_or_else(stopped)?;
        next.committing = false;
        if let Some(journal) = &self.0.journal {
            journal.settle(id);
        }
        let entry = table.get_mut(id).ok_or_else(stopped)?;
        let mut next = entry.next.take().ok_or_else(stopped)?;
        next.before = Some(entry.state.clone());
        std::mem::swap(&mut next.waiting, &mut entry.waiting);
        let old = std::mem::replace(entry, *next);
        old.cancel();
        Ok(())
    }
}

/// What is coming up for `id` with `state`, unless it was told to stop.
fn next<'a>(
    table: &'a mut BTreeMap<WorkloadId, Entry>,
    id: &WorkloadId,
    state: &progress::Receiver,
) -> Option<&'a mut Entry> {
    let next = table.get_mut(id)?.next.as_deref_mut()?;
    (next.state.same(state) && !next.stop.is_cancelled()).then_some(next)
}
