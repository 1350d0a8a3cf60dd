//! C28: a bad guest hurts nobody else.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fleet::{
    http::get,
    wait::{SOON, until},
    washlet::Washlet,
    workload::Workload,
};
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{HOST, admin::ADMIN, admin::sample, app, one_host, wash};

/// The most memory the host's process ever had, in MiB.
pub(crate) fn peak_mib(host: &Washlet) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no peak")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib >> 10)
}

/// With every core in an endless loop, others are served and the host answers.
#[tokio::test]
async fn endless_loops_leave_room_for_others() -> Result<()> {
    let (fleet, host) = one_host(&["--heartbeat-interval", "1s"]).await?;
    let (hostile, hello) = tokio::try_join!(fleet.push("hostile"), fleet.push("http-hello"))?;
    host.run_well(&app("bad", &hostile, json!({}))).await?;
    let good = Workload::new("good")
        .component("app", &hello, json!({}))
        .http("good.test");
    host.run_well(&good).await?;

    let loops = join_all((0..8).map(|_| get(host.http_port(), HOST, "/loop")));
    let others = async {
        for _ in 0..5 {
            let since = Instant::now();
            assert_eq!(get(host.http_port(), "good.test", "/").await?.status, 200);
            assert!(
                since.elapsed() < Duration::from_secs(3),
                "served after {:?}",
                since.elapsed()
            );
            let since = Instant::now();
            assert_eq!(host.status("bad").await?.state, "RUNNING");
            host.request("heartbeat", &json!({})).await?;
            assert!(
                since.elapsed() < Duration::from_secs(1),
                "answered after {:?}",
                since.elapsed()
            );
        }
        // A start compiles on the same cores.
        host.run_well(&app("late", &hello, json!({}))).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = loops => panic!("an endless loop ended: {ended:?}"),
        done = others => done?,
    }
    // The clients of the loops are gone, and stopping does not wait for them.
    let since = Instant::now();
    host.stop("bad").await?;
    assert!(
        since.elapsed() < Duration::from_secs(25),
        "stopped after {:?}",
        since.elapsed()
    );
    Ok(())
}

/// Memory is bounded for all instances of a component together.
#[tokio::test]
async fn memory_is_bounded() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("hostile").await?;
    let limit = json!({ "localResources": { "memoryLimitMb": 64 } });
    host.run_well(&app("app", &image, limit)).await?;
    let ask = async |path: &str| anyhow::Ok(get(host.http_port(), HOST, path).await?.status);
    assert_eq!(ask("/grow?mb=32").await?, 200);
    let before = peak_mib(&host)?;

    assert_eq!(ask("/grow?mb=512").await?, 500);
    // Each fits alone; together they do not.
    let together = try_join_all((0..6).map(|_| ask("/grow?mb=40&ms=1000"))).await?;
    let given = together.iter().filter(|status| **status == 200).count();
    assert_eq!(given, 1, "{together:?}");
    assert_eq!(ask("/ok").await?, 200);
    assert_eq!(ask("/grow?mb=32").await?, 200);

    let grown = peak_mib(&host)? - before;
    assert!(grown < 150, "the host's peak grew by {grown} MiB");
    Ok(())
}

/// A client that leaves, or a body that nobody reads, holds nothing back.
#[tokio::test]
async fn large_bodies_do_not_pile_up() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("hostile").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    assert_eq!(get(host.http_port(), HOST, "/ok").await?.status, 200);
    let before = peak_mib(&host)?;
    let url = format!("http://127.0.0.1:{}/huge?mb=400", host.http_port());
    // Held open, not read.
    let request =
        || fleet::http::client().map(|client| client.get(&url).header("host", HOST).send());
    let unread = try_join_all((0..4).map(|_| async { anyhow::Ok(request()?.await?) })).await?;
    assert_eq!(get(host.http_port(), HOST, "/ok").await?.status, 200);
    let read = get(host.http_port(), HOST, "/huge?mb=64").await?;
    assert_eq!(read.body.len(), 64 << 20);
    drop(unread);
    let grown = peak_mib(&host)? - before;
    assert!(grown < 200, "the host's peak grew by {grown} MiB");
    Ok(())
}

/// What the host counts of the first component of the workload `id`. Units: those of the field.
async fn counted(host: &Washlet, id: &str, field: &str) -> Result<u64> {
    let asked = json!({ "workloadId": id });
    let inspected = host.request("workload.inspect", &asked).await?;
    let component = inspected.pointer("/workload/components/0");
    let component = component.with_context(|| format!("no component in {inspected}"))?;
    let count = component.get(field).and_then(Value::as_str);
    Ok(count.map_or(Ok(0), str::parse)?)
}

/// A component that loops on every core has its share of them, and its neighbour the rest.
#[tokio::test]
async fn a_share_of_the_processors_is_kept() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let (hostile, hello) = tokio::try_join!(fleet.push("hostile"), fleet.push("http-hello"))?;
    let limit = json!({ "localResources": { "cpuLimit": 100 } });
    host.run_well(&app("bad", &hostile, limit)).await?;
    let good = Workload::new("good")
        .component("app", &hello, json!({}))
        .http("good.test");
    host.run_well(&good).await?;
    let began = Instant::now();
    let loops = join_all((0..8).map(|_| get(host.http_port(), HOST, "/loop")));
    let served = async {
        until(SOON, "the loops are held back", async || {
            let answer = get(host.http_port(), "good.test", "/").await.ok()?;
            assert_eq!(answer.status, 200);
            (counted(&host, "bad", "cpuDelayedMs").await.ok()? > 1_000).then_some(())
        })
        .await?;
        // Delayed, and still calls like all others.
        assert_eq!(counted(&host, "bad", "calls").await?, 8);
        anyhow::Ok(())
    };
    tokio::select! {
        ended = loops => panic!("an endless loop ended: {ended:?}"),
        done = served => done?,
    }
    let used = Duration::from_millis(counted(&host, "bad", "cpuMs").await?);
    // Its share, a second of it at once, and what eight polls on a busy machine take.
    let most = (began.elapsed() + Duration::from_secs(1)) / 10 + Duration::from_secs(1);
    assert!(used < most, "{used:?}, but {most:?} are its share");
    let labels = "namespace=\"default\",workload=\"good\",workload_id=\"good\"";
    let calls = format!("washlet_workload_calls_total{{{labels}}}");
    assert!(sample(&host, &calls).await? > 0);
    Ok(())
}

/// What does not fit is refused, says what is missing, and may be tried elsewhere.
#[tokio::test]
async fn a_start_that_does_not_fit_says_what_is_missing() -> Result<()> {
    let (fleet, host) = one_host(&ADMIN).await?;
    let image = fleet.push("http-hello").await?;
    let total = host.heartbeat().get("systemMemoryTotal");
    let total: u64 = total.and_then(Value::as_str).context("memory")?.parse()?;
    // More than there is, in parts that a component may have.
    let (part, mut large) = (1_024, Workload::new("large"));
    for number in 0..=(total >> 20) / part {
        let limit = json!({ "localResources": { "memoryLimitMb": part } });
        large = large.component(&format!("c{number}"), &image, limit);
    }
    let request = large.request().to_string();
    let reply = host.send("workload.start", &request).await?;
    let text = String::from_utf8_lossy(&reply.payload).into_owned();
    let declared = format!(
        "{} MiB of memory are declared",
        ((total >> 20) / part + 1) * part
    );
    let left = format!("of {} MiB are left", total >> 20);
    assert!(text.contains(&declared) && text.contains(&left), "{text}");
    let headers = reply.headers.context("headers")?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Nats-Service-Error-Code").as_deref(), Some("503"));
    assert_eq!(header("Washlet-Retry").as_deref(), Some("true"));
    assert_eq!(host.status("large").await?.state, "NOT_FOUND");

    let pool = json!({ "poolSize": 1_000_000 });
    let status = host.run(&app("many", &image, pool)).await?;
    assert!(
        status
            .message
            .contains("1000000 instances are to be kept (poolSize)"),
        "{status:?}"
    );
    assert_eq!(sample(&host, "washlet_starts_without_room_total").await?, 2);
    let modest = json!({ "localResources": { "memoryLimitMb": 64 } });
    host.run_well(&app("app", &image, modest)).await?;
    let declared = "washlet_memory_declared_bytes";
    assert_eq!(sample(&host, declared).await?, 64 << 20);
    host.stop("app").await?;
    assert_eq!(sample(&host, declared).await?, 0);
    Ok(())
}

/// A control group of memory, gone when dropped.
struct Group(PathBuf);

impl Group {
    /// With a limit of so many bytes, and this process in it; `None` where there may be none.
    fn enter(bytes: u64) -> Option<Self> {
        let name = format!("washlet-test-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let kinds = [
            (root.join("memory"), "memory.limit_in_bytes"),
            (root.to_owned(), "memory.max"),
        ];
        kinds.into_iter().find_map(|(parent, limit)| {
            let group = Self(parent.join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(limit), bytes.to_string()).ok()?;
            fs::write(group.0.join("cgroup.procs"), "0").ok()?;
            Some(group)
        })
    }
}

impl Group {
    /// What its processes take. Units: bytes.
    fn used(&self) -> Result<u64> {
        let files = ["memory.usage_in_bytes", "memory.current"];
        let read = |file| fs::read_to_string(self.0.join(file)).ok();
        let used = files
            .into_iter()
            .find_map(read)
            .context("the group's use")?;
        Ok(used.trim().parse()?)
    }

    /// This process goes; those that it started stay.
    fn leave(&self) {
        if let Some(parent) = self.0.parent() {
            let _ = fs::write(parent.join("cgroup.procs"), "0");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave();
        let _ = fs::remove_dir(&self.0);
    }
}

/// A host that is short of memory says so, everywhere alike, and not any more once there is more.
#[tokio::test]
async fn a_host_that_is_short_of_memory_says_so() -> Result<()> {
    let fleet = fleet::washlet::Fleet::start().await?;
    let Some(group) = Group::enter(1 << 30) else {
        eprintln!("not tested: this machine lets nobody make control groups here");
        return Ok(());
    };
    let host = fleet.host(&ADMIN).await?;
    let subject = format!("washlet.event.{}.pressure", host.id());
    let mut events = host.listen(&subject).await?;
    let label = async || {
        let heartbeat = host.request("heartbeat", &json!({})).await?;
        let label = heartbeat.pointer("/labels/washlet.dev~1pressure");
        anyhow::Ok(label.and_then(Value::as_str).map(str::to_owned))
    };
    assert_eq!(label().await?, None);
    // This process is in the group, too; what it took stays there when it leaves.
    let mut taken = Vec::new();
    while group.used()? < 960 << 20 {
        taken.push(vec![1_u8; 8 << 20]);
    }
    group.leave();
    let mut told = async || {
        let event = timeout(SOON, events.next()).await?.context("an event")?;
        let event: Value = serde_json::from_slice(&event.payload)?;
        anyhow::Ok(
            event
                .get("message")
                .and_then(Value::as_str)
                .map(str::to_owned),
        )
    };
    // Processors may be short, too, on a machine that tests keep busy.
    let names =
        |all: Option<&str>| all.is_some_and(|all| all.split('.').any(|one| one == "memory"));
    while !names(told().await?.as_deref()) {}
    assert!(names(label().await?.as_deref()));
    let metric = "washlet_pressure{resource=\"memory\"}";
    assert_eq!(sample(&host, metric).await?, 1);
    let (code, hosts) = wash(&fleet, "hosts --wait 1s").await?;
    assert_eq!(code, 0, "{hosts}");
    let (code, refused) = wash(&fleet, "workload start --image none --timeout 2s").await?;
    assert_eq!(code, 4, "{refused}");
    assert!(
        refused.to_string().contains("1 short of memory"),
        "{refused}"
    );
    drop(taken);
    while names(told().await?.as_deref()) {}
    assert_eq!(sample(&host, metric).await?, 0);
    drop(host);
    drop(group);
    Ok(())
}

/// In a control group a host counts the group's memory as the machine's, and sizes its pool by it.
#[tokio::test]
async fn a_control_group_is_the_machine() -> Result<()> {
    let fleet = fleet::washlet::Fleet::start().await?;
    let Some(group) = Group::enter(512 << 20) else {
        eprintln!("not tested: this machine lets nobody make control groups here");
        return Ok(());
    };
    let host = fleet.host(&[]).await?;
    let total = host.heartbeat().get("systemMemoryTotal");
    assert_eq!(total.and_then(Value::as_str), Some("536870912"));
    let log = host.log();
    assert!(log.contains("instances=128"), "{log}");
    let image = fleet.push("http-hello").await?;
    let limit = json!({ "localResources": { "memoryLimitMb": 600 } });
    let refused = host.run(&app("app", &image, limit)).await?;
    assert!(
        refused.message.contains("of 512 MiB are left"),
        "{refused:?}"
    );
    drop(host);
    drop(group);
    Ok(())
}
