//! Live configuration: copies of buckets in memory that follow the buckets.
//!
//! Every change of a followed bucket is counted by the database (see `schema/followed.sql`). One statement
//! looks at the counts of all of them, several times a second; a bucket whose count is another than when it was
//! read is read again, as a whole. What was being written when a bucket was first followed is not counted:
//! until all of that has ended it is read at every look.

use capabilities::config::copy::{Copies, Copy, OpenError, Values};
use capabilities::config::{BYTES_MAX, KEYS_MAX};
use capabilities::keyvalue::KeyValueStore;
use capabilities::report;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use crate::OPERATION_TIMEOUT;
use crate::database::{Database, Result};
use crate::keyvalue::Store;

/// How often the counts are looked at while anybody reads a copy.
pub(crate) const LOOK: Duration = Duration::from_millis(250);

/// How often a bucket is read although nothing says that it has changed.
const READ_AGAIN: Duration = Duration::from_secs(60);

pub(crate) mod sql {
    pub(crate) const FOLLOW: &str = "\
        INSERT INTO washlet.followed (bucket) SELECT id FROM washlet.bucket WHERE name = ANY ($1) \
        ON CONFLICT (bucket) DO NOTHING";

    /// A row for each bucket that is there and followed; with which transactions have begun, and have ended.
    pub(super) const LOOK: &str = "\
        SELECT b.name, b.id, f.changes, txid_snapshot_xmax(s), txid_snapshot_xmin(s) \
        FROM washlet.bucket b JOIN washlet.followed f ON f.bucket = b.id, txid_current_snapshot() s \
        WHERE b.name = ANY ($1)";

    /// The first `$2` keys of the bucket `$1`, with as many values as `$3` bytes of both are.
    pub(super) const READ: &str = "\
        SELECT key, CASE WHEN bytes <= $3 THEN value END, extract(epoch FROM expires_at - now())::float8 \
        FROM (SELECT key, value, expires_at, \
        sum(octet_length(key) + octet_length(value)) OVER (ORDER BY key) AS bytes \
        FROM washlet.entry WHERE bucket = $1 AND (expires_at IS NULL OR expires_at > now()) \
        ORDER BY key LIMIT $2) e ORDER BY key";
}

/// Follows buckets of one database.
pub(crate) struct Follower {
    database: Arc<Database>,
    copies: Copies,
}

/// A copy and what is known of its bucket.
struct Followed {
    copy: Weak<Copy>,
    name: String,
    /// Which bucket was read, and its count then.
    read: Option<(i64, i64)>,
    read_at: Instant,
    /// When the first of what was read expires.
    expires: Option<Instant>,
    /// What had begun when it was first looked at: what ends before may be not counted.
    begun: Option<i64>,
    /// Whether it was read after all of that had ended.
    is_settled: bool,
    /// Whether all of it had room when it was read.
    is_whole: bool,
}

/// What a look finds of a bucket.
struct Seen {
    id: i64,
    changes: i64,
    /// All transactions below have begun ..
    begun: i64,
    /// .. and all below this one have ended.
    ended: i64,
}

impl Follower {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            copies: Copies::default(),
        }
    }

    /// The copy of the bucket that people call `bucket`, once it is complete.
    pub(crate) async fn open(&self, store: &Store, bucket: &str) -> Result<Arc<Copy>, OpenError> {
        let name = store.name(bucket).map_err(OpenError::Bucket)?;
        store.open(bucket).await.map_err(OpenError::Bucket)?;
        self.copies.open(&name, OPERATION_TIMEOUT).await
    }

    /// Follows every bucket that is opened, for ever; only once, the next time it returns.
    pub(crate) async fn run(&self) {
        let Some(mut to_follow) = self.copies.to_follow() else {
            return;
        };
        let mut followed = Vec::new();
        let mut is_away = false;
        loop {
            next(&mut followed, &mut to_follow).await;
            followed.retain(|one| one.copy.strong_count() > 0);
            let looked = self.look(&mut followed).await;
            if let Err(error) = &looked {
                let error = report(error);
                match is_away {
                    true => tracing::debug!(error, "live configuration is still away"),
                    false => tracing::warn!(
                        error,
                        "live configuration stays as it was until Postgres can be asked again"
                    ),
                }
            }
            is_away = looked.is_err();
        }
    }

    /// Reads again what has changed.
    async fn look(&self, followed: &mut [Followed]) -> Result<()> {
        let names = followed.iter().map(|one| one.name.clone());
        let names: BTreeSet<String> = names.collect();
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = names.into_iter().collect();
        if followed.iter().any(|one| one.begun.is_none()) {
            let follow = sqlx::query(sql::FOLLOW).bind(names.clone());
            self.database.row(follow).await?;
        }
        let look = sqlx::query(sql::LOOK).bind(names);
        let rows = self.database.rows(look, OPERATION_TIMEOUT).await?;
        let seen = rows.iter().map(Seen::read);
        let seen = seen.collect::<Result<BTreeMap<String, Seen>>>()?;
        for one in followed {
            match seen.get(&one.name) {
                Some(seen) if one.is_due(seen) => self.read(one, seen).await?,
                Some(_) => {}
                // Its bucket was removed. When it is made again, it is to be followed anew.
                None => one.begun = None,
            }
        }
        Ok(())
    }

    async fn read(&self, followed: &mut Followed, seen: &Seen) -> Result<()> {
        let Some(copy) = followed.copy.upgrade() else {
            return Ok(());
        };
        // One more, to know whether there are more.
        let [keys, bytes] =
            [KEYS_MAX + 1, BYTES_MAX].map(|max| i64::try_from(max).unwrap_or(i64::MAX));
        let read = sqlx::query(sql::READ).bind(seen.id).bind(keys).bind(bytes);
        let now = Instant::now();
        let rows = self.database.rows(read, OPERATION_TIMEOUT).await?;
        let (mut values, mut expires) = (Values::default(), None::<f64>);
        for row in &rows {
            let (key, value): (Vec<u8>, Option<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(seconds) = row.try_get::<Option<f64>, _>(2)? {
                expires = Some(expires.map_or(seconds, |least| least.min(seconds)));
            }
            match (String::from_utf8(key), value) {
                (Ok(key), Some(value)) => values.change(key, Some(value.into())),
                (Ok(_), None) => values.leave_out(),
                // Nobody could ask for it.
                (Err(_), _) => {}
            }
        }
        let was_whole = followed.is_whole;
        let whole = copy.complete(values);
        followed.is_whole = whole.is_ok();
        if let (true, Err(error)) = (was_whole, whole) {
            let bucket = copy.bucket();
            tracing::warn!(bucket, %error, "live configuration is not whole");
        }
        followed.is_settled = followed.has_ended(seen);
        followed.begun.get_or_insert(seen.begun);
        followed.read = Some((seen.id, seen.changes));
        followed.read_at = now;
        let expires = expires.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        followed.expires = expires.and_then(|after| now.checked_add(after));
        Ok(())
    }
}

/// Waits for the time to look, or for a copy that is to be followed.
async fn next(followed: &mut Vec<Followed>, to_follow: &mut Receiver<Weak<Copy>>) {
    let time = async {
        match followed.is_empty() {
            true => std::future::pending().await,
            false => tokio::time::sleep(LOOK).await,
        }
    };
    let copy = tokio::select! {
        Some(copy) = to_follow.recv() => Some(copy),
        () = time => None,
    };
    followed.extend(copy.as_ref().and_then(Followed::new));
    while let Ok(copy) = to_follow.try_recv() {
        followed.extend(Followed::new(&copy));
    }
}

impl Followed {
    /// Of a copy that somebody holds.
    fn new(copy: &Weak<Copy>) -> Option<Self> {
        Some(Self {
            name: copy.upgrade()?.bucket().to_owned(),
            copy: Weak::clone(copy),
            read: None,
            read_at: Instant::now(),
            expires: None,
            begun: None,
            is_settled: false,
            is_whole: true,
        })
    }

    /// Whether all has ended that had begun when it was first looked at.
    fn has_ended(&self, seen: &Seen) -> bool {
        self.begun.is_some_and(|begun| seen.ended >= begun)
    }

    /// Whether it is to be read.
    fn is_due(&self, seen: &Seen) -> bool {
        let now = Instant::now();
        self.read != Some((seen.id, seen.changes))
            || !self.is_settled
            || self.expires.is_some_and(|expires| expires <= now)
            || self.read_at + READ_AGAIN <= now
    }
}

impl Seen {
    fn read(row: &PgRow) -> Result<(String, Self)> {
        let seen = Self {
            id: row.try_get(1)?,
            changes: row.try_get(2)?,
            begun: row.try_get(3)?,
            ended: row.try_get(4)?,
        };
        Ok((row.try_get(0)?, seen))
    }
}
