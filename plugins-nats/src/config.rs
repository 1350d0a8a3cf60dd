//! Live configuration: a copy of a bucket in memory that follows the bucket.
//!
//! There is one copy per bucket, however many components read it. A *session* brings all values through an
//! ephemeral consumer and then every change; after anything unexpected (a gap, silence, a new connection)
//! a new session begins, and the copy stays as it was until all values are there again.

use async_nats::jetstream;
use async_nats::{Client, Message, StatusCode, header};
use async_trait::async_trait;
use capabilities::BoxError;
use capabilities::config::{BYTES_MAX, ConfigSource, Error, KEYS_MAX, Result};
use capabilities::{keyvalue, names, report};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::OPERATION_TIMEOUT;
use crate::bucket::{Blueprint, Buckets};

/// How many buckets one host follows.
const COPIES_MAX: usize = 128;

/// How often the server says that it is there when nothing changes.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long nothing may be heard.
const SILENCE_MAX: Duration = Duration::from_secs(11);

/// How often a session looks whether it is still wanted, and on the connection it began on.
const TICK: Duration = Duration::from_millis(500);

/// How long after a failed session the next one begins.
const RETRY: Duration = Duration::from_millis(500);

/// Where the server says that it waits for an answer to go on.
const STALLED: &str = "Nats-Consumer-Stalled";

/// The copies of one connection.
pub(crate) struct Copies {
    client: Client,
    jetstream: jetstream::Context,
    buckets: Arc<Buckets>,
    known: Mutex<HashMap<String, Weak<Copy>>>,
    begun: mpsc::Sender<Weak<Copy>>,
    /// Taken by who follows.
    to_follow: Mutex<Option<mpsc::Receiver<Weak<Copy>>>>,
}

/// What a bucket had last. It is followed for as long as anybody holds it.
pub(crate) struct Copy {
    /// NATS' name of the bucket.
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
pub(crate) enum OpenError {
    #[error("{0}")]
    Name(#[from] names::Error),
    #[error("this host follows {COPIES_MAX} buckets already")]
    TooMany,
    #[error("nothing follows buckets on this host any more")]
    Ended,
    #[error("not all values of the bucket arrived within {OPERATION_TIMEOUT:?}")]
    Timeout,
    #[error(transparent)]
    Bucket(#[from] keyvalue::Error),
    #[error(transparent)]
    Content(#[from] Error),
}

impl Copies {
    pub(crate) fn new(client: Client, buckets: Arc<Buckets>) -> Self {
        let (begun, to_follow) = mpsc::channel(COPIES_MAX);
        Self {
            jetstream: jetstream::new(client.clone()),
            client,
            buckets,
            known: Mutex::default(),
            begun,
            to_follow: Mutex::new(Some(to_follow)),
        }
    }

    /// The copy of the bucket called `name` by NATS and `guest_name` by people, once it is complete.
    pub(crate) async fn open(
        &self,
        name: &str,
        guest_name: &str,
        create: Option<&Blueprint>,
    ) -> Result<Arc<Copy>, OpenError> {
        match create {
            Some(blueprint) => {
                self.buckets
                    .find_or_create(name, guest_name, blueprint)
                    .await
            }
            None => self.buckets.find(name, guest_name).await,
        }?;
        let copy = self.copy(name)?;
        let mut held = copy.held.subscribe();
        let complete = held.wait_for(|held| held.complete);
        match tokio::time::timeout(OPERATION_TIMEOUT, complete).await {
            Ok(Ok(held)) => held.values.check()?,
            _ => return Err(OpenError::Timeout),
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

    /// Follows every bucket that is opened, for ever; only once, the next time it returns.
    pub(crate) async fn run(&self) {
        let to_follow = self.to_follow.lock();
        let to_follow = to_follow.unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut to_follow) = to_follow else {
            return;
        };
        let mut following = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(copy) = to_follow.recv() => following.push(self.follow(copy)),
                Some(()) = following.next() => {}
            }
        }
    }

    /// One session after the other, until nobody holds the copy.
    async fn follow(&self, copy: Weak<Copy>) {
        let mut reported = false;
        while let Some(bucket) = copy.upgrade().map(|copy| copy.bucket.clone()) {
            let mut session = Session::new(&copy);
            match session.run(self, &bucket).await {
                Ok(()) => return,
                Err(error) => {
                    // What was known until now may be wrong, such as where the bucket is.
                    self.buckets.forget(&bucket);
                    reported &= !session.is_complete;
                    let error = report(&*error);
                    match reported {
                        true => tracing::debug!(bucket, error, "live configuration is still away"),
                        false => tracing::warn!(
                            bucket,
                            error,
                            "live configuration stays as it was until its bucket can be followed again"
                        ),
                    }
                    reported = true;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }
}

/// All values, then changes, through one consumer.
struct Session<'a> {
    copy: &'a Weak<Copy>,
    /// What arrives before all values are there.
    values: Values,
    is_complete: bool,
    /// The number of the last message, by the consumer's count.
    last: u64,
}

impl<'a> Session<'a> {
    fn new(copy: &'a Weak<Copy>) -> Self {
        Self {
            copy,
            values: Values::default(),
            is_complete: false,
            last: 0,
        }
    }

    /// Returns when nobody holds the copy any more.
    async fn run(&mut self, copies: &Copies, bucket: &str) -> Result<(), BoxError> {
        let connects = copies.connects();
        let client = &copies.client;
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await?;
        let handle = copies.buckets.find(bucket, bucket).await?;
        let expected = handle.follow(&inbox).await?;
        if expected == 0 {
            self.complete();
        }
        let mut heard = Instant::now();
        loop {
            match tokio::time::timeout(TICK, messages.next()).await {
                Ok(Some(message)) => {
                    heard = Instant::now();
                    self.message(copies, message, handle.prefix(), expected)
                        .await?;
                }
                Ok(None) => return Err("the connection was closed".into()),
                Err(_) => {}
            }
            if self.copy.strong_count() == 0 {
                return Ok(());
            }
            if copies.connects() != connects {
                return Err("the connection is a new one".into());
            }
            if heard.elapsed() > SILENCE_MAX {
                return Err(format!("the server said nothing for {SILENCE_MAX:?}").into());
            }
            if self.is_complete && self.may_fit_again() {
                return Err("values that were left out may have room now".into());
            }
        }
    }

    async fn message(
        &mut self,
        copies: &Copies,
        message: Message,
        prefix: &str,
        expected: u64,
    ) -> Result<(), BoxError> {
        let of = |name| message.headers.as_ref().and_then(|all| all.get(name));
        if let Some(status) = message.status {
            if status != StatusCode::IDLE_HEARTBEAT {
                return Err(format!("the consumer ended: {status}").into());
            }
            let last = of(header::NATS_LAST_CONSUMER.as_ref());
            if last.is_some_and(|last| last.as_str().parse() != Ok(self.last)) {
                return Err("a change was missed".into());
            }
            let stalled = of(STALLED).map(|subject| subject.as_str().into());
            if let Some(subject) = message.reply.clone().or(stalled) {
                copies.client.publish(subject, "".into()).await?;
            }
            return Ok(());
        }
        let removed = match of("KV-Operation") {
            Some(operation) => ["DEL", "PURGE"].contains(&operation.as_str()),
            None => of(header::NATS_MARKER_REASON.as_ref()).is_some(),
        };
        let message = jetstream::Message {
            context: copies.jetstream.clone(),
            message,
        };
        let (number, pending) = {
            let info = message.info()?;
            (info.consumer_sequence, info.pending)
        };
        if number != self.last + 1 {
            return Err("a change was missed".into());
        }
        self.last = number;
        let key = message.subject.strip_prefix(prefix);
        // Somebody else's spelling of a key is no key.
        if let Some(key) = key.and_then(names::decode_key) {
            let value = (!removed).then(|| message.payload.clone());
            match self.is_complete {
                false => self.values.change(key, value),
                true => self.change(|held| held.values.change(key, value)),
            }
        }
        if !self.is_complete && (pending == 0 || number >= expected) {
            self.complete();
        }
        Ok(())
    }

    fn complete(&mut self) {
        self.is_complete = true;
        let values = std::mem::take(&mut self.values);
        if let Err(error) = values.check() {
            let bucket = self.copy.upgrade().map(|copy| copy.bucket.clone());
            tracing::warn!(bucket, %error, "live configuration is not whole");
        }
        self.change(|held| {
            held.complete = true;
            held.values = values;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        if let Some(copy) = self.copy.upgrade() {
            copy.held.send_modify(change);
        }
    }

    fn may_fit_again(&self) -> bool {
        let copy = self.copy.upgrade();
        copy.is_some_and(|copy| copy.held.borrow().values.may_fit_again())
    }
}

/// Keys and values within bounds.
#[derive(Default)]
struct Values {
    /// `None` is a value that is no text.
    by_key: BTreeMap<String, Option<String>>,
    bytes: usize,
    /// Whether something had no room.
    left_out: bool,
    /// Whether something went since.
    freed: bool,
}

impl Values {
    /// Removes `key` without a value.
    fn change(&mut self, key: String, value: Option<bytes::Bytes>) {
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

    fn may_fit_again(&self) -> bool {
        self.left_out && self.freed
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
        assert!(!values.may_fit_again());
        values.change("2".to_owned(), None);
        assert!(values.may_fit_again());

        let mut values = Values::default();
        values.change("k".to_owned(), Some(vec![b'x'; BYTES_MAX - 1].into()));
        values.check().unwrap();
        values.change("k".to_owned(), Some(vec![b'x'; BYTES_MAX].into()));
        assert!(matches!(values.check(), Err(Error::TooMuch)));
        assert_eq!((values.bytes, values.by_key.len()), (0, 0));
    }
}
