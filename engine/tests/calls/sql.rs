//! `wasmcloud:postgres` as guests see it, over a database that is made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use capabilities::plugin::{Ask, OpenError, Plugin, Plugins};
use capabilities::sql::{
    Date, DateRange, Error, Lexeme, Limits, Report, Result, Row, Rows, SqlDatabase, Time,
    Timestamp, Type, Value,
};
use engine::interface::Interfaces;
use engine::wit::WitInterface;
use engine::{Engine, LinkError, Runnable};
use futures::StreamExt as _;
use http::Method;

use crate::host::{config, grant, pairs, send, start, text, wasm};

/// The guest of each version.
const GUESTS: [&str; 2] = ["sql", "sql3"];

const LIMITS: Limits = Limits {
    rows: 1_000,
    bytes: 1 << 20,
};

/// Databases that answer by what they are asked.
#[derive(Clone, Default)]
struct MadeUp {
    /// Streams of rows that there are.
    open: Arc<AtomicUsize>,
}

#[async_trait]
impl Plugin for MadeUp {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn sql(&self, ask: &Ask<'_>) -> Result<Arc<dyn SqlDatabase>, OpenError> {
        let columns = ask.settings.required("url", "a number of columns")?;
        Ok(Arc::new(Database {
            columns: columns.len(),
            open: Arc::clone(&self.open),
        }))
    }
}

struct Database {
    columns: usize,
    open: Arc<AtomicUsize>,
}

/// Counted while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn refused() -> Error {
    Error::Failed(Box::new(Report {
        code: "22012".to_owned(),
        severity: "ERROR".to_owned(),
        message: "division by zero".to_owned(),
        ..Report::default()
    }))
}

impl Database {
    fn rows(&self, rows: impl Iterator<Item = Result<Vec<Value>>> + Send + 'static) -> Rows {
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.open));
        let rows = rows.map(move |values| {
            let _ = &open;
            values.map(|values| Row { values, bytes: 100 })
        });
        Rows {
            columns: (0..self.columns.max(100))
                .map(|n| format!("c{n}"))
                .collect(),
            rows: futures::stream::iter(rows).boxed(),
            limits: LIMITS,
        }
    }
}

#[async_trait]
impl SqlDatabase for Database {
    async fn query(&self, statement: &str, params: Vec<Value>) -> Result<Rows> {
        let mut words = statement.split_whitespace();
        let numbers = |count: Option<&str>| {
            let count: i64 = count.and_then(|count| count.parse().ok()).unwrap_or(1);
            (0..count).map(|n| Ok(vec![Value::Int8(n)]))
        };
        Ok(match words.next() {
            Some("all") => self.rows(std::iter::once(Ok(all()))),
            Some("same") => {
                let different = params
                    .iter()
                    .zip(all())
                    .find(|(found, sent)| *found != sent);
                let found = format!("{different:?} {}", params.len());
                let found = Value::Text(Type::Text, found);
                self.rows(std::iter::once(Ok(vec![found])))
            }
            Some("columns") => {
                let rows = self.rows(std::iter::empty());
                let columns = rows.columns.into_iter().take(self.columns).collect();
                Rows { columns, ..rows }
            }
            Some("count") => self.rows(numbers(words.next())),
            Some("break") => {
                let broken = std::iter::once_with(|| Err(refused()));
                self.rows(numbers(words.next()).chain(broken))
            }
            Some("odd") => {
                let odd = vec![Value::Array(Type::Int4, vec![Value::Bool(true)])];
                self.rows(std::iter::once(Ok(odd)))
            }
            _ => return Err(refused()),
        })
    }

    async fn batch(&self, statements: &str) -> Result<()> {
        match statements {
            "fine" => Ok(()),
            _ => Err(Error::InvalidQuery("not fine".to_owned())),
        }
    }

    async fn prepare(&self, statement: &str) -> Result<String> {
        Ok(format!("token-{}", statement.trim()))
    }

    async fn execute(&self, token: &str, params: Vec<Value>) -> Result<u64> {
        match token {
            "token-insert" => Ok(params.len() as u64),
            _ => Err(Error::UnknownStatement),
        }
    }
}

/// A value of each kind, alone and in an array where there is a case for that.
fn all() -> Vec<Value> {
    let text = |kind| Value::Text(kind, "1.5".to_owned());
    let day = Date::Day(-43, 3, 15);
    let time = Time {
        hour: 23,
        minute: 59,
        second: 58,
        micro: 999_999,
    };
    let moment = |date| Timestamp { date, time };
    let shape = |kind, count| Value::Shape(kind, vec![(-1.5, 2e300); count]);
    let mut all = vec![
        Value::Bool(true),
        Value::Int2(-2),
        Value::Int4(-4),
        Value::Int8(-8),
        Value::Float4(0.1),
        Value::Float8(-1e300),
        Value::Bits(Type::Bit, 3, vec![0xa0]),
        Value::Bits(Type::Varbit, 9, vec![1, 0x80]),
        Value::Bytea(vec![0, 255]),
        Value::Macaddr([1, 2, 3, 4, 5, 6]),
        Value::Macaddr8([1, 2, 3, 4, 5, 6, 7, 8]),
        shape(Type::Point, 1),
        shape(Type::Box, 2),
        shape(Type::Line, 2),
        shape(Type::Lseg, 2),
        shape(Type::Path, 3),
        shape(Type::Polygon, 3),
        Value::Circle((1.0, -0.0), 5e-324),
        Value::Date(day),
        Value::DateRange(DateRange {
            start: Date::MinusInfinity,
            start_inclusive: false,
            end: Date::Infinity,
            end_inclusive: true,
        }),
        Value::Time(time),
        Value::TimeTz(time, "-03:30".to_owned()),
        Value::Timestamp(moment(day)),
        Value::TimestampTz(moment(day), -3600),
        Value::PgLsn(u64::MAX),
        Value::Int2Vector(vec![1, -2]),
    ];
    let texts = [
        Type::Numeric,
        Type::Money,
        Type::Char,
        Type::Varchar,
        Type::Text,
        Type::Name,
        Type::Json,
        Type::Jsonb,
        Type::Xml,
        Type::Uuid,
        Type::Cidr,
        Type::Inet,
    ];
    all.extend(texts.map(text));
    let arrays = all.iter().map(|value| {
        let kind = match value {
            Value::Bool(_) => Type::Bool,
            Value::Int2(_) => Type::Int2,
            Value::Int4(_) => Type::Int4,
            Value::Int8(_) => Type::Int8,
            Value::Float4(_) => Type::Float4,
            Value::Float8(_) => Type::Float8,
            Value::Bytea(_) => Type::Bytea,
            Value::Macaddr(_) => Type::Macaddr,
            Value::Macaddr8(_) => Type::Macaddr8,
            Value::Circle(..) => Type::Circle,
            Value::Date(_) => Type::Date,
            Value::DateRange(_) => Type::DateRange,
            Value::Time(_) => Type::Time,
            Value::TimeTz(..) => Type::TimeTz,
            Value::Timestamp(_) => Type::Timestamp,
            Value::TimestampTz(..) => Type::TimestampTz,
            Value::PgLsn(_) => Type::PgLsn,
            Value::Int2Vector(_) => Type::Int2Vector,
            Value::Bits(kind, ..) | Value::Shape(kind, _) | Value::Text(kind, _) => *kind,
            other => panic!("{other:?}"),
        };
        Value::Array(kind, vec![value.clone(), value.clone()])
    });
    let arrays: Vec<_> = arrays.collect();
    all.extend(arrays);
    let word = |position, weight| Lexeme {
        position,
        weight,
        data: "word".to_owned(),
    };
    all.extend([
        Value::Null,
        Value::Array(Type::Text, vec![]),
        Value::Text(Type::TsQuery, "'a'".to_owned()),
        Value::TsVector(vec![
            word(None, None),
            word(Some(1), Some('A')),
            word(Some(2), Some('C')),
        ]),
        Value::PgSnapshot(1, 9, vec![2, 3]),
        Value::TxidSnapshot(7),
        Value::Hstore(vec![
            ("k".to_owned(), Some("v".to_owned())),
            ("n".to_owned(), None),
        ]),
        Value::Timestamp(moment(Date::Infinity)),
        Value::Date(Date::MinusInfinity),
    ]);
    all
}

fn declared(entries: &[(&str, &[(&str, &str)])]) -> Arc<[WitInterface]> {
    let entry = |(name, config): &(&str, &[(&str, &str)])| WitInterface {
        name: (*name).to_owned(),
        namespace: "wasmcloud".to_owned(),
        package: "postgres".to_owned(),
        interfaces: vec!["query".to_owned(), "prepared".to_owned()],
        version: None,
        config: pairs(config),
    };
    entries.iter().map(entry).collect()
}

fn engine(plugin: MadeUp) -> Engine {
    let plugins = Plugins::new("elsewhere").with(plugin);
    Engine::new(config(), plugins, Interfaces::default()).unwrap()
}

async fn guest(engine: &Engine, name: &str) -> Runnable {
    let mut grant = grant(name);
    grant.declared = declared(&[("", &[("url", "abc")]), ("other", &[("url", "ab")])]);
    start(engine, name, grant).await
}

async fn post(guest: &Runnable, target: &str, body: &'static str) -> (u16, String) {
    text(send(guest, Method::POST, target, body).await.unwrap()).await
}

#[tokio::test]
async fn values_of_all_kinds_pass_both_ways() {
    let engine = engine(MadeUp::default());
    for name in GUESTS {
        let guest = guest(&engine, name).await;
        let (status, found) = post(&guest, "/copy", "all\n--\nsame").await;
        let expected = format!("None {}", all().len());
        assert!(
            status == 200 && found.contains(&expected),
            "{name}: {found}"
        );
        let (status, found) = post(&guest, "/query", "same\n$serial 4294967295").await;
        assert_eq!(status, 500);
        assert!(
            found.starts_with("error: invalid-params $1: "),
            "{name}: {found}"
        );
        let (_, found) = post(&guest, "/query", "odd").await;
        assert!(found.contains("column c0"), "{name}: {found}");
    }
}

#[tokio::test]
async fn failures_are_the_cases_of_each_version() {
    let engine = engine(MadeUp::default());
    for (name, path, body, expected) in [
        (
            "sql",
            "/query",
            "x",
            "invalid-query query failed: 22012: division by zero",
        ),
        ("sql3", "/query", "x", "query-failed 22012 division by zero"),
        ("sql", "/batch", "x", "invalid-query not fine"),
        ("sql3", "/batch", "x", "invalid-query not fine"),
        ("sql", "/exec?token=none", "", "unknown-prepared-query"),
        ("sql3", "/exec?token=none", "", "unknown-prepared-statement"),
    ] {
        let guest = guest(&engine, name).await;
        let found = post(&guest, path, body).await;
        assert_eq!(
            found,
            (500, format!("error: {expected}\n")),
            "{name} {path}"
        );
    }
    for name in GUESTS {
        let guest = guest(&engine, name).await;
        assert_eq!(post(&guest, "/batch", "fine").await, (200, String::new()));
        assert_eq!(
            post(&guest, "/prepare", "insert").await,
            (200, "token-insert".to_owned())
        );
        let two = post(&guest, "/exec?token=token-insert", "$null\n$int4 1").await;
        assert_eq!(two, (200, "2\n".to_owned()));
    }
}

#[tokio::test]
async fn rows_are_collected_within_limits_or_streamed() {
    let plugin = MadeUp::default();
    let open = Arc::clone(&plugin.open);
    let engine = engine(plugin);
    let collecting = guest(&engine, "sql").await;
    let (status, found) = post(&collecting, "/query", "count 1000").await;
    assert_eq!((status, found.lines().count()), (200, 1_000));
    let (status, found) = post(&collecting, "/query", "count 1001").await;
    assert!(
        status == 500 && found.contains("more than 1000 rows"),
        "{found}"
    );

    let streaming = guest(&engine, "sql3").await;
    let count = post(&streaming, "/query?count", "count 100000").await;
    assert_eq!(count, (200, "100000\n".to_owned()));
    let (status, found) = post(&streaming, "/query", "break 2").await;
    let lines: Vec<_> = found.lines().collect();
    assert_eq!((status, lines.len()), (200, 3), "{found}");
    assert_eq!(lines[2], "end: query-failed 22012 division by zero");
    // Who wants no more is not told of a failure, and has nothing open.
    let (status, found) = post(&streaming, "/query?take=2", "break 100000").await;
    assert_eq!((status, found.lines().count()), (200, 2), "{found}");
    let many = post(&streaming, "/query?at-once=40", "count 10").await;
    assert_eq!(many, (200, "40\n".to_owned()));
    assert_eq!(open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_label_reaches_its_entry_and_an_entry_names_its_database() {
    let engine = engine(MadeUp::default());
    let labelled = guest(&engine, "sql3").await;
    assert_eq!(post(&labelled, "/~other/query", "columns").await.1, "2 0\n");
    for (name, entries) in [
        ("sql", &[("", &[][..])][..]),
        ("sql", &[("", &[("url", "abc"), ("unknown", "key")])]),
        ("sql3", &[("", &[("url", "abc")]), ("other", &[])]),
    ] {
        let compiled = engine.compile(name, wasm(name)).await.unwrap();
        let mut grant = grant(name);
        grant.declared = declared(entries);
        let refused = engine.link(&compiled, grant).await.err();
        assert!(
            matches!(refused, Some(LinkError::Interface(_))),
            "{name}: {refused:?}"
        );
    }
}
