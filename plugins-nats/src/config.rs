//! Live configuration: a copy of a bucket in memory that follows the bucket.
//!
//! There is one copy per bucket, however many components read it. A *session* brings all values through an
//! ephemeral consumer and then every change; after anything unexpected (a gap, silence, a new connection)
//! a new session begins, and the copy stays as it was until all values are there again.

use async_nats::jetstream;
use async_nats::{Client, Message, StatusCode, header};
use capabilities::BoxError;
use capabilities::config::copy::{Copies, Copy, OpenError, Values};
use capabilities::{names, report};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

use crate::OPERATION_TIMEOUT;
use crate::bucket::{Blueprint, Buckets};

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

/// Follows buckets over one connection.
pub(crate) struct Follower {
    client: Client,
    jetstream: jetstream::Context,
    buckets: Arc<Buckets>,
    copies: Copies,
}

impl Follower {
    pub(crate) fn new(client: Client, buckets: Arc<Buckets>) -> Self {
        Self {
            jetstream: jetstream::new(client.clone()),
            client,
            buckets,
            copies: Copies::default(),
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
        self.copies.open(name, OPERATION_TIMEOUT).await
    }

    /// Follows every bucket that is opened, for ever; only once, the next time it returns.
    pub(crate) async fn run(&self) {
        let Some(mut to_follow) = self.copies.to_follow() else {
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
        while let Some(bucket) = copy.upgrade().map(|copy| copy.bucket().to_owned()) {
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
    async fn run(&mut self, follower: &Follower, bucket: &str) -> Result<(), BoxError> {
        let connects = follower.connects();
        let client = &follower.client;
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await?;
        let handle = follower.buckets.find(bucket, bucket).await?;
        let expected = handle.follow(&inbox).await?;
        if expected == 0 {
            self.complete();
        }
        let mut heard = Instant::now();
        loop {
            match tokio::time::timeout(TICK, messages.next()).await {
                Ok(Some(message)) => {
                    heard = Instant::now();
                    self.message(follower, message, handle.prefix(), expected)
                        .await?;
                }
                Ok(None) => return Err("the connection was closed".into()),
                Err(_) => {}
            }
            if self.copy.strong_count() == 0 {
                return Ok(());
            }
            if follower.connects() != connects {
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
        follower: &Follower,
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
                follower.client.publish(subject, "".into()).await?;
            }
            return Ok(());
        }
        let removed = match of("KV-Operation") {
            Some(operation) => ["DEL", "PURGE"].contains(&operation.as_str()),
            None => of(header::NATS_MARKER_REASON.as_ref()).is_some(),
        };
        let message = jetstream::Message {
            context: follower.jetstream.clone(),
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
                true => {
                    if let Some(copy) = self.copy.upgrade() {
                        copy.change(key, value);
                    }
                }
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
        let Some(copy) = self.copy.upgrade() else {
            return;
        };
        if let Err(error) = copy.complete(values) {
            let bucket = copy.bucket();
            tracing::warn!(bucket, %error, "live configuration is not whole");
        }
    }

    fn may_fit_again(&self) -> bool {
        let copy = self.copy.upgrade();
        copy.is_some_and(|copy| copy.may_fit_again())
    }
}
