//! A bounded pool of connections, in which nothing is spawned.
//!
//! sqlx's own gives a connection back by a task, which waits without limit for what a caller that went
//! away had begun: a server that fell silent would hold every place in the pool.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::database::{Error, Result};
use crate::{Dsn, OPERATION_TIMEOUT};

/// How many connections one host has at most; who finds all busy waits for a turn.
const CONNECTIONS_MAX: usize = 10;

/// How long a connection may lie idle before it is asked whether it still lives ..
const IDLE_UNCHECKED: Duration = Duration::from_secs(1);

/// .. and before it is of no use: what lies between may have forgotten it.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// How long a connection may take to say that it lives, what was begun on it included.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Whatever the database's defaults are, the statements are written for this; and what waits for a lock at
/// the server ends there, too, when nobody waits for it here.
const SESSION: &str = "\
    SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; \
    SET lock_timeout = '5s'";

/// Connections of one host to one database.
pub(crate) struct Pool {
    options: PgConnectOptions,
    turns: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: PgConnection,
    since: Instant,
    /// Whether all that was begun on it has ended.
    clean: bool,
}

impl Pool {
    pub(crate) fn new(dsn: &Dsn) -> Self {
        let mut options = dsn.0.clone().disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("washlet");
        }
        Self {
            options,
            turns: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that lives, as far as one can know.
    pub(crate) async fn lease(&self) -> Result<Lease<'_>> {
        let unavailable = |text: String| Error::Unavailable(text.into());
        let turn = timeout(OPERATION_TIMEOUT, self.turns.acquire()).await;
        let turn = match turn {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(unavailable("the host is stopping".to_owned())),
            Err(_) => {
                return Err(unavailable(format!(
                    "all {CONNECTIONS_MAX} connections were busy for {OPERATION_TIMEOUT:?}"
                )));
            }
        };
        let mut lease = Lease {
            pool: self,
            connection: None,
            clean: false,
            _turn: turn,
        };
        match timeout(OPERATION_TIMEOUT, lease.fill()).await {
            Ok(filled) => filled.map(|()| lease),
            Err(_) => Err(unavailable(format!(
                "no connection within {OPERATION_TIMEOUT:?}"
            ))),
        }
    }

    async fn connect(&self) -> Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        connection.execute(SESSION).await?;
        Ok(connection)
    }

    /// Ends the connections; those in use end when they are given back.
    pub(crate) async fn close(&self) {
        self.turns.close();
        let idle = std::mem::take(&mut *self.idle());
        for Idle { connection, .. } in idle {
            if !matches!(timeout(PING_TIMEOUT, connection.close()).await, Ok(Ok(()))) {
                tracing::debug!("a connection to Postgres was cut");
            }
        }
    }
}

/// A connection taken from the pool, and its place there.
pub(crate) struct Lease<'a> {
    pool: &'a Pool,
    connection: Option<PgConnection>,
    clean: bool,
    /// Given back after the connection, as fields are dropped after their struct.
    _turn: SemaphorePermit<'a>,
}

impl Lease<'_> {
    /// Takes an idle connection, or makes one.
    async fn fill(&mut self) -> Result<()> {
        loop {
            let Some(idle) = self.pool.idle().pop() else {
                self.connection = Some(self.pool.connect().await?);
                return Ok(());
            };
            let age = idle.since.elapsed();
            // Kept here, so that it is not lost with a caller that goes away.
            let connection = self.connection.insert(idle.connection);
            if age < IDLE_UNCHECKED && idle.clean {
                return Ok(());
            }
            let ping = timeout(PING_TIMEOUT, connection.ping()).await;
            if age < IDLE_MAX && matches!(ping, Ok(Ok(()))) {
                return Ok(());
            }
            self.connection = None;
        }
    }

    /// Does `work`, which is one statement, on it within `limit`; if that passes, the connection is cut.
    pub(crate) async fn limited<T>(
        &mut self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        let connection = self.connection.as_mut().ok_or_else(cut)?;
        match timeout(limit, work(connection)).await {
            Ok(done) => {
                self.clean = done.is_ok();
                done
            }
            Err(_) => {
                self.connection = None;
                Err(Error::Timeout(limit))
            }
        }
    }

    /// As [`limited`](Self::limited) for several statements: the connection is cut unless all succeed, and
    /// what they began ends with it.
    pub(crate) async fn together<T>(
        &mut self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection.take().ok_or_else(cut)?;
        let done = timeout(limit, work(&mut connection)).await;
        let done = done.unwrap_or(Err(Error::Timeout(limit)))?;
        self.connection = Some(connection);
        self.clean = true;
        Ok(done)
    }
}

fn cut() -> Error {
    Error::Unavailable("the connection was cut".into())
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if !self.pool.turns.is_closed() {
            self.pool.idle().push(Idle {
                connection,
                since: Instant::now(),
                clean: self.clean,
            });
        }
    }
}
