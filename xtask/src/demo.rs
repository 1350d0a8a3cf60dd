//! Two hosts serve one component; one of them dies, the other serves on.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use crate::{
    test::{cargo, root, run as cargo_run},
    tools::{self, Tool},
};

/// How long any one step may take, building aside.
const PATIENCE: Duration = Duration::from_secs(60);
const HTTP_HOST: &str = "counter.localhost";

/// `cargo xtask demo [--keep]`
pub(crate) fn run(args: &[String]) -> Result<()> {
    let keep = match args {
        [] => false,
        [arg] if arg == "--keep" => true,
        _ => bail!("`cargo xtask demo` takes no argument but --keep"),
    };
    for tool in tools::FLEET {
        tool.ensure()?;
    }
    cargo_run(cargo().args(["build", "--package", "wash"]))?;
    println!();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(perform(keep))
}

/// Plays the demo and leaves nothing running, however it ends.
async fn perform(keep: bool) -> Result<()> {
    let mut stage = Stage::new()?;
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let ended = tokio::select! {
        ended = stage.play(keep) => ended,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    for (_, child) in &mut stage.children {
        let _ = child.kill().await;
    }
    if let Err(error) = &ended
        && !(keep && stage.played)
    {
        eprintln!("\nfailed at step {}: {error:#}", stage.step + 1);
        for (name, _) in &stage.children {
            let log = fs::read_to_string(stage.log(name)).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(25);
            eprintln!("\n--- the end of what {name} logged");
            log.lines()
                .skip(skipped)
                .for_each(|line| eprintln!("{line}"));
        }
        bail!("the demo did not work");
    }
    println!("\nnothing is left running");
    Ok(())
}

/// What runs, and what has been shown.
struct Stage {
    dir: TempDir,
    wash: PathBuf,
    children: Vec<(&'static str, Child)>,
    step: u32,
    since: Instant,
    /// Everything was shown; what follows is `--keep`.
    played: bool,
}

impl Stage {
    fn new() -> Result<Self> {
        Ok(Self {
            dir: TempDir::new()?,
            wash: tools::target_dir()?.join("debug/wash"),
            children: Vec::new(),
            step: 0,
            since: Instant::now(),
            played: false,
        })
    }

    async fn play(&mut self, keep: bool) -> Result<()> {
        let nats = self.nats_server().await?;
        let registry = self.registry().await?;
        self.show(format!(
            "nats-server listens on {nats}, a registry on {registry}"
        ));

        // A host's id is also the name of its log here.
        for name in ["host-a", "host-b"] {
            let state = self.dir.path().join(name);
            let state = state
                .to_str()
                .context("the temporary directory is not UTF-8")?;
            let wash = self.wash.clone();
            self.start(
                name,
                &wash,
                ["host", "--host-group", "edge", "--http-addr", "127.0.0.1:0"]
                    .into_iter()
                    .chain(["--scheduler-nats-url", &nats, "--data-nats-url", &nats])
                    .chain([
                        "--host-id",
                        name,
                        "--state-dir",
                        state,
                        "--allow-insecure-registries",
                    ]),
            )?;
        }
        let hosts = self.hosts(&nats, 2).await?;
        let named: Vec<_> = hosts
            .iter()
            .map(|host| format!("{} (HTTP port {})", host.name, host.port))
            .collect();
        self.show(format!(
            "two hosts of group \"edge\" report: {}",
            named.join(", ")
        ));

        let image = format!("{registry}/http-counter:1");
        let component = root().join("examples/http-counter/http-counter.wasm");
        let component = component
            .to_str()
            .context("the workspace's path is not UTF-8")?;
        self.wash(["oci", "push", "--insecure", &image, component])
            .await?;
        self.show(format!("pushed {image}"));

        self.wash(
            [
                "workload",
                "start",
                "--nats-url",
                &nats,
                "--host-group",
                "edge",
                "--replicas",
                "2",
            ]
            .into_iter()
            .chain(["--wait", "--image", &image, "--name", "counter"])
            .chain([
                "--http-host",
                HTTP_HOST,
                "--interface",
                "wasi:keyvalue/store,atomics",
            ]),
        )
        .await?;
        self.show("one workload runs on both hosts".to_owned());

        let mut last = 0;
        for host in hosts.iter().chain(&hosts) {
            let count = count(host.port).await?;
            if count != last + 1 {
                bail!("{} counted {count} after {last}", host.name);
            }
            last = count;
            self.show(format!("{} answers: {count}", host.name));
        }

        let [survivor, victim] = hosts.as_slice() else {
            bail!("there are not two hosts")
        };
        self.kill(&victim.id).await?;
        let gone = TcpStream::connect(("127.0.0.1", victim.port))
            .await
            .is_err();
        if !gone {
            bail!("the port of the killed host still accepts");
        }
        self.show(format!(
            "killed {} (SIGKILL); its port is closed",
            victim.name
        ));

        let count = count(survivor.port).await?;
        if count != last + 1 {
            bail!("{} counted {count} after {last}", survivor.name);
        }
        self.show(format!(
            "{} serves on and lost no count: {count}",
            survivor.name
        ));

        if keep {
            self.played = true;
            println!(
                "\nstill up, until Ctrl-C:\n  curl -H 'host: {HTTP_HOST}' http://127.0.0.1:{}/\n  \
                 {} hosts --nats-url {nats}\n  registry {registry}",
                survivor.port,
                self.wash.display(),
            );
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Prints a numbered line with the time since the previous one.
    fn show(&mut self, what: String) {
        self.step += 1;
        println!(
            "{:>2}  {:>7.2} s  {what}",
            self.step,
            self.since.elapsed().as_secs_f32()
        );
        self.since = Instant::now();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Starts `program`, its output going to the log `name`.
    fn start<A: AsRef<OsStr>>(
        &mut self,
        name: &'static str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        let log = File::create(self.log(name))?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start \"{}\"", program.display()))?;
        self.children.push((name, child));
        Ok(())
    }

    async fn kill(&mut self, id: &str) -> Result<()> {
        for (_, child) in self.children.iter_mut().filter(|(child, _)| *child == id) {
            child.kill().await?;
        }
        Ok(())
    }

    async fn nats_server(&mut self) -> Result<String> {
        let config = self.dir.path().join("nats.conf");
        let store = self.dir.path().join("jetstream");
        fs::write(
            &config,
            format!("listen: \"127.0.0.1:-1\"\njetstream {{ store_dir: {store:?} }}\n"),
        )?;
        self.server(&tools::NATS_SERVER, [OsStr::new("-c"), config.as_os_str()])
            .await?;
        self.logged("nats-server", "Server is ready").await?;
        let address = self
            .logged("nats-server", "Listening for client connections on ")
            .await?;
        Ok(format!("nats://{address}"))
    }

    async fn registry(&mut self) -> Result<String> {
        let config = self.dir.path().join("registry.json");
        let settings = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info", "formatter": "text" },
            "storage": { "filesystem": { "rootdirectory": self.dir.path().join("images") } },
            "http": { "addr": "127.0.0.1:0", "secret": "of one demo" },
        });
        fs::write(&config, settings.to_string())?;
        self.server(
            &tools::DOCKER_REGISTRY,
            [OsStr::new("serve"), config.as_os_str()],
        )
        .await?;
        let rest = self.logged("docker-registry", "listening on ").await?;
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    async fn server(&mut self, tool: &Tool, args: [&OsStr; 2]) -> Result<()> {
        self.start(tool.name, &tool.ensure()?, args)
    }

    /// Waits until the log `name` has `marker`; gives the rest of that line.
    async fn logged(&mut self, name: &str, marker: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let log = fs::read_to_string(self.log(name))?;
            let rest = log
                .split_once(marker)
                .and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((line, _)) = rest {
                return Ok(line.to_owned());
            }
            self.all_run()?;
            sleep(Duration::from_millis(20)).await;
        }
        bail!("{name} was not ready within {PATIENCE:?}")
    }

    /// An error when something that should run has ended.
    fn all_run(&mut self) -> Result<()> {
        for (name, child) in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended: {status}");
            }
        }
        Ok(())
    }

    /// The hosts of the fleet, once there are `wanted`.
    async fn hosts(&mut self, nats: &str, wanted: usize) -> Result<Vec<Host>> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.all_run()?;
            let reply = self
                .wash(["--output", "json", "hosts", "--nats-url", nats])
                .await?;
            let reply: Value = serde_json::from_str(&reply).context("`wash hosts` gave no JSON")?;
            let hosts: Vec<_> = reply
                .get("data")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Host::read)
                .collect();
            if hosts.len() == wanted {
                return Ok(hosts);
            }
        }
        bail!("{wanted} hosts did not report within {PATIENCE:?}")
    }

    /// Runs `wash` to its end; gives what it printed on standard output.
    async fn wash<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let args: Vec<_> = args.into_iter().collect();
        let line = format!("wash {}", args.join(" "));
        let mut command = Command::new(&self.wash);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("`{line}` did not end within {PATIENCE:?}"))?
            .with_context(|| format!("failed to run `{line}`"))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "`{line}` failed: {stdout}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }
}

/// A host as `wash hosts` shows it.
struct Host {
    id: String,
    name: String,
    port: u16,
}

impl Host {
    fn read(heartbeat: &Value) -> Option<Self> {
        Some(Self {
            id: heartbeat.get("id")?.as_str()?.to_owned(),
            name: heartbeat.get("friendlyName")?.as_str()?.to_owned(),
            port: heartbeat.get("httpPort")?.as_u64()?.try_into().ok()?,
        })
    }
}

/// What the counter answers on `port` to one visit.
async fn count(port: u16) -> Result<u64> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {HTTP_HOST}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        anyhow::Ok(reply)
    };
    let reply = timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("port {port} did not answer within {PATIENCE:?}"))??;
    let (head, body) = reply
        .split_once("\r\n\r\n")
        .context("the answer has no end of head")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("port {port} answered: {reply}");
    }
    // The body may be chunked; the count is the line that follows the chunk's size.
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let line = body.lines().nth(usize::from(chunked)).unwrap_or_default();
    line.trim()
        .parse()
        .with_context(|| format!("port {port} answered no number: {reply:?}"))
}
