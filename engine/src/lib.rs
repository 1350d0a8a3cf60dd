//! Compiles, links and runs WebAssembly components; one implementation per WIT interface.
//!
//! ```text
//! bytes ─compile─► Compiled ─link(Grant)─► Runnable ─http / message / change / call_export─► a fresh instance per call
//! ```
//! | module | what it holds |
//! |---|---|
//! | [`wit`] | names and versions of interfaces |
//! | [`compile`](CompileError) | bytes → [`Compiled`], shared by digest |
//! | [`compiler`], [`code`](CodeCounts) | the compiler's process, and what it made on disk |
//! | [`interface`] | what serves imports |
//! | [`link`](LinkError) | [`Compiled`] → [`Runnable`] |
//! | [`invoke`] | calling exports |
//! | [`permits`] | what is bounded, shared fairly between workloads |
//! | [`shards`] | what every request changes, once for each core |
//!
//! Invariants: this crate knows no NATS, no listener and no registry; it spawns no task; the state of an
//! interface lives in the closures it links, so dropping a [`Runnable`] frees its capabilities.

pub mod allowed_hosts;
mod arriving;
mod code;
mod compile;
pub mod compiler;
mod ctx;
pub mod interface;
pub mod invoke;
mod limits;
mod link;
pub mod permits;
mod rates;
mod runnable;
mod runner;
pub mod shards;
mod tuning;
mod under_way;
mod usage;
mod warm;
pub mod wit;

pub use arriving::Arriving;
pub use code::CodeCounts;
pub use compile::{CompileError, Compiled};
pub use ctx::{Ctx, Owner};
pub use interface::http::{Outbound, TrustError, TrustRoots, Turns};
pub use interface::messaging::SUBSCRIPTION_KEYS;
pub use link::{Grant, LinkError};
pub use rates::GuestLog;
pub use runnable::Runnable;
pub use tuning::{CHECKED_MEMORY_BYTES_MAX, Layout, UnknownLayout};
pub use usage::{Usage, Used};
pub use warm::Reuse;
/// For who implements an [`interface`] or calls exports: the version that this engine is made of.
pub use wasmtime;

use bytes::Bytes;
use capabilities::plugin::Plugins;
use code::CodeStore;
use compile::Compile;
use compiler::Compiler;
use futures::future::BoxFuture;
use interface::Interfaces;
use runner::Runners;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::PoolingAllocationConfig;

/// Who finishes a guest's work that outlives its response. The engine spawns nothing itself.
pub type Background = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// What an engine is told before it starts.
#[derive(Clone)]
pub struct Config {
    /// How memories lie in the address space; a small one gets [`Layout::Checked`] whatever stands here.
    pub layout: Layout,
    /// The largest memory of one instance, in bytes; a component's limit may not be above it. The layout
    /// may allow less: [`Engine::config`] says what it came to.
    pub memory_bytes_max: u64,
    /// How many instances may live at once; the machine's memory may allow fewer.
    pub instances_max: u32,
    /// Memory of the machine, or of this process's share of it, in bytes.
    pub machine_bytes: u64,
    /// Address space that this process may take, in bytes; [`u64::MAX`] without a limit.
    pub address_bytes: u64,
    /// How long a call waits for one of them.
    pub instance_wait: Duration,
    /// CPU time of one call.
    pub call_cpu_max: Duration,
    /// Wall time of one call until the head of its response, or until it returns.
    pub call_time_max: Duration,
    /// Compilations at once.
    pub compiles_in_flight: usize,
    /// Who compiles; `None`: this process.
    pub compiler: Option<Compiler>,
    /// Where compiled code is kept, of which no other process knows; `None`: in memory, while it is used.
    pub code_dir: Option<PathBuf>,
    /// How much is kept there, in bytes.
    pub code_bytes_max: u64,
    /// Bucket names are the storage's own, not scoped by the workload's namespace.
    pub flat_names: bool,
    /// Whom outgoing HTTPS trusts.
    pub trust_roots: TrustRoots,
    /// How much may go out at once.
    pub outbound: Outbound,
}

/// How the pool of instances is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instances {
    /// How many may live at once.
    pub max: u64,
    /// How many do, idle warm ones among them.
    pub live: u64,
    /// Calls that wait for one.
    pub waiting: u64,
}

/// Why an engine cannot be made.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Wasmtime refused the configuration on this machine.
    #[error("failed to start the WebAssembly engine: {0}")]
    Start(String),
    /// The thread that measures guests' time could not be started.
    #[error("failed to start the epoch thread")]
    Ticker(#[source] std::io::Error),
}

/// Runs components; clones are the same engine.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    runners: Arc<Runners>,
    pub(crate) config: Config,
    pub(crate) plugins: Plugins,
    pub(crate) interfaces: Interfaces,
    outbound: Arc<Semaphore>,
    /// What is in use by digest, whatever the cache keeps.
    live: Mutex<HashMap<String, Weak<Compiled>>>,
    compiled: moka::future::Cache<String, Arc<Compiled>>,
    compile: Arc<Compile>,
}

/// How many compiled components are kept that no workload uses.
const COMPILED_IDLE_MAX: u64 = 64;

impl Engine {
    /// Makes an engine that opens capabilities from `plugins` through `interfaces`.
    ///
    /// # Errors
    /// [`Error`] when the machine cannot hold even the smallest pool.
    pub fn new(
        mut config: Config,
        plugins: Plugins,
        interfaces: Interfaces,
    ) -> Result<Self, Error> {
        let wanted = tuning::Wanted {
            layout: config.layout,
            instances_max: config.instances_max,
            memory_bytes_max: config.memory_bytes_max,
            machine_bytes: config.machine_bytes,
            address_bytes: config.address_bytes,
            pagemap: PoolingAllocationConfig::is_pagemap_scan_available(),
        };
        let runners = Arc::new(Runners::new(wanted)?);
        let runner = runners.p2();
        config.layout = runner.layout;
        config.instances_max = runner.instances_max;
        config.memory_bytes_max = runner.memory_bytes_max;
        let store = config.code_dir.as_deref().and_then(|dir| {
            CodeStore::open(dir, &runner.engine, config.code_bytes_max)
                .inspect_err(|error| {
                    tracing::warn!(
                        %error, dir = %dir.display(),
                        "compiled code is not kept: components are compiled at each start of this host"
                    );
                })
                .ok()
        });
        let compile = Compile {
            runners: Arc::clone(&runners),
            permits: Arc::new(Semaphore::new(config.compiles_in_flight.max(1))),
            compiler: config.compiler.clone(),
            store,
            compiled: AtomicU64::new(0),
        };
        Ok(Self(Arc::new(Inner {
            runners,
            plugins,
            interfaces,
            outbound: Arc::new(Semaphore::new(config.outbound.per_host)),
            live: Mutex::default(),
            compiled: moka::future::Cache::new(COMPILED_IDLE_MAX),
            compile: Arc::new(compile),
            config,
        })))
    }

    /// What this engine was told.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Where its capabilities come from.
    pub fn plugins(&self) -> &Plugins {
        &self.0.plugins
    }

    /// What it serves beyond WASI.
    pub fn interfaces(&self) -> &Interfaces {
        &self.0.interfaces
    }

    /// What was compiled for `digest` before: what is in use, kept for the next, or on disk.
    pub async fn compiled(&self, digest: &str) -> Option<Arc<Compiled>> {
        if let Some(compiled) = self.in_use(digest) {
            return Some(compiled);
        }
        let load = Arc::clone(&self.0.compile).load(digest);
        let compiled = self.0.compiled.optionally_get_with_by_ref(digest, load);
        let compiled = compiled.await?;
        self.remember(&compiled);
        Some(compiled)
    }

    /// How the pools of instances are used: of both engines, once the second is there.
    pub fn instances(&self) -> Instances {
        let mut all = Instances::default();
        for runner in self.0.runners.made() {
            let max = u64::from(runner.instances_max);
            all.max += max;
            all.live += max.saturating_sub(runner.instances.free() as u64);
            all.waiting += runner.instances.waiting() as u64;
        }
        all
    }

    /// What was done with compiled code so far.
    pub fn code(&self) -> CodeCounts {
        let compiled = self.0.compile.compiled.load(Ordering::Relaxed);
        match &self.0.compile.store {
            Some(store) => store.counts(compiled),
            None => CodeCounts {
                compiled,
                ..CodeCounts::default()
            },
        }
    }

    fn in_use(&self, digest: &str) -> Option<Arc<Compiled>> {
        self.live().get(digest).and_then(Weak::upgrade)
    }

    fn remember(&self, compiled: &Arc<Compiled>) {
        let mut live = self.live();
        if live.len() == live.capacity() {
            // Before it grows: what nobody uses any more leaves.
            live.retain(|_, compiled| compiled.strong_count() > 0);
        }
        live.insert(compiled.digest().to_owned(), Arc::downgrade(compiled));
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Weak<Compiled>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns for the outgoing requests of one more workload.
    pub fn turns(&self) -> Turns {
        Turns::new(&self.0.config.outbound, &self.0.outbound)
    }

    /// Compiles `bytes`, or returns what was compiled for `digest` before; callers with one digest share one
    /// compilation.
    ///
    /// # Errors
    /// [`CompileError`].
    pub async fn compile(&self, digest: &str, bytes: Bytes) -> Result<Arc<Compiled>, CompileError> {
        if let Some(compiled) = self.in_use(digest) {
            return Ok(compiled);
        }
        let compile = Arc::clone(&self.0.compile).compile(digest, bytes);
        let compiled = self.0.compiled.try_get_with_by_ref(digest, compile);
        let compiled = compiled
            .await
            .map_err(|error| CompileError::clone(&error))?;
        self.remember(&compiled);
        Ok(compiled)
    }

    /// Links `compiled` with what `grant` gives it.
    ///
    /// # Errors
    /// [`LinkError`], which names the import and the remedy.
    pub async fn link(
        &self,
        compiled: &Arc<Compiled>,
        grant: Grant,
    ) -> Result<Runnable, LinkError> {
        link::link(self, compiled, grant).await
    }
}
