//! What drives the exports of components: HTTP and messages on every host, and the [`Trigger`]s it is built with.

pub(crate) mod driven;
pub(crate) mod guest;
pub mod http;
pub(crate) mod messaging;
pub(crate) mod watcher;

use async_trait::async_trait;
use capabilities::BoxError;
use capabilities::plugin::Settings;
use engine::wit::{Served, WitInterface, WitName};
use std::sync::Arc;

pub use driven::{Driven, Error, Guard};

/// A source of events beside HTTP and messages, which calls exports of components.
#[async_trait]
pub trait Trigger: Send + Sync + 'static {
    /// The exports it drives.
    fn drives(&self) -> &'static [Served];

    /// Begins to call one component that exports some of them, because a host interface entry of its
    /// workload lists them.
    ///
    /// Shape: called at each start of the workload, before HTTP requests reach it; when this returns, events
    /// do. `settings` are the entry's; a key that nobody has read by then is refused.
    ///
    /// # Errors
    /// What the trigger says; then the workload does not start.
    async fn attach(&self, driven: Driven, settings: &Settings<'_>) -> Result<Guard, BoxError>;
}

/// The triggers of a host.
#[derive(Clone, Default)]
pub struct Triggers(Vec<Arc<dyn Trigger>>);

impl Triggers {
    /// Registers `trigger`.
    #[must_use]
    pub fn with(mut self, trigger: impl Trigger) -> Self {
        self.0.push(Arc::new(trigger));
        self
    }

    /// All exports driven, by HTTP and messages, too.
    pub fn drives(&self) -> impl Iterator<Item = Served> + '_ {
        let registered = self.0.iter().flat_map(|trigger| trigger.drives());
        BUILT_IN.iter().chain(registered).copied()
    }

    /// The registered ones that `entry` asks to drive something.
    pub(crate) fn find<'a>(
        &'a self,
        entry: &'a WitInterface,
    ) -> impl Iterator<Item = &'a dyn Trigger> {
        let asked = |trigger: &&dyn Trigger| entry.names().any(|name| drives(*trigger, &name));
        self.0.iter().map(|trigger| &**trigger).filter(asked)
    }
}

/// Whether `entry` asks `trigger` to drive the export `name`.
pub(crate) fn asks(trigger: &dyn Trigger, entry: &WitInterface, name: &WitName) -> bool {
    entry.covers(name) && entry.interfaces.contains(&name.interface) && drives(trigger, name)
}

fn drives(trigger: &dyn Trigger, name: &WitName) -> bool {
    trigger.drives().iter().any(|served| served.serves(name))
}

/// What HTTP, messages and changes of keys drive.
const BUILT_IN: &[Served] = &[
    Served {
        namespace: "wasi",
        package: "http",
        interfaces: &["incoming-handler"],
        version: "0.2.0",
    },
    Served {
        namespace: "wasi",
        package: "http",
        interfaces: &["handler"],
        version: "0.3.0",
    },
    Served {
        namespace: "wasi",
        package: "keyvalue",
        interfaces: &["watcher"],
        version: "0.2.0-draft",
    },
    Served {
        namespace: "wasmcloud",
        package: "messaging",
        interfaces: &["handler"],
        version: "0.2.0",
    },
    Served {
        namespace: "wasmcloud",
        package: "messaging",
        interfaces: &["handler"],
        version: "0.3.0",
    },
];
