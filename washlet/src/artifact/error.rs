//! What goes wrong with artifacts.

use std::path::PathBuf;
use std::sync::Arc;

use super::reference::{self, Image};
use super::{cache, oci};

/// Why there is no artifact.
#[derive(thiserror::Error, Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The image names nothing.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// `Never`, and it is not here, or not for these credentials.
    #[error("component not found in cache and pull policy is 'Never' (image \"{image}\")")]
    NotCached {
        /// As asked for.
        image: String,
    },
    /// The registry did not give it.
    #[error("failed to pull \"{image}\"")]
    Pull {
        /// As asked for.
        image: String,
        /// The reason.
        source: Arc<oci::Error>,
    },
    /// The registry did not take it.
    #[error("failed to push \"{image}\"")]
    Push {
        /// As asked for.
        image: String,
        /// The reason.
        source: Arc<oci::Error>,
    },
    /// Something else than a component.
    #[error("pulled artifact is not a valid WebAssembly component (\"{image}\")")]
    NotAComponent {
        /// As asked for.
        image: String,
    },
    /// `file://` is not for this host.
    #[error("\"{}\" is refused: this host starts no files", path.display())]
    FileRefused {
        /// As asked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("failed to read \"{}\"", path.display())]
    File {
        /// As asked for.
        path: PathBuf,
        /// The reason.
        source: Arc<std::io::Error>,
    },
    /// The cache is full of what must stay.
    #[error(
        "\"{image}\" does not fit into the artifact cache: {bytes} bytes are more than can be freed of \
         {budget} bytes; raise `--artifact-budget`"
    )]
    NoRoom {
        /// As asked for.
        image: String,
        /// Its size.
        bytes: u64,
        /// Of the whole cache.
        budget: u64,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(Arc<cache::Error>),
    /// The HTTP client cannot be set up.
    #[error(transparent)]
    Client(Arc<oci::Error>),
}

impl Error {
    pub(super) fn pull(image: &Image, source: oci::Error) -> Self {
        Self::Pull {
            image: image.to_string(),
            source: Arc::new(source),
        }
    }

    pub(super) fn push(image: &Image, source: oci::Error) -> Self {
        Self::Push {
            image: image.to_string(),
            source: Arc::new(source),
        }
    }
}

impl From<cache::Error> for Error {
    fn from(error: cache::Error) -> Self {
        Self::Cache(Arc::new(error))
    }
}
