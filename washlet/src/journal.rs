//! The workloads this host was told to run, on disk, so that it runs them again after a crash or a power
//! cut, whether or not anybody can be asked.
//!
//! ```text
//! <state>/journal/<hash of the id>      one start request each, sealed
//! <state>/journal-key                   what they are sealed with
//! <state>/quarantine/                   entries that could not be read
//! ```
//! An entry is a line with the format's version and the request as it came, sealed with AES-256-GCM: start
//! requests hold secrets, and a torn or foreign file does not open. What cannot be read is moved aside and
//! reported, never fatal. A wish is noted with [`Journal::want`] in the order of commands, and is on disk
//! when [`Journal::flush`] returns; flushes at the same time share one commit of the directory.

mod storage;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use sha2::{Digest as _, Sha256};
use subjects::control::PAYLOAD_BYTES_MAX;
use subjects::{WorkloadId, wire};
use tokio::sync::{Semaphore, oneshot};

use crate::identity::kept_key;
use storage::Disk;
pub(crate) use storage::Storage;

/// The first line of an entry, with the version of its format.
const HEADER: &[u8] = b"washlet journal 1\n";

/// Any version's header without it.
const HEADER_PREFIX: &[u8] = b"washlet journal ";

/// The largest file of an entry, in bytes: a request, written our way, and what seals it.
const ENTRY_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;

/// What all entries take at most, in bytes.
const JOURNAL_BYTES_MAX: u64 = 512 << 20;

/// How many entries there are at most: as many as a host holds workloads.
const ENTRIES_MAX: usize = 20_000;

/// Files that hold up each other only: as many workloads are written at once.
const STRIPES: usize = 64;

/// Threads that write at once. Each takes memory of its own, which a burst of starts would keep; more than these
/// make no more writes per second, because what they change goes to disk together.
const WRITERS: usize = 32;

/// Why a wish is not on disk.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The disk refuses.
    #[error("journal \"{}\" cannot be written", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no more room by our own rule.
    #[error(
        "the journal has no room for a further entry: it holds {ENTRIES_MAX} or {JOURNAL_BYTES_MAX} bytes at most"
    )]
    Full,
    /// The request is larger than an entry may be.
    #[error("the request is larger than an entry of the journal may be ({ENTRY_BYTES_MAX} bytes)")]
    TooLarge,
    /// The cryptographic library failed.
    #[error("an entry could not be sealed")]
    Seal,
}

/// The journal of one host; its directory belongs to this process.
pub struct Journal {
    storage: Box<dyn Storage>,
    key: RandomizedNonceKey,
    /// What is to be on disk and is not known to be.
    pending: Mutex<HashMap<WorkloadId, Wish>>,
    wishes: AtomicU64,
    kept: Mutex<Kept>,
    /// What was wanted before the last start, as long as that may be given up.
    doubts: Mutex<HashMap<WorkloadId, Doubt>>,
    /// Entries that were moved aside, now or by an earlier process.
    set_aside: AtomicU64,
    stripes: [Mutex<()>; STRIPES],
    writers: Semaphore,
    commits: Commits,
}

/// What is to be on disk. Shape: clones are the same wish.
type Wish = Arc<Noted>;

struct Noted {
    /// Of a later wish a higher one; 0 for what an earlier process left.
    number: u64,
    /// A start request's bytes, or nothing.
    request: Option<Vec<u8>>,
}

/// A start that may be given up.
struct Doubt {
    /// Its number.
    of: u64,
    /// What was wanted before it.
    before: Wish,
}

/// What is on disk.
#[derive(Default)]
struct Kept {
    /// By name.
    files: HashMap<String, Written>,
    /// Of all of them.
    bytes: u64,
}

/// A file.
#[derive(Clone, Copy, Default)]
struct Written {
    bytes: u64,
    /// The wish that is known to be on disk, and any before it.
    number: Option<u64>,
}

impl Kept {
    fn insert(&mut self, name: String, bytes: u64) {
        let written = self.files.entry(name).or_default();
        let before = std::mem::replace(&mut written.bytes, bytes);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(bytes);
    }

    fn remove(&mut self, name: &str) {
        let before = self.files.remove(name).unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(before.bytes);
    }

    /// Whether there is room for `bytes` under `name`.
    fn has_room(&self, name: &str, bytes: u64) -> bool {
        let before = self.files.get(name);
        let others = self
            .bytes
            .saturating_sub(before.copied().unwrap_or_default().bytes);
        let count = self.files.len() + usize::from(before.is_none());
        count <= ENTRIES_MAX && others.saturating_add(bytes) <= JOURNAL_BYTES_MAX
    }
}

/// How full the journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Workloads that will run after a restart.
    pub entries: usize,
    /// What they take on disk.
    pub bytes: u64,
    /// Files that lie in `<state>/quarantine`.
    pub set_aside: u64,
}

/// Changes of the directory that many share: one goes to the disk while those that come meanwhile wait, and
/// then one for all of them.
#[derive(Default)]
struct Commits {
    begun: AtomicU64,
    done: Mutex<u64>,
}

impl Commits {
    /// Waits until what this thread has changed in `storage` is on disk.
    fn commit(&self, storage: &dyn Storage) -> io::Result<()> {
        // One that has begun may have missed it.
        let needed = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done < needed {
            let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            storage.commit()?;
            *done = this;
        }
        Ok(())
    }
}

/// A workload that was to run.
#[derive(Debug)]
pub struct Entry {
    /// Its id.
    pub id: WorkloadId,
    /// What it is.
    pub workload: wire::Workload,
}

impl Journal {
    /// Opens the journal in the state directory `state`, and makes what is missing.
    ///
    /// # Errors
    /// When the directory or the key cannot be made or read.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let dir = state.join("journal");
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let path = state.join("journal-key");
        let lost = "what was to run is not known any more";
        let key = kept_key(state, &path, lost).map_err(at(&path))?;
        let quarantine = state.join("quarantine");
        Self::on(Box::new(Disk { dir, quarantine }), &key)
    }

    /// The journal in `storage`, sealed with `key`.
    pub(crate) fn on(storage: Box<dyn Storage>, key: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            set_aside: AtomicU64::new(storage.set_aside_before()),
            key: RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| Error::Seal)?,
            storage,
            pending: Mutex::default(),
            wishes: AtomicU64::new(0),
            kept: Mutex::default(),
            doubts: Mutex::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
            writers: Semaphore::new(WRITERS),
            commits: Commits::default(),
        })
    }

    /// Everything that was to run; what cannot be read is moved aside. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn read(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        let dir = self.storage.path("");
        for name in self.storage.names().map_err(at(&dir))? {
            match self.entry(&name) {
                Ok((entry, bytes)) => {
                    let mut kept = self.kept();
                    kept.insert(name.clone(), bytes);
                    if let Some(file) = kept.files.get_mut(&name) {
                        file.number = Some(0);
                    }
                    drop(kept);
                    entries.push(entry);
                }
                Err(reason) => self.set_aside(&name, &reason),
            }
        }
        Ok(entries)
    }

    /// Notes what is to be on disk for `id`: `request`, a start request's bytes, or nothing.
    ///
    /// Shape: gives the number of the wish, for [`has`](Self::has).
    pub fn want(&self, id: &WorkloadId, request: Option<Vec<u8>>) -> u64 {
        let number = self.wishes.fetch_add(1, Ordering::Relaxed) + 1;
        let is_start = request.is_some();
        let mut pending = self.pending();
        match pending.insert(id.clone(), Arc::new(Noted { number, request })) {
            // Not on disk yet, and counts again if this is given up. A stop never is.
            Some(before) if is_start => {
                let doubt = Doubt { of: number, before };
                self.doubts().insert(id.clone(), doubt)
            }
            _ => self.doubts().remove(id),
        };
        number
    }

    /// What was last wanted for `id` is not given up any more.
    pub(crate) fn settle(&self, id: &WorkloadId) {
        self.doubts().remove(id);
    }

    /// Takes a start back; the next flush puts back what was wanted before.
    ///
    /// Shape: `number` is that of the start; nothing happens if something else is wanted since.
    pub fn give_up(&self, id: &WorkloadId, number: u64) {
        let mut pending = self.pending();
        if pending.get(id).is_some_and(|wish| wish.number != number) {
            return;
        }
        let mut doubts = self.doubts();
        match doubts.get(id).is_some_and(|doubt| doubt.of == number) {
            // Even if somebody else's flush has put it on disk meanwhile.
            true => {
                let before = doubts.remove(id).map(|doubt| doubt.before);
                pending.extend(before.map(|before| (id.clone(), before)));
            }
            false => {
                pending.remove(id);
            }
        }
    }

    /// Whether `id` is to run after a restart.
    pub fn wants(&self, id: &WorkloadId) -> bool {
        match self.pending().get(id) {
            Some(wish) => wish.request.is_some(),
            None => self.kept().files.contains_key(&name(id)),
        }
    }

    /// Whether the start of `id` with this number has come to the disk, whoever saw to it.
    pub(crate) fn has(&self, id: &WorkloadId, number: u64) -> bool {
        let kept = self.kept();
        let written = kept.files.get(&name(id)).and_then(|file| file.number);
        written.is_some_and(|written| written >= number)
    }

    /// Whether anything is on disk for `id`, or not known not to be.
    pub fn knows(&self, id: &WorkloadId) -> bool {
        self.pending().contains_key(id) || self.kept().files.contains_key(&name(id))
    }

    /// What `id` was started with, as far as it is to run after a restart. Blocks.
    pub fn find(&self, id: &WorkloadId) -> Option<wire::Workload> {
        let pending = self.pending().get(id).cloned();
        match pending {
            Some(wish) => {
                let request = wire::WorkloadStartRequest::decode(wish.request.as_deref()?).ok()?;
                request.workload
            }
            None => {
                let (entry, _) = self.entry(&name(id)).ok()?;
                Some(entry.workload)
            }
        }
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let kept = self.kept();
        Usage {
            entries: kept.files.len(),
            bytes: kept.bytes,
            set_aside: self.set_aside.load(Ordering::Relaxed),
        }
    }

    /// Waits until what was last wanted for `id` is on disk.
    ///
    /// # Errors
    /// [`Error`]; then the disk has what it had before, or nothing, and the next flush tries again.
    pub async fn flush(self: &Arc<Self>, id: &WorkloadId) -> Result<(), Error> {
        if !self.pending().contains_key(id) {
            return Ok(());
        }
        // The semaphore is never closed.
        let _permit = self.writers.acquire().await;
        let (this, id) = (Arc::clone(self), id.clone());
        let (sender, applied) = oneshot::channel();
        let apply = Box::new(move || {
            // Whoever waited may be gone.
            let _ = sender.send(this.apply(&id));
        });
        self.storage.carry_out(apply).await;
        // A panic, or a runtime that ends.
        applied.await.unwrap_or(Err(Error::Seal))
    }

    fn apply(&self, id: &WorkloadId) -> Result<(), Error> {
        let name = name(id);
        let stripe = name.bytes().map(usize::from).sum::<usize>() % STRIPES;
        let _turn = self
            .stripes
            .get(stripe)
            .map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        // Whoever saw to it before us held the turn until it was on disk.
        let Some(wish) = self.pending().get(id).cloned() else {
            return Ok(());
        };
        self.write(id, name.clone(), &wish)?;
        if let Some(file) = self.kept().files.get_mut(&name) {
            file.number = Some(wish.number);
        }
        // Only now, so that whoever asks meanwhile knows of it; and unless it is wanted otherwise by now.
        let mut pending = self.pending();
        if pending.get(id).is_some_and(|now| Arc::ptr_eq(now, &wish)) {
            pending.remove(id);
        }
        Ok(())
    }

    fn write(&self, id: &WorkloadId, name: String, wish: &Noted) -> Result<(), Error> {
        let path = self.storage.path(&name);
        match &wish.request {
            Some(request) => {
                let sealed = self.seal(&name, request.to_vec())?;
                let bytes = sealed.len() as u64;
                if bytes > ENTRY_BYTES_MAX {
                    return Err(Error::TooLarge);
                }
                if !self.kept().has_room(&name, bytes) {
                    return Err(Error::Full);
                }
                let before = self.on_disk(&name);
                self.storage.write(&name, &sealed).map_err(at(&path))?;
                let doubt = Doubt {
                    of: wish.number,
                    before,
                };
                let mut doubts = self.doubts();
                // Unless something else was wanted meanwhile.
                if doubts.get(id).is_none_or(|known| known.of < doubt.of) {
                    doubts.insert(id.clone(), doubt);
                }
                drop(doubts);
                self.kept().insert(name, bytes);
            }
            None => {
                self.storage.remove(&name).map_err(at(&path))?;
                self.kept().remove(&name);
            }
        }
        let dir = self.storage.path("");
        self.commits.commit(&*self.storage).map_err(at(&dir))
    }

    /// The request that `name` holds, if any.
    fn on_disk(&self, name: &str) -> Wish {
        let there = self.kept().files.get(name).copied();
        let entry = there.and_then(|_| self.entry(name).ok());
        let request = entry.map(|(Entry { id, workload }, _)| {
            let request = wire::WorkloadStartRequest {
                workload_id: id.to_string(),
                workload: Some(workload),
            };
            request.encode()
        });
        let number = there.and_then(|file| file.number).unwrap_or_default();
        Arc::new(Noted { number, request })
    }

    fn seal(&self, name: &str, mut request: Vec<u8>) -> Result<Vec<u8>, Error> {
        let nonce = self
            .key
            .seal_in_place_append_tag(aad(name), &mut request)
            .map_err(|_| Error::Seal)?;
        Ok([HEADER, nonce.as_ref(), &request].concat())
    }

    fn entry(&self, name: &str) -> Result<(Entry, u64), String> {
        let read = self.storage.read(name, ENTRY_BYTES_MAX + 1);
        let mut bytes = read.map_err(|error| error.to_string())?;
        let size = bytes.len() as u64;
        let Some(sealed) = bytes.get_mut(HEADER.len()..) else {
            return Err("it is cut short".to_owned());
        };
        if sealed.len() < NONCE_LEN {
            return Err("it is cut short".to_owned());
        }
        let (nonce, sealed) = sealed.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "it is cut short")?;
        let opened = self.key.open_in_place(nonce, aad(name), sealed);
        let Ok(opened) = opened else {
            return Err(match bytes.get(..HEADER.len()) {
                Some(HEADER) => "it is damaged, or sealed with another key",
                Some(other) if other.starts_with(HEADER_PREFIX) => {
                    "it has another version's format, perhaps of a newer host"
                }
                _ => "it is no entry of a journal",
            }
            .to_owned());
        };
        // Its text could quote secrets.
        let request = wire::WorkloadStartRequest::decode(opened)
            .map_err(|_| "its request cannot be decoded".to_owned())?;
        let id = WorkloadId::new(request.workload_id).map_err(|error| error.to_string())?;
        let workload = request.workload.ok_or("its request has no workload")?;
        Ok((Entry { id, workload }, size))
    }

    fn set_aside(&self, name: &str, reason: &str) {
        if name.starts_with('.') {
            // Being written when the host ended; nothing was promised yet.
            let _ = self.storage.remove(name);
            return;
        }
        match self.storage.set_aside(name) {
            Ok(aside) => {
                self.set_aside.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    entry = name, reason, moved_to = %aside.display(),
                    "an entry of the journal cannot be read: its workload is not started again"
                );
            }
            Err(error) => tracing::warn!(
                entry = name, reason, %error,
                "an entry of the journal cannot be read, and not be moved aside"
            ),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<WorkloadId, Wish>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubts(&self) -> MutexGuard<'_, HashMap<WorkloadId, Doubt>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// An entry opens only under its own name, and in this version's format.
fn aad(name: &str) -> Aad<Vec<u8>> {
    Aad::from([HEADER, name.as_bytes()].concat())
}

/// An id may have characters and a length that a file may not.
fn name(id: &WorkloadId) -> String {
    let hash = Sha256::digest(id.as_str());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn id(id: &str) -> WorkloadId {
        WorkloadId::new(id.to_owned()).unwrap()
    }

    fn request(id: &str) -> Vec<u8> {
        wire::WorkloadStartRequest {
            workload_id: id.to_owned(),
            workload: Some(wire::Workload {
                name: "canary-5e1f".to_owned(),
                ..wire::Workload::default()
            }),
        }
        .encode()
    }

    fn open(state: &TempDir) -> Arc<Journal> {
        Arc::new(Journal::open(state.path()).unwrap())
    }

    async fn keep(journal: &Arc<Journal>, name: &str) {
        journal.want(&id(name), Some(request(name)));
        journal.flush(&id(name)).await.unwrap();
    }

    fn ids(journal: &Journal) -> Vec<String> {
        let entries = journal.read().unwrap().into_iter();
        let mut ids: Vec<_> = entries.map(|entry| entry.id.to_string()).collect();
        ids.sort();
        ids
    }

    #[tokio::test]
    async fn what_was_to_run_is_known_after_a_restart() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        for name in ["a", "b", "c"] {
            keep(&journal, name).await;
        }
        journal.want(&id("b"), None);
        journal.flush(&id("b")).await.unwrap();
        let journal = open(&state);
        assert_eq!(ids(&journal), ["a", "c"]);
        assert!(journal.wants(&id("a")) && !journal.wants(&id("b")));
        // Taken back by a process that did not write it.
        journal.want(&id("a"), None);
        journal.flush(&id("a")).await.unwrap();
        assert_eq!(ids(&open(&state)), ["c"]);
    }

    #[tokio::test]
    async fn the_last_wish_counts_whoever_flushes() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        journal.want(&id("a"), Some(request("a")));
        journal.want(&id("a"), None);
        let a = id("a");
        let both = tokio::join!(journal.flush(&a), journal.flush(&a));
        both.0.unwrap();
        both.1.unwrap();
        assert_eq!(ids(&open(&state)), [""; 0]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_set_aside_and_the_rest_is_there() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        for name in ["good", "torn", "changed", "renamed", "newer"] {
            keep(&journal, name).await;
        }
        let dir = state.path().join("journal");
        let file = |of: &str| dir.join(name(&id(of)));
        let bytes = fs::read(file("torn")).unwrap();
        fs::write(file("torn"), &bytes[..bytes.len() / 2]).unwrap();
        let mut bytes = fs::read(file("changed")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file("changed"), bytes).unwrap();
        fs::rename(file("renamed"), dir.join("another")).unwrap();
        fs::write(
            file("newer"),
            b"washlet journal 2\nwho knows what is in here",
        )
        .unwrap();
        fs::write(dir.join("empty"), b"").unwrap();
        fs::write(dir.join(".tmp123"), b"half").unwrap();
        assert_eq!(ids(&open(&state)), ["good"]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let aside = fs::read_dir(state.path().join("quarantine")).unwrap();
        assert_eq!(aside.count(), 5);
        // Also by those who come later.
        assert_eq!(open(&state).usage().set_aside, 5);
        // A key that is not ours any more is no reason not to start.
        fs::write(state.path().join("journal-key"), b"short").unwrap();
        assert_eq!(ids(&open(&state)), [""; 0]);
    }

    #[tokio::test]
    async fn nothing_of_a_request_can_be_read_on_disk() {
        let state = TempDir::new().unwrap();
        keep(&open(&state), "a").await;
        let file = state.path().join("journal").join(name(&id("a")));
        let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        assert!(text.starts_with("washlet journal 1\n"));
        assert!(!text.contains("canary"), "{text}");
        let key = fs::metadata(state.path().join("journal-key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_said() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        fs::remove_dir_all(state.path().join("journal")).unwrap();
        journal.want(&id("a"), Some(request("a")));
        let refused = journal.flush(&id("a")).await;
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        journal.give_up(&id("a"), 1);
        assert!(!journal.knows(&id("a")));
        // There is nothing left to be done.
        journal.flush(&id("a")).await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_is_on_disk_or_is_tried_again() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        keep(&journal, "a").await;
        let (dir, away) = (state.path().join("journal"), state.path().join("away"));
        fs::rename(&dir, &away).unwrap();
        journal.want(&id("a"), None);
        assert!(journal.flush(&id("a")).await.is_err());
        assert!(!journal.wants(&id("a")) && journal.knows(&id("a")));
        // What was wanted stays wanted; a start that failed does not take its place by being given up.
        journal.give_up(&id("a"), 1);
        fs::rename(&away, &dir).unwrap();
        journal.flush(&id("a")).await.unwrap();
        assert!(!journal.knows(&id("a")));
        assert_eq!(ids(&open(&state)), [""; 0]);
    }

    #[tokio::test]
    async fn many_at_once_are_all_on_disk_and_counted() {
        let state = TempDir::new().unwrap();
        let journal = open(&state);
        let names: Vec<_> = (0..200).map(|number| format!("w{number}")).collect();
        futures::future::join_all(names.iter().map(|name| keep(&journal, name))).await;
        let files = fs::read_dir(state.path().join("journal")).unwrap();
        let bytes = files.map(|file| file.unwrap().metadata().unwrap().len());
        let usage = journal.usage();
        assert_eq!(usage.entries, 200);
        assert_eq!(usage.bytes, bytes.sum::<u64>());
        // Fewer commits of the directory than entries is what sharing is for; never more.
        assert!(journal.commits.begun.load(Ordering::SeqCst) <= 200);
        for name in &names {
            journal.want(&id(name), None);
            journal.flush(&id(name)).await.unwrap();
        }
        assert_eq!(journal.usage(), Usage::default());
    }

    #[test]
    fn room_is_bounded_in_entries_and_bytes() {
        let mut kept = Kept::default();
        kept.insert("a".to_owned(), JOURNAL_BYTES_MAX);
        assert!(!kept.has_room("b", 1));
        // Its own place is not counted twice.
        assert!(kept.has_room("a", JOURNAL_BYTES_MAX));
        kept.insert("a".to_owned(), 1);
        assert_eq!(kept.bytes, 1);
        for number in 1..ENTRIES_MAX {
            kept.insert(number.to_string(), 1);
        }
        assert!(!kept.has_room("b", 1) && kept.has_room("a", 1));
        kept.remove("1");
        assert!(kept.has_room("b", 1));
    }
}
