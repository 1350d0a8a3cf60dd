//! The host of this example, as a process among real servers, and its storage by the contract of all storages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use capabilities::contract;
use capabilities::keyvalue::{Guard, KeyValueStore, Put, Version};
use capabilities::plugin::{Ask, Plugin, Settings};
use example_host::files::{Files, OpenDirError};
use fleet::http::get;
use fleet::nats::NatsServer;
use fleet::wait::{SOON, until};
use fleet::washlet::Washlet;
use fleet::workload::Workload;
use serde_json::{Value, json};
use std::sync::Arc;

const CLOCK: &str = "example:clock/tick@0.1.0";
const DIARY: &str = "example:diary/lines@0.1.0";

/// Starts the example, which needs no registry.
async fn host(nats: &NatsServer) -> Result<Washlet> {
    let program = Path::new(env!("CARGO_BIN_EXE_example-host"));
    Washlet::start_program(nats, program, &[]).await
}

/// The image of a component of `examples/`.
fn image(name: &str) -> Result<String> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../{name}/{name}.wasm"));
    Ok(format!("file://{}", file.canonicalize()?.display()))
}

/// Ticks at this interval, and each tick takes a while.
fn diary(interval_ms: &str) -> Result<Workload> {
    let fields = json!({ "localResources": { "environment": { "PAUSE_MS": "200" } } });
    Ok(Workload::new("diary")
        .component("diary", &image("diary")?, fields)
        .http("diary.test")
        .interface(DIARY, &[("book", "days")])
        .interface(CLOCK, &[("interval_ms", interval_ms)]))
}

async fn lines(host: &Washlet) -> Result<Vec<String>> {
    let reply = get(host.http_port(), "diary.test", "/").await?;
    anyhow::ensure!(reply.status == 200, "{reply:?}");
    Ok(reply.body.lines().map(str::to_owned).collect())
}

async fn until_line(host: &Washlet, wanted: &str) -> Result<()> {
    until(SOON, &format!("the diary has \"{wanted}\""), async || {
        let lines = lines(host).await.ok()?;
        lines
            .iter()
            .any(|line| line.ends_with(wanted))
            .then_some(())
    })
    .await
}

/// A component is ticked by the trigger, writes through the interface, and what it wrote is in the storage; one
/// that knows nothing of this host is served by the same storage. SIGTERM lets the tick under way finish.
#[tokio::test]
async fn a_component_uses_storage_interface_and_trigger_until_the_host_drains() -> Result<()> {
    let nats = NatsServer::start().await?;
    let mut host = host(&nats).await?;
    for (list, package) in [("imports", "diary"), ("exports", "clock")] {
        let all = host.heartbeat().get(list).and_then(Value::as_array);
        let listed = |one: &Value| one["namespace"] == "example" && one["package"] == package;
        assert!(all.is_some_and(|all| all.iter().any(listed)), "{package}");
    }
    host.run_well(&diary("10")?).await?;
    until_line(&host, "tick 3 begins").await?;

    let counter = Workload::new("counter")
        .component("counter", &image("http-counter")?, json!({}))
        .http("counter.test")
        .interface("wasi:keyvalue/store,atomics", &[("backend", "files")]);
    host.run_well(&counter).await?;
    for sum in ["1\n", "2\n"] {
        assert_eq!(
            get(host.http_port(), "counter.test", "/cats").await?.body,
            sum
        );
    }
    for bucket in ["default__counter", "default__days"] {
        let files = host.state_dir().join("files").join(bucket);
        assert!(files.read_dir()?.next().is_some(), "{bucket} is empty");
    }

    host.terminate();
    assert!(host.wait_exit(SOON).await?.success());
    assert!(host.log().contains("drained"), "{}", host.log());
    assert!(!host.log().contains("tick failed"), "{}", host.log());

    // What ran runs again, with what was stored: the lines of before are whole.
    host.restart().await?;
    until(SOON, "the counter counts on", async || {
        let reply = get(host.http_port(), "counter.test", "/cats").await.ok()?;
        (reply.body == "3\n").then_some(())
    })
    .await?;
    let lines = until(SOON, "ticks begin at 1 again", async || {
        let lines = lines(&host).await.ok()?;
        let of_first = |line: &&String| line.ends_with("tick 1 begins");
        (lines.iter().filter(of_first).count() == 2).then_some(lines)
    })
    .await?;
    let second = lines
        .iter()
        .rposition(|line| line.ends_with("tick 1 begins"));
    assert_whole(&lines[..second.context("a second life")?]);

    // A stop waits for the tick under way, too, and no other comes after it.
    host.stop("diary").await?;
    let still = "still being handled";
    assert!(!host.log().contains(still), "{}", host.log());
    host.run_well(&diary("86400000")?).await?;
    assert_whole(&self::lines(&host).await?);
    Ok(())
}

/// Every tick that began has ended.
fn assert_whole(lines: &[String]) {
    let texts = lines.iter().filter_map(|line| line.split_once(": "));
    let (begun, ended): (Vec<_>, Vec<_>) = texts
        .map(|(_, text)| text)
        .partition(|text| text.ends_with("begins"));
    let ends: Vec<_> = begun
        .iter()
        .map(|text| text.replace("begins", "ends"))
        .collect();
    assert!(!ends.is_empty() && ended == ends, "{lines:?}");
}

/// What a trigger cannot do is refused, and says why.
#[tokio::test]
async fn entries_that_the_trigger_cannot_honour_are_refused() -> Result<()> {
    let nats = NatsServer::start().await?;
    let host = host(&nats).await?;
    let (diary, counter) = (image("diary")?, image("http-counter")?);
    let plain = |id: &str, image: &str| Workload::new(id).component("c", image, json!({}));
    let clocked = |id: &str, config: &[(&str, &str)]| {
        plain(id, &diary)
            .interface(DIARY, &[])
            .interface(CLOCK, config)
    };
    for (workload, said) in [
        (
            clocked("bad-value", &[("interval_ms", "1")]),
            "config key 'interval_ms' must be milliseconds, 10 to 86400000",
        ),
        (
            clocked("unknown-key", &[("interval", "1s")]),
            "unknown config keys: interval (known: interval_ms)",
        ),
        (
            plain("no-export", &counter)
                .interface("wasi:keyvalue/store,atomics", &[])
                .interface(CLOCK, &[]),
            "no component exports it",
        ),
        (
            plain("named", &diary).named_interface("fast", CLOCK, &[]),
            "leave the name out",
        ),
        (
            plain("other-version", &diary).interface("example:clock/tick@0.2.0", &[]),
            "not available on this host: example:clock/tick@0.2.0",
        ),
        (
            plain("not-listed", &diary).interface(CLOCK, &[]),
            "needs a host interface; add to the workload's hostInterfaces: {namespace: example, package: diary",
        ),
        (
            plain("bad-storage", &diary).interface(DIARY, &[("colour", "red")]),
            "unknown config keys: colour",
        ),
    ] {
        let status = host.run(&workload).await?;
        assert_eq!(status.state, "ERROR", "{status:?}");
        assert!(status.message.contains(said), "{status:?}");
    }
    // Without an entry nobody calls it.
    host.run_well(
        &plain("silent", &diary)
            .http("silent.test")
            .interface(DIARY, &[]),
    )
    .await?;
    assert_eq!(get(host.http_port(), "silent.test", "/").await?.body, "");
    Ok(())
}

#[tokio::test]
async fn files_keep_the_contract() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files = Files::open(dir.path())?;
    contract::keyvalue::run(&files, &BTreeMap::new()).await?;
    Ok(())
}

async fn store(files: &Files) -> Result<Arc<dyn KeyValueStore>> {
    let values = BTreeMap::new();
    let ask = Ask {
        namespace: "n",
        workload: "w",
        component: "c",
        flat_names: false,
        settings: Settings::new(&values),
    };
    let store = files.keyvalue(&ask).await?;
    store.open("b").await?;
    Ok(store)
}

async fn write(store: &dyn KeyValueStore) -> Result<Option<Version>> {
    let put = Put {
        key: "k",
        value: "v".into(),
        guard: Guard::Any,
        ttl: None,
    };
    Ok(store.put("b", put).await?)
}

/// A directory is one process's at a time; values outlive it, versions never come again, and what it had begun
/// to write goes.
#[tokio::test]
async fn a_directory_is_taken_over_from_the_process_before() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files = Files::open(dir.path())?;
    let taken = Files::open(dir.path());
    assert!(matches!(taken, Err(OpenDirError::InUse(_))));
    let first = store(&files).await?;
    let before = write(&*first).await?;
    first.delete("b", "k").await?;
    drop((first, files));

    std::fs::write(dir.path().join(".new-abc"), "half")?;
    let files = Files::open(dir.path())?;
    assert!(!dir.path().join(".new-abc").exists());
    let second = store(&files).await?;
    assert_ne!(write(&*second).await?, before);
    assert!(second.get("b", "k").await?.is_some());
    Ok(())
}
