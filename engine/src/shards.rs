//! What every request changes, once for each core.
//!
//! A count that two cores change in turns costs each of them the way to the other's cache, and a request
//! changes many. So what is counted per request (references, calls in flight, idle instances) is there once for
//! each core: guests run on as many threads as there are cores, each thread has a shard, and looks at the
//! others only when it must. Threads get theirs in turns, when they first use one.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The most shards: what is spread takes room in each workload.
const SHARDS_MAX: usize = 8;

/// How many shards there are: one for each core of this process, up to 8.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(SHARDS_MAX))
    })
}

/// Alone on its cache lines, those that are fetched in pairs included.
#[repr(align(128))]
struct Padded<T>(T);

/// At least one `T`, one for each core.
pub struct Shards<T> {
    first: Padded<T>,
    rest: Box<[Padded<T>]>,
}

impl<T> Shards<T> {
    /// `count` of them, but one at least; `make` is told which.
    pub fn new(count: usize, mut make: impl FnMut(usize) -> T) -> Self {
        Self {
            first: Padded(make(0)),
            rest: (1..count).map(make).map(Padded).collect(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rest.len() + 1
    }

    /// The one of that index; the first where there is none.
    pub fn at(&self, index: usize) -> &T {
        let rest = index.checked_sub(1).and_then(|index| self.rest.get(index));
        &rest.unwrap_or(&self.first).0
    }

    fn index_here(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static TURN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        TURN.with(|turn| turn % self.count())
    }

    /// The one of this thread.
    pub fn here(&self) -> &T {
        self.at(self.index_here())
    }

    /// All of them; that of this thread first.
    pub fn from_here(&self) -> impl Iterator<Item = &T> {
        let (count, here) = (self.count(), self.index_here());
        (here..here + count).map(move |index| self.at(index % count))
    }

    /// All of them, by index.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.count()).map(|index| self.at(index))
    }
}

/// A shared value whose references are counted once for each core.
pub struct Spread<T: ?Sized>(Shards<Handle<T>>);

/// A reference that [`Spread`] has given out.
pub struct Handle<T: ?Sized>(Arc<Padded<Arc<T>>>);

impl<T: ?Sized> Spread<T> {
    /// Spreads `value`.
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        let value = value.into();
        let handle = |_| Handle(Arc::new(Padded(Arc::clone(&value))));
        Self(Shards::new(count(), handle))
    }

    /// A reference, counted in this thread's shard.
    pub fn handle(&self) -> Handle<T> {
        self.0.here().clone()
    }
}

impl<T: ?Sized> Deref for Spread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Nothing is counted, so it need not be this thread's: one that only looks takes no turn.
        self.0.at(0)
    }
}

impl<T: ?Sized> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

impl<T: ?Sized> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_seen_once_from_everywhere() {
        for count in [1, 2, 3, 8] {
            let shards = Shards::new(count, |index| index);
            let mut seen: Vec<_> = shards.from_here().copied().collect();
            assert!(seen.contains(shards.here()));
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(Shards::new(0, |index| index).iter().count(), 1);
    }

    #[test]
    fn a_spread_value_goes_with_its_last_reference() {
        let value: Arc<str> = "shared".into();
        let spread = Spread::<str>::new(Arc::clone(&value));
        let handle = spread.handle();
        drop(spread);
        assert_eq!(&*handle, "shared");
        assert_eq!(Arc::strong_count(&value), 2);
        drop(handle);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
