//! What one component may use: memory by a shared budget, CPU time by epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wasmtime::{EngineWeak, ResourceLimiter, StoreContextMut, UpdateDeadline};

use crate::ctx::Ctx;

/// How often the epoch advances: the grain of CPU time, and how long a guest may hold a thread.
pub(crate) const EPOCH: Duration = Duration::from_millis(10);

/// The most elements of one table.
const TABLE_ELEMENTS_MAX: usize = 1_000_000;

/// Bytes that all live instances of one component may hold together.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget {
    used: Arc<AtomicU64>,
    bytes_max: u64,
}

impl MemoryBudget {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            used: Arc::default(),
            bytes_max,
        }
    }

    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max)
            })
            .is_ok()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The share of the budget one instance holds, given back when it is dropped.
pub(crate) struct Limits {
    budget: MemoryBudget,
    held: u64,
    /// Set when a request for memory was refused, to name the cause of the trap that follows.
    pub(crate) refused: bool,
    ticks: u64,
    ticks_max: u64,
}

impl Limits {
    pub(crate) fn new(budget: MemoryBudget, call_cpu_max: Duration) -> Self {
        let ticks_max = (call_cpu_max.as_millis() / EPOCH.as_millis()).max(1);
        let ticks_max = u64::try_from(ticks_max).unwrap_or(u64::MAX);
        Self {
            budget,
            held: 0,
            refused: false,
            ticks: 0,
            ticks_max,
        }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = desired.saturating_sub(current) as u64;
        if maximum.is_some_and(|maximum| desired > maximum) || !self.budget.take(bytes) {
            self.refused = true;
            return Ok(false);
        }
        self.held += bytes;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }
}

/// A call used all the CPU time it may.
#[derive(thiserror::Error, Debug)]
#[error("call used more than {0:?} of CPU time")]
pub(crate) struct CpuExceeded(pub(crate) Duration);

/// Runs when an epoch passed while the guest was computing: lets others run, and counts.
///
/// A guest that waits for the host does not pass here, so this counts CPU time, not wall time.
pub(crate) fn epoch_passed(
    mut store: StoreContextMut<'_, Ctx>,
) -> wasmtime::Result<UpdateDeadline> {
    let limits = &mut store.data_mut().limits;
    limits.ticks += 1;
    if limits.ticks > limits.ticks_max {
        let spent = EPOCH.saturating_mul(u32::try_from(limits.ticks_max).unwrap_or(u32::MAX));
        return Err(CpuExceeded(spent).into());
    }
    Ok(UpdateDeadline::YieldCustom(
        1,
        Box::pin(tokio::task::yield_now()),
    ))
}

/// The OS thread that advances the epoch; no async runtime can delay it. Ends with its engine.
pub(crate) struct Ticker(Option<JoinHandle<()>>);

impl Ticker {
    pub(crate) fn start(engine: EngineWeak) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || {
                while let Some(engine) = engine.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(EPOCH);
                }
            })?;
        Ok(Self(Some(thread)))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // The thread sees the engine gone within one epoch; waiting for it here could wait for ourselves.
        drop(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_by_the_instances_of_a_component() {
        let budget = MemoryBudget::new(100);
        let mut a = Limits::new(budget.clone(), Duration::from_secs(1));
        let mut b = Limits::new(budget.clone(), Duration::from_secs(1));
        assert!(a.memory_growing(0, 60, None).unwrap());
        assert!(!b.memory_growing(0, 41, None).unwrap());
        assert!(b.refused);
        assert!(b.memory_growing(0, 40, None).unwrap());
        assert_eq!(budget.used(), 100);
        drop(a);
        assert_eq!(budget.used(), 40);
        assert!(b.memory_growing(40, 100, None).unwrap());
        drop(b);
        assert_eq!(budget.used(), 0);
    }
}
