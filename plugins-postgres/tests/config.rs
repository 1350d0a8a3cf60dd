//! Live configuration and watches follow their bucket, whatever happens to the server.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use capabilities::config::{BYTES_MAX, ConfigSource, Error, KEYS_MAX};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::postgres::{PASSWORD, PostgresServer};
use fleet::proxy::Proxy;
use futures::StreamExt;
use plugins_postgres::{Dsn, Postgres};
use sqlx::postgres::PgPool;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

const SOON: Duration = Duration::from_secs(1);

/// A server, a host on it and what a component reads there, from the bucket `app`.
struct App {
    server: PostgresServer,
    plugin: Postgres,
}

impl App {
    async fn start() -> Self {
        let server = PostgresServer::start().await.unwrap();
        let plugin = Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()));
        Self { server, plugin }
    }

    /// Runs `test` while the plugin runs.
    async fn with(&self, test: impl AsyncFnOnce(Arc<dyn ConfigSource>)) {
        let test = async { test(source(&self.plugin).await.unwrap()).await };
        tokio::select! {
            () = self.plugin.run() => panic!("the plugin stopped"),
            () = test => {},
        }
    }

    async fn sql(&self, statements: &str) {
        sql(&self.server, statements).await.unwrap();
    }

    async fn set(&self, key: &str, value: &str) {
        self.sql(&set(key, value)).await;
    }
}

async fn sql(server: &PostgresServer, statements: &str) -> Result<(), sqlx::Error> {
    let pool = PgPool::connect(&server.url()).await?;
    let statements = sqlx::AssertSqlSafe(statements.to_owned());
    let done = sqlx::raw_sql(statements).execute(&pool).await;
    pool.close().await;
    done.map(drop)
}

fn set(key: &str, value: &str) -> String {
    format!("SELECT washlet.set_config('default__app', '{key}', '{value}')")
}

async fn source(plugin: &Postgres) -> Result<Arc<dyn ConfigSource>, OpenError> {
    let settings = BTreeMap::from([("bucket".to_owned(), "app".to_owned())]);
    plugin.config(&ask(&settings)).await
}

fn ask(settings: &BTreeMap<String, String>) -> Ask<'_> {
    Ask {
        namespace: "default",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(settings),
    }
}

async fn until(what: &str, within: Duration, look: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !look().await {
        assert!(start.elapsed() < within, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn seen(source: &Arc<dyn ConfigSource>, value: Option<&str>, within: Duration) {
    until(&format!("{value:?} is seen"), within, async || {
        source.get("key").await.unwrap().as_deref() == value
    })
    .await;
}

/// Looks for so long, and always sees `value`.
async fn stays(source: &Arc<dyn ConfigSource>, value: &str, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(source.get("key").await.unwrap().as_deref(), Some(value));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_any_client_writes_is_seen() {
    let app = App::start().await;
    app.with(async |source| {
        app.set("key", "1").await;
        seen(&source, Some("1"), SOON).await;
        // All of a transaction is seen, and nothing before it ends.
        let (one, two) = (set("key", "2"), set("b", "2"));
        let both = format!("BEGIN; {one}; {two}; SELECT pg_sleep(0.6); COMMIT");
        let (change, ()) = tokio::join!(
            sql(&app.server, &both),
            stays(&source, "1", Duration::from_millis(400))
        );
        change.unwrap();
        seen(&source, Some("2"), SOON).await;
        assert_eq!(source.get("b").await.unwrap().as_deref(), Some("2"));
        app.sql("SELECT washlet.unset_config('default__app', 'key')")
            .await;
        seen(&source, None, SOON).await;
        // Without the functions, too; and what expires is gone.
        app.sql(
            "INSERT INTO washlet.entry (bucket, key, value, version, expires_at) \
             SELECT id, 'key', 'brief', nextval('washlet.version'), now() + interval '2 seconds' \
             FROM washlet.bucket WHERE name = 'default__app'",
        )
        .await;
        seen(&source, Some("brief"), SOON).await;
        seen(&source, None, 3 * SOON).await;
        for refused in [
            "SELECT washlet.set_config('a.b', 'key', 'value')",
            "SELECT washlet.set_config('default__app', '', 'value')",
        ] {
            sql(&app.server, refused).await.unwrap_err();
        }
    })
    .await;
}

/// A change that was begun before anybody followed the bucket is not lost, however late it is committed.
#[tokio::test]
async fn what_was_being_written_is_seen_when_it_is_there() {
    let app = App::start().await;
    let schema = async |_| app.set("key", "before").await;
    app.with(schema).await;
    app.sql("DELETE FROM washlet.followed").await;
    let pool = PgPool::connect(&app.server.url()).await.unwrap();
    let mut writing = pool.begin().await.unwrap();
    let write = sqlx::AssertSqlSafe(set("key", "after"));
    sqlx::raw_sql(write).execute(&mut *writing).await.unwrap();
    let plugin = Postgres::new(Some(&Dsn::parse(&app.server.url()).unwrap()));
    let test = async {
        let source = source(&plugin).await.unwrap();
        stays(&source, "before", SOON).await;
        writing.commit().await.unwrap();
        seen(&source, Some("after"), SOON).await;
        app.set("key", "again").await;
        seen(&source, Some("again"), SOON).await;
    };
    tokio::select! {
        () = plugin.run() => panic!("the plugin stopped"),
        () = test => {},
    }
}

#[tokio::test]
async fn a_killed_server_leaves_what_was_there_and_is_followed_when_it_is_back() {
    let mut app = App::start().await;
    for round in 0..2 {
        let before = format!("before {round}");
        let (App { server, plugin }, after) = (&mut app, format!("after {round}"));
        // The first time the host follows; then it is another one, since each is run once.
        *plugin = Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()));
        let test = async {
            let source = source(plugin).await.unwrap();
            sql(server, &set("key", &before)).await.unwrap();
            seen(&source, Some(&before), SOON).await;
            server.kill();
            stays(&source, &before, SOON).await;
            server.restart().await.unwrap();
            sql(server, &set("key", &after)).await.unwrap();
            seen(&source, Some(&after), Duration::from_secs(10)).await;
        };
        tokio::select! {
            () = plugin.run() => panic!("the plugin stopped"),
            () = test => {},
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_followed_when_it_goes_on() {
    let app = App::start().await;
    let proxy = Proxy::start(&app.server.address()).await.unwrap();
    let url = format!("postgres://guest:{PASSWORD}@{}/fleet", proxy.address());
    let plugin = Postgres::new(Some(&Dsn::parse(&url).unwrap()));
    let test = async {
        let source = source(&plugin).await.unwrap();
        app.set("key", "before").await;
        seen(&source, Some("before"), SOON).await;
        proxy.pause();
        // Longer than a statement may take.
        app.set("key", "after").await;
        stays(&source, "before", Duration::from_secs(6)).await;
        proxy.resume();
        seen(&source, Some("after"), Duration::from_secs(20)).await;
    };
    tokio::select! {
        () = plugin.run() => panic!("the plugin stopped"),
        () = test => {},
    }
}

/// A watch of a bucket tells what changed while the server could not be reached.
#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let app = App::start().await;
    let proxy = Proxy::start(&app.server.address()).await.unwrap();
    let url = format!("postgres://guest:{PASSWORD}@{}/fleet", proxy.address());
    let plugin = Postgres::new(Some(&Dsn::parse(&url).unwrap()));
    let settings = BTreeMap::new();
    let store = plugin.keyvalue(&ask(&settings)).await.unwrap();
    store.open("app").await.unwrap();
    app.set("before", "").await;
    let mut changes = store.watch("app").await.unwrap();
    app.set("first", "").await;
    assert_eq!(changes.next().await.as_deref(), Some("first"));
    proxy.pause();
    for key in ["one", "two", "three"] {
        app.set(key, "").await;
    }
    app.sql("SELECT washlet.unset_config('default__app', 'first')")
        .await;
    proxy.cut();
    proxy.resume();
    let mut untold = BTreeSet::from(["one", "two", "three", "first"]);
    while !untold.is_empty() {
        let key = tokio::time::timeout(DEADLINE, changes.next()).await;
        let key = key.unwrap().unwrap();
        assert!(untold.remove(key.as_str()), "{key}");
    }
}

#[tokio::test]
async fn a_bucket_made_again_is_followed() {
    let app = App::start().await;
    app.with(async |source| {
        app.set("key", "old").await;
        app.set("other", "old").await;
        seen(&source, Some("old"), SOON).await;
        app.sql("DELETE FROM washlet.bucket WHERE name = 'default__app'")
            .await;
        // It is not known to be meant: what was there stays.
        stays(&source, "old", SOON).await;
        app.set("key", "new").await;
        seen(&source, Some("new"), SOON).await;
        assert_eq!(source.get("other").await.unwrap(), None);
        app.set("key", "newer").await;
        seen(&source, Some("newer"), SOON).await;
    })
    .await;
}

#[tokio::test]
async fn a_bucket_that_is_too_large_is_said_to_be() {
    let app = App::start().await;
    app.with(async |first| {
        app.set("key", "1").await;
        let part = BYTES_MAX / 8;
        let fill = format!(
            "SELECT washlet.set_config('default__app', 'part' || n, repeat('x', {part})) \
             FROM generate_series(1, 8) n"
        );
        app.sql(&fill).await;
        until("too much", DEADLINE, async || first.all().await.is_err()).await;
        assert!(matches!(first.all().await, Err(Error::TooMuch)));
        // What has room is followed on.
        app.set("key", "2").await;
        seen(&first, Some("2"), SOON).await;
        let refused = source(&app.plugin).await;
        assert!(matches!(refused.map(drop), Err(OpenError::Storage(_))));
        let free = "SELECT washlet.unset_config('default__app', 'part' || n) FROM generate_series(1, 8) n";
        app.sql(free).await;
        until("all have room", DEADLINE, async || {
            first.all().await.is_ok_and(|all| all.len() == 1)
        })
        .await;
        let many = format!(
            "SELECT washlet.set_config('default__app', 'k' || n, '') FROM generate_series(1, {KEYS_MAX}) n"
        );
        app.sql(&many).await;
        until("too many", DEADLINE, async || first.all().await.is_err()).await;
    })
    .await;
}

#[tokio::test]
async fn without_a_server_opening_ends_and_says_so() {
    let mut app = App::start().await;
    app.server.kill();
    let opening = source(&app.plugin);
    tokio::select! {
        () = app.plugin.run() => panic!("the plugin stopped"),
        refused = opening => {
            assert!(matches!(refused.map(drop), Err(OpenError::Storage(_))));
        }
    }
}
