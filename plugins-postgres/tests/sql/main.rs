//! Databases that workloads name: what a component may rely on, and what it cannot do to others.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test cannot set up, it cannot go on from"
)]

use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use capabilities::report;
use capabilities::sql::{Date, Error, Row, SqlDatabase, Type, Value};
use fleet::postgres::{PASSWORD, PostgresServer};
use futures::StreamExt as _;
use futures::future::{join_all, select};
use plugins_postgres::Postgres;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

mod limits;
mod values;

type Database = Arc<dyn SqlDatabase>;

async fn try_open(plugin: &Postgres, settings: &[(&str, &str)]) -> Result<Database, OpenError> {
    let pairs = settings
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let values: BTreeMap<_, _> = pairs.collect();
    let settings = Settings::new(&values);
    let workload = "tests";
    let ask = Ask {
        namespace: "default",
        workload,
        component: "tests",
        flat_names: false,
        settings,
    };
    let database = plugin.sql(&ask).await?;
    ask.settings.finish()?;
    Ok(database)
}

async fn open(plugin: &Postgres, url: &str, settings: &[(&str, &str)]) -> Database {
    let mut all = vec![("url", url)];
    all.extend(settings);
    try_open(plugin, &all).await.unwrap()
}

/// A server, and its database as a workload has it.
async fn served(settings: &[(&str, &str)]) -> (PostgresServer, Postgres, Database) {
    let server = PostgresServer::start().await.unwrap();
    let plugin = Postgres::new(None);
    let database = open(&plugin, &server.url(), settings).await;
    (server, plugin, database)
}

async fn rows(database: &Database, statement: &str, params: Vec<Value>) -> Result<Vec<Row>, Error> {
    Ok(database.query(statement, params).await?.collect().await?.1)
}

/// The one value of the one row.
async fn value(database: &Database, statement: &str, params: Vec<Value>) -> Value {
    let rows = rows(database, statement, params).await;
    let rows = rows.map_err(|error| format!("{statement}: {}", report(&error)));
    let row = rows.unwrap().into_iter().next().unwrap();
    row.values.into_iter().next().unwrap()
}

async fn number(database: &Database, statement: &str) -> i64 {
    match value(database, statement, Vec::new()).await {
        Value::Int8(number) => number,
        Value::Int4(number) => number.into(),
        other => panic!("{statement}: {other:?}"),
    }
}

fn text(kind: Type, text: &str) -> Value {
    Value::Text(kind, text.to_owned())
}

fn array(kind: Type, values: Vec<Value>) -> Value {
    Value::Array(kind, values)
}

/// Rows keep their order and names; what is affected is counted; several statements are one call.
#[tokio::test]
async fn statements_are_run_one_or_many() {
    let (_server, _plugin, database) = served(&[]).await;
    let made = "CREATE TABLE t (id int PRIMARY KEY, name text); \
                INSERT INTO t SELECT n, 'name ' || n FROM generate_series(1, 3) n; SELECT * FROM t";
    database.batch(made).await.unwrap();
    let found = database
        .query("SELECT id, name AS n FROM t ORDER BY id DESC", vec![])
        .await;
    let (columns, found) = found.unwrap().collect().await.unwrap();
    assert_eq!(columns, ["id", "n"]);
    let names: Vec<_> = found
        .into_iter()
        .map(|row| row.values.into_iter().nth(1).unwrap())
        .collect();
    assert_eq!(
        names,
        ["name 3", "name 2", "name 1"].map(|name| text(Type::Text, name))
    );
    let none = database
        .query("SELECT id FROM t WHERE false", vec![])
        .await
        .unwrap();
    assert_eq!(none.columns, ["id"]);
    assert!(none.collect().await.unwrap().1.is_empty());
    assert!(rows(&database, "", vec![]).await.unwrap().is_empty());
    // All of a batch, or nothing.
    let half = database
        .batch("INSERT INTO t VALUES (4, ''); INSERT INTO t VALUES (1, '')")
        .await;
    let Err(Error::Failed(why)) = half else {
        panic!("{half:?}")
    };
    assert_eq!(
        (why.code.as_str(), why.severity.as_str()),
        ("23505", "ERROR")
    );
    assert!(
        why.extras.contains(&("constraint", "t_pkey".to_owned())),
        "{why:?}"
    );
    assert!(why.detail.unwrap().contains("already exists"));
    let transaction = "BEGIN; INSERT INTO t VALUES (4, 'x'); COMMIT";
    database.batch(transaction).await.unwrap();
    assert_eq!(number(&database, "SELECT count(*) FROM t").await, 4);

    for (statement, params, wanted) in [
        ("SELEC 1", vec![], "42601"),
        ("SELECT 1; SELECT 2", vec![], "42601"),
        ("SELECT * FROM none", vec![], "42P01"),
        ("SELECT $1", vec![text(Type::Uuid, "x")], "22P02"),
        ("SELECT 1 / $1", vec![Value::Int4(0)], "22012"),
    ] {
        let failed = rows(&database, statement, params).await;
        assert!(
            matches!(&failed, Err(Error::Failed(why)) if why.code == wanted),
            "{statement}: {failed:?}"
        );
    }
    for (statement, params) in [
        ("SELECT $1, $2", vec![Value::Int4(1)]),
        ("SELECT $1", vec![Value::Bits(Type::Bit, 9, vec![0])]),
        ("SELECT $1", vec![Value::Date(Date::Day(2024, 0, 1))]),
        ("SELECT $1", vec![array(Type::Int4, vec![Value::Null])]),
    ] {
        let refused = rows(&database, statement, params).await;
        assert!(
            matches!(refused, Err(Error::InvalidParams(_))),
            "{statement}: {refused:?}"
        );
    }
    for statement in [
        "COPY t FROM STDIN",
        "COPY t TO STDOUT",
        "SELECT '\0'",
        "BEGIN",
    ] {
        let refused = rows(&database, statement, vec![]).await;
        assert!(
            matches!(refused, Err(Error::InvalidQuery(_))),
            "{statement}: {refused:?}"
        );
        let refused = database.batch(statement).await;
        assert!(
            matches!(refused, Err(Error::InvalidQuery(_))),
            "{statement}: {refused:?}"
        );
    }
    // An error after rows have been given.
    let late = database
        .query("SELECT 1 / (3 - n) FROM generate_series(1, 5) n", vec![])
        .await;
    let late: Vec<_> = late.unwrap().rows.collect().await;
    assert!(
        late.len() == 3 && late.iter().take(2).all(Result::is_ok),
        "{late:?}"
    );
    assert!(matches!(late.last(), Some(Err(Error::Failed(why))) if why.code == "22012"));
}

/// A prepared statement is its component's, for as long as that lives, whatever becomes of sessions.
#[tokio::test]
async fn prepared_statements_are_used_again() {
    let (mut server, plugin, database) = served(&[]).await;
    database
        .batch("CREATE TABLE t (id int8, name text)")
        .await
        .unwrap();
    let insert = "INSERT INTO t VALUES ($1, $2)";
    let token = database.prepare(insert).await.unwrap();
    assert_eq!(database.prepare(insert).await.unwrap(), token);
    let calls = (0..20).map(|n| {
        // The type may be another each time.
        let id = match n % 2 {
            0 => Value::Int4(n),
            _ => Value::Int8(n.into()),
        };
        database.execute(&token, vec![id, text(Type::Text, "x")])
    });
    for count in join_all(calls).await {
        assert_eq!(count.unwrap(), 1);
    }
    let delete = database
        .prepare("DELETE FROM t WHERE id < $1")
        .await
        .unwrap();
    assert_eq!(
        database
            .execute(&delete, vec![Value::Int4(5)])
            .await
            .unwrap(),
        5
    );
    server.restart().await.unwrap();
    assert_eq!(
        database
            .execute(&delete, vec![Value::Int4(6)])
            .await
            .unwrap(),
        1
    );
    let few = database.execute(&token, vec![Value::Null]).await;
    assert!(matches!(few, Err(Error::InvalidParams(_))), "{few:?}");

    let wrong = database.prepare("SELEC 1").await;
    assert!(
        matches!(&wrong, Err(Error::Failed(why)) if why.code == "42601"),
        "{wrong:?}"
    );
    let other = open(&plugin, &server.url(), &[]).await;
    for (database, token) in [(&database, "none"), (&other, token.as_str())] {
        let unknown = database.execute(token, vec![]).await;
        assert!(
            matches!(unknown, Err(Error::UnknownStatement)),
            "{unknown:?}"
        );
    }
}

/// What one call leaves in its session is not there for the next, which has the same.
#[tokio::test]
async fn nothing_is_left_for_the_next_call() {
    let (_server, plugin, database) = served(&[("pool_size", "1")]).await;
    let other = open(
        &plugin,
        &_server.url(),
        &[("pool_size", "1"), ("wait_timeout", "1s")],
    )
    .await;
    let pid = "SELECT pg_backend_pid()";
    let session = number(&database, pid).await;
    database
        .batch(
            "SET statement_timeout = 0; SET search_path = nowhere; SET DateStyle = 'SQL'; SET bytea_output = 'escape'; \
             CREATE TEMP TABLE own (n int); SELECT pg_advisory_lock(7); PREPARE own AS SELECT 1; LISTEN own; \
             DECLARE own CURSOR WITH HOLD FOR SELECT 1; SET application_name = 'other'",
        )
        .await
        .unwrap();
    for question in [
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'own'",
        "SELECT count(*) FROM pg_class WHERE relname = 'own'",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "SELECT count(*) FROM pg_cursors WHERE name = 'own'",
        "SELECT count(*) FROM pg_listening_channels()",
    ] {
        assert_eq!(number(&database, question).await, 0, "{question}");
    }
    for (setting, expected) in [
        ("statement_timeout", "30s"),
        ("search_path", "\"$user\", public"),
        ("DateStyle", "ISO, YMD"),
        ("bytea_output", "hex"),
        ("application_name", "washlet"),
        ("TimeZone", "UTC"),
    ] {
        let found = value(&database, &format!("SHOW {setting}"), vec![]).await;
        assert_eq!(found, text(Type::Text, expected), "{setting}");
    }
    // An open transaction is rolled back, and its locks are given up at once.
    database.batch("CREATE TABLE t (n int)").await.unwrap();
    for left in [
        "BEGIN; INSERT INTO t VALUES (1); LOCK TABLE t",
        "BEGIN; SELECT 1/0",
    ] {
        assert!(database.batch(left).await.is_err(), "{left}");
        assert_eq!(number(&other, "SELECT count(*) FROM t").await, 0, "{left}");
    }
    let left = database.batch("BEGIN; INSERT INTO t VALUES (1)").await;
    assert!(
        matches!(&left, Err(Error::InvalidQuery(why)) if why.contains("rolled back")),
        "{left:?}"
    );
    assert_eq!(number(&database, "SELECT count(*) FROM t").await, 0);
    assert_eq!(number(&database, pid).await, session);
    // One that was left alone in the middle is not used again.
    {
        let slow = pin!(database.query("SELECT pg_sleep(20)", vec![]));
        let moment = pin!(tokio::time::sleep(Duration::from_millis(50)));
        select(slow, moment).await;
    }
    assert_ne!(number(&database, pid).await, session);
}

/// A server that was killed is found again when it is back.
#[tokio::test]
async fn a_server_may_go_away_and_come_back() {
    let (mut server, _plugin, database) = served(&[("pool_size", "4")]).await;
    database.batch("CREATE TABLE t (n int)").await.unwrap();
    for round in 1..3 {
        let calls = (0..8).map(|_| database.batch("INSERT INTO t VALUES (1)"));
        for done in join_all(calls).await {
            done.unwrap();
        }
        server.kill();
        for _ in 0..2 {
            let down = database.batch("INSERT INTO t VALUES (1)").await;
            assert!(matches!(down, Err(Error::Unavailable(_))), "{down:?}");
        }
        server.restart().await.unwrap();
        assert_eq!(number(&database, "SELECT count(*) FROM t").await, round * 8);
    }
}

/// Nobody gets in without the password, to where a workload may not go, or past a certificate; and no text says
/// what the password is.
#[tokio::test]
async fn who_may_not_get_in_does_not_and_no_secret_is_said() {
    let made = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (own, other) = (made(), made());
    let key = own.signing_key.serialize_pem();
    let server = PostgresServer::start_with_tls(&own.cert.pem(), &key)
        .await
        .unwrap();
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let at = |host: &str, rest: &str| format!("postgres://guest:{PASSWORD}@{host}:{port}/{rest}");
    let plugin = Postgres::new(None);
    for (url, denied) in [
        (at("127.0.0.1", "fleet").replace("guest:", "guest:x"), true),
        (at("127.0.0.1", "fleet").replace("guest:", "nobody:"), true),
        // Loopback by another name than its own.
        (at("2130706433", "fleet"), true),
        (at("0.0.0.0", "fleet"), true),
        (at("169.254.169.254", "fleet"), true),
        (at("127.0.0.1", "absent"), false),
        (at("127.0.0.1", "fleet?sslmode=verify-full"), false),
    ] {
        let error = open(&plugin, &url, &[])
            .await
            .batch("SELECT 1")
            .await
            .unwrap_err();
        match denied {
            true => assert!(matches!(error, Error::AccessDenied(_)), "{url}: {error:?}"),
            false => assert!(matches!(error, Error::Unavailable(_)), "{url}: {error:?}"),
        }
        let text = format!("{error:?} {}", report(&error));
        assert!(
            !text.contains(PASSWORD) && !text.contains("guest"),
            "{text}"
        );
    }
    // The password may come from elsewhere, such as a secret.
    let split = format!("postgres://guest@localhost:{port}/fleet");
    let database = open(&plugin, &split, &[("password", PASSWORD)]).await;
    assert_eq!(number(&database, "SELECT 1").await, 1);
    let tls = at("127.0.0.1", "fleet?sslmode=verify-full");
    let known = open(&plugin, &tls, &[("ca", &own.cert.pem())]).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()";
    assert_eq!(number(&known, encrypted).await, 1);
    let unknown = open(&plugin, &tls, &[("ca", &other.cert.pem())]).await;
    let refused = unknown.batch("SELECT 1").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");

    for settings in [vec![], vec![("database", "fleet")], vec![("url", PASSWORD)]] {
        let error = try_open(&plugin, &settings).await.map(drop).unwrap_err();
        assert!(
            matches!(error, OpenError::Setting { key: "url", .. }),
            "{error}"
        );
        assert!(!error.to_string().contains(PASSWORD));
    }
    let unknown = try_open(&plugin, &[("url", &tls), ("sslcert", PASSWORD)]).await;
    let unknown = unknown.map(drop).unwrap_err();
    assert!(
        matches!(unknown, OpenError::UnknownSettings { .. }),
        "{unknown}"
    );
}
