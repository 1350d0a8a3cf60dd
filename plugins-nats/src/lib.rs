//! The capability traits over NATS: key-value in JetStream buckets, messages on core NATS.
//!
//! | module | what it does |
//! |---|---|
//! | `bucket` | finds and creates buckets; reads and writes the last message of a key |
//! | `counter` | lets concurrent additions to a key share one compare-and-swap |
//! | `exchange` | one exchange with JetStream: its time limit, its errors |
//! | `keyvalue` | `KeyValueStore` on these two |
//! | `messaging` | `MessageBus` |
//!
//! Invariant: every operation ends within a time limit; one that waits for contention to pass ends when
//! its caller does.

use async_nats::Client;
use async_trait::async_trait;
use capabilities::keyvalue::KeyValueStore;
use capabilities::messaging::MessageBus;
use capabilities::plugin::{Ask, OpenError, Plugin};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

mod bucket;
mod counter;
mod exchange;
mod keyvalue;
mod messaging;

/// How long one exchange with the server may take.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Key-value and messaging over one connection to NATS.
pub struct Nats {
    client: Client,
    buckets: Arc<bucket::Buckets>,
    counters: Arc<counter::Counters>,
}

impl Nats {
    /// On `client`, which this plugin closes when it is closed itself.
    pub fn new(client: Client) -> Self {
        let buckets = Arc::new(bucket::Buckets::new(client.clone()));
        Self {
            client,
            buckets,
            counters: Arc::default(),
        }
    }
}

#[async_trait]
impl Plugin for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    /// Reads the settings `shared`, `create` and those a new bucket is made with: `history` (1 to 64
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
        )))
    }

    async fn messaging(&self, _ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        Ok(Arc::new(messaging::Bus::new(self.client.clone())))
    }

    async fn close(&self) {
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
