//! `wasmcloud:secrets@2.1.0`: as `secrets.rs`, for asynchronous components; and single secrets, imported under
//! labels that are their keys.

use async_trait::async_trait;
use capabilities::plugin::OpenError;
use capabilities::report;
use capabilities::secrets::{self, Fixed, Secret};
use std::sync::Arc;
use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};

use super::secrets::{Route, open};
use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::wit::{Import, Served};
use bindings::named_imports::wasmcloud::secrets::{secret, store as routed};
use bindings::wasmcloud::secrets::reveal;
use bindings::wasmcloud::secrets::store::{SecretValue, SecretsError};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/secrets-2.1",
        world: "wasmcloud:secrets/imports",
        imports: { default: trappable },
        with: { "wasmcloud:secrets/store.secret": capabilities::secrets::Secret },
        named_imports: {
            "wasmcloud:secrets/store": crate::interface::secrets::Route,
            "wasmcloud:secrets/secret": super::One,
        },
    });
}

/// What a labelled import of one secret reaches.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type One = Arc<Keyed>;

#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Keyed {
    source: Route,
    key: String,
    /// Its value when the component was started: served when the source has it no more.
    first: Secret,
}

/// Serves `wasmcloud:secrets@2.1.0`.
pub(crate) struct Secrets;

#[async_trait]
impl Interface for Secrets {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "wasmcloud",
            package: "secrets",
            interfaces: &["store", "reveal", "secret"],
            version: "2.1.0",
        }]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["store", "secret"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &["secret"]
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
            match (import.wit.interface.as_str(), &import.label) {
                ("reveal", _) => instance(linker, import, |instance| {
                    reveal::add_to_linker_instance::<Ctx, HasView>(instance, view)
                })?,
                ("secret", Some(key)) => {
                    let one = one(need, import, key).await?;
                    instance(linker, import, |instance| {
                        secret::add_to_linker_instance::<Ctx, HasView>(instance, one, view)
                    })?;
                }
                ("secret", None) => {
                    return Err(InterfaceError::Link {
                        import: import.to_string(),
                        reason: "it is to be imported under a label, which is the secret's key"
                            .to_owned(),
                    });
                }
                _ => {
                    let source = match need.entry(import) {
                        Some(entry) => open(need, entry).await?,
                        // It is there for its types, which labelled imports share.
                        None => Arc::new(Fixed::default()),
                    };
                    instance(linker, import, |instance| {
                        routed::add_to_linker_instance::<Ctx, HasView>(instance, source, view)
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// The secret `key` of the entry without a name.
async fn one(need: &Need<'_>, import: &Import, key: &str) -> Result<One, InterfaceError> {
    let plain = Import {
        label: None,
        wit: import.wit.clone(),
    };
    let Some(entry) = need.entry(&plain) else {
        return Err(InterfaceError::Link {
            import: import.to_string(),
            reason: "no entry without a name declares it".to_owned(),
        });
    };
    let failed = |source| InterfaceError::Open {
        capability: "secrets",
        entry: entry.to_string(),
        source: OpenError::Storage(source),
    };
    let source = open(need, entry).await?;
    match source.get(key).await {
        Ok(Some(first)) => Ok(Arc::new(Keyed {
            source,
            key: key.to_owned(),
            first,
        })),
        Ok(None) => Err(failed(format!("there is no secret '{key}'").into())),
        Err(error) => Err(failed(error.into())),
    }
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

impl routed::Host for View<'_> {}

impl<T: 'static> routed::HostWithStore<T> for HasView {
    async fn get(
        accessor: &Accessor<T, Self>,
        source: Route,
        key: String,
    ) -> wasmtime::Result<Result<Resource<Secret>, SecretsError>> {
        Ok(match source.get(&key).await {
            Ok(Some(secret)) => Ok(accessor.with(|mut access| access.get().0.push(secret))?),
            Ok(None) => Err(SecretsError::NotFound),
            Err(error) => Err(error.into()),
        })
    }
}

impl routed::HostSecret for View<'_> {
    fn drop(&mut self, _: Route, this: Resource<Secret>) -> wasmtime::Result<()> {
        self.0.delete(this)?;
        Ok(())
    }
}

impl secret::Host for View<'_> {}

impl<T: 'static> secret::HostWithStore<T> for HasView {
    async fn get(accessor: &Accessor<T, Self>, one: One) -> wasmtime::Result<Resource<Secret>> {
        let secret = match one.source.get(&one.key).await {
            Ok(Some(secret)) => secret,
            Ok(None) | Err(_) => one.first.clone(),
        };
        Ok(accessor.with(|mut access| access.get().0.push(secret))?)
    }
}

impl reveal::Host for View<'_> {}

impl<T: 'static> reveal::HostWithStore<T> for HasView {
    async fn reveal(
        accessor: &Accessor<T, Self>,
        secret: Resource<Secret>,
    ) -> wasmtime::Result<SecretValue> {
        let value = accessor.with(|mut access| access.get().0.get(&secret).cloned())?;
        Ok(match String::from_utf8(value.reveal().to_vec()) {
            Ok(text) => SecretValue::String(text),
            Err(error) => SecretValue::Bytes(error.into_bytes()),
        })
    }
}
