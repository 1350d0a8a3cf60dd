//! `SqlDatabase`: each call has a session of its own, from the first message to the last.

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use capabilities::sql::{Error, Result, Row, Rows, SqlDatabase, Value};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use super::session::{self, Column, Event};
use super::sessions::{Lease, Pool};

/// How much longer than the server the host waits for the end of a statement, which may have lifted its limit.
const GRACE: Duration = Duration::from_secs(2);

/// Prepared statements of one component: how many, and how long together, in bytes.
const STATEMENTS_MAX: usize = 256;
const STATEMENTS_BYTES_MAX: usize = 4 << 20;

/// The database of one entry, as one component sees it.
pub(super) struct Database {
    pool: Arc<Pool>,
    prepared: Mutex<Prepared>,
}

/// Statements by their tokens; the one used longest ago is first.
#[derive(Default)]
struct Prepared {
    statements: VecDeque<(String, Arc<str>)>,
    bytes: usize,
}

impl Prepared {
    fn find(&mut self, token: &str) -> Option<Arc<str>> {
        let found = self.statements.iter().position(|(known, _)| known == token);
        let found = self.statements.remove(found?)?;
        let statement = Arc::clone(&found.1);
        self.statements.push_back(found);
        Some(statement)
    }

    fn add(&mut self, token: String, statement: &str) {
        if self.find(&token).is_some() {
            return;
        }
        self.bytes += statement.len();
        self.statements.push_back((token, statement.into()));
        while self.statements.len() > STATEMENTS_MAX || self.bytes > STATEMENTS_BYTES_MAX {
            match self.statements.pop_front() {
                Some((_, statement)) => self.bytes -= statement.len(),
                None => break,
            }
        }
    }
}

/// A call under way: its session, and when it must be done.
struct Call {
    lease: Lease,
    deadline: Instant,
    limit: Duration,
}

impl Call {
    async fn begin(pool: &Arc<Pool>) -> Result<Self> {
        let lease = pool.lease().await?;
        let limit = pool.server().statement;
        Ok(Self {
            lease,
            deadline: Instant::now() + limit + GRACE,
            limit,
        })
    }

    async fn limited<T>(
        deadline: Instant,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let done = timeout_at(deadline, work).await;
        done.unwrap_or(Err(Error::Timeout(limit)))
    }

    async fn event(&mut self) -> Result<Event> {
        let (deadline, limit) = (self.deadline, self.limit);
        Self::limited(deadline, limit, self.lease.session()?.event()).await
    }

    /// Waits for the end of what was begun, and gives the session back; how many rows were affected.
    async fn finish(mut self, mut outcome: Result<u64>) -> Result<u64> {
        loop {
            match self.event().await? {
                Event::Ready => break,
                Event::Failed(error) => outcome = Err(error),
                Event::Done(count) => outcome = outcome.map(|_| count),
                Event::Columns(_) | Event::Row(_) => {}
            }
        }
        let left_open = self.lease.session()?.in_transaction();
        self.lease.give_back().await;
        match outcome {
            Ok(_) if left_open => Err(Error::InvalidQuery(
                "it left a transaction open, which was rolled back: a call has a connection of its own; \
                 use one query-batch from BEGIN to COMMIT"
                    .to_owned(),
            )),
            outcome => outcome,
        }
    }
}

impl Database {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            prepared: Mutex::default(),
        }
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `begin` send something, within the time of a call.
    async fn call(
        &self,
        begin: impl AsyncFnOnce(&mut session::Session) -> Result<()>,
    ) -> Result<Call> {
        let mut call = Call::begin(&self.pool).await?;
        let (deadline, limit) = (call.deadline, call.limit);
        let sent = Call::limited(deadline, limit, begin(call.lease.session()?)).await;
        match sent {
            Ok(()) => Ok(call),
            // Nothing was sent: the session is as it was.
            Err(error @ (Error::InvalidParams(_) | Error::InvalidQuery(_))) => {
                call.lease.give_back().await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}

/// Rows that were begun: the call, the columns, and what came first.
struct Rest {
    call: Call,
    columns: Vec<Column>,
    first: Option<bytes::Bytes>,
    bytes_max: usize,
}

impl Rest {
    /// The next row, or none at the end.
    async fn next(mut self) -> Option<(Result<Row>, Option<Self>)> {
        let event = match self.first.take() {
            Some(row) => Ok(Event::Row(row)),
            None => self.call.event().await,
        };
        let outcome = match event {
            Ok(Event::Row(row)) => {
                let values = session::values(&self.columns, row, self.bytes_max);
                return Some(match values {
                    Ok((values, bytes)) => (Ok(Row { values, bytes }), Some(self)),
                    Err(error) => (Err(error), None),
                });
            }
            Ok(Event::Done(count)) => self.call.finish(Ok(count)).await,
            Ok(Event::Failed(error)) => self.call.finish(Err(error)).await,
            Ok(Event::Columns(_) | Event::Ready) => return None,
            Err(error) => Err(error),
        };
        outcome.err().map(|error| (Err(error), None))
    }

    fn stream(self) -> BoxStream<'static, Result<Row>> {
        stream::unfold(Some(self), |rest: Option<Self>| async {
            rest?.next().await
        })
        .boxed()
    }
}

#[async_trait]
impl SqlDatabase for Database {
    async fn query(&self, statement: &str, params: Vec<Value>) -> Result<Rows> {
        let mut call = self
            .call(async |session| session.run(statement, &params).await)
            .await?;
        drop(params);
        let limits = self.pool.server().limits;
        let mut columns = Vec::new();
        let (columns, rows) = loop {
            let outcome = match call.event().await? {
                Event::Columns(found) => {
                    columns = found;
                    continue;
                }
                Event::Row(row) => {
                    let rest = Rest {
                        call,
                        columns,
                        first: Some(row),
                        bytes_max: limits.bytes,
                    };
                    let names = rest.columns.iter().map(|column| column.name.clone());
                    break (names.collect(), rest.stream());
                }
                Event::Done(count) => Ok(count),
                Event::Failed(error) => Err(error),
                Event::Ready => continue,
            };
            call.finish(outcome).await?;
            let names = columns.into_iter().map(|column| column.name);
            break (names.collect(), stream::empty().boxed());
        };
        Ok(Rows {
            columns,
            rows,
            limits,
        })
    }

    async fn batch(&self, statements: &str) -> Result<()> {
        let begun = self.call(async |session| session.batch(statements).await);
        begun.await?.finish(Ok(0)).await.map(drop)
    }

    async fn prepare(&self, statement: &str) -> Result<String> {
        if statement.len() > STATEMENTS_BYTES_MAX / 16 {
            return Err(Error::InvalidQuery(format!(
                "a prepared statement has at most {} bytes",
                STATEMENTS_BYTES_MAX / 16
            )));
        }
        let begun = self.call(async |session| session.check(statement).await);
        begun.await?.finish(Ok(0)).await?;
        let hash = digest(&SHA256, statement.as_bytes());
        let token: String = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.prepared().add(token.clone(), statement);
        Ok(token)
    }

    async fn execute(&self, token: &str, params: Vec<Value>) -> Result<u64> {
        let statement = self.prepared().find(token);
        let statement = statement.ok_or(Error::UnknownStatement)?;
        let begun = self.call(async |session| session.run(&statement, &params).await);
        begun.await?.finish(Ok(0)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_used_longest_ago_is_forgotten() {
        let mut prepared = Prepared::default();
        for n in 0..STATEMENTS_MAX {
            prepared.add(n.to_string(), "SELECT");
        }
        assert!(prepared.find("0").is_some());
        prepared.add("more".to_owned(), "SELECT");
        assert!(prepared.find("0").is_some() && prepared.find("1").is_none());
        prepared.add("large".to_owned(), &"x".repeat(STATEMENTS_BYTES_MAX));
        assert_eq!(prepared.statements.len(), 1);
        assert_eq!(prepared.bytes, STATEMENTS_BYTES_MAX);
    }
}
