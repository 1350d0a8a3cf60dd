//! Copies of buckets that storages keep up to date while somebody reads them.
//!
//! There is one [`Copy`] per bucket and plugin, however many components read it. Whoever follows the storage
//! fills it, then changes it; until all values are there again, it stays as it was.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

use super::{BYTES_MAX, ConfigSource, Error, KEYS_MAX, Result};
use crate::{keyvalue, names};

/// How many buckets one host follows on one storage.
pub const COPIES_MAX: usize = 128;

/// The copies of one plugin.
pub struct Copies {
    known: Mutex<HashMap<String, Weak<Copy>>>,
    begun: mpsc::Sender<Weak<Copy>>,
    /// Taken by who follows.
    to_follow: Mutex<Option<mpsc::Receiver<Weak<Copy>>>>,
}

/// What a bucket had last. It is followed for as long as anybody holds it.
pub struct Copy {
    bucket: String,
    held: watch::Sender<Held>,
}

#[derive(Default)]
struct Held {
    /// Whether all values were there once.
    complete: bool,
    values: Values,
}

/// Why a bucket cannot be followed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The storage cannot have a bucket of that name.
    #[error("{0}")]
    Name(#[from] names::Error),
    /// The bound is reached.
    #[error("this host follows {COPIES_MAX} buckets already")]
    TooMany,
    /// The plugin is not run, or not any more.
    #[error("nothing follows buckets on this host any more")]
    Ended,
    /// The storage is slow or away.
    #[error("not all values of the bucket arrived within {0:?}")]
    Timeout(Duration),
    /// The bucket cannot be opened.
    #[error(transparent)]
    Bucket(#[from] keyvalue::Error),
    /// The bucket has what cannot be configuration.
    #[error(transparent)]
    Content(#[from] Error),
}

impl Default for Copies {
    fn default() -> Self {
        let (begun, to_follow) = mpsc::channel(COPIES_MAX);
        Self {
            known: Mutex::default(),
            begun,
            to_follow: Mutex::new(Some(to_follow)),
        }
    }
}

impl Copies {
    /// The copy of the bucket that the storage calls `name`, once it is complete, which takes `within` at most.
    ///
    /// # Errors
    /// [`OpenError`], but neither its `Name` nor its `Bucket`.
    pub async fn open(&self, name: &str, within: Duration) -> Result<Arc<Copy>, OpenError> {
        let copy = self.copy(name)?;
        let mut held = copy.held.subscribe();
        let complete = held.wait_for(|held| held.complete);
        match tokio::time::timeout(within, complete).await {
            Ok(Ok(held)) => held.values.check()?,
            _ => return Err(OpenError::Timeout(within)),
        }
        Ok(copy)
    }

    /// The one that is there, or a new one that is about to be followed.
    fn copy(&self, name: &str) -> Result<Arc<Copy>, OpenError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = known.get(name).and_then(Weak::upgrade) {
            return Ok(copy);
        }
        known.retain(|_, copy| copy.strong_count() > 0);
        if known.len() >= COPIES_MAX {
            return Err(OpenError::TooMany);
        }
        let copy = Arc::new(Copy {
            bucket: name.to_owned(),
            held: watch::Sender::new(Held::default()),
        });
        let weak = Arc::downgrade(&copy);
        let begun = self.begun.try_send(Weak::clone(&weak));
        begun.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OpenError::TooMany,
            mpsc::error::TrySendError::Closed(_) => OpenError::Ended,
        })?;
        known.insert(name.to_owned(), weak);
        Ok(copy)
    }

    /// Where every new copy comes, to be followed while anybody holds it; `None` when it was taken already.
    pub fn to_follow(&self) -> Option<mpsc::Receiver<Weak<Copy>>> {
        let mut to_follow = self
            .to_follow
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        to_follow.take()
    }
}

impl Copy {
    /// The storage's name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// From now on it has `values` and no others.
    ///
    /// # Errors
    /// [`Error::TooMuch`] when some had no room; what had is there all the same.
    pub fn complete(&self, values: Values) -> Result<()> {
        let whole = values.check();
        self.held.send_modify(|held| {
            held.complete = true;
            held.values = values;
        });
        whole
    }

    /// As [`Values::change`].
    pub fn change(&self, key: String, value: Option<Bytes>) {
        self.held.send_modify(|held| held.values.change(key, value));
    }

    /// Whether something had no room, and something else went since.
    pub fn may_fit_again(&self) -> bool {
        let held = self.held.borrow();
        held.values.left_out && held.values.freed
    }
}

/// Keys and values within [`KEYS_MAX`] and [`BYTES_MAX`].
#[derive(Default)]
pub struct Values {
    /// `None` is a value that is no text.
    by_key: BTreeMap<String, Option<String>>,
    bytes: usize,
    /// Whether something had no room.
    left_out: bool,
    /// Whether something went since.
    freed: bool,
}

impl Values {
    /// Sets `key`, or removes it without a value.
    pub fn change(&mut self, key: String, value: Option<Bytes>) {
        if let Some(old) = self.by_key.remove(&key) {
            self.bytes -= key.len() + old.map_or(0, |old| old.len());
            self.freed |= self.left_out;
        }
        let Some(value) = value else { return };
        let value = String::from_utf8(value.into()).ok();
        let bytes = key.len() + value.as_ref().map_or(0, String::len);
        if self.by_key.len() >= KEYS_MAX || self.bytes + bytes > BYTES_MAX {
            self.left_out = true;
            return;
        }
        self.bytes += bytes;
        self.by_key.insert(key, value);
    }

    /// Something else had no room.
    pub fn leave_out(&mut self) {
        self.left_out = true;
    }

    fn check(&self) -> Result<()> {
        match self.left_out {
            true => Err(Error::TooMuch),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ConfigSource for Copy {
    async fn get(&self, key: &str) -> Result<Option<String>> {
        let held = self.held.borrow();
        match held.values.by_key.get(key) {
            Some(Some(value)) => Ok(Some(value.clone())),
            Some(None) => Err(Error::NotText(key.to_owned())),
            // It may be among what was left out.
            None => held.values.check().map(|()| None),
        }
    }

    async fn all(&self) -> Result<BTreeMap<String, String>> {
        let held = self.held.borrow();
        held.values.check()?;
        let all = held.values.by_key.iter();
        all.map(|(key, value)| match value {
            Some(value) => Ok((key.clone(), value.clone())),
            None => Err(Error::NotText(key.clone())),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_and_removing_makes_room() {
        let mut values = Values::default();
        for n in 0..KEYS_MAX {
            values.change(n.to_string(), Some("v".into()));
        }
        values.check().unwrap();
        values.change("1".to_owned(), Some("changed".into()));
        values.check().unwrap();
        values.change("one more".to_owned(), Some("v".into()));
        assert!(matches!(values.check(), Err(Error::TooMuch)));
        assert!(!values.freed);
        values.change("2".to_owned(), None);
        assert!(values.freed);

        let mut values = Values::default();
        values.change("k".to_owned(), Some(vec![b'x'; BYTES_MAX - 1].into()));
        values.check().unwrap();
        values.change("k".to_owned(), Some(vec![b'x'; BYTES_MAX].into()));
        assert!(matches!(values.check(), Err(Error::TooMuch)));
        assert_eq!((values.bytes, values.by_key.len()), (0, 0));
    }

    #[tokio::test]
    async fn there_are_so_many_copies_and_each_goes_with_its_last_reader() {
        let copies = Copies::default();
        let mut followed = copies.to_follow().unwrap();
        assert!(copies.to_follow().is_none());
        let names = (0..COPIES_MAX).map(|n| n.to_string());
        let held: Vec<_> = names.map(|name| copies.copy(&name).unwrap()).collect();
        assert!(matches!(copies.copy("one more"), Err(OpenError::TooMany)));
        assert!(Arc::ptr_eq(&held[0], &copies.copy("0").unwrap()));
        drop(held);
        while followed.try_recv().is_ok() {}
        let slow = copies.open("one more", Duration::ZERO).await;
        assert!(matches!(slow, Err(OpenError::Timeout(_))));
        let copy = followed.recv().await.unwrap();
        assert!(copy.upgrade().is_none());
        drop(followed);
        assert!(matches!(copies.copy("late"), Err(OpenError::Ended)));
    }
}
