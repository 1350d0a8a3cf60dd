//! Secrets from files: `DIR/NAMESPACE/KEY`, as orchestrators mount them.

use async_trait::async_trait;
use capabilities::plugin::{Ask, OpenError, Plugin};
use capabilities::secrets::{Error, Result, SECRET_BYTES_MAX, Secret, SecretSource, is_plain_key};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs;
use tokio::io::AsyncReadExt;

use crate::Namespace;

/// Secrets from files below one directory.
///
/// A file is read whenever a component asks, so what is replaced is seen by the next call. Links are followed
/// within the directory of a namespace, not out of it.
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Below `dir`, which may come into being later.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

#[async_trait]
impl Plugin for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    async fn secrets(&self, ask: &Ask<'_>) -> Result<Arc<dyn SecretSource>, OpenError> {
        if !is_plain_key(ask.namespace) {
            let refused = Namespace(ask.namespace.to_owned());
            return Err(OpenError::Storage(refused.into()));
        }
        Ok(Arc::new(Directory(self.dir.join(ask.namespace))))
    }
}

/// The secrets of one namespace.
struct Directory(PathBuf);

#[async_trait]
impl SecretSource for Directory {
    async fn get(&self, key: &str) -> Result<Option<Secret>> {
        if !is_plain_key(key) {
            return Ok(None);
        }
        match read(&self.0, key).await {
            Ok(Read::Secret(value)) => Ok(Some(Secret::new(value))),
            Ok(Read::TooLarge) => Err(Error::TooLarge(key.to_owned())),
            Ok(Read::Elsewhere) => Err(Error::Refused {
                key: key.to_owned(),
                why: "it is no file in the directory of its namespace",
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Io {
                key: key.to_owned(),
                source: error.into(),
            }),
        }
    }
}

enum Read {
    Secret(Vec<u8>),
    TooLarge,
    Elsewhere,
}

async fn read(dir: &Path, key: &str) -> io::Result<Read> {
    let dir = fs::canonicalize(dir).await?;
    let path = fs::canonicalize(dir.join(key)).await?;
    // Before it is opened: to open a pipe waits for who writes it.
    if !path.starts_with(&dir) || !fs::metadata(&path).await?.is_file() {
        return Ok(Read::Elsewhere);
    }
    let file = fs::File::open(path).await?;
    let mut value = Vec::new();
    let bytes_max = SECRET_BYTES_MAX as u64 + 1;
    file.take(bytes_max).read_to_end(&mut value).await?;
    Ok(match value.len() > SECRET_BYTES_MAX {
        true => Read::TooLarge,
        false => Read::Secret(value),
    })
}
