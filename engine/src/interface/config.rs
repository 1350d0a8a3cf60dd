//! `wasi:config/store@0.2.0-rc.1`: a live bucket over the component's own values over those of the host
//! interface entry.

use async_trait::async_trait;
use capabilities::config::{ConfigSource, Layered};
use capabilities::report;
use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime::component::{HasData, Linker};

use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::wit::{Import, Served, WitInterface};
use bindings::named_imports::wasi::config::store;
use bindings::wasi::config::store::Error;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/config",
        world: "wasi:config/imports",
        imports: { default: async | trappable },
        named_imports: { "wasi:config/store": super::Route },
    });
}

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<Layered>;

/// Serves `wasi:config`.
pub(crate) struct Config;

#[async_trait]
impl Interface for Config {
    fn serves(&self) -> &'static [Served] {
        const STORE: Served = Served {
            namespace: "wasi",
            package: "config",
            interfaces: &["store"],
            version: "0.2.0-rc.1",
        };
        // The draft differs in nothing but its version.
        const DRAFT: Served = Served {
            version: "0.2.0-draft",
            ..STORE
        };
        &[STORE, DRAFT]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["store"]
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        for import in imports {
            let (live, values) = match need.entry(import) {
                Some(entry) => open(need, entry).await?,
                None => (None, BTreeMap::new()),
            };
            let own: [Arc<dyn ConfigSource>; 2] = [Arc::new(need.config.clone()), Arc::new(values)];
            let route = Arc::new(Layered::new(live.into_iter().chain(own).collect()));
            instance(linker, import, |instance| {
                store::add_to_linker_instance::<Ctx, Stateless>(instance, route, |_| View)
            })?;
        }
        Ok(())
    }
}

/// The live source that an entry with a `backend` names, and the values of the entry itself.
async fn open(
    need: &Need<'_>,
    entry: &WitInterface,
) -> Result<(Option<Arc<dyn ConfigSource>>, BTreeMap<String, String>), InterfaceError> {
    if !entry.config.contains_key("backend") {
        return Ok((None, entry.config.clone()));
    }
    let ask = need.ask(entry, &[]);
    let live = async { need.plugins.select(&ask.settings)?.config(&ask).await };
    match live.await {
        // What says where the source is is no value; all else is.
        Ok(live) => Ok((Some(live), ask.settings.unread())),
        Err(source) => Err(InterfaceError::Open {
            capability: "config",
            entry: entry.to_string(),
            source,
        }),
    }
}

struct View;

struct Stateless;

impl HasData for Stateless {
    type Data<'a> = View;
}

fn failed(error: &capabilities::config::Error) -> Error {
    match error {
        capabilities::config::Error::Unavailable(_) => Error::Io(report(error)),
        _ => Error::Upstream(report(error)),
    }
}

impl store::Host for View {
    async fn get(
        &mut self,
        source: Route,
        key: String,
    ) -> wasmtime::Result<Result<Option<String>, Error>> {
        Ok(source.get(&key).await.map_err(|error| failed(&error)))
    }

    async fn get_all(
        &mut self,
        source: Route,
    ) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        let all = source.all().await.map_err(|error| failed(&error));
        Ok(all.map(|all| all.into_iter().collect()))
    }
}
