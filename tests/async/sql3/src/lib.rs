//! Every call of `wasmcloud:postgres@0.2.0` over HTTP; where 0.1.1-draft has it, the request is that of `sql`.
//!
//! | request | call |
//! |---|---|
//! | `POST /query` | `query` of the body: a line for each row, `NAME=VALUE` between commas; `end: ERROR` if not all came |
//! | `POST /query?take=N` | the same, but no more than N rows are read, and the stream is dropped |
//! | `POST /query?count` | how many rows there are, one read after the other |
//! | `POST /query?at-once=N` | as many `query`, all under way before one is waited for: how many succeeded |
//! | `POST /batch`, `/prepare`, `/exec?token=T`, `/copy` | as in `sql` |
//!
//! With `/~other/query` the import labelled `other` is called. Parameters are as in `sql`. An error of the
//! interface is status 500 and `error: CASE TEXT`; of the database `query-failed CODE MESSAGE`.

use answer::Target;
use bindings::wasmcloud::postgres::types::{Error, PgValue};
use bindings::wasmcloud::postgres::{prepared, query};
use wasip3::http::types::{ErrorCode, Request, Response};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package tests:sql3;
            world sql3 {
                import wasmcloud:postgres/types@0.2.0;
                import wasmcloud:postgres/query@0.2.0;
                import wasmcloud:postgres/prepared@0.2.0;
                import other: wasmcloud:postgres/query@0.2.0;
            }
        ",
        path: "../../../wit/postgres-0.2",
        world: "tests:sql3/sql3",
        generate_all,
    });
}

struct Sql;

wasip3::http::service::export!(Sql);

impl wasip3::exports::http::handler::Guest for Sql {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = Target::of(&request);
        let body = answer::body(request).await;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(match reply(&target, &body).await {
            Ok(text) => answer::text(200, text),
            Err(error) => answer::text(500, format!("error: {error}\n")),
        })
    }
}

async fn reply(target: &Target, body: &str) -> Result<String, String> {
    let (statement, params) = split(body)?;
    let result = match target.path.as_str() {
        "query" if target.param("at-once").is_some() => {
            let calls = (0..target.number("at-once", 1)).map(|_| rows(&statement, params.clone(), u64::MAX));
            let results = answer::join_all(calls).await;
            Ok(format!("{}\n", results.iter().filter(|result| result.is_ok()).count()))
        }
        "query" if target.param("count").is_some() => count(&statement, params).await,
        "query" => rows(&statement, params, target.number("take", u64::MAX)).await,
        "~other/query" => {
            let found = bindings::other::query(statement, params).await;
            match found {
                Ok((names, rows, _)) => Ok(format!("{} {}\n", names.len(), rows.collect().await.len())),
                Err(error) => Err(error),
            }
        }
        "batch" => query::query_batch(body.to_owned()).await.map(|()| String::new()),
        "prepare" => prepared::prepare(statement).await,
        "exec" => {
            let token = target.param("token").unwrap_or_default();
            let count = prepared::exec(token.to_owned(), params).await;
            count.map(|count| format!("{count}\n"))
        }
        "copy" => {
            let (first, second) = body.split_once("\n--\n").ok_or("no line --")?;
            match query::query(first.to_owned(), Vec::new()).await {
                Ok((_, found, _)) => {
                    let row = found.collect().await.into_iter().next().unwrap_or_default();
                    rows(second, row, u64::MAX).await
                }
                Err(error) => Err(error),
            }
        }
        _ => return Err("unknown call".to_owned()),
    };
    result.map_err(failed)
}

async fn rows(statement: &str, params: Vec<PgValue>, take: u64) -> Result<String, Error> {
    let (names, mut rows, done) = query::query(statement.to_owned(), params).await?;
    let (mut lines, mut taken) = (String::new(), 0);
    while taken < take
        && let Some(row) = rows.next().await
    {
        let entries: Vec<String> =
            row.iter().zip(&names).map(|(value, name)| format!("{name}={value:?}")).collect();
        lines += &entries.join(",");
        lines.push('\n');
        taken += 1;
    }
    drop(rows);
    if let Err(error) = done.await {
        lines += &format!("end: {}\n", failed(error));
    }
    Ok(lines)
}

async fn count(statement: &str, params: Vec<PgValue>) -> Result<String, Error> {
    let (_, mut rows, done) = query::query(statement.to_owned(), params).await?;
    let mut count = 0;
    while rows.next().await.is_some() {
        count += 1;
    }
    done.await?;
    Ok(format!("{count}\n"))
}

fn failed(error: Error) -> String {
    match error {
        Error::ConnectionFailed(why) => format!("connection-failed {why}"),
        Error::InvalidParams(why) => format!("invalid-params {why}"),
        Error::InvalidQuery(why) => format!("invalid-query {why}"),
        Error::QueryFailed(report) => format!("query-failed {} {}", report.code, report.message),
        Error::ValueConversionFailed(why) => format!("value-conversion-failed {why}"),
        Error::UnknownPreparedStatement => "unknown-prepared-statement".to_owned(),
        Error::AccessDenied => "access-denied".to_owned(),
        Error::Timeout => "timeout".to_owned(),
        Error::Other(why) => format!("other {why}"),
    }
}

include!("../../../components/sql/src/params.rs");
