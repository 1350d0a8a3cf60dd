//! The unit for systemd: what it starts, with a socket of ours in place of systemd's.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fleet::{
    nats::NatsServer,
    process::{Process, Signal},
    tools, wait,
};
use tempfile::TempDir;

use crate::root;

/// The values of `key` in the unit, in their order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter_map(|(name, value)| (name == key).then_some(value))
        .collect()
}

/// What the host has told, until something contains `text`.
async fn hear(socket: &UnixDatagram, text: &str) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    let told = wait::until(wait::SOON, text, async || {
        let mut message = [0; 4096];
        while let Ok(length) = socket.recv(&mut message) {
            let message = message.get(..length).unwrap_or_default();
            heard.push(String::from_utf8_lossy(message).into_owned());
        }
        heard.iter().any(|told| told.contains(text)).then_some(())
    })
    .await;
    told.with_context(|| format!("heard {heard:?}"))?;
    Ok(heard)
}

/// It is ready before NATS is there, shows that it runs, and says that it comes down.
#[tokio::test]
async fn systemd_is_told_how_the_host_is() -> Result<()> {
    let unit = root().join("deploy/systemd/washlet.service");
    let unit = std::fs::read_to_string(unit)?;
    assert_eq!(values(&unit, "Type"), ["notify"]);
    let command = values(&unit, "ExecStart");
    let mut words = command.first().context("a command")?.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/wash"));
    assert_eq!(
        values(&unit, "Environment"),
        ["WASH_STATE_DIR=/var/lib/washlet"]
    );

    let dir = TempDir::new()?;
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let mut nats = NatsServer::start().await?;
    let url = nats.url();
    nats.kill();
    let in_utf8 = |path: &std::path::Path| path.to_str().map(str::to_owned).context("UTF-8");
    let (path, state) = (in_utf8(&path)?, in_utf8(&dir.path().join("state"))?);
    let environment = [
        ("NOTIFY_SOCKET", path.as_str()),
        ("WATCHDOG_USEC", "300000"),
        ("WASH_STATE_DIR", state.as_str()),
        ("WASH_SCHEDULER_NATS_URL", url.as_str()),
        ("WASH_DATA_NATS_URL", url.as_str()),
    ];
    let mut host = Process::start(&tools::built("wash")?, words, &environment)?;
    let heard = hear(&socket, "READY=1").await?;
    ensure!(
        heard.iter().any(|told| told.contains("waiting for NATS")),
        "{heard:?}"
    );
    for _ in 0..3 {
        hear(&socket, "WATCHDOG=1").await?;
    }
    nats.restart().await?;
    hear(&socket, "STATUS=ready").await?;
    host.signal(Signal::TERM);
    hear(&socket, "STOPPING=1").await?;
    let ended = host.wait_exit(Duration::from_secs(30)).await?;
    ensure!(ended.success(), "{}", host.failure("failed"));
    Ok(())
}
