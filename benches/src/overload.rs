//! Four times as much as a host can take: what it still answers, what it refuses, and whether
//! somebody else on it notices.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use fleet::washlet::{Fleet, Washlet};
use futures::future::{join_all, try_join_all};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    Options, load,
    load::{Connection, Times},
    proc::{self, Apart},
    report::{Bound, Row, Table},
    server::{Server, serve, warm},
};

/// What a host takes at once: so many requests are under way and so many wait at most.
const SATURATED: usize = 1_000;

/// How long the component of the second load waits before it answers.
const WAIT_MS: usize = 250;

/// How soon a caller comes again who does not wait for as long as a refusal says.
const IMPATIENT: Duration = Duration::from_millis(100);

/// How often somebody else asks.
const GENTLY: Duration = Duration::from_millis(10);

/// A load: who answers it, and how many callers make the host busy.
struct Load {
    what: &'static str,
    request: Vec<u8>,
    saturating: usize,
    excess: usize,
}

/// Who calls.
struct Callers {
    name: &'static str,
    count: usize,
    /// Whether who was refused comes again when the refusal says, and not before.
    patient: bool,
}

impl Load {
    fn callers(&self) -> [Callers; 3] {
        let callers = |name, count, patient| Callers {
            name,
            count,
            patient,
        };
        [
            callers(BUSY, self.saturating, true),
            callers(EXCESS, self.excess, true),
            callers(HASTE, self.excess, false),
        ]
    }
}

/// What came of a load.
#[derive(Default)]
struct Seen {
    good: u64,
    refused: u64,
    /// Refused without being told when to come again.
    brusque: u64,
    /// Connections that ended, and other answers.
    lost: u64,
    refusals: Vec<Duration>,
}

/// The row `overload`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    let (part, time) = if options.short {
        (40, Duration::from_millis(500))
    } else {
        (1, Duration::from_secs(4))
    };
    let fleet = Fleet::start().await?;
    // Thousands of callers take a processor for themselves, and would take it from the servers.
    let apart = Apart::new()?;
    apart.servers()?;
    let hello = fleet.push("http-hello").await?;
    let hostile = fleet.push("hostile").await?;
    let host = fleet.host(&[]).await?;
    let busy = serve(&host, "busy", &hello, json!({})).await?;
    let waits = serve(&host, "waits", &hostile, json!({})).await?;
    let gentle = serve(&host, "gentle", &hello, warm()).await?;
    let gentle = load::get(&gentle, "/");
    let loads = [
        Load {
            what: "hello",
            request: load::get(&busy, "/"),
            saturating: load::CALLERS,
            excess: 4 * SATURATED / part,
        },
        Load {
            what: "a component that waits 250 ms",
            request: load::get(&waits, &format!("/slow?ms={WAIT_MS}")),
            saturating: SATURATED / part,
            excess: 4 * SATURATED / part,
        },
    ];
    let hyper = Server::hyper().await?;
    apart.load()?;
    let [hello, slow] = loads;
    // Thousands of connections cost more than 32 by themselves; the bare server shows how much.
    let alone = bare(hyper.place().1, &hello, time).await?;
    for load in [(hello, Some(alone)), (slow, None)] {
        let (load, alone) = load;
        one(&host, &load, &gentle, time, &mut row).await?;
        if let Some(alone) = alone {
            row.push(alone);
        }
    }
    apart.end()?;
    let peak = proc::resident_peak(host.pid())?;
    let memory = Table::new("overload", "most memory of the host in MiB");
    row.push(memory.once("wash host", peak));
    Ok(row)
}

const BUSY: &str = "saturated";
const EXCESS: &str = "four times that";
const HASTE: &str = "the same, impatient";

/// What a bare server answers to both.
async fn bare(port: u16, load: &Load, time: Duration) -> Result<Table> {
    let mut rates = Table::new("overload", "good answers per second, raw hyper");
    for callers in load.callers().into_iter().filter(|callers| callers.patient) {
        let seen = flood(port, load, &callers, time).await?;
        rates = rates.once(callers.name, load::rate(seen.good, time));
    }
    Ok(rates.peer(BUSY))
}

/// The callers that saturate, then the excess.
async fn one(
    host: &Washlet,
    load: &Load,
    gentle: &[u8],
    time: Duration,
    row: &mut Row,
) -> Result<()> {
    let table = |what: &str| Table::new("overload", format!("{what}, {}", load.what));
    let mut rates = table("good answers per second");
    let mut refused = table("refusals per second (503)");
    let mut longest = table("longest time to a refusal in ms");
    let mut others = table("p99 of somebody else on the host in ms");
    let mut share = table("good answers to somebody else in percent");
    for callers in load.callers() {
        let name = callers.name;
        let other = Gentle::start(host.http_port(), gentle.to_vec());
        let seen = flood(host.http_port(), load, &callers, time).await?;
        let (times, asked) = other.end()?;
        rates = rates.once(name, load::rate(seen.good, time));
        refused = refused.once(name, load::rate(seen.refused, time));
        longest = longest.once(name, Times::new(seen.refusals).longest() / 1e3);
        share = share.once(
            name,
            100.0 * load::real(times.len() as u64) / load::real(asked),
        );
        others = others.once(name, Times::new(times).percentile(99) / 1e3);
        row.note(format!(
            "{}, {} callers ({name}): {} refusals did not say when to come again, {} connections \
             ended or were answered otherwise",
            load.what, callers.count, seen.brusque, seen.lost
        ));
    }
    let rates = rates.peer(BUSY);
    row.push(rates.hope_over(EXCESS, BUSY, Bound::AtLeast(0.9)));
    for table in [refused, longest, others, share] {
        row.push(table);
    }
    Ok(())
}

/// Lets `callers` ask for as long as `time`, after they have connected.
async fn flood(port: u16, load: &Load, by: &Callers, time: Duration) -> Result<Seen> {
    let seen = RefCell::new(Seen::default());
    let mut lines = Vec::new();
    // The queue of a listener is short.
    while lines.len() < by.count {
        let count = (by.count - lines.len()).min(256);
        lines.extend(try_join_all((0..count).map(|_| Connection::open(port))).await?);
    }
    // The first answers come in a burst and count for nothing.
    let began = Instant::now() + time / 4;
    let end = began + time;
    let callers = lines.into_iter().map(async |line| {
        let mut line = Some(line);
        while Instant::now() < end {
            let sent = Instant::now();
            let reply = match &mut line {
                Some(line) => line.exchange(&load.request).await,
                None => Err(anyhow!("no connection")),
            };
            let counts = (began..end).contains(&Instant::now());
            let pause = match reply {
                Ok(reply) if reply.is_good() => {
                    seen.borrow_mut().good += u64::from(counts);
                    None
                }
                Ok(reply) if reply.status == 503 => {
                    let mut seen = seen.borrow_mut();
                    seen.refused += u64::from(counts);
                    seen.brusque += u64::from(counts && reply.retry_after.is_none());
                    seen.refusals.push(sent.elapsed());
                    if reply.closes {
                        line = None;
                    }
                    let again = reply.retry_after.filter(|_| by.patient);
                    Some(again.unwrap_or(IMPATIENT))
                }
                _ => {
                    seen.borrow_mut().lost += u64::from(counts);
                    line = None;
                    Some(IMPATIENT)
                }
            };
            if let Some(pause) = pause {
                sleep(pause).await;
            }
            if line.is_none() {
                line = Connection::open(port).await.ok();
            }
        }
    });
    join_all(callers).await;
    Ok(seen.into_inner())
}

/// Somebody who asks for something else now and then, on a thread of their own.
struct Gentle {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(Vec<Duration>, u64)>>,
}

impl Gentle {
    fn start(port: u16, request: Vec<u8>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_nodelay(true)?;
            let (mut times, mut asked) = (Vec::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                stream.write_all(&request)?;
                let mut bytes = Vec::new();
                let reply = loop {
                    let mut part = [0; 1024];
                    let read = stream.read(&mut part)?;
                    if read == 0 {
                        break None;
                    }
                    bytes.extend(part.iter().take(read));
                    if let Some(reply) = load::parse(&bytes)? {
                        break Some(reply);
                    }
                };
                asked += 1;
                if reply.is_some_and(load::Reply::is_good) {
                    times.push(sent.elapsed());
                }
                if reply.is_none_or(|reply| reply.closes) {
                    stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
                }
                thread::sleep(GENTLY);
            }
            Ok((times, asked))
        });
        Self { stop, thread }
    }

    /// Stops; gives how long good answers took, and how often it asked.
    fn end(self) -> Result<(Vec<Duration>, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        let ended = ended.map_err(|_| anyhow!("the gentle caller panicked"))?;
        ended.context("the gentle caller failed")
    }
}
