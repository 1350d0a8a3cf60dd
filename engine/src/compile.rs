//! Bytes → [`Compiled`], once per digest.

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::wit::WitName;

/// A checked and compiled component, shared by all workloads that use its bytes.
pub struct Compiled {
    digest: String,
    pub(crate) component: Component,
    imports: Vec<Imported>,
    exports: Vec<String>,
}

/// An import as the component has it.
pub(crate) struct Imported {
    pub(crate) name: String,
    /// The interface that it says to be.
    pub(crate) implements: Option<String>,
}

impl Compiled {
    /// What names the bytes it was made from.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn imports(&self) -> &[Imported] {
        &self.imports
    }

    /// The names of its exports.
    pub fn exports(&self) -> &[String] {
        &self.exports
    }

    /// The exports that are interfaces.
    pub fn exported(&self) -> impl Iterator<Item = WitName> + '_ {
        self.exports.iter().filter_map(|name| WitName::parse(name))
    }
}

/// Why bytes are not a component this host runs.
#[derive(thiserror::Error, Debug, Clone)]
#[non_exhaustive]
pub enum CompileError {
    /// A core module.
    #[error(
        "is a core WebAssembly module, not a component (build it for wasm32-wasip2, or wrap it with wasm-tools component new)"
    )]
    CoreModule,
    /// Neither.
    #[error("is not WebAssembly")]
    NotWasm,
    /// It needs WASI 0.3.
    #[error("needs WASI 0.3 ('{0}'), which this host does not run yet; build it for WASI 0.2")]
    Async(String),
    /// Wasmtime refused it.
    #[error("is not a valid component: {0}")]
    Invalid(String),
    /// The compiler itself failed.
    #[error("could not be compiled: {0}")]
    Failed(String),
}

/// Compiles at most `permits` components at once, away from async threads.
pub(crate) async fn compile(
    engine: &wasmtime::Engine,
    permits: &Arc<Semaphore>,
    digest: &str,
    bytes: Bytes,
) -> Result<Arc<Compiled>, CompileError> {
    match (bytes.get(..4), bytes.get(6)) {
        (Some(b"\0asm"), Some(1)) => {}
        (Some(b"\0asm"), Some(0)) => return Err(CompileError::CoreModule),
        _ => return Err(CompileError::NotWasm),
    }
    // The semaphore is never closed.
    let permit = Arc::clone(permits).acquire_owned().await;
    let engine = engine.clone();
    let digest = digest.to_owned();
    tokio::task::spawn_blocking(move || {
        // Held by the work, not by who waits for it: a start that is given up goes on compiling.
        let _permit = permit;
        let component = Component::new(&engine, &bytes)
            .map_err(|error| CompileError::Invalid(format!("{error:#}")))?;
        let ty = component.component_type();
        let imports = ty
            .imports(&engine)
            .map(|(name, item)| Imported {
                name: name.to_owned(),
                implements: item.implements.map(str::to_owned),
            })
            .collect::<Vec<_>>();
        let exports = ty
            .exports(&engine)
            .filter(|(_, item)| !matches!(item.ty, ComponentItem::Type(_)))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>();
        let imported = imports.iter().flat_map(|import| {
            let implements = import.implements.iter();
            std::iter::once(&import.name).chain(implements)
        });
        match imported.chain(&exports).find(|name| needs_p3(name)) {
            Some(name) => Err(CompileError::Async(name.clone())),
            None => Ok(Arc::new(Compiled {
                digest,
                component,
                imports,
                exports,
            })),
        }
    })
    .await
    .unwrap_or_else(|error| Err(CompileError::Failed(error.to_string())))
}

fn needs_p3(name: &str) -> bool {
    name.starts_with("wasi:") && name.contains("@0.3")
}
