//! A linked component, and the recipe for a fresh instance of it.

use std::sync::Arc;
use std::time::Duration;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre, ResourceTable};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi_http::WasiHttpCtx;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use crate::ctx::{Ctx, GuestOutput, Owner};
use crate::interface::http::{Egress, Outgoing};
use crate::interface::keyvalue::watcher::{Watching, WatchingPre};
use crate::interface::messaging::{MessagingHandler, MessagingHandlerPre};
use crate::interface::messaging_p3;
use crate::invoke::Error;
use crate::limits::{Limits, MemoryBudget, Meter, Payer, TABLE_ELEMENTS_MAX, epoch_passed};
use crate::permits::{Permit, Share};
use crate::rates::{CpuShare, GuestLog};
use crate::runner::Wasi;
use crate::shards::{Handle, Spread};
use crate::usage::Usage;
use crate::warm::{Reuse, Warm};
use crate::wit::WitName;
use crate::{Compiled, Engine};

/// Resources (bodies, headers, buckets, pollables) one instance may have: each can hold host memory.
const RESOURCES_MAX: usize = 1_024;

/// Handles one asynchronous instance may have: to resources, but also calls under way, streams and futures, which a
/// guest has for nothing and the host remembers.
const HANDLES_MAX: usize = 4_096;

/// Bytes a guest may hand to the host in one call.
const HOSTCALL_BYTES_MAX: usize = 24 << 20;

/// A component that is linked and ready; clones are the same.
#[derive(Clone)]
pub struct Runnable(Arc<Linked>);

struct Linked {
    recipe: Spread<Recipe>,
    /// `None`: each call has a fresh instance.
    warm: Option<Spread<WarmSets>>,
}

/// The instances of one component that serve more than one call. They refer to its [`Recipe`], so that
/// must not refer to them.
pub(crate) struct WarmSets {
    pub(crate) service: Warm<Service>,
    pub(crate) http: Warm<Proxy>,
    pub(crate) messaging: Warm<MessagingHandler>,
    pub(crate) messaging_p3: Warm<messaging_p3::MessagingHandler>,
    /// Of the exports that others have bindings for.
    pub(crate) exports: Warm<Instance>,
    pub(crate) watcher: Warm<Watching>,
}

/// What all instances of a component have in common.
pub(crate) struct Recipe {
    pub(crate) engine: Engine,
    /// Kept so that others with the same digest find it.
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) pre: InstancePre<Ctx>,
    /// Goes before `http`, if a component has both.
    pub(crate) service: Option<ServicePre<Ctx>>,
    pub(crate) http: Option<ProxyPre<Ctx>>,
    pub(crate) messaging: Option<MessagingHandlerPre<Ctx>>,
    /// Goes before `messaging`.
    pub(crate) messaging_p3: Option<messaging_p3::MessagingHandlerPre<Ctx>>,
    pub(crate) watcher: Option<WatchingPre<Ctx>>,
    pub(crate) log: Arc<GuestLog>,
    pub(crate) usage: Arc<Usage>,
    /// `None`: as much of the processors as there is.
    pub(crate) cpu: Option<CpuShare>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) egress: Egress,
    pub(crate) memory: MemoryBudget,
    /// Its part of the allocator pool.
    pub(crate) share: Share,
}

impl Runnable {
    pub(crate) fn new(recipe: Recipe, reuse: Reuse) -> Self {
        let warm = (reuse.instances_max > 0).then(|| {
            let live = Arc::default();
            Spread::new(WarmSets {
                service: Warm::new(reuse, &live),
                http: Warm::new(reuse, &live),
                messaging: Warm::new(reuse, &live),
                messaging_p3: Warm::new(reuse, &live),
                exports: Warm::new(reuse, &live),
                watcher: Warm::new(reuse, &live),
            })
        });
        let recipe = Spread::new(recipe);
        Self(Arc::new(Linked { recipe, warm }))
    }

    pub(crate) fn recipe(&self) -> Handle<Recipe> {
        self.0.recipe.handle()
    }

    pub(crate) fn warm(&self) -> Option<Handle<WarmSets>> {
        self.0.warm.as_ref().map(Spread::handle)
    }

    /// Whether it answers HTTP requests.
    pub fn serves_http(&self) -> bool {
        self.0.recipe.http.is_some() || self.0.recipe.service.is_some()
    }

    /// Whether it handles messages.
    pub fn handles_messages(&self) -> bool {
        self.0.recipe.messaging.is_some() || self.0.recipe.messaging_p3.is_some()
    }

    /// What its instances are made from: where bindings look for the exports they are for.
    pub fn pre(&self) -> &InstancePre<Ctx> {
        &self.0.recipe.pre
    }

    /// The interfaces it exports.
    pub fn exported(&self) -> impl Iterator<Item = WitName> + '_ {
        self.0.recipe.compiled.exported()
    }

    /// Whether it is to be told of changes of keys.
    pub fn watches_keys(&self) -> bool {
        self.0.recipe.watcher.is_some()
    }

    /// Who it is.
    pub fn owner(&self) -> &Arc<Owner> {
        &self.0.recipe.log.owner
    }

    /// What it uses.
    pub fn usage(&self) -> &Arc<Usage> {
        &self.0.recipe.usage
    }
}

/// Prepares an instance that has served before for one more call, whose time is on `meter`.
pub(crate) fn begin_call(store: &mut Store<Ctx>, meter: Arc<Meter>) {
    store.data_mut().limits.begin_call(meter);
    allow_call(store);
}

/// What one call may use of the host.
fn allow_call(store: &mut Store<Ctx>) {
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    store.set_epoch_deadline(1);
}

/// Whether an instance may be kept for the next call: neither the pool nor the component's memory is short.
pub(crate) fn is_roomy(store: &Store<Ctx>) -> bool {
    let ctx = store.data();
    let runner = &ctx.recipe.compiled.runner;
    let spare = runner.instances_max as usize / 4;
    runner.instances.free() >= spare && ctx.limits.has_room()
}

impl Payer for Handle<Recipe> {
    fn pay(&self, computed: Duration) {
        self.usage.computed(computed);
        if let Some(cpu) = &self.cpu {
            cpu.take(computed);
        }
    }
}

impl Recipe {
    /// Whether it has a share of the processors, and so may have to wait.
    pub(crate) fn has_share(&self) -> bool {
        self.cpu.is_some()
    }

    /// Waits while the component has used up its share of the processors.
    pub(crate) async fn turn(&self) {
        if let Some(cpu) = &self.cpu {
            cpu.turn(&self.usage).await;
        }
    }

    /// The right to one instance of the allocator pool.
    pub(crate) async fn permit(&self) -> Result<Permit, Error> {
        let wait = self.engine.0.config.instance_wait;
        self.share.take(wait).await.ok_or(Error::Busy)
    }

    /// A store whose guest's time is on `meter`.
    pub(crate) fn store(recipe: &Handle<Self>, meter: Arc<Meter>) -> Store<Ctx> {
        let inner = &recipe.engine.0;
        let wasi = WasiCtxBuilder::new()
            .envs(&recipe.environment)
            .stdout(GuestOutput::new(recipe.clone(), "stdout"))
            .stderr(GuestOutput::new(recipe.clone(), "stderr"))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let ctx = Ctx {
            table,
            wasi,
            http: WasiHttpCtx::new(),
            outgoing: Outgoing(recipe.clone()),
            limits: Limits::new(recipe.memory.clone(), meter, inner.config.call_cpu_max),
            under_way: None,
            recipe: recipe.clone(),
        };
        let mut store = Store::new(&recipe.compiled.runner.engine, ctx);
        if recipe.compiled.runner.wasi == Wasi::P3 {
            store.set_max_component_handles(HANDLES_MAX);
        }
        store.limiter(|ctx| &mut ctx.limits);
        store.epoch_deadline_callback(epoch_passed);
        allow_call(&mut store);
        store
    }

    /// Says in our words why an instance could not be made: a component's memory may be taken by the calls
    /// beside this one, which is no fault of the guest.
    pub(crate) fn not_made(&self, store: &Store<Ctx>, error: wasmtime::Error) -> Error {
        let needed = store.data().limits.refused;
        match needed.is_some_and(|needed| needed <= self.memory.bytes_max()) {
            true => Error::Busy,
            false => self.trapped(store, error),
        }
    }

    /// Says in our words why a guest ended.
    pub(crate) fn trapped(&self, store: &Store<Ctx>, error: wasmtime::Error) -> Error {
        if let Some(exceeded) = error.downcast_ref::<crate::limits::CpuExceeded>() {
            return Error::CpuExceeded(exceeded.0);
        }
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return Error::Busy;
        }
        let mut text = format!("{error:#}");
        if store.data().limits.refused_elements.is_some() {
            text = format!("table limit of {TABLE_ELEMENTS_MAX} elements reached: {text}");
        }
        if store.data().limits.refused.is_some() {
            let bytes_max = self.memory.bytes_max();
            text = format!("memory limit of {bytes_max} bytes reached: {text}");
        }
        Error::Trap(text)
    }
}
