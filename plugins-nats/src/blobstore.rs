//! Objects in JetStream containers.

use async_nats::jetstream::stream::Config;
use async_trait::async_trait;
use capabilities::blobstore::{
    BlobStore, ByteStream, ContainerInfo, Content, Error, KeyRange, ObjectId, ObjectInfo, Page,
    Result, check_object_name,
};
use capabilities::names;
use capabilities::plugin::Scope;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::container::{self, Container, Containers};
use crate::listing::{Listings, Smallest};
use crate::{download, exchange, upload};

/// How long a listing may take.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);

/// How many names are asked for at once.
const LISTING_BATCH: u64 = 512;

/// One view of the containers: that of who asked.
pub(crate) struct Store {
    containers: Arc<Containers>,
    scope: Scope,
    /// How absent containers are made; `None` when they are not.
    create: Option<Config>,
    object_bytes_max: u64,
    listings: Listings,
}

impl Store {
    pub(crate) fn new(
        containers: Arc<Containers>,
        scope: Scope,
        create: Option<Config>,
        object_bytes_max: u64,
    ) -> Self {
        Self {
            containers,
            scope,
            create,
            object_bytes_max,
            listings: Listings::default(),
        }
    }

    fn get(&self, name: &str) -> Result<Container> {
        let name = names::bucket(&self.scope, name)
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        Ok(self.containers.get(&name))
    }

    /// Looks whether the container exists when the server said that it does not, or nobody answered.
    async fn checked<T>(&self, container: &Container, name: &str, result: Result<T>) -> Result<T> {
        let doubtful = matches!(
            result,
            Err(Error::NoSuchContainer(_) | Error::Unavailable(_))
        );
        if !doubtful || !self.containers.is_connected() {
            return result;
        }
        match container.info().await {
            Ok(info) if !info.config.allow_direct => {
                let text =
                    format!("container '{name}' has a stream without direct access; allow it");
                Err(Error::InvalidArgument(text))
            }
            Err(exchange::Error::NoStream) => Err(Error::NoSuchContainer(name.to_owned())),
            _ => result.map_err(|error| match error {
                Error::NoSuchContainer(_) => {
                    Error::Unavailable("the container was lost for a moment".into())
                }
                error => error,
            }),
        }
    }

    /// The names of `range`. NATS has no sorted scan: each listing reads what is known of all objects.
    async fn list(&self, container: &Container, range: &KeyRange<'_>) -> Result<Smallest> {
        let mut metas = container.metas();
        let mut smallest = Smallest::default();
        while let Some(message) = metas.next(LISTING_BATCH).await? {
            let is_live = container::meta(&message).is_ok_and(|meta| !meta.info.deleted);
            if let Some(name) = container::object_name(&message).filter(|_| is_live) {
                smallest.offer(name, range);
            }
        }
        Ok(smallest)
    }
}

#[async_trait]
impl BlobStore for Store {
    async fn create_container(&self, name: &str) -> Result<ContainerInfo> {
        if let Some(info) = self.container(name).await? {
            return Ok(info);
        }
        let Some(blueprint) = &self.create else {
            return Err(Error::NoSuchContainer(name.to_owned()));
        };
        let created = self.get(name)?.create(blueprint).await;
        match (self.container(name).await?, created) {
            // Another host may have made it, with other settings: that is as good.
            (Some(info), _) => Ok(info),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(())) => Err(Error::NoSuchContainer(name.to_owned())),
        }
    }

    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>> {
        match self.get(name)?.info().await {
            Ok(info) => Ok(Some(ContainerInfo {
                name: name.to_owned(),
                created_at: info.created.into(),
            })),
            Err(exchange::Error::NoStream) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_container(&self, name: &str) -> Result<()> {
        match self.get(name)?.delete().await {
            Ok(()) | Err(exchange::Error::NoStream) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<Content> {
        check_object_name(object.object)?;
        let container = self.get(object.container)?;
        let content = download::read(&container, object.object, &range).await;
        self.checked(&container, object.container, content).await
    }

    async fn write(&self, object: ObjectId<'_>, body: ByteStream) -> Result<()> {
        check_object_name(object.object)?;
        let container = self.get(object.container)?;
        let (containers, bytes_max) = (&self.containers, self.object_bytes_max);
        let written = upload::write(containers, &container, object.object, body, bytes_max).await;
        self.checked(&container, object.container, written).await
    }

    async fn object(&self, object: ObjectId<'_>) -> Result<Option<ObjectInfo>> {
        check_object_name(object.object)?;
        let container = self.get(object.container)?;
        let meta = container.meta(object.object).await.map_err(Error::from);
        let meta = self.checked(&container, object.container, meta).await?;
        Ok(upload::live(meta).map(|meta| ObjectInfo {
            name: object.object.to_owned(),
            created_at: meta.time,
            size: meta.info.size as u64,
        }))
    }

    async fn delete(&self, object: ObjectId<'_>) -> Result<()> {
        check_object_name(object.object)?;
        let container = self.get(object.container)?;
        let deleted = upload::delete(&self.containers, &container, object.object).await;
        self.checked(&container, object.container, deleted).await
    }

    async fn objects(&self, name: &str, range: KeyRange<'_>) -> Result<Page> {
        let container = self.get(name)?;
        let list = async {
            let list = self.list(&container, &range);
            let list = tokio::time::timeout(LISTING_TIMEOUT, list).await;
            let list = list.unwrap_or(Err(Error::Timeout(LISTING_TIMEOUT)));
            self.checked(&container, name, list).await
        };
        self.listings.page(container.name(), &range, list).await
    }
}
