//! How long an answer takes when requests come at a rate that the server can bear, whether it is
//! quick or not.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use fleet::washlet::Fleet;
use serde_json::json;

use crate::{
    Options,
    http::{FRESH, HYPER},
    load::{self, CALLERS, Times},
    proc::Apart,
    report::{Bound, Row, Table, interleave},
    server::{Contender, HELLO, Server, Turn, place, serve},
};

/// How long answers may be outstanding after the last request was due.
const PATIENCE: Duration = Duration::from_secs(10);

/// The row `latency`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    let fleet = Fleet::start().await?;
    let image = fleet.push("http-hello").await?;
    // The load looks at the clock without a pause, so it has a processor of its own, and so have the servers;
    // else the row shows who of them the kernel lets wait. What is started inherits where it may run.
    let apart = Apart::new()?;
    apart.servers()?;
    let host = fleet.host(&[]).await?;
    let hyper = Server::hyper().await?;
    apart.load()?;
    let address = serve(&host, "fresh", &image, json!({})).await?;
    let ours = Contender::new(FRESH, place(&host), &address, HELLO).await?;
    let peer = Contender::new(HYPER, hyper.place(), "hello.test", HELLO).await?;
    let turn = Turn::new(options.short);
    let (saturated, _) = ours.measure(turn).await?;
    let interval = Duration::from_secs_f64(2.0 / saturated);
    let sides = [ours, peer];
    let figures = interleave(options.rounds, &sides, async |_, side: &Contender| {
        side.measure(Turn {
            time: turn.warm_up,
            ..turn
        })
        .await?;
        steady(side, interval, turn.time)
    })
    .await?;
    if apart.is_alone() {
        row.note(
            "there is one processor for both, so the load takes its time from the servers"
                .to_owned(),
        );
    }
    apart.end()?;
    row.note(format!(
        "{:.0} requests per second, half of what the host answers at most, in both cases",
        saturated / 2.0
    ));
    for percent in [50, 99] {
        let mut table = Table::new("latency", format!("p{percent} at one rate in µs"));
        for (side, rounds) in sides.iter().zip(&figures) {
            let rounds = rounds.iter().map(|times| times.percentile(percent));
            table = table.side(side.name, rounds.collect());
        }
        let table = table.peer(HYPER);
        row.push(if percent == 99 {
            table.hope_over(FRESH, HYPER, Bound::AtMost(3.0))
        } else {
            table
        });
    }
    Ok(row)
}

/// A connection, and when the request on it was due.
struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    due: Option<Instant>,
}

impl Line {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            due: None,
        })
    }

    fn send(&mut self, request: &[u8], due: Instant) -> Result<()> {
        self.buffer.clear();
        self.due = Some(due);
        // A connection without a request under way takes so few bytes at once.
        Ok(self.stream.write_all(request)?)
    }

    /// When the request was due whose answer is there.
    fn answered(&mut self) -> Result<Option<Instant>> {
        if self.due.is_none() {
            return Ok(None);
        }
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => anyhow::bail!("the server closed a connection that was in use"),
            Ok(read) => self.buffer.extend(bytes.iter().take(read)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some(reply) = load::parse(&self.buffer)? else {
            return Ok(None);
        };
        ensure!(reply.is_good(), "answered {}", reply.status);
        Ok(self.due.take())
    }
}

/// Sends a request each `interval` for as long as `time`, on the first of 32 connections that is
/// free; gives how long each took from when it was due.
///
/// Shape: looks without a pause at the clock and at the connections, because a timer is late by more
/// than an answer takes. Nothing else runs on this thread meanwhile.
fn steady(side: &Contender, interval: Duration, time: Duration) -> Result<Times> {
    let lines = (0..CALLERS).map(|_| Line::open(side.port));
    let mut lines: Vec<Line> = lines.collect::<Result<_>>()?;
    let mut times = Vec::new();
    let mut waiting = VecDeque::new();
    let began = Instant::now();
    let mut next = began;
    loop {
        let now = Instant::now();
        while next <= now && next < began + time {
            waiting.push_back(next);
            next += interval;
        }
        let mut under_way = false;
        for line in &mut lines {
            if let Some(due) = line.answered()? {
                times.push(due.elapsed());
            }
            if line.due.is_none()
                && let Some(due) = waiting.pop_front()
            {
                line.send(&side.request, due)?;
            }
            under_way |= line.due.is_some();
        }
        if now >= began + time && waiting.is_empty() && !under_way {
            return Ok(Times::new(times));
        }
        ensure!(
            now < began + time + PATIENCE,
            "\"{}\" does not keep up with half of its own rate",
            side.name
        );
    }
}
