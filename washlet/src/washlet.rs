//! Config → build → run: how a host is put together, and how it comes apart.
//!
//! ```text
//! build   engine, artifact cache, listener, host           nothing is said to the fleet yet
//! run     control loop: subscribe, flush, first heartbeat   until a signal or the loop's failure
//! drain   control (goodbye) → listener → workloads → calls → plugins
//! ```
//! Two runtimes: the control plane has one of its own, so that nothing a guest does delays it.

use capabilities::plugin::Plugins;
use engine::Engine;
use engine::interface::Interfaces;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::admin::Admin;
use crate::artifact::{self, Artifacts};
use crate::config::{Config, Limits};
use crate::control::nats;
use crate::drain::{Drain, Lanes};
use crate::health::Health;
use crate::host::{Host, Parts};
use crate::journal::{self, Entry, Journal};
use crate::node::{self, Node};
use crate::pressure;
use crate::trigger::Triggers;
use crate::trigger::http::{self, Routes, Server, Timeouts};

/// How often the cleaner looks at the artifact cache.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long the subscription to commands may be lost while NATS is connected.
const RESTORE_WITHIN: Duration = Duration::from_secs(60);

/// How long commands in flight have when the host drains. A start is answered at once, a stop is not.
const CONTROL_GRACE: Duration = Duration::from_secs(5);

/// Why a host cannot be built, or ended.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The artifact cache cannot be used.
    #[error(transparent)]
    Artifacts(#[from] artifact::Error),
    /// The listener cannot be set up.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The admin endpoint cannot be set up.
    #[error("failed to serve the admin endpoint on {address}")]
    Admin {
        /// Where it was to be.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The control loop could not be kept up.
    #[error("the control plane was lost")]
    Control(#[source] nats::ControlError),
    /// The control loop's task ended without a result.
    #[error("the control plane's task ended unexpectedly")]
    ControlEnded,
}

/// What the engine is told beyond what the host is.
#[derive(Clone)]
pub struct EngineOptions {
    /// How memories lie in the address space.
    pub layout: engine::Layout,
    /// The largest memory of one instance, in bytes.
    pub memory_bytes_max: u64,
    /// How many instances may live at once.
    pub instances_max: u32,
    /// CPU time of one call.
    pub call_cpu_max: Duration,
    /// Wall time of one call until its answer begins.
    pub call_time_max: Duration,
    /// Whom outgoing HTTPS trusts.
    pub trust_roots: engine::TrustRoots,
    /// How much may go out at once.
    pub outbound: engine::Outbound,
    /// Who compiles; `None`: this process.
    pub compiler: Option<engine::compiler::Compiler>,
    /// Where compiled code is kept, for this process alone; `None`: nowhere.
    pub code_dir: Option<PathBuf>,
    /// How much is kept there, in bytes.
    pub code_bytes_max: u64,
}

impl EngineOptions {
    /// The usual bounds.
    pub fn new(instances_max: u32, trust_roots: engine::TrustRoots) -> Self {
        Self {
            layout: engine::Layout::Guarded,
            memory_bytes_max: 4 << 30,
            instances_max,
            call_cpu_max: Duration::from_secs(60),
            call_time_max: Duration::from_secs(600),
            trust_roots,
            outbound: engine::Outbound {
                per_workload: 128,
                per_host: 512,
                wait: Duration::from_secs(5),
            },
            compiler: None,
            code_dir: None,
            code_bytes_max: 1 << 30,
        }
    }
}

/// Looks at the files `config` names, of the listener's TLS and of the authorities of registries, as
/// [`Washlet::build`] will: for those who want to know before they wait for anything.
///
/// # Errors
/// [`Error::Http`], [`Error::Artifacts`]; nothing is bound or written.
pub fn check(config: &Config) -> Result<(), Error> {
    if let Some(tls) = config.http.as_ref().and_then(|http| http.tls.as_ref()) {
        http::acceptor(tls).map_err(http::Error::Tls)?;
    }
    let bytes_max = config.limits.artifact_bytes_max;
    artifact::oci::Client::new(&config.artifacts.registry_options(bytes_max))
        .map_err(|error| artifact::Error::Client(Arc::new(error)))?;
    Ok(())
}

/// A host that is built and serves, but has not joined a fleet.
pub struct Washlet {
    config: Config,
    host: Host,
    address: Option<SocketAddr>,
    health: Health,
    /// Goes last.
    admin: Option<Admin>,
    /// The control loop, workloads' tasks and the cleaner.
    control: Drain,
    workloads: Drain,
    listener: Drain,
    guests: Drain,
    /// What plugins do between calls.
    plugins: Drain,
}

impl Washlet {
    /// Builds a host and binds its listener.
    ///
    /// Shape: components store things through `plugins`, import what `interfaces` serve, and are called by
    /// HTTP requests, messages and `triggers`.
    /// The current runtime becomes the control plane's; guests are called on `guests`. With `any_host`
    /// every HTTP request goes to the workload started last.
    ///
    /// # Errors
    /// [`Error`]; then nothing is left running.
    pub async fn build(
        config: Config,
        options: EngineOptions,
        plugins: Plugins,
        interfaces: Interfaces,
        triggers: Triggers,
        guests: impl Into<Lanes>,
        any_host: bool,
    ) -> Result<Self, Error> {
        let control = Drain::new(Handle::current());
        // Not a child: workloads go on while the control loop says goodbye.
        let workloads = Drain::new(Handle::current());
        let guests = guests.into();
        let listener = Drain::new(guests.clone());
        let running = Drain::new(guests.clone());
        let guests = Drain::new(guests);
        let engine = Engine::new(
            engine::Config {
                layout: options.layout,
                memory_bytes_max: options.memory_bytes_max,
                instances_max: options.instances_max,
                machine_bytes: Node::new().sample().memory_total,
                address_bytes: node::address_bytes(),
                instance_wait: Duration::from_secs(1),
                call_cpu_max: options.call_cpu_max,
                call_time_max: options.call_time_max,
                compiles_in_flight: 2,
                compiler: options.compiler,
                code_dir: options.code_dir,
                code_bytes_max: options.code_bytes_max,
                flat_names: config.flat_names,
                trust_roots: options.trust_roots,
                outbound: options.outbound,
            },
            plugins,
            interfaces,
        )?;
        let health = Health::default();
        let artifacts = Artifacts::open(config.artifacts.clone(), &config.limits)?;
        let routes = Routes::default();
        let address = match &config.http {
            None => None,
            Some(http) => {
                let timeouts = Timeouts::default();
                // As in `drain`: the last quarter is for what comes after the listener.
                let grace = config.limits.grace - config.limits.grace / 4;
                let limits = Limits {
                    grace,
                    ..config.limits.clone()
                };
                let routes = routes.clone();
                let server = {
                    let health = health.clone();
                    Server::bind(http, &limits, timeouts, routes, health, &listener).await?
                };
                let address = server.local_addr();
                tracing::info!(%address, "serving HTTP");
                Some(address)
            }
        };
        run(&running, engine.plugins().clone());
        let (journal, entries) = journal(config.journal.clone()).await;
        let host = Host::new(Parts {
            identity: config.identity.clone(),
            engine,
            artifacts,
            routes,
            triggers,
            http_port: address.map(|address| address.port()),
            any_host,
            health: health.clone(),
            seal_key: Arc::clone(&config.seal_key),
            state: config.journal.clone(),
            journal,
            orphan_after: config.orphan_after,
            limits: config.limits.clone(),
            default_allowed_hosts: config.default_allowed_hosts.clone(),
            control: workloads.clone(),
            draining: control.clone(),
            guests: guests.clone(),
        });
        let dirs: Vec<_> = [Some(config.artifacts.dir.clone()), config.journal.clone()]
            .into_iter()
            .flatten()
            .collect();
        clean(
            &control,
            host.artifacts().clone(),
            health.clone(),
            dirs.clone(),
        );
        pressure::watch(host.clone(), dirs, health.clone(), &control);
        let admin = config.admin.map(|address| {
            Admin::start(address, host.clone(), health.clone())
                .inspect(|admin| tracing::info!(address = %admin.address(), "serving the admin endpoint"))
                .map_err(|source| Error::Admin { address, source })
        });
        let admin = admin.transpose().inspect_err(|_| {
            // What was begun by now ends, too.
            for owner in [&listener, &running, &workloads, &guests, &control] {
                owner.stop();
            }
        })?;
        health.beat(&control);
        host.restore(entries);
        Ok(Self {
            config,
            host,
            address,
            health,
            admin,
            control,
            workloads,
            listener,
            guests,
            plugins: running,
        })
    }

    /// The host itself.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where HTTP requests come in, with the actual port.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// How it is.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The owner of the control plane's tasks.
    pub fn control(&self) -> &Drain {
        &self.control
    }

    /// Joins the fleet on `client` and serves until `shutdown` completes or the control plane is lost, then
    /// drains. `ready` is called once the fleet has been told.
    ///
    /// # Errors
    /// [`Error::Control`] when the control plane could not be kept up; the host has drained by then.
    pub async fn run(
        self,
        client: nats::Client,
        ready: impl FnOnce(&Host),
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let (ended_sender, ended) = oneshot::channel();
        let (ready_sender, is_ready) = oneshot::channel();
        let control = nats::Control {
            client,
            health: self.health.clone(),
            host: self.config.identity.id.clone(),
            heartbeat_interval: self.config.heartbeat_interval,
            starts_in_queue: self.config.limits.starts_in_queue,
            grace: self.config.limits.grace.min(CONTROL_GRACE),
            restore_within: RESTORE_WITHIN,
            ready: Some(ready_sender),
        };
        let answer = Arc::new(self.host.clone());
        let drain = self.control.clone();
        self.control.spawn("control", async move {
            // The receiver is gone only when the host is already coming down.
            let _ = ended_sender.send(control.run(answer, drain).await);
        });
        let mut ended = ended;
        let mut shutdown = std::pin::pin!(shutdown);
        let host = self.host.clone();
        let outcome = tokio::select! {
            () = &mut shutdown => Ok(()),
            outcome = &mut ended => lost(outcome),
            told = is_ready => {
                if told.is_ok() {
                    ready(&host);
                }
                tokio::select! {
                    () = &mut shutdown => Ok(()),
                    outcome = &mut ended => lost(outcome),
                }
            }
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the control plane was lost; draining");
        }
        self.drain().await;
        outcome
    }

    /// Takes the host down, in order; each step waits for the one before it.
    pub async fn drain(self) {
        let grace = self.host.deadline().unwrap_or(self.config.limits.grace);
        let deadline = tokio::time::Instant::now() + grace;
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        let warn = |step: &str, overdue: Result<(), crate::drain::Overdue>| {
            if let Err(overdue) = overdue {
                tracing::warn!(step, %overdue, "drain step did not finish");
            }
        };
        self.health.drains();
        tracing::info!("draining: control plane (goodbye)");
        let control = left().min(CONTROL_GRACE + Duration::from_secs(1));
        warn("control", self.control.drain(control).await);
        tracing::info!("draining: listener");
        // A part is kept for what comes after: one endless response must not cost the others theirs.
        let listener = left().saturating_sub(grace / 4);
        warn("listener", self.listener.drain(listener).await);
        tracing::info!("draining: workloads");
        self.host.stop_all(left()).await;
        warn("workloads", self.workloads.drain(left()).await);
        warn("calls", self.guests.drain(left()).await);
        tracing::info!("draining: plugins");
        warn("plugins", self.plugins.drain(left()).await);
        if tokio::time::timeout(
            left().max(Duration::from_secs(1)),
            self.host.plugins().close(),
        )
        .await
        .is_err()
        {
            tracing::warn!("plugins were still closing when the time was over");
        }
        drop(self.admin);
        tracing::info!("drained");
    }
}

/// The journal in the state directory, and what is in it. Without one a host runs, too: it says so.
async fn journal(state: Option<PathBuf>) -> (Option<Arc<Journal>>, Vec<Entry>) {
    let Some(state) = state else {
        return (None, Vec::new());
    };
    let read = tokio::task::spawn_blocking(move || {
        let journal = Journal::open(&state)?;
        let entries = journal.read()?;
        Ok::<_, journal::Error>((Arc::new(journal), entries))
    });
    match read.await {
        Ok(Ok((journal, entries))) => (Some(journal), entries),
        Ok(Err(error)) => {
            let error = capabilities::report(&error);
            tracing::error!(
                error,
                "no journal: a restart of this host forgets what runs"
            );
            (None, Vec::new())
        }
        Err(error) => {
            tracing::error!(%error, "no journal: a restart of this host forgets what runs");
            (None, Vec::new())
        }
    }
}

fn lost(
    outcome: Result<Result<(), nats::ControlError>, oneshot::error::RecvError>,
) -> Result<(), Error> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::Control(error)),
        Err(_) => Err(Error::ControlEnded),
    }
}

/// Lets plugins follow their storages while there are guests.
fn run(owner: &Drain, plugins: Plugins) {
    let stop = owner.clone();
    owner.spawn("plugins", async move {
        tokio::select! {
            () = plugins.run() => {}
            () = stop.stopping() => {}
        }
    });
}

/// The cleaner: gives back disk that nobody uses, and is the first to do so when the disk is short.
fn clean(control: &Drain, artifacts: Artifacts, health: Health, dirs: Vec<PathBuf>) {
    let owner = control.clone();
    let mut short_of = health.pressure();
    control.spawn("cleaner", async move {
        // Not at once: what ran before the restart is only about to say what it uses.
        let first = tokio::time::Instant::now() + SWEEP_INTERVAL;
        let mut interval = tokio::time::interval_at(first, SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = owner.stopping() => break,
                _ = interval.tick() => {}
                changed = short_of.changed() => if changed.is_err() { break },
            }
            let short = short_of.borrow_and_update().contains(&pressure::DISK.name);
            let swept = match short {
                false => artifacts.sweep().await,
                true => {
                    let dirs = dirs.clone();
                    artifacts
                        .give_back(move || pressure::disk_is_tight(&dirs))
                        .await
                }
            };
            tracing::debug!(?swept, short, "artifact cache cleaned");
        }
    });
}
