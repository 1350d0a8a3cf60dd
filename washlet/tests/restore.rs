//! What a host knows of before a restart.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::TrustRoots;
use engine::interface::Interfaces;
use subjects::{HostId, WorkloadId, wire};
use tempfile::TempDir;
use tokio::runtime::Handle;
use washlet::config::{Config, Identity, NatsConfig};
use washlet::seal::SealKey;
use washlet::trigger::Triggers;
use washlet::{EngineOptions, Washlet};

/// How many workloads there are.
const WORKLOADS: usize = 3;

/// A host that keeps its journal in `dir`, and is in no fleet.
async fn host(dir: &Path) -> Result<Washlet> {
    let identity = Identity::new(HostId::new("host-1")?, "localhost", "default");
    let key = Arc::new(SealKey::ephemeral()?);
    let images = dir.join("artifacts");
    let mut config = Config::new(identity, NatsConfig::new(""), images, key);
    config.journal = Some(dir.to_owned());
    let options = EngineOptions::new(1, TrustRoots::load(true, &[])?);
    let plugins = Plugins::new("memory").with(Memory::new(1 << 20));
    let (interfaces, triggers) = (Interfaces::default(), Triggers::default());
    let lanes = Handle::current();
    Ok(Washlet::build(config, options, plugins, interfaces, triggers, lanes, false).await?)
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
