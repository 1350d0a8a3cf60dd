//! Containers of objects behind one lock; what is stored is never changed, only replaced.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::blobstore::{
    BlobStore, ByteStream, ContainerInfo, Content, Error, KeyRange, ObjectId, ObjectInfo, Page,
    Result, check_object_name, chunks, clamp,
};
use crate::names;
use crate::plugin::Scope;

/// What an object or container costs besides its own bytes.
const OVERHEAD_BYTES: usize = 256;

/// The pieces objects are kept in, so that one written a byte at a time costs no more than its bytes.
const PIECE_BYTES: usize = 64 << 10;

/// One view of the containers: that of who asked.
pub(super) struct Store {
    pub(super) containers: Arc<Containers>,
    pub(super) scope: Scope,
    pub(super) create: bool,
    pub(super) object_bytes_max: u64,
}

/// All containers of a plugin.
pub(super) struct Containers {
    room: Arc<Room>,
    state: Mutex<BTreeMap<String, Container>>,
}

struct Container {
    created_at: SystemTime,
    objects: BTreeMap<String, Arc<Object>>,
    _held: Held,
}

/// One content. Who reads it keeps it, whatever happens to its name.
struct Object {
    /// All of [`PIECE_BYTES`] but the last.
    pieces: Vec<Bytes>,
    size: u64,
    created_at: SystemTime,
    _held: Held,
}

/// What all of them may hold together.
struct Room {
    bytes_max: usize,
    used: AtomicUsize,
}

/// A part of the room, given back when it is dropped.
struct Held {
    room: Arc<Room>,
    bytes: usize,
}

impl Held {
    fn take(room: &Arc<Room>, bytes: usize) -> Result<Self> {
        let mut held = Self {
            room: Arc::clone(room),
            bytes: 0,
        };
        held.grow(bytes)?;
        Ok(held)
    }

    fn grow(&mut self, bytes: usize) -> Result<()> {
        let bytes_max = self.room.bytes_max;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= bytes_max);
        self.room
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| Error::Internal(Box::new(Full { bytes_max })))?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(thiserror::Error, Debug)]
#[error("more than {bytes_max} bytes would be in memory")]
struct Full {
    bytes_max: usize,
}

impl Containers {
    pub(super) fn new(bytes_max: usize) -> Self {
        let used = AtomicUsize::new(0);
        Self {
            room: Arc::new(Room { bytes_max, used }),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<String, Container>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` finds in the container called `name` here and `container` by the guest.
    fn with<T>(
        &self,
        name: &str,
        container: &str,
        look: impl FnOnce(&mut Container) -> T,
    ) -> Result<T> {
        match self.state().get_mut(name) {
            Some(found) => Ok(look(found)),
            None => Err(Error::NoSuchContainer(container.to_owned())),
        }
    }
}

impl Store {
    fn name(&self, container: &str) -> Result<String> {
        names::bucket(&self.scope, container).map_err(|e| Error::InvalidArgument(e.to_string()))
    }

    fn find(&self, object: ObjectId<'_>) -> Result<Option<Arc<Object>>> {
        check_object_name(object.object)?;
        let name = self.name(object.container)?;
        self.containers.with(&name, object.container, |container| {
            container.objects.get(object.object).cloned()
        })
    }

    /// The content that `body` comes to.
    async fn collect(&self, name: &str, body: ByteStream) -> Result<Object> {
        let mut held = Held::take(&self.containers.room, OVERHEAD_BYTES + name.len())?;
        let (mut pieces, mut size) = (Vec::new(), 0);
        let mut body = chunks(body, PIECE_BYTES);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(Error::Body)?;
            size += piece.len() as u64;
            if size > self.object_bytes_max {
                let bytes_max = self.object_bytes_max;
                return Err(Error::TooLarge { bytes_max });
            }
            held.grow(piece.len())?;
            // A piece may be part of something larger, which it would keep.
            pieces.push(Bytes::copy_from_slice(&piece));
        }
        Ok(Object {
            pieces,
            size,
            created_at: SystemTime::now(),
            _held: held,
        })
    }
}

impl Object {
    /// The bytes from `start` up to but without `end`, piece by piece.
    fn body(self: Arc<Self>, start: u64, end: u64) -> ByteStream {
        Box::pin(stream::unfold(start, move |at| {
            let piece = self.piece(at, end);
            async move {
                let piece = piece?;
                let next = at + piece.len() as u64;
                Some((Ok(piece), next))
            }
        }))
    }

    /// The rest of the piece that holds the byte `at`, up to but without `end`.
    fn piece(&self, at: u64, end: u64) -> Option<Bytes> {
        let left = usize::try_from(end.checked_sub(at)?).unwrap_or(usize::MAX);
        let index = usize::try_from(at / PIECE_BYTES as u64).ok()?;
        let skip = usize::try_from(at % PIECE_BYTES as u64).ok()?;
        let piece = self.pieces.get(index)?;
        let piece = piece.slice(skip.min(piece.len())..);
        let piece = piece.slice(..left.min(piece.len()));
        (!piece.is_empty()).then_some(piece)
    }
}

#[async_trait]
impl BlobStore for Store {
    async fn create_container(&self, name: &str) -> Result<ContainerInfo> {
        let stored = self.name(name)?;
        let mut state = self.containers.state();
        if !state.contains_key(&stored) {
            if !self.create {
                return Err(Error::NoSuchContainer(name.to_owned()));
            }
            let held = Held::take(&self.containers.room, OVERHEAD_BYTES + stored.len())?;
            let container = Container {
                created_at: SystemTime::now(),
                objects: BTreeMap::new(),
                _held: held,
            };
            state.insert(stored.clone(), container);
        }
        let created_at = state.get(&stored).map(|container| container.created_at);
        Ok(ContainerInfo {
            name: name.to_owned(),
            created_at: created_at.unwrap_or_else(SystemTime::now),
        })
    }

    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>> {
        let stored = self.name(name)?;
        Ok(self
            .containers
            .state()
            .get(&stored)
            .map(|container| ContainerInfo {
                name: name.to_owned(),
                created_at: container.created_at,
            }))
    }

    async fn delete_container(&self, name: &str) -> Result<()> {
        let stored = self.name(name)?;
        self.containers.state().remove(&stored);
        Ok(())
    }

    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<Content> {
        let Some(found) = self.find(object)? else {
            return Err(Error::NoSuchObject(object.object.to_owned()));
        };
        let (start, end) = clamp(&range, found.size);
        Ok(Content {
            size: end - start,
            body: found.body(start, end),
        })
    }

    async fn write(&self, object: ObjectId<'_>, body: ByteStream) -> Result<()> {
        // Says at once what would be found at the end.
        self.find(object)?;
        let content = Arc::new(self.collect(object.object, body).await?);
        let name = self.name(object.container)?;
        self.containers.with(&name, object.container, |container| {
            container.objects.insert(object.object.to_owned(), content);
        })
    }

    async fn object(&self, object: ObjectId<'_>) -> Result<Option<ObjectInfo>> {
        Ok(self.find(object)?.map(|found| ObjectInfo {
            name: object.object.to_owned(),
            created_at: found.created_at,
            size: found.size,
        }))
    }

    async fn delete(&self, object: ObjectId<'_>) -> Result<()> {
        check_object_name(object.object)?;
        let name = self.name(object.container)?;
        self.containers.with(&name, object.container, |container| {
            container.objects.remove(object.object);
        })
    }

    async fn objects(&self, container: &str, range: KeyRange<'_>) -> Result<Page> {
        let name = self.name(container)?;
        let from = match range.after {
            Some(after) if after >= range.prefix => Bound::Excluded(after),
            _ => Bound::Included(range.prefix),
        };
        self.containers.with(&name, container, |container| {
            let mut rest = container
                .objects
                .range::<str, _>((from, Bound::Unbounded))
                .map(|(name, _)| name)
                .take_while(|name| name.starts_with(range.prefix));
            let keys = rest.by_ref().take(range.limit.max(1)).cloned().collect();
            Page {
                keys,
                more: rest.next().is_some(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> ByteStream {
        Box::pin(stream::iter(
            (0..bytes).map(|_| Ok(Bytes::from_static(b"x"))),
        ))
    }

    #[tokio::test]
    async fn the_bound_holds_and_all_room_is_given_back() {
        let store = Store {
            containers: Arc::new(Containers::new(10_000)),
            scope: Scope::Flat,
            create: true,
            object_bytes_max: 1 << 20,
        };
        let used = || store.containers.room.used.load(Ordering::Relaxed);
        let id = |object| ObjectId {
            container: "c",
            object,
        };
        store.create_container("c").await.unwrap();
        store.write(id("a"), body(5_000)).await.unwrap();
        let before = used();
        let full = store.write(id("b"), body(5_000)).await;
        assert!(matches!(full, Err(Error::Internal(_))), "{full:?}");
        assert_eq!(used(), before);
        // What is being read is held; then it is not.
        let read = store.read(id("a"), 0..=u64::MAX).await.unwrap();
        store.write(id("a"), body(1)).await.unwrap();
        assert!(used() > 5_000);
        assert_eq!(
            read.body
                .map(|piece| piece.unwrap().len())
                .collect::<Vec<_>>()
                .await,
            [5_000]
        );
        store.write(id("b"), body(5_000)).await.unwrap();
        store.delete(id("a")).await.unwrap();
        store.delete_container("c").await.unwrap();
        assert_eq!(used(), 0);
        assert!(store.create_container(&"n".repeat(150)).await.is_ok());
    }
}
