//! An OCI registry.

use std::{fs, time::Duration};

use anyhow::Result;
use tempfile::TempDir;

use crate::{process::Process, tools, wait};

/// The only user of a registry started with [`Registry::start_with_login`].
pub const USER: &str = "wash";
/// That user's password.
pub const PASSWORD: &str = "secret";
/// `USER` and the bcrypt hash of `PASSWORD`, as the registry wants to read them.
const HTPASSWD: &str = "wash:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A real OCI registry over plain HTTP on a free port, killed when dropped.
///
/// What was pushed survives [`kill`](Self::kill) and [`restart`](Self::restart).
pub struct Registry {
    process: Process,
    port: u16,
    login: bool,
    dir: TempDir,
}

impl Registry {
    /// Starts a registry that anybody may read and write.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not become ready.
    pub async fn start() -> Result<Self> {
        Self::launch_new(false).await
    }

    /// Starts a registry that only [`USER`] with [`PASSWORD`] may read and write.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_login() -> Result<Self> {
        Self::launch_new(true).await
    }

    async fn launch_new(login: bool) -> Result<Self> {
        let dir = TempDir::new()?;
        let (process, port) = launch(&dir, None, login).await?;
        Ok(Self {
            process,
            port,
            login,
            dir,
        })
    }

    /// `127.0.0.1:<port>`, the same after a restart: the first part of an image reference.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it (SIGKILL) and returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it if it runs, and starts it again with the same port and content.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        // Somebody's outgoing connection may have the port for a moment.
        self.process = wait::until(wait::SOON, "docker-registry starts again", async || {
            launch(&self.dir, Some(self.port), self.login).await.ok()
        })
        .await?
        .0;
        Ok(())
    }

    /// One line for each request since the last start, as a web server's access log:
    /// `127.0.0.1 - - [<time>] "GET /v2/app/manifests/1 HTTP/1.1" 200 ..`.
    pub fn log(&self) -> String {
        self.process.stdout.text()
    }

    /// How many requests since the last start have a line that contains `needle`, such as
    /// `"GET /v2/app/blobs/`.
    pub fn requests(&self, needle: &str) -> usize {
        self.process.stdout.count(needle)
    }
}

async fn launch(dir: &TempDir, port: Option<u16>, login: bool) -> Result<(Process, u16)> {
    let config = dir.path().join("registry.json");
    let users = dir.path().join("htpasswd");
    // JSON is YAML.
    let mut settings = serde_json::json!({
        "version": "0.1",
        "log": { "level": "info", "formatter": "text" },
        "storage": {
            "filesystem": { "rootdirectory": dir.path().join("content") },
            "delete": { "enabled": true },
        },
        "http": { "addr": format!("127.0.0.1:{}", port.unwrap_or(0)), "secret": "of one test" },
    });
    if login {
        fs::write(&users, HTPASSWD)?;
        let auth = serde_json::json!({ "htpasswd": { "realm": "fleet", "path": users } });
        if let Some(settings) = settings.as_object_mut() {
            settings.insert("auth".to_owned(), auth);
        }
    }
    fs::write(&config, settings.to_string())?;
    let program = tools::find("docker-registry")?;
    let mut process = Process::start(&program, ["serve".as_ref(), config.as_os_str()], &[])?;
    let port = process
        .wait_ready(Duration::from_secs(20), |process| {
            let rest = process.stderr.after("listening on 127.0.0.1:")?;
            rest.split_once('"')?.0.parse().ok()
        })
        .await?;
    Ok((process, port))
}
