//! One database: its schema, its statements and their errors.

use capabilities::{BoxError, blobstore, keyvalue, messaging};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};

use crate::pool::Pool;
use crate::{Dsn, OPERATION_TIMEOUT, schema};

/// How long the schema may take to be ready.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent to the server.
pub(crate) type Statement = Query<'static, sqlx::Postgres, PgArguments>;

/// One database, in which the schema is looked after when the first statement comes.
pub(crate) struct Database {
    pool: Pool,
    schema: OnceCell<()>,
    /// Places of those who watch a bucket.
    pub(crate) watches: Arc<Semaphore>,
}

impl Database {
    pub(crate) fn new(dsn: &Dsn) -> Self {
        Self {
            pool: Pool::new(dsn),
            schema: OnceCell::new(),
            watches: Arc::new(Semaphore::new(keyvalue::WATCHES_MAX)),
        }
    }

    /// The rows that `statement` gives, within `limit` once there is a connection.
    pub(crate) async fn rows(&self, statement: Statement, limit: Duration) -> Result<Vec<PgRow>> {
        self.ready().await?;
        let mut lease = self.pool.lease().await?;
        let rows = lease.limited(limit, async |connection| {
            Ok(statement.fetch_all(connection).await?)
        });
        rows.await
    }

    /// The one row that `statement` gives, if it does, within the usual limit.
    pub(crate) async fn row(&self, statement: Statement) -> Result<Option<PgRow>> {
        let rows = self.rows(statement, OPERATION_TIMEOUT).await?;
        Ok(rows.into_iter().next())
    }

    /// Returns when the schema is as this version needs it.
    async fn ready(&self) -> Result<()> {
        if self.schema.initialized() {
            return Ok(());
        }
        // Many may wait here, each to try in its turn: all together, no longer than this.
        let ready = self.schema.get_or_try_init(|| async {
            let mut lease = self.pool.lease().await?;
            lease.together(SCHEMA_TIMEOUT, schema::migrate).await
        });
        match tokio::time::timeout(SCHEMA_TIMEOUT, ready).await {
            Ok(ready) => ready.map(drop),
            Err(_) => {
                let text = format!("the schema was not ready within {SCHEMA_TIMEOUT:?}");
                Err(Error::Unavailable(text.into()))
            }
        }
    }

    /// Ends the connections.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Why a statement failed. No text names the server, the role or the database.
#[derive(thiserror::Error, Debug)]
pub(crate) enum Error {
    #[error("access denied")]
    AccessDenied,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("Postgres is unavailable")]
    Unavailable(#[source] BoxError),
    /// What is named in a statement went away meanwhile.
    #[error("a row that is referred to does not exist")]
    NoReference,
    #[error("a number is out of range")]
    OutOfRange,
    #[error("Postgres error")]
    Internal(#[source] BoxError),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = |text: &str| Self::Unavailable(text.into());
        let error = match error {
            sqlx::Error::Database(error) => error,
            error @ (sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed) => return Self::Unavailable(error.into()),
            error => return Self::Internal(error.into()),
        };
        let code = error.code().unwrap_or_default().into_owned();
        let class = code.get(..2).unwrap_or_default();
        match (class, code.as_str()) {
            ("28", _) => {
                tracing::warn!("Postgres refused the credentials of --postgres-url");
                Self::AccessDenied
            }
            (_, "42501") => {
                tracing::warn!(%error, "the role of --postgres-url may not do what is needed: {REMEDY}");
                Self::AccessDenied
            }
            ("3D", _) => unavailable("the database named by --postgres-url does not exist"),
            (_, "53300") => unavailable("the server has no connection left for this host"),
            (_, "25006") => unavailable("the server is a standby, which takes no writes"),
            (_, "23503") => Self::NoReference,
            (_, "22003") => Self::OutOfRange,
            ("08" | "40" | "53" | "55" | "57" | "58", _) => Self::Unavailable(error.into()),
            _ => Self::Internal(error.into()),
        }
    }
}

const REMEDY: &str = "grant it CREATE on the database, or make it the owner of a schema 'washlet'";

impl From<Error> for keyvalue::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::AccessDenied => Self::AccessDenied,
            Error::Timeout(limit) => Self::Timeout(limit),
            Error::Unavailable(source) => Self::Unavailable(source),
            Error::OutOfRange => Self::Overflow,
            Error::Internal(source) => Self::Internal(source),
            error @ Error::NoReference => Self::Internal(error.into()),
        }
    }
}

impl From<Error> for blobstore::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::AccessDenied => Self::AccessDenied,
            Error::Timeout(limit) => Self::Timeout(limit),
            Error::Unavailable(source) => Self::Unavailable(source),
            Error::Internal(source) => Self::Internal(source),
            error @ (Error::NoReference | Error::OutOfRange) => Self::Internal(error.into()),
        }
    }
}

impl From<Error> for messaging::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::AccessDenied => Self::AccessDenied,
            Error::Timeout(limit) => Self::Timeout(limit),
            Error::Unavailable(source) => Self::Unavailable(source),
            error => Self::Internal(error.into()),
        }
    }
}
