//! Reads one object, a chunk when it is asked for.

use bytes::Bytes;
use capabilities::blobstore::{Content, Error, OBJECT_BYTES_MAX, ObjectId, Result, clamp};
use futures::stream;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::blobstore::value;
use crate::database::Database;
use crate::upload::CHUNK_BYTES;

mod sql {
    /// What is known of the object `$2`, with its first bytes from `$3`, at most `$4`: of one moment, so that
    /// what is small is read whole while it is replaced.
    pub(super) const FIRST: &str = "\
        SELECT o.content, o.size, (SELECT substring(k.bytes FROM ($3 - k.at + 1)::integer FOR $4) \
        FROM washlet.chunk k WHERE k.content = o.content AND k.at <= $3 ORDER BY k.at DESC LIMIT 1) \
        FROM washlet.container c LEFT JOIN washlet.object o ON o.container = c.id AND o.name = $2 \
        WHERE c.name = $1";

    /// The bytes of the content `$1` from `$2`, at most `$3` and at most to the end of a chunk.
    pub(super) const NEXT: &str = "\
        SELECT substring(bytes FROM ($2 - at + 1)::integer FOR $3) \
        FROM washlet.chunk WHERE content = $1 AND at <= $2 ORDER BY at DESC LIMIT 1";

    pub(super) const IS_LIVE: &str = "\
        SELECT 1 FROM washlet.content WHERE id = $1 AND expires_at IS NULL";
}

/// A body on its way.
struct Reading {
    database: Arc<Database>,
    object: String,
    content: i64,
    /// What came with the first statement.
    first: Option<Bytes>,
    at: u64,
    end: u64,
}

/// The bytes of `object` in `range`, in the container that the storage calls `name`.
pub(crate) async fn read(
    database: &Arc<Database>,
    name: String,
    object: ObjectId<'_>,
    range: &RangeInclusive<u64>,
) -> Result<Content> {
    // No object is larger, so what lies beyond is as good as what lies far beyond.
    let (start, end) = clamp(range, OBJECT_BYTES_MAX);
    let first = sqlx::query(sql::FIRST).bind(name);
    let first = first.bind(object.object.as_bytes());
    let row = database
        .row(first.bind(start.cast_signed()).bind(some(end - start)))
        .await?
        .ok_or_else(|| Error::NoSuchContainer(object.container.to_owned()))?;
    let content = value::<Option<i64>>(&row, 0)?
        .ok_or_else(|| Error::NoSuchObject(object.object.to_owned()))?;
    let (start, end) = clamp(range, value::<i64>(&row, 1)?.unsigned_abs());
    let reading = Reading {
        database: database.clone(),
        object: object.object.to_owned(),
        content,
        first: value::<Option<Vec<u8>>>(&row, 2)?.map(Bytes::from),
        at: start,
        end,
    };
    let body = stream::unfold(Some(reading), |reading| async {
        let mut reading = reading.filter(|reading| reading.at < reading.end)?;
        match reading.next().await {
            Ok(piece) => Some((Ok(piece), Some(reading))),
            Err(error) => Some((Err(error.into()), None)),
        }
    });
    Ok(Content {
        size: end - start,
        body: Box::pin(body),
    })
}

impl Reading {
    async fn next(&mut self) -> Result<Bytes> {
        let piece = match self.first.take().filter(|piece| !piece.is_empty()) {
            Some(piece) => piece,
            None => {
                let next = sqlx::query(sql::NEXT).bind(self.content);
                let next = next
                    .bind(self.at.cast_signed())
                    .bind(some(self.end - self.at));
                let row = self.database.row(next).await?;
                row.map(|row| value::<Vec<u8>>(&row, 0))
                    .transpose()?
                    .unwrap_or_default()
                    .into()
            }
        };
        if piece.is_empty() {
            return Err(self.missing().await);
        }
        self.at += piece.len() as u64;
        Ok(piece)
    }

    /// Why a chunk is not there.
    async fn missing(&self) -> Error {
        let is_live = sqlx::query(sql::IS_LIVE).bind(self.content);
        match self.database.row(is_live).await {
            Ok(Some(_)) => Error::Damaged(self.object.clone()),
            Ok(None) => Error::Changed(self.object.clone()),
            Err(error) => error.into(),
        }
    }
}

/// Of `left` bytes as many as one piece has.
fn some(left: u64) -> i32 {
    i32::try_from(left.min(CHUNK_BYTES as u64)).unwrap_or(i32::MAX)
}
