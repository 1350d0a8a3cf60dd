//! A host that was killed, and has nothing but its state directory: how long until what ran serves again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fleet::washlet::{Fleet, Washlet};
use tokio::time::{sleep, timeout};

use crate::{
    Options,
    load::{self, Connection, ROUND_MAX},
    report::{Bound, Row, Table},
    starts::{hello, start},
};

/// How many workloads there are.
const SIZES: [(&str, usize); 3] = [
    ("1 workload", 1),
    ("100 workloads", 100),
    ("1000 workloads", 1_000),
];

/// The same for a look whether it works.
const SIZES_SHORT: [(&str, usize); 2] = [("1 workload", 1), ("5 workloads", 5)];

/// How long to wait before asking again who did not serve.
const AGAIN: Duration = Duration::from_millis(1);

/// The row `restore`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let sizes = if options.short {
        SIZES_SHORT.as_slice()
    } else {
        SIZES.as_slice()
    };
    let mut first = Table::new(
        "restore",
        "from the start of the process until one serves in ms",
    );
    let mut all = Table::new(
        "restore",
        "from the start of the process until all serve in ms",
    );
    for (name, size) in sizes {
        let mut fleet = Fleet::start().await?;
        let image = fleet.push("http-hello").await?;
        let mut host = fleet.host(&[]).await?;
        let workloads: Vec<_> = (0..*size)
            .map(|n| hello(&format!("w-{n}"), &image))
            .collect();
        // One pulls and compiles, the others find that done.
        let (one, others) = workloads.split_first().context("there are no workloads")?;
        host.run_well(one).await?;
        start(&host, others).await?;
        // Neither is needed, and nobody is to blame them for what it takes.
        fleet.nats.kill();
        fleet.registry.kill();
        let names: Vec<_> = workloads.iter().map(|w| format!("{}.test", w.id)).collect();
        let (mut firsts, mut alls) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let took = timeout(ROUND_MAX, restored(&mut host, &names));
            let (one, all) = took.await.context("not everything is restored")??;
            firsts.push(one.as_secs_f64() * 1e3);
            alls.push(all.as_secs_f64() * 1e3);
        }
        first = first.side(*name, firsts);
        all = all.side(*name, alls);
    }
    let mut row = Row::default();
    row.push(first);
    row.push(all.hope("100 workloads", Bound::AtMost(1_000.0)));
    row.note(
        "killed, started again, with NATS and the registry down; one request for each workload",
    );
    Ok(row)
}

/// Kills `host` and starts it again; how long the first of `names` took to serve, and the last.
async fn restored(host: &mut Washlet, names: &[String]) -> Result<(Duration, Duration)> {
    host.kill();
    let began = Instant::now();
    let port = host.restart_cut_off().await?;
    let mut first = None;
    for name in names {
        let request = load::get(name, "/");
        let mut connection = Connection::open(port).await?;
        loop {
            // Who is not there yet is refused, which may end the connection.
            match connection.exchange(&request).await {
                Ok(reply) if reply.is_good() => break,
                Ok(reply) if !reply.closes => {}
                _ => connection = Connection::open(port).await?,
            }
            sleep(AGAIN).await;
        }
        first.get_or_insert_with(|| began.elapsed());
    }
    let all = began.elapsed();
    Ok((first.unwrap_or(all), all))
}
