//! What drives the exports of components.

pub(crate) mod guest;
pub mod http;
pub(crate) mod messaging;
pub(crate) mod watcher;

use engine::wit::Served;

/// The exports this host drives.
pub fn drives() -> &'static [Served] {
    &[
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
    ]
}
