//! What a host knows of before a restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::TrustRoots;
use engine::interface::Interfaces;
use subjects::{HostId, WorkloadId, wire};
use tempfile::TempDir;
use tokio::runtime::Handle;
use washlet::config::{ArtifactConfig, Config, Identity, Limits, NatsAuth, NatsConfig, NatsTls};
use washlet::{EngineOptions, Washlet};

/// How many workloads there are.
const WORKLOADS: usize = 3;

/// A host that keeps its journal in `dir`, and is in no fleet.
async fn host(dir: &Path) -> Result<Washlet> {
    let config = Config {
        identity: Identity {
            id: HostId::new("host-1")?,
            hostname: "localhost".to_owned(),
            group: "default".to_owned(),
            environment: String::new(),
            labels: BTreeMap::new(),
        },
        scheduler: NatsConfig {
            url: String::new(),
            tls: NatsTls::default(),
            auth: NatsAuth::None,
            inbox_prefix: None,
            ping_interval: Duration::from_secs(5),
        },
        heartbeat_interval: Duration::from_secs(15),
        http: None,
        admin: None,
        artifacts: ArtifactConfig {
            dir: dir.join("artifacts"),
            budget_bytes: 1 << 30,
            allow_insecure: false,
            ca: Vec::new(),
            pull_timeout: Duration::from_secs(30),
            allow_file: false,
        },
        journal: Some(dir.to_owned()),
        orphan_after: Duration::from_secs(300),
        limits: Limits::default(),
        default_allowed_hosts: Vec::new(),
        flat_names: false,
    };
    let options = EngineOptions::new(1, TrustRoots::load(true, &[])?);
    let plugins = Plugins::new("memory").with(Memory::new(1 << 20));
    let (interfaces, lanes) = (Interfaces::default(), Handle::current());
    Ok(Washlet::build(config, options, plugins, interfaces, lanes, false).await?)
}

/// No command can come before what ran is known: a runtime with one thread runs nothing else until then.
#[tokio::test]
async fn what_ran_is_known_as_soon_as_the_host_is_there() -> Result<()> {
    let dir = TempDir::new()?;
    let before = host(dir.path()).await?;
    for n in 0..WORKLOADS {
        let id = WorkloadId::new(format!("w-{n}"))?;
        let workload = wire::Workload {
            namespace: "default".to_owned(),
            name: id.to_string(),
            ..wire::Workload::default()
        };
        before.host().start(id, workload).await?;
    }
    before.drain().await;
    let after = host(dir.path()).await?;
    assert_eq!(after.host().list().workloads.len(), WORKLOADS);
    after.drain().await;
    Ok(())
}
