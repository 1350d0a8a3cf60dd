//! Every call of `wasmcloud:postgres@0.1.1-draft` over HTTP.
//!
//! | request | call |
//! |---|---|
//! | `POST /query` | `query` of the body: a line for each row, `NAME=VALUE` between commas |
//! | `POST /batch` | `query-batch` of the body |
//! | `POST /prepare` | `prepare` of the body: the token |
//! | `POST /exec?token=T` | `exec` of it, with the body's parameters: how many rows |
//! | `POST /copy` | `query` of the body as far as the line `--`; its first row is the parameters of `query` of the rest |
//!
//! Lines at the end of a body that start with `$` are parameters: `$int4 5`, `$text x`, `$null`. An error of the
//! interface is status 500 and `error: CASE TEXT`.

use bindings::wasmcloud::postgres::types::{
    PgValue, PreparedStatementExecError, QueryError, ResultRow, StatementPrepareError,
};
use bindings::wasmcloud::postgres::{prepared, query};
use reply::Target;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/postgres-0.1",
        world: "imports",
        generate_all,
    });
}

struct Sql;

wasip2::http::proxy::export!(Sql);

impl Guest for Sql {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::of(&request);
        let body = reply::body(&request);
        let body = String::from_utf8_lossy(&body).into_owned();
        match answer(&target, &body) {
            Ok(text) => reply::text(out, 200, &text),
            Err(error) => reply::text(out, 500, &format!("error: {error}\n")),
        }
    }
}

fn answer(target: &Target, body: &str) -> Result<String, String> {
    let (statement, params) = split(body)?;
    match target.path.as_str() {
        "query" => query::query(&statement, &params).map(lines).map_err(failed),
        "batch" => query::query_batch(body).map(|()| String::new()).map_err(failed),
        "prepare" => prepared::prepare(&statement).map_err(|error| match error {
            StatementPrepareError::Unexpected(why) => format!("unexpected {why}"),
        }),
        "exec" => {
            let token = target.param("token").unwrap_or_default();
            let count = prepared::exec(token, &params);
            count.map(|count| format!("{count}\n")).map_err(|error| match error {
                PreparedStatementExecError::UnknownPreparedQuery => "unknown-prepared-query".to_owned(),
                PreparedStatementExecError::QueryError(error) => failed(error),
                PreparedStatementExecError::Unexpected(why) => format!("unexpected {why}"),
            })
        }
        "copy" => {
            let (first, second) = body.split_once("\n--\n").ok_or("no line --")?;
            let rows = query::query(first, &[]).map_err(failed)?;
            let row = rows.into_iter().next().unwrap_or_default();
            let params: Vec<PgValue> = row.into_iter().map(|entry| entry.value).collect();
            query::query(second, &params).map(lines).map_err(failed)
        }
        _ => Err("unknown call".to_owned()),
    }
}

fn failed(error: QueryError) -> String {
    match error {
        QueryError::InvalidParams(why) => format!("invalid-params {why}"),
        QueryError::InvalidQuery(why) => format!("invalid-query {why}"),
        QueryError::Unexpected(why) => format!("unexpected {why}"),
    }
}

fn lines(rows: Vec<ResultRow>) -> String {
    let mut lines = String::new();
    for row in rows {
        let entries: Vec<String> =
            row.iter().map(|entry| format!("{}={:?}", entry.column_name, entry.value)).collect();
        lines += &entries.join(",");
        lines.push('\n');
    }
    lines
}

// `sql3` has them, too, with its own `PgValue`.
include!("params.rs");
