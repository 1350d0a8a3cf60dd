//! The capability traits over NATS: key-value, live configuration, sealed secrets and blobs in JetStream, messages on
//! core NATS or, durable, in JetStream.
//!
//! | module | what it does |
//! |---|---|
//! | `blueprint` | the settings that new streams are made with |
//! | `bucket` | finds and creates buckets; reads and writes the last message of a key |
//! | `counter` | lets concurrent additions to a key share one compare-and-swap |
//! | `exchange` | one exchange with JetStream: its time limit, its errors |
//! | `keyvalue` | `KeyValueStore` on these |
//! | `watch` | the keys of a bucket that change |
//! | `config` | `ConfigSource`: copies of buckets that follow them |
//! | `secrets` | `SecretSource`: values of a bucket that are sealed to this host |
//! | `container` | streams in the layout of object stores; contents given up |
//! | `scan` | reads messages of a stream in batches, without a consumer |
//! | `upload`, `download` | write and read one object, bounded in memory |
//! | `blobstore` | `BlobStore` on these |
//! | `listing` | sorted pages, for both |
//! | `messaging` | `MessageBus` on core NATS |
//! | `durable` | `MessageBus` whose messages a stream keeps |
//! | `group` | fetches a group's messages through one durable consumer, and settles them |
//!
//! Invariant: every operation ends within a time limit; one that waits for contention to pass ends when
//! its caller does.

use async_nats::Client;
use async_trait::async_trait;
use capabilities::blobstore::{self as blobs, BlobStore};
use capabilities::config::ConfigSource;
use capabilities::keyvalue::{KeyValueStore, value_bytes_max};
use capabilities::messaging::{MessageBus, durable as kept};
use capabilities::names;
use capabilities::plugin::{Ask, OpenError, Plugin, Scope};
use capabilities::secrets::{Opener, SecretSource};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

mod blobstore;
mod blueprint;
mod bucket;
mod config;
mod container;
mod counter;
mod download;
mod durable;
mod exchange;
mod group;
mod keyvalue;
mod listing;
mod messaging;
mod scan;
mod secrets;
mod upload;
mod watch;

/// How long one exchange with the server may take.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Key-value, live configuration, blobs and messaging over one connection to NATS.
pub struct Nats {
    client: Client,
    buckets: Arc<bucket::Buckets>,
    counters: Arc<counter::Counters>,
    live: config::Follower,
    containers: Arc<container::Containers>,
    /// `None`: this host has no secrets in buckets.
    opener: Option<Arc<dyn Opener>>,
}

impl Nats {
    /// On `client`, which this plugin closes when it is closed itself.
    pub fn new(client: Client) -> Self {
        let buckets = Arc::new(bucket::Buckets::new(client.clone()));
        let containers = Arc::new(container::Containers::new(client.clone()));
        let live = config::Follower::new(client.clone(), buckets.clone());
        Self {
            client,
            buckets,
            counters: Arc::default(),
            live,
            containers,
            opener: None,
        }
    }

    /// The same, with the secrets in buckets that `opener` opens.
    #[must_use]
    pub fn with_opener(self, opener: Arc<dyn Opener>) -> Self {
        Self {
            opener: Some(opener),
            ..self
        }
    }
}

#[async_trait]
impl Plugin for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    /// Reads the settings `shared`, `create`, `max_value_bytes` and those a new bucket is made with: `history` (1 to 64
    /// values of a key), `replicas` (1 to 5), `ttl` (of all keys, like `90s`, `10m`, `12h`, `7d`),
    /// `max_bytes` (of the whole bucket) and `storage` (`file` or `memory`). A bucket that exists is
    /// used as it is.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        let scope = ask.scope()?;
        let blueprint = bucket::Blueprint::read(&ask.settings)?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        Ok(Arc::new(keyvalue::Store::new(
            self.buckets.clone(),
            self.counters.clone(),
            scope,
            create.then_some(blueprint),
            value_bytes_max(&ask.settings)?,
        )))
    }

    /// Reads the settings `shared`, `create`, `max_object_bytes` and those a new container is made with:
    /// `replicas`, `ttl`, `max_bytes` and `storage`, as for buckets.
    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        let scope = ask.scope()?;
        let blueprint = blueprint::stream(&ask.settings)?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        let bytes_max = blobs::bytes_max(&ask.settings)?;
        Ok(Arc::new(blobstore::Store::new(
            self.containers.clone(),
            scope,
            create.then_some(blueprint),
            bytes_max,
        )))
    }

    /// Reads the settings `bucket`, and those of key-value but `max_value_bytes`: nothing is written.
    async fn config(&self, ask: &Ask<'_>) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let bucket = ask.settings.required("bucket", "the name of a bucket")?;
        let blueprint = bucket::Blueprint::read(&ask.settings)?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        let create = create.then_some(&blueprint);
        let scope = ask.scope()?;
        let copy = async {
            let name = names::bucket(&scope, bucket)?;
            self.live.open(&name, bucket, create).await
        };
        match copy.await {
            Ok(copy) => Ok(copy),
            Err(error) => Err(OpenError::Storage(error.into())),
        }
    }

    /// Reads the setting `bucket`, whose bucket has to be there. It belongs to the namespace, or with flat names
    /// to the whole storage; what is in it opens for the namespace alone.
    async fn secrets(&self, ask: &Ask<'_>) -> Result<Arc<dyn SecretSource>, OpenError> {
        let Some(opener) = &self.opener else {
            return Err(OpenError::NotOffered("secrets"));
        };
        let guest_name = ask.settings.required("bucket", "the name of a bucket")?;
        let scope = match ask.flat_names {
            true => Scope::Flat,
            false => Scope::Namespace(ask.namespace.to_owned()),
        };
        let source = async {
            let bucket = names::bucket(&scope, guest_name)?;
            let (buckets, opener) = (self.buckets.clone(), opener.clone());
            secrets::Source::open(buckets, opener, ask.namespace, bucket, guest_name).await
        };
        match source.await {
            Ok(source) => Ok(Arc::new(source)),
            Err(error) => Err(OpenError::Storage(error.into())),
        }
    }

    /// Reads the setting `delivery`; with `durable` also `stream`, `shared`, `create`, and those a new stream is
    /// made with: `stream_subjects`, and `replicas`, `ttl`, `max_bytes` and `storage` as for buckets.
    async fn messaging(&self, ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        let core = messaging::Bus::new(self.client.clone());
        Ok(match kept::delivery(&ask.settings)? {
            Some(true) => Arc::new(durable::Bus::open(core, self.client.clone(), ask)?),
            _ => Arc::new(core),
        })
    }

    async fn run(&self) {
        self.live.run().await;
    }

    async fn close(&self) {
        let sweep = self.containers.sweep(None);
        if tokio::time::timeout(OPERATION_TIMEOUT, sweep)
            .await
            .is_err()
        {
            tracing::warn!("chunks of unfinished objects stay in their containers");
        }
        let close = async {
            self.client.flush().await?;
            // It ends when the connection does.
            let mut last = self.client.subscribe(self.client.new_inbox()).await?;
            self.client.drain().await?;
            while last.next().await.is_some() {}
            Ok::<_, async_nats::Error>(())
        };
        match tokio::time::timeout(OPERATION_TIMEOUT, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to drain the NATS connection"),
            Err(_) => tracing::warn!("the NATS connection did not drain in {OPERATION_TIMEOUT:?}"),
        }
    }
}
