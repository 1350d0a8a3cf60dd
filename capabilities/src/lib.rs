//! What a component may ask of a host, as plain Rust traits.
//!
//! A component's imports are served by interfaces, its exports are driven by triggers; both stand on
//! the capabilities declared here; plugins provide capabilities and know no wasm.
//!
//! | capability | trait | what serves it |
//! |---|---|---|
//! | key-value | [`KeyValueStore`](keyvalue::KeyValueStore) | `wasi:keyvalue` |
//! | blobs | [`BlobStore`](blobstore::BlobStore) | `wasi:blobstore` |
//! | messages | [`MessageBus`](messaging::MessageBus) | `wasmcloud:messaging` |
//! | configuration | [`ConfigSource`](config::ConfigSource) | `wasi:config` |
//! | secrets | [`SecretSource`](secrets::SecretSource) | `wasmcloud:secrets` |
//! | databases | [`SqlDatabase`](sql::SqlDatabase) | `wasmcloud:postgres` |
//!
//! A storage implements [`Plugin`](plugin::Plugin) and offers whichever of them it can. [`memory`] is
//! the plugin for development and tests; [`contract`] holds the cases every plugin must pass.
//!
//! Invariant: this crate does no I/O and depends on no other crate of the workspace.

pub mod addresses;
pub mod blobstore;
pub mod config;
pub mod contract;
pub mod keyvalue;
pub mod memory;
pub mod messaging;
pub mod names;
pub mod plugin;
pub mod secrets;
pub mod sql;

/// An error of a storage's client library, carried as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A stranger's text, short and printable enough for an error or a log.
pub fn quote(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let short: String = text.chars().take(CHARS_MAX).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", short.escape_debug())
}

/// The texts of `error` and all its sources, joined by `: `, each said once.
///
/// Shape: the one rendering used at the edges (replies, logs, guests' `other(..)` cases). A source whose
/// text the chain already ends with is skipped, because some libraries repeat their source.
pub fn report(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}
