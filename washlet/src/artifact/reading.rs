//! Bytes in memory: read once for all who ask meanwhile, and no more at a time than there is room for.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::blocking;
use super::cache::{self, Store};
use super::gates::Gates;
use super::reference::Digest;

/// Bytes of artifacts in memory at once.
pub(super) const ROOM_BYTES: u64 = 512 << 20;
/// What room is counted in, in bytes.
const UNIT: u64 = 1 << 10;

/// Bytes and their room, for as long as anybody has them.
struct Held {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

struct Shared(Arc<Held>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Held {
    fn share(self: Arc<Self>) -> Bytes {
        Bytes::from_owner(Shared(self))
    }
}

/// Reads artifacts.
pub(super) struct Reader {
    store: Arc<Store>,
    units: u32,
    room: Arc<Semaphore>,
    gates: Gates<Digest>,
    held: Mutex<HashMap<Digest, Weak<Held>>>,
}

impl Reader {
    pub(super) fn new(store: Arc<Store>, room_bytes: u64) -> Self {
        let units = u32::try_from(room_bytes / UNIT).unwrap_or(u32::MAX);
        Self {
            store,
            units,
            room: Arc::new(Semaphore::new(units as usize)),
            gates: Gates::new(1),
            held: Mutex::default(),
        }
    }

    /// An artifact of the cache, as [`Store::read`]; waits for room.
    pub(super) async fn read(&self, digest: Digest) -> Option<Bytes> {
        let _gate = self.gates.pass(digest).await;
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = held().get(&digest).and_then(Weak::upgrade);
        if let Some(shared) = shared {
            return Some(shared.share());
        }
        let store = self.store.clone();
        let size = blocking(move || store.present(digest)).await.flatten()?;
        let store = self.store.clone();
        let read = move || store.read(digest).ok_or(io::ErrorKind::NotFound.into());
        let read = self.hold(size, read).await.ok()?;
        let mut held = held();
        held.retain(|_, held| held.strong_count() > 0);
        held.insert(digest, Arc::downgrade(&read));
        Some(read.share())
    }

    /// A regular file of at most `max` bytes; waits for room.
    pub(super) async fn read_file(&self, path: PathBuf, max: u64) -> io::Result<Bytes> {
        let at = path.clone();
        let meta = blocking(move || fs::symlink_metadata(at)).await;
        let size = meta.ok_or_else(ended)??.len().min(max);
        let read = move || cache::read_bounded(&path, size).map(Bytes::from);
        Ok(self.hold(size, read).await?.share())
    }

    async fn hold(
        &self,
        size: u64,
        read: impl FnOnce() -> io::Result<Bytes> + Send + 'static,
    ) -> io::Result<Arc<Held>> {
        // What is larger than the room has it for itself.
        let units = u32::try_from(size.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.min(self.units);
        // Never closed.
        let room = self.room.clone().acquire_many_owned(units).await.ok();
        // The room goes along, because the work goes on when nobody waits for it any more.
        let work = move || read().map(|bytes| Arc::new(Held { bytes, _room: room }));
        blocking(work).await.ok_or_else(ended)?
    }
}

fn ended() -> io::Error {
    io::Error::other("reader ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::io::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn put(store: &Arc<Store>, fill: u8, size: usize) -> Digest {
        let bytes = vec![fill; size];
        let digest = Digest::of(&bytes);
        let mut file = store.temp().unwrap();
        file.write_all(&bytes).unwrap();
        store.keep(file, digest).unwrap();
        digest
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_for_room() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), 1 << 30, 1 << 20).unwrap();
        let reader = Reader::new(store.clone(), 25 << 10);
        let file = dir.path().join("file.wasm");
        fs::write(&file, [0; 10 << 10]).unwrap();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let all = (1..=20).map(|fill| {
            let digest = put(&store, fill, 10 << 10);
            let (reader, file, now, most) = (&reader, file.clone(), &now, &most);
            async move {
                let bytes = match fill % 5 {
                    0 => reader.read_file(file, 1 << 20).await.unwrap(),
                    _ => reader.read(digest).await.unwrap(),
                };
                // A clone counts as well.
                let clone = bytes.clone();
                drop(bytes);
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, SeqCst);
                assert_eq!(clone.len(), 10 << 10);
            }
        });
        timeout(DEADLINE, join_all(all)).await.unwrap();
        assert_eq!(most.into_inner(), 2);
        assert_eq!(reader.room.available_permits(), 25, "given back");
        // What is larger than the room is read too, alone.
        let large = put(&store, 0, 40 << 10);
        assert_eq!(reader.read(large).await.unwrap().len(), 40 << 10);
    }

    #[tokio::test]
    async fn who_gives_up_gives_the_room_back() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), 1 << 30, 1 << 20).unwrap();
        let reader = Reader::new(store.clone(), 10 << 10);
        let (first, second) = (put(&store, 1, 10 << 10), put(&store, 2, 10 << 10));
        let held = reader.read(first).await.unwrap();
        let mut given_up = Box::pin(reader.read(second));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(held);
        let read = timeout(DEADLINE, reader.read(second)).await.unwrap();
        assert_eq!(read.unwrap(), [2; 10 << 10][..]);
    }
}
