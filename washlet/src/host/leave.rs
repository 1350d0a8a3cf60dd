//! A host that takes no new workloads, and one that leaves: cordon, handover, drain.
//!
//! A cordon is a file in the state directory, so that it outlasts a restart. Only `uncordon` takes it away,
//! as in Kubernetes; what runs goes on, and what a file or the journal says is started all the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use subjects::control::PLACEMENT_ANNOTATION;
use subjects::{WorkloadId, wire};
use tokio::sync::watch;

use super::Host;
use crate::identity::write_durably;
use crate::journal;

/// Entries of moved workloads that are taken out of the journal at once.
const FORGOTTEN_AT_ONCE: usize = 64;

/// Whether the host takes work, and whether it was told to leave.
pub(super) struct Leaving {
    cordon: Arc<Cordon>,
    drain: watch::Sender<Option<Duration>>,
}

/// Shape: what is on disk follows what is in memory.
struct Cordon {
    set: AtomicBool,
    /// `None` without a directory that lasts.
    state: Option<PathBuf>,
    writing: Mutex<()>,
}

/// Why a cordon does not outlast a restart, or the host does not leave, or hands nothing over.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum LeaveError {
    /// It is in force, and a restart forgets it.
    #[error("the host is {now}, but a restart would forget it: \"{}\" cannot be changed", path.display())]
    Cordon {
        /// Cordoned or uncordoned.
        now: &'static str,
        /// The file that says so.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Calls would be cut earlier than asked for.
    #[error(
        "a deadline of {asked:?} is longer than the {grace:?} this host was started with: ask for less, or start it with more --grace"
    )]
    Deadline {
        /// What was asked for.
        asked: Duration,
        /// What the host has.
        grace: Duration,
    },
    /// A restart would run what runs elsewhere by now.
    #[error("the host stays: a restart of it would start \"{id}\" again")]
    Forget {
        /// The workload.
        id: WorkloadId,
        /// Why.
        #[source]
        source: journal::Error,
    },
    /// It may still get work, so nothing of it is given away.
    #[error("only a cordoned host hands workloads over: cordon it first")]
    NotCordoned,
    /// There is no such workload.
    #[error("Workload not found: {0}")]
    NotFound(WorkloadId),
    /// Whoever started it places it.
    #[error(
        "workload \"{0}\" is not to be moved: it has no annotation {PLACEMENT_ANNOTATION}, so whoever started it places it"
    )]
    NotMovable(WorkloadId),
    /// Only the journal has what it was started with.
    #[error("workload \"{0}\" cannot be handed over: this host has no journal entry of it")]
    NotJournaled(WorkloadId),
}

impl Leaving {
    pub(super) fn new(state: Option<PathBuf>) -> Self {
        let set = state.as_deref().is_some_and(|state| {
            // Rather none too many than work for a host that is to have none.
            file(state).try_exists().unwrap_or(true)
        });
        if set {
            tracing::warn!("the host is cordoned: it takes no new workloads");
        }
        Self {
            cordon: Arc::new(Cordon {
                set: AtomicBool::new(set),
                state,
                writing: Mutex::default(),
            }),
            drain: watch::Sender::new(None),
        }
    }
}

fn file(state: &Path) -> PathBuf {
    state.join("cordoned")
}

impl Cordon {
    /// Puts on disk what holds at this moment. Blocks.
    fn keep(&self) -> Result<(), LeaveError> {
        let Some(state) = &self.state else {
            return Ok(());
        };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file(state);
        let set = self.set.load(Ordering::SeqCst);
        let done = match set {
            true => write_durably(state, &path, b""),
            false => match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| fs::File::open(state)?.sync_all()),
            },
        };
        let now = if set { "cordoned" } else { "uncordoned" };
        done.map_err(|source| LeaveError::Cordon { now, path, source })
    }
}

impl Host {
    /// Takes no new workloads from now on, or takes them again; also after a restart.
    ///
    /// Source: `runtime.host.<id>.host.cordon` and `.uncordon`.
    ///
    /// # Errors
    /// [`LeaveError::Cordon`]; it holds until the process ends all the same.
    pub async fn cordon(&self, cordoned: bool) -> Result<wire::HostState, LeaveError> {
        let cordon = Arc::clone(&self.0.leaving.cordon);
        // Before the first wait, so in the order of commands.
        cordon.set.store(cordoned, Ordering::SeqCst);
        tracing::info!(cordoned, "told whether to take new workloads");
        let keep = tokio::task::spawn_blocking(move || cordon.keep());
        if let Ok(kept) = keep.await {
            kept.inspect_err(|error| {
                let error = capabilities::report(error);
                tracing::warn!(error, "a restart forgets whether the host is cordoned");
            })?;
        }
        Ok(self.state(match cordoned {
            true => "the host takes no new workloads; what runs goes on",
            false => "the host takes new workloads",
        }))
    }

    /// Whether it takes no new workloads.
    pub fn is_cordoned(&self) -> bool {
        self.0.leaving.cordon.set.load(Ordering::SeqCst)
    }

    /// Has whoever runs this host drain it, within `deadline`, and forgets what was `moved` elsewhere.
    ///
    /// Source: `runtime.host.<id>.host.drain`.
    ///
    /// # Errors
    /// [`LeaveError::Deadline`], [`LeaveError::Forget`]; then the host stays.
    pub async fn leave(
        &self,
        deadline: Option<Duration>,
        moved: Vec<WorkloadId>,
    ) -> Result<wire::HostState, LeaveError> {
        let grace = self.0.shared.limits.grace;
        let deadline = deadline.unwrap_or(grace);
        if deadline > grace {
            return Err(LeaveError::Deadline {
                asked: deadline,
                grace,
            });
        }
        let forget = stream::iter(moved).map(|id| async move {
            let noted = {
                // Under the lock, as every command.
                let _table = self.table();
                self.unwant(&id)
            };
            match noted {
                true => self
                    .keep(&id)
                    .await
                    .map_err(|source| LeaveError::Forget { id, source }),
                false => Ok(()),
            }
        });
        let forgotten: Vec<_> = forget.buffer_unordered(FORGOTTEN_AT_ONCE).collect().await;
        forgotten.into_iter().collect::<Result<(), _>>()?;
        self.0.leaving.drain.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(deadline);
            first
        });
        tracing::info!(?deadline, "told to drain");
        let mut state = self.state("the host drains: it says goodbye, finishes its calls and ends");
        state.draining = true;
        state.deadline_seconds = self.deadline().unwrap_or(deadline).as_secs();
        Ok(state)
    }

    /// Completes when somebody has asked this host to leave.
    pub async fn told_to_leave(&self) {
        let mut asked = self.0.leaving.drain.subscribe();
        // The sender lives as long as the host.
        let _ = asked.wait_for(Option::is_some).await;
    }

    /// How long a drain that was asked for may take.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        *self.0.leaving.drain.borrow()
    }

    /// What `id` was started with, to be started on another host.
    ///
    /// Shape: holds secrets, and so has a subject of its own; only what `wash` has marked as movable, and
    /// only of a cordoned host.
    /// Source: `runtime.host.<id>.workload.handover`.
    ///
    /// # Errors
    /// [`LeaveError`].
    pub async fn hand_over(&self, id: &WorkloadId) -> Result<wire::WorkloadHandover, LeaveError> {
        if !self.is_cordoned() {
            return Err(LeaveError::NotCordoned);
        }
        {
            let table = self.table();
            let entry = table.get(id);
            let entry = entry.ok_or_else(|| LeaveError::NotFound(id.clone()))?;
            if !entry.spec.annotations.contains_key(PLACEMENT_ANNOTATION) {
                return Err(LeaveError::NotMovable(id.clone()));
            }
        }
        let missing = || LeaveError::NotJournaled(id.clone());
        let journal = self.0.journal.clone().ok_or_else(missing)?;
        let asked = id.clone();
        let found = tokio::task::spawn_blocking(move || journal.find(&asked)).await;
        let workload = found.ok().flatten().ok_or_else(missing)?;
        Ok(wire::WorkloadHandover {
            start: Some(wire::WorkloadStartRequest {
                workload_id: id.to_string(),
                workload: Some(workload),
            }),
        })
    }

    fn state(&self, message: &str) -> wire::HostState {
        let calls_in_flight = self.busy().iter().map(|busy| busy.in_flight.count()).sum();
        wire::HostState {
            id: self.id().to_string(),
            cordoned: self.is_cordoned(),
            draining: self.deadline().is_some() || self.0.draining.is_stopping(),
            workloads: self.table().len() as u64,
            calls_in_flight,
            message: message.to_owned(),
            ..wire::HostState::default()
        }
    }
}
