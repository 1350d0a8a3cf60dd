//! What an asynchronous guest may have under way at once in its host: a synchronous one has one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of one instance that are carried out at once; further ones wait. Each may return a value.
const CALLS_MAX: usize = 16;

/// Bytes of arguments of calls under way, waiting ones too.
const BYTES_MAX: usize = 24 << 20;

/// The calls of one instance. Shape: clones are the same.
#[derive(Clone)]
pub(crate) struct UnderWay {
    turns: Arc<Semaphore>,
    bytes: Arc<AtomicUsize>,
}

/// The right to carry one call out.
pub(crate) struct Turn {
    bytes: Bytes,
    _turn: Option<OwnedSemaphorePermit>,
}

struct Bytes {
    all: Arc<AtomicUsize>,
    of_this: usize,
}

impl Bytes {
    fn grow(&mut self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= BYTES_MAX);
        let grown = self
            .all
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        self.of_this += grown.map_or(0, |_| bytes);
        grown.is_ok()
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.of_this, Ordering::Relaxed);
    }
}

impl Turn {
    /// The call has `bytes` more of arguments; whether it may.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        self.bytes.grow(bytes)
    }
}

impl Default for UnderWay {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(CALLS_MAX)),
            bytes: Arc::default(),
        }
    }
}

impl UnderWay {
    /// Waits for the turn of a call with arguments of `bytes`; `None` if that is too much at once.
    ///
    /// Shape: to be polled at once: until then the arguments are not counted.
    pub(crate) async fn begin(&self, bytes: usize) -> Option<Turn> {
        let mut held = Bytes {
            all: Arc::clone(&self.bytes),
            of_this: 0,
        };
        if !held.grow(bytes) {
            return None;
        }
        // It is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        Some(Turn {
            bytes: held,
            _turn: turn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn calls_wait_and_bytes_are_bounded() {
        let calls = UnderWay::default();
        let mut turns: Vec<_> = (0..CALLS_MAX)
            .map(|_| calls.begin(1).now_or_never().unwrap().unwrap())
            .collect();
        let mut waiting = Box::pin(calls.begin(1));
        assert!((&mut waiting).now_or_never().is_none());
        turns.pop();
        let waited = waiting.now_or_never().unwrap();
        assert!(waited.is_some());
        turns.clear();
        assert!(calls.begin(BYTES_MAX).now_or_never().unwrap().is_none());
        drop(waited);
        let all = calls.begin(BYTES_MAX).now_or_never().unwrap();
        assert!(all.is_some());
        assert!(calls.begin(1).now_or_never().unwrap().is_none());
        drop(all);
        assert!(calls.begin(1).now_or_never().unwrap().is_some());
    }
}
