//! What goes wrong with registries.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use crate::artifact::credentials::CredentialsError;
use crate::artifact::reference::Digest;

/// What went wrong between us and a registry. Never contains credentials, nor free text of the registry.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// No answer, or half of one.
    #[error("registry \"{registry}\" cannot be reached")]
    Unreachable {
        /// `host[:port]`.
        registry: String,
        /// The HTTP client's reason.
        source: reqwest::Error,
    },
    /// HTTPS was answered by HTTP.
    #[error(
        "registry \"{0}\" speaks plain HTTP, which needs `plainHttp: true` in `--registries-config`, or `--allow-insecure-registries`"
    )]
    PlainHttp(String),
    /// Too little arrived in the time given.
    #[error("registry \"{registry}\" made no progress in {timeout:?}")]
    Stalled {
        /// `host[:port]`.
        registry: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// 401 or 403.
    #[error("registry \"{registry}\" denies access to \"{repository}\" {}", remedy(*with_credentials))]
    Denied {
        /// `host[:port]`.
        registry: String,
        /// Within the registry.
        repository: String,
        /// Whether we showed any.
        with_credentials: bool,
    },
    /// 404.
    #[error("registry \"{registry}\" has no \"{what}\"")]
    NotFound {
        /// `host[:port]`.
        registry: String,
        /// Repository and version.
        what: String,
    },
    /// Any other failure.
    #[error("registry \"{registry}\" answered {status}{}", code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Status {
        /// `host[:port]`.
        registry: String,
        /// Of HTTP.
        status: StatusCode,
        /// Of the distribution protocol, such as `TOOMANYREQUESTS`.
        code: Option<String>,
    },
    /// An answer that breaks the protocol.
    #[error("registry \"{registry}\" sent {what}")]
    Protocol {
        /// `host[:port]`.
        registry: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The body ended early.
    #[error("download ended after {received} of {size} bytes")]
    Truncated {
        /// Bytes received.
        received: u64,
        /// Bytes declared.
        size: u64,
    },
    /// More bytes than allowed.
    #[error("{what} of {bytes} bytes exceeds {max}")]
    TooLarge {
        /// `manifest`, `artifact` and the like.
        what: &'static str,
        /// Bytes declared or received.
        bytes: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// Other bytes than those named.
    #[error("{what} has digest {actual} instead of {expected}")]
    Mismatch {
        /// `manifest` or `artifact`.
        what: &'static str,
        /// The digest it was asked by.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A manifest without content.
    #[error("no layers found in pulled artifact")]
    NoLayers,
    /// A layer that is no component.
    #[error("layer type \"{0}\" is not that of a component")]
    LayerType(String),
    /// An index that names none or several.
    #[error("image index has no single manifest for wasm")]
    Index,
    /// A file of authorities cannot be used.
    #[error("\"{}\" is not a PEM file of certificates", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why, unless it is just empty.
        source: Option<rustls::pki_types::pem::Error>,
    },
    /// The host's own credentials cannot be used.
    #[error("the credentials for registry \"{registry}\" in --registries-config cannot be used")]
    Credentials {
        /// `host[:port]`.
        registry: String,
        /// Why.
        source: CredentialsError,
    },
    /// Neither the registry nor one of its mirrors gave it.
    #[error("no mirror gave it ({mirrors})")]
    Mirrors {
        /// What each said.
        mirrors: String,
        /// What the registry said.
        source: Box<Error>,
    },
    /// The HTTP client cannot be set up.
    #[error("HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
    /// What was received cannot be written down.
    #[error("download cannot be written")]
    Write(#[from] std::io::Error),
}

fn remedy(with_credentials: bool) -> &'static str {
    match with_credentials {
        true => "with these credentials; check the image pull secret or `docker login`",
        false => "without credentials; give an image pull secret or use `docker login`",
    }
}

impl Error {
    /// Whether the registry could not be asked, rather than refused: trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_redirect() && !source.is_builder(),
            Self::Stalled { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Mirrors { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
