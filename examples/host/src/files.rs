//! A storage: key-value in a directory, `DIR/BUCKET/HASH OF THE KEY`, a file for each key.
//!
//! A write is a new file put in the place of the old one, so a reader sees the one or the other, also after this
//! process was killed. Files are not synchronised with the disk: a power cut may take the last writes. Nothing
//! bounds what all files hold together but the file system's own quota.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::keyvalue::{
    self, Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, VALUE_BYTES_MAX, Version,
    check_key, check_value, counter, ttl_seconds,
};
use capabilities::names;
use capabilities::plugin::{Ask, OpenError, Plugin, Scope};
use sha2::{Digest, Sha256};

/// The file that says how often the directory was opened. No bucket has a dot in its name.
const OPENED: &str = "opened.count";

/// The file that is locked while a process uses the directory.
const LOCK: &str = "in.use";

/// What the names of files begin with that are being written.
const UNFINISHED: &str = ".new-";

/// Why a directory cannot be used.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum OpenDirError {
    /// Another process does.
    #[error("\"{}\" is used by another host; give each a directory of its own", .0.display())]
    InUse(PathBuf),
    /// It cannot be made, read or written.
    #[error("\"{}\" cannot be used", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// Key-value in a directory.
pub struct Files(Arc<Dir>);

/// The directory of a plugin, its own as long as it lives.
struct Dir {
    path: PathBuf,
    /// The last version that was given away. Locked while a file is read to be replaced.
    version: Mutex<u64>,
    _lock: File,
}

impl Files {
    /// Keeps buckets below `path`, which is made if it is not there.
    ///
    /// # Errors
    /// [`OpenDirError`].
    pub fn open(path: &Path) -> Result<Self, OpenDirError> {
        let failed = |error| OpenDirError::Io(path.to_owned(), error);
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenDirError::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        for file in fs::read_dir(path).map_err(failed)? {
            let file = file.map_err(failed)?;
            // What a process that was killed had begun to write.
            if file.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(file.path()).map_err(failed)?;
            }
        }
        // No version may come again: those of each process begin with another number.
        let opened = match fs::read_to_string(path.join(OPENED)) {
            Ok(text) => text.trim().parse().unwrap_or(u32::MAX),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error)),
        };
        let opened = opened.checked_add(1).ok_or_else(|| {
            failed(io::Error::other(format!(
                "\"{OPENED}\" holds no number to count on from"
            )))
        })?;
        replace(path, &path.join(OPENED), opened.to_string().as_bytes()).map_err(failed)?;
        Ok(Self(Arc::new(Dir {
            path: path.to_owned(),
            version: Mutex::new(u64::from(opened) << 32),
            _lock: lock,
        })))
    }
}

#[async_trait]
impl Plugin for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    /// Reads the settings `shared` and `create`.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        Ok(Arc::new(Store {
            dir: Arc::clone(&self.0),
            scope: ask.scope()?,
            create: ask.settings.boolean("create")?.unwrap_or(true),
        }))
    }
}

/// The buckets of whoever asked.
struct Store {
    dir: Arc<Dir>,
    scope: Scope,
    create: bool,
}

impl Store {
    /// Runs `work` with the directory of `bucket`, away from the threads that guests run on.
    async fn work<T: Send + 'static>(
        &self,
        bucket: &str,
        work: impl FnOnce(&Dir, &Path) -> keyvalue::Result<T> + Send + 'static,
    ) -> keyvalue::Result<T> {
        let name = names::bucket(&self.scope, bucket);
        let name = name.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let (dir, bucket) = (Arc::clone(&self.dir), bucket.to_owned());
        let work = move || {
            let path = dir.path.join(name);
            match path.try_exists() {
                Ok(true) => work(&dir, &path),
                Ok(false) => Err(Error::NoSuchBucket(bucket)),
                Err(error) => Err(failed(error)),
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(Error::Internal(error.into())))
    }
}

#[async_trait]
impl KeyValueStore for Store {
    async fn open(&self, bucket: &str) -> keyvalue::Result<()> {
        if !self.create {
            return self.work(bucket, |_, _| Ok(())).await;
        }
        let name = names::bucket(&self.scope, bucket);
        let name = name.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let made = tokio::fs::create_dir_all(self.dir.path.join(name)).await;
        made.map_err(failed)
    }

    async fn get(&self, bucket: &str, key: &str) -> keyvalue::Result<Option<Entry>> {
        check_key(key)?;
        let file = file(key);
        let found = self.work(bucket, move |_, bucket| read(&bucket.join(file)));
        Ok(found.await?.map(|stored| stored.entry))
    }

    async fn put(&self, bucket: &str, put: Put<'_>) -> keyvalue::Result<Option<Version>> {
        check_key(put.key)?;
        check_value(&put.value, VALUE_BYTES_MAX)?;
        let ttl = put.ttl.map(ttl_seconds).transpose()?;
        let (key, value, guard) = (put.key.to_owned(), put.value, put.guard);
        self.work(bucket, move |dir, bucket| {
            dir.update(bucket, &key, |old| {
                let holds = match guard {
                    Guard::Any => true,
                    Guard::Absent => old.is_none(),
                    Guard::Version(version) => old.is_some_and(|old| old.entry.version == version),
                };
                let expires = ttl.map(|seconds| now() + Duration::from_secs(seconds));
                Ok(holds.then_some((value, expires)))
            })
        })
        .await
    }

    async fn delete(&self, bucket: &str, key: &str) -> keyvalue::Result<()> {
        check_key(key)?;
        let file = file(key);
        self.work(bucket, move |dir, bucket| {
            // Not in the middle of a write that depends on what is there.
            let _alone = dir.version.lock().unwrap_or_else(PoisonError::into_inner);
            match fs::remove_file(bucket.join(file)) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Reads the whole bucket; holds as many keys as are asked for.
    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> keyvalue::Result<Page> {
        let (prefix, limit) = (range.prefix.to_owned(), range.limit.max(1));
        let after = range.after.map(str::to_owned);
        self.work(bucket, move |_, bucket| {
            let (mut keys, mut more) = (BTreeSet::new(), false);
            for file in fs::read_dir(bucket).map_err(failed)? {
                let Some(Stored { key, .. }) = read(&file.map_err(failed)?.path())? else {
                    continue;
                };
                if key.starts_with(&prefix) && after.as_ref().is_none_or(|after| key > *after) {
                    keys.insert(key);
                }
                if keys.len() > limit {
                    keys.pop_last();
                    more = true;
                }
            }
            let keys = keys.into_iter().collect();
            Ok(Page { keys, more })
        })
        .await
    }

    /// In one go: the default would try again for each writer that came first.
    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> keyvalue::Result<i64> {
        check_key(key)?;
        let key = key.to_owned();
        self.work(bucket, move |dir, bucket| {
            let mut sum = delta;
            dir.update(bucket, &key, |old| {
                if let Some(old) = old {
                    let old = counter::decode(&old.entry.value)?;
                    sum = old.checked_add(delta).ok_or(Error::Overflow)?;
                }
                Ok(Some((counter::encode(sum), None)))
            })?;
            Ok(sum)
        })
        .await
    }
}

impl Dir {
    /// Writes what `change` makes of what is at `key`, and when that expires; nothing comes between. `None` if it
    /// wants nothing to be written.
    fn update(
        &self,
        bucket: &Path,
        key: &str,
        change: impl FnOnce(Option<&Stored>) -> keyvalue::Result<Option<(Bytes, Option<Duration>)>>,
    ) -> keyvalue::Result<Option<Version>> {
        let path = bucket.join(file(key));
        let mut last = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((value, expires)) = change(read(&path)?.as_ref())? else {
            return Ok(None);
        };
        *last += 1;
        let stored = Stored {
            key: key.to_owned(),
            expires: expires.unwrap_or_default(),
            entry: Entry {
                value,
                version: Version(*last),
            },
        };
        replace(&self.path, &path, &stored.encode()).map_err(failed)?;
        Ok(Some(stored.entry.version))
    }
}

/// What a file holds: version, time of expiry and length of the key, 8 bytes each, then key and value.
struct Stored {
    key: String,
    /// Since 1970; zero for never.
    expires: Duration,
    entry: Entry,
}

impl Stored {
    fn encode(&self) -> Vec<u8> {
        let expires = u64::try_from(self.expires.as_millis()).unwrap_or(u64::MAX);
        let mut bytes = Vec::with_capacity(24 + self.key.len() + self.entry.value.len());
        for number in [self.entry.version.0, expires, self.key.len() as u64] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.key.as_bytes());
        bytes.extend(&self.entry.value);
        bytes
    }

    /// `None` for what [`encode`](Self::encode) did not write.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk()?;
        let (expires, rest) = rest.split_first_chunk()?;
        let (key_bytes, rest) = rest.split_first_chunk()?;
        let key_bytes = usize::try_from(u64::from_be_bytes(*key_bytes)).ok()?;
        let (key, value) = rest.split_at_checked(key_bytes)?;
        Some(Self {
            key: String::from_utf8(key.to_owned()).ok()?,
            expires: Duration::from_millis(u64::from_be_bytes(*expires)),
            entry: Entry {
                value: Bytes::copy_from_slice(value),
                version: Version(u64::from_be_bytes(*version)),
            },
        })
    }
}

/// What is in the file at `path`, unless it is not there or has expired.
fn read(path: &Path) -> keyvalue::Result<Option<Stored>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let Some(stored) = Stored::decode(&bytes) else {
        let text = format!("\"{}\" was not written by this plugin", path.display());
        return Err(Error::Internal(text.into()));
    };
    let lives = stored.expires == Duration::ZERO || stored.expires > now();
    Ok(lives.then_some(stored))
}

/// Puts a file with `bytes` at `path`, whole or not at all; it is made in `dir`.
fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// The name of the file of `key`: a key may be longer than a name of a file, and have any character.
fn file(key: &str) -> String {
    let hash = Sha256::digest(key);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::PermissionDenied => Error::AccessDenied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Unavailable(error.into()),
        _ => Error::Internal(error.into()),
    }
}
