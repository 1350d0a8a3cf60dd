//! The keys of a bucket that change: the database notes the number of each key's last change (see
//! `schema/followed.sql`), and whoever watches asks for those above the last it has seen.

use capabilities::keyvalue::{Changes, WATCHES_MAX};
use capabilities::report;
use futures::stream;
use sqlx::Row;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::OPERATION_TIMEOUT;
use crate::config::{LOOK, sql as followed};
use crate::database::{Database, Error, Result};

/// How many changed keys are asked for at once.
const KEYS_MAX: i64 = 1_000;

/// How often a watch has notes deleted that are old.
const FORGET: Duration = Duration::from_secs(600);

mod sql {
    pub(super) const BEGIN: &str = "\
        SELECT b.id, f.changes FROM washlet.bucket b JOIN washlet.followed f ON f.bucket = b.id \
        WHERE b.name = $1";

    /// Those of the bucket `$1` after the change `$2` of the bucket `$3`, or of another made since.
    pub(super) const CHANGES: &str = "\
        SELECT c.key, c.number, c.bucket FROM washlet.changed c JOIN washlet.bucket b ON b.id = c.bucket \
        WHERE b.name = $1 AND (c.number > $2 OR c.bucket <> $3) ORDER BY c.number LIMIT $4";

    pub(super) const FORGET: &str = "\
        DELETE FROM washlet.changed c USING washlet.bucket b WHERE b.id = c.bucket AND b.name = $1 \
        AND c.changed_at < now() - interval '1 hour'";
}

/// Somebody who watches a bucket.
struct Watch {
    database: Arc<Database>,
    name: String,
    /// The bucket and its change that were seen last.
    seen: (i64, i64),
    keys: VecDeque<String>,
    forgot_at: Instant,
    _place: OwnedSemaphorePermit,
}

/// Watches the bucket called `name` by the database, if it is there.
pub(crate) async fn begin(database: Arc<Database>, name: String) -> Result<Option<Changes>> {
    let place = Arc::clone(&database.watches).try_acquire_owned();
    let place = place.map_err(|_| {
        Error::Internal(format!("this host watches {WATCHES_MAX} buckets already").into())
    })?;
    let follow = sqlx::query(followed::FOLLOW).bind(vec![name.clone()]);
    database.row(follow).await?;
    let begin = sqlx::query(sql::BEGIN).bind(name.clone());
    let Some(row) = database.row(begin).await? else {
        return Ok(None);
    };
    let watch = Watch {
        seen: (row.try_get(0)?, row.try_get(1)?),
        database,
        name,
        keys: VecDeque::new(),
        forgot_at: Instant::now(),
        _place: place,
    };
    Ok(Some(Box::pin(stream::unfold(watch, next))))
}

async fn next(mut watch: Watch) -> Option<(String, Watch)> {
    loop {
        if let Some(key) = watch.keys.pop_front() {
            return Some((key, watch));
        }
        tokio::time::sleep(LOOK).await;
        if let Err(error) = watch.look().await {
            let (bucket, error) = (&watch.name, report(&error));
            tracing::debug!(bucket, error, "a bucket cannot be watched");
        }
    }
}

impl Watch {
    async fn look(&mut self) -> Result<()> {
        let (bucket, number) = self.seen;
        let changes = sqlx::query(sql::CHANGES).bind(self.name.clone());
        let changes = changes.bind(number).bind(bucket).bind(KEYS_MAX);
        let rows = self.database.rows(changes, OPERATION_TIMEOUT).await?;
        for row in &rows {
            // Nobody could ask for one that is no text.
            if let Ok(key) = String::from_utf8(row.try_get(0)?) {
                self.keys.push_back(key);
            }
            self.seen = (row.try_get(2)?, row.try_get(1)?);
        }
        if self.forgot_at.elapsed() > FORGET {
            self.forgot_at = Instant::now();
            let forget = sqlx::query(sql::FORGET).bind(self.name.clone());
            self.database.row(forget).await?;
            // A bucket that was made anew is to be followed anew.
            let follow = sqlx::query(followed::FOLLOW).bind(vec![self.name.clone()]);
            self.database.row(follow).await?;
        }
        Ok(())
    }
}
