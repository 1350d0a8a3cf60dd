//! What a component may use per second: processors, and room in the host's log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::ctx::Owner;
use crate::usage::{Usage, nanos};

/// Over how long a share of the processors is counted: what a component did not use, it has left for so long.
const CPU_WINDOW: Duration = Duration::from_secs(1);

/// Lines that one component may write to the host's log per second.
const LOG_LINES_PER_S: u64 = 500;

/// Bytes of text that one component may write to the host's log per second.
const LOG_BYTES_PER_S: u64 = 256 << 10;

/// How much more at once: as much as in so long.
const LOG_BURST: Duration = Duration::from_secs(4);

/// How often the log says that a component's lines are left out.
const LOG_SAID_EVERY: Duration = Duration::from_secs(10);

/// A bucket of tokens, as the moment at which it is full again. Those who take may leave it in debt, which
/// whoever comes next waits for; so nobody needs to know beforehand how much will be taken.
///
/// Units: what is taken is counted in the time that it takes to come back.
pub(crate) struct Bucket {
    origin: Instant,
    /// How much it holds. Units: nanoseconds.
    holds: u64,
    /// Units: nanoseconds after `origin`, and `holds` more.
    full_at: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(holds: Duration) -> Self {
        Self {
            origin: Instant::now(),
            holds: nanos(holds),
            full_at: AtomicU64::new(0),
        }
    }

    /// As `full_at` of a bucket that is empty now.
    fn now(&self) -> u64 {
        nanos(self.origin.elapsed()).saturating_add(self.holds)
    }

    /// Takes what comes back in `back_in` nanoseconds.
    fn take(&self, back_in: u64) {
        let floor = self.now().saturating_sub(self.holds);
        let later = |full_at: u64| Some(full_at.max(floor).saturating_add(back_in));
        // It always gives one, so this cannot fail.
        let _ = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// How long until it is out of debt; `None` when it is.
    fn debt(&self) -> Option<Duration> {
        let debt = self.full_at.load(Ordering::Relaxed);
        let debt = debt.saturating_sub(self.now());
        (debt > 0).then(|| Duration::from_nanos(debt))
    }
}

/// The share of the processors of all calls of one component.
pub(crate) struct CpuShare {
    /// Units: thousandths of a processor.
    millis: u64,
    bucket: Bucket,
}

impl CpuShare {
    /// Shape: `millis` are thousandths of a processor.
    pub(crate) fn new(millis: std::num::NonZeroU32) -> Self {
        Self {
            millis: u64::from(millis.get()),
            bucket: Bucket::new(CPU_WINDOW),
        }
    }

    /// A call has computed for so long.
    pub(crate) fn take(&self, computed: Duration) {
        let back_in = nanos(computed).saturating_mul(1_000) / self.millis.max(1);
        self.bucket.take(back_in);
    }

    /// Waits until the component has some of its share again.
    pub(crate) async fn turn(&self, usage: &Usage) {
        if self.bucket.debt().is_none() {
            return;
        }
        let since = Instant::now();
        // Those who waited beside this one may have taken what there was.
        while let Some(debt) = self.bucket.debt() {
            tokio::time::sleep(debt).await;
        }
        usage.delayed(since.elapsed());
    }
}

/// What one component writes to the host's log: with its owner, and no more than it may.
pub struct GuestLog {
    pub(crate) owner: Arc<Owner>,
    usage: Arc<Usage>,
    lines: Bucket,
    bytes: Bucket,
    /// Milliseconds after `began` until which nothing is said of lines that are left out.
    quiet_until: AtomicU64,
    began: Instant,
}

impl GuestLog {
    pub(crate) fn new(owner: Arc<Owner>, usage: Arc<Usage>) -> Self {
        Self {
            owner,
            usage,
            lines: Bucket::new(LOG_BURST),
            bytes: Bucket::new(LOG_BURST),
            quiet_until: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    /// Whether a line of `bytes` may be written; one that may not is counted, and the log says so now and then.
    pub(crate) fn admits(&self, bytes: usize) -> bool {
        if self.lines.debt().is_none() && self.bytes.debt().is_none() {
            const SECOND: u64 = 1_000_000_000;
            self.lines.take(SECOND / LOG_LINES_PER_S);
            let back_in = (bytes as u64).saturating_mul(SECOND) / LOG_BYTES_PER_S;
            self.bytes.take(back_in);
            return true;
        }
        let dropped = self.usage.line_dropped();
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let every = u64::try_from(LOG_SAID_EVERY.as_millis()).unwrap_or(u64::MAX);
        let later = |until: u64| (now >= until).then(|| now.saturating_add(every));
        let turn = self
            .quiet_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        if turn.is_ok() {
            let Owner {
                namespace,
                workload,
                workload_id,
                component,
            } = &*self.owner;
            tracing::warn!(
                namespace,
                workload,
                workload_id,
                component,
                dropped,
                "lines of a component are left out of the log: it writes more than {LOG_LINES_PER_S} lines or \
                 {LOG_BYTES_PER_S} bytes per second"
            );
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_comes_back() {
        let hour = 3_600_000_000_000;
        let bucket = Bucket::new(Duration::from_secs(7_200));
        assert_eq!(bucket.debt(), None);
        bucket.take(hour);
        bucket.take(hour / 2);
        assert_eq!(bucket.debt(), None);
        // More than is there is given, and then waited for.
        bucket.take(hour);
        let debt = bucket.debt().unwrap();
        assert!(debt <= Duration::from_secs(1_800) && debt > Duration::from_secs(1_700));
        bucket.take(u64::MAX);
        bucket.take(u64::MAX);
        assert!(bucket.debt().is_some());
    }

    #[test]
    fn what_was_not_used_is_kept_for_a_window_and_no_longer() {
        let bucket = Bucket::new(Duration::from_nanos(1));
        while bucket.origin.elapsed() < Duration::from_millis(5) {}
        // Five milliseconds of doing nothing are no credit.
        bucket.take(60_000_000_000);
        assert!(bucket.debt().unwrap() > Duration::from_secs(59));
    }

    #[test]
    fn a_share_makes_computing_cost_more_time() {
        let share = CpuShare::new(100.try_into().unwrap());
        share.take(Duration::from_millis(100));
        // A tenth of a processor for the window of a second: all of it is used, and comes back meanwhile.
        share.take(Duration::from_secs(60));
        let debt = share.bucket.debt().unwrap();
        assert!(debt > Duration::from_secs(590) && debt <= Duration::from_secs(600));
    }
}
