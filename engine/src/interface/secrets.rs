//! `wasmcloud:secrets@0.1.0-draft`: values of the host interface entry, or of a backend of the host, shown
//! to whom reveals them.

use async_trait::async_trait;
use capabilities::report;
use capabilities::secrets::{self, Fixed, Secret, SecretSource};
use std::sync::Arc;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::wit::{Import, Served, WitInterface};
use bindings::named_imports::wasmcloud::secrets::store as routed;
use bindings::wasmcloud::secrets::reveal;
use bindings::wasmcloud::secrets::store::{SecretValue, SecretsError};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/secrets",
        world: "wasmcloud:secrets/imports",
        imports: { default: async | trappable },
        with: { "wasmcloud:secrets/store.secret": capabilities::secrets::Secret },
        named_imports: { "wasmcloud:secrets/store": super::Route },
    });
}

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<dyn SecretSource>;

/// Serves `wasmcloud:secrets`.
pub(crate) struct Secrets;

#[async_trait]
impl Interface for Secrets {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasmcloud",
            package: "secrets",
            interfaces: &["store", "reveal"],
            version: "0.1.0-draft",
        }]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["store"]
    }

    fn reaches_named(&self, _interface: &str) -> bool {
        true
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        for import in imports {
            if import.wit.interface == "reveal" {
                instance(linker, import, |instance| {
                    reveal::add_to_linker_instance::<Ctx, HasView>(instance, view)
                })?;
                continue;
            }
            let source = match need.entry(import) {
                Some(entry) => open(need, entry).await?,
                // It is there for its types, which labelled imports share.
                None => Arc::new(Fixed::default()),
            };
            instance(linker, import, |instance| {
                routed::add_to_linker_instance::<Ctx, HasView>(instance, source, view)
            })?;
        }
        Ok(())
    }
}

/// That of the backend which the entry names; without one, the entry's own values.
pub(super) async fn open(need: &Need<'_>, entry: &WitInterface) -> Result<Route, InterfaceError> {
    if entry.config.contains_key("backend") {
        return need
            .open("secrets", entry, &[], |plugin, ask| async move {
                plugin.secrets(&ask).await
            })
            .await;
    }
    let values = entry.config.iter();
    let values = values.map(|(key, value)| (key.clone(), Secret::new(value.clone())));
    Ok(Arc::new(values.collect::<Fixed>()))
}

/// The fewest things an interface needs of a store.
struct View<'a>(&'a mut ResourceTable);

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(ctx: &mut Ctx) -> View<'_> {
    View(&mut ctx.table)
}

impl From<secrets::Error> for SecretsError {
    fn from(error: secrets::Error) -> Self {
        match error {
            secrets::Error::Io { .. } => Self::Io(report(&error)),
            _ => Self::Upstream(report(&error)),
        }
    }
}

impl routed::Host for View<'_> {
    async fn get(
        &mut self,
        source: Route,
        key: String,
    ) -> wasmtime::Result<Result<Resource<Secret>, SecretsError>> {
        Ok(match source.get(&key).await {
            Ok(Some(secret)) => Ok(self.0.push(secret)?),
            Ok(None) => Err(SecretsError::NotFound),
            Err(error) => Err(error.into()),
        })
    }
}

impl routed::HostSecret for View<'_> {
    async fn drop(&mut self, _: Route, this: Resource<Secret>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

impl reveal::Host for View<'_> {
    async fn reveal(&mut self, secret: Resource<Secret>) -> wasmtime::Result<SecretValue> {
        let value = self.0.get(&secret)?.reveal().to_vec();
        Ok(match String::from_utf8(value) {
            Ok(text) => SecretValue::String(text),
            Err(error) => SecretValue::Bytes(error.into_bytes()),
        })
    }
}
