//! Where a component may send HTTP requests: the grammar of `allowedHosts`.
//!
//! Grammar of an entry: `*`, `host[:port]`, `*.suffix[:port]`, each optionally after `scheme://` and with a
//! trailing `/`. An entry with a scheme and no port means the scheme's own port; an entry with neither means
//! any port. An empty list allows nothing.

use capabilities::addresses::Reach;
use capabilities::quote;
use http::Uri;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Bad entries that an error shows.
const SHOWN_MAX: usize = 10;

/// The entries of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<AllowedHost>);

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowedHost {
    scheme: Option<String>,
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    /// Lower case, without brackets.
    Exact(String),
    /// Lower case, with the leading dot.
    Suffix(String),
}

/// What is wrong with an entry.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
#[error("'{}': {reason}", quote(entry))]
pub struct InvalidEntry {
    entry: String,
    reason: &'static str,
}

/// All bad entries of a list, one line each; of many the first.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidEntries(pub Vec<InvalidEntry>);

impl std::error::Error for InvalidEntries {}

impl fmt::Display for InvalidEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid allowed_hosts:")?;
        let shown = self.0.iter().take(SHOWN_MAX);
        let hidden = self.0.len().saturating_sub(SHOWN_MAX);
        shown
            .into_iter()
            .try_for_each(|entry| write!(f, "\n  - {entry}"))?;
        match hidden {
            0 => Ok(()),
            hidden => write!(f, "\n  - and {hidden} more"),
        }
    }
}

impl AllowedHosts {
    /// Reads all entries.
    ///
    /// # Errors
    /// [`InvalidEntries`] with every bad one.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, InvalidEntries> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for entry in entries {
            match AllowedHost::from_str(entry.as_ref()) {
                Ok(entry) => good.push(entry),
                Err(reason) => {
                    bad.push(InvalidEntry {
                        entry: entry.as_ref().to_owned(),
                        reason,
                    });
                }
            }
        }
        if bad.is_empty() {
            Ok(Self(good))
        } else {
            Err(InvalidEntries(bad))
        }
    }

    /// Whether a request to `uri` may be sent, and how far.
    pub(crate) fn permits(&self, uri: &Uri) -> Option<Reach> {
        let host = bare(uri.host()?).to_ascii_lowercase();
        let scheme = uri.scheme_str().unwrap_or("https").to_ascii_lowercase();
        let port = uri.port_u16().or_else(|| default_port(&scheme))?;
        self.0
            .iter()
            .filter_map(|entry| entry.permits(&scheme, &host, port))
            .max_by_key(|reach| match reach {
                Reach::Network => 0,
                Reach::Loopback => 1,
            })
    }
}

impl AllowedHost {
    fn permits(&self, scheme: &str, host: &str, port: u16) -> Option<Reach> {
        if self
            .scheme
            .as_deref()
            .is_some_and(|wanted| wanted != scheme)
            || self.port.is_some_and(|wanted| wanted != port)
        {
            return None;
        }
        match &self.host {
            Host::Any => Some(Reach::Network),
            Host::Suffix(suffix) => {
                (host.len() > suffix.len() && host.ends_with(suffix)).then_some(Reach::Network)
            }
            Host::Exact(exact) if exact == host => Some(Reach::of(exact)),
            Host::Exact(_) => None,
        }
    }
}

impl FromStr for AllowedHost {
    type Err = &'static str;

    fn from_str(entry: &str) -> Result<Self, &'static str> {
        if entry.is_empty() {
            return Err("is empty");
        }
        if entry == "*" {
            return Ok(Self {
                scheme: None,
                host: Host::Any,
                port: None,
            });
        }
        let (scheme, rest) = match entry.split_once("://") {
            Some(("", _)) => return Err("has an empty scheme"),
            Some((scheme, rest)) => {
                let scheme = scheme.to_ascii_lowercase();
                if scheme != "http" && scheme != "https" {
                    return Err("the scheme must be http or https");
                }
                (Some(scheme), rest.strip_suffix('/').unwrap_or(rest))
            }
            None => (None, entry),
        };
        if rest.contains(['?', '#']) {
            return Err("a query or fragment cannot be matched");
        }
        if rest.contains('/') {
            return Err("a path cannot be matched");
        }
        // Like the reference, a user in the entry is accepted and means nothing.
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        let (host, port) = split_port(rest)?;
        let port = port.or_else(|| scheme.as_deref().and_then(default_port));
        let host = match host.strip_prefix('*') {
            Some(suffix) if suffix.len() > 1 && suffix.starts_with('.') => {
                check_name(suffix.trim_start_matches('.'))?;
                Host::Suffix(suffix.to_ascii_lowercase())
            }
            Some("") if scheme.is_some() || port.is_some() => Host::Any,
            Some(_) => return Err("a wildcard must be '*' or '*.' and a suffix"),
            None => {
                if host.parse::<IpAddr>().is_err() {
                    check_name(host)?;
                }
                Host::Exact(host.to_ascii_lowercase())
            }
        };
        Ok(Self { scheme, host, port })
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    match name {
        "" => Err("has no host"),
        name if name.len() > 253 => Err("the host is longer than 253 bytes"),
        name if !name.chars().all(legal) => Err("has a character that no host name has"),
        _ => Ok(()),
    }
}

fn split_port(rest: &str) -> Result<(&str, Option<u16>), &'static str> {
    let parse = |port: &str| {
        port.parse()
            .map(Some)
            .map_err(|_| "the port must be 0 to 65535")
    };
    if let Some(v6) = rest.strip_prefix('[') {
        let (host, after) = v6.split_once(']').ok_or("has an unclosed '['")?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| "is not an IPv6 address")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, parse(port)?)),
            None if after.is_empty() => Ok((host, None)),
            None => Err("has text after ']'"),
        };
    }
    match rest.split_once(':') {
        Some((host, port)) => Ok((host, parse(port)?)),
        None => Ok((rest, None)),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host without the brackets of IPv6.
pub(crate) fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_allowed_hosts() -> anyhow::Result<()> {
        let words = [
            "http://",
            "https://",
            "*.",
            "[::1]",
            ":443",
            "example.com",
            "127.0.0.1",
            "?",
            "#",
        ];
        fleet::fuzz::run("allowed-hosts", &words, |input| {
            let text = String::from_utf8_lossy(input);
            let entries: Vec<_> = text.split(',').collect();
            let hosts = AllowedHosts::parse(&entries).map_err(|error| error.to_string())?;
            let mut reached = String::new();
            for host in [
                "127.0.0.1",
                "[::1]",
                "localhost",
                "169.254.169.254",
                "a.example.com",
                "example.com",
            ] {
                for scheme in ["http", "https"] {
                    let uri: Uri = format!("{scheme}://{host}/").parse().unwrap();
                    let Some(reach) = hosts.permits(&uri) else {
                        continue;
                    };
                    // Only what an entry names, and loopback only by its own name.
                    let text = text.to_lowercase();
                    assert!(text.contains('*') || text.contains(bare(host)), "{host}");
                    assert!(
                        reach == Reach::Network || text.contains(bare(host)),
                        "{host}"
                    );
                    reached.push(if reach == Reach::Network { 'n' } else { 'l' });
                }
            }
            Ok(reached)
        })
    }

    #[test]
    fn entries_permit_what_they_say() {
        for (entry, uri, permitted) in [
            ("*", "https://example.com/", true),
            ("*", "http://10.0.0.1:99/", true),
            ("example.com", "https://example.com/path?q", true),
            ("example.com", "http://EXAMPLE.com:8080/", true),
            ("example.com", "https://www.example.com/", false),
            ("Example.COM", "https://example.com/", true),
            ("example.com:443", "https://example.com/", true),
            ("example.com:443", "http://example.com/", false),
            ("example.com:8080", "https://example.com/", false),
            ("https://example.com", "https://example.com/", true),
            ("https://example.com", "http://example.com/", false),
            ("https://example.com", "https://example.com:8443/", false),
            (
                "https://example.com:8443/",
                "https://example.com:8443/",
                true,
            ),
            ("*.example.com", "https://a.b.example.com/", true),
            ("*.example.com", "https://example.com/", false),
            ("*.example.com", "https://badexample.com/", false),
            ("http://*.example.com:81", "http://x.example.com:81/", true),
            ("[::1]:80", "http://[::1]/", true),
            ("10.1.2.3", "http://10.1.2.3:1/", true),
        ] {
            let hosts = AllowedHosts::parse(&[entry]).unwrap();
            assert_eq!(
                hosts.permits(&uri.parse().unwrap()).is_some(),
                permitted,
                "{entry} {uri}"
            );
        }
        assert_eq!(
            AllowedHosts::default().permits(&"http://a/".parse().unwrap()),
            None
        );
    }

    #[test]
    fn every_bad_entry_is_named() {
        let bad = [
            "",
            "*foo",
            "*.",
            "http://a/path",
            "a/b",
            "a?q",
            "a:99999",
            "ftp://a",
            "://a",
            "[::1",
            "[zz]",
            "a b",
        ];
        let InvalidEntries(errors) = AllowedHosts::parse(&bad).unwrap_err();
        assert_eq!(errors.len(), bad.len(), "{errors:?}");
    }

    #[test]
    fn only_an_entry_that_names_loopback_reaches_it() {
        for (entry, uri, reach) in [
            ("*", "http://127.0.0.1:1/", Reach::Network),
            ("127.0.0.1:1", "http://127.0.0.1:1/", Reach::Loopback),
            ("localhost", "http://localhost:1/", Reach::Loopback),
            ("*", "http://localhost/", Reach::Network),
        ] {
            let hosts = AllowedHosts::parse(&[entry]).unwrap();
            assert_eq!(
                hosts.permits(&uri.parse().unwrap()),
                Some(reach),
                "{entry} {uri}"
            );
        }
    }
}
