//! Permits by key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of permits for each key, forgotten when nobody has or wants one.
pub(super) struct Gates<K> {
    permits: usize,
    gates: Mutex<HashMap<K, Weak<Semaphore>>>,
}

impl<K: Eq + Hash> Gates<K> {
    pub(super) fn new(permits: usize) -> Self {
        Self {
            permits,
            gates: Mutex::default(),
        }
    }

    /// Waits for one of the permits of `key`, and keeps it until dropped.
    pub(super) async fn pass(&self, key: K) -> Option<OwnedSemaphorePermit> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            gates.retain(|_, gate| gate.strong_count() > 0);
            let gate = gates.entry(key).or_default();
            gate.upgrade().unwrap_or_else(|| {
                let new = Arc::new(Semaphore::new(self.permits));
                *gate = Arc::downgrade(&new);
                new
            })
        };
        // Never closed.
        gate.acquire_owned().await.ok()
    }
}
