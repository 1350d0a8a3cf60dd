//! The start request, checked whole: what is here can be honoured, what is not here was refused with the
//! path of its field.

use capabilities::messaging::{self, Redelivery};
use capabilities::quote;
use capabilities::secrets::{Opener, Unopened};
use engine::Reuse;
use engine::allowed_hosts::{AllowedHosts, InvalidEntries};
use engine::wit::WitInterface;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use subjects::WorkloadId;
use subjects::wire;

use super::sealed;
use crate::artifact::{Credentials, PullPolicy};
use crate::trigger::Triggers;
use crate::trigger::http::Names;
use crate::workload::redelivery;

/// The annotation that the operator puts on the replicas of a deployment.
const REPLICA_ANNOTATION: &str = "runtime.wasmcloud.dev/workload-replica-set-generation";

/// Calls that a reused instance serves when the workload does not say.
const CALLS_PER_INSTANCE_MAX: u32 = 10_000;

/// How long an instance is reused.
const INSTANCE_AGE_MAX: Duration = Duration::from_secs(3_600);

/// Memory of a component that names no limit, in MiB.
const MEMORY_MB_DEFAULT: u64 = 256;

/// Packages of WASI that every component has without asking.
const ALWAYS: [&str; 7] = [
    "io",
    "clocks",
    "random",
    "cli",
    "filesystem",
    "sockets",
    "http",
];

/// What the host allows and offers, to check requests against.
pub struct Terms<'a> {
    /// The most memory one component may ask for, in bytes.
    pub memory_bytes_max: u64,
    /// `allowedHosts` of a component that names none.
    pub default_allowed_hosts: &'a [String],
    /// Whether `wasi:http` and others are served.
    pub interfaces: &'a engine::interface::Interfaces,
    /// What drives exports.
    pub triggers: &'a Triggers,
    /// What a host interface's `backend` may name.
    pub backends: &'a capabilities::plugin::Plugins,
    /// Whether there is an HTTP listener.
    pub ingress: bool,
    /// What opens sealed values.
    pub opener: &'a dyn Opener,
}

/// A start request that can be honoured.
pub struct WorkloadSpec {
    /// The id it was started with.
    pub id: WorkloadId,
    /// Scopes the names of buckets.
    pub namespace: String,
    /// Unique per replica.
    pub name: String,
    /// As they came; only the operator's are read.
    pub annotations: BTreeMap<String, String>,
    /// What it runs, in the order of the manifest.
    pub components: Vec<ComponentSpec>,
    /// What it asks of the host.
    pub interfaces: Arc<[WitInterface]>,
    /// Memory that its components declare together. Units: bytes.
    pub memory_declared: u64,
    /// Warm instances that they keep together.
    pub instances_kept: u64,
    /// The names it answers HTTP requests for.
    pub http: Option<Names>,
    /// Equal for equal requests.
    pub content: [u8; 32],
}

/// One component of a workload.
pub struct ComponentSpec {
    /// Its name in the manifest.
    pub name: String,
    /// Where its bytes come from.
    pub image: String,
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// How to sign in there.
    pub credentials: Option<Credentials>,
    /// Values of `wasi:config`, and of triggers.
    pub config: BTreeMap<String, String>,
    /// Process environment.
    pub environment: BTreeMap<String, String>,
    /// Where it may send HTTP requests.
    pub allowed_hosts: AllowedHosts,
    /// What its live instances may hold together, in bytes.
    pub memory_bytes_max: u64,
    /// What its calls may compute per second, all together; `None`: no limit. Units: thousandths of a processor.
    pub cpu_millis_max: Option<NonZeroU32>,
    /// How its instances are used again: `poolSize`, `maxInvocations`.
    pub reuse: Reuse,
    /// What it receives messages by, if it handles any.
    pub subscriptions: Subscriptions,
}

/// How a component receives messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscriptions {
    /// None means that nothing is delivered.
    pub subjects: Vec<String>,
    /// `None` means that every replica receives every message.
    pub group: Option<String>,
    /// Messages at once, if the workload says.
    pub max_in_flight: Option<usize>,
    /// How long a message waits for its turn before it is dropped, where it can be; `None`: the usual time.
    pub admission_wait: Option<Duration>,
    /// How messages come again, where they do.
    pub redelivery: Redelivery,
    /// A key that was given and has a meaning for durable delivery alone.
    pub durable_key: Option<&'static str>,
}

impl Subscriptions {
    /// Whether a bus whose delivery is durable, or is not, can do what is asked for.
    ///
    /// # Errors
    /// [`messaging::Error::Setup`], and what was being done.
    pub(crate) fn check(&self, durable: bool) -> Result<(), (String, messaging::Error)> {
        let why = match (durable, &self.group, self.admission_wait, self.durable_key) {
            (false, _, _, Some(key)) => {
                format!("'{key}' is for durable delivery: add 'delivery: durable', or leave it out")
            }
            (true, None, _, _) => {
                "'consumer_group: broadcast' cannot be durable: name a group for each workload".to_owned()
            }
            (true, _, Some(_), _) => {
                "'admission_wait' has no meaning with durable delivery, which drops nothing: leave it out".to_owned()
            }
            _ => return Ok(()),
        };
        let what = "failed to subscribe as configured".to_owned();
        Err((what, messaging::Error::Setup(why)))
    }
}

/// Why a request is refused. Shape: `path: reason`, the path being that of the wire.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A field asks for what this host cannot do.
    #[error("{path}: {reason}")]
    Refused {
        /// `workload.witWorld.components[0].localResources.cpuLimit`
        path: String,
        /// Cause and remedy.
        reason: String,
    },
    /// Bad `allowedHosts`.
    #[error("invalid local_resources for component {}: {source}", quote(component))]
    AllowedHosts {
        /// The component's name.
        component: String,
        /// All bad entries; shown in the text, because operators match on it.
        source: InvalidEntries,
    },
    /// A sealed value that does not open here.
    #[error("{path} cannot be opened")]
    Sealed {
        /// As for [`Refused`](Self::Refused).
        path: String,
        /// Why.
        source: Unopened,
    },
    /// Host interfaces that nothing serves.
    #[error("requested interfaces that are not available on this host: {}", few(.0))]
    Unavailable(Vec<String>),
}

/// So many interfaces are named in an error.
const NAMED_MAX: usize = 10;

/// The first of `names`, and how many more there are.
fn few(names: &[String]) -> String {
    let named: Vec<_> = names
        .iter()
        .take(NAMED_MAX)
        .map(|name| quote(name))
        .collect();
    let more = match names.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    named.join(", ") + &more
}

fn refused<T>(path: impl Into<String>, reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused {
        // Keys of maps are a stranger's.
        path: quote(&path.into()),
        reason: reason.into(),
    })
}

impl WorkloadSpec {
    /// Checks a request.
    ///
    /// # Errors
    /// [`Error`], for the first field that cannot be honoured.
    pub fn new(
        id: WorkloadId,
        mut workload: wire::Workload,
        terms: &Terms<'_>,
    ) -> Result<Self, Error> {
        // As it came: it is shown, and must not tell of what is sealed.
        let content = Sha256::digest(workload.encode()).into();
        sealed::open(&mut workload, terms.opener)?;
        if workload.service.is_some() {
            return refused(
                "workload.service",
                "services are not supported by this version",
            );
        }
        if !workload.volumes.is_empty() {
            return refused(
                "workload.volumes",
                "volumes are not supported by this version",
            );
        }
        let world = workload.wit_world.unwrap_or_default();
        let interfaces = interfaces(world.host_interfaces, terms)?;
        let deployment = deployment(&workload.name, workload.annotations.get(REPLICA_ANNOTATION));
        let mut names = BTreeSet::new();
        let mut components = Vec::with_capacity(world.components.len());
        let (mut memory_declared, mut instances_kept) = (0_u64, 0_u64);
        for (index, component) in world.components.into_iter().enumerate() {
            let path = format!("workload.witWorld.components[{index}]");
            memory_declared = memory_declared.saturating_add(declared(&component));
            if !names.insert(component.name.clone()) && !component.name.is_empty() {
                return refused(format!("{path}.name"), "another component has this name");
            }
            let who = Who {
                namespace: &workload.namespace,
                deployment,
            };
            let spec = component_spec(&path, component, &interfaces, &who, terms)?;
            instances_kept = instances_kept.saturating_add(spec.reuse.instances_max.into());
            components.push(spec);
        }
        let http = http_names(&interfaces, &workload.name, terms)?;
        Ok(Self {
            id,
            namespace: workload.namespace,
            name: workload.name,
            annotations: workload.annotations,
            components,
            interfaces: interfaces.into(),
            memory_declared,
            instances_kept,
            http,
            content,
        })
    }
}

fn interfaces(
    entries: Vec<wire::WitInterface>,
    terms: &Terms<'_>,
) -> Result<Vec<WitInterface>, Error> {
    let mut interfaces = Vec::with_capacity(entries.len());
    let mut unavailable = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("workload.witWorld.hostInterfaces[{index}]");
        if entry.namespace.is_empty() || entry.package.is_empty() {
            return refused(path, "namespace and package are required");
        }
        if entry.interfaces.is_empty() {
            return refused(
                format!("{path}.interfaces"),
                "must name at least one interface",
            );
        }
        check_name(&path, &entry)?;
        let Ok(version) = version(&entry.version) else {
            return refused(
                format!("{path}.version"),
                "is not a semantic version like '0.2.0'",
            );
        };
        let interface = WitInterface {
            name: entry.name,
            namespace: entry.namespace,
            package: entry.package,
            interfaces: entry.interfaces,
            version,
            config: entry.config,
        };
        if let Err(error) = terms.backends.check(&interface.config) {
            return refused(format!("{path}.config.backend"), error.to_string());
        }
        if !is_served(&interface, terms) {
            unavailable.push(interface.to_string());
        }
        if !interface.name.is_empty() && terms.triggers.find(&interface).next().is_some() {
            return refused(
                format!("{path}.name"),
                "components are called through the entry without a name; leave the name out",
            );
        }
        let is_watcher = |one: &String| one == "watcher";
        if interface.package == "keyvalue"
            && interface.interfaces.iter().any(is_watcher)
            && interface.watched().next().is_none()
        {
            return refused(
                format!("{path}.config.watch"),
                "must name the buckets whose changes are told, separated by commas",
            );
        }
        let twin = |other: &WitInterface| {
            other.namespace == interface.namespace
                && other.package == interface.package
                && other.name == interface.name
        };
        if interfaces.iter().any(twin) {
            return refused(
                path,
                match interface.name.is_empty() {
                    true => {
                        "another entry has this package; list all interfaces in one, or name them"
                    }
                    false => "another entry has this package and name",
                },
            );
        }
        interfaces.push(interface);
    }
    if unavailable.is_empty() {
        Ok(interfaces)
    } else {
        Err(Error::Unavailable(unavailable))
    }
}

/// A name is for what may have several backends, and is what components can import by.
fn check_name(path: &str, entry: &wire::WitInterface) -> Result<(), Error> {
    let name = entry.name.as_str();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.chars().all(plain) || name.starts_with('-') || name.len() > 64 {
        return refused(
            format!("{path}.name"),
            "must be lower-case letters, digits and '-', at most 64",
        );
    }
    let package = (entry.namespace.as_str(), entry.package.as_str());
    let why = match package {
        _ if name.is_empty() => return Ok(()),
        ("wasi", package) if ALWAYS.contains(&package) => {
            "there is only one of this package; leave the name out"
        }
        ("wasi", "logging") => "there is only one log; leave the name out",
        ("wasmcloud", "messaging") if entry.interfaces.iter().any(|one| one == "handler") => {
            "messages are delivered through the entry without a name; list only consumer here"
        }
        _ => return Ok(()),
    };
    refused(format!("{path}.name"), why)
}

fn version(text: &str) -> Result<Option<semver::Version>, semver::Error> {
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some)
    }
}

/// Every interface of the entry must be one that this host links or drives.
fn is_served(entry: &WitInterface, terms: &Terms<'_>) -> bool {
    if entry.namespace == "wasi" && ALWAYS.contains(&entry.package.as_str()) {
        return true;
    }
    entry.names().all(|name| {
        let mut known = terms.interfaces.serves().chain(terms.triggers.drives());
        known.any(|served| served.serves(&name))
    })
}

fn http_names(
    interfaces: &[WitInterface],
    workload: &str,
    terms: &Terms<'_>,
) -> Result<Option<Names>, Error> {
    let serves = |interface: &String| interface == "incoming-handler" || interface == "handler";
    let entry = interfaces.iter().position(|entry| {
        entry.namespace == "wasi" && entry.package == "http" && entry.interfaces.iter().any(serves)
    });
    let Some((index, entry)) = entry.and_then(|index| Some((index, interfaces.get(index)?))) else {
        return Ok(None);
    };
    let path = format!("workload.witWorld.hostInterfaces[{index}].config");
    // `address` is in old manifests; the listener is the host's, so it never meant anything.
    let known = ["host", "host-aliases", "address"];
    if let Some(key) = entry
        .config
        .keys()
        .find(|key| !known.contains(&key.as_str()))
    {
        return refused(
            format!("{path}.{key}"),
            "unknown key (known: host, host-aliases)",
        );
    }
    if !terms.ingress {
        return refused(
            path,
            "this host has no HTTP listener; start it with --http-addr",
        );
    }
    let text = |key: &str| {
        entry
            .config
            .get(key)
            .map(|value| value.trim())
            .unwrap_or_default()
    };
    // An entry without a host answers to the workload's name.
    let primary = Some(text("host")).filter(|host| !host.is_empty());
    let primary = primary.or(Some(workload)).filter(|host| !host.is_empty());
    match Names::parse(primary, Some(text("host-aliases"))) {
        Ok(names) => Ok(Some(names)),
        Err(error) => refused(format!("{path}.host"), error.to_string()),
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

struct Who<'a> {
    namespace: &'a str,
    deployment: &'a str,
}

fn component_spec(
    path: &str,
    component: wire::Component,
    interfaces: &[WitInterface],
    who: &Who<'_>,
    terms: &Terms<'_>,
) -> Result<ComponentSpec, Error> {
    if component.image.trim().is_empty() {
        return refused(format!("{path}.image"), "is required");
    }
    let reuse = reuse(&component);
    let resources = component.local_resources.unwrap_or_default();
    let at = |field: &str| format!("{path}.localResources.{field}");
    if !resources.volume_mounts.is_empty() {
        return refused(
            at("volumeMounts"),
            "volumes are not supported by this version",
        );
    }
    if !resources.allowed_ip_name_lookups.is_empty() {
        return refused(
            at("allowedIpNameLookups"),
            "sockets are not supported by this version",
        );
    }
    if !resources.allowed_host_loopback_ports.is_empty() {
        return refused(
            at("allowedHostLoopbackPorts"),
            "sockets are not supported by this version",
        );
    }
    let memory_bytes_max = match u64::try_from(resources.memory_limit_mb) {
        Ok(0) | Err(_) => (MEMORY_MB_DEFAULT << 20).min(terms.memory_bytes_max),
        Ok(mb) if mb << 20 > terms.memory_bytes_max => {
            let mb_max = terms.memory_bytes_max >> 20;
            return refused(
                at("memoryLimitMb"),
                format!("{mb} MiB exceeds {mb_max} MiB, the most one component can have here"),
            );
        }
        Ok(mb) => mb << 20,
    };
    let hosts = match resources.allowed_hosts.is_empty() {
        true => terms.default_allowed_hosts,
        false => &resources.allowed_hosts,
    };
    let allowed_hosts = AllowedHosts::parse(hosts).map_err(|source| Error::AllowedHosts {
        component: component.name.clone(),
        source,
    })?;
    let subscriptions = subscriptions(path, &component.name, &resources.config, interfaces, who)?;
    // Empty strings are what the operator sends for no secret at all.
    let credentials = component
        .image_pull_secret
        .filter(|secret| !secret.username.is_empty() || !secret.password.is_empty())
        .map(|secret| Credentials {
            username: secret.username,
            password: secret.password,
        });
    Ok(ComponentSpec {
        reuse,
        name: component.name,
        image: component.image,
        policy: match component.image_pull_policy {
            wire::ImagePullPolicy::Always => PullPolicy::Always,
            wire::ImagePullPolicy::Never => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        },
        credentials,
        config: resources.config,
        environment: resources.environment,
        allowed_hosts,
        memory_bytes_max,
        cpu_millis_max: u32::try_from(resources.cpu_limit)
            .ok()
            .and_then(NonZeroU32::new),
        subscriptions,
    })
}

/// The memory that a component says it may need. Units: bytes.
fn declared(component: &wire::Component) -> u64 {
    let resources = component.local_resources.as_ref();
    let mb = resources.map_or(0, |resources| resources.memory_limit_mb);
    u64::try_from(mb).unwrap_or_default() << 20
}

/// Source: `poolSize`, `maxInvocations`, `maxConcurrency`.
fn reuse(component: &wire::Component) -> Reuse {
    let instances_max = match u32::try_from(component.pool_size) {
        Ok(instances) if instances > 0 => instances,
        _ => return Reuse::NEVER,
    };
    if component.max_concurrency > 1 {
        tracing::info!(
            component = component.name,
            "maxConcurrency is above 1, but an instance serves one call at a time"
        );
    }
    Reuse {
        instances_max,
        calls_max: match u32::try_from(component.max_invocations) {
            Ok(calls) if calls > 0 => calls,
            _ => CALLS_PER_INSTANCE_MAX,
        },
        age_max: INSTANCE_AGE_MAX,
    }
}

/// The name of the deployment that a replica belongs to.
///
/// A replica is `<replica set>-<hash>`, a replica set `<deployment>-<template hash>`; only what the operator
/// says it generated is removed.
fn deployment<'a>(workload: &'a str, generation: Option<&String>) -> &'a str {
    let Some(generation) = generation else {
        return workload;
    };
    let set = workload.rsplit_once('-').map_or(workload, |(set, _)| set);
    match set.rsplit_once('-') {
        Some((deployment, hash)) if hash == generation => deployment,
        _ => set,
    }
}

fn subscriptions(
    path: &str,
    component: &str,
    own: &BTreeMap<String, String>,
    interfaces: &[WitInterface],
    who: &Who<'_>,
) -> Result<Subscriptions, Error> {
    let entry = interfaces
        .iter()
        .find(|entry| entry.is_plain("wasmcloud", "messaging"));
    let text = |key: &str| {
        let shared = entry.and_then(|entry| entry.config.get(key));
        own.get(key)
            .or(shared)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    };
    let at = |key: &str| format!("{path} (config '{key}')");
    let mut result = Subscriptions {
        subjects: text("subscriptions").map(list).unwrap_or_default(),
        group: None,
        max_in_flight: text("max_in_flight")
            .and_then(|text| text.parse().ok())
            .filter(|n| *n > 0),
        admission_wait: None,
        redelivery: Redelivery::default(),
        durable_key: None,
    };
    if entry.is_none() {
        result.subjects.clear();
        return Ok(result);
    }
    if let Some(bad) = result
        .subjects
        .iter()
        .find(|subject| !capabilities::messaging::is_filter(subject))
    {
        return refused(at("subscriptions"), format!("'{bad}' is not a subject"));
    }
    let mut subjects = result.subjects.iter();
    if let Some(bad) = subjects.find(|subject| !capabilities::messaging::may_hear(subject)) {
        return refused(
            at("subscriptions"),
            format!(
                "'{bad}' has messages of the fleet or of the broker itself (runtime.host, runtime.operator, washlet, \
                 _INBOX, $..); begin with a word of your own"
            ),
        );
    }
    result.group = match text("consumer_group") {
        Some("broadcast") => None,
        Some(group) if group.contains(|c: char| c.is_whitespace() || c == '*' || c == '>') => {
            return refused(
                at("consumer_group"),
                "must not have white space, '*' or '>'",
            );
        }
        Some(group) if !capabilities::messaging::is_group(group) => {
            return refused(
                at("consumer_group"),
                "is too long or has control characters",
            );
        }
        Some(group) => Some(group.to_owned()),
        None => Some(default_group(who.namespace, who.deployment, component)),
    };
    if let Some(text) = text("admission_wait") {
        match duration(text) {
            Some(wait) => result.admission_wait = Some(wait.min(Duration::from_secs(600))),
            None => return refused(at("admission_wait"), "must be a duration like 30s or 500ms"),
        }
    }
    let read = redelivery::read(text, &result.subjects);
    (result.redelivery, result.durable_key) = match read {
        Ok(read) => read,
        Err((key, reason)) => return refused(at(key), reason),
    };
    Ok(result)
}

/// Seconds, or a number with `ms`, `s`, `m`, `h` or `d`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let number = |digits: &str| digits.trim().parse::<u64>().ok();
    if let Some(digits) = text.strip_suffix("ms") {
        return number(digits).map(Duration::from_millis);
    }
    for (unit, seconds) in [('m', 60), ('h', 3_600), ('d', 86_400)] {
        if let Some(digits) = text.strip_suffix(unit) {
            return number(digits)?
                .checked_mul(seconds)
                .map(Duration::from_secs);
        }
    }
    number(text.strip_suffix('s').unwrap_or(text)).map(Duration::from_secs)
}

/// `wasmcloud.<namespace>.<deployment>.<component>.<hash of the three>`, as the reference forms it.
fn default_group(namespace: &str, deployment: &str, component: &str) -> String {
    let hash = fnv1a(format!("{namespace}\0{deployment}\0{component}").as_bytes());
    let plain = |text: &str| -> String {
        let legal = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        text.chars()
            .map(|c| if legal(c) { c } else { '-' })
            .collect()
    };
    let mut readable = format!(
        "wasmcloud.{}.{}.{}",
        plain(namespace),
        plain(deployment),
        plain(component)
    );
    while readable.len() > 128 - 17 {
        readable.pop();
    }
    format!("{readable}.{hash:016x}")
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use capabilities::memory::Memory;
    use capabilities::plugin::Plugins;
    use engine::interface::Interfaces;
    use serde_json::json;

    fn spec(workload: serde_json::Value) -> Result<WorkloadSpec, Error> {
        let workload = wire::Workload::decode(workload.to_string().as_bytes()).unwrap();
        let interfaces = Interfaces::default();
        let backends = Plugins::new("memory").with(Memory::new(1 << 20));
        let terms = Terms {
            memory_bytes_max: 512 << 20,
            default_allowed_hosts: &["*".to_owned()],
            interfaces: &interfaces,
            triggers: &Triggers::default(),
            backends: &backends,
            ingress: true,
            opener: &crate::seal::SealKey::ephemeral().unwrap(),
        };
        WorkloadSpec::new(WorkloadId::new("w").unwrap(), workload, &terms)
    }

    fn with_component(
        component: serde_json::Value,
        interfaces: serde_json::Value,
    ) -> serde_json::Value {
        json!({"namespace": "ns", "name": "app", "witWorld":
            {"components": [component], "hostInterfaces": interfaces}})
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_path() {
        let component = |field: &str, value: serde_json::Value| {
            with_component(
                json!({"name": "c", "image": "i", "localResources": {field: value}}),
                json!([]),
            )
        };
        let entry = |entry: serde_json::Value| {
            with_component(json!({"name": "c", "image": "i"}), json!([entry]))
        };
        let base = "workload.witWorld.components[0]";
        let interface = "workload.witWorld.hostInterfaces[0]";
        for (workload, path) in [
            (
                json!({"service": {"image": "i"}}),
                "workload.service".to_owned(),
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                "workload.volumes".to_owned(),
            ),
            (
                with_component(json!({"name": "c"}), json!([])),
                format!("{base}.image"),
            ),
            (
                component("memoryLimitMb", json!(513)),
                format!("{base}.localResources.memoryLimitMb"),
            ),
            (
                component("volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
                format!("{base}.localResources.volumeMounts"),
            ),
            (
                component("allowedIpNameLookups", json!(["*"])),
                format!("{base}.localResources.allowedIpNameLookups"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "keyvalue", "interfaces": ["store"], "name": "A_b"}),
                ),
                format!("{interface}.name"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"], "name": "a"}),
                ),
                format!("{interface}.name"),
            ),
            (
                entry(json!({"namespace": "wasmcloud", "package": "messaging",
                    "interfaces": ["consumer", "handler"], "name": "a"})),
                format!("{interface}.name"),
            ),
            (
                entry(json!({"namespace": "wasi", "package": "keyvalue", "interfaces": []})),
                format!("{interface}.interfaces"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "keyvalue", "interfaces": ["store"], "version": "x"}),
                ),
                format!("{interface}.version"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "keyvalue", "interfaces": ["store"],
                    "config": {"backend": "redis"}}),
                ),
                format!("{interface}.config.backend"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"],
                    "config": {"hots": "x"}}),
                ),
                format!("{interface}.config.hots"),
            ),
            (
                entry(
                    json!({"namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"],
                    "config": {"host": "a_b"}}),
                ),
                format!("{interface}.config.host"),
            ),
        ] {
            match spec(workload.clone()) {
                Err(Error::Refused { path: found, .. }) => assert_eq!(found, path, "{workload}"),
                Err(error) => panic!("{workload}: {error}"),
                Ok(_) => panic!("{workload} was not refused"),
            }
        }
    }

    #[test]
    fn a_package_may_have_one_plain_entry_and_several_named_ones() {
        let entries = |names: &[&str]| {
            let entry = |name: &&str| json!({"namespace": "wasi", "package": "keyvalue", "interfaces": ["store"], "name": name});
            let entries: Vec<_> = names.iter().map(entry).collect();
            with_component(json!({"name": "c", "image": "i"}), json!(entries))
        };
        let spec = spec(entries(&["", "cache", "b-2"])).unwrap();
        let names: Vec<_> = spec.interfaces.iter().map(|entry| &entry.name).collect();
        assert_eq!(names, ["", "cache", "b-2"]);
        for twins in [&["", ""], &["cache", "cache"]] {
            match super::tests::spec(entries(twins)) {
                Err(Error::Refused { path, .. }) => {
                    assert_eq!(path, "workload.witWorld.hostInterfaces[1]");
                }
                _ => panic!("{twins:?} was not refused"),
            }
        }
    }

    #[test]
    fn interfaces_that_nothing_serves_are_named_without_their_config() {
        let workload = with_component(
            json!({"name": "c", "image": "i"}),
            json!([{"namespace": "acme", "package": "vault", "interfaces": ["open"], "version": "1.0.0",
                "config": {"token": "canary"}}]),
        );
        let Err(error @ Error::Unavailable(_)) = spec(workload) else {
            panic!("was not refused")
        };
        let text = error.to_string();
        assert_eq!(
            text,
            "requested interfaces that are not available on this host: acme:vault/open@1.0.0"
        );
    }

    #[test]
    fn every_bad_allowed_host_is_listed() {
        let workload = with_component(
            json!({"name": "c", "image": "i", "localResources": {"allowedHosts": ["ok", "a/b", "*x"]}}),
            json!([]),
        );
        let Err(error) = spec(workload) else {
            panic!("was not refused")
        };
        let text = error.to_string();
        assert!(
            text.starts_with("invalid local_resources for component c: invalid allowed_hosts:")
        );
        assert_eq!(text.matches("\n  - ").count(), 2, "{text}");
    }

    #[test]
    fn an_http_entry_without_a_host_answers_to_the_name() {
        let entry = json!([{"namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"],
            "config": {"host-aliases": "b.example, bad_one ,app"}}]);
        let spec = spec(with_component(json!({"name": "c", "image": "i"}), entry)).unwrap();
        let names = spec.http.unwrap();
        assert_eq!(names.iter().collect::<Vec<_>>(), ["app", "b.example"]);
    }

    #[test]
    fn replicas_of_a_deployment_share_a_queue_group() {
        let group = |name: &str, generation: Option<&str>| {
            let annotations = generation.map(|generation| json!({REPLICA_ANNOTATION: generation}));
            let workload = json!({"namespace": "ns", "name": name, "annotations": annotations, "witWorld": {
                "components": [{"name": "c", "image": "i", "localResources":
                    {"config": {"subscriptions": "a.>, b"}}}],
                "hostInterfaces": [{"namespace": "wasmcloud", "package": "messaging",
                    "interfaces": ["handler"], "config": {"subscriptions": "overridden"}}]}});
            let spec = spec(workload).unwrap();
            let subscriptions = &spec.components[0].subscriptions;
            assert_eq!(subscriptions.subjects, ["a.>", "b"]);
            subscriptions.group.clone().unwrap()
        };
        let of = |name, generation| group(name, Some(generation));
        assert_eq!(
            of("app-5d8f7b6c9-x9k2p", "5d8f7b6c9"),
            of("app-5d8f7b6c9-zzzzz", "5d8f7b6c9")
        );
        assert_eq!(
            of("app-5d8f7b6c9-x9k2p", "5d8f7b6c9"),
            of("app-new-x9k2p", "new")
        );
        assert_ne!(group("app-a", None), group("app-b", None));
        assert!(group("app", None).starts_with("wasmcloud.ns.app.c."));
        assert!(of(&"x".repeat(300), "g").len() <= 128);
    }

    #[test]
    fn subscriptions_are_checked() {
        for (config, path) in [
            (json!({"subscriptions": "a..b"}), "subscriptions"),
            (json!({"subscriptions": "a, >"}), "subscriptions"),
            (json!({"subscriptions": "runtime.host.>"}), "subscriptions"),
            (
                json!({"subscriptions": "a", "consumer_group": "a b"}),
                "consumer_group",
            ),
            (
                json!({"subscriptions": "a", "admission_wait": "soon"}),
                "admission_wait",
            ),
        ] {
            let entry = json!([{"namespace": "wasmcloud", "package": "messaging",
                "interfaces": ["handler"], "config": config}]);
            match spec(with_component(json!({"name": "c", "image": "i"}), entry)) {
                Err(Error::Refused { path: found, .. }) => assert!(found.contains(path), "{found}"),
                _ => panic!("{path} was not refused"),
            }
        }
        for (text, seconds) in [
            ("30s", 30.0),
            ("500ms", 0.5),
            ("2m", 120.0),
            ("3h", 10_800.0),
            ("7", 7.0),
        ] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds);
        }
    }
}
