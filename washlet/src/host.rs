//! The host: the table of workloads, and what can be asked of it.
//!
//! Each workload is owned by a task of its own (`workload/actor.rs`); the table only knows how to tell it
//! to stop and where to read its state. The lock is never held across an `await`.

mod admit;
mod leave;
mod replace;
mod restore;
mod retry;

use capabilities::plugin::Plugins;
use engine::interface::Interfaces;
use engine::wit::Served;
use engine::{Engine, Used};
use futures::FutureExt;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use subjects::control::{CORDONED_LABEL, PRESSURE_LABEL, SEAL_KEY_LABEL};
use subjects::wire;
use subjects::{HostId, WorkloadId};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::artifact::Artifacts;
use crate::config::{Identity, Limits};
use crate::drain::Drain;
use crate::health::{Came, Health, Messages};
use crate::identity::friendly_name;
use crate::journal::{self, Journal};
use crate::node::{Node, Sample};
use crate::seal::SealKey;
use crate::trigger::Triggers;
use crate::trigger::http::Routes;
use crate::workload::actor::{Actor, Images, InFlight, Runner};
use crate::workload::spec::{self, Terms, WorkloadSpec};
use crate::workload::{Course, Failure, State, progress};
use admit::Reserved;
pub use leave::LeaveError;
use leave::Leaving;
pub(crate) use replace::Turn;
use replace::{ended, wait_ended};
use restore::Restored;

/// How many workloads, in any state, a host holds.
const WORKLOADS_MAX: usize = 20_000;

/// What all workloads of a host share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) artifacts: Artifacts,
    /// Makes a workload's components ready.
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) routes: Routes,
    pub(crate) triggers: Triggers,
    pub(crate) limits: Limits,
    /// Every HTTP request goes to the workload started last, whatever its host name.
    pub(crate) any_host: bool,
    /// Turns for messages, and for the calls of triggers, of the whole host.
    pub(crate) messages: Arc<Semaphore>,
    /// What messages came to.
    pub(crate) came: Messages,
    /// Owns the tasks that call guests.
    pub(crate) guests: Drain,
    /// Components of the workloads that run, so that a heartbeat need not look at each.
    pub(crate) running: AtomicU64,
}

/// What a host is made of.
pub struct Parts {
    /// Who it is.
    pub identity: Identity,
    /// Runs the components.
    pub engine: Engine,
    /// Where their bytes come from.
    pub artifacts: Artifacts,
    /// Where HTTP requests come in.
    pub routes: Routes,
    /// What else calls components.
    pub triggers: Triggers,
    /// The port of the listener; `None` without one.
    pub http_port: Option<u16>,
    /// Every HTTP request goes to the workload started last.
    pub any_host: bool,
    /// Where it says how it is.
    pub health: Health,
    /// What opens values that are sealed to it.
    pub seal_key: Arc<SealKey>,
    /// Where it keeps whether it is cordoned; `None`: nowhere.
    pub state: Option<PathBuf>,
    /// What is to run after a restart; `None`: nothing.
    pub journal: Option<Arc<Journal>>,
    /// How long an operator may probe this host without asking for a workload of before the restart.
    pub orphan_after: Duration,
    /// Bounds.
    pub limits: Limits,
    /// `allowedHosts` of a component that names none.
    pub default_allowed_hosts: Vec<String>,
    /// Owns the tasks of workloads.
    pub control: Drain,
    /// Stops when the host takes no more work.
    pub draining: Drain,
    /// Owns the tasks that call guests.
    pub guests: Drain,
}

/// Why a start was refused before anything was done.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The request asks for what this host cannot do.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// What lives under the id is on its way out, or just being replaced. Source: the reference's words.
    #[error(
        "Workload ID [{0}] already exists (the existing workload must be stopped to reuse the ID)"
    )]
    Exists(WorkloadId),
    /// The host is on its way out.
    #[error("the host is draining and takes no new workloads")]
    Draining,
    /// The host is to get no new workloads.
    #[error(
        "the host is cordoned and takes no new workloads: start it on another one, or `wash hosts uncordon` this one"
    )]
    Cordoned,
    /// The table is full.
    #[error("the host holds {WORKLOADS_MAX} workloads, its maximum")]
    Full,
    /// It does not fit beside what is here.
    #[error(
        "the host has no room for it: {need} MiB of memory are declared (memoryLimitMb), {have} MiB of {total} MiB are left; declare less, or start it on another host"
    )]
    NoMemory {
        /// What its components declare together. Units: MiB.
        need: u64,
        /// What others do not declare, and is not in use either. Units: MiB.
        have: u64,
        /// What the host has. Units: MiB.
        total: u64,
    },
    /// It keeps more instances than there can be.
    #[error(
        "the host has no room for it: {need} instances are to be kept (poolSize), of {have} that can live at once; keep fewer, or start it on another host"
    )]
    NoInstances {
        /// What its components keep together.
        need: u64,
        /// What the host has.
        have: u64,
    },
    /// A restart would forget it, so it is not acknowledged.
    #[error("the workload was not started: a restart of this host would forget it")]
    Journal(#[source] journal::Error),
}

impl StartError {
    /// Whether the same request may be taken later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Spec(_))
    }
}

/// Starts, stops and describes workloads. Shape: clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    identity: Identity,
    name: String,
    http_port: Option<u16>,
    seal_key: Arc<SealKey>,
    default_allowed_hosts: Vec<String>,
    control: Drain,
    draining: Drain,
    health: Health,
    journal: Option<Arc<Journal>>,
    orphan_after: Duration,
    restored: Mutex<Restored>,
    leaving: Leaving,
    started_at: OffsetDateTime,
    node: Node,
    /// Memory that the workloads declare. Units: bytes.
    declared: Arc<AtomicU64>,
    table: Mutex<BTreeMap<WorkloadId, Entry>>,
}

/// How the table reaches a workload.
struct Entry {
    spec: Arc<WorkloadSpec>,
    stop: CancellationToken,
    /// Starts of the same id that wait for this one to be gone.
    waiting: CancellationToken,
    state: progress::Receiver,
    course: watch::Receiver<Course>,
    started_at: OffsetDateTime,
    /// New content that comes up to replace this, or could not.
    next: Option<Box<Entry>>,
    /// Of what this has replaced, which may still be finishing.
    before: Option<progress::Receiver>,
    /// It is being put in the place of what it replaces.
    committing: bool,
    reserved: Reserved,
    /// What had failed, and is tried again if this start is taken back; until then it waits.
    instead_of: Option<Box<Entry>>,
}

/// What a start has come to.
struct Registered {
    state: progress::Receiver,
    /// By this very start.
    mine: bool,
    /// Something else runs under the id, and goes on until this runs.
    replaces: bool,
    /// Its number in the journal, of one that is new.
    wish: u64,
}

/// What a running workload is busy with, for those who count.
pub(crate) struct Busy {
    pub(crate) spec: Arc<WorkloadSpec>,
    pub(crate) in_flight: InFlight,
    pub(crate) used: Used,
}

impl Host {
    /// A host without workloads.
    pub fn new(parts: Parts) -> Self {
        Self::with_runner(parts, Arc::new(Images))
    }

    /// As [`new`](Self::new), with another way to make components ready.
    pub(crate) fn with_runner(parts: Parts, runner: Arc<dyn Runner>) -> Self {
        let shared = Shared {
            engine: parts.engine,
            artifacts: parts.artifacts,
            runner,
            routes: parts.routes,
            triggers: parts.triggers,
            messages: Arc::new(Semaphore::new(parts.limits.messages_per_host)),
            came: Messages::default(),
            limits: parts.limits,
            any_host: parts.any_host,
            guests: parts.guests,
            running: AtomicU64::new(0),
        };
        Self(Arc::new(Inner {
            shared: Arc::new(shared),
            name: friendly_name(&parts.identity.id),
            identity: parts.identity,
            http_port: parts.http_port,
            seal_key: parts.seal_key,
            default_allowed_hosts: parts.default_allowed_hosts,
            control: parts.control,
            draining: parts.draining,
            health: parts.health,
            journal: parts.journal,
            orphan_after: parts.orphan_after,
            restored: Mutex::default(),
            leaving: Leaving::new(parts.state),
            started_at: OffsetDateTime::now_utc(),
            node: Node::new(),
            declared: Arc::default(),
            table: Mutex::default(),
        }))
    }

    /// The id the fleet knows it by.
    pub fn id(&self) -> &HostId {
        &self.0.identity.id
    }

    /// The name people see.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<WorkloadId, Entry>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a workload and waits until it runs or has failed.
    ///
    /// Shape: what runs already under this id with the same content is not disturbed; a failed one is tried
    /// again; other content replaces what runs once it runs itself. A start that takes longer than
    /// `start_reply` is answered STARTING and goes on.
    /// Source: `runtime.host.<id>.workload.start`.
    ///
    /// # Errors
    /// [`StartError`] when nothing was started; what runs under this id already is as it was.
    pub async fn start(
        &self,
        id: WorkloadId,
        workload: wire::Workload,
    ) -> Result<wire::WorkloadStatus, StartError> {
        // What is here already is not new.
        if self.is_cordoned() && !self.table().contains_key(&id) {
            return Err(StartError::Cordoned);
        }
        self.begin(id, workload, self.0.journal.is_some()).await
    }

    /// As [`start`](Self::start), for a workload that whoever starts it will ask for again after a restart.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_unjournaled(
        &self,
        id: WorkloadId,
        workload: wire::Workload,
    ) -> Result<wire::WorkloadStatus, StartError> {
        self.begin(id, workload, false).await
    }

    async fn begin(
        &self,
        id: WorkloadId,
        workload: wire::Workload,
        journaled: bool,
    ) -> Result<wire::WorkloadStatus, StartError> {
        // Commands for one id act in the order they came: what is being stopped has to be gone first.
        if let Some((state, stopped_again)) = self.stopping(&id) {
            let stopping = state.get() != State::Starting;
            let ended =
                state.wait_for(|state| ended(state) || (!stopping && *state == State::Running));
            tokio::select! {
                biased;
                () = stopped_again.cancelled() => {
                    let message = "Workload was stopped while starting".to_owned();
                    return Ok(status(&id, wire::WorkloadState::Stopping, message));
                }
                // Past the time, or without its task, the id is as taken as `register` finds it.
                _ = tokio::time::timeout(self.0.shared.limits.start_reply, ended) => {}
            }
        }
        let request = journaled.then(|| {
            let request = wire::WorkloadStartRequest {
                workload_id: id.to_string(),
                workload: Some(workload.clone()),
            };
            request.encode()
        });
        let Registered {
            state,
            mine,
            replaces,
            wish,
        } = self.register(&id, workload, request)?;
        // Before anything is said, also of a start that another one began, so that what was said survives; the
        // start goes on meanwhile. What replaces another sees to it itself, once it runs.
        if journaled
            && !replaces
            && let Err(error) = self.keep(&id).await
            && (!mine || self.take_back(&id, &state, wish))
        {
            if mine {
                // What was refused is not to come back after a restart.
                let _ = self.keep(&id).await;
            }
            return Err(StartError::Journal(error));
        }
        self.settled(&id, &state);
        let settled = state.wait_for(|state| *state != State::Starting);
        let settled = tokio::time::timeout(self.0.shared.limits.start_reply, settled);
        // A host that leaves does not keep the fleet waiting for a pull.
        let settled = tokio::select! {
            biased;
            settled = settled => settled.map_err(drop),
            () = self.0.draining.stopping() => Err(()),
        };
        let state = match settled {
            Ok(Ok(state)) => state,
            // The task ended without a word: it was aborted by a panic.
            Ok(Err(_)) => State::Failed(Failure::last("the workload's task ended unexpectedly")),
            Err(_) => State::Starting,
        };
        let message = match &state {
            State::Running if mine => "Workload started successfully".to_owned(),
            State::Failed(cause) if replaces => {
                format!("the new content could not be started, what ran before goes on: {cause}")
            }
            State::Starting if replaces => {
                format!(
                    "{}: until it runs, what ran before goes on, also after a restart",
                    State::Starting
                )
            }
            State::Failed(failure) => failure.to_string(),
            State::Stopping | State::Gone => "Workload was stopped while starting".to_owned(),
            state => state.to_string(),
        };
        let state = match state {
            State::Gone => wire::WorkloadState::Stopping,
            state => state.wire(),
        };
        Ok(status(&id, state, message))
    }

    /// The state of a workload on its way out, and what a further stop cancels.
    fn stopping(&self, id: &WorkloadId) -> Option<(progress::Receiver, CancellationToken)> {
        let table = self.table();
        let entry = table.get(id)?;
        if entry.stop.is_cancelled() {
            return Some((entry.state.clone(), entry.waiting.clone()));
        }
        // One that is being put in its place is there in a moment.
        let next = entry.coming().filter(|next| next.committing)?;
        Some((next.state.clone(), entry.waiting.clone()))
    }

    /// Puts a workload into the table and gives it a task, and notes `request` for the journal.
    fn register(
        &self,
        id: &WorkloadId,
        workload: wire::Workload,
        request: Option<Vec<u8>>,
    ) -> Result<Registered, StartError> {
        let spec = self.spec(id, workload)?;
        // Looked at before the lock: it reads files of the kernel.
        let sample = (spec.memory_declared > 0).then(|| self.sample());
        let table = self.table();
        let Some(entry) = table
            .get(id)
            .filter(|entry| entry.is_coming() || entry.coming().is_some())
        else {
            self.admit(&spec, table.get(id), sample)?;
            let mut wish = 0;
            let state = self.insert(table, spec, false, || {
                if let (Some(journal), Some(request)) = (&self.0.journal, request) {
                    wish = journal.want(id, Some(request));
                }
            })?;
            return Ok(Registered {
                state,
                mine: true,
                replaces: false,
                wish,
            });
        };
        let next = entry.coming();
        if spec.content == entry.spec.content && entry.is_coming() {
            // It is to stay: what was to replace it is not.
            if let Some(next) = next {
                next.stop.cancel();
            }
            return Ok(Registered {
                state: entry.state.clone(),
                mine: false,
                replaces: false,
                wish: 0,
            });
        }
        if let Some(next) = next.filter(|next| next.spec.content == spec.content) {
            return Ok(Registered {
                state: next.state.clone(),
                mine: false,
                replaces: true,
                wish: 0,
            });
        }
        self.admit(&spec, Some(entry), sample)?;
        let state = self.replace(table, spec, request)?;
        Ok(Registered {
            state,
            mine: true,
            replaces: true,
            wish: 0,
        })
    }

    fn spec(
        &self,
        id: &WorkloadId,
        workload: wire::Workload,
    ) -> Result<Arc<WorkloadSpec>, spec::Error> {
        let inner = &self.0;
        let config = inner.shared.engine.config();
        let terms = Terms {
            memory_bytes_max: config.memory_bytes_max,
            default_allowed_hosts: &inner.default_allowed_hosts,
            interfaces: inner.shared.engine.interfaces(),
            triggers: &inner.shared.triggers,
            backends: inner.shared.engine.plugins(),
            ingress: inner.http_port.is_some(),
            opener: &*inner.seal_key,
        };
        WorkloadSpec::new(id.clone(), workload, &terms).map(Arc::new)
    }

    /// Shape: `note` is called under the lock, so in the order in which commands act.
    fn insert(
        &self,
        mut table: MutexGuard<'_, BTreeMap<WorkloadId, Entry>>,
        spec: Arc<WorkloadSpec>,
        cached_first: bool,
        note: impl FnOnce(),
    ) -> Result<progress::Receiver, StartError> {
        let inner = &self.0;
        if inner.draining.is_stopping() {
            return Err(StartError::Draining);
        }
        if table.len() >= WORKLOADS_MAX {
            return Err(StartError::Full);
        }
        let mut entry = self.launch(spec, cached_first, |_| None);
        let state = entry.state.clone();
        if let Some(mut failed) = table.remove(&entry.spec.id)
            && !failed.stop.is_cancelled()
        {
            if let Some(earlier) = failed.instead_of.take() {
                earlier.cancel();
            }
            entry.instead_of = Some(Box::new(failed));
        }
        table.insert(entry.spec.id.clone(), entry);
        note();
        Ok(state)
    }

    /// Gives a workload a task, which waits for its `turn`, if it has one, before it is said to run.
    ///
    /// Shape: the task looks at the table only when the caller has let go of it.
    fn launch(
        &self,
        spec: Arc<WorkloadSpec>,
        cached_first: bool,
        turn: impl FnOnce(progress::Receiver) -> Option<Turn>,
    ) -> Entry {
        let inner = &self.0;
        let reserved = Reserved::new(&inner.declared, spec.memory_declared);
        let stop = CancellationToken::new();
        let (told, state) = progress::channel(State::Starting);
        let (course_sender, course) = watch::channel(Course::new());
        let mut actor = Actor {
            shared: Arc::clone(&inner.shared),
            spec: Arc::clone(&spec),
            cached_first,
            turn: turn(state.clone()),
            stop: stop.clone(),
            state: told,
            course: course_sender,
        };
        let (host, id, own) = (self.clone(), spec.id.clone(), state.clone());
        inner.control.spawn("workload", async move {
            // A panic is a failed workload, not a lost id.
            let run = AssertUnwindSafe(host.keep_up(&mut actor, &own));
            if run.catch_unwind().await.is_err() {
                let cause = "the workload's task ended unexpectedly: the host's log tells more";
                actor.enter(State::Failed(Failure::last(cause)));
            }
            // Whoever waits for another state learns that there will be none.
            drop(actor);
            host.forget(&id, &own);
        });
        Entry {
            spec,
            stop,
            waiting: CancellationToken::new(),
            state,
            course,
            started_at: OffsetDateTime::now_utc(),
            next: None,
            before: None,
            committing: false,
            reserved,
            instead_of: None,
        }
    }

    /// Stops what was registered with `state`, as if it had never been asked for; unless it is on disk all the
    /// same, because another start of it has put it there, and may have been acknowledged.
    fn take_back(&self, id: &WorkloadId, state: &progress::Receiver, wish: u64) -> bool {
        let mut table = self.table();
        let entry = table.get_mut(id).filter(|entry| entry.state.same(state));
        let Some(entry) = entry else {
            // Somebody else decides by now.
            return true;
        };
        if let Some(journal) = &self.0.journal {
            if journal.has(id, wish) {
                return false;
            }
            journal.give_up(id, wish);
        }
        let failed = entry.instead_of.take();
        entry.cancel();
        if let Some(failed) = failed {
            let taken_back = std::mem::replace(entry, *failed);
            entry.before = Some(taken_back.state);
        } else if state.is(|state| matches!(state, State::Failed(_) | State::Gone)) {
            table.remove(id);
        }
        true
    }

    /// The start that was registered with `state` will not be taken back: what had failed before it is not to try
    /// again beside it.
    fn settled(&self, id: &WorkloadId, state: &progress::Receiver) {
        let mut table = self.table();
        let entry = table.get_mut(id).filter(|entry| entry.state.same(state));
        if let Some(failed) = entry.and_then(|entry| entry.instead_of.take()) {
            failed.cancel();
        }
    }

    /// Takes an ended workload out of the table; a failed one stays until it is asked to go.
    fn forget(&self, id: &WorkloadId, own: &progress::Receiver) {
        let mut table = self.table();
        // What was replaced is not there any more.
        let entry = table.get(id).filter(|entry| entry.state.same(own));
        let Some(entry) = entry else { return };
        let ended = match entry.state.get() {
            State::Gone => true,
            State::Failed(_) => entry.stop.is_cancelled(),
            _ => false,
        };
        if ended {
            table.remove(id);
        }
    }

    /// Stops a workload and waits until nothing of it is left.
    ///
    /// Source: `runtime.host.<id>.workload.stop`.
    pub async fn stop(&self, id: &WorkloadId) -> wire::WorkloadStatus {
        let (reached, noted) = {
            let mut table = self.table();
            let noted = self.unwant(id);
            let reached = table.get_mut(id).map(|entry| {
                let was = entry.state.get();
                let all: Vec<_> = entry.states().collect();
                // Under the lock: a start that fails now sees that it was asked to go.
                entry.cancel();
                // Those that came before this stop; later ones wait anew.
                std::mem::take(&mut entry.waiting).cancel();
                (entry.state.clone(), was, all)
            });
            if let Some((_, State::Failed(_) | State::Gone, _)) = &reached {
                table.remove(id);
            }
            (reached, noted)
        };
        let kept = match noted {
            true => self.keep(id).await,
            false => Ok(()),
        };
        let Some((own, was, all)) = reached else {
            if let Err(error) = kept {
                return unkept(id, &error);
            }
            let message = "Workload not found".to_owned();
            return status(id, wire::WorkloadState::NotFound, message);
        };
        if was == State::Running {
            let limits = &self.0.shared.limits;
            // Twice: calls in flight, then messages being handled.
            let patience = limits
                .stop_grace
                .saturating_mul(2)
                .saturating_add(Duration::from_secs(1));
            let gone = join_all(all.into_iter().map(wait_ended));
            let _ = tokio::time::timeout(patience, gone).await;
            self.forget(id, &own);
        }
        if let Err(error) = kept {
            return unkept(id, &error);
        }
        status(
            id,
            wire::WorkloadState::Stopping,
            "Workload stopped successfully".to_owned(),
        )
    }

    /// How far a workload is.
    ///
    /// Source: `runtime.host.<id>.workload.status`.
    pub fn status(&self, id: &WorkloadId) -> wire::WorkloadStatus {
        let state = self
            .table()
            .get(id)
            .map(|entry| (entry.shown(), entry.words()));
        match state {
            None | Some((State::Gone, _)) => status(
                id,
                wire::WorkloadState::NotFound,
                format!("Workload not found: {id}"),
            ),
            Some((state, words)) => status(id, state.wire(), words),
        }
    }

    /// Every workload, in any state.
    ///
    /// Source: `runtime.host.<id>.workload.list`.
    pub fn list(&self) -> wire::WorkloadList {
        wire::WorkloadList {
            workloads: self.table().values().map(Entry::summary).collect(),
        }
    }

    /// One workload.
    ///
    /// Source: `runtime.host.<id>.workload.inspect`.
    pub fn inspect(&self, id: &WorkloadId) -> Option<wire::WorkloadInspect> {
        let table = self.table();
        let entry = table.get(id)?;
        let content: String = entry
            .spec
            .content
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Some(wire::WorkloadInspect {
            workload: Some(entry.summary()),
            content_digest: format!("sha256:{content}"),
            annotations: entry.spec.annotations.clone(),
        })
    }

    /// How the machine does.
    pub(crate) fn sample(&self) -> Sample {
        self.0.node.sample()
    }

    /// What this host says about itself.
    pub fn heartbeat(&self) -> wire::HostHeartbeat {
        let inner = &self.0;
        let workloads = self.table().len() as u64;
        let sample = self.sample();
        let mut labels = inner.identity.labels.clone();
        labels.insert("hostgroup".to_owned(), inner.identity.group.clone());
        let key = inner.seal_key.public().to_string();
        labels.insert(SEAL_KEY_LABEL.to_owned(), key);
        if self.is_cordoned() {
            labels.insert(CORDONED_LABEL.to_owned(), "true".to_owned());
        }
        let short_of = inner.health.pressure().borrow().join(".");
        if !short_of.is_empty() {
            labels.insert(PRESSURE_LABEL.to_owned(), short_of);
        }
        wire::HostHeartbeat {
            id: inner.identity.id.to_string(),
            hostname: inner.identity.hostname.clone(),
            friendly_name: inner.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels,
            started_at: Some(inner.started_at),
            os_arch: std::env::consts::ARCH.to_owned(),
            os_name: std::env::consts::OS.to_owned(),
            os_kernel: inner.node.os_kernel().to_owned(),
            system_cpu_usage: sample.cpu_percent,
            system_memory_total: sample.memory_total,
            system_memory_free: sample.memory_free,
            component_count: inner.shared.running.load(Ordering::Relaxed),
            workload_count: workloads,
            imports: served(inner.shared.engine.interfaces()),
            exports: driven(&inner.shared.triggers),
            http_port: inner.http_port.unwrap_or(0).into(),
            environment: inner.identity.environment.clone(),
        }
    }

    /// Tells every workload to stop and waits until the last is gone, or `grace` is over.
    pub async fn stop_all(&self, grace: Duration) {
        let states: Vec<_> = {
            let table = self.table();
            table.values().for_each(Entry::cancel);
            table.values().flat_map(Entry::states).collect()
        };
        let all = async {
            for state in states {
                wait_ended(state).await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!(
                ?grace,
                "workloads were still stopping when the time was over"
            );
        }
    }

    /// How many workloads are in each state.
    pub(crate) fn states(&self) -> [(&'static str, u64); 4] {
        let mut states = [
            ("starting", 0),
            ("running", 0),
            ("stopping", 0),
            ("failed", 0),
        ];
        for entry in self.table().values() {
            let name = match entry.state.get() {
                State::Starting => "starting",
                State::Running => "running",
                State::Stopping | State::Gone => "stopping",
                State::Failed(_) => "failed",
            };
            let state = states.iter_mut().find(|(state, _)| *state == name);
            if let Some((_, count)) = state {
                *count += 1;
            }
        }
        states
    }

    /// What each workload is busy with that runs, or still has calls.
    pub(crate) fn busy(&self) -> Vec<Busy> {
        let table = self.table();
        let entries = table.values().filter(|entry| {
            let state = entry.state.get();
            matches!(state, State::Running | State::Stopping)
        });
        let busy = entries.map(|entry| {
            let course = entry.course.borrow();
            let mut used = Used::default();
            for component in &course.components {
                used += component.usage.used();
            }
            Busy {
                spec: Arc::clone(&entry.spec),
                in_flight: course.in_flight.clone(),
                used,
            }
        });
        busy.collect()
    }

    /// How many messages came to this.
    pub(crate) fn messages(&self, came: Came) -> u64 {
        self.0.shared.came.count(came)
    }

    /// Turns for messages that are taken, and all there are.
    pub(crate) fn message_turns(&self) -> (usize, usize) {
        let all = self.0.shared.limits.messages_per_host;
        let free = self.0.shared.messages.available_permits();
        (all.saturating_sub(free), all)
    }

    /// How full the journal is; `None` without one.
    pub(crate) fn journal(&self) -> Option<journal::Usage> {
        self.0.journal.as_ref().map(|journal| journal.usage())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.shared.engine
    }

    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.0.shared.artifacts
    }

    /// Where its capabilities come from.
    pub fn plugins(&self) -> &Plugins {
        self.0.shared.engine.plugins()
    }
}

impl Entry {
    fn summary(&self) -> wire::WorkloadSummary {
        // Before the borrow: they look at the same.
        let (state, message) = (self.shown().wire(), self.words());
        let course = self.course.borrow();
        let components = self.spec.components.iter().map(|component| {
            let found = course
                .components
                .iter()
                .find(|resolved| resolved.name == component.name);
            let used = found.map(|resolved| resolved.usage.used());
            let used = used.unwrap_or_default();
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            wire::ComponentSummary {
                name: component.name.clone(),
                image: component.image.clone(),
                digest: found
                    .map(|resolved| resolved.digest.clone())
                    .unwrap_or_default(),
                calls: used.calls,
                cpu_ms: millis(used.cpu),
                cpu_delayed_ms: millis(used.delayed),
                memory_bytes: used.memory_bytes,
                memory_bytes_peak: used.memory_bytes_peak,
                log_lines_dropped: used.lines_dropped,
            }
        });
        wire::WorkloadSummary {
            workload_id: self.spec.id.to_string(),
            namespace: self.spec.namespace.clone(),
            name: self.spec.name.clone(),
            state,
            message,
            components: components.collect(),
            hosts: self
                .spec
                .http
                .iter()
                .flat_map(|names| names.iter().map(str::to_owned))
                .collect(),
            started_at: Some(self.started_at),
            attempts: course.attempts,
            reason: course.reason.clone(),
            changed_at: Some(course.changed_at),
            next_attempt_at: course.next_at,
        }
    }
}

/// A stop that a restart would undo is none.
fn unkept(id: &WorkloadId, error: &journal::Error) -> wire::WorkloadStatus {
    let error = capabilities::report(error);
    let message = format!(
        "Workload was stopped, but a restart of this host would start it again, so stop it once more: {error}"
    );
    status(id, wire::WorkloadState::Error, message)
}

fn status(
    id: &WorkloadId,
    workload_state: wire::WorkloadState,
    message: String,
) -> wire::WorkloadStatus {
    wire::WorkloadStatus {
        workload_id: id.to_string(),
        workload_state,
        message,
    }
}

fn served(interfaces: &Interfaces) -> Vec<wire::WitInterface> {
    interfaces.serves().map(wit_interface).collect()
}

fn driven(triggers: &Triggers) -> Vec<wire::WitInterface> {
    // Like WASI itself, HTTP is on every host and not listed.
    let beyond = |served: &Served| (served.namespace, served.package) != ("wasi", "http");
    let beyond = triggers.drives().filter(beyond);
    beyond.map(wit_interface).collect()
}

fn wit_interface(served: Served) -> wire::WitInterface {
    wire::WitInterface {
        namespace: served.namespace.to_owned(),
        package: served.package.to_owned(),
        version: served.version.to_owned(),
        interfaces: served
            .interfaces
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        ..wire::WitInterface::default()
    }
}
