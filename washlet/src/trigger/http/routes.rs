//! Which workload serves a host name.

use super::Target;
use arc_swap::{ArcSwap, ArcSwapOption};
use capabilities::quote;
use engine::permits::{Permits, Share};
use engine::shards::{Handle, Spread};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Host names of one workload.
const NAMES_MAX: usize = 1_000;

/// Host names that lead to one workload: at least one, lower case, none twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(Vec<Arc<str>>);

/// A workload's host names cannot be used.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum Error {
    /// The interface entry has no `host`.
    #[error("no host header found")]
    NoHost,
    /// `host` is not a name that a request can ask for.
    #[error("primary host \"{}\" is not a valid RFC 1123 hostname", quote(.0))]
    InvalidHost(String),
    /// More than [`NAMES_MAX`].
    #[error("more than {NAMES_MAX} host names")]
    TooMany,
}

impl Names {
    /// Reads the config keys `host` and `host-aliases` (separated by commas) of an interface entry.
    ///
    /// Shape: aliases that are no host names are left out, which is logged.
    ///
    /// # Errors
    /// [`Error`] when `host` is missing or no host name, or there are too many.
    pub fn parse(host: Option<&str>, aliases: Option<&str>) -> Result<Self, Error> {
        let primary = host.ok_or(Error::NoHost)?;
        if !is_hostname(primary) {
            return Err(Error::InvalidHost(primary.to_owned()));
        }
        let primary: Arc<str> = primary.to_ascii_lowercase().into();
        let mut known = BTreeSet::from([Arc::clone(&primary)]);
        let mut names = vec![Arc::clone(&primary)];
        let mut skipped = Vec::new();
        for alias in aliases
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|alias| !alias.is_empty())
        {
            let name: Arc<str> = alias.to_ascii_lowercase().into();
            if !is_hostname(alias) {
                skipped.push(alias);
            } else if known.insert(Arc::clone(&name)) {
                names.push(name);
            }
            if names.len() > NAMES_MAX {
                return Err(Error::TooMany);
            }
        }
        if let Some(first) = skipped.first() {
            tracing::warn!(
                host = primary.as_ref(),
                first = quote(first),
                skipped = skipped.len(),
                "host aliases that are not valid RFC 1123 hostnames are skipped"
            );
        }
        Ok(Self(names))
    }

    /// The names, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// RFC 1123: labels of letters, digits and inner hyphens, without a dot at the end.
fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The key that `host` (a `Host` header or an authority) is looked up by; `None` when it names no host.
///
/// Shape: without port and final dot, in lower case; an IPv6 address keeps its brackets.
pub(crate) fn key(host: &str) -> Option<Cow<'_, str>> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (
                host.get(..address.len() + 2)?,
                port.strip_prefix(':').or(port.is_empty().then_some(""))?,
            )
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%[:]".contains(&b);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || !name.bytes().all(plain) || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Some(name.to_ascii_lowercase().into())
    } else {
        Some(name.into())
    }
}

/// The table from host names to workloads. Shape: clones are the same table; reading never blocks.
#[derive(Clone, Default)]
pub struct Routes(Arc<Table>);

/// Parts of the table: a change copies one of them, so that attaching stays cheap with many workloads.
const SHARDS: usize = 256;

type Shard = HashMap<Arc<str>, Arc<Entry>>;

struct Table {
    shards: [ArcSwap<Shard>; SHARDS],
    default: ArcSwapOption<Spread<Route>>,
    hasher: RandomState,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| ArcSwap::default()),
            default: ArcSwapOption::default(),
            hasher: RandomState::new(),
        }
    }
}

impl Table {
    fn shard(&self, name: &str) -> &ArcSwap<Shard> {
        let [first, ..] = &self.shards;
        // A byte is always below the number of shards.
        let [index, ..] = self.hasher.hash_one(name).to_ne_bytes();
        self.shards.get(usize::from(index)).unwrap_or(first)
    }
}

/// The workloads of one name, used in turns.
struct Entry {
    next: AtomicUsize,
    routes: Vec<Arc<Spread<Route>>>,
}

/// One workload's way in.
pub(crate) struct Route {
    pub(crate) workload: Arc<str>,
    pub(crate) target: Arc<dyn Target>,
    draining: AtomicBool,
    share: OnceLock<Share>,
}

/// What a lookup found.
pub(crate) enum Found {
    Route(Handle<Route>),
    /// Every workload of that name is on its way out.
    Draining,
    Unknown,
}

impl Routes {
    /// Leads requests for `names` to `target` until the guard is dropped.
    ///
    /// Shape: several workloads may have the same name; they take turns.
    pub fn attach(&self, names: Names, workload: Arc<str>, target: Arc<dyn Target>) -> Attachment {
        let route = Route::new(workload, target);
        self.change(&names, |routes| routes.push(route.clone()));
        Attachment {
            routes: self.clone(),
            names: Some(names),
            route,
        }
    }

    /// Leads requests for every host that nobody else has to `target` until the guard is dropped; the latest wins.
    pub fn attach_default(&self, workload: Arc<str>, target: Arc<dyn Target>) -> Attachment {
        let route = Route::new(workload, target);
        self.0.default.store(Some(route.clone()));
        Attachment {
            routes: self.clone(),
            names: None,
            route,
        }
    }

    fn change(&self, names: &Names, change: impl Fn(&mut Vec<Arc<Spread<Route>>>)) {
        for name in &names.0 {
            self.0.shard(name).rcu(|hosts| {
                let mut hosts = Shard::clone(hosts);
                let (next, mut routes) = hosts.remove(name).map_or((0, Vec::new()), |entry| {
                    (entry.next.load(Ordering::Relaxed), entry.routes.clone())
                });
                change(&mut routes);
                if !routes.is_empty() {
                    let next = next.into();
                    hosts.insert(name.clone(), Arc::new(Entry { next, routes }));
                }
                hosts
            });
        }
    }

    /// The workload whose turn it is for `key` ([`key`]; `None`: the request names no host).
    pub(crate) fn find(&self, key: Option<&str>) -> Found {
        let ready = |route: &&Arc<Spread<Route>>| !route.draining.load(Ordering::Relaxed);
        let found = |route: Option<&Arc<Spread<Route>>>| {
            route.map_or(Found::Draining, |route| Found::Route(route.handle()))
        };
        if let Some(key) = key
            && let Some(entry) = self.0.shard(key).load().get(key)
        {
            // One alone has every turn: nothing to count.
            let turn = match entry.routes.len() {
                0 | 1 => 0,
                count => entry.next.fetch_add(1, Ordering::Relaxed) % count,
            };
            let (later, first) = entry.routes.split_at(turn);
            return found(first.iter().chain(later).find(ready));
        }
        match &*self.0.default.load() {
            Some(route) => found(Some(route).filter(ready)),
            None => Found::Unknown,
        }
    }
}

impl Route {
    fn new(workload: Arc<str>, target: Arc<dyn Target>) -> Arc<Spread<Self>> {
        Arc::new(Spread::new(Self {
            workload,
            target,
            draining: AtomicBool::new(false),
            share: OnceLock::new(),
        }))
    }

    /// Its part of the listener's `requests`.
    pub(crate) fn share(&self, requests: &Permits) -> &Share {
        self.share.get_or_init(|| requests.share())
    }
}

/// A workload's place in the table; dropping it takes the workload out. Calls in flight go on.
#[must_use = "dropping it detaches the workload"]
pub struct Attachment {
    routes: Routes,
    /// `None`: the default route.
    names: Option<Names>,
    route: Arc<Spread<Route>>,
}

impl Attachment {
    /// Sends no further requests to the workload; while it alone has the name they are answered 503.
    pub fn drain(&self) {
        self.route.draining.store(true, Ordering::Relaxed);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        match &self.names {
            Some(names) => {
                self.routes.change(names, |routes| {
                    routes.retain(|route| !Arc::ptr_eq(route, &self.route))
                });
            }
            None => {
                self.routes.0.default.rcu(|current| {
                    current
                        .clone()
                        .filter(|current| !Arc::ptr_eq(current, &self.route))
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CallError, RequestBody, ResponseBody};
    use super::*;

    struct Nobody;

    #[async_trait::async_trait]
    impl Target for Nobody {
        fn component(&self) -> &str {
            "nobody"
        }

        fn answered(&self, _: http::StatusCode) {}

        async fn call(
            &self,
            _: http::Request<RequestBody>,
            _: http::uri::Scheme,
        ) -> Result<http::Response<ResponseBody>, CallError> {
            Err(CallError::NoResponse)
        }
    }

    #[test]
    fn host_names_are_bounded() {
        let aliases = |count: usize| {
            let names: Vec<_> = (1..count).map(|number| format!("a{number}")).collect();
            // Twice: those that are there already do not count.
            [names.join(","), names.join(",")].join(",")
        };
        let parse = |count| Names::parse(Some("a"), Some(&aliases(count)));
        assert_eq!(parse(NAMES_MAX).unwrap().iter().count(), NAMES_MAX);
        assert_eq!(parse(NAMES_MAX + 1), Err(Error::TooMany));
    }

    fn attach(routes: &Routes, host: &str, aliases: &str, workload: &str) -> Attachment {
        routes.attach(
            Names::parse(Some(host), Some(aliases)).unwrap(),
            workload.into(),
            Arc::new(Nobody),
        )
    }

    fn who(routes: &Routes, host: &str) -> String {
        match routes.find(key(host).as_deref()) {
            Found::Route(route) => route.workload.to_string(),
            Found::Draining => "-draining-".to_owned(),
            Found::Unknown => "-unknown-".to_owned(),
        }
    }

    #[test]
    fn names_follow_rfc_1123() {
        let long = "a".repeat(63);
        let full = format!("{long}.{long}.{long}.{}", "a".repeat(61));
        for (name, valid) in [
            ("a", true),
            ("127.0.0.1", true),
            ("Foo.Example-1.com", true),
            (long.as_str(), true),
            (full.as_str(), true),
            (&format!("{full}a"), false),
            (&format!("{long}a"), false),
            ("", false),
            (".", false),
            ("a.", false),
            ("a..b", false),
            ("-a", false),
            ("a-", false),
            ("a_b", false),
            ("*.a", false),
            ("a:80", false),
            ("[::1]", false),
            (" a", false),
            ("é", false),
        ] {
            assert_eq!(Names::parse(Some(name), None).is_ok(), valid, "{name:?}");
        }
        assert_eq!(Names::parse(None, Some("a")), Err(Error::NoHost));
        let error = Names::parse(Some("a b"), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "primary host \"a b\" is not a valid RFC 1123 hostname"
        );
    }

    #[test]
    fn aliases_are_trimmed_and_bad_ones_skipped() {
        let names = Names::parse(
            Some("A.test"),
            Some(" b.test ,, c_d,a.TEST,*.x,B.test,e.test:80,f"),
        )
        .unwrap();
        assert_eq!(names.iter().collect::<Vec<_>>(), ["a.test", "b.test", "f"]);
    }

    #[test]
    fn hosts_of_requests() {
        for (host, expected) in [
            ("a.test", Some("a.test")),
            ("A.Test", Some("a.test")),
            ("a.test:8080", Some("a.test")),
            ("a.test:", Some("a.test")),
            ("a.test.", Some("a.test")),
            ("a.test.:80", Some("a.test")),
            ("a.test..", Some("a.test.")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("[::1]x", None),
            ("[::1", None),
            ("[zz]", None),
            ("::1", None),
            ("a:b", None),
            ("a:80:80", None),
            ("user@a", None),
            ("a b", None),
            ("a/b", None),
            ("", None),
            (".", None),
            (":80", None),
        ] {
            assert_eq!(key(host).as_deref(), expected, "{host:?}");
        }
    }

    #[test]
    fn a_guard_is_a_place_in_the_table() {
        let routes = Routes::default();
        let one = attach(&routes, "One.test", "both.test", "one");
        let two = attach(&routes, "two.test", "both.test", "two");
        assert_eq!(who(&routes, "ONE.test.:80"), "one");
        assert_eq!(who(&routes, "two.test"), "two");
        let turns: Vec<_> = (0..4).map(|_| who(&routes, "both.test")).collect();
        assert_eq!(turns, ["one", "two", "one", "two"]);

        one.drain();
        assert_eq!(who(&routes, "one.test"), "-draining-");
        assert_eq!(
            [who(&routes, "both.test"), who(&routes, "both.test")],
            ["two", "two"]
        );

        drop(two);
        assert_eq!(who(&routes, "two.test"), "-unknown-");
        assert_eq!(who(&routes, "both.test"), "-draining-");
        drop(one);
        assert!(routes.0.shards.iter().all(|shard| shard.load().is_empty()));
    }

    #[test]
    fn a_default_catches_what_nobody_has() {
        let routes = Routes::default();
        let first = routes.attach_default("first".into(), Arc::new(Nobody));
        let second = routes.attach_default("second".into(), Arc::new(Nobody));
        let named = attach(&routes, "a.test", "", "named");
        assert_eq!(who(&routes, "a.test"), "named");
        assert_eq!(who(&routes, "b.test"), "second");
        assert_eq!(who(&routes, ""), "second", "no host at all");
        drop((first, named));
        assert_eq!(who(&routes, "a.test"), "second");
        second.drain();
        assert_eq!(who(&routes, "a.test"), "-draining-");
        drop(second);
        assert_eq!(who(&routes, "a.test"), "-unknown-");
    }
}
