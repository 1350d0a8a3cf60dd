//! Names that were checked once, where they came in.

use std::fmt;
use std::str::FromStr;

use crate::clip;

const HOST_ID_BYTES_MAX: usize = 128;
const WORKLOAD_ID_BYTES_MAX: usize = 256;

/// Why a text is not an id.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The text cannot be one token of a NATS subject.
    #[error("host id '{}' must be 1 to {HOST_ID_BYTES_MAX} bytes of A-Z, a-z, 0-9, '_' and '-'", clip(.0))]
    Host(String),
    /// The text is empty, too long or has control characters.
    #[error("workload id '{}' must be 1 to {WORKLOAD_ID_BYTES_MAX} bytes without control characters", clip(.0))]
    Workload(String),
}

/// The name of one host, unique in its fleet.
///
/// Shape: one token of a NATS subject, 1..=128 bytes of `[A-Za-z0-9_-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(String);

impl HostId {
    /// Checks `id`.
    ///
    /// # Errors
    ///
    /// [`Error::Host`](crate::IdError::Host).
    pub fn new(id: impl Into<String>) -> Result<Self, Error> {
        let id = id.into();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if (1..=HOST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(token) {
            Ok(Self(id))
        } else {
            Err(Error::Host(id))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of one workload on a host, chosen by who starts it.
///
/// Shape: 1..=256 bytes without control characters; it travels in payloads, never in subjects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(String);

impl WorkloadId {
    /// Checks `id`.
    ///
    /// # Errors
    ///
    /// [`Error::Workload`](crate::IdError::Workload).
    pub fn new(id: impl Into<String>) -> Result<Self, Error> {
        let id = id.into();
        if (1..=WORKLOAD_ID_BYTES_MAX).contains(&id.len()) && !id.contains(char::is_control) {
            Ok(Self(id))
        } else {
            Err(Error::Workload(id))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        Self::new(id)
    }
}

impl FromStr for WorkloadId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        Self::new(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_id_is_one_subject_token() {
        for good in [
            "0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d",
            "a",
            "A_9",
            &"x".repeat(128),
        ] {
            assert_eq!(HostId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "a.b",
            "*",
            ">",
            "a b",
            "a\r\nPUB x",
            "é",
            &"x".repeat(129),
        ] {
            assert_eq!(HostId::new(bad), Err(Error::Host(bad.to_owned())));
        }
    }

    #[test]
    fn a_workload_id_is_short_printable_text() {
        for good in ["7c1a", "a.b/c d", "é", &"x".repeat(256)] {
            assert_eq!(good.parse::<WorkloadId>().unwrap().to_string(), good);
        }
        for bad in ["", "a\nb", "\u{0}", "a\u{85}", &"x".repeat(257)] {
            assert_eq!(WorkloadId::new(bad), Err(Error::Workload(bad.to_owned())));
        }
    }

    #[test]
    fn an_error_shows_a_strangers_text_escaped_and_short() {
        let error = WorkloadId::new(format!("\u{1b}[31m{}", "x".repeat(1000))).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("workload id '\\u{1b}[31mxxx"), "{text}");
        assert!(text.len() < 200 && !text.contains('\u{1b}'), "{text}");
    }
}
