//! [`Compiled`] → [`Runnable`]: every import is served, or the start is refused with a remedy.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::Engine;
use crate::allowed_hosts::AllowedHosts;
use crate::compile::Compiled;
use crate::ctx::Owner;
use crate::interface::http::{Egress, Turns};
use crate::interface::keyvalue::watcher::WatchingPre;
use crate::interface::messaging::MessagingHandlerPre;
use crate::interface::messaging_p3;
use crate::interface::{Interface, InterfaceError, Need};
use crate::limits::MemoryBudget;
use crate::rates::{CpuShare, GuestLog};
use crate::runnable::{Recipe, Runnable};
use crate::usage::Usage;
use crate::warm::Reuse;
use crate::wit::{Import, WitInterface, WitName};

/// Packages of WASI that are always linked.
const ALWAYS: [&str; 7] = [
    "io",
    "clocks",
    "random",
    "cli",
    "filesystem",
    "sockets",
    "http",
];

/// What one component of a workload is given.
pub struct Grant {
    /// Who it is.
    pub owner: Arc<Owner>,
    /// The workload's host interface entries.
    pub declared: Arc<[WitInterface]>,
    /// Values of `wasi:config`.
    pub config: BTreeMap<String, String>,
    /// Its process environment.
    pub environment: BTreeMap<String, String>,
    /// Where it may send HTTP requests.
    pub allowed_hosts: AllowedHosts,
    /// What its live instances may hold together, in bytes.
    pub memory_bytes_max: u64,
    /// Its share of the processors: what its calls may compute per second, all together; `None`: no limit.
    /// Units: thousandths of a processor.
    pub cpu_millis_max: Option<NonZeroU32>,
    /// How its instances are used again.
    pub reuse: Reuse,
    /// Turns for outgoing requests, shared by the components of its workload: [`Engine::turns`].
    pub outbound: Turns,
}

/// Why a component cannot be linked.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum LinkError {
    /// No host interface of this host serves it.
    #[error("import '{import}' is served by nothing on this host (served: {served})")]
    NotServed {
        /// The import.
        import: String,
        /// What is.
        served: String,
    },
    /// It is served, but the workload does not declare it.
    #[error(
        "import '{import}' needs a host interface; add to the workload's hostInterfaces: {{namespace: {namespace}, package: {package}, interfaces: [{interface}]}}"
    )]
    Undeclared {
        /// The import.
        import: String,
        /// For the entry to add.
        namespace: String,
        /// For the entry to add.
        package: String,
        /// For the entry to add.
        interface: String,
    },
    /// A label of an interface that is the same for all who import it.
    #[error(
        "import '{label}' is a label of '{import}', of which there is only one; import it by its own name"
    )]
    NoLabels {
        /// The label.
        label: String,
        /// The interface.
        import: String,
    },
    /// A label that no entry is named after.
    #[error(
        "no {namespace}:{package} backend bound for import '{label}'; add to the workload's hostInterfaces: {{name: {label}, namespace: {namespace}, package: {package}, interfaces: [{interface}]}}"
    )]
    NoBackend {
        /// The label.
        label: String,
        /// For the entry to add.
        namespace: String,
        /// For the entry to add.
        package: String,
        /// For the entry to add.
        interface: String,
    },
    /// An interface refused.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// Wasmtime refused the whole, usually for a type that differs.
    #[error("does not fit this host: {0}")]
    Mismatch(String),
}

pub(crate) async fn link(
    engine: &Engine,
    compiled: &Arc<Compiled>,
    grant: Grant,
) -> Result<Runnable, LinkError> {
    let inner = &engine.0;
    let usage = Arc::new(Usage::default());
    let log = Arc::new(GuestLog::new(Arc::clone(&grant.owner), Arc::clone(&usage)));
    let need = Need {
        owner: &grant.owner,
        log: &log,
        declared: &grant.declared,
        config: &grant.config,
        plugins: &inner.plugins,
        flat_names: inner.config.flat_names,
    };
    let mut by_interface: BTreeMap<usize, Vec<Import>> = BTreeMap::new();
    for imported in compiled.imports() {
        let (name, implements) = (&imported.name, imported.implements.as_deref());
        let Some(import) = Import::parse(name, implements) else {
            return Err(not_served(engine, implements.unwrap_or(name)));
        };
        let wit = &import.wit;
        let always = wit.namespace == "wasi" && ALWAYS.contains(&wit.package.as_str());
        match &import.label {
            Some(label) if always => return Err(no_labels(label, wit)),
            None if always => continue,
            _ => {}
        }
        let Some((index, interface)) = inner.interfaces.find(wit) else {
            return Err(not_served(engine, &wit.to_string()));
        };
        check(&import, &**interface, &need)?;
        by_interface.entry(index).or_default().push(import);
    }

    let mut linker = compiled.runner.linker.clone();
    for (index, imports) in by_interface {
        if let Some(interface) = inner.interfaces.get(index) {
            interface.link(&mut linker, &imports, &need).await?;
        }
    }
    let mismatch = |error: wasmtime::Error| LinkError::Mismatch(format!("{error:#}"));
    let pre = linker
        .instantiate_pre(&compiled.component)
        .map_err(mismatch)?;
    // The linker ends here: what it captured lives on in `pre`, and dies with it.
    let exports = |package: &str, interface: &str| {
        compiled
            .exported()
            .any(|name| name.package == package && name.interface == interface)
    };
    let service = exports("http", "handler")
        .then(|| ServicePre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let http = exports("http", "incoming-handler")
        .then(|| ProxyPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let handles = |minor| {
        let mut exported = compiled.exported();
        let is_handler = |name: WitName| {
            name.is_of("wasmcloud", "messaging")
                && name.interface == "handler"
                && name.version.is_none_or(|version| version.minor == minor)
        };
        exported.any(is_handler)
    };
    let messaging = handles(2)
        .then(|| MessagingHandlerPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let messaging_p3 = handles(3)
        .then(|| messaging_p3::MessagingHandlerPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let watches = compiled
        .exported()
        .any(|name| name.is_of("wasi", "keyvalue") && name.interface == "watcher");
    let watcher = watches
        .then(|| WatchingPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let recipe = Recipe {
        share: compiled.runner.instances.share(),
        engine: engine.clone(),
        compiled: Arc::clone(compiled),
        pre,
        service,
        http,
        messaging,
        messaging_p3,
        watcher,
        log: Arc::clone(&log),
        usage: Arc::clone(&usage),
        cpu: grant.cpu_millis_max.map(CpuShare::new),
        environment: grant.environment.into_iter().collect(),
        egress: Egress::new(
            grant.allowed_hosts,
            inner.config.trust_roots.clone(),
            grant.outbound,
        ),
        memory: MemoryBudget::new(usage, grant.memory_bytes_max),
    };
    Ok(Runnable::new(recipe, grant.reuse))
}

/// Refuses what no entry of the workload covers.
fn check(import: &Import, interface: &dyn Interface, need: &Need<'_>) -> Result<(), LinkError> {
    let wit = &import.wit;
    let (namespace, package) = (wit.namespace.clone(), wit.package.clone());
    let named = wit.interface.clone();
    match &import.label {
        Some(label) if !interface.labels().contains(&wit.interface.as_str()) => {
            Err(no_labels(label, wit))
        }
        Some(_) if interface.keys().contains(&wit.interface.as_str()) => {
            let plain = Import {
                label: None,
                wit: wit.clone(),
            };
            match need.entry(&plain) {
                Some(_) => Ok(()),
                None => Err(LinkError::Undeclared {
                    import: import.to_string(),
                    namespace,
                    package,
                    interface: named,
                }),
            }
        }
        Some(label) if need.entry(import).is_none() => Err(LinkError::NoBackend {
            label: label.clone(),
            namespace,
            package,
            interface: named,
        }),
        Some(_) => Ok(()),
        // An interface of types alone asks nothing of the host.
        None if wit.interface == "types" || need.entry(import).is_some() => Ok(()),
        None if interface.reaches_named(&wit.interface)
            && need.entries(std::slice::from_ref(import)).next().is_some() =>
        {
            Ok(())
        }
        None => Err(LinkError::Undeclared {
            import: import.to_string(),
            namespace,
            package,
            interface: named,
        }),
    }
}

fn no_labels(label: &str, wit: &WitName) -> LinkError {
    LinkError::NoLabels {
        label: label.to_owned(),
        import: wit.to_string(),
    }
}

fn not_served(engine: &Engine, import: &str) -> LinkError {
    let served: Vec<String> = engine
        .0
        .interfaces
        .serves()
        .map(|served| format!("{}:{}@{}", served.namespace, served.package, served.version))
        .collect();
    LinkError::NotServed {
        import: import.to_owned(),
        served: format!("WASI 0.2 and 0.3, {}", served.join(", ")),
    }
}
