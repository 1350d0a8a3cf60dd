//! `deploy/k3s` and `deploy/systemd`, as far as it can be tried without a Docker engine: what its files say of each
//! other, and its command lines, run for real with addresses of this machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fleet::{process::Process, tools, wait};
use serde_json::Value;

mod command_lines;
mod definitions;
mod systemd;

const HOSTS: [&str; 2] = ["host-1", "host-2"];
const MANIFESTS: [&str; 2] = ["http-counter", "echo-messaging"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn deploy(file: &str) -> PathBuf {
    root().join("deploy/k3s").join(file)
}

fn text(file: &str) -> Result<String> {
    fs::read_to_string(deploy(file)).with_context(|| format!("failed to read {file}"))
}

fn yaml(file: &str) -> Result<Value> {
    serde_saphyr::from_str(&text(file)?).with_context(|| format!("{file} is not YAML"))
}

/// The text at `pointer`, or nothing.
fn str_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The texts in the list at `pointer`, or none.
fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    let list = list.into_iter().flatten().filter_map(Value::as_str);
    list.map(str::to_owned).collect()
}

/// The fields of the object at `pointer`, or none.
fn fields<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let object = value.pointer(pointer).and_then(Value::as_object);
    let fields = object.into_iter().flatten();
    fields.map(|(name, value)| (name.as_str(), value))
}

#[test]
fn the_compose_file_agrees_with_itself_and_with_the_files_beside_it() -> Result<()> {
    let compose = yaml("docker-compose.yml")?;
    let named: BTreeSet<&str> = fields(&compose, "/volumes").map(|(name, _)| name).collect();
    let names: Vec<&str> = fields(&compose, "/services")
        .map(|(name, _)| name)
        .collect();
    for name in ["k3s", "nats", "registry", "operator", "more-hosts", "wash"]
        .iter()
        .chain(&HOSTS)
    {
        assert!(names.contains(name), "there is no service {name}");
    }
    let mut ports = BTreeSet::new();
    for (name, service) in fields(&compose, "/services") {
        for volume in strings(service, "/volumes") {
            let (source, _) = volume.split_once(':').unwrap_or(("", &volume));
            let known = match source {
                "" => true,
                path if path.starts_with('.') => deploy(path).exists(),
                volume => named.contains(volume),
            };
            assert!(known, "{name}: nothing to mount as {volume}");
        }
        for port in strings(service, "/ports") {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port} is public");
            assert!(
                port.starts_with("127.0.0.1::") || ports.insert(port.clone()),
                "{name}: {port} is taken"
            );
        }
        for (needed, how) in fields(service, "/depends_on") {
            assert_eq!(str_at(how, "/condition"), "service_healthy");
            let check = format!("/services/{needed}/healthcheck/test");
            assert!(!strings(&compose, &check).is_empty(), "{name}: {needed}");
        }
        if name.contains("host") {
            // More than what --drain-delay and --grace take together by default.
            assert_eq!(str_at(service, "/stop_grace_period"), "40s");
        }
        if name.contains("host") || name == "wash" {
            assert_eq!(service["read_only"], true, "{name}");
            assert_eq!(strings(service, "/cap_drop"), ["ALL"], "{name}");
            let context = deploy(str_at(service, "/build/context"));
            let dockerfile = context.join(str_at(service, "/build/dockerfile"));
            assert!(dockerfile.is_file(), "{name}: no {}", dockerfile.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_the_cluster_writes_is_what_the_operator_reads() -> Result<()> {
    let compose = yaml("docker-compose.yml")?;
    let ready = text("ready.sh")?;
    let k3s = strings(&compose, "/services/k3s/volumes");
    let operator = compose.pointer("/services/operator").context("operator")?;
    assert!(k3s.contains(&"./crds:/crds:ro".to_owned()));
    assert!(ready.contains("kubectl apply --filename=/crds\n"));
    let kubeconfig = str_at(operator, "/environment/KUBECONFIG");
    assert!(ready.contains(&format!(">{kubeconfig}\n")), "{kubeconfig}");
    assert!(k3s.contains(&"./tmp:/output".to_owned()));
    assert_eq!(strings(operator, "/volumes"), ["./tmp:/output:ro"]);
    // The address in it is one that the certificate is for.
    let san = strings(&compose, "/services/k3s/command").contains(&"--tls-san=k3s".to_owned());
    assert!(san && ready.contains("https://k3s:6443"));
    // It ends at once without, and finds the manifests' hosts there.
    assert_eq!(
        str_at(operator, "/environment/OPERATOR_NAMESPACE"),
        "default"
    );
    let script = deploy("ready.sh");
    let mut shell = Process::start(
        &tools::find("sh")?,
        ["-n".as_ref(), script.as_os_str()],
        &[],
    )?;
    assert!(shell.wait_exit(wait::SOON).await?.success());
    Ok(())
}

#[test]
fn the_image_is_built_from_everything_that_cargo_needs() -> Result<()> {
    let ignored = fs::read_to_string(root().join(".dockerignore"))?;
    let ignored: Vec<&str> = ignored
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let cargo = fs::read_to_string(root().join("Cargo.toml"))?;
    let members = cargo.lines().find(|line| line.starts_with("members"));
    let members = members.context("the workspace has no members")?;
    let members = members.split('"').skip(1).step_by(2);
    let is_line = |line: String| ignored.contains(&line.as_str());
    for needed in members.chain(["Cargo.toml", "Cargo.lock", "wit"]) {
        assert!(root().join(needed).exists(), "there is no {needed}");
        let folder = needed.rsplit_once('/').map_or("", |(folder, _)| folder);
        let left_out = is_line(needed.to_owned())
            || is_line(folder.to_owned())
            || (is_line(format!("{folder}/*")) && !is_line(format!("!{needed}")));
        assert!(!left_out, "{needed} is left out");
    }
    let version = cargo
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "));
    let version = version.context("no rust-version")?.trim_matches('"');
    let from = format!("FROM rust:{version}-bookworm AS build\n");
    let dockerfile = text("Dockerfile")?;
    assert!(dockerfile.contains(&from), "not {from}");
    for line in ["USER 65532:65532\n", "ENTRYPOINT [\"/wash\"]\n"] {
        assert!(dockerfile.contains(line), "no {line}");
    }
    Ok(())
}
