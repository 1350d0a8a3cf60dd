//! Key-value through components beside `async-nats`: one key that everybody adds to, and keys that
//! are read and written; on Postgres, too.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, kv};
use fleet::{
    http::get,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{
    TryStreamExt,
    future::{ready, try_join_all},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Options, load,
    load::{CALLERS, ROUND_MAX, Tickets},
    postgres::{self, Call},
    proc,
    report::{self, Bound, Row, Table, interleave},
};

const HOST: &str = "counter.test";
const COUNTING: &str = "wash host";
const BARE: &str = "async-nats";

/// What is written and read.
const VALUE: &str = "a value of a few bytes, as many are";

/// How many reads or writes a request makes that is not for one alone: then it is they that are measured, and
/// not HTTP.
const EACH: u64 = 100;

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Hosts,
    Client,
}

/// Both, in the order of the tables.
const BOTH: [(&str, Through); 2] = [(COUNTING, Through::Hosts), (BARE, Through::Client)];

/// The row `keyvalue`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    let fleet = Fleet::start().await?;
    additions(options, &fleet, &mut row).await?;
    single(options, &fleet, &mut row).await?;
    many(options, &fleet, &mut row).await?;
    postgres::keyvalue(options, &fleet, &mut row).await?;
    Ok(row)
}

async fn store(fleet: &Fleet, bucket: &str) -> Result<kv::Store> {
    let config = kv::Config {
        bucket: bucket.to_owned(),
        history: 1,
        ..Default::default()
    };
    let context = jetstream::new(fleet.nats.client().await?);
    Ok(context.create_key_value(config).await?)
}

/// Callers that add one to one key: through a component on two hosts, and bare.
async fn additions(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let image = fleet.push("http-counter").await?;
    let workload = Workload::new("counter")
        .component("counter", &image, json!({}))
        .interface("wasi:keyvalue/store,atomics@0.2.0-draft", &[])
        .http(HOST);
    let host = async || {
        let host = fleet.host(&[]).await?;
        host.run_well(&workload).await?;
        anyhow::Ok(host)
    };
    let hosts = [host().await?, host().await?];
    let store = store(fleet, "bare").await?;
    let figures = interleave(options.rounds, &BOTH, async |round, (_, through)| {
        let key = format!("key-{round}");
        match through {
            Through::Hosts => through_hosts(&hosts, &key, options.total).await,
            Through::Client => compare_and_swap(&store, &key, options.total).await,
        }
    })
    .await?;
    let table = Table::new("keyvalue", "additions to one key per second, 32 callers");
    let sides = BOTH.iter().zip(figures);
    let table = sides.fold(table, |table, ((name, _), rounds)| {
        table.side(*name, rounds)
    });
    row.push(table.peer(BARE));
    Ok(())
}

/// Half of the callers on each host; gives additions per second.
async fn through_hosts(hosts: &[Washlet], key: &str, total: u64) -> Result<f64> {
    let ports: Vec<u16> = hosts.iter().map(Washlet::http_port).collect();
    let tickets = Tickets::new(total);
    let request = load::get(HOST, &format!("/{key}"));
    let done = load::drive(&ports, || tickets.take().then_some(request.as_slice())).await?;
    for port in ports {
        let reply = get(port, HOST, &format!("/{key}?read")).await?;
        exact(reply.body.trim(), total)?;
    }
    Ok(done.rate())
}

/// All callers on one connection, as NATS clients are meant to be used; gives additions per second.
async fn compare_and_swap(store: &kv::Store, key: &str, total: u64) -> Result<f64> {
    store.create(key, "0".into()).await?;
    let rate = client(total, async |_| add(store, key).await).await?;
    let sum = store.get(key).await?.context("the key is gone")?;
    exact(std::str::from_utf8(&sum)?, total)?;
    Ok(rate)
}

/// Lets callers do `call` until that was done `total` times; gives calls per second.
pub(crate) async fn client(total: u64, call: impl AsyncFn(usize) -> Result<()>) -> Result<f64> {
    let tickets = Tickets::new(total);
    let began = Instant::now();
    let (tickets, call) = (&tickets, &call);
    let callers = (0..CALLERS).map(async |caller| {
        while tickets.take() {
            call(caller).await?;
        }
        anyhow::Ok(())
    });
    timeout(ROUND_MAX, try_join_all(callers))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    Ok(load::rate(total, began.elapsed()))
}

/// Reads and writes until nobody came between; who fails, fails because another got on.
async fn add(store: &kv::Store, key: &str) -> Result<()> {
    loop {
        let entry = store.entry(key).await?.context("the key is gone")?;
        let sum: u64 = std::str::from_utf8(&entry.value)?.parse()?;
        let sum = (sum + 1).to_string();
        match store.update(key, sum.into(), entry.revision).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exact(sum: &str, total: u64) -> Result<()> {
    ensure!(
        sum.parse() == Ok(total),
        "{total} additions gave the sum \"{sum}\""
    );
    Ok(())
}

/// Writes so far to all buckets but `bare`: what components wrote, as the server counts it.
async fn written(fleet: &Fleet, bare: &kv::Store) -> Result<u64> {
    let context = jetstream::new(fleet.nats.client().await?);
    let streams = context.streams();
    let others = streams.try_filter(|info| ready(info.config.name != bare.stream_name));
    let sum = others.try_fold(0, |sum, info| ready(Ok(sum + info.state.last_sequence)));
    Ok(sum.await?)
}

/// Reads and writes, each caller of a key of its own.
async fn single(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let image = fleet.push("kv").await?;
    let host = fleet.host(&[]).await?;
    let workload = Workload::new("kv")
        .component("kv", &image, json!({}))
        .interface("wasi:keyvalue/store,atomics,batch@0.2.0-draft", &[])
        .http("kv.test");
    host.run_well(&workload).await?;
    let store = store(fleet, "single").await?;
    // Writes first, so that there is something to read.
    let parts = [("writes", true), ("reads", false)].into_iter();
    let parts = parts.flat_map(|part| [(part, 1), (part, EACH)]);
    for ((what, is_set), each) in parts {
        let path = |caller| format!("/single/key-{caller}?times={each}");
        let requests = (0..CALLERS).map(|caller| match is_set {
            true => load::put("kv.test", &path(caller), VALUE),
            false => load::get("kv.test", &path(caller)),
        });
        let requests: Vec<_> = requests.collect();
        let total = (options.total / 2).max(each * CALLERS as u64);
        let figures = interleave(options.rounds, &BOTH, async |_, (_, through)| {
            if *through == Through::Client {
                let rate = client(total, async |caller| {
                    let key = format!("key-{caller}");
                    if is_set {
                        store.put(key, VALUE.into()).await?;
                    } else {
                        store.get(key).await?.context("the key is gone")?;
                    }
                    Ok(())
                });
                return Ok((rate.await?, None));
            }
            let (tickets, turn) = (Tickets::new(total / each), std::cell::Cell::new(0));
            let next = || {
                let place = turn.replace(turn.get() + 1) % requests.len();
                let request = requests.get(place)?;
                tickets.take().then_some(request.as_slice())
            };
            let before_it = written(fleet, &store).await?;
            let before = proc::cpu(host.pid())?;
            let done = load::drive(&[host.http_port()], next).await?;
            let used = proc::cpu(host.pid())?.saturating_sub(before);
            let count = done.requests * each;
            if is_set {
                let more = written(fleet, &store).await? - before_it;
                ensure!(more == count, "{count} writes were {more}");
            }
            let count = load::real(count);
            let rate = count / done.took.as_secs_f64();
            Ok((rate, Some(used.as_secs_f64() * 1e6 / count)))
        })
        .await?;
        let how = format!("{each} in a request");
        let rates = format!("{what} per second, 32 callers, {how}");
        let cpu = format!("CPU time of {what} in µs each, {how}");
        let (table, cpu) = report::rates_and_cpu("keyvalue", [rates, cpu], &BOTH, figures);
        let table = table.peer(BARE);
        row.push(match each {
            1 => table,
            _ => table.hope_over(COUNTING, BARE, Bound::AtLeast(0.7)),
        });
        row.push(cpu);
    }
    Ok(())
}

/// Additions to many keys, and batches.
async fn many(options: &Options, fleet: &Fleet, row: &mut Row) -> Result<()> {
    let image = fleet.push("kv").await?;
    let host = fleet.host(&[]).await?;
    let workload = Workload::new("many")
        .component("kv", &image, json!({}))
        .interface("wasi:keyvalue/store,atomics,batch@0.2.0-draft", &[])
        .http(postgres::HOST);
    host.run_well(&workload).await?;
    let store = store(fleet, "many").await?;
    for (what, call) in Call::MANY {
        let total = (options.total / 2).max(call.each() * CALLERS as u64);
        let figures = interleave(
            options.rounds,
            &BOTH,
            async |round, (_, through)| match through {
                Through::Hosts => postgres::through(&host, call, round, total).await,
                Through::Client => Ok((bare(&store, call, round, total).await?, None)),
            },
        )
        .await?;
        let cpu = format!("CPU time in µs each of {what}");
        let titles = [what.to_owned(), cpu];
        let (rates, cpu) = report::rates_and_cpu("keyvalue", titles, &BOTH, figures);
        row.push(rates.peer(BARE));
        row.push(cpu);
    }
    Ok(())
}

/// By the client alone, a batch as a call for each of its keys, all at once; gives keys per second.
async fn bare(store: &kv::Store, call: Call, round: usize, total: u64) -> Result<f64> {
    let calls = match call {
        Call::SetMany | Call::GetMany => total / call.each(),
        _ => total,
    };
    let turn = std::cell::Cell::new(0);
    let rate = client(calls, async |caller| {
        let turn = turn.replace(turn.get() + 1);
        let keys = (0..100).map(|n| format!("many-{}", caller * 100 + n));
        match call {
            Call::Add(keys) => {
                let key = format!("count-{round}-{}", turn % keys);
                // Whoever comes second adds to what the first has made.
                if store.create(&key, "1".into()).await.is_err() {
                    add(store, &key).await?;
                }
            }
            Call::GetMany => {
                let values = try_join_all(keys.map(|key| store.get(key))).await?;
                ensure!(values.iter().all(Option::is_some), "a key is gone");
            }
            _ => {
                try_join_all(keys.map(|key| store.put(key, VALUE.into()))).await?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(rate * load::real(total) / load::real(calls))
}
