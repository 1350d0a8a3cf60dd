//! Configuration values by key.
//!
//! Live configuration is a bucket of the key-value store of the same plugin: who writes a key there changes
//! what the next call of a component reads.

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::BoxError;

pub mod copy;

/// How many keys one live source may have.
pub const KEYS_MAX: usize = 4_096;

/// How many bytes of keys and values one live source may have.
pub const BYTES_MAX: usize = 4 << 20;

/// How soon a change is to be seen while the storage can be reached.
pub const SEEN_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// A source of configuration values.
///
/// Shape: what changes between two reads is up to the source; a live one shows a change within
/// [`SEEN_WITHIN`], and while its storage is away what it had last.
#[async_trait]
pub trait ConfigSource: Send + Sync + 'static {
    /// The value of `key`; `None` when it is not set.
    ///
    /// Source: `wasi:config/store.get`.
    async fn get(&self, key: &str) -> Result<Option<String>>;

    /// All keys and values.
    ///
    /// Source: `wasi:config/store.get-all`.
    async fn all(&self) -> Result<BTreeMap<String, String>>;
}

/// Why configuration could not be read.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The storage cannot be reached; trying again may help.
    #[error("configuration source unavailable")]
    Unavailable(#[source] BoxError),
    /// A value that is no text.
    #[error("the value of '{0}' is not UTF-8 text")]
    NotText(String),
    /// More than a live source may have, so that what is missing cannot be told from what is left out.
    #[error("the bucket has more than {KEYS_MAX} keys or {BYTES_MAX} bytes; remove some")]
    TooMuch,
    /// Anything else the storage's client said.
    #[error("configuration source error")]
    Internal(#[source] BoxError),
}

/// What configuration sources return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Values that do not change, as they came with the workload.
#[async_trait]
impl ConfigSource for BTreeMap<String, String> {
    async fn get(&self, key: &str) -> Result<Option<String>> {
        Ok(self.get(key).cloned())
    }

    async fn all(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.clone())
    }
}

/// Several sources as one: the first that has a key wins.
#[derive(Clone)]
pub struct Layered(Vec<Arc<dyn ConfigSource>>);

impl Layered {
    /// Shape: `sources` from the strongest to the weakest.
    pub fn new(sources: Vec<Arc<dyn ConfigSource>>) -> Self {
        Self(sources)
    }
}

#[async_trait]
impl ConfigSource for Layered {
    async fn get(&self, key: &str) -> Result<Option<String>> {
        for source in &self.0 {
            if let Some(value) = source.get(key).await? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    async fn all(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for source in self.0.iter().rev() {
            all.extend(source.all().await?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Arc<dyn ConfigSource> {
        Arc::new(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        )
    }

    #[tokio::test]
    async fn the_first_layer_with_a_key_wins() {
        let layered = Layered::new(vec![
            map(&[("a", "strong")]),
            map(&[("a", "weak"), ("b", "weak")]),
        ]);
        assert_eq!(layered.get("a").await.unwrap().as_deref(), Some("strong"));
        assert_eq!(layered.get("b").await.unwrap().as_deref(), Some("weak"));
        assert_eq!(layered.get("c").await.unwrap(), None);
        let all = layered.all().await.unwrap();
        assert_eq!(
            all.into_iter().collect::<Vec<_>>(),
            [("a".into(), "strong".into()), ("b".into(), "weak".into())]
        );
    }
}
