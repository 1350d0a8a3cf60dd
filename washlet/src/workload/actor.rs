//! The task that owns one workload: brings it up, holds what it attached, takes it down.

use capabilities::plugin::{Ask, Settings};
use capabilities::{BoxError, report};
use engine::shards::{self, Shards};
use engine::wit::WitInterface;
use engine::{Grant, Owner, Runnable, Turns};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all, try_join_all};
use http::StatusCode;
use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::spec::{ComponentSpec, WorkloadSpec};
use super::{Course, Failure, State, progress};
use crate::artifact::{self, Fetch, PullPolicy};
use crate::drain::Drain;
use crate::health::{self, Answered, CLASSES, Came, Messages};
use crate::host::{Shared, Turn};
use crate::trigger::driven::{Admission, Driven, Guard};
use crate::trigger::guest::Guest;
use crate::trigger::http::Attachment;
use crate::trigger::messaging::{self, Delivering};
use crate::trigger::watcher::{self, Watched, Watching};
use crate::trigger::{self, Trigger};

/// What others may know of a workload's components while it runs.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) usage: Arc<engine::Usage>,
}

/// Everything a running workload holds; dropping it detaches.
struct Attached {
    _routes: Option<Attachment>,
    _triggers: Vec<Guard>,
    _pins: Vec<Held>,
}

/// Components of a running workload, counted for as long as it lives.
struct Running(Arc<Shared>, u64);

impl Running {
    fn new(shared: Arc<Shared>, components: usize) -> Self {
        let components = components as u64;
        shared.running.fetch_add(components, Ordering::Relaxed);
        Self(shared, components)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What has to be kept while a component is used.
pub(crate) type Held = Box<dyn Any + Send + Sync>;

/// Makes the components of workloads ready to be called. The simulation has another one than [`Images`].
pub(crate) trait Runner: Send + Sync {
    /// Makes ready what `spec` of `actor`'s workload asks for; an error is the cause of the workload's failure.
    fn prepare<'a>(
        &'a self,
        actor: &'a Actor,
        spec: &'a ComponentSpec,
        turns: &'a Turns,
    ) -> BoxFuture<'a, Result<(Runnable, Held), String>>;
}

/// Components from images: pulled, compiled, linked.
pub(crate) struct Images;

impl Runner for Images {
    fn prepare<'a>(
        &'a self,
        actor: &'a Actor,
        spec: &'a ComponentSpec,
        turns: &'a Turns,
    ) -> BoxFuture<'a, Result<(Runnable, Held), String>> {
        actor.prepare(spec, turns).boxed()
    }
}

/// The task's own view of its workload.
pub(crate) struct Actor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) spec: Arc<WorkloadSpec>,
    /// What is in the cache will do, whatever the policy: it ran before.
    pub(crate) cached_first: bool,
    /// Waited for once it can be reached, before it is said to run: it replaces another.
    pub(crate) turn: Option<Turn>,
    /// Told to stop when the workload is to stop.
    pub(crate) stop: CancellationToken,
    pub(crate) state: progress::Sender,
    pub(crate) course: watch::Sender<Course>,
}

/// How a run of a workload ended.
pub(crate) enum Ended {
    /// It was told to stop, and nothing of it is left.
    Stopped,
    /// It could not start, or a part of it failed.
    Failed {
        cause: String,
        /// How long it ran; `None`: it never did.
        ran: Option<Duration>,
    },
}

/// How a part of a running workload says that it has failed. Shape: clones are of the same run.
#[derive(Clone)]
pub(crate) struct Fault {
    /// Also when the workload is to stop.
    over: CancellationToken,
    cause: Arc<OnceLock<String>>,
}

impl Fault {
    /// Of a workload that ends with `stop` at the latest.
    pub(crate) fn new(stop: &CancellationToken) -> Self {
        Self {
            over: stop.child_token(),
            cause: Arc::default(),
        }
    }

    /// Ends the run; of several causes the first is told.
    pub(crate) fn raise(&self, cause: String) {
        let _ = self.cause.set(cause);
        self.over.cancel();
    }

    /// Completes once a part has failed, with its cause; with `None` when the workload is to stop.
    pub(crate) async fn raised(&self) -> Option<String> {
        self.over.cancelled().await;
        self.cause.get().cloned()
    }
}

impl Actor {
    /// Changes the state, and notes when.
    pub(crate) fn enter(&self, state: State) {
        self.course.send_modify(|course| {
            course.changed_at = OffsetDateTime::now_utc();
            course.next_at = None;
            match &state {
                State::Starting => course.components.clear(),
                State::Failed(failure) => {
                    course.attempts = failure.attempts;
                    course.reason.clone_from(&failure.cause);
                    let left = |next: Instant| course.changed_at + (next - Instant::now());
                    course.next_at = failure.next.map(left);
                }
                _ => {}
            }
        });
        self.state.send(state);
    }

    /// Runs the workload once: until it is stopped, or has failed.
    ///
    /// Shape: the state is left as it is when it fails to start, and `Failed` when it ran.
    pub(crate) async fn run(&mut self) -> Ended {
        let turn = self.turn.take();
        let in_flight = self.course.borrow().in_flight.clone();
        let messages = self.shared.guests.child();
        let fault = Fault::new(&self.stop);
        let attached = tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                // Some subscriptions may be in force already, and calls in flight.
                self.enter(State::Stopping);
                Box::pin(self.take_down(&messages, &in_flight)).await;
                self.enter(State::Gone);
                return Ended::Stopped;
            }
            // Boxed, and gone once it is done: most workloads wait most of the time, and for each of them the
            // task keeps what it ever needed.
            attached = Box::pin(self.bring_up(&in_flight, &messages, &fault, turn)) => attached,
        };
        let (id, workload) = (&self.spec.id, &self.spec.name);
        let (cause, ran) = match attached {
            Ok(attached) => {
                tracing::info!(%id, workload, "workload is running");
                let running = Running::new(Arc::clone(&self.shared), self.spec.components.len());
                self.cached_first = true;
                let since = Instant::now();
                self.enter(State::Running);
                let cause = fault.raised().await.filter(|_| !self.stop.is_cancelled());
                let Some(cause) = cause else {
                    self.enter(State::Stopping);
                    drop((running, attached));
                    Box::pin(self.take_down(&messages, &in_flight)).await;
                    tracing::info!(%id, workload, "workload stopped");
                    self.enter(State::Gone);
                    return Ended::Stopped;
                };
                // Said at once: what it still has to finish may take long.
                self.enter(State::Failed(Failure::last(cause.clone())));
                (cause, Some(since.elapsed()))
            }
            Err(cause) => (cause, None),
        };
        if !Box::pin(self.take_down(&messages, &in_flight)).await {
            // Whoever was cut stays so; the next run's calls are not.
            let fresh = |course: &mut Course| course.in_flight = InFlight::default();
            self.course.send_modify(fresh);
        }
        Ended::Failed { cause, ran }
    }

    async fn bring_up(
        &self,
        in_flight: &InFlight,
        messages: &Drain,
        fault: &Fault,
        turn: Option<Turn>,
    ) -> Result<Attached, String> {
        let turns = self.shared.engine.turns();
        let components = self.spec.components.iter();
        let runner = &self.shared.runner;
        let pulls = components.map(|component| runner.prepare(self, component, &turns));
        let (runnables, pins): (Vec<_>, Vec<_>) = try_join_all(pulls).await?.into_iter().unzip();
        let attached = self.attach(&runnables, in_flight, messages, fault);
        let (triggers, routes) = attached.await?;
        let attached = Attached {
            _routes: routes,
            _triggers: triggers,
            _pins: pins,
        };
        if let Some(turn) = turn {
            turn().await?;
        }
        Ok(attached)
    }

    /// Image → linked component.
    async fn prepare(
        &self,
        spec: &ComponentSpec,
        turns: &Turns,
    ) -> Result<(Runnable, Held), String> {
        let ComponentSpec { name, image, .. } = spec;
        let fetch = Fetch {
            image,
            policy: match spec.policy {
                PullPolicy::Always if self.cached_first => PullPolicy::IfNotPresent,
                policy => policy,
            },
            credentials: spec.credentials.clone(),
            progress: None,
        };
        let engine = &self.shared.engine;
        let failed = |error: artifact::Error| {
            // The chain names the image.
            format!(
                "failed to pull image for component '{name}': {}",
                report(&error)
            )
        };
        let resolved = self.shared.artifacts.resolve(fetch).await;
        let resolved = resolved.map_err(failed)?;
        let digest = resolved.digest.to_string();
        let (digest, pin, compiled) = match engine.compiled(&digest).await {
            // Its bytes need not even be read.
            Some(compiled) => (digest, resolved.pin, compiled),
            None => {
                let artifact = resolved.read().await.map_err(failed)?;
                let digest = artifact.digest.to_string();
                let compiled = engine
                    .compile(&digest, artifact.bytes)
                    .await
                    .map_err(|error| format!("component '{name}' ({image}) {error}"))?;
                (digest, artifact.pin, compiled)
            }
        };
        let grant = Grant {
            owner: Arc::new(Owner {
                namespace: self.spec.namespace.clone(),
                workload: self.spec.name.clone(),
                workload_id: self.spec.id.to_string(),
                component: name.clone(),
            }),
            declared: Arc::clone(&self.spec.interfaces),
            config: spec.config.clone(),
            environment: spec.environment.clone(),
            allowed_hosts: spec.allowed_hosts.clone(),
            memory_bytes_max: spec.memory_bytes_max,
            cpu_millis_max: spec.cpu_millis_max,
            reuse: spec.reuse,
            outbound: turns.clone(),
        };
        let runnable = engine
            .link(&compiled, grant)
            .await
            .map_err(|error| format!("component '{name}': {}", report(&error)))?;
        let resolved = Resolved {
            name: name.clone(),
            digest,
            usage: Arc::clone(runnable.usage()),
        };
        self.course
            .send_modify(|course| course.components.push(resolved));
        Ok((runnable, Box::new(pin)))
    }

    /// Lets the world in: subscriptions and triggers first, the route last, so that a workload is reachable as
    /// a whole.
    async fn attach(
        &self,
        runnables: &[Runnable],
        in_flight: &InFlight,
        messages: &Drain,
        fault: &Fault,
    ) -> Result<(Vec<Guard>, Option<Attachment>), String> {
        for (runnable, spec) in runnables.iter().zip(&self.spec.components) {
            if runnable.handles_messages() && !spec.subscriptions.subjects.is_empty() {
                self.subscribe(runnable, spec, in_flight, messages, fault)
                    .await?;
            }
            if runnable.watches_keys() {
                self.watch(runnable, spec, in_flight, messages).await?;
            }
        }
        let watched = self
            .spec
            .interfaces
            .iter()
            .find(|entry| entry.watched().next().is_some());
        if let (Some(entry), false) = (watched, runnables.iter().any(Runnable::watches_keys)) {
            return Err(format!(
                "'{entry}' has buckets to watch, but no component exports wasi:keyvalue/watcher; remove its config key 'watch'"
            ));
        }
        let mut triggers = Vec::new();
        for entry in self.spec.interfaces.iter() {
            for trigger in self.shared.triggers.find(entry) {
                let attached = self.drive(trigger, entry, runnables, in_flight, messages);
                triggers.extend(attached.await?);
            }
        }
        Ok((triggers, self.route(runnables, in_flight)))
    }

    fn route(&self, runnables: &[Runnable], in_flight: &InFlight) -> Option<Attachment> {
        let names = self.spec.http.as_ref()?;
        let Some(target) = runnables.iter().find(|runnable| runnable.serves_http()) else {
            tracing::warn!(
                id = %self.spec.id, workload = self.spec.name,
                "a wasi:http interface is declared, but no component exports incoming-handler (WASI 0.2) or handler (WASI 0.3)"
            );
            return None;
        };
        let guest = Guest::new(
            target.clone(),
            in_flight.clone(),
            self.shared.guests.clone(),
            self.shared.engine.config().call_time_max,
        );
        let workload = self.spec.id.as_str().into();
        let routes = &self.shared.routes;
        Some(match self.shared.any_host {
            true => routes.attach_default(workload, Arc::new(guest)),
            false => routes.attach(names.clone(), workload, Arc::new(guest)),
        })
    }

    /// Has `trigger` call every component that exports what `entry` asks it to drive.
    async fn drive(
        &self,
        trigger: &dyn Trigger,
        entry: &WitInterface,
        runnables: &[Runnable],
        in_flight: &InFlight,
        tasks: &Drain,
    ) -> Result<Vec<Guard>, String> {
        let mut guards = Vec::new();
        for runnable in runnables.iter().filter(|runnable| {
            let mut exported = runnable.exported();
            exported.any(|name| trigger::asks(trigger, entry, &name))
        }) {
            let admission = self.admission(self.shared.limits.messages_per_component);
            let driven = Driven::new(runnable.clone(), admission, in_flight.clone(), tasks);
            let settings = Settings::new(&entry.config);
            let attached = async {
                let guard = trigger.attach(driven, &settings).await?;
                settings.finish()?;
                Ok::<_, BoxError>(guard)
            };
            guards.push(attached.await.map_err(|error| {
                let (component, error) = (&runnable.owner().component, report(&*error));
                format!(
                    "component '{component}': failed to attach the trigger of '{entry}': {error}"
                )
            })?);
        }
        match guards.is_empty() {
            true => Err(format!(
                "host interface '{entry}' is declared, but no component exports it; export it, or leave the entry out"
            )),
            false => Ok(guards),
        }
    }

    /// Turns for one component and one source of calls.
    fn admission(&self, component: usize) -> Admission {
        let component = component.min(self.shared.limits.messages_per_component);
        Admission::new(component, &self.shared.messages)
    }

    /// How a plugin is asked for what `entry` declares; `elsewhere` are the config keys that others read.
    fn ask<'a>(
        &'a self,
        spec: &'a ComponentSpec,
        entry: &'a WitInterface,
        elsewhere: &[&'static str],
    ) -> Ask<'a> {
        Ask {
            namespace: &self.spec.namespace,
            workload: &self.spec.name,
            component: &spec.name,
            flat_names: self.shared.engine.config().flat_names,
            settings: Settings::new(&entry.config).also_known(elsewhere),
        }
    }

    /// Lets the component be told of changes in the buckets that entries name.
    async fn watch(
        &self,
        runnable: &Runnable,
        spec: &ComponentSpec,
        in_flight: &InFlight,
        messages: &Drain,
    ) -> Result<(), String> {
        let mut watched = Vec::new();
        for entry in self.spec.interfaces.iter() {
            if entry.watched().next().is_none() {
                continue;
            }
            let ask = self.ask(spec, entry, &["bucket", "watch"]);
            let plugins = self.shared.engine.plugins();
            let store = async { plugins.select(&ask.settings)?.keyvalue(&ask).await };
            let store = store.await.map_err(|error| {
                failed(
                    spec,
                    &error,
                    &format!("failed to open keyvalue for '{entry}'"),
                )
            })?;
            watched.extend(entry.watched().map(|bucket| Watched {
                store: Arc::clone(&store),
                bucket: bucket.to_owned(),
            }));
        }
        let watching = Watching {
            target: runnable.clone(),
            host: Arc::clone(&self.shared.messages),
            in_flight: in_flight.clone(),
        };
        watcher::attach(watching, watched, messages)
            .await
            .map_err(|(what, error)| failed(spec, &error, &what))
    }

    async fn subscribe(
        &self,
        runnable: &Runnable,
        spec: &ComponentSpec,
        in_flight: &InFlight,
        messages: &Drain,
        fault: &Fault,
    ) -> Result<(), String> {
        let entry = self
            .spec
            .interfaces
            .iter()
            .find(|entry| entry.is_plain("wasmcloud", "messaging"));
        let Some(entry) = entry else { return Ok(()) };
        let failed =
            |error: &(dyn std::error::Error + 'static), what: String| failed(spec, error, &what);
        let ask = self.ask(spec, entry, engine::SUBSCRIPTION_KEYS);
        let plugins = self.shared.engine.plugins();
        let bus = async {
            let bus = plugins.select(&ask.settings)?.messaging(&ask).await?;
            ask.settings.finish()?;
            Ok::<_, capabilities::plugin::OpenError>(bus)
        };
        let bus = bus
            .await
            .map_err(|error| failed(&error, format!("failed to open messaging for '{entry}'")))?;
        let limits = &self.shared.limits;
        let turns = spec
            .subscriptions
            .max_in_flight
            .unwrap_or(limits.messages_per_component);
        let delivering = Delivering {
            target: runnable.clone(),
            subscriptions: spec.subscriptions.clone(),
            admission: self.admission(turns),
            shared: Arc::clone(&self.shared),
            in_flight: in_flight.clone(),
            fault: fault.clone(),
        };
        messaging::attach(&*bus, delivering, messages)
            .await
            .map_err(|(what, error)| failed(&error, what))
    }

    /// Nothing new comes in; what is in flight may finish, then is cut: `false` if so.
    async fn take_down(&self, messages: &Drain, in_flight: &InFlight) -> bool {
        let grace = self.shared.limits.stop_grace;
        messages.stop();
        let finished = in_flight.finish(grace).await;
        if !finished {
            tracing::warn!(id = %self.spec.id, ?grace, "calls were still running and are cut");
        }
        if let Err(overdue) = messages.drain(grace).await {
            tracing::warn!(id = %self.spec.id, %overdue, "messages are still being handled");
        }
        finished
    }
}

fn failed(spec: &ComponentSpec, error: &(dyn std::error::Error + 'static), what: &str) -> String {
    format!("component '{}': {what}: {}", spec.name, report(error))
}

/// Calls into one workload, which a stop waits for, and cuts when that takes too long; and what came of them.
#[derive(Clone)]
pub(crate) struct InFlight(Arc<Shards<Calls>>);

/// Those that began on one core.
#[derive(Default)]
struct Calls {
    tracker: TaskTracker,
    cut: CancellationToken,
    answered: Answered,
    messages: Messages,
}

impl Default for InFlight {
    fn default() -> Self {
        let calls = |_| Calls::default();
        Self(Arc::new(Shards::new(shards::count(), calls)))
    }
}

/// One call in flight.
pub(crate) struct Token {
    _counted: TaskTrackerToken,
    cut: CancellationToken,
    /// Made when it is first waited for: most calls never wait.
    until_cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Token {
    /// Ready once the call is to end at once.
    pub(crate) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let cut = &self.cut;
        self.until_cut
            .get_or_insert_with(|| Box::pin(cut.clone().cancelled_owned()))
            .as_mut()
            .poll(cx)
    }

    /// Whether the call is to end at once.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// `call`'s output; `None` when it was cut.
    pub(crate) async fn run<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            output = call => Some(output),
            () = self.cut.cancelled() => None,
        }
    }
}

impl InFlight {
    pub(crate) fn token(&self) -> Token {
        let calls = self.0.here();
        Token {
            _counted: calls.tracker.token(),
            cut: calls.cut.clone(),
            until_cut: None,
        }
    }

    /// How many calls are under way.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|calls| calls.tracker.len() as u64).sum()
    }

    /// A request was answered with `status`, by a guest or for it.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.0.here().answered.add(status);
    }

    /// Responses to HTTP requests so far, by class.
    pub(crate) fn responses(&self) -> [u64; CLASSES] {
        health::sum(self.0.iter().map(|calls| &calls.answered))
    }

    /// A message `came` to this.
    pub(crate) fn message(&self, came: Came) {
        self.0.here().messages.add(came);
    }

    /// How many messages came to this so far.
    pub(crate) fn messages(&self, came: Came) -> u64 {
        self.0.iter().map(|calls| calls.messages.count(came)).sum()
    }

    /// Waits for every call; after `grace` cuts the rest and says `false`.
    async fn finish(&self, grace: std::time::Duration) -> bool {
        let empty = || self.0.iter().all(|calls| calls.tracker.is_empty());
        let ended = async {
            // Twice: a call may go over from one that was not looked at yet to one that was.
            while !(empty() && empty()) {
                let ended = self.0.iter().map(|calls| {
                    calls.tracker.close();
                    calls.tracker.wait()
                });
                join_all(ended).await;
            }
        };
        if tokio::time::timeout(grace, ended).await.is_ok() {
            return true;
        }
        self.0.iter().for_each(|calls| calls.cut.cancel());
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fault_ends_a_run_with_its_first_cause_and_a_stop_without_one() {
        let stop = CancellationToken::new();
        let fault = Fault::new(&stop);
        let part = fault.clone();
        part.raise("the first".to_owned());
        part.raise("the second".to_owned());
        assert_eq!(fault.raised().await.as_deref(), Some("the first"));
        assert!(!stop.is_cancelled());
        // The next run has no part in it.
        let fault = Fault::new(&stop);
        stop.cancel();
        assert_eq!(fault.raised().await, None);
    }
}
