//! Databases of applications: `wasmcloud:postgres` in both versions.

use anyhow::{Result, ensure};
use fleet::{
    http::send,
    postgres::{PASSWORD, PostgresServer},
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use reqwest::Method;
use serde_json::json;

use crate::{HOST, app, limits::peak_mib};

/// The guest of each version.
const GUESTS: [(&str, &str); 2] = [("sql", "0.1.1-draft"), ("sql3", "0.2.0")];

async fn post(host: &Washlet, path: &str, body: &str) -> Result<(u16, String)> {
    let reply = send(host.http_port(), HOST, Method::POST, path, body.to_owned()).await?;
    Ok((reply.status, reply.body))
}

/// A call that must succeed.
async fn call(host: &Washlet, path: &str, body: &str) -> Result<String> {
    let (status, text) = post(host, path, body).await?;
    ensure!(status == 200, "{path} {body}: {text}");
    Ok(text)
}

/// The component `guest` with the database at `url`, and its password apart.
async fn workload(
    fleet: &Fleet,
    (guest, version): (&str, &str),
    url: &str,
    settings: &[(&str, &str)],
) -> Result<Workload> {
    let image = fleet.push(guest).await?;
    let interface = format!("wasmcloud:postgres/query,prepared@{version}");
    let url = url.replace(&format!(":{PASSWORD}"), "");
    let mut config = vec![("url", url.as_str()), ("password", PASSWORD)];
    config.extend(settings);
    let workload = app(guest, &image, json!({})).interface(&interface, &config);
    Ok(match guest {
        "sql3" => workload.named_interface("other", &interface, &config),
        _ => workload,
    })
}

/// Queries, batches and prepared statements of components reach the database that their entry names, and leave
/// nothing to each other; the password is nowhere to be read, and the host's own variables are not theirs.
#[tokio::test]
async fn components_query_the_database_of_their_entry() -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let variables = [
        ("PGOPTIONS", "-c search_path=nowhere"),
        ("PGPASSWORD", "canary"),
        ("PGUSER", "canary"),
        ("PGSSLMODE", "require"),
        ("PGAPPNAME", "canary"),
    ];
    let host = Washlet::start_with(&fleet.nats, &["--log-level", "trace"], &variables).await?;
    let settings = [("pool_size", "1"), ("max_bytes", "1000000")];
    for guest in GUESTS {
        let workload = workload(&fleet, guest, &server.url(), &settings).await?;
        host.run_well(&workload).await?;
        call(
            &host,
            "/batch",
            "DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text)",
        )
        .await?;
        let token = call(&host, "/prepare", "INSERT INTO t VALUES ($1, $2)").await?;
        for id in 1..=3 {
            let params = format!("$int4 {id}\n$text it's {id}");
            assert_eq!(
                call(&host, &format!("/exec?token={token}"), &params).await?,
                "1\n"
            );
        }
        let found = call(
            &host,
            "/query",
            "SELECT id, name FROM t WHERE id > $1 ORDER BY id\n$int8 1",
        )
        .await?;
        let lines: Vec<_> = found.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].contains("2") && lines[1].contains("it's 3"),
            "{found}"
        );
        // Whatever the database sends comes back to it the same.
        let copy = "SELECT '{1,2}'::int4[] a, 'infinity'::timestamptz b, 1.5::numeric c, '\\x00ff'::bytea d, NULL e, 0.1::float4 f\n--\n\
                    SELECT $1 = '{1,2}' AND $2 = 'infinity' AND $3 = 1.5 AND $4 = '\\x00ff' AND $5::int IS NULL AND $6 = 0.1::float4";
        let same = call(&host, "/copy", copy).await?;
        assert!(same.to_lowercase().contains("(true)"), "{same}");
        for (body, expected) in [
            ("INSERT INTO t VALUES (1, '')", "23505"),
            ("SELECT repeat('x', 2000000)", "more than 1000000 bytes"),
            ("BEGIN", "rolled back"),
        ] {
            let (_, text) = post(&host, "/query", body).await?;
            assert!(text.contains(expected), "{text}");
        }
        call(
            &host,
            "/batch",
            "SET search_path = elsewhere; CREATE TEMP TABLE own (n int)",
        )
        .await?;
        for (setting, expected) in [("search_path", "public"), ("application_name", "washlet")] {
            let found = call(&host, "/query", &format!("SHOW {setting}")).await?;
            assert!(found.contains(expected), "{found}");
        }
        if guest.0 == "sql3" {
            assert_eq!(
                call(&host, "/~other/query", "SELECT id, name FROM t").await?,
                "2 3\n"
            );
        }
        host.stop(guest.0).await?;
    }
    // What it is told is not repeated: not by the host, and not on its disk.
    let refused = workload(&fleet, GUESTS[0], "mysql://canary", &[]).await?;
    let status = host.run(&refused).await?;
    assert!(
        status.state == "ERROR" && status.message.contains("'url'"),
        "{status:?}"
    );
    for text in [host.log(), status.message] {
        assert!(
            !text.contains(PASSWORD) && !text.contains("canary"),
            "{text}"
        );
    }
    Ok(())
}

/// Without a database named, with the host's own, or one that is not to be reached, nothing is lent.
#[tokio::test]
async fn the_hosts_own_database_is_not_lent() -> Result<()> {
    let (fleet, server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let host = fleet.host(&["--postgres-url", &server.url()]).await?;
    let image = fleet.push("sql").await?;
    for settings in [
        &[][..],
        &[("database", "fleet")],
        &[("backend", "nats"), ("url", "x")],
    ] {
        let interface = "wasmcloud:postgres/query,prepared@0.1.1-draft";
        let workload = app("sql", &image, json!({})).interface(interface, settings);
        let status = host.run(&workload).await?;
        assert_eq!(status.state, "ERROR", "{settings:?}: {status:?}");
        host.stop("sql").await?;
    }
    let elsewhere = server.url().replace("127.0.0.1", "2130706433");
    host.run_well(&workload(&fleet, GUESTS[0], &elsewhere, &[]).await?)
        .await?;
    let (status, text) = post(&host, "/query", "SELECT 1").await?;
    assert!(status == 500 && text.contains("access denied"), "{text}");
    Ok(())
}

/// A result of many times what the host may hold passes through, and a server that goes away comes back.
#[tokio::test]
async fn rows_are_streamed_and_a_server_may_go_away() -> Result<()> {
    let (fleet, mut server) = tokio::try_join!(Fleet::start(), PostgresServer::start())?;
    let host = fleet.host(&[]).await?;
    host.run_well(&workload(&fleet, GUESTS[1], &server.url(), &[]).await?)
        .await?;
    call(&host, "/query?count", "SELECT 1").await?;
    let before = peak_mib(&host)?;
    let many = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)";
    assert_eq!(call(&host, "/query?count", many).await?, "100000\n");
    assert_eq!(call(&host, "/query?take=3", many).await?.lines().count(), 3);
    let grown = peak_mib(&host)? - before;
    assert!(grown < 48, "{grown} MiB more");
    server.kill();
    let (status, text) = post(&host, "/query", "SELECT 1").await?;
    assert!(
        status == 500 && text.contains("connection-failed"),
        "{text}"
    );
    assert!(
        !text.contains(PASSWORD) && !text.contains("guest"),
        "{text}"
    );
    server.restart().await?;
    until(SOON, "it answers", async || {
        call(&host, "/query", "SELECT 1").await.ok()
    })
    .await?;
    Ok(())
}
