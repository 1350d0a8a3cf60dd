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

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use sha2::{Digest as _, Sha256};
use subjects::control::PAYLOAD_BYTES_MAX;
use subjects::{WorkloadId, wire};

use crate::identity::{write_durably, write_whole};

/// The first line of an entry, with the version of its format.
const HEADER: &[u8] = b"washlet journal 1\n";

/// Any version's header without it.
const HEADER_PREFIX: &[u8] = b"washlet journal ";

/// The largest file of an entry, in bytes: a request, written our way, and what seals it.
const ENTRY_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;

/// What all entries take at most, in bytes.
const JOURNAL_BYTES_MAX: u64 = 512 << 20;

/// Units: bytes.
const KEY_BYTES: usize = 32;

/// Files that hold up each other only: as many workloads are written at once.
const STRIPES: usize = 64;

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
    #[error("the journal holds {JOURNAL_BYTES_MAX} bytes, its maximum")]
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
    dir: PathBuf,
    quarantine: PathBuf,
    key: RandomizedNonceKey,
    /// What is to be on disk and is not known to be: a sealed request, or nothing.
    pending: Mutex<HashMap<WorkloadId, Option<Vec<u8>>>>,
    /// What is on disk, by name of file, with its bytes.
    kept: Mutex<HashMap<String, u64>>,
    stripes: [Mutex<()>; STRIPES],
    commits: Commits,
}

/// Changes of the directory that many share: one goes to the disk while those that come meanwhile wait, and
/// then one for all of them.
#[derive(Default)]
struct Commits {
    begun: AtomicU64,
    done: Mutex<u64>,
}

impl Commits {
    /// Waits until what this thread has changed in `dir` is on disk.
    fn commit(&self, dir: &Path) -> io::Result<()> {
        // One that has begun may have missed it.
        let needed = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done < needed {
            let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            File::open(dir)?.sync_all()?;
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
        let key = key(state, &path).map_err(at(&path))?;
        Ok(Self {
            dir,
            quarantine: state.join("quarantine"),
            key: RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| Error::Seal)?,
            pending: Mutex::default(),
            kept: Mutex::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
            commits: Commits::default(),
        })
    }

    /// Everything that was to run; what cannot be read is moved aside. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn read(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            let path = file.map_err(at(&self.dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match self.entry(&name, &path) {
                Ok((entry, bytes)) => {
                    self.kept().insert(name.into_owned(), bytes);
                    entries.push(entry);
                }
                Err(reason) => self.set_aside(&name, &path, &reason),
            }
        }
        Ok(entries)
    }

    /// Notes what is to be on disk for `id`: `request`, a start request's bytes, or nothing.
    pub fn want(&self, id: &WorkloadId, request: Option<Vec<u8>>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.insert(id.clone(), request);
    }

    /// Whether anything is or will be on disk for `id`.
    pub fn has(&self, id: &WorkloadId) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match pending.get(id) {
            Some(wish) => wish.is_some(),
            None => self.kept().contains_key(&name(id)),
        }
    }

    /// Waits until what was last wanted for `id` is on disk.
    ///
    /// # Errors
    /// [`Error`]; then the disk has what it had before.
    pub async fn flush(self: &Arc<Self>, id: &WorkloadId) -> Result<(), Error> {
        let (this, id) = (Arc::clone(self), id.clone());
        let flush = tokio::task::spawn_blocking(move || this.apply(&id));
        // A panic, or a runtime that ends.
        flush.await.unwrap_or(Err(Error::Seal))
    }

    fn apply(&self, id: &WorkloadId) -> Result<(), Error> {
        let name = name(id);
        let stripe = name.bytes().map(usize::from).sum::<usize>() % STRIPES;
        let _turn = self
            .stripes
            .get(stripe)
            .map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let wish = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever took it before us held the turn until it was on disk.
            let Some(wish) = pending.remove(id) else {
                return Ok(());
            };
            wish
        };
        let path = self.dir.join(&name);
        match wish {
            Some(request) => {
                let sealed = self.seal(&name, request)?;
                let bytes = sealed.len() as u64;
                if bytes > ENTRY_BYTES_MAX {
                    return Err(Error::TooLarge);
                }
                let others: u64 = {
                    let kept = self.kept();
                    let others = kept.iter().filter(|(other, _)| **other != name);
                    others.map(|(_, bytes)| bytes).sum()
                };
                if others + bytes > JOURNAL_BYTES_MAX {
                    return Err(Error::Full);
                }
                write_whole(&self.dir, &path, &sealed).map_err(at(&path))?;
                self.kept().insert(name, bytes);
            }
            None => {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(at(&path)(error));
                    }
                    _ => {}
                }
                self.kept().remove(&name);
            }
        }
        self.commits.commit(&self.dir).map_err(at(&self.dir))
    }

    fn seal(&self, name: &str, mut request: Vec<u8>) -> Result<Vec<u8>, Error> {
        let nonce = self
            .key
            .seal_in_place_append_tag(aad(name), &mut request)
            .map_err(|_| Error::Seal)?;
        Ok([HEADER, nonce.as_ref(), &request].concat())
    }

    fn entry(&self, name: &str, path: &Path) -> Result<(Entry, u64), String> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| error.to_string())?;
        file.take(ENTRY_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
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

    fn set_aside(&self, name: &str, path: &Path, reason: &str) {
        if name.starts_with('.') {
            // Being written when the host ended; nothing was promised yet.
            let _ = fs::remove_file(path);
            return;
        }
        let aside = self.quarantine.join(name);
        let moved = fs::create_dir_all(&self.quarantine).and_then(|()| fs::rename(path, &aside));
        match moved {
            Ok(()) => tracing::warn!(
                entry = name, reason, moved_to = %aside.display(),
                "an entry of the journal cannot be read: its workload is not started again"
            ),
            Err(error) => tracing::warn!(
                entry = name, reason, %error,
                "an entry of the journal cannot be read, and not be moved aside"
            ),
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, u64>> {
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

fn key(state: &Path, path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(key) if key.len() == KEY_BYTES => return Ok(key),
        Ok(_) => tracing::warn!(
            file = %path.display(),
            "the key of the journal is damaged: what was to run is not known any more"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("there are no random numbers"))?;
    write_durably(state, path, &key)?;
    Ok(key)
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
        assert!(journal.has(&id("a")) && !journal.has(&id("b")));
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
    }
}
