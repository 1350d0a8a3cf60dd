//! Hosts: the real binary `wash host`, driven over NATS as an operator does.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    http,
    nats::NatsServer,
    process::{Process, Signal},
    registry::Registry,
    tools, wait,
    workload::{self, Workload},
};

/// An operator gives up after this long, whatever it asked.
const REQUEST_MAX: Duration = Duration::from_secs(60);

/// The servers that hosts share.
pub struct Fleet {
    /// Carries commands and data.
    pub nats: NatsServer,
    /// Where images come from.
    pub registry: Registry,
}

impl Fleet {
    /// Starts the servers, with nothing in them.
    ///
    /// # Errors
    /// When one is not installed or does not become ready.
    pub async fn start() -> Result<Self> {
        let (nats, registry) = tokio::try_join!(NatsServer::start(), Registry::start())?;
        Ok(Self { nats, registry })
    }

    /// Starts a host of the fleet with `args` added to `wash host ..`, and waits for its first
    /// heartbeat.
    ///
    /// # Errors
    /// When `wash` is not built, or the host ends or stays silent; with the end of its log.
    pub async fn host(&self, args: &[&str]) -> Result<Washlet> {
        Washlet::start(&self.nats, args).await
    }

    /// Pushes a component of this repository; gives the reference.
    ///
    /// # Errors
    /// When there is no such component, or the registry refuses it.
    pub async fn push(&self, name: &str) -> Result<String> {
        self.registry
            .push(&format!("{name}:1"), workload::component(name)?)
            .await
    }
}

/// What a host says about a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The workload it is about.
    pub id: String,
    /// The state's name on the wire without `WORKLOAD_STATE_`.
    pub state: String,
    /// The host's words.
    pub message: String,
}

/// A host as a child process, killed when dropped, whose log then goes to the test's output.
pub struct Washlet {
    process: Process,
    client: Client,
    program: Program,
    state: TempDir,
    heartbeat: Value,
    /// From starting the process to its first heartbeat.
    pub awake_after: Duration,
}

/// What is started; its state directory and host name come with each start.
struct Program {
    path: PathBuf,
    args: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Program {
    fn new(path: PathBuf, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            path,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            variables: variables.iter().map(owned).collect(),
        }
    }
}

impl Washlet {
    /// As [`Fleet::host`], without a registry.
    ///
    /// # Errors
    /// As for [`Fleet::host`].
    pub async fn start(nats: &NatsServer, args: &[&str]) -> Result<Self> {
        Self::start_with(nats, args, &[]).await
    }

    /// As [`start`](Self::start), with these variables in its environment.
    ///
    /// # Errors
    /// As for [`Fleet::host`].
    pub async fn start_with(
        nats: &NatsServer,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let url = nats.url();
        Self::start_at(nats, [&url, &url], args, variables).await
    }

    /// As [`start_with`](Self::start_with), for a host that finds the server for commands at the first of
    /// `urls` and that for data at the second. Its first heartbeat is waited for at `nats`.
    ///
    /// # Errors
    /// As for [`Fleet::host`].
    pub async fn start_at(
        nats: &NatsServer,
        urls: [&str; 2],
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let [scheduler, data] = urls;
        let own = [
            "host",
            "--allow-insecure-registries",
            "--data-nats-url",
            data,
        ];
        let args: Vec<_> = own.iter().chain(args).copied().collect();
        let program = Program::new(tools::built("wash")?, &args, variables);
        Self::launched(nats, scheduler, program).await
    }

    /// As [`start`](Self::start), for a host that is not `wash host`: `program` knows the options
    /// `--scheduler-nats-url`, `--http-addr`, `--state-dir` and `--host-name`.
    ///
    /// # Errors
    /// As for [`Fleet::host`].
    pub async fn start_program(nats: &NatsServer, program: &Path, args: &[&str]) -> Result<Self> {
        let program = Program::new(program.to_owned(), args, &[]);
        Self::launched(nats, &nats.url(), program).await
    }

    async fn launched(nats: &NatsServer, scheduler: &str, mut program: Program) -> Result<Self> {
        let client = nats.client().await?;
        let common = [
            "--scheduler-nats-url",
            scheduler,
            "--http-addr",
            "127.0.0.1:0",
        ];
        program.args.extend(common.map(str::to_owned));
        let state = TempDir::new()?;
        let began = Instant::now();
        let (process, heartbeat) = launch(&client, state.path(), &program).await?;
        Ok(Self {
            process,
            client,
            program,
            state,
            heartbeat,
            awake_after: began.elapsed(),
        })
    }

    /// Kills it if it runs, and starts it again with the same arguments and state directory.
    ///
    /// # Errors
    /// As for [`Fleet::host`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let began = Instant::now();
        (self.process, self.heartbeat) =
            launch(&self.client, self.state.path(), &self.program).await?;
        self.awake_after = began.elapsed();
        Ok(())
    }

    /// As [`restart`](Self::restart), for a host that cannot reach its NATS server: gives the port where it
    /// serves HTTP as soon as it does.
    ///
    /// # Errors
    /// When the host ends, or does not serve HTTP in time; with the end of its log.
    pub async fn restart_cut_off(&mut self) -> Result<u16> {
        self.kill();
        (self.process, _) = spawn(self.state.path(), &self.program)?;
        let serves = |process: &Process| {
            let address = process.stderr.after("serving HTTP address=")?;
            address.trim().rsplit_once(':')?.1.parse().ok()
        };
        self.process.wait_ready(wait::SOON, serves).await
    }

    /// The host's id.
    pub fn id(&self) -> &str {
        self.heartbeat
            .get("id")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The port of its HTTP listener on 127.0.0.1.
    pub fn http_port(&self) -> u16 {
        let port = self
            .heartbeat
            .get("httpPort")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        u16::try_from(port).unwrap_or_default()
    }

    /// Its first heartbeat.
    pub fn heartbeat(&self) -> &Value {
        &self.heartbeat
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Hears `subject` from now on: the server knows the subscription when this returns, which a flush would not
    /// say.
    ///
    /// # Errors
    /// When the server does not answer in time.
    pub async fn listen(&self, subject: &str) -> Result<Subscriber> {
        let heard = self.client.subscribe(subject.to_owned()).await?;
        let inbox = self.client.new_inbox();
        let mut own = self.client.subscribe(inbox.clone()).await?;
        self.client.publish(inbox, Bytes::new()).await?;
        timeout(wait::SOON, own.next())
            .await
            .with_context(|| format!("no round trip after subscribing to \"{subject}\""))?;
        Ok(heard)
    }

    /// A client of the NATS server that the host uses.
    pub fn nats(&self) -> &Client {
        &self.client
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// What it answers at `path` of its admin endpoint: the status, and the text.
    ///
    /// # Errors
    /// When it has none (`--admin-addr`), or does not answer.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let address = wait::until(wait::SOON, "the admin endpoint is up", async || {
            let log = self
                .process
                .stderr
                .after("serving the admin endpoint address=");
            log.map(|address| address.trim().to_owned())
        })
        .await?;
        let url = format!("http://{address}{path}");
        let response = http::client()?.get(url).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Returns when the process has ended.
    ///
    /// # Errors
    /// When it still runs after half a minute.
    pub async fn gone(&self) -> Result<()> {
        let file = format!("/proc/{}/stat", self.pid());
        wait::until(wait::SOON, "the host has ended", async || {
            // Who has ended is a zombie until it is waited for.
            let stat = std::fs::read_to_string(&file).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await
    }

    /// What it printed on standard output.
    pub fn printed(&self) -> String {
        self.process.stdout.text()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends `payload` to `runtime.host.<id>.<command>`; gives the reply as it is.
    ///
    /// # Errors
    /// When no reply comes within a minute.
    pub async fn send(&self, command: &str, payload: &str) -> Result<async_nats::Message> {
        let subject = format!("runtime.host.{}.{command}", self.id());
        let request = async_nats::Request::new()
            .payload(payload.to_owned().into())
            .timeout(Some(REQUEST_MAX));
        let reply = self.client.send_request(subject, request).await;
        reply.with_context(|| format!("no reply to {command}"))
    }

    /// As [`send`](Self::send), in JSON both ways.
    ///
    /// # Errors
    /// When no reply comes within a minute, or the reply is no JSON.
    pub async fn request(&self, command: &str, payload: &Value) -> Result<Value> {
        let reply = self.send(command, &payload.to_string()).await?;
        serde_json::from_slice(&reply.payload).with_context(|| format!("{command}: reply in JSON"))
    }

    /// Asks the host to start `workload`, and waits while it says STARTING.
    ///
    /// # Errors
    /// When a reply is missing or has no status; a refused workload is no error.
    pub async fn run(&self, workload: &Workload) -> Result<Status> {
        let mut status = status_of(&self.request("workload.start", &workload.request()).await?)?;
        let deadline = Instant::now() + REQUEST_MAX;
        while status.state == "STARTING" {
            if Instant::now() > deadline {
                bail!("\"{}\" is STARTING for over {REQUEST_MAX:?}", workload.id);
            }
            status = self.status(&workload.id).await?;
        }
        Ok(status)
    }

    /// As [`run`](Self::run), for workloads that have to run.
    ///
    /// # Errors
    /// Also when the workload does not run.
    pub async fn run_well(&self, workload: &Workload) -> Result<()> {
        let status = self.run(workload).await?;
        if status.state != "RUNNING" {
            bail!(
                "\"{}\" is {}: {}",
                workload.id,
                status.state,
                status.message
            );
        }
        Ok(())
    }

    /// Asks how the workload `id` is.
    ///
    /// # Errors
    /// When the reply is missing or has no status.
    pub async fn status(&self, id: &str) -> Result<Status> {
        status_of(
            &self
                .request("workload.status", &json!({ "workloadId": id }))
                .await?,
        )
    }

    /// Asks the host to stop the workload `id`.
    ///
    /// # Errors
    /// When the reply is missing or has no status.
    pub async fn stop(&self, id: &str) -> Result<Status> {
        status_of(
            &self
                .request("workload.stop", &json!({ "workloadId": id }))
                .await?,
        )
    }

    /// Kills it (SIGKILL) and returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Asks it to end as a terminal does (SIGINT).
    pub fn interrupt(&mut self) {
        self.process.signal(Signal::INT);
    }

    /// Waits until it has ended, and says how.
    ///
    /// # Errors
    /// After `deadline`, with the end of its log.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.wait_exit(deadline).await
    }
}

impl Drop for Washlet {
    fn drop(&mut self) {
        // Shown by the test runner when the test fails, else swallowed.
        eprintln!(
            "--- log of host {}\n{}",
            self.id(),
            self.process.stderr.tail(200)
        );
    }
}

/// The status in a reply, as an operator reads it.
///
/// # Errors
/// When a field is missing.
pub fn status_of(reply: &Value) -> Result<Status> {
    let field = |name: &str| {
        let status = reply
            .get("workloadStatus")
            .and_then(|status| status.get(name));
        status.and_then(Value::as_str).map(str::to_owned)
    };
    let state = field("workloadState").with_context(|| format!("no state in {reply}"))?;
    Ok(Status {
        id: field("workloadId").unwrap_or_default(),
        state: state.trim_start_matches("WORKLOAD_STATE_").to_owned(),
        message: field("message").unwrap_or_default(),
    })
}

/// Starts the process; with the host name that its heartbeats have.
fn spawn(state: &Path, program: &Program) -> Result<(Process, String)> {
    // Heartbeats carry the id, which only the new host's log and its state directory also have.
    let state = state
        .to_str()
        .context("the temporary directory is not UTF-8")?;
    let name = format!(
        "fleet-{}",
        state.rsplit(['/', '.']).next().unwrap_or_default()
    );
    let own = ["--state-dir", state, "--host-name", &name];
    let args = program.args.iter().map(String::as_str).chain(own);
    let variables: Vec<_> = program
        .variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let process = Process::start(&program.path, args, &variables)?;
    Ok((process, name))
}

async fn launch(client: &Client, state: &Path, program: &Program) -> Result<(Process, Value)> {
    let mut heartbeats = client.subscribe("runtime.operator.heartbeat.>").await?;
    client.flush().await?;
    let (mut process, name) = spawn(state, program)?;
    let first = async {
        while let Some(message) = heartbeats.next().await {
            let heartbeat: Value = serde_json::from_slice(&message.payload)?;
            if heartbeat.get("hostname").and_then(Value::as_str) == Some(&name) {
                return Ok(heartbeat);
            }
        }
        bail!("the NATS server went away")
    };
    let ended = process.wait_exit(wait::SOON);
    let heard = timeout(wait::SOON, async {
        tokio::select! {
            heartbeat = first => heartbeat,
            ended = ended => bail!("{}", ended.map_or_else(|e| e.to_string(), |s| s.to_string())),
        }
    })
    .await;
    match heard {
        Ok(Ok(heartbeat)) => Ok((process, heartbeat)),
        Ok(Err(error)) => bail!(process.failure(&format!("sent no heartbeat ({error})"))),
        Err(_) => bail!(process.failure("sent no heartbeat in time")),
    }
}
