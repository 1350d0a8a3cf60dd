//! Live configuration, read where it is: in a bucket.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{ConfigSource, Error, Result};
use crate::keyvalue::{self, KeyRange, KeyValueStore};

/// How many keys are listed at once.
const PAGE_KEYS: usize = 1_000;

/// A bucket whose values are configuration.
pub(super) struct Bucket {
    pub(super) store: Arc<dyn KeyValueStore>,
    pub(super) name: String,
}

#[async_trait]
impl ConfigSource for Bucket {
    async fn get(&self, key: &str) -> Result<Option<String>> {
        match self.store.get(&self.name, key).await {
            Ok(entry) => entry.map(|entry| text(key, &entry.value)).transpose(),
            // Such a key is not there.
            Err(keyvalue::Error::InvalidArgument(_)) => Ok(None),
            Err(error) => Err(Error::Internal(error.into())),
        }
    }

    async fn all(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let range = KeyRange {
                prefix: "",
                after: after.as_deref(),
                limit: PAGE_KEYS,
            };
            let page = self.store.keys(&self.name, range).await;
            let page = page.map_err(|error| Error::Internal(error.into()))?;
            for key in &page.keys {
                if let Some(value) = self.get(key).await? {
                    all.insert(key.clone(), value);
                }
            }
            match (page.more, page.keys.last()) {
                (true, Some(last)) => after = Some(last.clone()),
                _ => return Ok(all),
            }
        }
    }
}

fn text(key: &str, value: &Bytes) -> Result<String> {
    match std::str::from_utf8(value) {
        Ok(value) => Ok(value.to_owned()),
        Err(_) => Err(Error::NotText(key.to_owned())),
    }
}
