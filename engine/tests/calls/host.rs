//! An engine over memory, the committed guests, and calls to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::allowed_hosts::AllowedHosts;
use engine::interface::Interfaces;
use engine::invoke::{Error, GuestBody};
use engine::wit::WitInterface;
use engine::{
    Background, Config, Engine, Grant, Layout, Outbound, Owner, Reuse, Runnable, TrustRoots,
};
use http::uri::Scheme;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};

/// How long anything may take that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// For tests that need no limits of their own.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| engine(config()));

/// Limits that a call meets only if a test makes it.
pub(crate) fn config() -> Config {
    Config {
        layout: Layout::Guarded,
        memory_bytes_max: 64 << 20,
        instances_max: 64,
        machine_bytes: 64 << 30,
        address_bytes: u64::MAX,
        instance_wait: DEADLINE,
        call_cpu_max: DEADLINE,
        call_time_max: DEADLINE,
        compiles_in_flight: 2,
        compiler: None,
        code_dir: None,
        code_bytes_max: 0,
        flat_names: false,
        trust_roots: TrustRoots::load(true, &[]).unwrap(),
        outbound: Outbound {
            per_workload: 128,
            per_host: 256,
            wait: Duration::from_secs(5),
        },
    }
}

pub(crate) fn engine(config: Config) -> Engine {
    let plugins = Plugins::new("memory").with(Memory::new(64 << 20));
    Engine::new(config, plugins, Interfaces::default()).unwrap()
}

/// The engine that tests share; `workload` keeps their names apart.
pub(crate) fn shared() -> &'static Engine {
    &ENGINE
}

/// Nothing but memory and a name.
pub(crate) fn grant(workload: &str) -> Grant {
    Grant {
        owner: Arc::new(Owner {
            namespace: workload.to_owned(),
            workload: workload.to_owned(),
            workload_id: format!("{workload}-1"),
            component: "guest".to_owned(),
        }),
        declared: Arc::new([]),
        config: BTreeMap::new(),
        environment: BTreeMap::new(),
        allowed_hosts: AllowedHosts::default(),
        memory_bytes_max: 1 << 30,
        cpu_millis_max: None,
        reuse: Reuse::NEVER,
        outbound: shared().turns(),
    }
}

/// A host interface entry.
pub(crate) fn entry(
    package: &str,
    interfaces: &[&str],
    config: &[(&str, &str)],
) -> Arc<[WitInterface]> {
    Arc::new([WitInterface {
        name: String::new(),
        namespace: "wasi".to_owned(),
        package: package.to_owned(),
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
        version: None,
        config: pairs(config),
    }])
}

pub(crate) fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// The file of a guest.
pub(crate) fn wasm(guest: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let places = [
        root.join(format!("tests/components/wasm/{guest}.wasm")),
        root.join(format!("examples/{guest}/{guest}.wasm")),
    ];
    let bytes = places.iter().find_map(|place| std::fs::read(place).ok());
    bytes
        .unwrap_or_else(|| panic!("there is no guest '{guest}'"))
        .into()
}

/// Compiles and links `guest`.
pub(crate) async fn start(engine: &Engine, guest: &str, grant: Grant) -> Runnable {
    let compiled = engine.compile(guest, wasm(guest)).await.unwrap();
    engine.link(&compiled, grant).await.unwrap()
}

/// `hostile` on an engine with these limits.
pub(crate) async fn hostile(config: Config) -> Runnable {
    start(&engine(config), "hostile", grant("hostile")).await
}

/// A call whose work after the response is dropped.
pub(crate) async fn get(guest: &Runnable, target: &str) -> Result<Response<GuestBody>, Error> {
    send(guest, Method::GET, target, "").await
}

pub(crate) async fn send(
    guest: &Runnable,
    method: Method,
    target: &str,
    body: impl Into<Bytes>,
) -> Result<Response<GuestBody>, Error> {
    call(guest, method, target, body.into(), Arc::new(drop)).await
}

pub(crate) async fn call(
    guest: &Runnable,
    method: Method,
    target: &str,
    body: Bytes,
    background: Background,
) -> Result<Response<GuestBody>, Error> {
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "guest.test")
        .body(Full::new(body))
        .unwrap();
    let call = guest.http(request, &Scheme::HTTP, &background);
    tokio::time::timeout(2 * DEADLINE, call).await.unwrap()
}

/// Status and whole body.
pub(crate) async fn text(response: Response<GuestBody>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = tokio::time::timeout(DEADLINE, response.into_body().collect());
    let body = body.await.unwrap().unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

/// The body of an answer that must be a 200.
pub(crate) async fn read(guest: &Runnable, target: &str) -> String {
    let (status, body) = text(get(guest, target).await.unwrap()).await;
    assert_eq!(status, 200, "{target}: {body}");
    body
}
