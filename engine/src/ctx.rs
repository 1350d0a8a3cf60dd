//! The state of one instance: the `T` of `Store<T>`.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::{HostFutureTrailers, HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest,
    HostOutgoingResponse, HostResponseOutparam,
};
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::interface::http::Outgoing;
use crate::limits::Limits;
use crate::runnable::Recipe;
use crate::shards::Handle;
use crate::under_way::UnderWay;

/// What every instance has: resources, WASI, outgoing HTTP, limits. Interfaces add nothing to it; their
/// state lives in the closures they link.
pub struct Ctx {
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) http: WasiHttpCtx,
    pub(crate) outgoing: Outgoing,
    pub(crate) limits: Limits,
    /// Made when an asynchronous interface is called.
    pub(crate) under_way: Option<UnderWay>,
    pub(crate) recipe: Handle<Recipe>,
}

impl Ctx {
    /// The resources of this instance.
    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    /// How many resources a call has left behind; `None` when some belong to its request, its response or
    /// a request of its own, which would go on beyond it.
    pub(crate) fn kept_resources(&mut self) -> Option<usize> {
        let mut kept = 0;
        for resource in self.table.iter_mut() {
            let of_the_call = resource.is::<HostIncomingRequest>()
                || resource.is::<HostIncomingBody>()
                || resource.is::<HostFutureTrailers>()
                || resource.is::<HostOutgoingResponse>()
                || resource.is::<HostOutgoingBody>()
                || resource.is::<HostResponseOutparam>()
                || resource.is::<HostOutgoingRequest>()
                || resource.is::<HostFutureIncomingResponse>()
                || resource.is::<HostIncomingResponse>()
                || resource.is::<p3::Request>()
                || resource.is::<p3::Response>();
            if of_the_call {
                return None;
            }
            kept += 1;
        }
        Some(kept)
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Ctx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.outgoing,
        }
    }
}

/// Who an instance belongs to, for logs.
#[derive(Debug)]
pub struct Owner {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// The workload's id.
    pub workload_id: String,
    /// The component's name.
    pub component: String,
}

/// The longest line of guest output that is logged as one, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 8 << 10;

/// A guest's stdout or stderr: lines in the host's log, marked with their owner.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    recipe: Handle<Recipe>,
    stream: &'static str,
}

impl GuestOutput {
    pub(crate) fn new(recipe: Handle<Recipe>, stream: &'static str) -> Self {
        Self { recipe, stream }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Lines {
            output: self.clone(),
            line: Vec::new(),
        })
    }
}

struct Lines {
    output: GuestOutput,
    line: Vec<u8>,
}

impl Lines {
    fn emit(&mut self) {
        let log = &self.output.recipe.log;
        if !log.admits(self.line.len()) {
            self.line.clear();
            return;
        }
        let line = String::from_utf8_lossy(&self.line);
        let Owner {
            namespace,
            workload,
            workload_id,
            component,
        } = &*log.owner;
        tracing::info!(
            target: "guest",
            namespace, workload, workload_id, component,
            stream = self.output.stream,
            "{}", line.trim_end_matches('\r')
        );
        self.line.clear();
    }
}

impl AsyncWrite for Lines {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        for byte in bytes {
            if *byte == b'\n' {
                self.emit();
            } else {
                self.line.push(*byte);
                if self.line.len() >= LINE_BYTES_MAX {
                    self.emit();
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.emit();
        }
    }
}
