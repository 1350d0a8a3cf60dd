//! `wash dev`: one component, memory for storage, HTTP for the world; again whenever its file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::TrustRoots;
use engine::interface::Interfaces;
use engine::wit::WitName;
use notify::Watcher;
use subjects::wire::{
    Component, LocalResources, WitInterface, WitWorld, Workload, WorkloadState, WorkloadStatus,
};
use subjects::{HostId, WorkloadId};
use tokio::sync::Notify;
use washlet::config::{
    ArtifactConfig, Config, HttpConfig, Identity, Limits, NatsAuth, NatsConfig, NatsTls,
};
use washlet::host::Host;
use washlet::{EngineOptions, Washlet};

use crate::args::{DevArgs, Interface};
use crate::guests::Guests;
use crate::host::{compiler, runtime, signals};
use crate::output::{self, Exit, Failure, Report};

/// A file is taken for written when nothing happened to it for so long.
const SETTLE: Duration = Duration::from_millis(150);

/// What the storage in memory may hold, in bytes.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Runs one component until it is told to stop.
pub(crate) fn run(args: DevArgs) -> Result<Report, Failure> {
    let file = args.component.canonicalize().map_err(|error| {
        Failure::usage(format!(
            "cannot read \"{}\": {error}",
            args.component.display()
        ))
    })?;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, capabilities::report(error))
    };
    let work = tempfile::tempdir().map_err(|error| failed(&error))?;
    let trust_roots = TrustRoots::load(true, &[]).map_err(|error| failed(&error))?;
    let control = runtime("control", Some(1))?;
    let guests = Guests::start(args.tuning.profile, None)?;
    let outcome = control.block_on(async {
        let (mut stop, again) = signals()?;
        let plugins = Plugins::new("memory").with(Memory::new(MEMORY_BYTES_MAX));
        let config = config(&args, work.path())?;
        let mut options = EngineOptions::new(64, trust_roots);
        options.layout = args.tuning.profile.layout();
        options.compiler = compiler();
        let lanes = guests.lanes();
        let washlet =
            Washlet::build(config, options, plugins, Interfaces::default(), lanes, true).await;
        let washlet = washlet.map_err(|error| failed(&error))?;
        let changed = Arc::new(Notify::new());
        let _watcher = watch(&file, &changed).map_err(|error| failed(&error))?;
        let address = washlet.http_address().map(|address| address.to_string());
        output::note(&format!("http://{}", address.unwrap_or_default()));
        let serve = async {
            reload(&args, &file, washlet.host(), &changed, &mut stop).await;
            washlet.drain().await;
        };
        tokio::select! {
            () = serve => {}
            () = again.twice() => {}
        }
        Ok(())
    });
    guests.shutdown();
    control.shutdown_timeout(Duration::from_millis(100));
    outcome.map(|()| Report {
        message: "stopped".to_owned(),
        ..Report::default()
    })
}

fn config(args: &DevArgs, work: &Path) -> Result<Config, Failure> {
    let id = HostId::new("dev").map_err(|error| Failure::usage(error.to_string()))?;
    Ok(Config {
        identity: Identity {
            id,
            hostname: "localhost".to_owned(),
            group: "dev".to_owned(),
            environment: String::new(),
            labels: std::collections::BTreeMap::new(),
        },
        scheduler: NatsConfig {
            url: String::new(),
            tls: NatsTls::default(),
            auth: NatsAuth::None,
            inbox_prefix: None,
            ping_interval: crate::args::PING_INTERVAL,
        },
        heartbeat_interval: Duration::from_secs(15),
        http: Some(HttpConfig {
            address: args.http_addr,
            tls: None,
            drain_delay: Duration::ZERO,
        }),
        artifacts: ArtifactConfig {
            dir: work.join("artifacts"),
            budget_bytes: 1 << 30,
            allow_insecure: false,
            ca: Vec::new(),
            pull_timeout: Duration::from_secs(30),
            allow_file: true,
        },
        limits: Limits {
            grace: Duration::from_secs(5),
            ..Limits::default()
        },
        default_allowed_hosts: args.allowed_hosts.clone(),
        flat_names: false,
        admin: None,
        journal: None,
        orphan_after: Duration::ZERO,
    })
}

/// Tells `changed` whenever something happens to the file, also when it is replaced by another.
fn watch(file: &Path, changed: &Arc<Notify>) -> notify::Result<impl Watcher + use<>> {
    let (name, changed) = (file.file_name().map(ToOwned::to_owned), Arc::clone(changed));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let ours = |path: &PathBuf| path.file_name() == name.as_deref();
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(ours)) {
            changed.notify_one();
        }
    })?;
    // The directory, because many tools replace a file rather than write to it.
    let directory = file.parent().unwrap_or(Path::new("/"));
    watcher.watch(directory, notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Starts the component, and again on each change: the new one serves before the old one stops, and one
/// that does not start leaves the old one as it is.
async fn reload(
    args: &DevArgs,
    file: &Path,
    host: &Host,
    changed: &Notify,
    stop: &mut crate::host::Signals,
) {
    let mut serving: Option<WorkloadId> = None;
    for generation in 1_u64.. {
        match start(args, file, host, generation).await {
            Ok(id) => {
                output::note(&format!(
                    "{} serves (generation {generation})",
                    file.display()
                ));
                if let Some(old) = serving.replace(id) {
                    host.stop(&old).await;
                }
            }
            Err(failure) => {
                output::note(&format!(
                    "{} does not start: {}",
                    file.display(),
                    failure.message()
                ));
                if serving.is_some() {
                    output::note("the one before serves on");
                }
            }
        }
        tokio::select! {
            () = changed.notified() => {}
            () = stop.recv() => return,
        }
        // Until it is quiet: a build writes a file in many steps.
        while tokio::time::timeout(SETTLE, changed.notified())
            .await
            .is_ok()
        {}
    }
}

async fn start(
    args: &DevArgs,
    file: &Path,
    host: &Host,
    generation: u64,
) -> Result<WorkloadId, Failure> {
    let bytes = crate::oci::read(file)?;
    let wit = crate::inspect::decode(&bytes)
        .map_err(|error| Failure::new(Exit::Failed, format!("is not a component: {error:#}")))?;
    let mut interfaces = args.interfaces.clone();
    let plain = wit.imports.iter().chain(&wit.exports);
    let plain = plain.map(|name| ("", name.as_str()));
    let labelled = wit.labelled.iter();
    let labelled = labelled.map(|(label, name)| (label.as_str(), name.as_str()));
    declare(&mut interfaces, plain.chain(labelled));
    let workload = workload(
        args,
        file,
        crate::workload::interfaces(&interfaces, &args.interface_config)?,
    );
    let id = WorkloadId::new(format!("dev-{generation}"))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let WorkloadStatus {
        workload_state,
        message,
        ..
    } = host
        .start(id.clone(), workload)
        .await
        .map_err(|error| Failure::new(Exit::Refused, capabilities::report(&error)))?;
    if workload_state != WorkloadState::Running {
        host.stop(&id).await;
        return Err(Failure::new(Exit::Refused, message));
    }
    Ok(id)
}

/// Declares every interface the component names and nobody declared: while developing, what it needs is
/// what it gets. Shape: `names` are labels, empty for plain ones, with their interfaces.
fn declare<'a>(interfaces: &mut Vec<Interface>, names: impl Iterator<Item = (&'a str, &'a str)>) {
    for (label, name) in names.filter_map(|(label, name)| Some((label, WitName::parse(name)?))) {
        let always = name.namespace == "wasi"
            && matches!(
                name.package.as_str(),
                "io" | "clocks" | "random" | "cli" | "filesystem" | "sockets"
            );
        let incoming = ["incoming-handler", "handler"].contains(&name.interface.as_str());
        let outgoing = name.is_of("wasi", "http") && !incoming;
        if always || outgoing || name.interface == "types" {
            continue;
        }
        let same = |known: &&mut Interface| {
            known.name == label
                && known.namespace == name.namespace
                && known.package == name.package
        };
        match interfaces.iter_mut().find(same) {
            Some(known) if known.interfaces.contains(&name.interface) => {}
            Some(known) => known.interfaces.push(name.interface),
            None => interfaces.push(Interface {
                name: label.to_owned(),
                namespace: name.namespace,
                package: name.package,
                interfaces: vec![name.interface],
                version: name
                    .version
                    .map(|version| version.to_string())
                    .unwrap_or_default(),
            }),
        }
    }
}

fn workload(args: &DevArgs, file: &Path, host_interfaces: Vec<WitInterface>) -> Workload {
    let name = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let component = Component {
        name: name.unwrap_or_default(),
        image: format!("file://{}", file.display()),
        local_resources: Some(LocalResources {
            config: args.config.iter().cloned().collect(),
            environment: args.env.iter().cloned().collect(),
            allowed_hosts: args.allowed_hosts.clone(),
            ..LocalResources::default()
        }),
        ..Component::default()
    };
    Workload {
        namespace: "default".to_owned(),
        name: "dev".to_owned(),
        wit_world: Some(WitWorld {
            components: vec![component],
            host_interfaces,
        }),
        ..Workload::default()
    }
}
