//! Keeps the cache within its budget: what was not used for longest goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Store, Usage, lock, read_record, touch_path};
use crate::artifact::reference::Digest;

/// The cleaner starts above this many percent of the budget.
pub const HIGH_WATERMARK: u64 = 85;
/// The cleaner stops below this many percent of the budget.
pub const LOW_WATERMARK: u64 = 80;

/// What was used within this time stays.
pub(super) const AGE_MIN: Duration = Duration::from_secs(10 * 60);
/// A temporary file older than this belongs to nobody any more.
pub(super) const TEMP_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// How long bytes that did not match their name are kept to be looked at.
const QUARANTINE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Clocks of processes that share a directory may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// References kept; beyond it the least recently used are forgotten.
const REFERENCES_MAX: usize = 10_000;
/// What one pass of the cleaner did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Artifacts and quarantined files removed.
    pub removed: usize,
    /// Their size.
    pub removed_bytes: u64,
    /// Files that could not be looked at or removed; each is in the log.
    pub failed: usize,
    /// What is left.
    pub usage: Usage,
}

impl Store {
    /// One pass of the cleaner; while the disk is `tight`, whatever the budget says.
    pub(crate) fn sweep(&self, tight: impl Fn() -> bool) -> Swept {
        let mut swept = Swept::default();
        self.uses().retain(|_, used| used.is_within(AGE_MIN));
        // Fresh times tell the other processes what is in use here.
        let pinned: Vec<Digest> = self
            .uses()
            .iter()
            .filter(|(_, used)| used.pins > 0)
            .map(|(d, _)| *d)
            .collect();
        for digest in pinned {
            touch_path(&self.blob_path(digest));
        }

        for temp in list(&self.dir.join("tmp"), &mut swept.failed) {
            if temp.age() > TEMP_AGE_MAX {
                remove(&temp.path, &mut swept.failed);
            }
        }

        let coming_and_going = lock(&self.promised);
        let entries = self.entries(&mut swept.failed);
        swept.usage = usage(&entries);
        let percent = |percent| u128::from(self.budget).saturating_mul(percent) / 100;
        let over = u128::from(swept.usage.bytes) > percent(HIGH_WATERMARK.into());
        for entry in &entries {
            let old = entry.digest.is_none() && entry.file.age() > QUARANTINE_AGE_MAX;
            let needed = over && u128::from(swept.usage.bytes) > percent(LOW_WATERMARK.into());
            if old || needed || tight() {
                self.evict(entry, AGE_MIN, &mut swept);
            }
        }
        *lock(&self.usage) = swept.usage;
        drop(coming_and_going);
        self.forget_references(&mut swept.failed);
        swept
    }

    /// Removes one file unless it is in use, or was within `age_min`.
    pub(super) fn evict(&self, entry: &Entry, age_min: Duration, swept: &mut Swept) {
        let Entry { file, digest } = entry;
        // Held while removing, so that a pin either prevents it or sees the file gone.
        let uses = self.uses();
        if let Some(digest) = digest {
            let used = uses.get(digest).is_some_and(|used| used.is_within(age_min));
            // Another process may have used it since it was listed.
            if used || age_of(&file.path).is_some_and(|age| age < age_min) {
                return;
            }
        }
        if remove(&file.path, &mut swept.failed) {
            swept.removed = swept.removed.saturating_add(1);
            swept.removed_bytes = swept.removed_bytes.saturating_add(file.size);
            swept.usage.bytes = swept.usage.bytes.saturating_sub(file.size);
            let artifacts = usize::from(digest.is_some());
            swept.usage.entries = swept.usage.entries.saturating_sub(artifacts);
        }
    }

    /// Forgets references without an artifact, and the least recently used beyond the limit.
    fn forget_references(&self, failed: &mut usize) {
        let mut files = list(&self.dir.join("refs"), failed);
        files.retain(|file| {
            file.path
                .extension()
                .is_some_and(|extension| extension == "json")
        });
        files.sort_by_key(|file| std::cmp::Reverse(file.used));
        for (index, file) in files.iter().enumerate() {
            let useless = || match read_record(&file.path) {
                Some(record) => !self.blob_path(record.digest).is_file(),
                None => true,
            };
            if file.age() > AGE_MIN && (index >= REFERENCES_MAX || useless()) {
                remove(&file.path, failed);
            }
        }
    }

    /// What is in quarantine, and artifacts, the least recently used first.
    pub(super) fn entries(&self, failed: &mut usize) -> Vec<Entry> {
        let blobs = list(&self.dir.join("blobs/sha256"), failed)
            .into_iter()
            .filter_map(|file| {
                let name = file.path.file_name()?.to_str()?;
                let digest: Digest = format!("sha256:{name}").parse().ok()?;
                Some(Entry {
                    digest: Some(digest),
                    file,
                })
            });
        let mut entries: Vec<Entry> = blobs.collect();
        let aside = list(&self.dir.join("quarantine"), failed);
        entries.extend(aside.into_iter().map(|file| Entry { digest: None, file }));
        entries.sort_by_key(|entry| (entry.digest.is_some(), entry.file.used));
        entries
    }
}

/// A regular file of the cache.
pub(super) struct Listed {
    path: PathBuf,
    pub(super) size: u64,
    used: SystemTime,
}

impl Listed {
    /// Zero for what was used just now, or in the future.
    pub(super) fn age(&self) -> Duration {
        self.used.elapsed().unwrap_or_default()
    }
}

/// As [`Listed::age`], of the file as it is now.
fn age_of(path: &Path) -> Option<Duration> {
    let used = fs::symlink_metadata(path).ok()?.modified().ok()?;
    Some(used.elapsed().unwrap_or_default())
}

/// A file that counts against the budget; `digest` is `None` in quarantine.
pub(super) struct Entry {
    pub(super) file: Listed,
    pub(super) digest: Option<Digest>,
}

pub(super) fn usage(entries: &[Entry]) -> Usage {
    Usage {
        bytes: entries
            .iter()
            .fold(0, |sum: u64, entry| sum.saturating_add(entry.file.size)),
        entries: entries
            .iter()
            .filter(|entry| entry.digest.is_some())
            .count(),
    }
}

/// The regular files of a directory; others are not ours and stay.
fn list(dir: &Path, failed: &mut usize) -> Vec<Listed> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            fail(dir, &error, failed);
            return files;
        }
    };
    for entry in entries.flatten() {
        match entry
            .metadata()
            .and_then(|meta| Ok((meta.is_file(), meta.len(), meta.modified()?)))
        {
            Ok((true, size, mut used)) => {
                let path = entry.path();
                let now = SystemTime::now();
                if now.checked_add(CLOCK_SKEW).is_some_and(|soon| used > soon) {
                    // The clock went back since; from now on it ages as the others do.
                    touch_path(&path);
                    used = now;
                }
                files.push(Listed { path, size, used });
            }
            Ok((false, ..)) => {}
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => fail(&entry.path(), &error, failed),
        }
    }
    files
}

fn remove(path: &Path, failed: &mut usize) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            fail(path, &error, failed);
            false
        }
    }
}

fn fail(path: &Path, error: &io::Error, failed: &mut usize) {
    tracing::warn!(path = %path.display(), %error, "a file of the artifact cache is passed over");
    *failed = failed.saturating_add(1);
}
