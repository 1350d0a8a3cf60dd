//! Whether a start fits: what it declares beside what the others do, and beside what is in use.
//!
//! Only what a workload says it may need counts: one that declares nothing is let in, and its limits bound it.
//! What ran before a restart is not asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Entry, Host, StartError};
use crate::node::Sample;
use crate::workload::spec::WorkloadSpec;

/// Memory that a workload declares, counted for as long as it is in the table.
pub(super) struct Reserved {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Reserved {
    /// Counts `bytes` in `all`.
    pub(super) fn new(all: &Arc<AtomicU64>, bytes: u64) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self {
            all: Arc::clone(all),
            bytes,
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Host {
    /// Memory that the workloads declare. Units: bytes.
    pub(crate) fn declared_bytes(&self) -> u64 {
        self.0.declared.load(Ordering::Relaxed)
    }

    /// Whether `spec` fits in the place of `before`, on a machine of which `sample` was taken.
    ///
    /// Shape: called under the lock, so that two starts do not get the same room.
    pub(super) fn admit(
        &self,
        spec: &WorkloadSpec,
        before: Option<&Entry>,
        sample: Option<Sample>,
    ) -> Result<(), StartError> {
        let have = u64::from(self.engine().config().instances_max);
        let fits = match spec.instances_kept {
            need if need > have => Err(StartError::NoInstances { need, have }),
            _ => Ok(()),
        };
        let fits = fits.and_then(|()| {
            let Some(sample) = sample else { return Ok(()) };
            let own = before.map(|before| before.reserved.bytes);
            let others = self
                .declared_bytes()
                .saturating_sub(own.unwrap_or_default());
            memory(spec.memory_declared, others, own.is_some(), sample)
        });
        fits.inspect_err(|_| self.0.health.no_room())
    }
}

/// Shape: what is in use says nothing of a workload that takes the place of another, which uses some of it.
fn memory(need: u64, others: u64, replaces: bool, sample: Sample) -> Result<(), StartError> {
    let undeclared = sample.memory_total.saturating_sub(others);
    let have = match replaces {
        true => undeclared,
        false => undeclared.min(sample.memory_free),
    };
    // A machine that does not say what it has refuses nobody.
    if need == 0 || need <= have || sample.memory_total == 0 {
        return Ok(());
    }
    let [need, have, total] = [need, have, sample.memory_total].map(|bytes| bytes >> 20);
    Err(StartError::NoMemory { need, have, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_says_what_is_missing() {
        let sample = Sample {
            cpu_percent: 0.0,
            memory_total: 1_000 << 20,
            memory_free: 400 << 20,
        };
        let fits = |need: u64, others: u64, replaces| {
            memory(need << 20, others << 20, replaces, sample).map_err(|error| error.to_string())
        };
        assert_eq!(fits(400, 0, false), Ok(()));
        assert_eq!(fits(0, 2_000, false), Ok(()));
        let missing = |need, have| {
            Err(format!(
                "the host has no room for it: {need} MiB of memory are declared (memoryLimitMb), {have} MiB of \
                 1000 MiB are left; declare less, or start it on another host"
            ))
        };
        // What is in use by whomever is not there, and neither is what others declare.
        assert_eq!(fits(401, 0, false), missing(401, 400));
        assert_eq!(fits(300, 800, false), missing(300, 200));
        assert_eq!(fits(300, 2_000, false), missing(300, 0));
        // What it takes the place of uses some of it.
        assert_eq!(fits(900, 100, true), Ok(()));
        assert_eq!(fits(901, 100, true), missing(901, 900));
        let unknown = Sample {
            memory_total: 0,
            memory_free: 0,
            ..sample
        };
        assert!(memory(1 << 40, 0, false, unknown).is_ok());
    }

    #[test]
    fn what_is_gone_declares_nothing() {
        let all = Arc::default();
        let one = Reserved::new(&all, 3);
        let other = Reserved::new(&all, 4);
        assert_eq!(all.load(Ordering::Relaxed), 7);
        drop(one);
        assert_eq!(all.load(Ordering::Relaxed), 4);
        drop(other);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
