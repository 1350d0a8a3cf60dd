//! The capability traits over PostgreSQL 12 or newer: key-value, live configuration and blobs in tables of the
//! schema `washlet`.
//!
//! | module | what it does |
//! |---|---|
//! | `dsn` | where the server is, which never shows |
//! | `pool` | a bounded pool, whose connections are made when they are needed |
//! | `database` | one statement: its time limit, its errors |
//! | `schema` | brings the schema up to date, once, whatever other hosts do |
//! | `keyvalue` | `KeyValueStore`, each call one statement |
//! | `config` | `ConfigSource`: copies of buckets that follow them |
//! | `watch` | the keys of a bucket that change |
//! | `blobstore` | `BlobStore` on contents made of chunks |
//! | `upload`, `download` | write and read one object, bounded in memory |
//! | `garbage` | deletes contents that are nobody's |
//! | `listing` | sorted pages, for both |
//!
//! Invariant: every statement ends within a time limit, and each is a transaction of its own: none stays
//! open while a guest is waited for.

use async_trait::async_trait;
use capabilities::blobstore::{self as blobs, BlobStore};
use capabilities::config::ConfigSource;
use capabilities::keyvalue::KeyValueStore;
use capabilities::messaging::MessageBus;
use capabilities::plugin::{Ask, OpenError, Plugin};
use std::sync::Arc;
use std::time::Duration;

mod blobstore;
mod config;
mod database;
mod download;
mod dsn;
mod garbage;
mod keyvalue;
mod listing;
mod pool;
mod schema;
mod upload;
mod watch;

pub use dsn::{Dsn, DsnError};

/// How long one statement may take, and how long one waits for a connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Key-value, live configuration and blobs in one database.
pub struct Postgres {
    database: Arc<database::Database>,
    live: config::Follower,
    garbage: Arc<garbage::Garbage>,
}

impl Postgres {
    /// In the database at `dsn`, which is connected to when the first call needs it.
    pub fn new(dsn: &Dsn) -> Self {
        let database = Arc::new(database::Database::new(dsn));
        let garbage = Arc::new(garbage::Garbage::new(database.clone()));
        let live = config::Follower::new(database.clone());
        Self {
            database,
            live,
            garbage,
        }
    }
}

#[async_trait]
impl Plugin for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    /// Reads the settings `shared`, `create`, and `ttl` and `max_value_bytes`, which hold for what is written
    /// through the entry.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        let store = keyvalue::Store::new(self.database.clone(), ask)?;
        Ok(Arc::new(store.bounded(&ask.settings)?))
    }

    /// Reads the settings `bucket`, `shared` and `create`.
    async fn config(&self, ask: &Ask<'_>) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let bucket = ask.settings.required("bucket", "the name of a bucket")?;
        let store = keyvalue::Store::new(self.database.clone(), ask)?;
        match self.live.open(&store, bucket).await {
            Ok(copy) => Ok(copy),
            Err(error) => Err(OpenError::Storage(error.into())),
        }
    }

    /// Reads the settings `shared`, `create` and `max_object_bytes`.
    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        let scope = ask.scope()?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        let bytes_max = blobs::bytes_max(&ask.settings)?;
        Ok(Arc::new(blobstore::Store::new(
            self.database.clone(),
            self.garbage.clone(),
            scope,
            create,
            bytes_max,
        )))
    }

    async fn messaging(&self, _ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        Err(OpenError::NotOffered("messaging; 'nats' and 'memory' do"))
    }

    async fn run(&self) {
        self.live.run().await;
    }

    async fn close(&self) {
        self.garbage.forgotten().await;
        self.database.close().await;
    }
}
