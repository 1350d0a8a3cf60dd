//! Buckets of JetStream: finding, creating, and the last message of a key.
//!
//! A key's *last* message is its value, or a tombstone, or nothing. Its revision is the stream's
//! sequence number, which never comes again; a write may demand that it still is the last.

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, push};
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream;
use async_nats::{Client, header};
use bytes::Bytes;
use capabilities::BoxError;
use capabilities::keyvalue::{Error, Result, VALUE_BYTES_MAX, WATCHES_MAX};
use capabilities::plugin::{OpenError, Settings};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

use crate::OPERATION_TIMEOUT;
use crate::blueprint::{self, within};
use crate::config::HEARTBEAT;
use crate::exchange::{self, is_conflict, limited};

/// How many buckets are remembered; beyond that all are looked up again.
const BUCKETS_MAX: usize = 1024;

/// What a message needs besides its value: headers, and the subject when it is read back.
const HEADERS_BYTES_MAX: usize = 8 << 10;

/// How long a tombstone stays, for those who watch the bucket.
const TOMBSTONE_TTL: Duration = Duration::from_secs(60 * 60);

/// The buckets of one connection.
pub(crate) struct Buckets {
    client: Client,
    jetstream: jetstream::Context,
    known: Mutex<HashMap<String, Bucket>>,
    /// Places of those who watch a bucket.
    pub(crate) watches: Arc<Semaphore>,
}

/// The messages that come after one of a bucket, without their values.
pub(crate) struct Following {
    pub(crate) messages: push::Ordered,
    /// What their subjects begin with.
    pub(crate) prefix: String,
}

/// A bucket that was there.
#[derive(Clone)]
pub(crate) struct Bucket {
    client: Client,
    jetstream: jetstream::Context,
    store: Arc<kv::Store>,
}

/// What a key has.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    /// 0 when the key never had a message, or none that is kept.
    pub(crate) revision: u64,
    /// `None` for a tombstone.
    pub(crate) value: Option<Bytes>,
}

impl Buckets {
    pub(crate) fn new(client: Client) -> Self {
        // Our own limit ends an exchange first, so that there is one way to learn of it.
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(2 * OPERATION_TIMEOUT)
            .build(client.clone());
        Self {
            client,
            jetstream,
            known: Mutex::default(),
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        }
    }

    /// The bucket called `name` by NATS and `guest_name` by the guest.
    ///
    /// Errors: [`Error::NoSuchBucket`].
    pub(crate) async fn find(&self, name: &str, guest_name: &str) -> Result<Bucket> {
        if let Some(bucket) = self.known().get(name) {
            return Ok(bucket.clone());
        }
        match limited(&self.client, self.jetstream.get_key_value(name)).await {
            Ok(store) => Ok(self.remember(name, store)),
            Err(exchange::Error::NoStream) => Err(Error::NoSuchBucket(guest_name.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`find`](Self::find), making it of `blueprint` when it is absent.
    pub(crate) async fn find_or_create(
        &self,
        name: &str,
        guest_name: &str,
        blueprint: &Blueprint,
    ) -> Result<Bucket> {
        match self.find(name, guest_name).await {
            Err(Error::NoSuchBucket(_)) => {}
            found => return found,
        }
        let created = limited(
            &self.client,
            self.jetstream.create_stream(blueprint.stream(name)),
        )
        .await;
        match (created, self.find(name, guest_name).await) {
            // Another host may have made it, with other settings: that is as good.
            (_, Ok(bucket)) => Ok(bucket),
            (Err(error), _) => Err(error.into()),
            (Ok(_), Err(error)) => Err(error),
        }
    }

    /// Whether there is a connection now.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Looks `name` up again the next time.
    pub(crate) fn forget(&self, name: &str) {
        self.known().remove(name);
    }

    fn remember(&self, name: &str, store: kv::Store) -> Bucket {
        let bucket = Bucket {
            client: self.client.clone(),
            jetstream: self.jetstream.clone(),
            store: Arc::new(store),
        };
        let mut known = self.known();
        if known.len() >= BUCKETS_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), bucket.clone());
        bucket
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// The last message of `key`, which is encoded.
    pub(crate) async fn last(&self, key: &str) -> Result<Last> {
        let entry = limited(&self.client, self.store.entry(key)).await?;
        Ok(match entry {
            None => Last {
                revision: 0,
                value: None,
            },
            Some(entry) => Last {
                revision: entry.revision,
                value: (entry.operation == Operation::Put).then_some(entry.value),
            },
        })
    }

    /// Writes `value` for `ttl` seconds; the new revision, or `None` when `expected` was not the last.
    pub(crate) async fn write(
        &self,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
        ttl: Option<u64>,
    ) -> Result<Option<u64>> {
        let mut message = PublishMessage::build().payload(value);
        if let Some(expected) = expected {
            message = message.expected_last_subject_sequence(expected);
        }
        if let Some(ttl) = ttl {
            message = message.ttl(Duration::from_secs(ttl));
            if self.keeps_history() {
                // Else the value before would be the last again once this one has expired.
                message = message.header(header::NATS_ROLLUP, "sub");
            }
        }
        match self.publish(key, message).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a tombstone at `key`.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let mut message = PublishMessage::build().header("KV-Operation", "DEL");
        if self.takes_ttl() && !self.keeps_history() {
            message = message.ttl(TOMBSTONE_TTL);
        }
        Ok(self.publish(key, message).await.map(drop)?)
    }

    /// All keys that have a value, encoded, in no order.
    pub(crate) async fn keys(&self) -> Result<kv::Keys> {
        Ok(limited(&self.client, self.store.keys()).await?)
    }

    /// Sends `inbox` the last message of every key and then all that follow; how many of them are not new.
    ///
    /// Shape: the server forgets the consumer when nobody listens.
    pub(crate) async fn follow(&self, inbox: &str) -> Result<u64> {
        let consumer = push::Config {
            deliver_subject: inbox.to_owned(),
            description: Some("live configuration".to_owned()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: format!("{}>", self.prefix()),
            flow_control: true,
            idle_heartbeat: HEARTBEAT,
            num_replicas: 1,
            memory_storage: true,
            inactive_threshold: 2 * HEARTBEAT,
            ..push::Config::default()
        };
        let created = self.store.stream.create_consumer(consumer);
        let consumer = limited(&self.client, created).await?;
        let info = consumer.cached_info();
        // Some may be on their way already.
        Ok(info.num_pending + info.delivered.consumer_sequence)
    }

    /// The number of its last message.
    pub(crate) async fn last_sequence(&self) -> Result<u64> {
        let info = limited(&self.client, self.store.stream.get_info()).await?;
        Ok(info.state.last_sequence)
    }

    /// The messages after number `last`, those to come included.
    pub(crate) async fn changes(&self, last: u64) -> Result<Following> {
        let consumer = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            description: Some("watch of a bucket".to_owned()),
            filter_subject: format!("{}>", self.prefix()),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: last + 1,
            },
            headers_only: true,
            ..push::OrderedConfig::default()
        };
        let created = self.store.stream.create_consumer(consumer);
        let consumer = limited(&self.client, created).await?;
        Ok(Following {
            messages: limited(&self.client, consumer.messages()).await?,
            prefix: self.prefix().to_owned(),
        })
    }

    /// What the subjects of its keys begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.store.prefix
    }

    /// What `next` of the listing comes to, in time.
    pub(crate) async fn limited<T, E: Into<BoxError>>(
        &self,
        next: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        Ok(limited(&self.client, next).await?)
    }

    /// The largest value it takes now, in bytes.
    pub(crate) fn value_bytes_max(&self) -> usize {
        let config = &self.store.stream.cached_info().config;
        let stream_max = usize::try_from(config.max_message_size).unwrap_or(0);
        let message_max = match stream_max {
            0 => self.client.max_payload(),
            stream_max => stream_max.min(self.client.max_payload()),
        };
        message_max
            .saturating_sub(HEADERS_BYTES_MAX)
            .min(VALUE_BYTES_MAX)
    }

    /// Whether a value may have a life of its own.
    pub(crate) fn takes_ttl(&self) -> bool {
        self.store.stream.cached_info().config.allow_message_ttl
    }

    fn keeps_history(&self) -> bool {
        self.store
            .stream
            .cached_info()
            .config
            .max_messages_per_subject
            != 1
    }

    async fn publish(&self, key: &str, message: PublishMessage) -> exchange::Result<u64> {
        let prefix = self.store.put_prefix.as_ref().unwrap_or(&self.store.prefix);
        let publish = async {
            self.jetstream
                .send_publish(format!("{prefix}{key}"), message)
                .await?
                .await
        };
        limited(&self.client, publish).await.map(|ack| ack.sequence)
    }
}

/// How a new bucket is made.
pub(crate) struct Blueprint(stream::Config);

impl Blueprint {
    pub(crate) fn read(settings: &Settings<'_>) -> Result<Self, OpenError> {
        let history = settings.parsed("history", "a number from 1 to 64", within(1..=64))?;
        let history = history.unwrap_or(1);
        Ok(Self(stream::Config {
            max_messages_per_subject: history.into(),
            deny_delete: true,
            // A server that does not know these (before 2.11) leaves them out.
            allow_message_ttl: true,
            // With both history and these, nats-server 2.15 lets no value expire.
            subject_delete_marker_ttl: (history == 1).then_some(TOMBSTONE_TTL),
            ..blueprint::stream(settings)?
        }))
    }

    fn stream(&self, bucket: &str) -> stream::Config {
        stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            ..self.0.clone()
        }
    }
}
