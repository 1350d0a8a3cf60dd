//! The engine alone: calls a component without a listener, a route or a workload around it.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use capabilities::{memory::Memory, plugin::Plugins};
use engine::{
    Background, Config, Engine, Grant, Layout, Outbound, Owner, Reuse, Runnable, TrustRoots,
    allowed_hosts::AllowedHosts, interface::Interfaces,
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, http::uri::Scheme};
use tokio::runtime::Builder;

use crate::{http::file, proc};

/// No call meets one of the limits.
const NEVER: Duration = Duration::from_secs(600);

/// Memory that all instances together may have, in bytes.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The peer: says on standard error where it listens, reads how many calls to make, a line each, and
/// answers with the user time that they took, in microseconds.
///
/// # Errors
/// When the component cannot be run, or a call fails.
pub(crate) fn peer(warm: bool) -> Result<()> {
    // As in a host: without a log, spans that nobody hears cost more.
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    log.with_env_filter("info").init();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let guest = runtime.block_on(load(warm))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    eprintln!("http://{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(count) = lines.next().transpose()? {
        let count: u64 = count.parse()?;
        let before = proc::user(std::process::id())?;
        runtime.block_on(async {
            for _ in 0..count {
                call(&guest).await?;
            }
            anyhow::Ok(())
        })?;
        let used = proc::user(std::process::id())?.saturating_sub(before);
        writeln!(stream, "{}", used.as_micros())?;
    }
    Ok(())
}

async fn load(warm: bool) -> Result<Runnable> {
    let config = Config {
        layout: Layout::Checked,
        memory_bytes_max: MEMORY_BYTES_MAX,
        instances_max: 64,
        machine_bytes: 4 << 30,
        address_bytes: u64::MAX,
        instance_wait: NEVER,
        call_cpu_max: NEVER,
        call_time_max: NEVER,
        compiles_in_flight: 1,
        compiler: None,
        code_dir: None,
        code_bytes_max: 0,
        flat_names: false,
        trust_roots: TrustRoots::load(true, &[])?,
        outbound: Outbound {
            per_workload: 1,
            per_host: 1,
            wait: NEVER,
        },
    };
    let plugins = Plugins::new("memory").with(Memory::new(1 << 20));
    let engine = Engine::new(config, plugins, Interfaces::default())?;
    let reuse = Reuse {
        instances_max: 1,
        calls_max: u32::MAX,
        age_max: NEVER,
    };
    let grant = Grant {
        owner: Arc::new(Owner {
            namespace: "default".to_owned(),
            workload: "hello".to_owned(),
            workload_id: "hello".to_owned(),
            component: "hello".to_owned(),
        }),
        declared: Arc::new([]),
        config: BTreeMap::new(),
        environment: BTreeMap::new(),
        allowed_hosts: AllowedHosts::default(),
        memory_bytes_max: MEMORY_BYTES_MAX,
        cpu_millis_max: None,
        reuse: if warm { reuse } else { Reuse::NEVER },
        outbound: engine.turns(),
    };
    let component = file("examples/http-hello/http-hello.wasm");
    let bytes = fs::read(&component);
    let bytes = bytes.with_context(|| format!("failed to read \"{}\"", component.display()))?;
    let compiled = engine.compile("hello", bytes.into()).await?;
    Ok(engine.link(&compiled, grant).await?)
}

/// One request, as a listener would make it of what arrives.
async fn call(guest: &Runnable) -> Result<()> {
    let request = Request::get("/")
        .header("host", "hello.test")
        .body(Full::new(Bytes::new()))?;
    let background: Background = Arc::new(drop);
    let response = guest.http(request, &Scheme::HTTP, &background).await?;
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(!body.is_empty(), "answered nothing");
    Ok(())
}
