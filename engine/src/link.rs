//! [`Compiled`] → [`Runnable`]: every import is served, or the start is refused with a remedy.

use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::Engine;
use crate::allowed_hosts::AllowedHosts;
use crate::compile::Compiled;
use crate::ctx::Owner;
use crate::interface::http::{Egress, Turns};
use crate::interface::messaging::MessagingHandlerPre;
use crate::interface::{InterfaceError, Need};
use crate::limits::MemoryBudget;
use crate::runnable::{Recipe, Runnable};
use crate::warm::Reuse;
use crate::wit::{WitInterface, WitName};

/// Packages of WASI 0.2 that are always linked.
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
    /// A label (an import that implements an interface under another name).
    #[error("import '{0}' is labelled; this host serves plain imports only so far")]
    Labelled(String),
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
    let need = Need {
        owner: &grant.owner,
        declared: &grant.declared,
        config: &grant.config,
        plugins: &inner.plugins,
        flat_names: inner.config.flat_names,
    };
    let mut by_interface: BTreeMap<usize, Vec<WitName>> = BTreeMap::new();
    for import in compiled.imports() {
        let Some(name) = WitName::parse(import) else {
            return Err(match import.contains([':', '/']) {
                true => not_served(engine, import),
                false => LinkError::Labelled(import.clone()),
            });
        };
        if name.namespace == "wasi" && ALWAYS.contains(&name.package.as_str()) {
            continue;
        }
        let Some(index) = inner.interfaces.find(&name) else {
            return Err(not_served(engine, import));
        };
        // An interface of types alone asks nothing of the host.
        if name.interface != "types" && need.entry(&name).is_none() {
            return Err(LinkError::Undeclared {
                import: import.clone(),
                namespace: name.namespace,
                package: name.package,
                interface: name.interface,
            });
        }
        by_interface.entry(index).or_default().push(name);
    }

    let mut linker = inner.linker.clone();
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
    let http = exports("http", "incoming-handler")
        .then(|| ProxyPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let messaging = exports("messaging", "handler")
        .then(|| MessagingHandlerPre::new(pre.clone()))
        .transpose()
        .map_err(mismatch)?;
    let recipe = Recipe {
        share: inner.instances.share(),
        engine: engine.clone(),
        _compiled: Arc::clone(compiled),
        http,
        messaging,
        owner: grant.owner,
        environment: grant.environment.into_iter().collect(),
        egress: Egress::new(
            grant.allowed_hosts,
            inner.config.trust_roots.clone(),
            grant.outbound,
        ),
        memory: MemoryBudget::new(grant.memory_bytes_max),
    };
    Ok(Runnable::new(recipe, grant.reuse))
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
        served: format!("WASI 0.2, {}", served.join(", ")),
    }
}
