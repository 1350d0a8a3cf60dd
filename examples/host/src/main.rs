//! `example-host`: puts a washlet together with a storage, an interface and a trigger of one's own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use clap::Parser;
use engine::TrustRoots;
use engine::interface::Interfaces;
use example_host::{clock::Clock, diary::Diary, files::Files};
use tokio::runtime::{Builder, Handle};
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};
use washlet::config::{Config, HttpConfig, Identity, NatsConfig};
use washlet::control::nats;
use washlet::identity::StateDir;
use washlet::seal::SealKey;
use washlet::telemetry::{self, Format};
use washlet::trigger::Triggers;
use washlet::{EngineOptions, Washlet, node};

/// Threads of the control plane.
const CONTROL_THREADS: usize = 2;

/// What components keep in memory, in bytes.
const MEMORY_BYTES_MAX: usize = 64 << 20;

/// Instances of all components at once.
const INSTANCES_MAX: u32 = 100;

/// How long threads that are still busy have when the process ends.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A host with a storage, an interface and a trigger of its own
#[derive(Parser)]
struct Args {
    /// The NATS server that commands come from
    #[arg(long, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    scheduler_nats_url: String,
    /// Where HTTP requests come in; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS:PORT")]
    http_addr: SocketAddr,
    /// Where the host keeps its id, images, what it is to run, and what components store
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The name that the fleet sees [default: the machine's]
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    telemetry::init("info", Format::Text)?;
    // Two runtimes, so that no component delays the control plane.
    let control = Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()?;
    let guests = Builder::new_multi_thread().enable_all().build()?;
    let outcome = control.block_on(run(args, guests.handle()));
    guests.shutdown_timeout(LAST_WORDS);
    control.shutdown_timeout(LAST_WORDS);
    outcome
}

/// Serves until it is told to stop (SIGTERM, Ctrl-C), then drains.
async fn run(args: Args, guests: &Handle) -> Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let state = StateDir::open(Some(args.state_dir.clone()))?;
    let images = state.artifacts_dir().context("no place for images")?;
    let name = args.host_name.unwrap_or_else(node::hostname);
    let identity = Identity::new(state.host_id().clone(), &name, "example");
    let scheduler = NatsConfig::new(&args.scheduler_nats_url);
    let key = Arc::new(SealKey::ephemeral()?);
    let mut config = Config::new(identity, scheduler.clone(), images, key);
    config.http = Some(HttpConfig::new(args.http_addr));
    config.journal = state.journal_dir().map(ToOwned::to_owned);
    // For trying out; a fleet has a registry.
    config.artifacts.allow_file = true;

    let mut options = EngineOptions::new(INSTANCES_MAX, TrustRoots::load(true, &[])?);
    options.code_dir = state.compiled_dir();

    // What this host has of its own. The first name is the storage of those who name none.
    let plugins = Plugins::new("files")
        .with(Files::open(&args.state_dir.join("files"))?)
        .with(Memory::new(MEMORY_BYTES_MAX));
    let interfaces = Interfaces::default().with(Diary);
    let triggers = Triggers::default().with(Clock);

    // Before anything is started that would have to be stopped again.
    let client = nats::connect_once(&scheduler, &format!("washlet-{}", state.host_id())).await?;
    let guests = guests.clone();
    let host = Washlet::build(
        config, options, plugins, interfaces, triggers, guests, false,
    )
    .await?;
    let ready = |host: &washlet::host::Host| tracing::info!(id = %host.id(), "ready");
    let stop = async {
        tokio::select! {
            _ = stop.recv() => {}
            _ = ctrl_c() => {}
        }
    };
    host.run(client, ready, stop).await?;
    Ok(())
}
