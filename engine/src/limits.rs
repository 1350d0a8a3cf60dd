//! What one component may use: memory by a shared budget, CPU time by epochs and a meter.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wasmtime::{EngineWeak, ResourceLimiter, StoreContextMut, UpdateDeadline};

use crate::ctx::Ctx;

/// How often the epoch advances: how long a guest may hold a thread, and the grain of its time limit.
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

/// How long one call has computed, measured around each poll of its future.
///
/// Waiting for the host costs nothing; a thread that the machine took away in the middle of a poll does.
pub(crate) struct Meter {
    origin: Instant,
    /// Nanoseconds of polls that are over.
    spent: AtomicU64,
    /// Nanoseconds after `origin` when the running poll began, plus one; 0 between polls.
    since: AtomicU64,
}

impl Meter {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            spent: AtomicU64::new(0),
            since: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn running(&self) -> u64 {
        match self.since.load(Ordering::Relaxed) {
            0 => 0,
            since => self.now().saturating_sub(since - 1),
        }
    }

    fn spent(&self) -> Duration {
        Duration::from_nanos(
            self.spent
                .load(Ordering::Relaxed)
                .saturating_add(self.running()),
        )
    }
}

pin_project_lite::pin_project! {
    /// A call whose polls are measured.
    pub(crate) struct Metered<F> {
        #[pin]
        call: F,
        meter: Arc<Meter>,
    }
}

impl<F> Metered<F> {
    pub(crate) fn new(meter: Arc<Meter>, call: F) -> Self {
        Self { call, meter }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let meter = this.meter;
        meter.since.store(meter.now() + 1, Ordering::Relaxed);
        let polled = this.call.poll(cx);
        // What has ended is not asked for its time any more.
        if polled.is_pending() {
            meter.spent.fetch_add(meter.running(), Ordering::Relaxed);
            meter.since.store(0, Ordering::Relaxed);
        }
        polled
    }
}

/// The share of the budget one instance holds, given back when it is dropped; and its call's time.
pub(crate) struct Limits {
    budget: MemoryBudget,
    held: u64,
    /// Set when a request for memory was refused, to name the cause of what follows: the bytes that this
    /// instance would have held.
    pub(crate) refused: Option<u64>,
    meter: Arc<Meter>,
    call_cpu_max: Duration,
}

impl Limits {
    pub(crate) fn new(budget: MemoryBudget, meter: Arc<Meter>, call_cpu_max: Duration) -> Self {
        Self {
            budget,
            held: 0,
            refused: None,
            meter,
            call_cpu_max,
        }
    }

    /// A further call of the same instance, whose time is on `meter`.
    pub(crate) fn begin_call(&mut self, meter: Arc<Meter>) {
        self.meter = meter;
        self.refused = None;
    }

    /// Of the call that runs.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Whether another instance as large as this one would fit beside it.
    pub(crate) fn has_room(&self) -> bool {
        let used = self.budget.used.load(Ordering::Relaxed);
        used.saturating_add(self.held) <= self.budget.bytes_max
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
            self.refused = Some(self.held.saturating_add(bytes));
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

/// Runs when an epoch passed while the guest was computing: ends a call that has computed too long, and
/// lets others run.
pub(crate) fn epoch_passed(store: StoreContextMut<'_, Ctx>) -> wasmtime::Result<UpdateDeadline> {
    let limits = &store.data().limits;
    if limits.meter.spent() > limits.call_cpu_max {
        return Err(CpuExceeded(limits.call_cpu_max).into());
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
        let mut a = Limits::new(budget.clone(), Meter::new(), Duration::from_secs(1));
        let mut b = Limits::new(budget.clone(), Meter::new(), Duration::from_secs(1));
        assert!(a.memory_growing(0, 60, None).unwrap());
        assert!(!b.memory_growing(0, 41, None).unwrap());
        assert_eq!(b.refused, Some(41));
        assert!(b.memory_growing(0, 40, None).unwrap());
        assert_eq!(budget.used(), 100);
        drop(a);
        assert_eq!(budget.used(), 40);
        assert!(b.memory_growing(40, 100, None).unwrap());
        drop(b);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn waiting_is_not_computing() {
        let meter = Meter::new();
        let spin = Duration::from_millis(20);
        let at_the_end = std::sync::Mutex::new(Duration::ZERO);
        Metered::new(Arc::clone(&meter), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let start = Instant::now();
            while start.elapsed() < spin {}
            *at_the_end.lock().unwrap() = meter.spent();
        })
        .await;
        let spent = *at_the_end.lock().unwrap();
        assert!(spent >= spin && spent < Duration::from_millis(200));
    }
}
