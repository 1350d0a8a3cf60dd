//! Keys and values in rows, each call one statement.

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::keyvalue::{
    Changes, Entry, Error, Guard, KeyRange, KeyValueStore, Page, Put, Result, VALUE_BYTES_MAX,
    Version, check_key, check_value, counter, ttl, ttl_seconds, value_bytes_max,
};
use capabilities::names;
use capabilities::plugin::{Ask, OpenError, Scope, Settings};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::database::{self, Database, Statement};
use crate::listing::{self, LISTING_TIMEOUT};
use crate::watch;

/// Of so many values with a ttl, the first deletes what has expired ..
const SWEEP_EVERY: u32 = 64;

/// .. at most so many rows, which is more than these values can become.
const SWEEP_ROWS: i64 = 256;

/// How long one caller of a counter tries while its value is no counter one time and gone the next.
const INCREMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Every statement gives no row when the bucket `$1` is absent.
mod sql {
    pub(super) const OPEN: &str = "\
        INSERT INTO washlet.bucket (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";

    pub(super) const IS_THERE: &str = "SELECT 1 FROM washlet.bucket WHERE name = $1";

    pub(super) const GET: &str = "\
        SELECT e.value, e.version FROM washlet.bucket b LEFT JOIN washlet.entry e \
        ON e.bucket = b.id AND e.key = $2 AND (e.expires_at IS NULL OR e.expires_at > now()) \
        WHERE b.name = $1";

    macro_rules! insert {
        ($condition:literal) => {
            concat!(
                "WITH b AS (SELECT id FROM washlet.bucket WHERE name = $1), \
                 w AS (INSERT INTO washlet.entry AS e (bucket, key, value, version, expires_at) \
                 SELECT id, $2, $3, nextval('washlet.version'), now() + make_interval(secs => $4) FROM b \
                 ON CONFLICT (bucket, key) DO UPDATE SET value = excluded.value, \
                 version = nextval('washlet.version'), expires_at = excluded.expires_at",
                $condition,
                " RETURNING version) SELECT (SELECT version FROM w) FROM b"
            )
        };
    }

    pub(super) const PUT: &str = insert!("");

    pub(super) const PUT_ABSENT: &str = insert!(" WHERE e.expires_at <= now()");

    pub(super) const PUT_VERSION: &str = "\
        WITH b AS (SELECT id FROM washlet.bucket WHERE name = $1), \
        w AS (UPDATE washlet.entry e SET value = $3, version = nextval('washlet.version'), \
        expires_at = now() + make_interval(secs => $4) FROM b \
        WHERE e.bucket = b.id AND e.key = $2 AND e.version = $5 \
        AND (e.expires_at IS NULL OR e.expires_at > now()) RETURNING e.version) \
        SELECT (SELECT version FROM w) FROM b";

    pub(super) const DELETE: &str = "\
        WITH b AS (SELECT id FROM washlet.bucket WHERE name = $1), \
        d AS (DELETE FROM washlet.entry e USING b WHERE e.bucket = b.id AND e.key = $2) \
        SELECT 1 FROM b";

    pub(super) const KEYS: &str = "\
        SELECT e.key FROM washlet.bucket b LEFT JOIN LATERAL \
        (SELECT key FROM washlet.entry WHERE bucket = b.id AND key >= $2 AND key < $3 \
        AND (expires_at IS NULL OR expires_at > now()) ORDER BY key LIMIT $4) e ON true \
        WHERE b.name = $1 ORDER BY e.key";

    /// Nothing is written, and NULL given, when the value is no counter.
    pub(super) const INCREMENT: &str = "\
        WITH b AS (SELECT id FROM washlet.bucket WHERE name = $1), \
        w AS (INSERT INTO washlet.entry AS e (bucket, key, value, version, expires_at) \
        SELECT id, $2, int8send($3), nextval('washlet.version'), now() + make_interval(secs => $4) FROM b \
        ON CONFLICT (bucket, key) DO UPDATE SET value = CASE WHEN e.expires_at <= now() \
        THEN excluded.value ELSE int8send(('x' || encode(e.value, 'hex'))::bit(64)::bigint + $3) END, \
        version = nextval('washlet.version'), expires_at = excluded.expires_at \
        WHERE octet_length(e.value) = 8 OR e.expires_at <= now() RETURNING value) \
        SELECT (SELECT value FROM w) FROM b";

    pub(super) const SWEEP: &str = "\
        DELETE FROM washlet.entry WHERE ctid = ANY (ARRAY(SELECT ctid FROM washlet.entry \
        WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))";
}

/// One view of the buckets: that of who asked.
pub(crate) struct Store {
    database: Arc<Database>,
    scope: Scope,
    /// Whether absent buckets are made.
    create: bool,
    /// The largest value that is written.
    value_bytes_max: usize,
    /// How long values live that are written without a ttl of their own.
    ttl: Option<Duration>,
    /// Values written with a ttl.
    expiring: AtomicU32,
}

impl Store {
    /// Reads the settings `shared` and `create`; values are as large as can be, and stay.
    pub(crate) fn new(database: Arc<Database>, ask: &Ask<'_>) -> Result<Self, OpenError> {
        Ok(Self {
            database,
            scope: ask.scope()?,
            create: ask.settings.boolean("create")?.unwrap_or(true),
            value_bytes_max: VALUE_BYTES_MAX,
            ttl: None,
            expiring: AtomicU32::new(0),
        })
    }

    /// Reads the settings `max_value_bytes` and `ttl`, too.
    pub(crate) fn bounded(self, settings: &Settings<'_>) -> Result<Self, OpenError> {
        Ok(Self {
            value_bytes_max: value_bytes_max(settings)?,
            ttl: ttl(settings)?,
            ..self
        })
    }

    /// In seconds, as a statement takes it.
    fn ttl(&self, own: Option<Duration>) -> Result<Option<f64>> {
        let seconds = own.or(self.ttl).map(ttl_seconds).transpose()?;
        Ok(seconds.map(|seconds| seconds as f64))
    }

    pub(crate) fn name(&self, bucket: &str) -> Result<String> {
        names::bucket(&self.scope, bucket).map_err(|e| Error::InvalidArgument(e.to_string()))
    }

    /// The row of a statement, which has one unless the bucket is absent.
    async fn row(&self, bucket: &str, statement: Statement) -> Result<PgRow> {
        let row = self.database.row(statement).await?;
        row.ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))
    }

    /// Deletes some of what has expired: it is seen by nobody, and takes room.
    async fn sweep(&self) {
        let before = self.expiring.fetch_add(1, Ordering::Relaxed);
        if !before.is_multiple_of(SWEEP_EVERY) {
            return;
        }
        if let Err(error) = self
            .database
            .row(sqlx::query(sql::SWEEP).bind(SWEEP_ROWS))
            .await
        {
            tracing::debug!(
                error = capabilities::report(&error),
                "expired keys stay for now"
            );
        }
    }
}

fn value<'r, T>(row: &'r PgRow, column: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get(column).map_err(database::Error::from)?)
}

fn version(version: i64) -> Version {
    Version(version.unsigned_abs())
}

#[async_trait]
impl KeyValueStore for Store {
    async fn open(&self, bucket: &str) -> Result<()> {
        let name = self.name(bucket)?;
        let is_there = sqlx::query(sql::IS_THERE).bind(name.clone());
        match self.row(bucket, is_there).await {
            Err(Error::NoSuchBucket(_)) if self.create => {
                self.database.row(sqlx::query(sql::OPEN).bind(name)).await?;
                Ok(())
            }
            found => found.map(drop),
        }
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let get = sqlx::query(sql::GET).bind(self.name(bucket)?);
        let row = self.row(bucket, get.bind(key.as_bytes())).await?;
        let Some(bytes) = value::<Option<Vec<u8>>>(&row, 0)? else {
            return Ok(None);
        };
        Ok(Some(Entry {
            value: Bytes::from(bytes),
            version: version(value(&row, 1)?),
        }))
    }

    async fn put(&self, bucket: &str, put: Put<'_>) -> Result<Option<Version>> {
        check_key(put.key)?;
        check_value(&put.value, self.value_bytes_max)?;
        let name = self.name(bucket)?;
        let ttl = self.ttl(put.ttl)?;
        let (statement, guard) = match put.guard {
            Guard::Any => (sql::PUT, None),
            Guard::Absent => (sql::PUT_ABSENT, None),
            // One that is out of range is nobody's, as is 0.
            Guard::Version(Version(version)) => {
                (sql::PUT_VERSION, Some(i64::try_from(version).unwrap_or(0)))
            }
        };
        let mut statement = sqlx::query(statement)
            .bind(name)
            .bind(put.key.as_bytes())
            .bind(&*put.value)
            .bind(ttl);
        if let Some(version) = guard {
            statement = statement.bind(version);
        }
        let row = self.row(bucket, statement).await?;
        if ttl.is_some() {
            self.sweep().await;
        }
        Ok(value::<Option<i64>>(&row, 0)?.map(version))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        check_key(key)?;
        let delete = sqlx::query(sql::DELETE).bind(self.name(bucket)?);
        self.row(bucket, delete.bind(key.as_bytes()))
            .await
            .map(drop)
    }

    async fn watch(&self, bucket: &str) -> Result<Changes> {
        let name = self.name(bucket)?;
        let changes = watch::begin(self.database.clone(), name).await?;
        changes.ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))
    }

    async fn keys(&self, bucket: &str, range: KeyRange<'_>) -> Result<Page> {
        let (from, to, limit) = listing::bounds(&range);
        let keys = sqlx::query(sql::KEYS).bind(self.name(bucket)?);
        let keys = keys.bind(from).bind(to).bind(limit);
        let rows = self.database.rows(keys, LISTING_TIMEOUT).await?;
        let page = listing::page(&rows, range.limit)?;
        page.ok_or_else(|| Error::NoSuchBucket(bucket.to_owned()))
    }

    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64> {
        check_key(key)?;
        let name = self.name(bucket)?;
        let ttl = self.ttl(None)?;
        let end = Instant::now() + INCREMENT_TIMEOUT;
        while Instant::now() < end {
            let add = sqlx::query(sql::INCREMENT).bind(name.clone());
            let add = add.bind(key.as_bytes()).bind(delta).bind(ttl);
            let row = self.row(bucket, add).await?;
            if ttl.is_some() {
                self.sweep().await;
            }
            if let Some(sum) = value::<Option<Vec<u8>>>(&row, 0)? {
                return counter::decode(&sum);
            }
            // Somebody may have made a counter of it since.
            if let Some(entry) = self.get(bucket, key).await? {
                counter::decode(&entry.value)?;
            }
        }
        Err(Error::Timeout(INCREMENT_TIMEOUT))
    }
}
