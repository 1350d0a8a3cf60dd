//! The command lines, with addresses of this machine.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use fleet::{
    http,
    nats::NatsServer,
    process::{Process, Signal},
    registry::Registry,
    tools, wait,
    workload::component,
};
use futures::StreamExt;
use serde_json::Value;
use tempfile::TempDir;

use crate::{HOSTS, MANIFESTS, deploy, fields, str_at, strings, text, yaml};

/// `wash` with nothing in its environment but `env`, in a directory where nothing may be written.
struct Place {
    work: TempDir,
    home: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let (work, home) = (TempDir::new()?, TempDir::new()?);
        let mut permissions = fs::metadata(work.path())?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(work.path(), permissions)?;
        Ok(Self { work, home })
    }

    /// `text` with what is a place in a container, or `nats`, as they are on this machine.
    fn translate(&self, text: &str, nats: &NatsServer) -> String {
        text.replace("nats:4222", &nats.address())
            .replace("0.0.0.0:8080", "127.0.0.1:0")
            .replace("/var/lib/washlet", &format!("{}/state", self.home()))
            .replace("/oci-cache", &format!("{}/oci-cache", self.home()))
    }

    fn home(&self) -> std::path::Display<'_> {
        self.home.path().display()
    }

    fn wash(&self, env: &[String], args: &[String]) -> Result<Process> {
        let wash = tools::built("wash")?.display().to_string();
        let work = self.work.path().display().to_string();
        let home = format!("HOME={}", self.home());
        let fixed = ["-i".to_owned(), "-C".to_owned(), work, home];
        let all = fixed.iter().chain(env).chain([&wash]).chain(args);
        Process::start(&tools::find("env")?, all, &[])
    }

    fn is_untouched(&self) -> bool {
        fs::read_dir(self.work.path()).is_ok_and(|mut entries| entries.next().is_none())
    }
}

/// Waits for a heartbeat of the host with this name.
async fn heartbeat(heartbeats: &mut async_nats::Subscriber, name: &str) -> Result<Value> {
    let heard = async {
        while let Some(message) = heartbeats.next().await {
            let heartbeat: Value = serde_json::from_slice(&message.payload)?;
            if str_at(&heartbeat, "/hostname") == name {
                return Ok(heartbeat);
            }
        }
        bail!("the NATS server went away")
    };
    let heard = tokio::time::timeout(wait::SOON, heard).await;
    heard.with_context(|| format!("no heartbeat of {name}"))?
}

fn http_port(heartbeat: &Value) -> Result<u16> {
    let port = heartbeat.get("httpPort").and_then(Value::as_u64);
    Ok(u16::try_from(port.context("no httpPort")?)?)
}

#[tokio::test]
async fn the_hosts_of_the_compose_file_run_the_manifests() -> Result<()> {
    let compose = yaml("docker-compose.yml")?;
    let (nats, registry) = tokio::try_join!(NatsServer::start(), Registry::start())?;
    let client = nats.client().await?;
    let mut heartbeats = client.subscribe("runtime.operator.heartbeat.>").await?;
    client.flush().await?;

    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for name in HOSTS {
        let place = Place::new()?;
        let service = compose.pointer(&format!("/services/{name}"));
        let service = service.with_context(|| format!("no {name}"))?;
        let here = |texts: Vec<String>| -> Vec<String> {
            texts
                .iter()
                .map(|text| place.translate(text, &nats))
                .collect()
        };
        let env = fields(service, "/environment");
        let env = env.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
        let env = here(env.collect());
        let process = place.wash(&env, &here(strings(service, "/command")))?;
        let heartbeat = heartbeat(&mut heartbeats, name).await;
        let heartbeat = heartbeat.with_context(|| process.failure("sent no heartbeat"))?;
        assert_eq!(heartbeat["id"], name);
        assert_eq!(heartbeat["labels"]["hostgroup"], "default");
        assert_eq!(heartbeat["environment"], "default");
        ports.push(http_port(&heartbeat)?);
        let check = strings(service, "/healthcheck/test");
        ensure!(check.starts_with(&["CMD".to_owned(), "/wash".to_owned()]));
        let check = check.get(2..).unwrap_or_default().to_owned();
        hosts.push((place, process, env, check));
    }
    for (place, _, env, check) in &hosts {
        let mut client = place.wash(env, check)?;
        let healthy = client.wait_exit(wait::SOON).await?.success();
        assert!(healthy, "{}", client.failure("is not healthy"));
    }

    for name in MANIFESTS {
        let component = component(name)?;
        let image = registry.push(&format!("{name}:1"), component).await?;
        let text = text(&format!("manifests/{name}.yaml"))?;
        let original = format!("registry:5000/{name}:1");
        ensure!(text.contains(&original), "{name} is of another image");
        let (place, _, env, _) = hosts.first().context("no hosts")?;
        let file = place.home.path().join(name);
        fs::write(&file, text.replace(&original, &image))?;
        let file = file.display().to_string();
        let args = ["workload", "start", &file, "--wait"].map(str::to_owned);
        let mut client = place.wash(env, &args)?;
        let started = client.wait_exit(2 * wait::SOON).await?.success();
        assert!(started, "{}", client.failure("started nothing"));
    }
    for (count, port) in (1..).zip(&ports) {
        let reply = http::get(*port, "counter.localhost", "/cats").await?;
        assert_eq!((reply.status, reply.body), (200, format!("{count}\n")));
    }
    let reply = client.request("tasks.echo", "hello".into()).await?;
    assert_eq!(reply.payload, "hello");

    let (place, process, env, check) = hosts.first_mut().context("no hosts")?;
    process.signal(Signal::TERM);
    assert!(process.wait_exit(2 * wait::SOON).await?.success());
    let mut client = place.wash(env, check)?;
    assert!(!client.wait_exit(wait::SOON).await?.success());
    assert!(hosts.iter().all(|(place, ..)| place.is_untouched()));
    Ok(())
}

#[tokio::test]
async fn a_host_takes_the_command_line_of_the_chart() -> Result<()> {
    let nats = NatsServer::start().await?;
    let client = nats.client().await?;
    let mut heartbeats = client.subscribe("runtime.operator.heartbeat.>").await?;
    client.flush().await?;
    let place = Place::new()?;
    let args = [
        "--log-level=info",
        "host",
        "--host-name=127.0.0.1",
        "--host-group=default",
        "--environment=wasmcloud",
        "--scheduler-nats-url=nats://nats:4222",
        "--data-nats-url=nats://nats:4222",
        "--oci-cache-dir=/oci-cache",
        "--http-addr=0.0.0.0:8080",
    ];
    let args = args.map(|arg| place.translate(arg, &nats));
    let env = [
        "WASMCLOUD_HOST_IP=127.0.0.1",
        "WASMCLOUD_HOST_ENVIRONMENT=wasmcloud",
    ];
    let mut process = place.wash(&env.map(str::to_owned), &args)?;
    let heartbeat = heartbeat(&mut heartbeats, "127.0.0.1").await;
    let heartbeat = heartbeat.with_context(|| process.failure("sent no heartbeat"))?;
    assert_eq!(heartbeat["labels"]["hostgroup"], "default");
    assert_eq!(heartbeat["environment"], "wasmcloud");
    // Ready is who accepts connections; nothing is placed there yet.
    let reply = http::get(http_port(&heartbeat)?, "nobody.test", "/").await?;
    assert_eq!(reply.status, 404);
    process.signal(Signal::TERM);
    assert!(process.wait_exit(2 * wait::SOON).await?.success());
    assert!(place.is_untouched());
    Ok(())
}

#[tokio::test]
async fn nats_takes_its_command_line_and_answers_its_health_check() -> Result<()> {
    let compose = yaml("docker-compose.yml")?;
    let data = TempDir::new()?;
    let data = data.path().display().to_string();
    let args = strings(&compose, "/services/nats/command").into_iter();
    let args = args.map(|arg| arg.replace("=/data", &format!("={data}")));
    let args = args.map(|arg| arg.replace("8222", "-1"));
    let own = ["--addr=127.0.0.1", "--port=-1"].map(str::to_owned);
    let mut server = Process::start(&tools::find("nats-server")?, args.chain(own), &[])?;
    let port = server.wait_ready(wait::SOON, |server| {
        server.stderr.after("Server is ready")?;
        let address = server.stderr.after("Starting http monitor on ")?;
        address.rsplit_once(':')?.1.parse().ok()
    });
    let port = port.await?;
    let check = strings(&compose, "/services/nats/healthcheck/test");
    let url = check.last().context("no health check")?;
    let path = url.strip_prefix("http://127.0.0.1:8222");
    let reply = http::get(port, "nats", path.context("another port")?).await?;
    assert_eq!(reply.status, 200, "{}", reply.body);
    Ok(())
}

#[tokio::test]
async fn the_manifests_can_be_looked_at_without_a_fleet() -> Result<()> {
    let place = Place::new()?;
    for name in MANIFESTS {
        let file = deploy(&format!("manifests/{name}.yaml"))
            .display()
            .to_string();
        let args = ["workload", "start", "--dry-run", "--output=json", &file];
        let mut wash = place.wash(&[], &args.map(str::to_owned))?;
        let looked = wash.wait_exit(wait::SOON).await?.success();
        assert!(looked, "{}", wash.failure("refused it"));
        let printed = wait::until(wait::SOON, "the result is printed", async || {
            serde_json::from_str::<Value>(&wash.stdout.text()).ok()
        });
        let printed = printed.await?;
        let image = "/data/0/request/workload/witWorld/components/0/image";
        assert_eq!(str_at(&printed, image), format!("registry:5000/{name}:1"));
    }
    Ok(())
}
