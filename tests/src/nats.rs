//! A `nats-server` with JetStream.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    accounts::{Account, Operator},
    process::{Process, Signal},
    tools, wait,
};

/// A real `nats-server` with JetStream on a free port, killed when dropped.
///
/// Its data lies in a directory of its own, and survives [`kill`](Self::kill) and
/// [`restart`](Self::restart).
pub struct NatsServer {
    process: Process,
    port: u16,
    config: String,
    dir: TempDir,
    /// What [`NatsServer::client`] shows.
    creds: Option<String>,
}

impl NatsServer {
    /// Starts a server that anybody may use.
    ///
    /// # Errors
    /// When `nats-server` is not installed or does not become ready.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Starts a server with `config_lines` added to its configuration file, such as
    /// `authorization { token: "t" }` or a `tls { .. }` block; `jetstream: disabled` counts, too.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(config_lines: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let (process, port) = launch(&dir, None, config_lines).await?;
        Ok(Self {
            process,
            port,
            config: config_lines.to_owned(),
            dir,
            creds: None,
        })
    }

    /// Starts a server for users of `account`, and nobody else.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_for(operator: &Operator, account: &Account) -> Result<Self> {
        let mut server = Self::start_with(&operator.config_lines(account)?).await?;
        server.creds = Some(account.creds(None)?);
        Ok(server)
    }

    /// `nats://127.0.0.1:<port>`, the same after a restart.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// `127.0.0.1:<port>`, the same after a restart.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it (SIGKILL) and returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it from running without closing its connections; [`resume`](Self::resume) goes on.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Has it close its connections one after the other and end, as before maintenance.
    pub fn lame_duck(&mut self) {
        self.process.signal(Signal::USR2);
    }

    /// Kills it if it runs, and starts it again with the same port, data and configuration.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        let config = self.config.clone();
        self.restart_with(&config).await
    }

    /// As [`restart`](Self::restart), with other lines in the configuration from now on.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart_with(&mut self, config_lines: &str) -> Result<()> {
        self.kill();
        config_lines.clone_into(&mut self.config);
        let port = self.port;
        // Somebody's outgoing connection may have the port for a moment.
        self.process = wait::until(wait::SOON, "nats-server starts again", async || {
            launch(&self.dir, Some(port), config_lines).await.ok()
        })
        .await?
        .0;
        Ok(())
    }

    /// What the server printed.
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// A client of this server, with credentials only if it was [started for](Self::start_for) an account.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn client(&self) -> Result<async_nats::Client> {
        let options = match &self.creds {
            Some(creds) => async_nats::ConnectOptions::with_credentials(creds)?,
            None => async_nats::ConnectOptions::new(),
        };
        options
            .connect(self.url())
            .await
            .context("failed to connect to the NATS server")
    }
}

async fn launch(dir: &TempDir, port: Option<u16>, lines: &str) -> Result<(Process, u16)> {
    let config = dir.path().join("nats.conf");
    let store = dir.path().join("jetstream");
    let listen = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    fs::write(
        &config,
        format!(
            "listen: \"127.0.0.1:{listen}\"\njetstream {{ store_dir: {:?} }}\n{lines}\n",
            store.display().to_string()
        ),
    )?;
    let mut process = Process::start(
        &tools::find("nats-server")?,
        ["-c".as_ref(), config.as_os_str()],
        &[],
    )?;
    let port = process
        .wait_ready(Duration::from_secs(20), |process| {
            process.stderr.after("Server is ready")?;
            let address = process
                .stderr
                .after("Listening for client connections on ")?;
            address.rsplit_once(':')?.1.parse().ok()
        })
        .await?;
    Ok((process, port))
}
