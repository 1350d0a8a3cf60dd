//! What serves imports: one implementation per WIT package, over any storage.
//!
//! An [`Interface`] opens the capability that the workload configured and links functions that hold it.
//! Nothing is looked up when a guest calls: the capability is in the closure.

pub(crate) mod blobstore;
pub(crate) mod config;
pub(crate) mod http;
pub(crate) mod keyvalue;
pub(crate) mod logging;
pub(crate) mod messaging;
pub(crate) mod messaging_p3;
pub(crate) mod postgres;
pub(crate) mod secrets;
pub(crate) mod secrets_p3;

use async_trait::async_trait;
use capabilities::plugin::{Ask, OpenError, Plugin, Plugins, Settings};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use wasmtime::component::Linker;

use crate::ctx::{Ctx, Owner};
use crate::rates::GuestLog;
use crate::wit::{Import, Served, WitInterface, WitName};

/// Serves one family of WIT packages to components.
#[async_trait]
pub trait Interface: Send + Sync + 'static {
    /// The packages it serves.
    fn serves(&self) -> &'static [Served];

    /// The interfaces among them that may be imported under labels, each label another host interface entry.
    fn labels(&self) -> &'static [&'static str] {
        &[]
    }

    /// The interfaces among [`labels`](Interface::labels) whose labels are keys within the entry without a name.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether a plain import of `interface` is of use when all entries have names: what is opened through
    /// them can be passed to it, or it chooses among them.
    fn reaches_named(&self, interface: &str) -> bool {
        let _ = interface;
        false
    }

    /// Opens what the workload configured and adds functions to `linker` for each of `imports`.
    ///
    /// Shape: `imports` are the component's imports that [`serves`](Interface::serves) covers, at least
    /// one; each is to be linked under the name the component uses.
    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError>;
}

/// Why an interface could not be linked.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum InterfaceError {
    /// The capability could not be opened.
    #[error("failed to open {capability} for host interface '{entry}'")]
    Open {
        /// `keyvalue`, `messaging` …
        capability: &'static str,
        /// The entry that asked for it.
        entry: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// Wasmtime refused the functions.
    #[error("failed to link '{import}': {reason}")]
    Link {
        /// The import.
        import: String,
        /// Wasmtime's words.
        reason: String,
    },
}

/// The interfaces of a host.
#[derive(Clone)]
pub struct Interfaces(Vec<Arc<dyn Interface>>);

impl Default for Interfaces {
    /// All that this crate has.
    fn default() -> Self {
        Self(Vec::new())
            .with(keyvalue::KeyValue)
            .with(blobstore::Blobstore)
            .with(config::Config)
            .with(logging::Logging)
            .with(messaging::Messaging)
            .with(messaging_p3::Messaging)
            .with(postgres::Postgres)
            .with(secrets::Secrets)
            .with(secrets_p3::Secrets)
    }
}

impl Interfaces {
    /// Registers `interface`.
    #[must_use]
    pub fn with(mut self, interface: impl Interface) -> Self {
        self.0.push(Arc::new(interface));
        self
    }

    /// All packages served, beyond WASI itself.
    pub fn serves(&self) -> impl Iterator<Item = Served> + '_ {
        self.0
            .iter()
            .flat_map(|interface| interface.serves().iter().copied())
    }

    /// What serves `name`, and its index.
    pub(crate) fn find(&self, name: &WitName) -> Option<(usize, &Arc<dyn Interface>)> {
        let mut all = self.0.iter().enumerate();
        all.find(|(_, interface)| interface.serves().iter().any(|served| served.serves(name)))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Arc<dyn Interface>> {
        self.0.get(index)
    }
}

/// One component's needs: who it is, what its workload declared, and where capabilities come from.
pub struct Need<'a> {
    /// Who it is.
    pub owner: &'a Arc<Owner>,
    /// Where what it says goes.
    pub log: &'a Arc<GuestLog>,
    /// The workload's host interface entries.
    pub declared: &'a [WitInterface],
    /// The component's own `config`.
    pub config: &'a BTreeMap<String, String>,
    /// Where capabilities come from.
    pub plugins: &'a Plugins,
    /// Names belong to the storage, not to the namespace.
    pub flat_names: bool,
}

impl<'a> Need<'a> {
    /// The entry that covers `import`: the one that its label names, the one without a name for a plain
    /// import.
    pub fn entry(&self, import: &Import) -> Option<&'a WitInterface> {
        let name = import.label.as_deref().unwrap_or_default();
        self.declared
            .iter()
            .find(|entry| entry.name == name && entry.covers(&import.wit))
    }

    /// The entries that cover any of `imports`, whatever their names.
    pub fn entries(&self, imports: &[Import]) -> impl Iterator<Item = &'a WitInterface> {
        self.declared
            .iter()
            .filter(|entry| imports.iter().any(|import| entry.covers(&import.wit)))
    }

    /// How a plugin is asked for what `entry` declares; `elsewhere` are the config keys that others read.
    pub fn ask(&self, entry: &'a WitInterface, elsewhere: &[&'static str]) -> Ask<'a> {
        Ask {
            namespace: &self.owner.namespace,
            workload: &self.owner.workload,
            component: &self.owner.component,
            flat_names: self.flat_names,
            settings: Settings::new(&entry.config).also_known(elsewhere),
        }
    }

    /// Opens a capability of the plugin that `entry` selects, refusing config keys that nobody reads.
    ///
    /// # Errors
    /// [`InterfaceError::Open`].
    pub async fn open<'s, T, F>(
        &'s self,
        capability: &'static str,
        entry: &'s WitInterface,
        elsewhere: &[&'static str],
        open: impl FnOnce(&'s dyn Plugin, Arc<Ask<'s>>) -> F,
    ) -> Result<T, InterfaceError>
    where
        F: Future<Output = Result<T, OpenError>>,
    {
        let ask = self.ask(entry, elsewhere);
        let plugin = self.plugins.select(&ask.settings);
        self.open_of(plugin, capability, entry, ask, open).await
    }

    /// The same of `plugin`, which may be another than the usual one.
    async fn open_of<'s, T, F>(
        &'s self,
        plugin: Result<&'s dyn Plugin, OpenError>,
        capability: &'static str,
        entry: &'s WitInterface,
        ask: Ask<'s>,
        open: impl FnOnce(&'s dyn Plugin, Arc<Ask<'s>>) -> F,
    ) -> Result<T, InterfaceError>
    where
        F: Future<Output = Result<T, OpenError>>,
    {
        let failed = |source| InterfaceError::Open {
            capability,
            entry: entry.to_string(),
            source,
        };
        let ask = Arc::new(ask);
        let plugin = plugin.map_err(failed)?;
        let opened = open(plugin, Arc::clone(&ask)).await.map_err(failed)?;
        ask.settings.finish().map_err(failed)?;
        Ok(opened)
    }
}

/// Links one import: `add` defines its functions. For who implements an [`Interface`].
///
/// # Errors
/// [`InterfaceError::Link`], which names the import.
pub fn instance(
    linker: &mut Linker<Ctx>,
    import: &Import,
    add: impl FnOnce(&mut wasmtime::component::LinkerInstance<'_, Ctx>) -> wasmtime::Result<()>,
) -> Result<(), InterfaceError> {
    let name = import.to_string();
    linker
        .instance(&name)
        .and_then(|mut instance| add(&mut instance))
        .map_err(|error| InterfaceError::Link {
            import: name.clone(),
            reason: format!("{error:#}"),
        })
}
