//! Values that only the hosts they are sealed to can open, and only for workloads of one namespace.
//!
//! ```text
//! washlet-sealed:1:<base64url>     of
//!   count                          1 byte: how many keys it is sealed to
//!   count × (key 32, share 32, sealed content key 48)
//!   nonce 12, sealed value         AES-256-GCM under the content key
//! ```
//! Each content key is sealed by HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM, base mode) with the version
//! and the namespace as its info; they and all that comes before the nonce are authenticated with the value. A
//! public key is written as a curve key of NATS, `X..`.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capabilities::secrets::{Opener, Secret, Unopened};
use data_encoding::BASE32_NOPAD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};

/// What a sealed value begins with, whatever its version.
const PREFIX: &str = "washlet-sealed:";
/// The rest of it in this version.
const VERSION: &str = "1:";
/// What is authenticated with everything, before the namespace.
const INFO: &[u8] = b"washlet sealed 1\0";

/// The largest value that is sealed, in bytes.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// The most keys a value is sealed to.
pub const KEYS_MAX: usize = 255;
/// How many of them an error names.
const KEYS_NAMED_MAX: usize = 3;

/// Units of all: bytes.
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const SHARE_BYTES: usize = 32;
const RECIPIENT_BYTES: usize = KEY_BYTES + SHARE_BYTES + KEY_BYTES + TAG_BYTES;

/// The first byte of a curve key of NATS, which is what makes its text begin with `X`.
const CURVE: u8 = 23 << 3;

/// Why a value cannot be sealed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Nobody could open it.
    #[error("there is no key to seal it to")]
    NoKeys,
    /// There are too many keys.
    #[error("it cannot be sealed to {0} keys, the most are {KEYS_MAX}")]
    TooManyKeys(usize),
    /// The value is too large.
    #[error("a value of {0} bytes exceeds {VALUE_BYTES_MAX}")]
    TooLarge(usize),
    /// A key is none of X25519, or the cryptographic library failed.
    #[error("it cannot be sealed to key {0}")]
    Key(PublicKey),
    /// The cryptographic library failed.
    #[error("the value cannot be sealed")]
    Seal,
}

/// What values are sealed to.
///
/// Shape: `X` and 55 characters of base32, with a checksum, as NATS writes curve keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A text that is no public key.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("is not the key of a host, X and 55 capital letters and digits; `wash hosts` shows them")]
pub struct NotAKey;

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [&[CURVE], self.0.as_slice()].concat();
        let checksum = crc16(&bytes);
        bytes.extend(checksum.to_le_bytes());
        f.write_str(&BASE32_NOPAD.encode(&bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        // It also looks at the checksum.
        match nkeys::from_public_key(text) {
            Ok((CURVE, key)) => Ok(Self(key)),
            _ => Err(NotAKey),
        }
    }
}

/// CRC-16/XMODEM, the checksum of NATS' keys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let crc = crc ^ u16::from(*byte) << 8;
        (0..8).fold(crc, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

/// What opens values that are sealed to this host.
pub struct SealKey {
    private: HpkePrivateKey,
    public: PublicKey,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealKey").field(&self.public).finish()
    }
}

impl SealKey {
    /// The key pair of these 32 secret bytes.
    ///
    /// # Errors
    /// When they are no private key.
    pub fn new(private: &[u8]) -> std::io::Result<Self> {
        let failed = |_| std::io::Error::other("it is no X25519 key");
        let public = PrivateKey::from_private_key(&X25519, private).map_err(failed)?;
        let public = public
            .compute_public_key()
            .map_err(|_| std::io::Error::other("its public key cannot be computed"))?;
        let public = <[u8; KEY_BYTES]>::try_from(public.as_ref());
        Ok(Self {
            private: HpkePrivateKey::from(private.to_vec()),
            public: PublicKey(public.map_err(std::io::Error::other)?),
        })
    }

    /// A key pair of this process alone.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn ephemeral() -> std::io::Result<Self> {
        let mut private = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut private)
            .map_err(|_| std::io::Error::other("there are no random numbers"))?;
        Self::new(&private)
    }

    /// What others seal to.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

impl Opener for SealKey {
    fn open(&self, namespace: &str, sealed: &str) -> Result<Secret, Unopened> {
        let rest = sealed.strip_prefix(PREFIX).ok_or(Unopened::NotSealed)?;
        let (header, recipients, value) = parse(rest).ok_or(Unopened::Malformed)?;
        let own = recipients
            .iter()
            .find(|recipient| recipient.key == self.public);
        let Some(own) = own else {
            let others = recipients.iter().take(KEYS_NAMED_MAX);
            return Err(Unopened::OtherKeys {
                others: others.map(|recipient| recipient.key.to_string()).collect(),
                own: self.public.to_string(),
            });
        };
        let info = info(namespace);
        let damaged = || Unopened::Damaged(namespace.to_owned());
        let share = EncapsulatedSecret(own.share.to_vec());
        let content = suite()
            .open(&share, &info, &[], &own.content, &self.private)
            .map_err(|_| damaged())?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &content).map_err(|_| damaged())?;
        let (nonce, value) = value.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut value = value.to_vec();
        let aad = Aad::from([&info, header.as_slice()].concat());
        let opened = key
            .open_in_place(nonce, aad, &mut value)
            .map_err(|_| damaged())?
            .len();
        value.truncate(opened);
        Ok(Secret::new(value))
    }
}

/// Seals `value` so that the hosts with `keys` can open it, for workloads of `namespace`.
///
/// # Errors
/// [`Error`].
pub fn seal(value: &[u8], namespace: &str, keys: &[PublicKey]) -> Result<String, Error> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::TooLarge(value.len()));
    }
    let count = match u8::try_from(keys.len()) {
        Ok(0) => return Err(Error::NoKeys),
        Ok(count) => count,
        Err(_) => return Err(Error::TooManyKeys(keys.len())),
    };
    let info = info(namespace);
    let mut content = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut content).map_err(|_| Error::Seal)?;
    let mut bytes = vec![count];
    for key in keys {
        let to = HpkePublicKey(key.0.to_vec());
        let (share, sealed) = suite()
            .seal(&info, &[], &content, &to)
            .map_err(|_| Error::Key(*key))?;
        bytes.extend_from_slice(&key.0);
        bytes.extend_from_slice(&share.0);
        bytes.extend_from_slice(&sealed);
    }
    let aad = Aad::from([&info, bytes.as_slice()].concat());
    let mut value = value.to_vec();
    let nonce = RandomizedNonceKey::new(&AES_256_GCM, &content)
        .and_then(|key| key.seal_in_place_append_tag(aad, &mut value))
        .map_err(|_| Error::Seal)?;
    bytes.extend_from_slice(nonce.as_ref());
    bytes.extend_from_slice(&value);
    Ok(format!(
        "{PREFIX}{VERSION}{}",
        URL_SAFE_NO_PAD.encode(bytes)
    ))
}

/// Whether `text` is to be opened before it is used.
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The keys that `text` is sealed to; none when it is not sealed, or cannot be read.
pub fn keys(text: &str) -> Vec<PublicKey> {
    let parsed = text.strip_prefix(PREFIX).and_then(parse);
    let recipients =
        parsed.map(|(_, recipients, _)| recipients.iter().map(|one| one.key).collect());
    recipients.unwrap_or_default()
}

fn suite() -> &'static dyn Hpke {
    DH_KEM_X25519_HKDF_SHA256_AES_256
}

fn info(namespace: &str) -> Vec<u8> {
    [INFO, namespace.as_bytes()].concat()
}

/// One of those who can open a value.
struct Recipient {
    key: PublicKey,
    share: Vec<u8>,
    /// The content key, sealed.
    content: Vec<u8>,
}

/// What comes before the nonce, whom it names, and the rest. Shape: `text` begins with the version.
fn parse(text: &str) -> Option<(Vec<u8>, Vec<Recipient>, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(VERSION)?).ok()?;
    let count = usize::from(*bytes.first()?);
    let (header, value) = bytes.split_at_checked(1 + count * RECIPIENT_BYTES)?;
    if count == 0 || value.len() < NONCE_LEN + TAG_BYTES {
        return None;
    }
    let recipients = header.get(1..)?.chunks_exact(RECIPIENT_BYTES);
    let recipients = recipients.map(|recipient| {
        let (key, rest) = recipient.split_first_chunk::<KEY_BYTES>()?;
        let (share, content) = rest.split_at_checked(SHARE_BYTES)?;
        Some(Recipient {
            key: PublicKey(*key),
            share: share.to_vec(),
            content: content.to_vec(),
        })
    });
    Some((
        header.to_vec(),
        recipients.collect::<Option<_>>()?,
        value.to_vec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::new(&[byte; KEY_BYTES]).unwrap()
    }

    #[test]
    fn keys_are_written_as_nats_does() {
        for byte in 1..=50 {
            let public = key(byte).public();
            let text = public.to_string();
            assert_eq!((text.len(), text.starts_with('X')), (56, true), "{text}");
            assert_eq!(text.parse(), Ok(public));
            let swapped = text.replacen(
                &text[10..11],
                if &text[10..11] == "A" { "B" } else { "A" },
                1,
            );
            assert_eq!(swapped.parse::<PublicKey>(), Err(NotAKey));
        }
        let user = nkeys::KeyPair::new_user().public_key();
        for text in ["", "X", &user, "xkey"] {
            assert_eq!(text.parse::<PublicKey>(), Err(NotAKey), "{text}");
        }
    }

    /// Values that were sealed once open for ever.
    #[test]
    fn the_format_is_pinned() {
        let public = "XAJ34T7K5LZAJR75GNMPZHAAOIMIDULUE6ASQIT6YZ2PG7375F5W23BG";
        assert_eq!(key(7).public().to_string(), public);
        let sealed = "washlet-sealed:1:ARO-T-rq8gTH_TNY_JwAchiB0XQngSgifsZ0839_6XttXw9p6YZqKZQ8hHcFDpIYptFh8jIa3n\
            kFu18B74Phl2BlBm9ifi6S19Ih8C3WWgzo_5dnp1qNzEP971lRGy_JuGKSQ-NxB6-h6FHk8B1eBUUgx5OX8-d6ZZ1U48UqZ51FIERP39vt7x\
            EVGHNX2IV-db2o";
        let opened = key(7).open("team-a", sealed).unwrap();
        assert_eq!(opened.reveal(), "canary");
    }

    #[test]
    fn only_those_it_is_sealed_to_open_it() {
        let (a, b, other) = (key(1), key(2), key(3));
        let recipients = [a.public(), b.public()];
        for value in [&b""[..], b"canary", &[0xff; 5_000]] {
            let sealed = seal(value, "default", &recipients).unwrap();
            assert!(is_sealed(&sealed) && !sealed.contains("canary"));
            assert_ne!(sealed, seal(value, "default", &recipients).unwrap());
            assert_eq!(keys(&sealed), recipients);
            for key in [&a, &b] {
                assert_eq!(key.open("default", &sealed).unwrap().reveal(), value);
            }
            let refused = other.open("default", &sealed).unwrap_err();
            let Unopened::OtherKeys { others, own } = &refused else {
                panic!("{refused:?}");
            };
            assert_eq!(own, &other.public().to_string());
            assert_eq!(others, &recipients.map(|key| key.to_string()));
            let elsewhere = a.open("team-b", &sealed);
            assert_eq!(elsewhere, Err(Unopened::Damaged("team-b".to_owned())));
        }
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let (a, b) = (key(1), key(2));
        let sealed = seal(b"canary", "default", &[a.public(), b.public()]).unwrap();
        let encoded = sealed.strip_prefix("washlet-sealed:1:").unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(encoded).unwrap();
        let open = |bytes: &[u8]| {
            a.open(
                "default",
                &format!("{PREFIX}{VERSION}{}", URL_SAFE_NO_PAD.encode(bytes)),
            )
        };
        assert!(open(&bytes).is_ok());
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(open(&changed).is_err(), "byte {index}");
            assert!(open(&bytes[..index]).is_err(), "cut at {index}");
        }
        assert_eq!(a.open("default", "canary"), Err(Unopened::NotSealed));
        for text in [
            "washlet-sealed:",
            "washlet-sealed:2:AAAA",
            "washlet-sealed:1:!",
            "washlet-sealed:1:AA",
        ] {
            assert_eq!(a.open("default", text), Err(Unopened::Malformed), "{text}");
            assert_eq!(keys(text), []);
        }
    }

    #[test]
    fn what_cannot_be_sealed_is_refused() {
        let to = key(1).public();
        assert!(matches!(seal(b"", "n", &[]), Err(Error::NoKeys)));
        assert!(matches!(
            seal(b"", "n", &[to; 256]),
            Err(Error::TooManyKeys(256))
        ));
        let large = vec![0; VALUE_BYTES_MAX + 1];
        assert!(matches!(seal(&large, "n", &[to]), Err(Error::TooLarge(_))));
        // All zero bytes are no point that anything can be shared with.
        assert!(matches!(
            seal(b"", "n", &[PublicKey([0; 32])]),
            Err(Error::Key(_))
        ));
    }
}
