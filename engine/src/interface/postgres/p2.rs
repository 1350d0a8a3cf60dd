//! `wasmcloud:postgres@0.1.1-draft` as words: results are collected, within the entry's limits.

use capabilities::report;
use capabilities::sql;
use wasmtime::component::HasData;

use super::{Links, Route};
use crate::ctx::Ctx;
use bindings::named_imports::wasmcloud::postgres::{prepared, query};
use bindings::wasmcloud::postgres::types::{
    self, PgValue, PreparedStatementExecError, QueryError, ResultRow, ResultRowEntry,
    StatementPrepareError,
};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit/postgres-0.1",
        world: "wasmcloud:postgres/imports",
        imports: { default: async | trappable },
        named_imports: {
            "wasmcloud:postgres/query": crate::interface::postgres::Route,
            "wasmcloud:postgres/prepared": crate::interface::postgres::Route,
        },
    });
}

super::values::conversions!(types);

/// Nothing of the store is needed.
struct View;

struct HasView;

impl HasData for HasView {
    type Data<'a> = View;
}

fn view(_: &mut Ctx) -> View {
    View
}

pub(super) const LINKS: Links = Links {
    types: |functions| types::add_to_linker_instance::<Ctx, HasView>(functions, view),
    query: |functions, route| query::add_to_linker_instance::<Ctx, HasView>(functions, route, view),
    prepared: |functions, route| {
        prepared::add_to_linker_instance::<Ctx, HasView>(functions, route, view)
    },
};

impl types::Host for View {}

/// Shape: the texts are those of the reference, as far as it has them.
fn failed(what: &str, error: sql::Error) -> QueryError {
    match error {
        sql::Error::InvalidParams(why) => QueryError::InvalidParams(why),
        sql::Error::InvalidQuery(why) => QueryError::InvalidQuery(why),
        error @ sql::Error::Failed(_) => {
            QueryError::InvalidQuery(format!("{what}: {}", report(&error)))
        }
        error => QueryError::Unexpected(format!("{what}: {}", report(&error))),
    }
}

fn params(params: Vec<PgValue>) -> Result<Vec<sql::Value>, String> {
    let values = params
        .into_iter()
        .enumerate()
        .map(|(index, value)| from_wit(value).map_err(|why| format!("${}: {why}", index + 1)));
    values.collect()
}

fn rows(columns: &[String], rows: Vec<sql::Row>) -> Result<Vec<ResultRow>, String> {
    let row = |row: sql::Row| {
        let values = row.values.into_iter().zip(columns);
        let entries = values.map(|(value, name)| {
            Ok(ResultRowEntry {
                column_name: name.clone(),
                value: to_wit(value).map_err(|why| format!("column {name}: {why}"))?,
            })
        });
        entries.collect()
    };
    rows.into_iter().map(row).collect()
}

impl query::Host for View {
    async fn query(
        &mut self,
        route: Route,
        statement: String,
        values: Vec<PgValue>,
    ) -> wasmtime::Result<Result<Vec<ResultRow>, QueryError>> {
        let result = async {
            let values = params(values).map_err(QueryError::InvalidParams)?;
            let found = route.query(&statement, values).await;
            let found = found.map_err(|error| failed("query failed", error))?;
            let found = found.collect().await;
            let (columns, found) = found.map_err(|error| failed("query failed", error))?;
            rows(&columns, found).map_err(QueryError::Unexpected)
        };
        Ok(result.await)
    }

    async fn query_batch(
        &mut self,
        route: Route,
        statements: String,
    ) -> wasmtime::Result<Result<(), QueryError>> {
        let done = route.batch(&statements).await;
        Ok(done.map_err(|error| failed("batch execution failed", error)))
    }
}

impl prepared::Host for View {
    async fn prepare(
        &mut self,
        route: Route,
        statement: String,
    ) -> wasmtime::Result<Result<String, StatementPrepareError>> {
        let token = route.prepare(&statement).await;
        Ok(token.map_err(|error| {
            StatementPrepareError::Unexpected(format!("prepare failed: {}", report(&error)))
        }))
    }

    async fn exec(
        &mut self,
        route: Route,
        token: String,
        values: Vec<PgValue>,
    ) -> wasmtime::Result<Result<u64, PreparedStatementExecError>> {
        let result = async {
            let values = params(values).map_err(|why| {
                PreparedStatementExecError::QueryError(QueryError::InvalidParams(why))
            })?;
            route
                .execute(&token, values)
                .await
                .map_err(|error| match error {
                    sql::Error::UnknownStatement => {
                        PreparedStatementExecError::UnknownPreparedQuery
                    }
                    error => {
                        PreparedStatementExecError::QueryError(failed("execute failed", error))
                    }
                })
        };
        Ok(result.await)
    }
}
