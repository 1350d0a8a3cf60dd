//! What names an artifact: the reference of an image, and the digest of its bytes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    reference: oci_client::Reference,
    digest: Option<Digest>,
}

impl Image {
    /// `host[:port]` to connect to.
    pub fn registry(&self) -> &str {
        self.reference.resolve_registry()
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// What the manifest is asked for by: the digest if there is one, else the tag.
    pub fn version(&self) -> &str {
        self.reference
            .digest()
            .or(self.reference.tag())
            .unwrap_or("latest")
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
        let reference: oci_client::Reference =
            text.parse().map_err(|_| Error::Reference(quote(text)))?;
        let digest = reference.digest().map(str::parse).transpose()?;
        Ok(Self { reference, digest })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(f)
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

/// A stranger's text, short and printable enough for an error or a log.
pub(crate) fn quote(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let short: String = text.chars().take(CHARS_MAX).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", short.escape_debug())
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
            (short.registry(), short.repository(), short.version()),
            ("index.docker.io", "library/nginx", "latest")
        );
        let full = image("localhost:5000/a/b:1.2");
        assert_eq!(
            (full.registry(), full.repository(), full.version()),
            ("localhost:5000", "a/b", "1.2")
        );
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
            &sha512,
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
