//! Configuration values by key.

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::BoxError;

/// A source of configuration values.
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
