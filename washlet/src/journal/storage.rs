//! Where entries lie: a directory, so that the simulation can stand in for one that is slow, fails or
//! loses its power.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::PathBuf;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::identity::write_whole;

/// A directory of small files, each of which is there as a whole or not at all.
///
/// Shape: all but [`carry_out`](Storage::carry_out) and [`path`](Storage::path) block.
pub(crate) trait Storage: Send + Sync {
    /// Where `name` is, for people; the directory itself for an empty name.
    fn path(&self, name: &str) -> PathBuf;

    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// What is in `name`, at most `bytes_max` bytes of it.
    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// Puts all of `bytes` into `name`; the next [`commit`](Storage::commit) makes it outlast a power cut.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Takes `name` away, if it is there; the next [`commit`](Storage::commit) makes that outlast a power cut.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Puts on disk which files there are.
    fn commit(&self) -> io::Result<()>;

    /// Moves `name` to where it is in nobody's way, and says where that is.
    fn set_aside(&self, name: &str) -> io::Result<PathBuf>;

    /// How many files were moved aside so far.
    fn set_aside_before(&self) -> u64;

    /// Has `work` done, which blocks, whether or not anybody goes on waiting.
    fn carry_out(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}

/// A directory of the file system.
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    pub(super) quarantine: PathBuf,
}

impl Storage for Disk {
    fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.dir.clone(),
            name => self.dir.join(name),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let files = fs::read_dir(&self.dir)?;
        let name =
            |file: io::Result<fs::DirEntry>| Ok(file?.file_name().to_string_lossy().into_owned());
        files.map(name).collect()
    }

    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(name))?;
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.dir, &self.path(name), bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn commit(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let aside = self.quarantine.join(name);
        fs::create_dir_all(&self.quarantine)?;
        fs::rename(self.path(name), &aside)?;
        Ok(aside)
    }

    fn set_aside_before(&self) -> u64 {
        // Not there, most often.
        fs::read_dir(&self.quarantine).map_or(0, Iterator::count) as u64
    }

    fn carry_out(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let work = tokio::task::spawn_blocking(work);
        // What comes of it, the work itself says.
        async move { drop(work.await) }.boxed()
    }
}
