//! A bounded number of permits, shared between askers so that none of them can take all.
//!
//! An asker may hold three times as many permits as are free after it. One busy asker so gets three
//! quarters, two get three sevenths each, and there is always something left for one that comes new; nobody
//! is promised a fixed part, so nothing lies idle for an asker that does not ask. This is the dynamic
//! threshold by which switches share the memory of their queues.
//!
//! Who gets none at once waits, in a queue of its own; the queues take turns. The places to wait are shared
//! in the same way.
//!
//! Many permits are split by core ([`crate::shards`]): a request takes of its core's part, of the others
//! when that refuses it, and waits at its own. A part that has nobody waiting gives what comes back to one
//! that has.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

use crate::shards::{self, Shards};

/// How many permits an asker may hold for each one that is free.
const HELD_PER_FREE: usize = 3;

/// The fewest permits of one part: with less, an asker would be refused early.
const PART_MIN: usize = 64;

/// The permits. Shape: clones are the same.
#[derive(Clone)]
pub struct Permits(Arc<Inner>);

struct Inner {
    next_id: AtomicU64,
    parts: Shards<Part>,
}

#[derive(Default)]
struct Part {
    state: Mutex<State>,
    /// The same as in the state, to be read without its lock.
    free: AtomicUsize,
    waiting: AtomicUsize,
}

#[derive(Default)]
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
pub struct Share(Arc<Shards<Arc<Account>>>);

/// One asker in one part.
struct Account {
    id: u64,
    permits: Permits,
    part: usize,
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
        let parts = shards::count().min(count / PART_MIN).max(1);
        let portion = |all: usize, part: usize| all / parts + usize::from(part < all % parts);
        let part = |part: usize| {
            let free = portion(count, part);
            let state = State {
                free,
                places: portion(places, part),
                ..State::default()
            };
            Part {
                state: Mutex::new(state),
                free: free.into(),
                ..Part::default()
            }
        };
        Self(Arc::new(Inner {
            next_id: AtomicU64::new(0),
            parts: Shards::new(parts, part),
        }))
    }

    /// A new asker.
    pub fn share(&self) -> Share {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let account = |part| {
            Arc::new(Account {
                id,
                permits: self.clone(),
                part,
                held: AtomicUsize::new(0),
            })
        };
        Share(Arc::new(Shards::new(self.0.parts.count(), account)))
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        let free = |part: &Part| part.free.load(Ordering::Relaxed);
        self.0.parts.iter().map(free).sum()
    }
}

impl Part {
    fn lock(&self) -> Locked<'_> {
        Locked {
            part: self,
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// The state of a part; what is read without the lock follows when it is let go.
struct Locked<'a> {
    part: &'a Part,
    state: MutexGuard<'a, State>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.part.free.store(self.state.free, Ordering::Relaxed);
        let waiting = self.state.turns.len();
        // Hardly ever different: the line stays shared.
        if self.part.waiting.load(Ordering::Relaxed) != waiting {
            self.part.waiting.store(waiting, Ordering::Relaxed);
        }
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Share {
    /// A permit, now or within `wait`; `None` when there is none, or no place to wait for it.
    pub async fn take(&self, wait: Duration) -> Option<Permit> {
        if let Some(permit) = self.0.from_here().find_map(Account::take) {
            return Some(permit);
        }
        let account = self.0.here();
        let receiver = match account.ask()? {
            Asked::Taken(permit) => return Some(permit),
            Asked::Queued(receiver) => receiver,
        };
        let waiting = Waiting(account);
        let permit = tokio::time::timeout(wait, receiver).await;
        drop(waiting);
        permit.ok()?.ok()
    }
}

enum Asked {
    Taken(Permit),
    Queued(oneshot::Receiver<Permit>),
}

impl Account {
    fn lock(&self) -> Locked<'_> {
        self.permits.0.parts.at(self.part).lock()
    }

    /// A permit, if nobody of this asker waits and it may have one more.
    fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.lock();
        let taken = !state.queues.contains_key(&self.id) && self.admitted(&mut state);
        drop(state);
        taken.then(|| Permit(Some(Arc::clone(self))))
    }

    /// A permit or a place to wait for it.
    fn ask(self: &Arc<Self>) -> Option<Asked> {
        let mut state = self.lock();
        let queue = state.queues.get(&self.id).map_or(0, VecDeque::len);
        // Not past those who wait already.
        if queue == 0 && self.admitted(&mut state) {
            drop(state);
            return Some(Asked::Taken(Permit(Some(Arc::clone(self)))));
        }
        if !admits(queue, state.places) {
            return None;
        }
        state.places -= 1;
        let (sender, receiver) = oneshot::channel();
        if queue == 0 {
            state.turns.push_back(Arc::clone(self));
        }
        let queue = state.queues.entry(self.id).or_default();
        queue.push_back(sender);
        Some(Asked::Queued(receiver))
    }

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

    /// Another part where somebody waits.
    fn in_need(&self) -> Option<&Part> {
        let mut parts = self.permits.0.parts.iter();
        parts.find(|part| part.waiting.load(Ordering::Relaxed) > 0)
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
        let mut state = account.lock();
        account.give_back(&mut state);
        if !state.turns.is_empty() {
            state.hand_out();
            return;
        }
        if let Some(other) = account.in_need() {
            state.free -= 1;
            // One lock at a time: two parts may be in need of each other.
            drop(state);
            let mut other = other.lock();
            other.free += 1;
            other.hand_out();
        }
    }
}

/// Takes those who gave up out of the queue.
struct Waiting<'a>(&'a Arc<Account>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
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

    fn state(permits: &Permits) -> Locked<'_> {
        permits.0.parts.at(0).lock()
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
        assert!(state(&permits).queues.is_empty() && state(&permits).turns.is_empty());
        assert_eq!(state(&permits).places, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_leaves_its_place() {
        let permits = Permits::new(1, 4);
        let (a, b) = (permits.share(), permits.share());
        let permit = take(&a).unwrap();
        let gone = a.take(Duration::from_millis(10)).await;
        assert!(gone.is_none());
        assert_eq!(state(&permits).places, 4);
        // Dropped while it waits, and dropped with the permit already sent.
        let dropped = {
            let mut waits = Box::pin(b.take(SOON));
            assert!(futures::poll!(&mut waits).is_pending());
            drop(permit);
            waits
        };
        assert_eq!(permits.free(), 0);
        drop(dropped);
        assert_eq!((permits.free(), state(&permits).places), (1, 4));
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

    #[tokio::test]
    async fn a_part_gives_to_another_where_somebody_waits() {
        let permits = Permits(Arc::new(Inner {
            next_id: AtomicU64::new(0),
            parts: Shards::new(2, |_| Part {
                state: Mutex::new(State {
                    free: 1,
                    places: 4,
                    ..State::default()
                }),
                free: 1.into(),
                ..Part::default()
            }),
        }));
        let share = permits.share();
        let held = fill(&share);
        assert_eq!((held.len(), permits.free()), (2, 0));
        // Whichever part it waits in, the one of the two that comes back is good for it.
        let mut kept = Vec::new();
        for permit in held {
            let mut waits = Box::pin(share.take(SOON));
            assert!(futures::poll!(&mut waits).is_pending());
            drop(permit);
            kept.push(waits.await.unwrap());
        }
        drop(kept);
        assert_eq!(permits.free(), 2);
    }
}
