//! Bytes → [`Compiled`], once per digest.

use bytes::Bytes;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::Layout;
use crate::code::CodeStore;
use crate::compiler::{Compiler, Failure};
use crate::runner::{Runner, Runners, Wasi};
use crate::wit::WitName;

/// A checked and compiled component, shared by all workloads that use its bytes.
pub struct Compiled {
    digest: String,
    /// What runs it.
    pub(crate) runner: Arc<Runner>,
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
    /// Wasmtime refused it.
    #[error("is not a valid component: {0}")]
    Invalid(String),
    /// The compiler itself failed.
    #[error("could not be compiled: {0}")]
    Failed(String),
}

/// Makes [`Compiled`] of bytes, or of code that was kept.
pub(crate) struct Compile {
    pub(crate) runners: Arc<Runners>,
    /// Compilations at once.
    pub(crate) permits: Arc<Semaphore>,
    /// `None`: this process compiles.
    pub(crate) compiler: Option<Compiler>,
    /// `None`: nothing is kept.
    pub(crate) store: Option<CodeStore>,
    pub(crate) compiled: AtomicU64,
}

impl Compile {
    /// What is on disk for `digest`.
    pub(crate) async fn load(self: Arc<Self>, digest: &str) -> Option<Arc<Compiled>> {
        let wasi = self.store.as_ref()?.has(digest)?;
        let (this, digest) = (Arc::clone(&self), digest.to_owned());
        let load = move || {
            let store = this.store.as_ref()?;
            let began = Instant::now();
            let loaded = store.load(&digest, wasi, |path| {
                let runner = this.runners.get(wasi)?;
                Ok::<_, CompileError>(Compiled::new(runner, &digest, map(&runner.engine, path)?))
            })?;
            tracing::info!(digest, took = ?began.elapsed(), "compiled code was on disk");
            Some(Arc::new(loaded))
        };
        tokio::task::spawn_blocking(load).await.ok().flatten()
    }

    /// Compiles `bytes`, away from async threads, and keeps the code.
    pub(crate) async fn compile(
        self: Arc<Self>,
        digest: &str,
        bytes: Bytes,
    ) -> Result<Arc<Compiled>, CompileError> {
        match (bytes.get(..4), bytes.get(6)) {
            (Some(b"\0asm"), Some(1)) => {}
            (Some(b"\0asm"), Some(0)) => return Err(CompileError::CoreModule),
            _ => return Err(CompileError::NotWasm),
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let began = Instant::now();
        let (this, looked_at) = (Arc::clone(&self), bytes.clone());
        let choose = move || {
            let wasi = Wasi::of(&looked_at);
            this.runners
                .get(wasi)
                .map(|runner| (wasi, Arc::clone(runner)))
        };
        let chosen = tokio::task::spawn_blocking(choose).await;
        let (wasi, runner) =
            chosen.unwrap_or_else(|error| Err(CompileError::Failed(error.to_string())))?;
        let code = match &self.compiler {
            Some(compiler) => self.outside(compiler, runner.layout, &bytes).await?,
            None => None,
        };
        let (this, digest, size) = (Arc::clone(&self), digest.to_owned(), bytes.len());
        let finish = move || {
            // Held by the work, not by who waits for it: a start that is given up goes on compiling.
            let _permit = permit;
            let compiled = match code {
                Some(code) => match this.take_up(&digest, wasi, &runner, code) {
                    // Under an emulator, say: what this process runs on is not what the other saw.
                    Err(CompileError::Failed(error)) => {
                        tracing::warn!(
                            digest,
                            error,
                            "what the compiler's process made does not fit this one, which compiles"
                        );
                        this.here(&digest, wasi, &runner, &bytes)?
                    }
                    taken => taken?,
                },
                None => this.here(&digest, wasi, &runner, &bytes)?,
            };
            this.compiled.fetch_add(1, Ordering::Relaxed);
            tracing::info!(digest, size, took = ?began.elapsed(), "component compiled");
            Ok(Arc::new(compiled))
        };
        tokio::task::spawn_blocking(finish)
            .await
            .unwrap_or_else(|error| Err(CompileError::Failed(error.to_string())))
    }

    /// Code from the compiler's process; `None` when that cannot be started.
    async fn outside(
        &self,
        compiler: &Compiler,
        layout: Layout,
        bytes: &Bytes,
    ) -> Result<Option<Code>, CompileError> {
        let mut code = match self.store.as_ref().map(CodeStore::temp) {
            Some(Ok(temp)) => Code::Disk(temp),
            Some(Err(error)) => {
                tracing::warn!(%error, "compiled code cannot be kept on disk");
                Code::memory()?
            }
            None => Code::memory()?,
        };
        loop {
            let output = code.reopen().map_err(in_the_way)?;
            let compiled = compiler.compile(layout, bytes.clone(), output).await;
            match (compiled, &code) {
                (Ok(()), _) => return Ok(Some(code)),
                (Err(Failure::Compile(error)), _) => return Err(error),
                (Err(Failure::Spawn(error)), _) => {
                    tracing::warn!(
                        %error, program = %compiler.program.display(),
                        "the compiler's process cannot be started; this one compiles"
                    );
                    return Ok(None);
                }
                (Err(Failure::Output(error)), Code::Disk(_)) => {
                    tracing::warn!(error, "compiled code cannot be kept on disk");
                    code = Code::memory()?;
                }
                (Err(Failure::Output(error)), Code::Memory(_)) => {
                    return Err(CompileError::Failed(error));
                }
            }
        }
    }

    /// Maps what the compiler made, and keeps it.
    fn take_up(
        &self,
        digest: &str,
        wasi: Wasi,
        runner: &Arc<Runner>,
        code: Code,
    ) -> Result<Compiled, CompileError> {
        let component = match &code {
            Code::Disk(temp) => map(&runner.engine, temp.path()),
            Code::Memory(file) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                map(&runner.engine, path.as_ref())
            }
        };
        let component = component.map_err(|error| CompileError::Failed(format!("{error:#}")))?;
        let compiled = Compiled::new(runner, digest, component);
        if let (Some(store), Code::Disk(temp)) = (&self.store, code)
            && let Err(error) = store.keep(digest, wasi, temp)
        {
            tracing::warn!(%error, digest, "compiled code cannot be kept on disk");
        }
        Ok(compiled)
    }

    /// Compiles in this process.
    fn here(
        &self,
        digest: &str,
        wasi: Wasi,
        runner: &Arc<Runner>,
        bytes: &Bytes,
    ) -> Result<Compiled, CompileError> {
        let engine = &runner.engine;
        let invalid = |error: wasmtime::Error| CompileError::Invalid(format!("{error:#}"));
        let temp = self.store.as_ref().map(CodeStore::temp);
        let Some(Ok(mut temp)) = temp else {
            let component = Component::new(engine, bytes).map_err(invalid)?;
            return Ok(Compiled::new(runner, digest, component));
        };
        let code = engine.precompile_component(bytes).map_err(invalid)?;
        match temp.write_all(&code) {
            Ok(()) => {
                drop(code);
                self.take_up(digest, wasi, runner, Code::Disk(temp))
            }
            Err(error) => {
                tracing::warn!(%error, "compiled code cannot be kept on disk");
                let mut memory = Code::memory()?.reopen().map_err(in_the_way)?;
                memory.write_all(&code).map_err(in_the_way)?;
                self.take_up(digest, wasi, runner, Code::Memory(memory))
            }
        }
    }
}

/// What the compiler has written.
enum Code {
    Disk(NamedTempFile),
    /// A file that is only in memory.
    Memory(File),
}

impl Code {
    fn memory() -> Result<Self, CompileError> {
        let file = rustix::fs::memfd_create("compiled", MemfdFlags::CLOEXEC);
        let file = file.map_err(|error| in_the_way(error.into()))?;
        Ok(Self::Memory(file.into()))
    }

    /// The same file for somebody else.
    fn reopen(&self) -> io::Result<File> {
        match self {
            Self::Disk(temp) => temp.as_file().try_clone(),
            Self::Memory(file) => file.try_clone(),
        }
    }
}

fn in_the_way(error: io::Error) -> CompileError {
    CompileError::Failed(format!("there is no place for its code: {error}"))
}

impl Compiled {
    fn new(runner: &Arc<Runner>, digest: &str, component: Component) -> Self {
        let (ty, engine) = (component.component_type(), &runner.engine);
        let imports = ty
            .imports(engine)
            .map(|(name, item)| Imported {
                name: name.to_owned(),
                implements: item.implements.map(str::to_owned),
            })
            .collect::<Vec<_>>();
        let exports = ty
            .exports(engine)
            .filter(|(_, item)| !matches!(item.ty, ComponentItem::Type(_)))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>();
        Self {
            digest: digest.to_owned(),
            runner: Arc::clone(runner),
            component,
            imports,
            exports,
        }
    }
}

/// The component whose code is in the file; where files may not be executed, a copy in memory.
#[expect(
    unsafe_code,
    reason = "code is executed; it comes from this host's compiler, see `code` for how that is known"
)]
fn map(engine: &wasmtime::Engine, path: &Path) -> Result<Component, CompileError> {
    let failed = |error: wasmtime::Error| CompileError::Failed(format!("{error:#}"));
    // SAFETY: the file was written by the compiler of this host, or has the tag that says so, and nobody
    // else writes to it: the directory is the host's own.
    match unsafe { Component::deserialize_file(engine, path) } {
        Ok(component) => Ok(component),
        Err(error) => {
            tracing::debug!(%error, file = %path.display(), "compiled code cannot be mapped");
            let code = std::fs::read(path).map_err(in_the_way)?;
            // SAFETY: as above.
            unsafe { Component::deserialize(engine, code) }.map_err(failed)
        }
    }
}
