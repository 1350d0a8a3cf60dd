//! A Postgres server.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{
    process::{Process, Signal},
    tools, wait,
};

/// The password of the role that [`PostgresServer::url`] names.
pub const PASSWORD: &str = "not-to-be-shown";

/// Whom the server runs as when the tests run as root, which Postgres refuses: `nobody`.
const NOBODY: u32 = 65534;

/// The server's certificate and its key, where there are some.
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";

/// A real Postgres server on a free port, killed when dropped.
///
/// It has a database `fleet` that belongs to a role which is no superuser. Its data lies in a directory of
/// its own, and survives [`kill`](Self::kill) and [`restart`](Self::restart).
pub struct PostgresServer {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl PostgresServer {
    /// Starts a server with an empty database.
    ///
    /// # Errors
    /// When Postgres is not installed or does not become ready.
    pub async fn start() -> Result<Self> {
        Self::start_in(TempDir::new()?).await
    }

    /// As [`start`](Self::start), with TLS for who asks for it; both in PEM.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_tls(certificate: &str, key: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        fs::write(dir.path().join(CERTIFICATE), certificate)?;
        let path = dir.path().join(KEY);
        fs::write(&path, key)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        if is_root()? {
            chown(&path, Some(NOBODY), Some(NOBODY))?;
        }
        Self::start_in(dir).await
    }

    async fn start_in(dir: TempDir) -> Result<Self> {
        if is_root()? {
            chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
        }
        initialise(dir.path()).await?;
        let deadline = Instant::now() + wait::SOON;
        loop {
            // Free now; somebody else may take it before the server does.
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            match launch(dir.path(), port).await {
                Ok(process) => return Ok(Self { process, port, dir }),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(error) if format!("{error:#}").contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the database `fleet` is, with role and password, the same after a restart.
    pub fn url(&self) -> String {
        format!("postgres://guest:{PASSWORD}@{}/fleet", self.address())
    }

    /// `127.0.0.1:<port>`, the same after a restart.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it at once, as a crash does (SIGQUIT, which takes its children and shared memory along), and
    /// returns when it is gone.
    pub fn kill(&mut self) {
        self.process.signal(Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.process.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.process.kill();
    }

    /// Kills it if it runs, and starts it again with the same port and data.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        // Somebody's outgoing connection may have the port for a moment.
        self.process = wait::until(wait::SOON, "Postgres starts again", async || {
            launch(self.dir.path(), self.port).await.ok()
        })
        .await?;
        Ok(())
    }

    /// What the server printed.
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes a database and who it belongs to.
async fn initialise(dir: &Path) -> Result<()> {
    let data = dir.join("data");
    let mut initdb = command("initdb", dir)?;
    initdb.arg("--pgdata").arg(&data).args([
        "--username=fleet",
        "--encoding=UTF8",
        "--locale=C",
        "--auth=scram-sha-256",
        "--no-sync",
        "--no-instructions",
    ]);
    let secret = dir.join("password");
    fs::write(&secret, PASSWORD)?;
    initdb.arg("--pwfile").arg(&secret);
    finish(initdb).await?;
    // Without a server, so that no client is needed: each line is a statement.
    let statements = dir.join("statements.sql");
    let role = format!("CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'\n");
    fs::write(&statements, role + "CREATE DATABASE fleet OWNER guest\n")?;
    let mut single = command("postgres", dir)?;
    single
        .args(["--single", "-c", "fsync=off", "-D"])
        .arg(&data);
    single.args(["-c", "exit_on_error=on", "postgres"]);
    let output = single.stdin(fs::File::open(&statements)?).output()?;
    if !output.status.success() {
        bail!("no role: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

async fn finish(command: Command) -> Result<()> {
    let mut process = Process::spawn(command)?;
    let status = process.wait_exit(wait::SOON).await?;
    if !status.success() {
        bail!(process.failure("failed"));
    }
    Ok(())
}

async fn launch(dir: &Path, port: u16) -> Result<Process> {
    let mut server = command("postgres", dir)?;
    server.arg("-D").arg(dir.join("data"));
    server.args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        // What is killed is a process, not the machine.
        "fsync=off",
        "shared_buffers=32MB",
    ] {
        server.args(["-c", setting]);
    }
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    if certificate.is_file() {
        let file = |name: &str, file: &Path| format!("ssl_{name}_file={}", file.display());
        server.args(["-c", "ssl=on", "-c", &file("cert", &certificate)]);
        server.args(["-c", &file("key", &key)]);
    }
    let mut process = Process::spawn(server)?;
    let ready = |process: &Process| {
        let log = process.stderr.text();
        log.contains("ready to accept connections").then_some(())
    };
    process.wait_ready(wait::SOON, ready).await?;
    Ok(process)
}

/// The binary `name` of Postgres, to be run in `dir` by somebody who is not root.
fn command(name: &str, dir: &Path) -> Result<Command> {
    let mut command = Command::new(binary(name)?);
    command.current_dir(dir).env("LC_ALL", "C");
    if is_root()? {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

/// All binaries lie beside the real `initdb`, to which there may be a link.
fn binary(name: &str) -> Result<PathBuf> {
    let initdb = tools::find("initdb")?.canonicalize()?;
    let dir = initdb.parent().context("initdb lies in no directory")?;
    Ok(dir.join(name))
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}
