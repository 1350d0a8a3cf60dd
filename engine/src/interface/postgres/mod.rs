//! `wasmcloud:postgres`: databases that entries name, for both engines.

mod p2;
mod p3;
mod parts;
mod values;

use async_trait::async_trait;
use capabilities::sql::{SqlDatabase, Value};
use std::sync::Arc;
use wasmtime::component::{Linker, LinkerInstance};

use super::{Interface, InterfaceError, Need, instance};
use crate::ctx::Ctx;
use crate::wit::{Import, Served, WitInterface};

/// What serves the functions of one import.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub type Route = Arc<dyn SqlDatabase>;

/// Where functions are added.
type Functions<'a> = LinkerInstance<'a, Ctx>;

/// How the interfaces of a version are linked.
struct Links {
    types: fn(&mut Functions<'_>) -> wasmtime::Result<()>,
    query: fn(&mut Functions<'_>, Route) -> wasmtime::Result<()>,
    prepared: fn(&mut Functions<'_>, Route) -> wasmtime::Result<()>,
}

/// Serves `wasmcloud:postgres`.
pub(crate) struct Postgres;

#[async_trait]
impl Interface for Postgres {
    fn serves(&self) -> &'static [Served] {
        &[
            Served {
                namespace: "wasmcloud",
                package: "postgres",
                interfaces: &["types", "query", "prepared"],
                version: "0.1.1-draft",
            },
            Served {
                namespace: "wasmcloud",
                package: "postgres",
                interfaces: &["types", "query", "prepared"],
                version: "0.2.0",
            },
        ]
    }

    fn labels(&self) -> &'static [&'static str] {
        &["query", "prepared"]
    }

    /// Types are those of labelled imports, too.
    fn reaches_named(&self, interface: &str) -> bool {
        interface == "types"
    }

    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> Result<(), InterfaceError> {
        // What is prepared by one import is executed by another of the same entry.
        let mut opened: Vec<(&WitInterface, Route)> = Vec::new();
        for import in imports {
            let links = match import.wit.version.as_ref().is_none_or(|v| v.pre.is_empty()) {
                true => p3::LINKS,
                false => p2::LINKS,
            };
            let interface = import.wit.interface.as_str();
            let Some(entry) = need.entry(import).filter(|_| interface != "types") else {
                instance(linker, import, links.types)?;
                continue;
            };
            let known = opened.iter().find(|(of, _)| std::ptr::eq(*of, entry));
            let route = match known {
                Some((_, route)) => Arc::clone(route),
                None => {
                    let ask = need.ask(entry, &[]);
                    let plugin = need.plugins.select_or(&ask.settings, "postgres");
                    let open =
                        need.open_of(plugin, "database", entry, ask, |plugin, ask| async move {
                            plugin.sql(&ask).await
                        });
                    let route = open.await?;
                    opened.push((entry, Arc::clone(&route)));
                    route
                }
            };
            instance(linker, import, |functions| match interface {
                "prepared" => (links.prepared)(functions, route),
                _ => (links.query)(functions, route),
            })?;
        }
        Ok(())
    }
}

/// What the arguments of a call take, about, in bytes.
fn size(statement: &str, params: &[Value]) -> usize {
    fn of(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::Text(_, text) => text.len(),
                Value::Bytea(bytes) | Value::Bits(_, _, bytes) => bytes.len(),
                Value::Shape(_, points) => size_of_val(points.as_slice()),
                Value::PgSnapshot(_, _, open) => size_of_val(open.as_slice()),
                Value::Int2Vector(numbers) => size_of_val(numbers.as_slice()),
                Value::TsVector(lexemes) => {
                    lexemes.iter().map(|lexeme| 32 + lexeme.data.len()).sum()
                }
                Value::Hstore(pairs) => pairs
                    .iter()
                    .map(|(key, value)| 48 + key.len() + value.as_ref().map_or(0, String::len))
                    .sum(),
                Value::Array(_, values) => values.iter().map(of).sum(),
                _ => 0,
            }
    }
    statement.len() + params.iter().map(of).sum::<usize>()
}
