//! What one component may use: memory by a shared budget, CPU time by epochs, a meter and its share.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wasmtime::{EngineWeak, ResourceLimiter, StoreContextMut, UpdateDeadline};

use crate::ctx::Ctx;
use crate::usage::Usage;

/// How often the epoch advances: how long a guest may hold a thread, and the grain of its time limit.
pub(crate) const EPOCH: Duration = Duration::from_millis(10);

/// The most elements of one table.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Bytes that all live instances of one component may hold together.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    usage: Arc<Usage>,
    bytes_max: u64,
}

impl MemoryBudget {
    /// Shape: what is held is counted in `usage`.
    pub(crate) fn new(usage: Arc<Usage>, bytes_max: u64) -> Self {
        Self { usage, bytes_max }
    }

    fn take(&self, bytes: u64) -> bool {
        self.usage.take_memory(bytes, self.bytes_max)
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    fn used(&self) -> u64 {
        self.usage.memory_bytes()
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

/// Who is charged for what a call computes.
pub(crate) trait Payer {
    /// A poll of the call took so long.
    fn pay(&self, computed: Duration);
}

pin_project_lite::pin_project! {
    /// A call whose polls are measured, and charged to its payer.
    pub(crate) struct Metered<P, F> {
        #[pin]
        call: F,
        meter: Arc<Meter>,
        payer: P,
    }
}

impl<P: Payer, F> Metered<P, F> {
    pub(crate) fn new(payer: P, meter: Arc<Meter>, call: F) -> Self {
        Self { call, meter, payer }
    }
}

impl<P: Payer, F: Future> Future for Metered<P, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _measured = Measured::begin(this.meter, this.payer);
        this.call.poll(cx)
    }
}

/// One poll, charged when it is over, however it ends.
struct Measured<'a, P: Payer>(&'a Meter, &'a P);

impl<'a, P: Payer> Measured<'a, P> {
    fn begin(meter: &'a Meter, payer: &'a P) -> Self {
        meter.since.store(meter.now() + 1, Ordering::Relaxed);
        Self(meter, payer)
    }
}

impl<P: Payer> Drop for Measured<'_, P> {
    fn drop(&mut self) {
        let Self(meter, payer) = self;
        let computed = meter.running();
        meter.spent.fetch_add(computed, Ordering::Relaxed);
        meter.since.store(0, Ordering::Relaxed);
        payer.pay(Duration::from_nanos(computed));
    }
}

/// The share of the budget one instance holds, given back when it is dropped; and its call's time.
pub(crate) struct Limits {
    budget: MemoryBudget,
    held: u64,
    /// Set when a request for memory was refused, to name the cause of what follows: the bytes that this
    /// instance would have held.
    pub(crate) refused: Option<u64>,
    /// The same of a table: the elements that it would have had.
    pub(crate) refused_elements: Option<usize>,
    meter: Arc<Meter>,
    call_cpu_max: Duration,
}

impl Limits {
    pub(crate) fn new(budget: MemoryBudget, meter: Arc<Meter>, call_cpu_max: Duration) -> Self {
        Self {
            budget,
            held: 0,
            refused: None,
            refused_elements: None,
            meter,
            call_cpu_max,
        }
    }

    /// A further call of the same instance, whose time is on `meter`.
    pub(crate) fn begin_call(&mut self, meter: Arc<Meter>) {
        self.meter = meter;
        self.refused = None;
        self.refused_elements = None;
    }

    /// Of the call that runs.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Whether another instance as large as this one would fit beside it.
    pub(crate) fn has_room(&self) -> bool {
        self.budget.used().saturating_add(self.held) <= self.budget.bytes_max
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.usage.give_memory(self.held);
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
        let fits =
            desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum);
        if !fits {
            self.refused_elements = Some(desired);
        }
        Ok(fits)
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
    let recipe = &store.data().recipe;
    let pause: Pin<Box<dyn Future<Output = ()> + Send>> = match recipe.has_share() {
        false => Box::pin(tokio::task::yield_now()),
        true => {
            let recipe = recipe.clone();
            Box::pin(async move {
                // Ends the poll, so that what it took is charged when the turn comes.
                tokio::task::yield_now().await;
                recipe.turn().await;
            })
        }
    };
    Ok(UpdateDeadline::YieldCustom(1, pause))
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
        let usage = Arc::new(Usage::default());
        let budget = MemoryBudget::new(Arc::clone(&usage), 100);
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
        let used = usage.used();
        assert_eq!((used.memory_bytes, used.memory_bytes_peak), (0, 100));
    }

    #[tokio::test]
    async fn waiting_is_not_computing() {
        let meter = Meter::new();
        let spin = Duration::from_millis(20);
        let at_the_end = std::sync::Mutex::new(Duration::ZERO);
        let paid = std::sync::Mutex::new(Duration::ZERO);
        Metered::new(&paid, Arc::clone(&meter), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let start = Instant::now();
            while start.elapsed() < spin {}
            *at_the_end.lock().unwrap() = meter.spent();
        })
        .await;
        let spent = *at_the_end.lock().unwrap();
        assert!(spent >= spin && spent < Duration::from_millis(200));
        // The last poll, too, and one that is not waited for.
        let paid = *paid.lock().unwrap();
        assert!(paid >= spent && paid < Duration::from_millis(200));
    }

    impl Payer for &std::sync::Mutex<Duration> {
        fn pay(&self, computed: Duration) {
            *self.lock().unwrap() += computed;
        }
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_has_paid_for_its_polls() {
        let paid = std::sync::Mutex::new(Duration::ZERO);
        let spin = Duration::from_millis(5);
        let call = async {
            let start = Instant::now();
            while start.elapsed() < spin {}
            std::future::pending::<()>().await;
        };
        let call = Box::pin(Metered::new(&paid, Meter::new(), call));
        let ended = tokio::time::timeout(Duration::from_millis(1), call).await;
        assert!(ended.is_err());
        assert!(*paid.lock().unwrap() >= spin);
    }

    #[test]
    fn a_table_that_may_not_grow_says_so() {
        use wasmtime::{Engine, Ref, RefType, Store, Table, TableType};
        let budget = MemoryBudget::new(Arc::default(), 100);
        let limits = Limits::new(budget, Meter::new(), Duration::from_secs(1));
        let mut store = Store::new(&Engine::default(), limits);
        store.limiter(|limits| limits);
        let ty = TableType::new(RefType::FUNCREF, 1, None);
        let table = Table::new(&mut store, ty, Ref::Func(None)).unwrap();
        let most = TABLE_ELEMENTS_MAX as u64;
        table.grow(&mut store, most - 1, Ref::Func(None)).unwrap();
        assert_eq!(store.data().refused_elements, None);
        assert!(table.grow(&mut store, 1, Ref::Func(None)).is_err());
        assert_eq!(store.data().refused_elements, Some(TABLE_ELEMENTS_MAX + 1));
    }
}
