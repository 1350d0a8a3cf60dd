//! The plugin for development and tests: everything in this process, gone with it.
//!
//! State belongs to the [`Memory`] instance: workloads of one host that name the same bucket share it
//! under the same rules of scope as on any other storage.

use async_trait::async_trait;
use std::sync::Arc;

use crate::blobstore::{BlobStore, bytes_max};
use crate::config::ConfigSource;
use crate::keyvalue::KeyValueStore;
use crate::messaging::{MessageBus, durable};
use crate::plugin::{Ask, OpenError, Plugin};

mod blobstore;
mod config;
mod keyvalue;
mod messaging;

/// Key-value, blobs, messaging and live configuration in this process.
pub struct Memory {
    buckets: Arc<keyvalue::Buckets>,
    containers: Arc<blobstore::Containers>,
    bus: Arc<messaging::Bus>,
}

impl Memory {
    /// Empty.
    ///
    /// Units: `bytes_max` bounds what all buckets hold together: keys, values and 64 bytes for each;
    /// a write that would exceed it fails. As much again may be held by all containers: names, objects
    /// (also those being written, and replaced ones while they are read) and 256 bytes for each.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            buckets: Arc::new(keyvalue::Buckets::new(bytes_max)),
            containers: Arc::new(blobstore::Containers::new(bytes_max)),
            bus: Arc::default(),
        }
    }

    fn store(&self, ask: &Ask<'_>, limits: keyvalue::Limits) -> Result<keyvalue::Store, OpenError> {
        Ok(keyvalue::Store {
            buckets: self.buckets.clone(),
            scope: ask.scope()?,
            create: ask.settings.boolean("create")?.unwrap_or(true),
            limits,
        })
    }

    /// How many messages were dropped because their subscriber did not keep up.
    pub fn messages_dropped(&self) -> u64 {
        self.bus.dropped()
    }
}

#[async_trait]
impl Plugin for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    /// Reads the settings `shared`, `create`, `ttl`, `max_bytes` (of one bucket: keys, values and 64 bytes for
    /// each) and `max_value_bytes`, which hold for what is written through the entry.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        let limits = keyvalue::Limits::read(&ask.settings)?;
        Ok(Arc::new(self.store(ask, limits)?))
    }

    /// Reads the settings `shared`, `create` and `max_object_bytes`.
    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        Ok(Arc::new(blobstore::Store {
            containers: self.containers.clone(),
            scope: ask.scope()?,
            create: ask.settings.boolean("create")?.unwrap_or(true),
            object_bytes_max: bytes_max(&ask.settings)?,
        }))
    }

    /// Reads the settings `bucket`, `shared` and `create`.
    async fn config(&self, ask: &Ask<'_>) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let bucket = ask.settings.required("bucket", "the name of a bucket")?;
        let store = Arc::new(self.store(ask, keyvalue::Limits::NONE)?);
        let opened = store.open(bucket).await;
        opened.map_err(|error| OpenError::Storage(error.into()))?;
        Ok(Arc::new(config::Bucket {
            store,
            name: bucket.to_owned(),
        }))
    }

    /// Reads the setting `delivery`, which can only be `transient`: nothing here outlives the process.
    async fn messaging(&self, ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        if durable::delivery(&ask.settings)? == Some(true) {
            return Err(OpenError::NotOffered(
                "durable delivery; 'nats' and 'postgres' do",
            ));
        }
        Ok(Arc::new(self.bus.clone()))
    }
}
