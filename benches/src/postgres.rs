//! Key-value and objects on Postgres through components, beside `sqlx` with as many connections as a host has.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use fleet::{
    http::send,
    postgres::PostgresServer,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::TryStreamExt;
use serde_json::json;
use sqlx::{PgPool, Row as _, postgres::PgPoolOptions, query, query_scalar, raw_sql};

use crate::{
    Options,
    blob::{self, Size},
    keyvalue::client,
    load::{self, CALLERS, Tickets},
    proc,
    report::{self, Bound, Row, interleave},
};

pub(crate) const HOST: &str = "kv.test";
const OURS: &str = "wash host";
const BARE: &str = "sqlx";

/// As many as a host has.
const CONNECTIONS: u32 = 10;

/// How many keys a batch has, and how many reads or writes a request makes that are not a batch.
const EACH: u64 = 100;

/// How many keys are counted that are not one.
const KEYS: usize = 10_000;

/// How an object is cut by who does it by hand.
const CHUNK: usize = 256 << 10;

/// What is written and read.
const VALUE: &str = "a value of a few bytes, as many are";

const TABLES: &str = "
    CREATE TABLE bare (key text PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE bare_count (key text PRIMARY KEY, n bigint NOT NULL);
    CREATE TABLE bare_chunk (name text, at bigint, bytes bytea NOT NULL, PRIMARY KEY (name, at));
    ALTER TABLE bare_chunk ALTER COLUMN bytes SET STORAGE EXTERNAL";

/// A server, a host on it, and a client of it.
struct Storage {
    server: PostgresServer,
    host: Washlet,
    pool: PgPool,
}

impl Storage {
    /// `None`, and a note why, where there is no Postgres.
    async fn start(fleet: &Fleet, row: &mut Row) -> Result<Option<Self>> {
        let server = match PostgresServer::start().await {
            Ok(server) => server,
            Err(error) => {
                row.note(format!("not measured on Postgres: {error:#}"));
                return Ok(None);
            }
        };
        let host = fleet.host(&["--postgres-url", &server.url()]).await?;
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
        let pool = pool.connect(&server.url()).await?;
        raw_sql(TABLES).execute(&pool).await?;
        Ok(Some(Self { server, host, pool }))
    }

    /// Runs the component `name`, whose `interface` is served by Postgres.
    async fn run(&self, fleet: &Fleet, name: &str, interface: &str, http: &str) -> Result<()> {
        let image = fleet.push(name).await?;
        let workload = Workload::new(name)
            .component(name, &image, json!({}))
            .interface(interface, &[("backend", "postgres")])
            .http(http);
        self.host.run_well(&workload).await
    }
}

/// What is done to keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Set,
    Get,
    /// To one of so many keys.
    Add(usize),
    SetMany,
    GetMany,
}

impl Call {
    /// Keys by the thousand, and batches.
    pub(crate) const MANY: [(&'static str, Self); 3] = [Self::ALL[3], Self::ALL[4], Self::ALL[5]];

    const ALL: [(&'static str, Self); 6] = [
        ("writes per second, 32 callers, 100 in a request", Self::Set),
        ("reads per second, 32 callers, 100 in a request", Self::Get),
        ("additions to one key per second, 32 callers", Self::Add(1)),
        (
            "additions to 10,000 keys per second, 32 callers",
            Self::Add(KEYS),
        ),
        (
            "keys written per second in batches of 100, 32 callers",
            Self::SetMany,
        ),
        (
            "keys read per second in batches of 100, 32 callers",
            Self::GetMany,
        ),
    ];

    /// How many keys one request is about.
    pub(crate) fn each(self) -> u64 {
        match self {
            Self::Add(_) => 1,
            _ => EACH,
        }
    }

    /// One request for each caller, or for each key.
    fn requests(self, round: usize) -> Vec<Vec<u8>> {
        let lines = |line: fn(usize) -> String, caller: usize| -> String {
            (0..100).map(|n| line(caller * 100 + n)).collect()
        };
        let one = |caller| match self {
            Self::Set => load::put(HOST, &format!("/b/key-{caller}?times={EACH}"), VALUE),
            Self::Get => load::get(HOST, &format!("/b/key-{caller}?times={EACH}")),
            Self::Add(_) => load::post(HOST, &format!("/count-{round}/{caller}?increment=1"), ""),
            Self::SetMany => {
                let body = lines(|n| format!("many-{n}={VALUE}\n"), caller);
                load::post(HOST, "/b?many=set", &body)
            }
            Self::GetMany => {
                let body = lines(|n| format!("many-{n}\n"), caller);
                load::post(HOST, "/b?many=get", &body)
            }
        };
        let count = match self {
            Self::Add(keys) => keys,
            _ => CALLERS,
        };
        (0..count).map(one).collect()
    }
}

/// The part of the row `keyvalue` that is on Postgres.
pub(crate) async fn keyvalue(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let Some(storage) = Storage::start(fleet, row).await? else {
        return Ok(());
    };
    let store = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
    storage.run(fleet, "kv", store, HOST).await?;
    for (what, call) in Call::ALL {
        let total = (options.total / 2).max(call.each() * CALLERS as u64);
        let sides = [(OURS, true), (BARE, false)];
        let figures =
            interleave(
                options.rounds,
                &sides,
                async |round, (_, through_host)| match through_host {
                    true => through(&storage.host, call, round, total).await,
                    false => Ok((bare(&storage.pool, call, round, total).await?, None)),
                },
            )
            .await?;
        let titles = [
            format!("on Postgres: {what}"),
            format!("on Postgres: the host's CPU time in µs each of {what}"),
        ];
        let (rates, cpu) = report::rates_and_cpu("keyvalue", titles, &sides, figures);
        row.push(rates.peer(BARE).hope_over(OURS, BARE, Bound::AtLeast(0.7)));
        row.push(cpu);
    }
    storage.pool.close().await;
    drop(storage.server);
    Ok(())
}

/// By the component: how many keys per second, and the host's time for each.
pub(crate) async fn through(
    host: &Washlet,
    call: Call,
    round: usize,
    total: u64,
) -> Result<(f64, Option<f64>)> {
    let requests = call.requests(round);
    let (tickets, turn) = (Tickets::new(total / call.each()), Cell::new(0));
    let next = || {
        let place = turn.replace(turn.get() + 1) % requests.len();
        let request = requests.get(place)?;
        tickets.take().then_some(request.as_slice())
    };
    let before = proc::cpu(host.pid())?;
    let done = load::drive(&[host.http_port()], next).await?;
    let used = proc::cpu(host.pid())?.saturating_sub(before);
    if call == Call::Add(1) {
        let path = format!("/count-{round}/0?increment=0");
        let sum = send(host.http_port(), HOST, reqwest::Method::POST, &path, "").await?;
        let sum = sum.body.trim().to_owned();
        ensure!(sum == total.to_string(), "{total} additions gave {sum}");
    }
    let count = load::real(done.requests * call.each());
    let rate = count / done.took.as_secs_f64();
    Ok((rate, Some(used.as_secs_f64() * 1e6 / count)))
}

/// The same by hand, each call one statement; gives keys per second.
async fn bare(pool: &PgPool, call: Call, round: usize, total: u64) -> Result<f64> {
    let calls = match call {
        Call::SetMany | Call::GetMany => total / EACH,
        _ => total,
    };
    let turn = Cell::new(0);
    let rate = client(calls, async |caller| {
        let turn = turn.replace(turn.get() + 1);
        let many = || -> Vec<String> {
            (0..100)
                .map(|n| format!("many-{}", caller * 100 + n))
                .collect()
        };
        match call {
            Call::Set => {
                let set = "INSERT INTO bare (key, value) VALUES ($1, $2) \
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                let set = query(set)
                    .bind(format!("key-{caller}"))
                    .bind(VALUE.as_bytes());
                set.execute(pool).await?;
            }
            Call::Get => {
                let get = query_scalar("SELECT value FROM bare WHERE key = $1");
                let value: Vec<u8> = get.bind(format!("key-{caller}")).fetch_one(pool).await?;
                ensure!(value == VALUE.as_bytes(), "another value was read");
            }
            Call::Add(keys) => {
                let add = "INSERT INTO bare_count AS c (key, n) VALUES ($1, 1) \
                           ON CONFLICT (key) DO UPDATE SET n = c.n + 1 RETURNING n";
                let add = query(add).bind(format!("{round}-{}", turn % keys));
                add.fetch_one(pool).await?;
            }
            Call::SetMany => {
                let set = "INSERT INTO bare (key, value) SELECT unnest($1), $2 \
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                let set = query(set).bind(many()).bind(VALUE.as_bytes());
                set.execute(pool).await?;
            }
            Call::GetMany => {
                let get = query("SELECT key, value FROM bare WHERE key = ANY ($1)");
                let rows = get.bind(many()).fetch_all(pool).await?;
                ensure!(rows.len() == 100, "{} of 100 keys were read", rows.len());
            }
        }
        Ok(())
    })
    .await?;
    Ok(rate * load::real(total) / load::real(calls))
}

/// The part of the row `blob` that is on Postgres.
pub(crate) async fn blobs(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let Some(storage) = Storage::start(fleet, row).await? else {
        return Ok(());
    };
    let store = "wasi:blobstore/blobstore,container,types@0.2.0-draft";
    storage.run(fleet, "blob", store, blob::HOST).await?;
    let by_hand = async |size: &Size, is_write| match is_write {
        true => write(&storage.pool, size).await,
        false => read(&storage.pool, size).await,
    };
    blob::compare(
        options,
        &storage.host,
        row,
        (BARE, "on Postgres: "),
        by_hand,
    )
    .await?;
    storage.pool.close().await;
    Ok(())
}

/// Objects in chunks, each object one transaction; gives objects per second.
async fn write(pool: &PgPool, size: &Size) -> Result<f64> {
    blob::round(size.callers, size.total, async |caller, tickets| {
        let name = format!("{}-{caller}", size.bytes);
        let bytes = usize::try_from(size.bytes)?;
        let content = vec![1_u8; bytes.min(CHUNK)];
        while tickets.take() {
            let mut object = pool.begin().await?;
            let old = query("DELETE FROM bare_chunk WHERE name = $1").bind(&name);
            old.execute(&mut *object).await?;
            for at in (0..bytes).step_by(CHUNK) {
                let chunk = content.get(..CHUNK.min(bytes - at)).context("a chunk")?;
                let add = query("INSERT INTO bare_chunk (name, at, bytes) VALUES ($1, $2, $3)");
                let add = add.bind(&name).bind(i64::try_from(at)?).bind(chunk);
                add.execute(&mut *object).await?;
            }
            object.commit().await?;
        }
        Ok(())
    })
    .await
}

async fn read(pool: &PgPool, size: &Size) -> Result<f64> {
    blob::round(size.callers, size.total, async |caller, tickets| {
        let name = format!("{}-{caller}", size.bytes);
        while tickets.take() {
            let chunks = query("SELECT bytes FROM bare_chunk WHERE name = $1 ORDER BY at");
            let mut chunks = chunks.bind(&name).fetch(pool);
            let mut bytes = 0;
            while let Some(chunk) = chunks.try_next().await? {
                bytes += chunk.try_get::<&[u8], _>(0)?.len();
            }
            ensure!(bytes as u64 == size.bytes, "{bytes} bytes were read");
        }
        Ok(())
    })
    .await
}
