//! HTTP servers that are measured.

use std::{convert::Infallible, env, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use fleet::{
    http::get,
    process::Process,
    wait::SOON,
    washlet::{Fleet, Washlet},
    workload::Workload,
};
use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Builder, task::JoinSet};

use crate::{load, proc};

/// What the hello component answers, and so the bare server.
pub(crate) const HELLO: &str = "Hello from a washlet!\n";

/// The most connections that the bare server serves.
const CONNECTIONS_MAX: usize = 8192;

/// How long a server is under load before it is measured, and while it is.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

impl Turn {
    /// The usual, and a short one.
    pub(crate) fn new(short: bool) -> Self {
        let (warm_up, time) = if short { (20, 150) } else { (300, 1_500) };
        Self {
            warm_up: Duration::from_millis(warm_up),
            time: Duration::from_millis(time),
        }
    }
}

/// One way to be answered: a process, and a request to it.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) pid: u32,
    pub(crate) port: u16,
    pub(crate) request: Vec<u8>,
}

impl Contender {
    /// A server that answers `GET /` for `host` with `answer`.
    ///
    /// # Errors
    /// When it answers something else.
    pub(crate) async fn new(
        name: &'static str,
        (pid, port): (u32, u16),
        host: &str,
        answer: &str,
    ) -> Result<Self> {
        let reply = get(port, host, "/").await?;
        ensure!(
            (reply.status, reply.body.as_str()) == (200, answer),
            "\"{name}\" answers {}: {:?}",
            reply.status,
            reply.body
        );
        let request = load::get(host, "/");
        Ok(Self {
            name,
            pid,
            port,
            request,
        })
    }

    /// Requests per second, and CPU time per request in microseconds.
    ///
    /// # Errors
    /// When a request is not answered well.
    pub(crate) async fn measure(&self, turn: Turn) -> Result<(f64, f64)> {
        let run = async |time| load::drive_for(self.port, &self.request, time).await;
        let run = async |time| {
            let done = run(time).await;
            done.with_context(|| format!("\"{}\" failed under load", self.name))
        };
        run(turn.warm_up).await?;
        let before = proc::cpu(self.pid)?;
        let done = run(turn.time).await?;
        let used = proc::cpu(self.pid)?.saturating_sub(before);
        Ok((
            done.rate(),
            used.as_secs_f64() * 1e6 / load::real(done.requests),
        ))
    }
}

/// Where a host serves.
pub(crate) fn place(host: &Washlet) -> (u32, u16) {
    (host.pid(), host.http_port())
}

/// A process that serves one thing and says where on standard error.
pub(crate) struct Server(Process, u16);

impl Server {
    /// Starts `program`, and waits until it says `http://127.0.0.1:PORT`.
    ///
    /// # Errors
    /// When it ends first or stays silent.
    pub(crate) async fn start(program: &Path, args: &[&str]) -> Result<Self> {
        let mut process = Process::start(program, args, &[])?;
        let port = process
            .wait_ready(SOON, |process| {
                let address = process.stderr.after("http://127.0.0.1:")?;
                address.trim().trim_end_matches('/').parse().ok()
            })
            .await?;
        Ok(Self(process, port))
    }

    /// The bare hyper server.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub(crate) async fn hyper() -> Result<Self> {
        Self::start(&env::current_exe()?, &["peer-hyper"]).await
    }

    /// `wasmtime serve` as a user would start it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub(crate) async fn wasmtime(wasmtime: &Path, component: &Path) -> Result<Self> {
        let component = component.to_str().context("a path is not UTF-8")?;
        let args = ["serve", "-Scli", "--addr", "127.0.0.1:0", component];
        Self::start(wasmtime, &args).await
    }

    /// Where it serves.
    pub(crate) fn place(&self) -> (u32, u16) {
        (self.0.id(), self.1)
    }
}

/// Runs `image` on `host` as a workload of its own; gives the virtual host it answers to.
///
/// # Errors
/// When it does not run.
pub(crate) async fn serve(
    host: &Washlet,
    name: &str,
    image: &str,
    fields: Value,
) -> Result<String> {
    let address = format!("{name}.test");
    let workload = Workload::new(name).component("guest", image, fields);
    host.run_well(&workload.http(&address)).await?;
    Ok(address)
}

/// Warm instances, as many as callers.
pub(crate) fn warm() -> Value {
    json!({ "poolSize": load::CALLERS })
}

/// Pushes the bytes of a file; gives the reference.
///
/// # Errors
/// When it cannot be read, or the registry refuses it.
pub(crate) async fn push(fleet: &Fleet, name: &str, file: &Path) -> Result<String> {
    let bytes = std::fs::read(file);
    let bytes = bytes.with_context(|| format!("failed to read \"{}\"", file.display()))?;
    fleet.registry.push(&format!("{name}:1"), bytes).await
}

/// The bare server: says on standard error where it listens, and serves until it is killed; with as
/// many threads as there are cores, or as many as given.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn hyper(threads: Option<&str>) -> Result<()> {
    // As many threads as a host has for its guests: one for each core.
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.parse()?);
    }
    let runtime = builder.enable_all().build()?;
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
                let mut answer = Response::new(Full::new(Bytes::from_static(HELLO.as_bytes())));
                let plain = hyper::header::HeaderValue::from_static("text/plain");
                answer.headers_mut().insert("content-type", plain);
                Ok::<_, Infallible>(answer)
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(connection);
        }
    })
}
