//! Compiled code on disk, so that a component is compiled once, not at each start of the host.
//!
//! ```text
//! <dir>/key                                   of the tags; made once, for this host alone
//! <dir>/<digest>.<compatibility>.<tag>        what the compiler made of the component with that digest, for
//!                                             one of the two engines
//! <dir>/tmp-*                                 being written
//! ```
//! Code is mapped and executed, so only what this host wrote may be: a file's name ends in its tag, a keyed
//! hash of the name and the content. What is torn, damaged or put there by others has no tag that fits, and
//! is removed. The directory belongs to one process at a time. All functions here block.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use tempfile::NamedTempFile;

use crate::runner::Wasi;

/// Files being written begin with it.
const TEMP: &str = "tmp-";

/// Units: bytes.
const KEY_BYTES: usize = 32;

/// Bytes read at once for a tag: as many files may be read at once as workloads are started.
const CHUNK_BYTES: usize = 64 << 10;

/// What was done with compiled code since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeCounts {
    /// Components compiled.
    pub compiled: u64,
    /// Components whose code was on disk.
    pub loaded: u64,
    /// Files that were not what this host wrote, and are gone.
    pub discarded: u64,
    /// Files removed for room.
    pub evicted: u64,
    /// Bytes of code on disk.
    pub bytes: u64,
}

/// The directory of compiled code.
pub(crate) struct CodeStore {
    dir: PathBuf,
    /// What code has to be compatible with, for WASI 0.2 and 0.3.
    compatibility: [String; 2],
    key: hmac::Key,
    bytes_max: u64,
    kept: Mutex<HashMap<String, Kept>>,
    loaded: AtomicU64,
    discarded: AtomicU64,
    evicted: AtomicU64,
}

/// One file.
struct Kept {
    path: PathBuf,
    tag: String,
    bytes: u64,
    used: SystemTime,
}

impl CodeStore {
    /// Opens `dir` for the code of `engine`, of which at most `bytes_max` bytes are kept.
    ///
    /// # Errors
    /// When the directory or its key cannot be read or made.
    pub(crate) fn open(dir: &Path, engine: &wasmtime::Engine, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // The second engine may not be there yet; what it differs in is known.
        let compatibility = Wasi::ALL.map(|wasi| {
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            wasi.hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        });
        let mut kept = HashMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(TEMP) {
                // Of a process that was killed: nobody else writes here.
                let _ = fs::remove_file(entry.path());
            } else if let Some((stem, tag)) = parse(&name) {
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let file = Kept {
                    path: entry.path(),
                    tag: tag.to_owned(),
                    bytes: metadata.len(),
                    used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                };
                kept.insert(stem.to_owned(), file);
            }
        }
        let store = Self {
            dir: dir.to_owned(),
            compatibility,
            key: hmac::Key::new(HMAC_SHA256, &key(dir)?),
            bytes_max,
            kept: Mutex::new(kept),
            loaded: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        };
        store.make_room(0);
        Ok(store)
    }

    /// `compiled` components in all.
    pub(crate) fn counts(&self, compiled: u64) -> CodeCounts {
        CodeCounts {
            compiled,
            loaded: self.loaded.load(Ordering::Relaxed),
            discarded: self.discarded.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            bytes: self.kept().values().map(|kept| kept.bytes).sum(),
        }
    }

    /// Which engine there is a file of `digest` for; its content is not looked at.
    pub(crate) fn has(&self, digest: &str) -> Option<Wasi> {
        Wasi::ALL.into_iter().find(|wasi| {
            self.stem(digest, *wasi)
                .is_some_and(|stem| self.kept().contains_key(&stem))
        })
    }

    /// Gives `map` the file of `digest` for `wasi` if it is what this host wrote; what is not, or cannot be mapped,
    /// goes.
    pub(crate) fn load<T, E: std::fmt::Display>(
        &self,
        digest: &str,
        wasi: Wasi,
        map: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Option<T> {
        let stem = self.stem(digest, wasi)?;
        let (path, tag) = {
            let kept = self.kept();
            let file = kept.get(&stem)?;
            (file.path.clone(), file.tag.clone())
        };
        let mapped = File::open(&path)
            .and_then(|file| {
                let found = self.tag(&stem, &file)?;
                // Compared as what they are, not in constant time: who could measure it can read the key.
                match found == tag {
                    true => Ok(file),
                    false => Err(io::Error::other("it is not what this host wrote")),
                }
            })
            .map_err(|error| error.to_string())
            .and_then(|file| {
                // For the order of going only.
                let _ = file.set_modified(SystemTime::now());
                map(&path).map_err(|error| error.to_string())
            });
        match mapped {
            Ok(mapped) => {
                self.loaded.fetch_add(1, Ordering::Relaxed);
                if let Some(file) = self.kept().get_mut(&stem) {
                    file.used = SystemTime::now();
                }
                Some(mapped)
            }
            Err(error) => {
                tracing::warn!(
                    file = %path.display(), error,
                    "compiled code is not usable and is removed; the component is compiled again"
                );
                self.discarded.fetch_add(1, Ordering::Relaxed);
                self.kept().remove(&stem);
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// A file to write code to; removed when dropped.
    ///
    /// # Errors
    /// When none can be made.
    pub(crate) fn temp(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(TEMP).tempfile_in(&self.dir)
    }

    /// Keeps what was written to `temp` for `digest` and `wasi`, and gives back what was used longest ago if that is
    /// too much. A digest that is not a SHA-256 is not kept.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep(&self, digest: &str, wasi: Wasi, temp: NamedTempFile) -> io::Result<()> {
        let Some(stem) = self.stem(digest, wasi) else {
            return Ok(());
        };
        let bytes = temp.as_file().metadata()?.len();
        if bytes > self.bytes_max {
            return Ok(());
        }
        self.make_room(bytes);
        let tag = self.tag(&stem, &temp.reopen()?)?;
        temp.as_file().sync_data()?;
        let path = self.dir.join(format!("{stem}.{tag}"));
        temp.persist(&path).map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()?;
        let file = Kept {
            path: path.clone(),
            tag,
            bytes,
            used: SystemTime::now(),
        };
        let before = self.kept().insert(stem, file);
        if let Some(before) = before.filter(|before| before.path != path) {
            let _ = fs::remove_file(before.path);
        }
        Ok(())
    }

    /// Removes what was used longest ago until `bytes` more have room. What is mapped stays mapped.
    fn make_room(&self, bytes: u64) {
        let mut kept = self.kept();
        let mut all: u64 = kept.values().map(|file| file.bytes).sum();
        while all.saturating_add(bytes) > self.bytes_max {
            let oldest = kept.iter().min_by_key(|(_, file)| file.used);
            let Some(stem) = oldest.map(|(stem, _)| stem.clone()) else {
                return;
            };
            if let Some(file) = kept.remove(&stem) {
                all -= file.bytes;
                let _ = fs::remove_file(file.path);
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The name of `digest`'s file for `wasi` without its tag; `None` for what is no SHA-256.
    fn stem(&self, digest: &str, wasi: Wasi) -> Option<String> {
        let digest = digest.strip_prefix("sha256:")?;
        let [p2, p3] = &self.compatibility;
        let compatibility = match wasi {
            Wasi::P2 => p2,
            Wasi::P3 => p3,
        };
        is_hex(digest, 64).then(|| format!("{digest}.{compatibility}"))
    }

    fn tag(&self, stem: &str, mut file: &File) -> io::Result<String> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(stem.as_bytes());
        context.update(&[0]);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                read => context.update(chunk.get(..read).unwrap_or_default()),
            }
        }
        let tag = context.sign();
        Ok(tag
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stem and the tag of a file's name.
fn parse(name: &str) -> Option<(&str, &str)> {
    let (stem, tag) = name.rsplit_once('.')?;
    let (digest, compatibility) = stem.split_once('.')?;
    let well_formed = is_hex(digest, 64) && is_hex(compatibility, 16) && is_hex(tag, 64);
    well_formed.then_some((stem, tag))
}

fn is_hex(text: &str, length: usize) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == length && text.bytes().all(hex)
}

/// The key of the tags. A new one makes all that was kept worthless, which is no loss but time.
fn key(dir: &Path) -> io::Result<Vec<u8>> {
    let path = dir.join("key");
    match fs::read(&path) {
        Ok(key) if key.len() == KEY_BYTES => return Ok(key),
        Ok(_) => {
            tracing::warn!(file = %path.display(), "the key of compiled code is damaged, and made anew")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("there are no random numbers"))?;
    // Readable by its owner only, as temporary files are.
    let mut temp = tempfile::Builder::new().prefix(TEMP).tempfile_in(dir)?;
    temp.write_all(&key)?;
    temp.as_file().sync_all()?;
    temp.persist(&path).map_err(|error| error.error)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path, bytes_max: u64) -> CodeStore {
        CodeStore::open(dir, &wasmtime::Engine::default(), bytes_max).unwrap()
    }

    fn digest(of: u8) -> String {
        format!("sha256:{}", format!("{of:02x}").repeat(32))
    }

    fn keep(store: &CodeStore, of: u8, content: &[u8]) {
        let mut temp = store.temp().unwrap();
        temp.write_all(content).unwrap();
        store.keep(&digest(of), Wasi::P2, temp).unwrap();
    }

    fn load(store: &CodeStore, of: u8) -> Option<Vec<u8>> {
        store.load(&digest(of), Wasi::P2, |path| fs::read(path))
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries.filter(|path| !path.ends_with("key")).collect()
    }

    #[test]
    fn what_was_kept_is_found_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        keep(&store(dir.path(), 1_000), 1, b"code");
        let store = store(dir.path(), 1_000);
        assert_eq!(
            [1, 2].map(|of| store.has(&digest(of))),
            [Some(Wasi::P2), None]
        );
        assert_eq!(load(&store, 1).unwrap(), b"code");
        let counts = store.counts(0);
        assert_eq!((counts.loaded, counts.bytes), (1, 4));
    }

    #[test]
    fn torn_and_foreign_files_are_never_mapped() {
        type Harm = fn(&Path, &Path);
        let harms: [(&str, Harm); 6] = [
            ("torn", |path, _| {
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(2)
                    .unwrap();
            }),
            ("empty", |path, _| fs::write(path, b"").unwrap()),
            ("changed", |path, _| fs::write(path, b"cod3").unwrap()),
            ("longer", |path, _| {
                fs::write(path, b"code and more").unwrap()
            }),
            ("another's", |path, dir| {
                // The right content under the name of another digest.
                let name = path.file_name().unwrap().to_str().unwrap();
                let [one, two] = ["01", "02"].map(|of| of.repeat(32));
                fs::rename(path, dir.join(name.replace(&one, &two))).unwrap();
            }),
            ("another host's", |_, dir| {
                fs::write(dir.join("key"), [7; KEY_BYTES]).unwrap()
            }),
        ];
        for (name, harm) in harms {
            let dir = tempfile::tempdir().unwrap();
            keep(&store(dir.path(), 1_000), 1, b"code");
            harm(&files(dir.path())[0], dir.path());
            let store = store(dir.path(), 1_000);
            let mapped =
                [1, 2].map(|of| store.load(&digest(of), Wasi::P2, |_| Ok::<_, String>(())));
            assert_eq!(mapped, [None, None], "{name}");
            assert_eq!(store.counts(0).discarded, 1, "{name}");
            assert!(files(dir.path()).is_empty(), "{name}");
            // And is compiled and kept anew.
            keep(&store, 1, b"code");
            assert_eq!(load(&store, 1).unwrap(), b"code", "{name}");
        }
    }

    #[test]
    fn each_engine_finds_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let kept = store(dir.path(), 1_000);
        let mut temp = kept.temp().unwrap();
        temp.write_all(b"code").unwrap();
        kept.keep(&digest(1), Wasi::P3, temp).unwrap();
        let store = store(dir.path(), 1_000);
        assert_eq!(store.has(&digest(1)), Some(Wasi::P3));
        assert_eq!(load(&store, 1), None);
        let found = store.load(&digest(1), Wasi::P3, |path| fs::read(path));
        assert_eq!(found.unwrap(), b"code");
    }

    #[test]
    fn what_cannot_be_mapped_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1_000);
        keep(&store, 1, b"code");
        assert!(
            store
                .load(&digest(1), Wasi::P2, |_| Err::<(), _>("no"))
                .is_none()
        );
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn what_a_killed_process_was_writing_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tmp-x"), b"co").unwrap();
        fs::write(dir.path().join("note"), b"not ours").unwrap();
        let store = store(dir.path(), 1_000);
        assert_eq!(store.counts(0).bytes, 0);
        assert_eq!(files(dir.path()), [dir.path().join("note")]);
    }

    #[test]
    fn the_longest_unused_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 10);
        keep(&store, 1, b"1111");
        keep(&store, 2, b"2222");
        assert!(load(&store, 1).is_some());
        keep(&store, 3, b"3333");
        assert_eq!(
            [1, 2, 3].map(|of| store.has(&digest(of)).is_some()),
            [true, false, true]
        );
        // What is larger than all room is not kept, and costs nobody his.
        keep(&store, 4, &[4; 11]);
        assert_eq!(
            [1, 3, 4].map(|of| store.has(&digest(of)).is_some()),
            [true, true, false]
        );
        assert_eq!(store.counts(0).evicted, 1);
    }

    #[test]
    fn a_damaged_key_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), b"short").unwrap();
        keep(&store(dir.path(), 1_000), 1, b"code");
        assert_eq!(fs::read(dir.path().join("key")).unwrap().len(), KEY_BYTES);
        assert!(load(&store(dir.path(), 1_000), 1).is_some());
    }
}
