//! What one component uses, counted always: calls and CPU time once for each core, all else in one place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::shards::{self, Shards};

/// What one component uses, as counters. It refers to nothing of the component.
pub struct Usage {
    calls: Shards<Calls>,
    memory_bytes: AtomicU64,
    memory_bytes_peak: AtomicU64,
    delayed_nanos: AtomicU64,
    lines_dropped: AtomicU64,
}

#[derive(Default)]
struct Calls {
    begun: AtomicU64,
    cpu_nanos: AtomicU64,
}

/// What a component has used until some moment; also of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Calls of its exports.
    pub calls: u64,
    /// How long they have computed, host functions that they called among it.
    pub cpu: Duration,
    /// How long calls were held back because the component had used up its share of the processors.
    pub delayed: Duration,
    /// What the memories of its live instances have now. Units: bytes.
    pub memory_bytes: u64,
    /// The most that they ever had. Units: bytes.
    pub memory_bytes_peak: u64,
    /// Lines that were left out of the log.
    pub lines_dropped: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.cpu += other.cpu;
        self.delayed += other.delayed;
        self.memory_bytes += other.memory_bytes;
        self.memory_bytes_peak += other.memory_bytes_peak;
        self.lines_dropped += other.lines_dropped;
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            calls: Shards::new(shards::count(), |_| Calls::default()),
            memory_bytes: AtomicU64::new(0),
            memory_bytes_peak: AtomicU64::new(0),
            delayed_nanos: AtomicU64::new(0),
            lines_dropped: AtomicU64::new(0),
        }
    }
}

/// Whole nanoseconds; the most there can be for what is longer.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Usage {
    /// What was used until now.
    pub fn used(&self) -> Used {
        let relaxed = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut used = Used {
            calls: 0,
            cpu: Duration::ZERO,
            delayed: Duration::from_nanos(relaxed(&self.delayed_nanos)),
            memory_bytes: relaxed(&self.memory_bytes),
            memory_bytes_peak: relaxed(&self.memory_bytes_peak),
            lines_dropped: relaxed(&self.lines_dropped),
        };
        for calls in self.calls.iter() {
            used.calls += relaxed(&calls.begun);
            used.cpu += Duration::from_nanos(relaxed(&calls.cpu_nanos));
        }
        used
    }

    /// A call begins.
    pub(crate) fn called(&self) {
        self.calls.here().begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has computed for so long.
    pub(crate) fn computed(&self, cpu: Duration) {
        let calls = self.calls.here();
        calls.cpu_nanos.fetch_add(nanos(cpu), Ordering::Relaxed);
    }

    /// A call was held back for so long.
    pub(crate) fn delayed(&self, by: Duration) {
        self.delayed_nanos.fetch_add(nanos(by), Ordering::Relaxed);
    }

    /// A line was left out of the log; how many are by now.
    pub(crate) fn line_dropped(&self) -> u64 {
        self.lines_dropped.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts `bytes` more of memory, if all are then no more than `bytes_max`.
    pub(crate) fn take_memory(&self, bytes: u64, bytes_max: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= bytes_max);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let Ok(before) = self.memory_bytes.fetch_update(set, fetch, more) else {
            return false;
        };
        let now = before.saturating_add(bytes);
        // Looked at first: most calls take no more than others did, and need not write.
        if self.memory_bytes_peak.load(Ordering::Relaxed) < now {
            self.memory_bytes_peak.fetch_max(now, Ordering::Relaxed);
        }
        true
    }

    /// Counts `bytes` less of memory.
    pub(crate) fn give_memory(&self, bytes: u64) {
        self.memory_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What all memories have now. Units: bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }
}
