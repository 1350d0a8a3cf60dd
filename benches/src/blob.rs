//! Objects through a component beside `async-nats`: both write what they make themselves, and drop
//! what they read; on Postgres, too.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{
    self,
    object_store::{Config, ObjectStore},
};
use fleet::{
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use futures::{TryStreamExt, future::try_join_all};
use serde_json::json;
use tokio::{io, time::timeout};

use crate::{
    Options,
    load::{self, Connection, ROUND_MAX, Tickets},
    postgres, proc,
    report::{self, Bound, Row, interleave},
};

pub(crate) const HOST: &str = "blob.test";
const OURS: &str = "wash host";
const BARE: &str = "async-nats";

/// Objects of one size.
pub(crate) struct Size {
    name: &'static str,
    pub(crate) bytes: u64,
    /// How many are written or read at once.
    pub(crate) callers: usize,
    /// How many in a round.
    pub(crate) total: u64,
}

/// The row `blob`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let fleet = Fleet::start().await?;
    let host = fleet.host(&[]).await?;
    let image = fleet.push("blob").await?;
    let workload = Workload::new("blob")
        .component("blob", &image, json!({}))
        .interface("wasi:blobstore/blobstore,container,types@0.2.0-draft", &[])
        .http(HOST);
    host.run_well(&workload).await?;
    let jetstream = jetstream::new(fleet.nats.client().await?);
    let bucket = "bare".to_owned();
    let config = Config {
        bucket,
        ..Default::default()
    };
    let store = jetstream.create_object_store(config).await?;

    let mut row = Row::default();
    let by_client =
        async |size: &Size, is_write| in_parts(&jetstream, &store, size, is_write).await;
    compare(options, &host, &mut row, (BARE, ""), by_client).await?;
    postgres::blobs(options, &fleet, &mut row).await?;
    Ok(row)
}

/// What the component on `host` writes and reads, beside `peer` doing the same; `on` begins the titles.
pub(crate) async fn compare(
    options: &Options,
    host: &Washlet,
    row: &mut Row,
    (peer, on): (&'static str, &str),
    by_peer: impl AsyncFn(&Size, bool) -> Result<f64>,
) -> Result<()> {
    let port = host.http_port();
    let create = [load::post(HOST, "/bench?create", "")];
    let create = requests(port, 1, 1, &create).await;
    create.context("failed to create a container")?;
    for size in sizes(options) {
        let object = |caller| format!("/bench/{}-{caller}", size.bytes);
        let put = |caller| {
            let path = format!("{}?bytes={}", object(caller), size.bytes);
            load::put(HOST, &path, "")
        };
        let get = |caller| load::get(HOST, &format!("{}?drain", object(caller)));
        let puts: Vec<_> = (0..size.callers).map(put).collect();
        let gets: Vec<_> = (0..size.callers).map(get).collect();
        // Writes first, so that there is something to read.
        for (what, asked, is_write) in [("writes", &puts, true), ("reads", &gets, false)] {
            let sides = [(OURS, true), (peer, false)];
            let figures = interleave(options.rounds, &sides, async |_, (_, through_host)| {
                let before = proc::cpu(host.pid())?;
                let rate = match through_host {
                    true => requests(port, size.callers, size.total, asked).await?,
                    false => by_peer(&size, is_write).await?,
                };
                let used = proc::cpu(host.pid())?.saturating_sub(before);
                let used = used.as_secs_f64() * 1e6 / load::real(size.total);
                Ok((rate, through_host.then_some(used)))
            })
            .await?;
            let (name, callers) = (size.name, size.callers);
            let titles = [
                format!("{on}{what} of {name} per second, {callers} at once"),
                format!("{on}the host's CPU time of {what} of {name} in µs each"),
            ];
            let (mut table, cpu) = report::rates_and_cpu("blob", titles, &sides, figures);
            table = table.peer(peer);
            if size.bytes >= 1 << 20 {
                table = table.hope_over(OURS, peer, Bound::AtLeast(0.8));
            }
            row.push(table);
            row.push(cpu);
        }
    }
    Ok(())
}

fn sizes(options: &Options) -> [Size; 3] {
    let (name, bytes) = match options.short {
        true => ("8 MiB", 8 << 20),
        false => ("100 MiB", 100 << 20),
    };
    let size = |name, bytes, callers, total| Size {
        name,
        bytes,
        callers,
        total,
    };
    [
        size("1 KiB", 1 << 10, 32, options.total / 4),
        size("1 MiB", 1 << 20, 8, (options.total / 64).max(8)),
        size(name, bytes, 1, 3),
    ]
}

/// Sends one of `asked` for each caller, again and again; gives requests per second.
async fn requests(port: u16, callers: usize, total: u64, asked: &[Vec<u8>]) -> Result<f64> {
    round(callers, total, async |caller, tickets| {
        let request = asked.get(caller).context("a caller without a request")?;
        let mut connection = Connection::open(port).await?;
        while tickets.take() {
            let reply = connection.exchange(request).await?;
            ensure!(reply.is_good(), "an answer has the status {}", reply.status);
        }
        Ok(())
    })
    .await
}

/// A server has room for 1,000 consumers of a stream, and the bare client leaves one for each read: so many
/// calls at once, then they are removed while the clock stands still. Gives calls per second.
async fn in_parts(
    jetstream: &jetstream::Context,
    store: &ObjectStore,
    size: &Size,
    is_write: bool,
) -> Result<f64> {
    const PART: u64 = 800;
    let (mut left, mut seconds) = (size.total, 0.0);
    while left > 0 {
        let total = left.min(PART);
        let rate = bare(store, &Size { total, ..*size }, is_write).await?;
        seconds += load::real(total) / rate;
        left -= total;
        tidy(jetstream).await?;
    }
    Ok(load::real(size.total) / seconds)
}

async fn tidy(jetstream: &jetstream::Context) -> Result<()> {
    let stream = jetstream.get_stream("OBJ_bare").await?;
    let names: Vec<String> = stream.consumer_names().try_collect().await?;
    for name in names {
        stream.delete_consumer(&name).await?;
    }
    Ok(())
}

/// The same by a client of NATS, each caller an object of its own.
async fn bare(store: &ObjectStore, size: &Size, is_write: bool) -> Result<f64> {
    round(size.callers, size.total, async |caller, tickets| {
        let object = format!("{}-{caller}", size.bytes);
        while tickets.take() {
            if is_write {
                let mut content = io::AsyncReadExt::take(io::repeat(1), size.bytes);
                store.put(object.as_str(), &mut content).await?;
            } else {
                let mut content = store.get(&object).await?;
                let bytes = io::copy(&mut content, &mut io::sink()).await?;
                ensure!(bytes == size.bytes, "{bytes} bytes were read");
            }
        }
        Ok(())
    })
    .await
}

/// Lets so many callers call until all is done `total` times; gives calls per second.
pub(crate) async fn round(
    callers: usize,
    total: u64,
    call: impl AsyncFn(usize, &Tickets) -> Result<()>,
) -> Result<f64> {
    let tickets = Tickets::new(total);
    let began = Instant::now();
    let calls = (0..callers).map(|caller| call(caller, &tickets));
    timeout(ROUND_MAX, try_join_all(calls))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    Ok(load::rate(total, began.elapsed()))
}
