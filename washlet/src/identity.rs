//! Who a host is, and where it keeps what outlives it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subjects::HostId;
use tempfile::{NamedTempFile, TempDir};

use crate::seal::SealKey;

/// How many hosts of one user find a default state directory.
const SLOTS: u16 = 256;
/// No id comes near this; what is longer is not one. Units: bytes.
const HOST_ID_FILE_BYTES_MAX: u64 = 4096;

/// Units: bytes.
const KEY_BYTES: usize = 32;

/// Why a state directory cannot be used.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Another process holds the lock.
    #[error(
        "state directory \"{}\" is in use by another host; stop that one, or choose another directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("state directory is not usable: \"{}\"", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// The directory of one host, locked for as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    id: HostId,
    /// `None` when nothing can be written anywhere.
    path: Option<PathBuf>,
    persistent: bool,
    // Both act when dropped: the lock goes before the directory.
    _lock: Option<File>,
    _ephemeral: Option<TempDir>,
}

impl StateDir {
    /// Locks `explicit`, or else the first free slot under the user's state directory
    /// (`$XDG_STATE_HOME`, else `~/.local/state`), and finds or makes the host's id in it.
    ///
    /// Shape: when no slot can be used there is one warning, and the result is not
    /// [`persistent`](Self::persistent).
    ///
    /// # Errors
    /// Only for an `explicit` directory: [`Error::InUse`], or [`Error::Io`] when it cannot be made,
    /// read and written.
    pub fn open(explicit: Option<PathBuf>) -> Result<Self, Error> {
        match explicit {
            Some(dir) => Self::lock(dir),
            None => Ok(Self::default_in(user_state_home())),
        }
    }

    /// The host's id; the same again after a restart when the directory is
    /// [`persistent`](Self::persistent).
    pub fn host_id(&self) -> &HostId {
        &self.id
    }

    /// Whether what is kept here is found again after a restart.
    pub fn persistent(&self) -> bool {
        self.persistent
    }

    /// Where artifacts are kept; `None` when nothing can be written on this machine.
    pub fn artifacts_dir(&self) -> Option<PathBuf> {
        Some(self.path.as_ref()?.join("artifacts"))
    }

    /// What values are sealed to for this host; the same again after a restart when the directory is
    /// [`persistent`](Self::persistent).
    ///
    /// # Errors
    /// [`Error::Io`] when the file can neither be read nor made.
    pub fn seal_key(&self) -> Result<SealKey, Error> {
        let Some(dir) = &self.path else {
            let key = new_key().and_then(|key| SealKey::new(&key));
            return key.map_err(io_error(Path::new("/dev/urandom")));
        };
        let path = dir.join("seal-key");
        let lost = "values that were sealed to this host do not open any more";
        kept_key(dir, &path, lost)
            .and_then(|key| SealKey::new(&key))
            .map_err(io_error(&path))
    }

    /// The directory itself; `None` when what is kept in it is not found again after a restart.
    pub fn journal_dir(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.persistent)
    }

    /// Where compiled code is kept; `None` when nothing can be written on this machine.
    pub fn compiled_dir(&self) -> Option<PathBuf> {
        Some(self.path.as_ref()?.join("compiled"))
    }

    fn lock(path: PathBuf) -> Result<Self, Error> {
        make_private(&path)?;
        let file = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(io_error(&file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(io_error(&file)(source)),
        }
        for dir in ["artifacts", "compiled"] {
            make_private(&path.join(dir))?;
        }
        Ok(Self {
            id: host_id(&path)?,
            path: Some(path),
            persistent: true,
            _lock: Some(lock),
            _ephemeral: None,
        })
    }

    fn default_in(home: Option<PathBuf>) -> Self {
        let Some(home) = home.map(|home| home.join("washlet")) else {
            tracing::warn!("no home directory: a restart will forget this host's id and artifacts");
            return Self::ephemeral();
        };
        let free = (0..SLOTS)
            .map(|slot| Self::lock(home.join(format!("slot-{slot}"))))
            .find(|slot| !matches!(slot, Err(Error::InUse(_))));
        let reason = match free {
            Some(Ok(state)) => return state,
            Some(Err(Error::Io { source, .. })) => source.to_string(),
            Some(Err(Error::InUse(_))) | None => format!("all {SLOTS} slots are in use"),
        };
        tracing::warn!(
            dir = %home.display(), reason,
            "state directory not usable: a restart will forget this host's id and artifacts"
        );
        Self::ephemeral()
    }

    fn ephemeral() -> Self {
        let temp = tempfile::Builder::new()
            .prefix("washlet-")
            .tempdir()
            .ok()
            .and_then(|temp| Some((Self::lock(temp.path().to_owned()).ok()?, temp)));
        match temp {
            Some((state, temp)) => Self {
                persistent: false,
                _ephemeral: Some(temp),
                ..state
            },
            None => Self {
                id: new_id(),
                path: None,
                persistent: false,
                _lock: None,
                _ephemeral: None,
            },
        }
    }
}

fn user_state_home() -> Option<PathBuf> {
    // Not a setting of ours: where the user's programs keep their state.
    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        // The XDG specification wants relative paths ignored.
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(".local/state")))
        .filter(|path| path.is_absolute())
}

fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(path))
}

#[expect(clippy::expect_used, reason = "a UUID is always one subject token")]
fn new_id() -> HostId {
    HostId::new(uuid::Uuid::new_v4().to_string()).expect("a UUID is a host id")
}

/// The id kept in `dir`, or a new one that is kept from now on.
fn host_id(dir: &Path) -> Result<HostId, Error> {
    let path = dir.join("host-id");
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(HOST_ID_FILE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(io_error(&path))?;
            let kept = std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| HostId::new(text.trim()).ok());
            if let Some(id) = kept {
                return Ok(id);
            }
            let aside = dir.join("host-id.corrupt");
            fs::rename(&path, &aside).map_err(io_error(&path))?;
            tracing::warn!(
                moved_to = %aside.display(),
                "the file with the host id is corrupt: this host gets a new id"
            );
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error(&path)(source)),
    }
    let id = new_id();
    write_durably(dir, &path, format!("{id}\n").as_bytes()).map_err(io_error(&path))?;
    Ok(id)
}

/// The secret key kept at `path` in `dir`, or a new one that is kept from now on; `lost` says what a damaged
/// one means.
pub(crate) fn kept_key(dir: &Path, path: &Path, lost: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(key) if key.len() == KEY_BYTES => return Ok(key),
        Ok(_) => tracing::warn!(
            file = %path.display(),
            "a key of this host is damaged and replaced: {lost}"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = new_key()?;
    write_durably(dir, path, &key)?;
    Ok(key)
}

fn new_key() -> io::Result<Vec<u8>> {
    let mut key = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("there are no random numbers"))?;
    Ok(key)
}

/// All of `bytes` is at `path` after a crash, or nothing is.
pub(crate) fn write_durably(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(dir, path, bytes)?;
    File::open(dir)?.sync_all()
}

/// All of `bytes` is at `path`, or nothing is; after a crash, too, once `dir` is on disk.
pub(crate) fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A name for people, the same for the same id.
///
/// Shape: `adjective-noun-number` like `brave-otter-4821`, a DNS-1123 label; one of 40,960,000.
pub fn friendly_name(id: &HostId) -> String {
    let digest = Sha256::digest(id.as_str());
    let number = digest
        .iter()
        .take(8)
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let word = |words: &[&'static str; 64], number: u64| {
        let index = usize::try_from(number % 64).unwrap_or_default();
        words.get(index).copied().unwrap_or_default()
    };
    format!(
        "{}-{}-{:04}",
        word(&ADJECTIVES, number),
        word(&NOUNS, number >> 6),
        (number >> 12) % 10_000
    )
}

// The lists and their order are for ever: a host's name, and so its resource in a cluster, depends
// on them.
#[rustfmt::skip]
const ADJECTIVES: [&str; 64] = [
    "able", "agile", "amber", "ample", "azure", "bold", "brave", "bright",
    "brisk", "calm", "candid", "clever", "copper", "cosmic", "crisp", "dapper",
    "deft", "eager", "early", "fair", "famous", "fleet", "fluent", "fond",
    "gentle", "golden", "grand", "happy", "hardy", "honest", "humble", "ivory",
    "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "mellow",
    "merry", "mighty", "modest", "neat", "nimble", "noble", "patient", "plucky",
    "polite", "proud", "quick", "quiet", "rapid", "silver", "smart", "snappy",
    "solid", "steady", "sunny", "tidy", "trusty", "vivid", "warm", "witty",
];
#[rustfmt::skip]
const NOUNS: [&str; 64] = [
    "aspen", "badger", "beacon", "birch", "bison", "breeze", "brook", "canyon",
    "cedar", "cliff", "comet", "condor", "coral", "crane", "creek", "dolphin",
    "eagle", "falcon", "fern", "finch", "fjord", "gecko", "glacier", "harbor",
    "heron", "ibex", "island", "jaguar", "juniper", "kestrel", "lagoon", "lark",
    "lemur", "lotus", "lynx", "maple", "marmot", "meadow", "meteor", "moose",
    "orchid", "osprey", "otter", "panda", "pebble", "pelican", "pine", "planet",
    "puffin", "quartz", "rabbit", "raven", "reef", "river", "robin", "salmon",
    "sparrow", "spruce", "summit", "tiger", "tulip", "walrus", "willow", "wombat",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_explicit_directory_is_private_and_keeps_its_id() {
        let temp = TempDir::new().unwrap();
        let dir = temp.path().join("a/b");
        let state = StateDir::open(Some(dir.clone())).unwrap();
        assert!(state.persistent());
        let mode = fs::metadata(&dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(state.artifacts_dir(), Some(dir.join("artifacts")));
        assert!(state.compiled_dir().unwrap().is_dir());

        let id = state.host_id().clone();
        assert_eq!(
            uuid::Uuid::parse_str(id.as_str())
                .unwrap()
                .get_version_num(),
            4
        );
        drop(state);
        assert_eq!(StateDir::open(Some(dir)).unwrap().host_id(), &id);
    }

    #[test]
    fn a_locked_directory_is_refused_until_it_is_free() {
        let temp = TempDir::new().unwrap();
        let dir = temp.path().to_owned();
        let held = StateDir::open(Some(dir.clone())).unwrap();
        let refused = StateDir::open(Some(dir.clone())).unwrap_err();
        assert!(matches!(&refused, Error::InUse(named) if *named == dir));
        assert!(refused.to_string().contains("choose another directory"));
        drop(held);
        assert!(StateDir::open(Some(dir)).is_ok());
    }

    #[test]
    fn a_directory_that_is_a_file_is_refused_by_name() {
        let temp = TempDir::new().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "x").unwrap();
        let refused = StateDir::open(Some(file.clone())).unwrap_err();
        assert!(matches!(refused, Error::Io { path, .. } if path == file));
    }

    #[test]
    fn a_corrupt_id_is_moved_aside() {
        let temp = TempDir::new().unwrap();
        for corrupt in ["", "a.b", "> \u{1b}[2J", &"x".repeat(100_000)] {
            fs::write(temp.path().join("host-id"), corrupt).unwrap();
            let state = StateDir::open(Some(temp.path().to_owned())).unwrap();
            assert!(uuid::Uuid::parse_str(state.host_id().as_str()).is_ok());
            let aside = fs::read_to_string(temp.path().join("host-id.corrupt")).unwrap();
            assert_eq!(aside, corrupt);
            let kept = fs::read_to_string(temp.path().join("host-id")).unwrap();
            assert_eq!(kept.trim(), state.host_id().as_str());
        }
    }

    #[test]
    fn the_seal_key_is_private_and_stays() {
        let temp = TempDir::new().unwrap();
        let state = StateDir::open(Some(temp.path().to_owned())).unwrap();
        let key = state.seal_key().unwrap().public();
        let file = temp.path().join("seal-key");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(state);
        let state = StateDir::open(Some(temp.path().to_owned())).unwrap();
        assert_eq!(state.seal_key().unwrap().public(), key);
        fs::write(&file, "short").unwrap();
        let other = state.seal_key().unwrap().public();
        assert_ne!(other, key);
        assert_eq!(state.seal_key().unwrap().public(), other);
    }

    #[test]
    fn an_id_given_by_hand_is_kept() {
        let temp = TempDir::new().unwrap();
        fs::write(temp.path().join("host-id"), "edge_7\n").unwrap();
        let state = StateDir::open(Some(temp.path().to_owned())).unwrap();
        assert_eq!(state.host_id().as_str(), "edge_7");
    }

    #[test]
    fn hosts_of_one_user_take_the_first_free_slot() {
        let home = TempDir::new().unwrap();
        let open = || StateDir::default_in(Some(home.path().to_owned()));
        let slot = |number| home.path().join(format!("washlet/slot-{number}"));
        let (first, second) = (open(), open());
        assert_eq!(first.path, Some(slot(0)));
        assert_eq!(second.path, Some(slot(1)));
        let id = first.host_id().clone();
        assert_ne!(&id, second.host_id());
        drop(first);
        let again = open();
        assert_eq!(
            (again.path.as_ref(), again.host_id()),
            (Some(&slot(0)), &id)
        );
    }

    #[test]
    fn a_default_that_cannot_be_written_is_replaced_for_this_run_only() {
        let temp = TempDir::new().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "x").unwrap();
        for home in [Some(file), None] {
            let state = StateDir::default_in(home);
            assert!(!state.persistent());
            let dir = state.path.clone().unwrap();
            assert!(state.artifacts_dir().unwrap().is_dir());
            drop(state);
            assert!(!dir.exists());
        }
    }

    #[test]
    fn a_name_is_a_function_of_the_id() {
        let name = |id: &str| friendly_name(&HostId::new(id).unwrap());
        // For ever, as the lists are.
        let id = "0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d";
        assert_eq!(name(id), "keen-planet-9681");
        let names: BTreeSet<String> = (0..1000).map(|n| name(&n.to_string())).collect();
        assert!(names.len() > 995, "{}", names.len());
        for name in &names {
            let [adjective, noun, number] = name.split('-').collect::<Vec<_>>()[..] else {
                panic!("{name}");
            };
            let lower = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(lower(adjective) && lower(noun), "{name}");
            assert!(number.len() == 4 && number.parse::<u16>().is_ok(), "{name}");
        }
        for words in [ADJECTIVES, NOUNS] {
            assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), 64);
        }
    }
}
