//! Objects: names of contents, which are made of chunks.

use async_trait::async_trait;
use capabilities::blobstore::{
    BlobStore, ByteStream, ContainerInfo, Content, Error, KeyRange, ObjectId, ObjectInfo, Page,
    Result, check_object_name,
};
use capabilities::names;
use capabilities::plugin::Scope;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::database::{self, Database, Statement};
use crate::garbage::Garbage;
use crate::listing::{self, LISTING_TIMEOUT};
use crate::{download, upload};

/// How long a container with all its objects may take to delete.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

mod sql {
    pub(super) const CREATE: &str = "\
        INSERT INTO washlet.container (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";

    pub(super) const CONTAINER: &str = "\
        SELECT (extract(epoch FROM created_at) * 1000000)::bigint FROM washlet.container WHERE name = $1";

    pub(super) const DELETE_CONTAINER: &str = "DELETE FROM washlet.container WHERE name = $1";

    pub(super) const OBJECT: &str = "\
        SELECT o.size, (extract(epoch FROM o.created_at) * 1000000)::bigint FROM washlet.container c \
        LEFT JOIN washlet.object o ON o.container = c.id AND o.name = $2 WHERE c.name = $1";

    pub(super) const DELETE: &str = "\
        WITH c AS (SELECT id FROM washlet.container WHERE name = $1), \
        d AS (DELETE FROM washlet.object o USING c WHERE o.container = c.id AND o.name = $2) \
        SELECT 1 FROM c";

    pub(super) const OBJECTS: &str = "\
        SELECT o.name FROM washlet.container c LEFT JOIN LATERAL \
        (SELECT name FROM washlet.object WHERE container = c.id AND name >= $2 AND name < $3 \
        ORDER BY name LIMIT $4) o ON true WHERE c.name = $1 ORDER BY o.name";
}

/// One view of the containers: that of who asked.
pub(crate) struct Store {
    database: Arc<Database>,
    garbage: Arc<Garbage>,
    scope: Scope,
    /// Whether absent containers are made.
    create: bool,
    object_bytes_max: u64,
}

impl Store {
    pub(crate) fn new(
        database: Arc<Database>,
        garbage: Arc<Garbage>,
        scope: Scope,
        create: bool,
        object_bytes_max: u64,
    ) -> Self {
        Self {
            database,
            garbage,
            scope,
            create,
            object_bytes_max,
        }
    }

    fn name(&self, container: &str) -> Result<String> {
        names::bucket(&self.scope, container).map_err(|e| Error::InvalidArgument(e.to_string()))
    }

    /// The row of a statement, which has one unless the container is absent.
    async fn row(&self, container: &str, statement: Statement) -> Result<PgRow> {
        let row = self.database.row(statement).await?;
        row.ok_or_else(|| Error::NoSuchContainer(container.to_owned()))
    }
}

/// The value of `column`, as the statement has it.
pub(crate) fn value<'r, T>(row: &'r PgRow, column: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get(column).map_err(database::Error::from)?)
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

#[async_trait]
impl BlobStore for Store {
    async fn create_container(&self, name: &str) -> Result<ContainerInfo> {
        if let Some(info) = self.container(name).await? {
            return Ok(info);
        }
        if self.create {
            let create = sqlx::query(sql::CREATE).bind(self.name(name)?);
            self.database.row(create).await?;
        }
        let info = self.container(name).await?;
        info.ok_or_else(|| Error::NoSuchContainer(name.to_owned()))
    }

    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>> {
        let container = sqlx::query(sql::CONTAINER).bind(self.name(name)?);
        let Some(row) = self.database.row(container).await? else {
            return Ok(None);
        };
        Ok(Some(ContainerInfo {
            name: name.to_owned(),
            created_at: time(value(&row, 0)?),
        }))
    }

    async fn delete_container(&self, name: &str) -> Result<()> {
        let delete = sqlx::query(sql::DELETE_CONTAINER).bind(self.name(name)?);
        self.database.rows(delete, DELETE_TIMEOUT).await?;
        self.garbage.collect().await;
        Ok(())
    }

    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<Content> {
        check_object_name(object.object)?;
        let name = self.name(object.container)?;
        download::read(&self.database, name, object, &range).await
    }

    async fn write(&self, object: ObjectId<'_>, body: ByteStream) -> Result<()> {
        check_object_name(object.object)?;
        let name = self.name(object.container)?;
        let written = upload::write(
            &self.database,
            &self.garbage,
            name,
            object,
            body,
            self.object_bytes_max,
        )
        .await;
        // What was there before, or what could not be finished.
        self.garbage.collect().await;
        written
    }

    async fn object(&self, object: ObjectId<'_>) -> Result<Option<ObjectInfo>> {
        check_object_name(object.object)?;
        let info = sqlx::query(sql::OBJECT).bind(self.name(object.container)?);
        let info = info.bind(object.object.as_bytes());
        let row = self.row(object.container, info).await?;
        let Some(size) = value::<Option<i64>>(&row, 0)? else {
            return Ok(None);
        };
        Ok(Some(ObjectInfo {
            name: object.object.to_owned(),
            created_at: time(value(&row, 1)?),
            size: size.unsigned_abs(),
        }))
    }

    async fn delete(&self, object: ObjectId<'_>) -> Result<()> {
        check_object_name(object.object)?;
        let delete = sqlx::query(sql::DELETE).bind(self.name(object.container)?);
        let delete = delete.bind(object.object.as_bytes());
        self.row(object.container, delete).await?;
        self.garbage.collect().await;
        Ok(())
    }

    async fn objects(&self, container: &str, range: KeyRange<'_>) -> Result<Page> {
        let (from, to, limit) = listing::bounds(&range);
        let objects = sqlx::query(sql::OBJECTS).bind(self.name(container)?);
        let objects = objects.bind(from).bind(to).bind(limit);
        let rows = self.database.rows(objects, LISTING_TIMEOUT).await?;
        let page = listing::page(&rows, range.limit)?;
        page.ok_or_else(|| Error::NoSuchContainer(container.to_owned()))
    }
}
