//! A bounded number of permits, shared between askers so that none of them can take all.
//!
//! An asker may hold three times as many permits as are free after it. One busy asker so gets three
//! quarters, two get three sevenths each, and there is always something left for one that comes new; nobody
//! is promised a fixed part, so nothing lies idle for an asker that does not ask. This is the dynamic
//! threshold by which switches share the memory of their queues.
//!
//! Who gets none at once waits, in a queue of its own; the queues take turns. The places to wait are shared
//! in the same way.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// How many permits an asker may hold for each one that is free.
const HELD_PER_FREE: usize = 3;

/// The permits. Shape: clones are the same.
#[derive(Clone)]
pub struct Permits(Arc<Inner>);

struct Inner {
    next_id: AtomicU64,
    state: Mutex<State>,
}

struct State {
    free: usize,
    places: usize,
    /// Who waits, by asker. None of these queues is empty.
    queues: HashMap<u64, VecDeque<oneshot::Sender<Permit>>>,
    /// The askers with queues, the next one first.
    turns: VecDeque<Arc<Account>>,
}

/// One asker. Shape: clones are the same asker.
#[derive(Clone)]
pub struct Share(Arc<Account>);

struct Account {
    id: u64,
    permits: Permits,
    /// Changes under the lock of [`State`] only.
    held: AtomicUsize,
}

/// The right to do one thing, given back when it is dropped.
pub struct Permit(Option<Arc<Account>>);

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permit")
    }
}

fn admits(held: usize, free: usize) -> bool {
    held < free.saturating_mul(HELD_PER_FREE)
}

impl Permits {
    /// `count` permits, and as many `places` to wait for one.
    pub fn new(count: usize, places: usize) -> Self {
        Self(Arc::new(Inner {
            next_id: AtomicU64::new(0),
            state: Mutex::new(State {
                free: count,
                places,
                queues: HashMap::new(),
                turns: VecDeque::new(),
            }),
        }))
    }

    /// A new asker.
    pub fn share(&self) -> Share {
        Share(Arc::new(Account {
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            permits: self.clone(),
            held: AtomicUsize::new(0),
        }))
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.state().free
    }

    /// How many askers' requests wait.
    pub fn waiting(&self) -> usize {
        self.state().queues.values().map(VecDeque::len).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// A permit, now or within `wait`; `None` when there is none, or no place to wait for it.
    pub async fn take(&self, wait: Duration) -> Option<Permit> {
        let receiver = match self.ask()? {
            Asked::Taken(permit) => return Some(permit),
            Asked::Queued(receiver) => receiver,
        };
        let waiting = Waiting(&self.0);
        let permit = tokio::time::timeout(wait, receiver).await;
        drop(waiting);
        permit.ok()?.ok()
    }

    fn ask(&self) -> Option<Asked> {
        let account = &self.0;
        let mut state = account.permits.state();
        let queue = state.queues.get(&account.id).map_or(0, VecDeque::len);
        // Not past those who wait already.
        if queue == 0 && account.admitted(&mut state) {
            drop(state);
            return Some(Asked::Taken(Permit(Some(Arc::clone(account)))));
        }
        if !admits(queue, state.places) {
            return None;
        }
        state.places -= 1;
        let (sender, receiver) = oneshot::channel();
        if queue == 0 {
            state.turns.push_back(Arc::clone(account));
        }
        let queue = state.queues.entry(account.id).or_default();
        queue.push_back(sender);
        Some(Asked::Queued(receiver))
    }
}

enum Asked {
    Taken(Permit),
    Queued(oneshot::Receiver<Permit>),
}

impl Account {
    /// Counts one more permit for this asker, if it may have it.
    fn admitted(&self, state: &mut State) -> bool {
        let admitted = admits(self.held.load(Ordering::Relaxed), state.free);
        if admitted {
            state.free -= 1;
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn give_back(&self, state: &mut State) {
        state.free += 1;
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    /// Hands out what may be had, by turns, until nobody who waits may have one.
    fn hand_out(&mut self) {
        let mut refused = 0;
        while refused < self.turns.len() {
            let Some(account) = self.turns.pop_front() else {
                return;
            };
            if !account.admitted(self) {
                refused += 1;
                self.turns.push_back(account);
                continue;
            }
            let sent = self.next(account.id).is_some_and(|sender| {
                let permit = Permit(Some(Arc::clone(&account)));
                // Its own drop would take the lock that is held here.
                let unwanted = sender.send(permit).err();
                unwanted.map(|mut permit| permit.0.take()).is_none()
            });
            if sent {
                refused = 0;
            } else {
                account.give_back(self);
            }
            if self.queues.contains_key(&account.id) {
                self.turns.push_back(account);
            }
        }
    }

    /// The first who waits in a queue, taken out of it.
    fn next(&mut self, id: u64) -> Option<oneshot::Sender<Permit>> {
        let queue = self.queues.get_mut(&id)?;
        let sender = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&id);
        }
        self.places += usize::from(sender.is_some());
        sender
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(account) = self.0.take() else { return };
        let mut state = account.permits.state();
        account.give_back(&mut state);
        if !state.turns.is_empty() {
            state.hand_out();
        }
    }
}

/// Takes those who gave up out of the queue.
struct Waiting<'a>(&'a Arc<Account>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.permits.state();
        let state = &mut *state;
        let Some(queue) = state.queues.get_mut(&self.0.id) else {
            return;
        };
        let before = queue.len();
        queue.retain(|sender| !sender.is_closed());
        state.places += before - queue.len();
        if queue.is_empty() {
            state.queues.remove(&self.0.id);
            state.turns.retain(|account| account.id != self.0.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const SOON: Duration = Duration::from_secs(60);

    fn take(share: &Share) -> Option<Permit> {
        share.take(SOON).now_or_never().flatten()
    }

    fn fill(share: &Share) -> Vec<Permit> {
        std::iter::from_fn(|| take(share)).collect()
    }

    #[tokio::test]
    async fn one_asker_leaves_a_quarter() {
        let permits = Permits::new(100, 10);
        let (a, b, c) = (permits.share(), permits.share(), permits.share());
        let held = fill(&a);
        assert_eq!(held.len(), 75);
        let other = fill(&b);
        assert!(!other.is_empty() && take(&c).is_some());
        drop((held, other));
        assert_eq!(permits.free(), 100);
    }

    #[tokio::test]
    async fn the_only_permit_can_be_had() {
        let permits = Permits::new(1, 1);
        let share = permits.share();
        let permit = take(&share);
        assert!(permit.is_some() && take(&share).is_none());
        drop(permit);
        assert!(take(&share).is_some());
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turns() {
        let permits = Permits::new(4, 100);
        let (a, b) = (permits.share(), permits.share());
        let mut held = VecDeque::from(fill(&a));
        held.extend(fill(&b));
        let order = Mutex::new(Vec::new());
        let wait = async |share: &Share, name: &'static str| {
            let permit = share.take(SOON).await.unwrap();
            order.lock().unwrap().push(name);
            tokio::task::yield_now().await;
            drop(permit);
        };
        let all = futures::future::join_all([
            wait(&a, "a").boxed_local(),
            wait(&a, "a").boxed_local(),
            wait(&a, "a").boxed_local(),
            wait(&b, "b").boxed_local(),
        ]);
        let free = async move {
            tokio::task::yield_now().await;
            drop(held.pop_front());
            held
        };
        let (_, held) = tokio::join!(all, free);
        drop(held);
        let order = order.into_inner().unwrap();
        assert_eq!(order.len(), 4);
        assert!(
            order.iter().position(|name| *name == "b").unwrap() == 1,
            "{order:?}"
        );
        assert_eq!(permits.free(), 4);
        assert!(permits.state().queues.is_empty() && permits.state().turns.is_empty());
        assert_eq!(permits.state().places, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_leaves_its_place() {
        let permits = Permits::new(1, 4);
        let (a, b) = (permits.share(), permits.share());
        let permit = take(&a).unwrap();
        let gone = a.take(Duration::from_millis(10)).await;
        assert!(gone.is_none());
        assert_eq!(permits.state().places, 4);
        // Dropped while it waits, and dropped with the permit already sent.
        let dropped = {
            let mut waits = Box::pin(b.take(SOON));
            assert!(futures::poll!(&mut waits).is_pending());
            drop(permit);
            waits
        };
        assert_eq!(permits.free(), 0);
        drop(dropped);
        assert_eq!((permits.free(), permits.state().places), (1, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_shared_too() {
        let permits = Permits::new(1, 4);
        let (a, b) = (permits.share(), permits.share());
        let _permit = take(&a).unwrap();
        let mut waits: Vec<_> = (0..4).map(|_| Box::pin(a.take(SOON))).collect();
        let pending = waits
            .iter_mut()
            .map(|wait| wait.as_mut().now_or_never().is_none());
        assert_eq!(pending.filter(|pending| *pending).count(), 3);
        assert!(
            Box::pin(b.take(SOON)).as_mut().now_or_never().is_none(),
            "no place for b"
        );
    }
}
