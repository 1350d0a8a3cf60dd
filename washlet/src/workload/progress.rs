//! How far a workload is, told to all who wait for it.
//!
//! Whoever waits is woken in the order in which they began to wait. That is what `tokio::sync::watch` does
//! not do, and commands for one workload have to act in the order in which they came.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::State;

/// The task of the workload is gone, and so its state is the last.
#[derive(Debug)]
pub(crate) struct Ended;

struct Shared {
    /// And whether its task is gone.
    now: Mutex<(State, bool)>,
    changed: Notify,
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, (State, bool)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task's side.
pub(crate) struct Sender(Arc<Shared>);

/// Everybody else's. Shape: clones are of the same workload.
#[derive(Clone)]
pub(crate) struct Receiver(Arc<Shared>);

/// Both sides, of a workload in `state`.
pub(crate) fn channel(state: State) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        now: Mutex::new((state, false)),
        changed: Notify::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// The workload is in `state` from now on.
    pub(crate) fn send(&self, state: State) {
        self.0.now().0 = state;
        self.0.changed.notify_waiters();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.now().1 = true;
        self.0.changed.notify_waiters();
    }
}

impl Receiver {
    /// How far it is.
    pub(crate) fn get(&self) -> State {
        self.0.now().0.clone()
    }

    /// Whether `what` holds of its state.
    pub(crate) fn is(&self, what: impl FnOnce(&State) -> bool) -> bool {
        what(&self.0.now().0)
    }

    /// Whether its task is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.now().1
    }

    /// Whether it is of the same workload.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until `what` holds of its state, and says which that is.
    ///
    /// # Errors
    /// [`Ended`] when its task is gone before.
    pub(crate) async fn wait_for(&self, what: impl Fn(&State) -> bool) -> Result<State, Ended> {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // From now on, so that no change is missed.
            changed.as_mut().enable();
            {
                let now = self.0.now();
                if what(&now.0) {
                    return Ok(now.0.clone());
                }
                if now.1 {
                    return Err(Ended);
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::join_all;

    #[tokio::test]
    async fn those_who_wait_are_told_in_their_order() {
        let (sender, receiver) = channel(State::Starting);
        let told = Mutex::new(Vec::new());
        let waits = (0..100).map(async |number| {
            receiver
                .wait_for(|state| *state == State::Gone)
                .await
                .unwrap();
            told.lock().unwrap().push(number);
        });
        let mut all = Box::pin(join_all(waits));
        assert!((&mut all).now_or_never().is_none());
        sender.send(State::Running);
        assert!((&mut all).now_or_never().is_none());
        sender.send(State::Gone);
        all.await;
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted() && told.len() == 100, "{told:?}");
    }

    #[tokio::test]
    async fn a_task_that_is_gone_says_nothing_more() {
        let (sender, receiver) = channel(State::Starting);
        drop(sender);
        assert!(receiver.has_ended());
        assert!(
            receiver
                .wait_for(|state| *state == State::Running)
                .await
                .is_err()
        );
        assert!(
            receiver
                .wait_for(|state| *state == State::Starting)
                .await
                .is_ok()
        );
    }
}
