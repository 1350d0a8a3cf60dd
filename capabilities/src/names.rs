//! How names and keys of guests become names and keys of a storage.
//!
//! Invariant: stored data fixes these encodings for ever; the vectors in the tests must never change.
//! Both are injective: what differs for guests differs in the storage.

use std::borrow::Cow;

use crate::plugin::Scope;

/// The longest name of a bucket as the storage sees it, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// What a key that NATS would not take begins with.
const ESCAPED: &str = "=x=";

/// The storage's name of the bucket (container, table) that a guest calls `name`.
///
/// Shape: 1..=[`NAME_BYTES_MAX`] of `[A-Za-z0-9_-]`. In a namespace it is `{namespace}__{name}`, each
/// with every byte but `[A-Za-z0-9-]` written as `_` and two upper-case hex digits, so that `__` can
/// only be the separator. Flat and shared names are as the guest gave them.
///
/// # Errors
/// [`Error`] for a name that is empty, too long, or not legal as it is.
pub fn bucket(scope: &Scope, name: &str) -> Result<String, Error> {
    if name.is_empty() {
        return Err(Error::Empty);
    }
    let bucket = match scope {
        Scope::Namespace(namespace) => format!("{}__{}", escape(namespace), escape(name)),
        Scope::Shared if name.contains("__") => return Err(Error::Reserved(name.to_owned())),
        Scope::Shared | Scope::Flat => {
            if !name.bytes().all(|b| is_plain(b) || b == b'_') {
                return Err(Error::Illegal(name.to_owned()));
            }
            name.to_owned()
        }
    };
    match bucket.len() {
        bytes if bytes > NAME_BYTES_MAX => Err(Error::TooLong { bytes }),
        _ => Ok(bucket),
    }
}

/// `key` as a key of NATS KV; a legal key is itself.
///
/// Shape: legal is `[-/_=.a-zA-Z0-9]+` without a dot at either end or two in a row. Every other key,
/// and one that begins with `=x=`, becomes `=x=` and its bytes, those but `[A-Za-z0-9-_/]` as `=` and
/// two upper-case hex digits.
pub fn encode_key(key: &str) -> Cow<'_, str> {
    if is_legal_key(key) && !key.starts_with(ESCAPED) {
        return Cow::Borrowed(key);
    }
    let mut encoded = String::with_capacity(ESCAPED.len() + key.len() * 2);
    encoded.push_str(ESCAPED);
    push_escaped(&mut encoded, key, '=', is_key_plain);
    Cow::Owned(encoded)
}

/// The key that [`encode_key`] made `encoded` of; `None` when it made no such thing.
pub fn decode_key(encoded: &str) -> Option<String> {
    let Some(rest) = encoded.strip_prefix(ESCAPED) else {
        return is_legal_key(encoded).then(|| encoded.to_owned());
    };
    let mut bytes = Vec::with_capacity(rest.len());
    let mut rest = rest.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            byte => byte,
        });
    }
    let key = String::from_utf8(bytes).ok()?;
    // Somebody else's spelling of a key is not that key: it could not be read back under its name.
    (encode_key(&key) == encoded).then_some(key)
}

fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    push_escaped(&mut escaped, name, '_', is_plain);
    escaped
}

fn push_escaped(to: &mut String, text: &str, mark: char, keep: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        if keep(byte) {
            to.push(char::from(byte));
        } else {
            to.push_str(&format!("{mark}{byte:02X}"));
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

fn is_key_plain(byte: u8) -> bool {
    is_plain(byte) || matches!(byte, b'_' | b'/')
}

fn is_legal_key(key: &str) -> bool {
    key.bytes()
        .all(|b| is_key_plain(b) || matches!(b, b'=' | b'.'))
        && key.split('.').all(|token| !token.is_empty())
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Why a name cannot be one of the storage.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was given.
    #[error("the name is empty")]
    Empty,
    /// A plain name with other characters.
    #[error("the name '{0}' may have only letters, digits, '-' and '_'")]
    Illegal(String),
    /// A shared name that has the form of a namespace's.
    #[error("the shared name '{0}' has '__' and could be another namespace's")]
    Reserved(String),
    /// The storage's name would be too long.
    #[error("the name takes {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn ns(namespace: &str) -> Scope {
        Scope::Namespace(namespace.to_owned())
    }

    #[test]
    fn bucket_vectors() {
        for (namespace, name, bucket_name) in [
            ("default", "cache", "default__cache"),
            ("team-a", "a_b", "team-a__a_5Fb"),
            ("team_a", "b", "team_5Fa__b"),
            ("a", "_b", "a___5Fb"),
            ("a_", "b", "a_5F__b"),
            ("default", "my bucket.v1", "default__my_20bucket_2Ev1"),
            ("default", "ключ", "default___D0_BA_D0_BB_D1_8E_D1_87"),
            ("", "b", "__b"),
            ("Default", "UPPER", "Default__UPPER"),
        ] {
            assert_eq!(bucket(&ns(namespace), name).as_deref(), Ok(bucket_name));
        }
        assert_eq!(
            bucket(&Scope::Flat, "default__cache").as_deref(),
            Ok("default__cache")
        );
        assert_eq!(bucket(&Scope::Flat, "a_b-C9").as_deref(), Ok("a_b-C9"));
        assert_eq!(bucket(&Scope::Shared, "a_b-C9").as_deref(), Ok("a_b-C9"));
    }

    #[test]
    fn bucket_refusals() {
        for scope in [ns("a"), Scope::Shared, Scope::Flat] {
            assert_eq!(bucket(&scope, ""), Err(Error::Empty));
            assert_eq!(
                bucket(&scope, &"x".repeat(201)).map_err(|e| matches!(e, Error::TooLong { .. })),
                Err(true)
            );
        }
        assert_eq!(
            bucket(&Scope::Flat, &"x".repeat(200)).map(|name| name.len()),
            Ok(200)
        );
        assert_eq!(
            bucket(&ns("a"), &"x".repeat(197)).map(|name| name.len()),
            Ok(200)
        );
        assert_eq!(
            bucket(&Scope::Flat, "a.b"),
            Err(Error::Illegal("a.b".into()))
        );
        assert_eq!(
            bucket(&Scope::Shared, "a b"),
            Err(Error::Illegal("a b".into()))
        );
        assert_eq!(
            bucket(&Scope::Shared, "a__b"),
            Err(Error::Reserved("a__b".into()))
        );
    }

    #[test]
    fn key_vectors() {
        for (key, encoded) in [
            ("plain", "plain"),
            ("a/b.c=d_e-F9", "a/b.c=d_e-F9"),
            ("=", "="),
            ("=x", "=x"),
            ("=x=", "=x==3Dx=3D"),
            ("=x=a", "=x==3Dx=3Da"),
            ("", "=x="),
            (".", "=x==2E"),
            (".a", "=x==2Ea"),
            ("a.", "=x=a=2E"),
            ("a..b", "=x=a=2E=2Eb"),
            ("a b", "=x=a=20b"),
            ("a.b c", "=x=a=2Eb=20c"),
            ("*", "=x==2A"),
            (">", "=x==3E"),
            ("$", "=x==24"),
            ("ключ", "=x==D0=BA=D0=BB=D1=8E=D1=87"),
        ] {
            assert_eq!(encode_key(key), encoded);
            assert_eq!(decode_key(encoded).as_deref(), Some(key));
        }
    }

    #[test]
    fn foreign_spellings_are_no_keys() {
        for encoded in [
            "=x=plain", "=x==2e", "=x==2", "=x==", "=x==FF", "=x=a b", "a b", "a..b", "",
        ] {
            assert_eq!(decode_key(encoded), None, "{encoded}");
        }
    }

    /// Short strings over an alphabet in which every rule can be met.
    fn strings() -> impl Iterator<Item = String> {
        const ALPHABET: [char; 11] = ['a', 'x', '=', '_', '.', '-', '5', 'F', ' ', '/', 'é'];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        (0..100_000).map(move |_| {
            let mut text = String::new();
            loop {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                match state % 14 {
                    i if i < 11 => text.push(ALPHABET[i as usize]),
                    _ => return text,
                }
            }
        })
    }

    #[test]
    fn keys_are_injective_and_legal() {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for key in strings() {
            let encoded = encode_key(&key).into_owned();
            assert!(is_legal_key(&encoded), "{key:?} became {encoded:?}");
            assert_eq!(decode_key(&encoded).as_deref(), Some(key.as_str()));
            let other = seen.entry(encoded).or_insert_with(|| key.clone());
            assert_eq!(*other, key);
        }
    }

    #[test]
    fn buckets_are_injective_and_legal() {
        let mut seen: BTreeMap<String, (Scope, String)> = BTreeMap::new();
        let mut names = strings();
        while let (Some(namespace), Some(name)) = (names.next(), names.next()) {
            for scope in [ns(&namespace), Scope::Shared] {
                let Ok(bucket_name) = bucket(&scope, &name) else {
                    continue;
                };
                assert!(
                    bucket_name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
                );
                let who = (scope, name.clone());
                assert_eq!(*seen.entry(bucket_name).or_insert_with(|| who.clone()), who);
            }
        }
    }
}
