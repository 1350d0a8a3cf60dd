//! `wasi:keyvalue/watcher`: what a component exports. How it is called is in `invoke/watcher.rs`.

pub(crate) use bindings::{Watching, WatchingPre};

mod bindings {
    wasmtime::component::bindgen!({
        inline: "
            package washlet:host;
            world watching {
                export wasi:keyvalue/watcher@0.2.0-draft;
            }
        ",
        path: "../wit/keyvalue",
        world: "washlet:host/watching",
        imports: { default: async | trappable },
        exports: { default: async },
        with: { "wasi:keyvalue/store": crate::interface::keyvalue::p2::bindings::wasi::keyvalue::store },
    });
}
