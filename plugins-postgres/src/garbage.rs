//! Deletes contents that are nobody's: replaced, deleted, or never finished.

use sqlx::Row;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::OPERATION_TIMEOUT;
use crate::database::{Database, Result};

/// How many chunks one statement deletes.
const CHUNKS: i64 = 256;

/// How long one caller goes on deleting; the rest is left to the next.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many unfinished contents are remembered; those beyond expire after an hour.
const FORGOTTEN_MAX: usize = 1024;

mod sql {
    pub(super) const EXPIRE: &str = "\
        UPDATE washlet.content SET expires_at = now() WHERE id = ANY ($1) AND expires_at IS NOT NULL";

    /// Deletes `$1` chunks of one content, and the content with its last; no row when none has expired.
    pub(super) const COLLECT: &str = "\
        WITH gone AS (SELECT id FROM washlet.content WHERE expires_at <= now() \
        ORDER BY expires_at LIMIT 1 FOR UPDATE SKIP LOCKED), \
        part AS (SELECT k.content, k.at FROM washlet.chunk k JOIN gone ON k.content = gone.id \
        ORDER BY k.at LIMIT $1), \
        dead AS (DELETE FROM washlet.chunk k USING part WHERE k.content = part.content AND k.at = part.at), \
        empty AS (DELETE FROM washlet.content c USING gone \
        WHERE c.id = gone.id AND (SELECT count(*) FROM part) < $1) \
        SELECT id FROM gone";
}

/// What is to be deleted.
pub(crate) struct Garbage {
    database: Arc<Database>,
    /// Contents that writers of this host left unfinished.
    forgotten: Mutex<Vec<i64>>,
}

impl Garbage {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            forgotten: Mutex::default(),
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<i64>> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, content: i64) {
        let mut list = self.list();
        if list.len() < FORGOTTEN_MAX {
            list.push(content);
        }
    }

    /// Deletes what has expired, for a while. It is nobody's, so that a failure is nobody's either.
    pub(crate) async fn collect(&self) {
        if let Err(error) = self.try_collect().await {
            let error = capabilities::report(&error);
            tracing::debug!(error, "chunks that are nobody's stay for now");
        }
    }

    /// As [`collect`](Self::collect), if a writer of this host left something.
    pub(crate) async fn forgotten(&self) {
        if !self.list().is_empty() {
            self.collect().await;
        }
    }

    async fn try_collect(&self) -> Result<()> {
        let unfinished = self.list().clone();
        if !unfinished.is_empty() {
            let expire = sqlx::query(sql::EXPIRE).bind(unfinished.clone());
            self.database.row(expire).await?;
            self.list().retain(|content| !unfinished.contains(content));
        }
        let end = Instant::now() + COLLECT_TIMEOUT;
        while Instant::now() < end {
            let collect = sqlx::query(sql::COLLECT).bind(CHUNKS);
            let rows = self.database.rows(collect, 2 * OPERATION_TIMEOUT).await?;
            match rows.first() {
                Some(row) => tracing::trace!(content = row.try_get::<i64, _>(0)?, "deleted chunks"),
                None => break,
            }
        }
        Ok(())
    }
}

/// A content being written; dropped before it is an object's, it is deleted with the next write or delete.
pub(crate) struct Claim {
    garbage: Arc<Garbage>,
    pub(crate) content: i64,
    fulfilled: bool,
}

impl Claim {
    pub(crate) fn new(garbage: Arc<Garbage>, content: i64) -> Self {
        Self {
            garbage,
            content,
            fulfilled: false,
        }
    }

    /// It is an object's now.
    pub(crate) fn fulfilled(mut self) {
        self.fulfilled = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.fulfilled {
            self.garbage.forget(self.content);
        }
    }
}
