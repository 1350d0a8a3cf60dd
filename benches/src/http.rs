//! A hello component under `wash dev` beside a bare hyper server that gives the same answer.

use std::{
    convert::Infallible,
    env, fs,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fleet::{http::get, process::Process, tools, wait::SOON};
use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Builder, task::JoinSet};

use crate::{
    Options, load,
    report::{Figure, interleave},
};

const COMPONENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/http-hello/http-hello.wasm"
);

/// What the component answers, and so the peer.
const ANSWER: &str = "Hello from a washlet!\n";

/// Any name: neither server minds.
const HOST: &str = "hello.test";

/// The unit of the CPU times in `/proc`: `USER_HZ`, which has been 100 on every machine for decades.
const TICK: Duration = Duration::from_millis(10);

/// The most connections that the peer serves.
const CONNECTIONS_MAX: usize = 1024;

/// A server that is measured.
struct Server {
    process: Process,
    port: u16,
}

impl Server {
    /// Starts it, and waits until `ready` stands on standard error and it answers as it should.
    async fn start(program: &Path, args: &[&str], ready: &str) -> Result<Self> {
        let mut process = Process::start(program, args, &[])?;
        let port = process
            .wait_ready(SOON, |process| {
                process.stderr.text().contains(ready).then_some(())?;
                let address = process.stderr.after("http://127.0.0.1:")?;
                address.trim().parse().ok()
            })
            .await?;
        let reply = get(port, HOST, "/").await?;
        ensure!(
            (reply.status, reply.body.as_str()) == (200, ANSWER),
            "answers {}: {:?}",
            reply.status,
            reply.body
        );
        Ok(Self { process, port })
    }

    /// User and system time of the process so far.
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name is in parentheses and may contain anything; the times are the 12th and 13th after it.
        let (_, rest) = stat.rsplit_once(')').context("no name in /proc/_/stat")?;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse);
        let ticks: Vec<u32> = ticks.collect::<Result<_, _>>()?;
        ensure!(ticks.len() == 2, "no times in /proc/_/stat");
        Ok(TICK * ticks.iter().sum())
    }

    /// Requests per second, and CPU time per request in microseconds.
    async fn measure(&self, warm_up: Duration, time: Duration) -> Result<(f64, f64)> {
        let run = async |time: Duration| {
            let began = Instant::now();
            load::get_all(&[self.port], HOST, "/", || began.elapsed() < time).await
        };
        run(warm_up).await?;
        let before = self.cpu()?;
        let done = run(time).await?;
        let used = self.cpu()?.saturating_sub(before);
        Ok((done.rate(), 1e6 / load::rate(done.requests, used)))
    }
}

/// The row `http`.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let (warm_up, time) = if options.short {
        (Duration::from_millis(100), Duration::from_millis(400))
    } else {
        (Duration::from_secs(1), Duration::from_secs(4))
    };
    let this = env::current_exe()?;
    let peer = Server::start(&this, &["peer-hyper"], "http://").await?;
    let args = ["dev", COMPONENT, "--http-addr", "127.0.0.1:0"];
    let wash = Server::start(&tools::built("wash")?, &args, " serves ").await?;
    let (wash, peer) = interleave(
        options.rounds,
        async |_| wash.measure(warm_up, time).await,
        async |_| peer.measure(warm_up, time).await,
    )
    .await?;
    let ((wash_rate, wash_cpu), (peer_rate, peer_cpu)) =
        (wash.into_iter().unzip(), peer.into_iter().unzip());
    let figure = |what, wash, peer| Figure {
        row: "http",
        what,
        peer_name: "bare hyper",
        wash,
        peer,
    };
    Ok(vec![
        figure("requests per second", wash_rate, peer_rate),
        figure("CPU time per request in µs", wash_cpu, peer_cpu),
    ])
}

/// The peer: says on standard error where it listens, and serves until it is killed.
pub(crate) fn peer() -> Result<()> {
    // As many threads as a host has for its guests: one for each core.
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        eprintln!("http://{}", listener.local_addr()?);
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            if connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            while connections.try_join_next().is_some() {}
            let service = service_fn(async |_| {
                let mut answer = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
                let plain = hyper::header::HeaderValue::from_static("text/plain");
                answer.headers_mut().insert("content-type", plain);
                Ok::<_, Infallible>(answer)
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(connection);
        }
    })
}
