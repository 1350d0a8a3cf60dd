//! Time, waiting, sessions, rows and bytes.

use capabilities::plugin::Plugin as _;
use capabilities::sql::{Error, Type};
use fleet::wait::{SOON, until};
use futures::StreamExt as _;
use futures::future::{join_all, select};
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::{Database, number, open, rows, served, text};

/// How many statements of the role are under way that mention `what`.
async fn under_way(database: &Database, what: &str) -> i64 {
    let question = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%{what}%' \
         AND pid <> pg_backend_pid()"
    );
    number(database, &question).await
}

/// A statement ends in time, also one that lifts the limit; and what nobody waits for is cancelled.
#[tokio::test]
async fn statements_end_in_time() {
    let (_server, plugin, database) = served(&[("statement_timeout", "1s")]).await;
    let test = async {
        let start = Instant::now();
        let calls = [
            "SELECT pg_sleep(60)",
            "SET statement_timeout = 0; SELECT pg_sleep(61)",
        ];
        for timeout in join_all(calls.map(|statements| database.batch(statements))).await {
            assert!(matches!(timeout, Err(Error::Timeout(_))), "{timeout:?}");
        }
        let sleep = database
            .query("SELECT pg_sleep(62)", vec![])
            .await
            .map(drop);
        assert!(matches!(sleep, Err(Error::Timeout(_))), "{sleep:?}");
        assert!(start.elapsed() < Duration::from_secs(30));
        let many = "SELECT generate_series(1, 1000000000) AS forgotten";
        let mut stream = database.query(many, vec![]).await.unwrap().rows;
        assert!(stream.next().await.unwrap().is_ok());
        drop(stream);
        for what in ["pg_sleep", "forgotten"] {
            until(SOON, "it is cancelled", async || {
                (under_way(&database, what).await == 0).then_some(())
            })
            .await
            .unwrap();
        }
    };
    let run = pin!(plugin.run());
    select(pin!(test), run).await;
}

/// An entry has as many sessions as it says; further callers wait, no longer than it says.
#[tokio::test]
async fn callers_wait_for_a_session() {
    let settings = [("pool_size", "2"), ("wait_timeout", "1s")];
    let (server, plugin, database) = served(&settings).await;
    // Another component with the same entry shares them.
    let same = open(&plugin, &server.url(), &settings).await;
    let many = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)";
    let first = database.query(many, vec![]).await.unwrap();
    let second = same.query(many, vec![]).await.unwrap();
    let busy = database.query("SELECT 1", vec![]).await.map(drop);
    assert!(matches!(busy, Err(Error::Busy(_))), "{busy:?}");
    drop(first);
    assert_eq!(number(&database, "SELECT 1").await, 1);
    drop(second);
    let calls = (0..50).map(|_| number(&database, "SELECT 1"));
    assert_eq!(join_all(calls).await.into_iter().sum::<i64>(), 50);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'washlet'";
    assert!(number(&database, sessions).await <= 2);
    // They go with who has them.
    drop((database, same));
    let admin = open(&plugin, &server.url(), &[("statement_timeout", "2s")]).await;
    until(SOON, "they are closed", async || {
        (number(&admin, sessions).await == 1).then_some(())
    })
    .await
    .unwrap();
}

/// No result makes the host hold more than the entry allows, however it is made.
#[tokio::test]
async fn large_results_are_refused_or_streamed() {
    let settings = [("max_bytes", "65536"), ("max_rows", "1000")];
    let (_server, _plugin, database) = served(&settings).await;
    for statement in [
        "SELECT repeat('x', 100000000)",
        "SELECT repeat('x', 65530)",
        "SELECT array_fill(1, ARRAY[30000])",
        "SELECT repeat('x', 1000) FROM generate_series(1, 100)",
        "SELECT n FROM generate_series(1, 1001) n",
    ] {
        let refused = rows(&database, statement, vec![]).await;
        assert!(
            matches!(refused, Err(Error::TooLarge { .. })),
            "{statement}"
        );
        assert_eq!(number(&database, "SELECT 1").await, 1);
    }
    // Rows that nobody keeps are as many as they like.
    let stream = database.query(
        "SELECT n, repeat('x', 100) FROM generate_series(1, 200000) n",
        vec![],
    );
    let rows = stream.await.unwrap().rows;
    let count = rows
        .fold(0, async |count, row| count + i32::from(row.is_ok()))
        .await;
    assert_eq!(count, 200_000);
    let large = database
        .query("SELECT $1", vec![text(Type::Text, &"x".repeat(17 << 20))])
        .await;
    assert!(matches!(large.map(drop), Err(Error::InvalidQuery(_))));
}
