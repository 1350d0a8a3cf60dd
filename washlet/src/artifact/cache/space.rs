//! Space of the budget, taken before it is needed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::cleaner::{AGE_MIN, Entry, Swept, usage};
use super::{Error, Store, at, lock, move_aside};
use crate::artifact::reference::Digest;

/// Bytes of the budget for one download, until it is kept or given up.
pub(crate) struct Reserved {
    store: Arc<Store>,
    bytes: u64,
}

impl Reserved {
    /// Makes `file`, whose bytes were verified, the artifact `digest`.
    pub(crate) fn keep(mut self, file: NamedTempFile, digest: Digest) -> Result<(), Error> {
        // First, because what follows lets nobody else in.
        file.as_file().sync_all().map_err(at(file.path()))?;
        let store = self.store.clone();
        let mut promised = lock(&store.promised);
        store.keep(file, digest)?;
        *promised = promised.saturating_sub(std::mem::take(&mut self.bytes));
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut promised = lock(&self.store.promised);
        *promised = promised.saturating_sub(self.bytes);
    }
}

impl Store {
    /// Takes `bytes` of the budget, making room if there is none: what was not used for longest goes.
    ///
    /// `None` if that would not do; then nothing goes. Of other processes only what they kept counts.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reserved> {
        let mut promised = lock(&self.promised);
        let wanted = promised.saturating_add(bytes);
        let max = self.budget.checked_sub(wanted)?;
        let mut swept = Swept::default();
        let entries = self.entries(&mut swept.failed);
        swept.usage = usage(&entries);
        if swept.usage.bytes > max {
            // What others use cannot be seen but by its age.
            let age_min = match self.users.are_we_alone() {
                true => Duration::ZERO,
                false => AGE_MIN,
            };
            let in_the_way = swept.usage.bytes.saturating_sub(max);
            if self.idle_bytes(&entries, age_min) < in_the_way {
                return None;
            }
            for entry in &entries {
                if swept.usage.bytes > max {
                    self.evict(entry, age_min, &mut swept);
                }
            }
            tracing::debug!(?swept, bytes, "made room in the artifact cache");
        }
        *lock(&self.usage) = swept.usage;
        let fits = swept.usage.bytes <= max;
        fits.then(|| {
            *promised = wanted;
            Reserved {
                store: self.clone(),
                bytes,
            }
        })
    }

    /// Size of all that may go.
    fn idle_bytes(&self, entries: &[Entry], age_min: Duration) -> u64 {
        let uses = self.uses();
        let idle = entries.iter().filter(|Entry { file, digest }| {
            let used = digest.is_some_and(|digest| {
                let used = uses.get(&digest);
                used.is_some_and(|used| used.is_within(age_min)) || file.age() < age_min
            });
            !used
        });
        idle.fold(0, |sum, entry| sum.saturating_add(entry.file.size))
    }
}

/// Our part in the lock that all processes with this directory share.
pub(super) struct Users {
    us: File,
    asking: PathBuf,
}

impl Users {
    pub(super) fn join(dir: &Path) -> io::Result<Self> {
        let asking = dir.join("asking");
        let us = open(&dir.join("users"))?;
        open(&asking)?;
        if let Err(error) = us.lock_shared() {
            tracing::warn!(%error, "who else uses the artifact cache cannot be known");
        }
        Ok(Self { us, asking })
    }

    /// Whether no other process has this directory open; when in doubt, no.
    pub(super) fn are_we_alone(&self) -> bool {
        // To ask, a process gives up its own part for a moment: two at once would not see each other.
        let Ok(asking) = File::open(&self.asking) else {
            return false;
        };
        if asking.try_lock().is_err() {
            return false;
        }
        let alone = self.us.try_lock().is_ok();
        self.us.lock_shared().is_ok() && alone
    }
}

fn open(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        move_aside(path)?;
    }
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}
