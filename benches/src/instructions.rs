//! Instructions of a request, counted by callgrind: they are the same on a busy machine.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fleet::{
    nats::NatsServer, process::Process, tools, wait, washlet::status_of, workload::Workload,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Options,
    http::file,
    load::{self, Connection},
    report::{Bound, Row, Table},
    server::Server,
};

const HYPER: &str = "raw hyper";
const ENGINE: &str = "engine, called directly";
const HOST: &str = "wash host";
const OWN: &str = "listener, routing, limits";

/// How long a program may take to start that is forty times as slow as usual.
const PATIENCE: Duration = Duration::from_secs(300);

/// Requests that are not counted: the first ones make what later ones use.
const WARM_UP: u64 = 100;

/// Calls whose time is taken.
const TIMED: u64 = 50_000;

/// Where callgrind lies, and where it writes.
struct Callgrind {
    valgrind: PathBuf,
    vgdb: PathBuf,
    dir: TempDir,
}

impl Callgrind {
    fn find() -> Result<Self> {
        Ok(Self {
            valgrind: tools::find("valgrind")?,
            vgdb: tools::find("vgdb")?,
            dir: TempDir::new()?,
        })
    }

    /// Starts `program` under callgrind, and waits until `ready` finds what it looks for.
    async fn start<T>(
        &self,
        program: PathBuf,
        args: &[&str],
        ready: impl Fn(&Process) -> Option<T>,
    ) -> Result<(Process, T)> {
        let program = program.to_str().context("a path is not UTF-8")?;
        let file = format!("--callgrind-out-file={}", self.file().display());
        // Code that is compiled at run time is otherwise not seen to change.
        let valgrind = [
            "--tool=callgrind",
            "--smc-check=all-non-file",
            &file,
            program,
        ];
        let args = valgrind.iter().chain(args);
        let mut process = Process::start(&self.valgrind, args, &[])?;
        let found = process.wait_ready(PATIENCE, ready).await?;
        Ok((process, found))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("callgrind.out")
    }

    /// Tells callgrind in the process `pid` something.
    fn tell(&self, pid: u32, command: &str) -> Result<()> {
        let output = Command::new(&self.vgdb)
            .args([&format!("--pid={pid}"), command])
            .output()?;
        ensure!(
            output.status.success(),
            "vgdb failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Instructions of `work`, which lets the process `pid` do something.
    async fn count(&self, pid: u32, work: impl Future<Output = Result<()>>) -> Result<u64> {
        self.tell(pid, "zero")?;
        work.await?;
        self.tell(pid, "dump")?;
        let file = self.file().with_extension("out.1");
        let text = fs::read_to_string(&file).context("callgrind wrote nothing")?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.context("callgrind wrote no total")?.trim().parse()?)
    }
}

/// The row `instructions`.
pub(crate) async fn measure(options: &Options) -> Result<Row> {
    let mut row = Row::default();
    if let Err(error) = Callgrind::find() {
        row.note(format!(
            "left out, because it needs valgrind (`apt-get install valgrind`): {error:#}"
        ));
        return Ok(row);
    }
    let count = if options.short { 20 } else { 1_000 };
    let hyper = hyper(count).await?;
    for (name, warm) in [("a fresh instance", false), ("a warm one", true)] {
        let direct = direct(count, warm).await?;
        let host = host(count, warm).await?;
        let own = host - direct - hyper;
        let counts = Table::new("instructions", format!("per request, {name}"));
        row.push(
            counts
                .once(HYPER, hyper)
                .once(ENGINE, direct)
                .once(HOST, host)
                .once(OWN, own),
        );
        // How long one takes, of code that does the same without valgrind.
        let timed = if options.short { 1_000 } else { TIMED };
        let each = timed_calls(timed, warm).await? / direct;
        let times = Table::new("instructions", format!("as user time in µs, {name}"));
        row.push(
            times
                .once(ENGINE, direct * each)
                .once(OWN, own * each)
                .hope(OWN, Bound::AtMost(1.5)),
        );
    }
    Ok(row)
}

/// The address that a program says on standard error.
fn address(process: &Process) -> Option<u16> {
    let rest = process.stderr.after("http://127.0.0.1:")?;
    rest.trim().parse().ok()
}

/// Instructions per request of the bare server.
async fn hyper(count: u64) -> Result<f64> {
    let callgrind = Callgrind::find()?;
    let started = callgrind.start(env::current_exe()?, &["peer-hyper", "1"], address);
    let (process, port) = started.await?;
    requests(&callgrind, process.id(), port, count).await
}

/// Instructions per request of the process `pid`, which serves `hello.test` on `port`.
async fn requests(callgrind: &Callgrind, pid: u32, port: u16, count: u64) -> Result<f64> {
    let mut connection = Connection::open(port).await?;
    let request = load::get("hello.test", "/");
    let mut ask = async |count| {
        for _ in 0..count {
            let reply = connection.exchange(&request).await?;
            ensure!(reply.is_good(), "answered {}", reply.status);
        }
        Ok(())
    };
    ask(WARM_UP).await?;
    let total = callgrind.count(pid, ask(count)).await?;
    Ok(load::real(total) / load::real(count))
}

/// The arguments of the peer that calls the engine.
fn direct_args(warm: bool) -> [&'static str; 2] {
    ["peer-invoke", if warm { "warm" } else { "fresh" }]
}

/// What makes the engine's peer call, and hears what it took.
struct Caller {
    stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Caller {
    fn new(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        let replies = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, replies })
    }

    /// Lets it call so often; gives the user time in microseconds.
    fn call(&mut self, count: u64) -> Result<f64> {
        writeln!(self.stream, "{count}")?;
        let mut reply = String::new();
        self.replies.read_line(&mut reply)?;
        let micros = reply.trim().parse();
        micros.with_context(|| format!("the peer ended: \"{reply}\""))
    }
}

/// Instructions per call of the engine.
async fn direct(count: u64, warm: bool) -> Result<f64> {
    let callgrind = Callgrind::find()?;
    let args = direct_args(warm);
    let started = callgrind.start(env::current_exe()?, &args, address);
    let (process, port) = started.await?;
    let mut caller = Caller::new(port)?;
    caller.call(WARM_UP)?;
    let calls = async { caller.call(count).map(drop) };
    let total = callgrind.count(process.id(), calls).await?;
    Ok(load::real(total) / load::real(count))
}

/// User time of a call of the engine in microseconds, without valgrind.
async fn timed_calls(count: u64, warm: bool) -> Result<f64> {
    let server = Server::start(&env::current_exe()?, &direct_args(warm)).await?;
    let mut caller = Caller::new(server.place().1)?;
    caller.call(count.min(WARM_UP))?;
    Ok(caller.call(count)? / load::real(count))
}

/// Instructions per request of a host that serves the component.
async fn host(count: u64, warm: bool) -> Result<f64> {
    let callgrind = Callgrind::find()?;
    let nats = NatsServer::start().await?;
    let state = TempDir::new()?;
    let state = state.path().to_str().context("a path is not UTF-8")?;
    let url = nats.url();
    let args = [
        ["host", "--allow-file-images"].as_slice(),
        &["--http-addr", "127.0.0.1:0", "--state-dir", state],
        &["--scheduler-nats-url", &url, "--data-nats-url", &url],
        // As little address space and as few signals as there may be: valgrind has trouble with both.
        &["--profile", "compact", "--threads", "1"],
        &["--heartbeat-interval", "1h"],
    ]
    .concat();
    let started = callgrind.start(tools::built("wash")?, &args, |process| {
        let rest = process.stderr.after("ready: host ")?;
        let (id, rest) = rest.split_once(' ')?;
        let (_, rest) = rest.split_once("http 127.0.0.1:")?;
        let (port, _) = rest.split_once(',')?;
        Some((id.to_owned(), port.parse().ok()?))
    });
    let (process, (id, port)) = started.await?;
    let component = file("examples/http-hello/http-hello.wasm").canonicalize()?;
    let image = format!("file://{}", component.display());
    let pool = if warm {
        json!({ "poolSize": 1 })
    } else {
        json!({})
    };
    let workload = Workload::new("hello")
        .component("hello", &image, pool)
        .http("hello.test");
    let client = nats.client().await?;
    let ask = async |command: &str, payload: Value| {
        let request = async_nats::Request::new()
            .payload(payload.to_string().into())
            .timeout(Some(PATIENCE));
        let subject = format!("runtime.host.{id}.{command}");
        let reply = client.send_request(subject, request).await?;
        status_of(&serde_json::from_slice(&reply.payload)?)
    };
    ask("workload.start", workload.request()).await?;
    let ended = wait::until(PATIENCE, "the component runs", async || {
        let status = ask("workload.status", json!({ "workloadId": "hello" }));
        let status = status.await.ok()?;
        (status.state != "STARTING").then_some(status)
    })
    .await?;
    if ended.state != "RUNNING" {
        bail!("the component is {}: {}", ended.state, ended.message);
    }
    requests(&callgrind, process.id(), port, count).await
}
