//! What runs components: one engine for those of WASI 0.2, a second for those that are asynchronous (WASI 0.3),
//! which is made when the first of them comes.
//!
//! Concurrency costs each call even if nobody uses it, and compiled code depends on it; so the two share
//! nothing but the configuration: each has a pool, code and a linker of its own.

use std::sync::{Arc, OnceLock};
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentDefinedType, ComponentType,
    ComponentTypeDeclaration, InstanceTypeDeclaration, Parser, Payload,
};
use wasmtime::component::Linker;

use crate::compile::CompileError;
use crate::ctx::Ctx;
use crate::limits::Ticker;
use crate::permits::Permits;
use crate::tuning::Wanted;
use crate::{Error, Layout};

/// Calls that wait for an instance.
const CALLS_WAITING_MAX: usize = 4_096;

/// What part of the first pool the second one is.
const SECOND_POOL_PART: u32 = 4;

/// Which of the two a component needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wasi {
    /// Synchronous: WASI 0.2.
    P2,
    /// With asynchronous functions, streams or futures: WASI 0.3, beside 0.2.
    P3,
}

impl Wasi {
    pub(crate) const ALL: [Self; 2] = [Self::P2, Self::P3];

    /// What `component` needs. What is no component needs nothing: the compiler says what it is.
    pub(crate) fn of(component: &[u8]) -> Self {
        let mut payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
        match payloads.any(is_async) {
            true => Self::P3,
            false => Self::P2,
        }
    }
}

fn is_async(payload: Payload<'_>) -> bool {
    match payload {
        Payload::ComponentImportSection(imports) => imports
            .into_iter()
            .flatten()
            .any(|import| is_p3(import.name.name)),
        Payload::ComponentExportSection(exports) => exports
            .into_iter()
            .flatten()
            .any(|export| is_p3(export.name.name)),
        Payload::ComponentTypeSection(types) => {
            types.into_iter().flatten().any(|ty| has_async(&ty))
        }
        Payload::ComponentCanonicalSection(functions) => {
            functions
                .into_iter()
                .flatten()
                .any(|function| match function {
                    CanonicalFunction::Lift { options, .. }
                    | CanonicalFunction::Lower { options, .. } => {
                        options.contains(&CanonicalOption::Async)
                    }
                    CanonicalFunction::ResourceNew { .. }
                    | CanonicalFunction::ResourceDrop { .. }
                    | CanonicalFunction::ResourceRep { .. } => false,
                    _ => true,
                })
        }
        _ => false,
    }
}

fn is_p3(name: &str) -> bool {
    name.starts_with("wasi:") && name.contains("@0.3.")
}

fn has_async(ty: &ComponentType<'_>) -> bool {
    match ty {
        ComponentType::Func(function) => function.async_,
        ComponentType::Defined(defined) => matches!(
            defined,
            ComponentDefinedType::Future(_) | ComponentDefinedType::Stream(_)
        ),
        ComponentType::Instance(declared) => declared.iter().any(|declaration| match declaration {
            InstanceTypeDeclaration::Type(ty) => has_async(ty),
            _ => false,
        }),
        ComponentType::Component(declared) => {
            declared.iter().any(|declaration| match declaration {
                ComponentTypeDeclaration::Type(ty) => has_async(ty),
                _ => false,
            })
        }
        _ => false,
    }
}

/// One engine of wasmtime, with what belongs to it.
pub(crate) struct Runner {
    pub(crate) wasi: Wasi,
    pub(crate) engine: wasmtime::Engine,
    /// With all of WASI; each component's own starts from it.
    pub(crate) linker: Linker<Ctx>,
    pub(crate) layout: Layout,
    /// The largest memory of one instance, in bytes.
    pub(crate) memory_bytes_max: u64,
    /// How many instances may live at once.
    pub(crate) instances_max: u32,
    pub(crate) instances: Permits,
    _ticker: Ticker,
}

impl Runner {
    fn new(wasi: Wasi, wanted: Wanted) -> Result<Self, Error> {
        let start = |error: wasmtime::Error| Error::Start(format!("{error:#}"));
        let (engine, pool) = wanted.allocate(wasi)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(start)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(start)?;
        if wasi == Wasi::P3 {
            wasmtime_wasi::p3::add_to_linker(&mut linker).map_err(start)?;
            wasmtime_wasi_http::p3::add_to_linker(&mut linker).map_err(start)?;
        }
        Ok(Self {
            wasi,
            layout: pool.layout,
            memory_bytes_max: pool.memory_bytes_max,
            instances_max: pool.instances,
            instances: Permits::new(pool.instances as usize, CALLS_WAITING_MAX),
            _ticker: Ticker::start(engine.weak()).map_err(Error::Ticker)?,
            engine,
            linker,
        })
    }
}

/// Both of them.
pub(crate) struct Runners {
    p2: Arc<Runner>,
    /// Made when first needed.
    p3: OnceLock<Result<Arc<Runner>, String>>,
    wanted: Wanted,
}

impl Runners {
    pub(crate) fn new(wanted: Wanted) -> Result<Self, Error> {
        Ok(Self {
            p2: Arc::new(Runner::new(Wasi::P2, wanted)?),
            p3: OnceLock::new(),
            wanted,
        })
    }

    /// The one for WASI 0.2.
    pub(crate) fn p2(&self) -> &Arc<Runner> {
        &self.p2
    }

    /// The one for `wasi`. Blocks while it is made.
    ///
    /// # Errors
    /// [`CompileError::Failed`] when this machine has no room for a second one.
    pub(crate) fn get(&self, wasi: Wasi) -> Result<&Arc<Runner>, CompileError> {
        match wasi {
            Wasi::P2 => Ok(&self.p2),
            Wasi::P3 => self
                .p3
                .get_or_init(|| {
                    tracing::info!(
                        "the first asynchronous component is here: a second engine is started"
                    );
                    Runner::new(Wasi::P3, self.second())
                        .map(Arc::new)
                        .map_err(|error| capabilities::report(&error))
                })
                .as_ref()
                .map_err(|error| CompileError::Failed(error.clone())),
        }
    }

    /// Those that were made.
    pub(crate) fn made(&self) -> impl Iterator<Item = &Runner> {
        let p3 = self.p3.get().and_then(|made| made.as_ref().ok());
        std::iter::once(&self.p2).chain(p3).map(|runner| &**runner)
    }

    /// What is asked of the second pool: a part of what the first one got.
    fn second(&self) -> Wanted {
        Wanted {
            layout: self.p2.layout,
            instances_max: self.p2.instances_max / SECOND_POOL_PART,
            memory_bytes_max: self.p2.memory_bytes_max,
            machine_bytes: self.wanted.machine_bytes / u64::from(SECOND_POOL_PART),
            // The first one may have taken half of it.
            address_bytes: self.wanted.address_bytes / 2,
            pagemap: self.wanted.pagemap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    #[test]
    fn guests_of_wasi_0_3_need_the_second_engine() {
        let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/components/wasm");
        let mut needed = [0, 0];
        for entry in std::fs::read_dir(guests).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let p3 = ["courier", "relay"].contains(&name) || name.ends_with('3');
            let wasi = Wasi::of(&std::fs::read(&path).unwrap());
            assert_eq!(wasi == Wasi::P3, p3, "{name}");
            needed[usize::from(p3)] += 1;
        }
        assert!(needed[0] > 5 && needed[1] > 0, "{needed:?}");
        assert_eq!(Wasi::of(b"no component"), Wasi::P2);
    }
}
