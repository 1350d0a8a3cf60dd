//! Secrets by key: values that nobody sees but who reveals them.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

use crate::BoxError;

/// The largest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 1 << 20;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 253;

/// A source of secrets, already scoped to who asked for it.
#[async_trait]
pub trait SecretSource: Send + Sync + 'static {
    /// The secret at `key`; `None` when there is none.
    ///
    /// Source: `wasmcloud:secrets/store.get`.
    async fn get(&self, key: &str) -> Result<Option<Secret>>;
}

/// Opens values that were sealed to this host, so that others can keep and carry them.
pub trait Opener: Send + Sync + 'static {
    /// The value in `sealed`, which opens for workloads of `namespace` alone.
    ///
    /// # Errors
    /// [`Unopened`].
    fn open(&self, namespace: &str, sealed: &str) -> Result<Secret, Unopened>;
}

/// A value that does not show in `Debug`, and has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Bytes);

impl Secret {
    /// Whatever its bytes are.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self(value.into())
    }

    /// The value itself; who calls this answers for where it goes.
    pub fn reveal(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Secrets that do not change.
#[derive(Clone, Debug, Default)]
pub struct Fixed(BTreeMap<String, Secret>);

impl FromIterator<(String, Secret)> for Fixed {
    fn from_iter<I: IntoIterator<Item = (String, Secret)>>(secrets: I) -> Self {
        Self(secrets.into_iter().collect())
    }
}

#[async_trait]
impl SecretSource for Fixed {
    async fn get(&self, key: &str) -> Result<Option<Secret>> {
        Ok(self.0.get(key).cloned())
    }
}

/// Whether `key` can be one of a file or a variable.
///
/// Shape: 1..=[`KEY_BYTES_MAX`] of `[A-Za-z0-9._-]`, without a dot in front.
pub fn is_plain_key(key: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(plain) && !key.starts_with('.')
}

/// Why a sealed value does not open. Nothing of the value is ever in it.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unopened {
    /// It is in the clear, where only sealed values may be.
    #[error("it is not sealed; seal it with `wash secrets seal`")]
    NotSealed,
    /// It is cut short, changed, or of a later version.
    #[error(
        "it is no sealed value that this version can read; seal it again with `wash secrets seal`"
    )]
    Malformed,
    /// Others can open it.
    #[error(
        "it is sealed to {}, not to this host's key {own}; seal it again with `wash secrets seal --key {own}`",
        others.join(", ")
    )]
    OtherKeys {
        /// The keys it is sealed to; the first few.
        others: Vec<String>,
        /// The key of this host.
        own: String,
    },
    /// It was changed, or opens for another namespace.
    #[error(
        "it is damaged, or sealed for another namespace than '{0}'; seal it again with `wash secrets seal --namespace`"
    )]
    Damaged(String),
}

/// Why a secret could not be read. Nothing of the value is ever in it.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The secret is larger than may be.
    #[error("secret '{0}' exceeds {SECRET_BYTES_MAX} bytes")]
    TooLarge(String),
    /// The source says no.
    #[error("secret '{key}' is refused: {why}")]
    Refused {
        /// What was asked for.
        key: String,
        /// In words.
        why: &'static str,
    },
    /// What the source has does not open here.
    #[error("secret '{key}' cannot be opened")]
    Sealed {
        /// What was asked for.
        key: String,
        /// Why.
        #[source]
        source: Unopened,
    },
    /// The source could not be read.
    #[error("secret '{key}' cannot be read")]
    Io {
        /// What was asked for.
        key: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// What secret sources return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("canary");
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("canary")
                .count(),
            0
        );
        assert_eq!(secret.reveal(), "canary");
    }

    #[test]
    fn keys_that_could_be_paths_are_not_plain() {
        for key in ["a", "db_password", "tls.crt", "A-1", "a..b"] {
            assert!(is_plain_key(key), "{key}");
        }
        for key in ["", ".", "..", ".a", "a/b", "../a", "a\0", "ü", "a b", "a=b"] {
            assert!(!is_plain_key(key), "{key}");
        }
        assert!(!is_plain_key(&"k".repeat(KEY_BYTES_MAX + 1)));
    }
}
