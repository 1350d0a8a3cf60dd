//! `wasi:logging/logging@0.1.0-draft`: events in the host's log, marked with their owner.

use async_trait::async_trait;
use std::sync::Arc;
use wasmtime::component::{HasData, Linker};

use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::{Ctx, LINE_BYTES_MAX, Owner};
use crate::rates::GuestLog;
use crate::wit::{Import, Served};
use bindings::named_imports::wasi::logging::logging;
use bindings::wasi::logging::logging::Level;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/logging",
        world: "wasi:logging/imports",
        imports: { default: async | trappable },
        named_imports: { "wasi:logging/logging": super::Route },
    });
}

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<GuestLog>;

/// Serves `wasi:logging`.
pub(crate) struct Logging;

#[async_trait]
impl Interface for Logging {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasi",
            package: "logging",
            interfaces: &["logging"],
            version: "0.1.0-draft",
        }]
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        imports.iter().try_for_each(|import| {
            instance(linker, import, |instance| {
                let log = Arc::clone(need.log);
                logging::add_to_linker_instance::<Ctx, Stateless>(instance, log, |_| View)
            })
        })
    }
}

/// The start of `text`, as long as a line of the log may be.
fn clip(text: &str) -> &str {
    let end = (0..=LINE_BYTES_MAX.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

struct View;

struct Stateless;

impl HasData for Stateless {
    type Data<'a> = View;
}

impl logging::Host for View {
    async fn log(
        &mut self,
        log: Route,
        level: Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        let (context, message) = (clip(&context), clip(&message));
        if !log.admits(context.len() + message.len()) {
            return Ok(());
        }
        let Owner {
            namespace,
            workload,
            workload_id,
            component,
        } = &*log.owner;
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "guest",
                    namespace, workload, workload_id, component, context, "{message}"
                )
            };
        }
        match level {
            Level::Trace => event!(trace),
            Level::Debug => event!(debug),
            Level::Info => event!(info),
            Level::Warn => event!(warn),
            Level::Error | Level::Critical => event!(error),
        }
        Ok(())
    }
}
