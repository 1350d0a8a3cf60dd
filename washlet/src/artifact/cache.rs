//! Artifacts on disk: bytes by their digest, references by who could resolve them.
//!
//! ```text
//! <dir>/blobs/sha256/<hex>     the bytes, verified each time they are read
//! <dir>/refs/<hex>.json        what a reference meant to those who could resolve it
//! <dir>/quarantine/            bytes that did not match their name
//! <dir>/tmp/                   files being written
//! <dir>/key                    of the hash that stands for credentials
//! <dir>/users, <dir>/asking    locked by those who use the directory, and who asks how many they are
//! ```
//! A file gets its name only when its content is on disk, so a crash leaves nothing half written, and
//! several processes may share a directory: each keeps the modification times of what it uses fresh,
//! and nothing fresh is removed. All functions here block.

mod cleaner;
mod space;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tempfile::NamedTempFile;

use super::credentials::Credentials;
use super::reference::{Digest, Image};
pub use cleaner::{HIGH_WATERMARK, LOW_WATERMARK, Swept};

/// The largest file of a reference, in bytes.
const REFERENCE_FILE_BYTES_MAX: u64 = 16 << 10;

/// A file of the cache could not be used.
#[derive(thiserror::Error, Debug)]
#[error("artifact cache \"{}\" cannot be used", path.display())]
pub struct Error {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { path, source }
}

/// How full the cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Size of all artifacts, those in quarantine included.
    pub bytes: u64,
    /// How many artifacts.
    pub entries: usize,
}

/// Who could resolve a reference: a keyed hash of credentials, or [`Who::ANYONE`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Who(String);

impl Who {
    const ANYONE: &str = "anonymous";

    /// Anonymous, or with the host's own credentials, which every workload may use.
    pub(crate) fn anyone() -> Self {
        Self(Self::ANYONE.to_owned())
    }
}

/// What a reference meant when it was last resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) layer: Digest,
    pub(crate) manifest: Digest,
    pub(crate) size: u64,
}

/// The file of a reference.
#[derive(Serialize, Deserialize)]
struct Record {
    reference: String,
    digest: Digest,
    manifest_digest: Digest,
    size: u64,
    resolved_by: Who,
    /// Seconds since 1970.
    time: u64,
}

/// Keeps an artifact from the cleaner until dropped.
pub struct Pin {
    store: Option<(Arc<Store>, Digest)>,
}

impl Pin {
    /// Of an artifact that is not in the cache.
    pub(crate) fn none() -> Self {
        Self { store: None }
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        match &self.store {
            Some((store, digest)) => store.pin(*digest),
            None => Self::none(),
        }
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pin")
            .field(&self.store.as_ref().map(|(_, digest)| digest))
            .finish()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some((store, digest)) = &self.store
            && let Some(used) = store.uses().get_mut(digest)
        {
            used.pins = used.pins.saturating_sub(1);
            used.last = Instant::now();
        }
    }
}

/// Uses of an artifact by this process; a monotonic clock does not jump.
struct Use {
    pins: usize,
    last: Instant,
}

impl Use {
    /// Whether it is pinned, or was within `time`.
    fn is_within(&self, time: Duration) -> bool {
        self.pins > 0 || self.last.elapsed() < time
    }
}

/// The cache.
pub(crate) struct Store {
    dir: PathBuf,
    budget: u64,
    bytes_max: u64,
    key: Vec<u8>,
    uses: Mutex<HashMap<Digest, Use>>,
    usage: Mutex<Usage>,
    /// Bytes of the budget that downloads may yet take; locked while artifacts come and go, so that each
    /// byte is either among these or in a file.
    promised: Mutex<u64>,
    users: space::Users,
}

impl Store {
    /// Creates what is missing; what is in the way of a directory is moved aside.
    pub(crate) fn open(dir: &Path, budget: u64, bytes_max: u64) -> Result<Arc<Self>, Error> {
        for name in ["blobs", "blobs/sha256", "refs", "quarantine", "tmp"] {
            let path = dir.join(name);
            make_dir(&path).map_err(at(&path))?;
        }
        let key = key(dir).map_err(at(&dir.join("key")))?;
        let store = Self {
            dir: dir.to_owned(),
            budget,
            bytes_max,
            key,
            uses: Mutex::default(),
            usage: Mutex::default(),
            promised: Mutex::default(),
            users: space::Users::join(dir).map_err(at(dir))?,
        };
        let mut failed = 0;
        *lock(&store.usage) = cleaner::usage(&store.entries(&mut failed));
        Ok(Arc::new(store))
    }

    /// How many bytes it may have.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// `source` happened to the file of `digest`.
    pub(crate) fn error_at(&self, digest: Digest, source: io::Error) -> Error {
        at(&self.blob_path(digest))(source)
    }

    pub(crate) fn usage(&self) -> Usage {
        *lock(&self.usage)
    }

    /// Whose view of references these credentials have.
    pub(crate) fn who(&self, credentials: Option<&Credentials>) -> Who {
        let Some(credentials) = credentials else {
            return Who::anyone();
        };
        let mut hash = sha2::Sha256::new();
        hash.update(&self.key);
        hash.update(credentials.username.len().to_le_bytes());
        hash.update(&credentials.username);
        hash.update(&credentials.password);
        Who(Digest::finish(hash).hex())
    }

    /// What `image` meant to `who`, else to anyone.
    pub(crate) fn find(&self, image: &Image, who: &Who) -> Option<Known> {
        self.find_exactly(image, who)
            .or_else(|| self.find_exactly(image, &Who::anyone()))
    }

    fn find_exactly(&self, image: &Image, who: &Who) -> Option<Known> {
        let reference = image.to_string();
        let path = self.reference_path(&reference, who);
        let record = read_record(&path)?;
        // Not what its name says: somebody else's file.
        if record.reference != reference || record.resolved_by != *who {
            return None;
        }
        touch_path(&path);
        let Record {
            digest,
            manifest_digest,
            size,
            ..
        } = record;
        Some(Known {
            layer: digest,
            manifest: manifest_digest,
            size,
        })
    }

    /// Remembers what `image` means to `who`.
    pub(crate) fn record(&self, image: &Image, who: &Who, known: &Known) -> Result<(), Error> {
        let reference = image.to_string();
        let path = self.reference_path(&reference, who);
        let record = Record {
            reference,
            digest: known.layer,
            manifest_digest: known.manifest,
            size: known.size,
            resolved_by: who.clone(),
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
        };
        let write = || {
            let mut file = self.temp()?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            persist(file, &path)
        };
        write().map_err(at(&path))
    }

    /// Whether `who` may have these bytes without downloading them: they, or anyone, did before.
    ///
    /// Else a registry of the attacker's own could name a stranger's bytes in a manifest.
    pub(crate) fn may_share(&self, digest: Digest, who: &Who) -> bool {
        let Ok(files) = fs::read_dir(self.dir.join("refs")) else {
            return false;
        };
        files
            .flatten()
            .filter_map(|file| read_record(&file.path()))
            .any(|record| {
                let by = &record.resolved_by;
                record.digest == digest && (by == who || by.0 == Who::ANYONE)
            })
    }

    /// The size of the artifact, if it is there for reading; says that it is used now.
    pub(crate) fn present(&self, digest: Digest) -> Option<u64> {
        let path = self.blob_path(digest);
        let meta = fs::symlink_metadata(&path).ok()?;
        let usable = meta.is_file() && meta.len() <= self.bytes_max;
        let file = usable.then(|| File::open(&path).ok()).flatten()?;
        touch(&file);
        Some(meta.len())
    }

    /// Pins the artifact if it is there.
    pub(crate) fn pin_present(self: &Arc<Self>, digest: Digest) -> Option<Pin> {
        // In this order, so that it is not removed in between.
        let pin = self.pin(digest);
        self.present(digest).map(|_| pin)
    }

    /// The bytes, if they are there and match their digest; what does not match is put aside.
    pub(crate) fn read(&self, digest: Digest) -> Option<Bytes> {
        let path = self.blob_path(digest);
        match read_bounded(&path, self.bytes_max) {
            Ok(bytes) if Digest::of(&bytes) == digest => {
                touch_path(&path);
                return Some(bytes.into());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%digest, %error, "cached artifact cannot be read");
                return None;
            }
            Ok(_) => tracing::warn!(%digest, "cached artifact is damaged, put aside"),
        }
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let aside = format!("quarantine/{}-{}", digest.hex(), time.as_nanos());
        if let Err(error) = fs::rename(&path, self.dir.join(aside)) {
            tracing::warn!(%digest, %error, "cached artifact cannot be put aside");
        }
        None
    }

    /// A file to write to, gone when dropped.
    pub(crate) fn temp(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.dir.join("tmp"))
    }

    /// Makes `file`, whose bytes were verified, the artifact `digest`.
    pub(crate) fn keep(&self, file: NamedTempFile, digest: Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        let old = fs::symlink_metadata(&path).ok();
        let keep = || {
            if old.as_ref().is_some_and(|old| !old.is_file()) {
                move_aside(&path)?;
            }
            let size = file.as_file().metadata()?.len();
            persist(file, &path)?;
            Ok(size)
        };
        let size = keep().map_err(at(&path))?;
        let mut usage = lock(&self.usage);
        if !old.is_some_and(|old| old.is_file()) {
            usage.bytes = usage.bytes.saturating_add(size);
            usage.entries = usage.entries.saturating_add(1);
        }
        Ok(())
    }

    /// Keeps `digest` from the cleaner; it need not be there yet.
    pub(crate) fn pin(self: &Arc<Self>, digest: Digest) -> Pin {
        let mut uses = self.uses();
        let used = uses.entry(digest).or_insert(Use {
            pins: 0,
            last: Instant::now(),
        });
        used.pins = used.pins.saturating_add(1);
        Pin {
            store: Some((self.clone(), digest)),
        }
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn reference_path(&self, reference: &str, who: &Who) -> PathBuf {
        let name = Digest::of(format!("{reference}\0{}", who.0).as_bytes()).hex();
        self.dir.join("refs").join(format!("{name}.json"))
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<Digest, Use>> {
        lock(&self.uses)
    }
}

/// Says "used now" by the modification time; on a read-only disk nothing is cleaned either.
fn touch(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}

fn touch_path(path: &Path) {
    if let Ok(file) = File::open(path) {
        touch(&file);
    }
}

fn read_record(path: &Path) -> Option<Record> {
    let bytes = read_bounded(path, REFERENCE_FILE_BYTES_MAX).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// A regular file of at most `max` bytes; opening anything else might block.
pub(super) fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let size = match fs::symlink_metadata(path)? {
        meta if !meta.is_file() => return Err(io::Error::other("not a regular file")),
        meta => meta.len(),
    };
    if size > max {
        return Err(io::Error::other(format!("{size} bytes exceed {max}")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts `file` at `path` in one step, and on disk.
fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir_all(path) {
        Err(_) if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir()) => {
            move_aside(path)?;
            fs::create_dir_all(path)
        }
        made => made,
    }
}

fn move_aside(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.garbage", uuid::Uuid::new_v4()));
    tracing::warn!(path = %path.display(), "not what the artifact cache put there, moved aside");
    fs::rename(path, name)
}

/// The key of this directory, made by the first process that opens it.
fn key(dir: &Path) -> io::Result<Vec<u8>> {
    const KEY_BYTES: u64 = 32;
    let path = dir.join("key");
    let read = || {
        read_bounded(&path, KEY_BYTES)
            .ok()
            .filter(|key| key.len() as u64 == KEY_BYTES)
    };
    if let Some(key) = read() {
        return Ok(key);
    }
    let mut file = NamedTempFile::new_in(dir.join("tmp"))?;
    file.write_all(uuid::Uuid::new_v4().as_bytes())?;
    file.write_all(uuid::Uuid::new_v4().as_bytes())?;
    file.as_file().sync_all()?;
    if fs::symlink_metadata(&path).is_ok() {
        move_aside(&path)?;
    }
    // Another process may have been faster.
    let _ = file.persist_noclobber(&path);
    read().ok_or_else(|| io::Error::other("not 32 bytes"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
