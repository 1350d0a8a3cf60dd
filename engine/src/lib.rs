//! Compiles, links and runs WebAssembly components; one implementation per WIT interface.
//!
//! ```text
//! bytes ─compile─► Compiled ─link(Grant)─► Runnable ─http / message─► a fresh instance per call
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
mod runnable;
pub mod shards;
mod tuning;
mod warm;
pub mod wit;

pub use arriving::Arriving;
pub use code::CodeCounts;
pub use compile::{CompileError, Compiled};
pub use ctx::{Ctx, Owner};
pub use interface::http::{Outbound, TrustError, TrustRoots, Turns};
pub use interface::messaging::SUBSCRIPTION_KEYS;
pub use link::{Grant, LinkError};
pub use runnable::Runnable;
pub use tuning::{CHECKED_MEMORY_BYTES_MAX, Layout, UnknownLayout};
pub use warm::Reuse;

use bytes::Bytes;
use capabilities::plugin::Plugins;
use code::CodeStore;
use compile::Compile;
use compiler::Compiler;
use futures::future::BoxFuture;
use interface::Interfaces;
use limits::Ticker;
use permits::Permits;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::PoolingAllocationConfig;
use wasmtime::component::Linker;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) engine: wasmtime::Engine,
    pub(crate) linker: Linker<Ctx>,
    pub(crate) config: Config,
    pub(crate) plugins: Plugins,
    pub(crate) interfaces: Interfaces,
    pub(crate) instances: Permits,
    outbound: Arc<Semaphore>,
    /// What is in use by digest, whatever the cache keeps.
    live: Mutex<HashMap<String, Weak<Compiled>>>,
    compiled: moka::future::Cache<String, Arc<Compiled>>,
    compile: Arc<Compile>,
    _ticker: Ticker,
}

/// Calls that wait for an instance.
const CALLS_WAITING_MAX: usize = 4_096;

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
        let start = |error: wasmtime::Error| Error::Start(format!("{error:#}"));
        let wanted = tuning::Wanted {
            layout: config.layout,
            instances_max: config.instances_max,
            memory_bytes_max: config.memory_bytes_max,
            machine_bytes: config.machine_bytes,
            address_bytes: config.address_bytes,
            pagemap: PoolingAllocationConfig::is_pagemap_scan_available(),
        };
        let (engine, pool) = wanted.allocate()?;
        config.layout = pool.layout;
        config.instances_max = pool.instances;
        config.memory_bytes_max = pool.memory_bytes_max;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(start)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(start)?;
        let store = config.code_dir.as_deref().and_then(|dir| {
            CodeStore::open(dir, &engine, config.code_bytes_max)
                .inspect_err(|error| {
                    tracing::warn!(
                        %error, dir = %dir.display(),
                        "compiled code is not kept: components are compiled at each start of this host"
                    );
                })
                .ok()
        });
        let compile = Compile {
            engine: engine.clone(),
            layout: config.layout,
            permits: Arc::new(Semaphore::new(config.compiles_in_flight.max(1))),
            compiler: config.compiler.clone(),
            store,
            compiled: AtomicU64::new(0),
        };
        let ticker = Ticker::start(engine.weak()).map_err(Error::Ticker)?;
        Ok(Self(Arc::new(Inner {
            engine,
            linker,
            plugins,
            interfaces,
            outbound: Arc::new(Semaphore::new(config.outbound.per_host)),
            instances: Permits::new(config.instances_max as usize, CALLS_WAITING_MAX),
            live: Mutex::default(),
            compiled: moka::future::Cache::new(COMPILED_IDLE_MAX),
            compile: Arc::new(compile),
            config,
            _ticker: ticker,
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

    /// How the pool of instances is used.
    pub fn instances(&self) -> Instances {
        let max = u64::from(self.0.config.instances_max);
        Instances {
            max,
            live: max.saturating_sub(self.0.instances.free() as u64),
            waiting: self.0.instances.waiting() as u64,
        }
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
