//! How single registries are spoken to, where that is not as with all others.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What is said about single registries.
pub type Registries = BTreeMap<RegistryHost, RegistryConfig>;

/// What is said about one registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// PEM files of authorities to trust, besides those that every registry may be signed by.
    pub ca: Vec<PathBuf>,
    /// Plain HTTP instead of HTTPS; `None`: as with every registry.
    pub plain_http: Option<bool>,
    /// Who this host is there; `None`: who Docker's configuration says.
    pub credentials: Option<RegistryCredentials>,
    /// Asked first, in this order.
    pub mirrors: Vec<Mirror>,
}

/// Where credentials are; the file is read for each pull.
#[derive(Clone, Debug)]
pub enum RegistryCredentials {
    /// A user, and a file with the password.
    Password {
        /// May not contain a colon.
        username: String,
        /// Shape: the password, and perhaps a line break.
        file: PathBuf,
    },
    /// A configuration as Docker has it, which may name credential helpers.
    Docker(PathBuf),
}

impl RegistryCredentials {
    /// The file they are in.
    pub fn file(&self) -> &PathBuf {
        match self {
            Self::Password { file, .. } | Self::Docker(file) => file,
        }
    }
}

/// A registry. Shape: `host[:port]` in lower case; Docker Hub is `index.docker.io`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryHost(String);

/// Where a registry has a mirror. Shape: `host[:port][/path]`; the path comes before the repository's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The mirror's registry.
    pub registry: RegistryHost,
    /// What its repositories begin with; may be empty.
    pub path: String,
}

/// A text that names no registry.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("is not {0}")]
pub struct NoRegistry(&'static str);

impl RegistryHost {
    /// As in the reference of an image.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for RegistryHost {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RegistryHost {
    type Err = NoRegistry;

    fn from_str(text: &str) -> Result<Self, NoRegistry> {
        let plain = |b: u8| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || matches!(b, b'.' | b'-' | b':' | b'[' | b']')
        };
        // Whatever it is made of, it has to be a place to connect to.
        let url = reqwest::Url::parse(&format!("https://{text}/")).ok();
        let host = url.is_some_and(|url| url.path() == "/" && url.has_host());
        if text.is_empty() || text.len() > 300 || !text.bytes().all(plain) || !host {
            return Err(NoRegistry(
                "the host[:port] of a registry, in lower case as in the references of images",
            ));
        }
        Ok(Self(match text {
            "docker.io" => "index.docker.io".to_owned(),
            text => text.to_owned(),
        }))
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => self.registry.fmt(f),
            false => write!(f, "{}/{}", self.registry, self.path),
        }
    }
}

impl FromStr for Mirror {
    type Err = NoRegistry;

    fn from_str(text: &str) -> Result<Self, NoRegistry> {
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        let plain =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let part = |part: &str| {
            part.bytes().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        if !path.is_empty() && !path.split('/').all(part) || path.len() > 255 {
            return Err(NoRegistry(
                "the host[:port][/path] of a mirror, in lower case",
            ));
        }
        Ok(Self {
            registry: registry.parse()?,
            path: path.to_owned(),
        })
    }
}
