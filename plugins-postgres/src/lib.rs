//! The capability traits over PostgreSQL 12 or newer: key-value, blobs and messages in tables of the schema
//! `washlet`.
//!
//! | module | what it does |
//! |---|---|
//! | `dsn` | where the server is, which never shows |
//! | `pool` | a bounded pool, whose connections are made when they are needed |
//! | `database` | one statement: its time limit, its errors |
//! | `schema` | brings the schema up to date, once, whatever other hosts do |
//! | `keyvalue` | `KeyValueStore`, each call one statement |
//! | `blobstore` | `BlobStore` on contents made of chunks |
//! | `upload`, `download` | write and read one object, bounded in memory |
//! | `garbage` | deletes contents that are nobody's |
//! | `listing` | sorted pages, for both |
//! | `messaging` | `MessageBus`: a copy of a message for each group; who wakes whom |
//! | `queue` | claims and settles the messages of a group |
//!
//! Invariant: every statement ends within a time limit, and each is a transaction of its own: none stays
//! open while a guest is waited for.

use async_trait::async_trait;
use capabilities::blobstore::{self as blobs, BlobStore};
use capabilities::keyvalue::KeyValueStore;
use capabilities::messaging::{MessageBus, durable};
use capabilities::plugin::{Ask, OpenError, Plugin};
use std::sync::Arc;
use std::time::Duration;

mod blobstore;
mod database;
mod download;
mod dsn;
mod garbage;
mod keyvalue;
mod listing;
mod messaging;
mod pool;
mod queue;
mod schema;
mod upload;

pub use dsn::{Dsn, DsnError};

/// How long one statement may take, and how long one waits for a connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Key-value, blobs and messages in one database.
pub struct Postgres {
    database: Arc<database::Database>,
    garbage: Arc<garbage::Garbage>,
    bells: Arc<messaging::Bells>,
}

impl Postgres {
    /// In the database at `dsn`, which is connected to when the first call needs it.
    pub fn new(dsn: &Dsn) -> Self {
        let database = Arc::new(database::Database::new(dsn));
        let garbage = Arc::new(garbage::Garbage::new(database.clone()));
        let bells = Arc::new(messaging::Bells::new(database.clone()));
        Self {
            database,
            garbage,
            bells,
        }
    }
}

#[async_trait]
impl Plugin for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    /// Reads the settings `shared` and `create`.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        let scope = ask.scope()?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        let database = self.database.clone();
        Ok(Arc::new(keyvalue::Store::new(database, scope, create)))
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

    /// Reads the settings `shared`, and `delivery`, which can only be `durable`.
    async fn messaging(&self, ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        if durable::delivery(&ask.settings)? == Some(false) {
            return Err(OpenError::NotOffered(
                "transient delivery; 'nats' and 'memory' do",
            ));
        }
        let (database, bells) = (self.database.clone(), self.bells.clone());
        let scope = ask.scope()?;
        Ok(Arc::new(messaging::Bus::new(database, bells, &scope)))
    }

    async fn run(&self) {
        self.bells.run().await;
    }

    async fn close(&self) {
        self.garbage.forgotten().await;
        self.database.close().await;
    }
}
