//! `wash host`: puts a host together, joins the fleet, and comes apart in order.

use std::fs::File;
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::TrustRoots;
use engine::compiler::Compiler;
use engine::interface::Interfaces;
use plugins_local::{Environment, Files};
use plugins_nats::Nats;
use plugins_postgres::Postgres;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use washlet::artifact;
use washlet::config::{Config, Identity};
use washlet::control::nats;
use washlet::drain::Drain;
use washlet::identity::StateDir;
use washlet::seal::SealKey;
use washlet::trigger::{Triggers, http};
use washlet::{EngineOptions, Washlet};

use crate::args::{HostArgs, LogFormat, TrustRoots as TrustRootsArg};
use crate::guests::Guests;
use crate::manifests;
use crate::output::{self, Exit, Failure, Report};
use crate::supervisor;

/// Threads of the control plane: few, because it computes little.
const CONTROL_THREADS: usize = 2;

/// What the memory plugin may hold, in bytes: it is for development, not for data.
const MEMORY_PLUGIN_BYTES_MAX: usize = 64 << 20;

/// Instances of all components at once.
const INSTANCES_MAX: u32 = 1_000;

/// Runs a host until it is told to stop.
pub(crate) fn run(args: HostArgs, format: LogFormat) -> Result<Report, Failure> {
    args.check()?;
    // Before anything is sized by it.
    washlet::node::raise_files();
    let state = StateDir::open(args.identity.state_dir.clone())
        .map_err(|error| Failure::usage(capabilities::report(&error)))?;
    let seal_key = state.seal_key();
    let seal_key = seal_key.map_err(|error| Failure::usage(capabilities::report(&error)))?;
    let key = seal_key.public().to_string();
    let config = config(&args, &state, Arc::new(seal_key))?;
    tracing::info!(key, "values sealed to this key open on this host");
    // Before NATS is waited for, which may take long.
    washlet::check(&config).map_err(|error| failure(&error))?;
    let trust_roots = TrustRoots::load(
        args.http.http_client_trust_roots == TrustRootsArg::Webpki,
        &args.http.http_client_ca_path,
    )
    .map_err(|error| Failure::usage(capabilities::report(&error)))?;
    let data = args.data()?;
    if let Some(dir) = &args.identity.manifest_dir
        && let Err(error) = std::fs::read_dir(dir)
    {
        let problem = format!(
            "--manifest-dir \"{}\" cannot be read: {error}",
            dir.display()
        );
        return Err(
            Failure::usage(problem).hint("name a directory with manifests; it may be empty")
        );
    }
    let postgres = args.postgres()?;
    let control = runtime("control", Some(CONTROL_THREADS))?;
    let guests = Guests::start(args.run.tuning.profile, args.run.threads.map(usize::from))?;
    let outcome = control.block_on(async {
        let (mut signals, again) = signals()?;
        let scheduler = config.scheduler.clone();
        let group = config.identity.group.clone();
        let identity = config.identity.clone();
        let id = config.identity.id.to_string();
        nats::usable(&scheduler).await.map_err(unusable)?;
        // The data connection lives where guests do, away from the control plane.
        let name = format!("washlet-data-{id}");
        let lane = guests.handle().unwrap_or(control.handle());
        let data = lane.spawn(async move { nats::connect_later(&data, &name).await });
        let data_client = tokio::select! {
            data = data => data.map_err(anyhow::Error::from)?.map_err(unusable)?,
            () = signals.recv() => return Ok(()),
        };
        let mut plugins = Plugins::new("nats")
            .with(Memory::new(MEMORY_PLUGIN_BYTES_MAX))
            .with(Nats::new(data_client.clone()).with_opener(config.seal_key.clone()))
            .with(Postgres::new(postgres.as_ref()));
        if let Some(dir) = &args.secrets.secrets_dir {
            plugins = plugins.with(Files::new(dir));
        }
        if let Some(prefix) = &args.secrets.secrets_env_prefix {
            plugins = plugins.with(Environment::new(prefix, std::env::vars_os()));
        }
        let mut options = EngineOptions::new(INSTANCES_MAX, trust_roots);
        options.layout = args.run.tuning.profile.layout();
        options.outbound = args.http.outbound();
        options.compiler = compiler();
        options.code_dir = state.compiled_dir();
        options.code_bytes_max = args.images.compiled_budget;
        let (interfaces, triggers) = (Interfaces::default(), Triggers::default());
        let lanes = guests.lanes();
        let washlet = Washlet::build(config, options, plugins, interfaces, triggers, lanes, false)
            .await
            .map_err(|error| failure(&error))?;
        nats::show_data(washlet.health(), data_client);
        if let Some(dir) = &args.identity.manifest_dir {
            let (host, control) = (washlet.host().clone(), washlet.control().clone());
            let follow = manifests::follow(dir.clone(), host, identity, control);
            washlet.control().spawn("manifests", follow);
        }
        let http = washlet.http_address().map(|address| address.to_string());
        let server = nats::server(&scheduler);
        let ready = |host: &washlet::host::Host| {
            let (name, http) = (host.name(), http.as_deref().unwrap_or("none"));
            supervisor::status(&format!("ready: host {id} ({name})"));
            match format {
                LogFormat::Text => output::note(&format!(
                    "ready: host {id} ({name}), group {group}, http {http}, nats {server}, key {key}"
                )),
                LogFormat::Json => tracing::info!(id, name, group, http, nats = server, key, "ready"),
            }
        };
        supervisor::watch(washlet.health().clone(), washlet.control());
        supervisor::ready("serves what ran before; waiting for NATS");
        let run = async {
            // What ran before serves already. Waiting for NATS is owned too, so that a signal ends it.
            let waiting = Drain::new(control.handle().clone());
            let name = format!("washlet-{id}");
            let connected = tokio::select! {
                connected = nats::connect(&scheduler, &name, &waiting) => connected,
                () = told_to_stop(&mut signals, washlet.host()) => Ok(None),
            };
            waiting.stop();
            match connected {
                Ok(Some(client)) => {
                    let host = washlet.host().clone();
                    let run = washlet.run(client, ready, told_to_stop(&mut signals, &host));
                    run.await.map_err(|error| failure(&error))
                }
                Ok(None) => {
                    washlet.drain().await;
                    Ok(())
                }
                Err(error) => {
                    washlet.drain().await;
                    Err(unusable(error))
                }
            }
        };
        tokio::select! {
            outcome = run => outcome,
            () = again.twice() => {
                Err(Failure::new(Exit::Failed, "ended at once by a second signal; calls were cut"))
            }
        }
    });
    // Whatever is still running had its time.
    guests.shutdown();
    control.shutdown_timeout(Duration::from_millis(100));
    drop(state);
    outcome.map(|()| Report {
        message: "Host exited successfully".to_owned(),
        data: json!({}),
        ..Report::default()
    })
}

/// A connection that no waiting will bring.
fn unusable(error: nats::ConnectError) -> Failure {
    Failure::usage(capabilities::report(&error))
}

/// A host that cannot be built, or ended: wrong usage when a file it was given is of no use.
fn failure(error: &washlet::Error) -> Failure {
    let exit = match error {
        washlet::Error::Http(http::Error::Tls(_))
        | washlet::Error::Artifacts(artifact::Error::Client(_)) => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, capabilities::report(error))
}

/// Completes at the first signal, or when the fleet asks this host to leave; systemd is told.
async fn told_to_stop(signals: &mut Signals, host: &washlet::host::Host) {
    tokio::select! {
        () = signals.recv() => {}
        () = host.told_to_leave() => {}
    }
    supervisor::stopping();
}

/// This program again: the file it was started from, whatever is put at its path later.
pub(crate) fn compiler() -> Option<Compiler> {
    let file = std::env::current_exe().and_then(File::open);
    let file = file.inspect_err(|error| {
        tracing::warn!(%error, "this program's file cannot be opened; components are compiled in this process");
    });
    // Open for as long as this process lives.
    let number = file.ok()?.into_raw_fd();
    Some(Compiler {
        program: format!("/proc/self/fd/{number}").into(),
        args: vec!["compile-component".into()],
    })
}

/// A runtime with threads named `name`.
pub(crate) fn runtime(name: &str, threads: Option<usize>) -> Result<Runtime, Failure> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    let runtime = builder.thread_name(name).enable_all().build();
    runtime.map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("threads could not be started: {error}"),
        )
    })
}

fn config(args: &HostArgs, state: &StateDir, seal_key: Arc<SealKey>) -> Result<Config, Failure> {
    let artifacts: PathBuf = match (&args.images.oci_cache_dir, state.artifacts_dir()) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) => dir,
        (None, None) => {
            return Err(Failure::usage("there is nowhere to keep images")
                .hint("name a directory that can be written with --oci-cache-dir or --state-dir"));
        }
    };
    let hostname = match &args.identity.host_name {
        Some(name) => name.clone(),
        None => washlet::node::hostname(),
    };
    Ok(Config {
        identity: Identity {
            id: args
                .identity
                .host_id
                .clone()
                .unwrap_or_else(|| state.host_id().clone()),
            hostname,
            group: args.identity.host_group.clone(),
            environment: args.identity.environment.clone(),
            labels: args.identity.labels(),
        },
        scheduler: args.scheduler()?,
        heartbeat_interval: args.identity.heartbeat_interval,
        admin: args.identity.admin_addr,
        journal: state.journal_dir().map(Path::to_owned),
        seal_key,
        orphan_after: args.identity.orphan_after,
        http: args.http.listener(),
        artifacts: args.images.artifacts(&artifacts)?,
        limits: args.run.limits(),
        default_allowed_hosts: args.run.default_allowed_hosts.clone(),
        flat_names: args.run.flat_names,
    })
}

/// SIGTERM and SIGINT, however often.
pub(crate) struct Signals(tokio::sync::watch::Receiver<u32>);

/// Watches for signals: one to wait for the first, one for the second.
pub(crate) fn signals() -> Result<(Signals, Signals), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("signals cannot be had: {error}"))
    };
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = tokio::sync::watch::channel(0);
    Drain::new(tokio::runtime::Handle::current()).spawn("signals", async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = sender.closed() => break,
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok((Signals(receiver.clone()), Signals(receiver)))
}

impl Signals {
    /// Completes at the first signal.
    pub(crate) async fn recv(&mut self) {
        // An error means that nobody watches any more, which ends the process too.
        let _ = self.0.wait_for(|count| *count >= 1).await;
    }

    /// Completes at the second signal.
    pub(crate) async fn twice(mut self) {
        let _ = self.0.wait_for(|count| *count >= 2).await;
    }
}
