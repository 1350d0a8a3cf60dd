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
pub struct Shards<T>(Box<[Padded<T>]>);

impl<T> Shards<T> {
    /// `count` of them, but one at least; `make` is told which.
    pub fn new(count: usize, make: impl FnMut(usize) -> T) -> Self {
        Self((0..count.max(1)).map(make).map(Padded).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one of that index; where there is none, one of the others.
    #[expect(
        clippy::indexing_slicing,
        reason = "there is at least one, and the index is brought below how many there are"
    )]
    pub fn at(&self, index: usize) -> &T {
        &self.0[index % self.0.len()].0
    }

    /// The one of this thread.
    pub fn here(&self) -> &T {
        self.at(index_here())
    }

    /// All of them; that of this thread first.
    pub fn from_here(&self) -> impl Iterator<Item = &T> {
        let here = index_here() % self.count();
        (here..here + self.count()).map(|index| self.at(index))
    }

    /// All of them, by index.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.count()).map(|index| self.at(index))
    }
}

/// The turn of this thread.
fn index_here() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static TURN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    TURN.with(|turn| *turn)
}

/// A shared value whose references are counted once for each core.
///
/// Shape: at least one handle; they do not change, so they may lie beside each other.
pub struct Spread<T: ?Sized>(Box<[Handle<T>]>);

/// A reference that [`Spread`] has given out.
pub struct Handle<T: ?Sized>(Arc<Apart<Arc<T>>>);

/// So long that what is counted in front of it shares no cache line with another's count.
///
/// Shape: in an `Arc`, 128 bytes, where being aligned to as many would take 256.
struct Apart<T>(
    T,
    #[expect(dead_code, reason = "only takes room")] [u64; 12],
);

impl<T: ?Sized> Spread<T> {
    /// Spreads `value`.
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        let value = value.into();
        let handle = |_| Handle(Arc::new(Apart(Arc::clone(&value), [0; 12])));
        Self((0..count()).map(handle).collect())
    }

    /// A reference, counted in this thread's shard.
    pub fn handle(&self) -> Handle<T> {
        self.at(index_here()).clone()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is at least one, and the index is brought below how many there are"
    )]
    fn at(&self, index: usize) -> &Handle<T> {
        &self.0[index % self.0.len()]
    }
}

impl<T: ?Sized> Deref for Spread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Nothing is counted, so it need not be this thread's: one that only looks takes no turn.
        self.at(0)
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
