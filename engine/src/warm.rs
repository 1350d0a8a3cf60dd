//! Instances that serve more than one call, for components that asked for it.
//!
//! ```text
//!            take                      call returned, body whole, nothing left behind
//! idle ───────────────► one call ───────────────────────────────────────────────► idle
//!   ▲ none idle: a new one, while fewer than `instances_max` live    │ trap, cut, leak, old, used up, short
//!   └── none may be made: a fresh instance, as without reuse         └──────────► dropped
//! ```
//! A reused instance keeps its memory, so whatever a call leaves there the next one may read: of the same
//! component of the same workload, never of another.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime::Store;

use crate::ctx::Ctx;
use crate::limits::Meter;
use crate::permits::Permit;
use crate::runnable::is_roomy;
use crate::shards::{self, Shards};

/// Resources that an instance may keep from one call to the next: its standard streams and the like.
const KEPT_RESOURCES_MAX: usize = 64;

/// How instances of a component are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// Instances that may live at once to be used again; 0: each call has a fresh one.
    pub instances_max: u32,
    /// Calls that one instance serves.
    pub calls_max: u32,
    /// How long one instance is used.
    pub age_max: Duration,
}

impl Reuse {
    /// Each call has a fresh instance.
    pub const NEVER: Self = Self {
        instances_max: 0,
        calls_max: 0,
        age_max: Duration::ZERO,
    };
}

/// One instance: its store, its exports, and the right to be there.
pub(crate) struct Live<T> {
    pub(crate) store: Store<Ctx>,
    pub(crate) exports: T,
    pub(crate) permit: Permit,
    /// `None`: it serves this call only.
    reused: Option<Reused>,
}

struct Reused {
    calls: u32,
    born: Instant,
    /// Resources left after the first call.
    kept: Option<usize>,
    _slot: Slot,
}

/// Counts one instance that is used again.
pub(crate) struct Slot(Arc<AtomicU32>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The instances of one component that wait for a call.
pub(crate) struct Warm<T> {
    reuse: Reuse,
    live: Arc<AtomicU32>,
    /// By core: an instance that another core used is still in the cache of that one.
    idle: Shards<Mutex<Vec<Live<T>>>>,
}

impl<T> Warm<T> {
    /// Shape: `live` counts what all sets of one component have made.
    pub(crate) fn new(reuse: Reuse, live: &Arc<AtomicU32>) -> Self {
        Self {
            reuse,
            live: Arc::clone(live),
            idle: Shards::new(shards::count(), |_| Mutex::default()),
        }
    }

    /// The instance that was used last, ready for a call whose time is on `meter`.
    pub(crate) fn take(&self, meter: &Arc<Meter>) -> Option<Live<T>> {
        loop {
            let mut live = self.idle.from_here().find_map(pop)?;
            let young = |reused: &Reused| reused.born.elapsed() < self.reuse.age_max;
            if live.reused.as_ref().is_some_and(young) {
                crate::runnable::begin_call(&mut live.store, Arc::clone(meter));
                return Some(live);
            }
        }
    }

    /// The right to make one more instance that is used again.
    pub(crate) fn slot(&self) -> Option<Slot> {
        let more = |live| (live < self.reuse.instances_max).then_some(live + 1);
        self.live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()
            .map(|_| Slot(Arc::clone(&self.live)))
    }

    /// Keeps `live` for the next call, unless it is spent, has left something behind, or the host cannot spare
    /// what an idle instance takes.
    pub(crate) fn give_back(&self, mut live: Live<T>) {
        let Some(reused) = &mut live.reused else {
            return;
        };
        reused.calls += 1;
        let spent =
            reused.calls >= self.reuse.calls_max || reused.born.elapsed() >= self.reuse.age_max;
        if spent || !is_roomy(&live.store) {
            return;
        }
        let Some(now) = live.store.data_mut().kept_resources() else {
            return;
        };
        // Calls, streams and futures of an asynchronous guest.
        let under_way = live.store.concurrent_resource_table();
        let now = now + under_way.map_or(0, |table| table.iter_mut().count());
        let kept = *reused.kept.get_or_insert(now);
        if now <= kept && kept <= KEPT_RESOURCES_MAX {
            let idle = self.idle.here().lock();
            idle.unwrap_or_else(PoisonError::into_inner).push(live);
        }
    }
}

/// Its own function: what it gives must not be dropped under the lock.
fn pop<T>(idle: &Mutex<Vec<Live<T>>>) -> Option<Live<T>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

impl<T> Live<T> {
    pub(crate) fn new(store: Store<Ctx>, exports: T, permit: Permit, slot: Option<Slot>) -> Self {
        let reused = slot.map(|slot| Reused {
            calls: 0,
            born: Instant::now(),
            kept: None,
            _slot: slot,
        });
        Self {
            store,
            exports,
            permit,
            reused,
        }
    }
}
