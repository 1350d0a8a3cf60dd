//! The capability traits over PostgreSQL 12 or newer: key-value, live configuration, blobs and messages in tables of
//! the schema `washlet`, and databases that workloads name themselves.
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
//! | `sql` | `SqlDatabase`: databases of workloads, over a client of its own |
//! | `messaging` | `MessageBus`: a copy of a message for each group; who wakes whom |
//! | `queue` | claims and settles the messages of a group |
//!
//! Invariant of the host's own database: every statement ends within a time limit, and each is a transaction of its own: none stays
//! open while a guest is waited for.

use async_trait::async_trait;
use capabilities::blobstore::{self as blobs, BlobStore};
use capabilities::config::ConfigSource;
use capabilities::keyvalue::KeyValueStore;
use capabilities::messaging::{MessageBus, durable};
use capabilities::plugin::{Ask, OpenError, Plugin};
use capabilities::sql::SqlDatabase;
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
mod messaging;
mod pool;
mod queue;
mod schema;
mod sql;
mod upload;
mod watch;

pub use dsn::{Dsn, DsnError};

/// How long one statement may take, and how long one waits for a connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Key-value, live configuration, blobs and messages in the host's database, if it has one, and databases of
/// workloads.
pub struct Postgres {
    own: Option<Own>,
    databases: sql::Databases,
}

/// The database of the host itself.
struct Own {
    database: Arc<database::Database>,
    live: config::Follower,
    garbage: Arc<garbage::Garbage>,
    bells: Arc<messaging::Bells>,
}

impl Postgres {
    /// With the database at `dsn` for key-value, live configuration, blobs and messages, which is connected to when
    /// the first call needs it; without one, workloads have the databases they name, and nothing else.
    pub fn new(dsn: Option<&Dsn>) -> Self {
        let own = dsn.map(|dsn| {
            let database = Arc::new(database::Database::new(dsn));
            Own {
                live: config::Follower::new(database.clone()),
                garbage: Arc::new(garbage::Garbage::new(database.clone())),
                bells: Arc::new(messaging::Bells::new(database.clone())),
                database,
            }
        });
        Self {
            own,
            databases: sql::Databases::new(),
        }
    }

    fn own(&self, what: &'static str) -> Result<&Own, OpenError> {
        self.own.as_ref().ok_or(OpenError::NotOffered(what))
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
        let own = self.own("key-value, unless the host has --postgres-url")?;
        let store = keyvalue::Store::new(own.database.clone(), ask)?;
        Ok(Arc::new(store.bounded(&ask.settings)?))
    }

    /// Reads the settings `bucket`, `shared` and `create`.
    async fn config(&self, ask: &Ask<'_>) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let own = self.own("configuration, unless the host has --postgres-url")?;
        let bucket = ask.settings.required("bucket", "the name of a bucket")?;
        let store = keyvalue::Store::new(own.database.clone(), ask)?;
        match own.live.open(&store, bucket).await {
            Ok(copy) => Ok(copy),
            Err(error) => Err(OpenError::Storage(error.into())),
        }
    }

    /// Reads the settings `shared`, `create` and `max_object_bytes`.
    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        let scope = ask.scope()?;
        let create = ask.settings.boolean("create")?.unwrap_or(true);
        let bytes_max = blobs::bytes_max(&ask.settings)?;
        let own = self.own("blobs, unless the host has --postgres-url")?;
        Ok(Arc::new(blobstore::Store::new(
            own.database.clone(),
            own.garbage.clone(),
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
        let own = self.own("messaging, unless the host has --postgres-url")?;
        let (database, bells) = (own.database.clone(), own.bells.clone());
        let scope = ask.scope()?;
        Ok(Arc::new(messaging::Bus::new(database, bells, &scope)))
    }

    /// Reads the settings `url`, `user`, `password`, `database`, `ca`, `pool_size`, `wait_timeout`,
    /// `statement_timeout`, `max_rows` and `max_bytes`.
    async fn sql(&self, ask: &Ask<'_>) -> Result<Arc<dyn SqlDatabase>, OpenError> {
        self.databases.open(ask)
    }

    async fn run(&self) {
        let own = async {
            if let Some(own) = &self.own {
                tokio::join!(own.live.run(), own.bells.run());
            }
        };
        tokio::join!(self.databases.run(), own);
    }

    async fn close(&self) {
        self.databases.close();
        if let Some(own) = &self.own {
            own.garbage.forgotten().await;
            own.database.close().await;
        }
    }
}
