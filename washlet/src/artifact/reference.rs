//! What names an artifact: the reference of an image, and the digest of its bytes.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub(crate) use capabilities::quote;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// The longest reference, in bytes.
const REFERENCE_BYTES_MAX: usize = 1024;

/// Why a text names no artifact.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Not `[registry/]repository[:tag][@sha256:..]`.
    #[error("invalid OCI reference: {0}")]
    Reference(String),
    /// Longer than any registry takes.
    #[error("invalid OCI reference: {0} bytes exceed {REFERENCE_BYTES_MAX}")]
    TooLong(usize),
    /// Not `sha256:` and 64 hexadecimal digits.
    #[error("invalid digest \"{0}\": only \"sha256:\" and 64 hexadecimal digits are supported")]
    Digest(String),
}

/// Where an artifact comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// An image in a registry.
    Image(Image),
    /// A file of this machine, `file:///path/to.wasm`.
    File(PathBuf),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(Error::TooLong(text.len()));
        }
        if !text.starts_with("file://") {
            return text.parse().map(Self::Image);
        }
        let path = reqwest::Url::parse(text)
            .ok()
            .and_then(|url| url.to_file_path().ok());
        path.map(Self::File)
            .ok_or_else(|| Error::Reference(quote(text)))
    }
}

/// An image in a registry: `[registry/]repository[:tag][@sha256:..]`, as Docker writes it.
///
/// Shape: without a registry it is Docker Hub's, without tag and digest `latest`.
/// Source: the grammar of `github.com/distribution/reference`. Parsed here, because the regular expression
/// that the crate oci-spec makes of that grammar keeps 8 MB of memory in every host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What an image without a registry is looked for in, as it is written.
const HUB: &str = "docker.io";
/// What [`HUB`] is connected to as.
const HUB_HOST: &str = "index.docker.io";
/// Where [`HUB`] keeps repositories whose name has one part.
const HUB_LIBRARY: &str = "library";
/// The longest repository, in bytes.
const REPOSITORY_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

impl Image {
    /// `host[:port]` to connect to.
    pub fn registry(&self) -> &str {
        match self.registry.as_str() {
            HUB => HUB_HOST,
            registry => registry,
        }
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What the manifest is asked for by: the digest if there is one, else the tag.
    pub fn version(&self) -> Cow<'_, str> {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string().into(),
            (None, Some(tag)) => tag.into(),
            (None, None) => "latest".into(),
        }
    }

    /// The digest its manifest must have.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl FromStr for Image {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(Error::TooLong(text.len()));
        }
        let invalid = || Error::Reference(quote(text));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, repository) = match name.split_once('/') {
            Some((HUB_HOST, rest)) => (HUB, rest),
            Some((host, rest)) if is_host(host) => (host, rest),
            _ => (HUB, name),
        };
        let repository = match registry {
            HUB if !repository.contains('/') => format!("{HUB_LIBRARY}/{repository}"),
            _ => repository.to_owned(),
        };
        let valid = is_registry(registry) && is_repository(&repository) && tag.is_none_or(is_tag);
        if !valid {
            return Err(invalid());
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// `host[:port]`.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Parts of lower-case letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_repository(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_part = |part: &str| {
        // What is between two hyphens may be empty: there may be any number of them.
        let (Some(first), Some(last)) = (part.chars().next(), part.chars().last()) else {
            return false;
        };
        let whole = first != '-' && last != '-';
        whole
            && part
                .split('-')
                .filter(|run| !run.is_empty())
                .all(|run| run.replace("__", ".").split(['.', '_']).all(is_word))
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The SHA-256 of some bytes. Shape: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    pub(crate) fn finish(hash: sha2::Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The 64 hexadecimal digits alone.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Digest(quote(text));
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Image {
        text.parse().unwrap()
    }

    #[test]
    fn references_are_dockers() {
        let short = image("nginx");
        assert_eq!(short.to_string(), "docker.io/library/nginx:latest");
        assert_eq!(
            (short.registry(), short.repository(), &*short.version()),
            ("index.docker.io", "library/nginx", "latest")
        );
        let full = image("localhost:5000/a/b:1.2");
        assert_eq!(
            (full.registry(), full.repository(), &*full.version()),
            ("localhost:5000", "a/b", "1.2")
        );
        for (text, whole) in [
            ("index.docker.io/a", "docker.io/library/a:latest"),
            ("docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a__b--c.d", "localhost/a__b--c.d:latest"),
            ("a:5000", "docker.io/library/a:5000"),
            ("A-1.b:5000/c:_T-1.2", "A-1.b:5000/c:_T-1.2"),
        ] {
            assert_eq!(image(text).to_string(), whole);
        }
        let digest = Digest::of(b"x");
        let pinned = image(&format!("ghcr.io/a/b:1@{digest}"));
        assert_eq!(pinned.version(), digest.to_string());
        assert_eq!(pinned.digest(), Some(digest));
    }

    #[test]
    fn nonsense_is_refused() {
        let sha512 = format!("a/b@sha512:{}", "0".repeat(128));
        for text in [
            "",
            " ",
            "oci://a/b",
            "A/B",
            "a/../b",
            "a/b:",
            "a b",
            "http://a/b",
            "A/b",
            "a-/b",
            "-a.b/c",
            "a.b:port/c",
            "a/b___c",
            "a/b_.c",
            "a//b",
            "a/b:é",
            "a/b:-1",
            &sha512,
            &format!("a/b:{}", "1".repeat(129)),
            &format!("a/{}", "b".repeat(256)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        let error = "no:\u{1b}[31m/such"
            .parse::<Reference>()
            .unwrap_err()
            .to_string();
        assert_eq!(error, "invalid OCI reference: no:\\u{1b}[31m/such");
        let long = format!("a/{}", "b".repeat(REFERENCE_BYTES_MAX));
        assert_eq!(long.parse::<Reference>(), Err(Error::TooLong(long.len())));
    }

    #[test]
    fn files_have_absolute_paths_on_this_machine() {
        let file = "file:///tmp/a%20b.wasm".parse::<Reference>().unwrap();
        assert_eq!(file, Reference::File("/tmp/a b.wasm".into()));
        assert!("file://elsewhere/a.wasm".parse::<Reference>().is_err());
    }

    #[test]
    fn a_digest_is_its_text() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert!("sha256:e3".parse::<Digest>().is_err());
        assert!(
            format!("sha256:{}", "é".repeat(32))
                .parse::<Digest>()
                .is_err()
        );
    }
}
