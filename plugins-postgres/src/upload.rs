//! Writes one object, a chunk at a time, and lets it be seen when it is whole.

use bytes::Bytes;
use capabilities::blobstore::{ByteStream, Error, ObjectId, Result, chunks};
use futures::StreamExt;
use std::sync::Arc;

use crate::blobstore::value;
use crate::database::{self, Database, Statement};
use crate::garbage::{Claim, Garbage};

/// How many bytes one row has.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// Every statement gives no row when the container `$1` is absent.
mod sql {
    /// All of an object that is one chunk at most.
    pub(super) const WHOLE: &str = "\
        WITH c AS (SELECT id FROM washlet.container WHERE name = $1), \
        n AS (INSERT INTO washlet.content (expires_at) SELECT NULL::timestamptz FROM c RETURNING id), \
        k AS (INSERT INTO washlet.chunk (content, at, bytes) \
        SELECT id, 0, $3 FROM n WHERE octet_length($3) > 0), \
        o AS (INSERT INTO washlet.object (container, name, content, size) \
        SELECT c.id, $2, n.id, octet_length($3) FROM c, n \
        ON CONFLICT (container, name) DO UPDATE SET content = excluded.content, \
        size = excluded.size, created_at = excluded.created_at) \
        SELECT 1 FROM c";

    /// Who writes has an hour for each chunk.
    pub(super) const BEGIN: &str = "\
        WITH c AS (SELECT id FROM washlet.container WHERE name = $1) \
        INSERT INTO washlet.content (expires_at) SELECT now() + interval '1 hour' FROM c RETURNING id";

    /// Of the content `$1`; no row when it has expired. It need not be on disk before the last statement,
    /// which waits for all that was written before it.
    pub(super) const CHUNK: &str = "\
        WITH n AS (UPDATE washlet.content SET expires_at = now() + interval '1 hour' \
        WHERE id = $1 AND expires_at > now() RETURNING id) \
        INSERT INTO washlet.chunk (content, at, bytes) \
        SELECT id, $2, $3 FROM n, set_config('synchronous_commit', 'off', true) RETURNING at";

    /// NULL when the content has expired.
    pub(super) const FINISH: &str = "\
        WITH c AS (SELECT id FROM washlet.container WHERE name = $1), \
        n AS (UPDATE washlet.content n SET expires_at = NULL FROM c \
        WHERE n.id = $3 AND n.expires_at > now() RETURNING n.id), \
        o AS (INSERT INTO washlet.object (container, name, content, size) \
        SELECT c.id, $2, n.id, $4 FROM c, n \
        ON CONFLICT (container, name) DO UPDATE SET content = excluded.content, \
        size = excluded.size, created_at = excluded.created_at) \
        SELECT (SELECT id FROM n) FROM c";
}

/// Replaces `object` of the container that the storage calls `name`.
pub(crate) async fn write(
    database: &Arc<Database>,
    garbage: &Arc<Garbage>,
    name: String,
    object: ObjectId<'_>,
    body: ByteStream,
    bytes_max: u64,
) -> Result<()> {
    let row = async |statement: Statement| match database.row(statement).await {
        Ok(Some(row)) => Ok(row),
        // The container was deleted while this was written to it.
        Ok(None) | Err(database::Error::NoReference) => {
            Err(Error::NoSuchContainer(object.container.to_owned()))
        }
        Err(error) => Err(error.into()),
    };
    let mut size = 0;
    let mut chunks = chunks(body, CHUNK_BYTES);
    let mut next = async || {
        let chunk = chunks.next().await.transpose().map_err(Error::Body)?;
        size += chunk.as_ref().map_or(0, Bytes::len) as u64;
        match size > bytes_max {
            true => Err(Error::TooLarge { bytes_max }),
            false => Ok(chunk),
        }
    };
    let first = next().await?.unwrap_or_default();
    let second = match first.len() == CHUNK_BYTES {
        true => next().await?,
        false => None,
    };
    let Some(second) = second else {
        let whole = sqlx::query(sql::WHOLE).bind(name);
        let whole = whole.bind(object.object.as_bytes()).bind(&*first);
        return row(whole).await.map(drop);
    };
    let begin = row(sqlx::query(sql::BEGIN).bind(name.clone())).await?;
    let claim = Claim::new(garbage.clone(), value(&begin, 0)?);
    let mut at = 0_i64;
    let mut store = async |chunk: Bytes| {
        let statement = sqlx::query(sql::CHUNK).bind(claim.content).bind(at);
        let stored = database.row(statement.bind(&*chunk)).await?;
        at += chunk.len() as i64;
        stored.map(drop).ok_or_else(expired)
    };
    store(first).await?;
    store(second).await?;
    while let Some(chunk) = next().await? {
        store(chunk).await?;
    }
    let finish = sqlx::query(sql::FINISH).bind(name);
    let finish = finish.bind(object.object.as_bytes());
    let finished = row(finish.bind(claim.content).bind(at)).await?;
    value::<Option<i64>>(&finished, 0)?.ok_or_else(expired)?;
    claim.fulfilled();
    Ok(())
}

fn expired() -> Error {
    Error::Unavailable(
        "no part of the object came for an hour, so that its chunks were deleted".into(),
    )
}
