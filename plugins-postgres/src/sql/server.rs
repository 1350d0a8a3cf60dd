//! Which database a workload's entry names, as whom, and within which limits.

use capabilities::addresses::Reach;
use capabilities::plugin::{OpenError, Settings};
use capabilities::sql::Limits;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

const URL: &str = "a URL like postgres://user@host:5432/database with no other parameter than \
    application_name, pool_size and sslmode (disable, require, verify-ca or verify-full). \
    The database of --postgres-url is the host's own and is not lent to workloads";

/// Connections of one entry, without the setting.
const POOL_SIZE: usize = 10;

/// Where the database is, and how a workload gets there.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// How far the host's name may lead.
    pub(super) reach: Reach,
    /// `None` for no TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
    pub(super) application: String,
    /// Connections of this entry at once.
    pub(super) connections: usize,
    /// How long a call waits for one.
    pub(super) wait: Duration,
    /// How long a statement may take, its rows included.
    pub(super) statement: Duration,
    pub(super) limits: Limits,
}

impl Server {
    /// Reads the settings `url`, `user`, `password`, `database`, `ca`, `pool_size`, `wait_timeout`,
    /// `statement_timeout`, `max_rows` and `max_bytes`. None of the host's variables, files or sockets is looked at.
    pub(super) fn read(settings: &Settings<'_>) -> Result<Self, OpenError> {
        let wrong = || OpenError::Setting {
            key: "url",
            expected: URL,
        };
        let url = Url::parse(settings.required("url", URL)?).map_err(|_| wrong())?;
        let mut parts = Parts::default();
        for (name, value) in url.query_pairs() {
            let place = match name.as_ref() {
                "application_name" => &mut parts.application,
                "pool_size" => &mut parts.pool_size,
                "sslmode" => &mut parts.mode,
                _ => return Err(wrong()),
            };
            *place = Some(value.into_owned());
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() && !name.contains('%') => {
                name.to_ascii_lowercase()
            }
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(wrong()),
        };
        if !matches!(url.scheme(), "postgres" | "postgresql") || url.fragment().is_some() {
            return Err(wrong());
        }
        let tls = match parts.mode.as_deref() {
            None | Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(_) => return Err(wrong()),
        };
        let plain = |text: &str| plain(text).ok_or_else(wrong);
        let part = |key, expected, from_url: &str| match settings.text(key) {
            Some(text) if text.contains('\0') => Err(OpenError::Setting { key, expected }),
            Some(text) => Ok(text.to_owned()),
            None => plain(from_url),
        };
        let user = part("user", "a role", url.username())?;
        let password = part("password", "a password", url.password().unwrap_or_default())?;
        let path = url.path().strip_prefix('/').unwrap_or_default();
        let database = part("database", "a database's name", path)?;
        if user.is_empty() {
            let expected = "a role, unless 'url' names it";
            return Err(OpenError::Setting {
                key: "user",
                expected,
            });
        }
        let ca = settings.text("ca");
        if ca.is_some() && !tls {
            let expected = "left out, unless 'url' says sslmode=verify-full";
            return Err(OpenError::Setting {
                key: "ca",
                expected,
            });
        }
        let number = "a number from 1 to 100";
        let in_url = parts.pool_size.map(|text| text.parse().ok());
        let in_url = in_url.map(|size| size.filter(|size| (1..=100).contains(size)));
        let pool_size = match (
            settings.parsed("pool_size", number, within(1..=100))?,
            in_url,
        ) {
            (Some(size), _) | (None, Some(Some(size))) => size,
            (None, Some(None)) => return Err(wrong()),
            (None, None) => POOL_SIZE,
        };
        let time = |key, expected, max, default| {
            let limit = settings.parsed(key, expected, |text| duration(text, max))?;
            Ok::<_, OpenError>(Duration::from_secs(limit.unwrap_or(default)))
        };
        Ok(Self {
            reach: Reach::of(&host),
            port: url.port().unwrap_or(5432),
            host,
            tls: tls.then(|| roots(ca)).transpose()?,
            database: match database.is_empty() {
                true => user.clone(),
                false => database,
            },
            user,
            password,
            application: match parts.application {
                Some(name) if name.contains('\0') => return Err(wrong()),
                name => name.unwrap_or_else(|| "washlet".to_owned()),
            },
            connections: pool_size,
            wait: time("wait_timeout", "a time from 1s to 60s", 60, 5)?,
            statement: time("statement_timeout", "a time from 1s to 10m", 600, 30)?,
            limits: Limits {
                rows: settings
                    .parsed(
                        "max_rows",
                        "a number from 1 to 1000000",
                        within(1..=1_000_000),
                    )?
                    .unwrap_or(10_000),
                bytes: settings
                    .parsed(
                        "max_bytes",
                        "a number of bytes from 65536 to 67108864",
                        within(64 << 10..=64 << 20),
                    )?
                    .unwrap_or(8 << 20),
            },
        })
    }
}

#[derive(Default)]
struct Parts {
    application: Option<String>,
    pool_size: Option<String>,
    mode: Option<String>,
}

fn within(range: RangeInclusive<usize>) -> impl FnOnce(&str) -> Option<usize> {
    move |text| usize::from_str(text).ok().filter(|n| range.contains(n))
}

/// Seconds up to `max`: a number, with `s` or `m` after it or nothing.
fn duration(text: &str, max: u64) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (1..=max).contains(&seconds).then_some(seconds)
}

/// A part of a URL without its escapes.
fn plain(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = rest.get(2..)?;
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then_some(text)
}

/// TLS that trusts `ca`, or the public authorities.
fn roots(ca: Option<&str>) -> Result<Arc<ClientConfig>, OpenError> {
    let wrong = || OpenError::Setting {
        key: "ca",
        expected: "certificates in PEM",
    };
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| wrong())?;
                roots.add(certificate).map_err(|_| wrong())?;
            }
            if roots.is_empty() {
                return Err(wrong());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OpenError::Storage(error.into()))?;
    Ok(Arc::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(pairs: &[(&str, &str)]) -> Result<Server, String> {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let values: BTreeMap<_, _> = pairs.collect();
        let settings = Settings::new(&values);
        let server = Server::read(&settings).map_err(|error| error.to_string())?;
        settings.finish().map_err(|error| error.to_string())?;
        Ok(server)
    }

    #[test]
    fn an_entry_names_its_database() {
        let server = read(&[(
            "url",
            "postgres://u%40x:p%2Fw@db.example.com:1/d?pool_size=3",
        )]);
        let server = server.unwrap();
        assert_eq!((server.host.as_str(), server.port), ("db.example.com", 1));
        assert_eq!(
            (server.user.as_str(), server.password.as_str()),
            ("u@x", "p/w")
        );
        assert_eq!((server.database.as_str(), server.connections), ("d", 3));
        assert!(server.tls.is_none() && server.reach == Reach::Network);
        let server = read(&[
            ("url", "postgresql://[::1]?sslmode=verify-full"),
            ("user", "other"),
            ("password", "secret"),
            ("pool_size", "7"),
            ("statement_timeout", "2m"),
        ]);
        let server = server.unwrap();
        assert_eq!((server.host.as_str(), server.port), ("::1", 5432));
        assert_eq!(server.password, "secret");
        assert_eq!((server.database.as_str(), server.connections), ("other", 7));
        assert_eq!(server.statement, Duration::from_secs(120));
        assert!(server.tls.is_some() && server.reach == Reach::Loopback);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        let url = "postgres://u:hunter2@h/d";
        for (pairs, key) in [
            (vec![], "url"),
            (vec![("url", "hunter2")], "url"),
            (vec![("url", "mysql://u:hunter2@h/d")], "url"),
            (vec![("url", "postgres://u:hunter2@/d")], "url"),
            (
                vec![("url", "postgres://u:hunter2@%2Frun%2Fpostgresql/d")],
                "url",
            ),
            (vec![("url", "postgres://u@h/d?host=/run/hunter2")], "url"),
            (vec![("url", "postgres://u@h/d?sslmode=hunter2")], "url"),
            (vec![("url", "postgres://u@h/d?pool_size=hunter2")], "url"),
            (vec![("url", "postgres://u:hunter2%00@h/d")], "url"),
            (vec![("url", "postgres://h/d")], "user"),
            (vec![("url", url), ("pool_size", "hunter2")], "pool_size"),
            (
                vec![("url", url), ("wait_timeout", "hunter2")],
                "wait_timeout",
            ),
            (
                vec![("url", url), ("statement_timeout", "11m")],
                "statement_timeout",
            ),
            (vec![("url", url), ("max_rows", "0")], "max_rows"),
            (vec![("url", url), ("max_bytes", "1")], "max_bytes"),
            (vec![("url", url), ("ca", "hunter2")], "ca"),
            (
                vec![("url", url), ("sslrootcert", "hunter2")],
                "sslrootcert",
            ),
        ] {
            let error = read(&pairs).map(drop).unwrap_err();
            assert!(error.contains(key), "{pairs:?}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
