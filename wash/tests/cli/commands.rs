//! Commands that ask nobody.

use std::process::Stdio;

use fleet::wait::{SOON, until};
use tokio::time::timeout;

use crate::{example, ran, run, wash};

#[tokio::test]
async fn wrong_usage_ends_with_2() {
    for line in [
        "",
        "nonsense",
        "hosts --wait",
        "workload start",
        "host --http-addr nowhere",
        "oci push x",
    ] {
        let ran = run(line).await;
        assert_eq!(ran.code, 2, "{line}: {}", ran.stderr);
        assert!(
            ran.stdout.is_empty() && ran.stderr.contains("--help"),
            "{line}"
        );
    }
    for line in [
        "-o json hosts --wait",
        "--output=json host --http-addr nowhere",
        "hosts -ojson --wait",
    ] {
        let ran = run(line).await;
        assert_eq!(ran.code, 2, "{line}");
        assert!(
            !ran.envelope()["message"].as_str().unwrap().is_empty(),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_host_is_refused_before_it_connects_to_anything() {
    let ran = run("-o json host --scheduler-nats-tls-ca /nowhere/ca.crt").await;
    assert_eq!(ran.code, 2);
    assert!(
        ran.envelope()["message"]
            .as_str()
            .unwrap()
            .contains("\"/nowhere/ca.crt\"")
    );
    let dir = tempfile::tempdir().unwrap();
    let (state, text) = (dir.path().join("state"), dir.path().join("text.pem"));
    std::fs::write(&text, "no certificate").unwrap();
    let (state, text) = (state.display(), text.display());
    // No NATS server is there, which a host would wait for.
    for flags in [
        format!("--oci-ca-path {text}"),
        format!("--registries-config {text}"),
        format!("--http-addr 127.0.0.1:0 --tls-cert-path {text} --tls-key-path {text}"),
    ] {
        let line = format!(
            "-o json host --state-dir {state} --scheduler-nats-url nats://127.0.0.1:1 {flags}"
        );
        let ran = timeout(SOON, run(&line)).await.unwrap();
        assert_eq!(ran.code, 2, "{flags}: {}{}", ran.stdout, ran.stderr);
        let envelope = ran.envelope();
        let message = envelope["message"].as_str().unwrap();
        assert!(message.contains("text.pem"), "{flags}: {message}");
    }
    let ran = run("host --nats-token a --nats-creds b").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("more than one way"), "{}", ran.stderr);
    let ran = run("--log-level no=such=thing host").await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
}

#[tokio::test]
async fn a_version_is_one_line() {
    let ran = run("--version").await;
    assert_eq!(
        (ran.code, ran.stdout.trim()),
        (0, concat!("wash ", env!("CARGO_PKG_VERSION")))
    );
}

#[tokio::test]
async fn every_shell_has_a_completion() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = run(&format!("completion {shell}")).await;
        assert!(
            ran.code == 0 && ran.stdout.contains("workload"),
            "{shell}: {}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn inspect_shows_what_a_component_declares() {
    let file = example("http-counter");
    let ran = run(&format!("inspect {}", file.display())).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("import wasi:keyvalue/store"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("export wasi:http/incoming-handler"),
        "{}",
        ran.stdout
    );
    let data = run(&format!("-o json inspect {}", file.display()))
        .await
        .envelope()["data"]
        .clone();
    assert_eq!(data["bytes"], std::fs::metadata(&file).unwrap().len());
    assert!(data["digest"].as_str().unwrap().starts_with("sha256:"));
    assert!(data["wit"].as_str().unwrap().contains("package"));
    let names = |key: &str| {
        data[key]
            .as_array()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert!(
        names("imports")
            .iter()
            .any(|name| name.contains("wasi:keyvalue/store"))
    );
    assert!(
        names("exports")
            .iter()
            .any(|name| name.contains("wasi:http/incoming-handler"))
    );
}

#[tokio::test]
async fn inspect_says_what_is_no_component() {
    let ran = run(&format!("inspect ./{}", "Cargo.toml")).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("not a WebAssembly component") && ran.stderr.contains("hint:"),
        "{}",
        ran.stderr
    );
    let ran = run("-o json inspect /nowhere.wasm").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.envelope()["message"]
            .as_str()
            .unwrap()
            .contains("\"/nowhere.wasm\"")
    );
}

#[tokio::test]
async fn a_dry_run_shows_the_request_and_no_password() {
    let line = "workload start --dry-run --image reg/counter:1 --namespace shop --http-host a.example.com \
        --http-alias b.example.com --interface wasi:keyvalue/store,atomics --interface-config wasi:keyvalue/bucket=x \
        --subscribe orders.* --env A=b --config c=d --allowed-host * --memory-limit-mb 64 --cpu-limit 250 --pull-policy always \
        --pull-user u --pull-password hunter2 --host-group edge --replicas 2 -o json";
    let ran = run(line).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stdout.contains("hunter2"), "{}", ran.stdout);
    let plan = ran.envelope()["data"][0].clone();
    assert_eq!(
        (
            plan["replicas"].as_u64(),
            plan["selector"]["hostgroup"].as_str()
        ),
        (Some(2), Some("edge"))
    );
    // What a drain needs to place one replica anew.
    let placement = r#"{"replicas":2,"selector":{"hostgroup":"edge"},"environment":""}"#;
    let expected = serde_json::json!({
        "namespace": "shop",
        "name": "counter",
        "annotations": { "washlet.dev/placement": placement },
        "witWorld": {
            "components": [{
                "name": "counter",
                "image": "reg/counter:1",
                "localResources": {
                    "memoryLimitMb": 64,
                    "cpuLimit": 250,
                    "config": { "c": "d", "subscriptions": "orders.*" },
                    "environment": { "A": "b" },
                    "allowedHosts": ["*"],
                },
                "imagePullSecret": { "username": "u", "password": "[redacted]" },
                "imagePullPolicy": "IMAGE_PULL_POLICY_ALWAYS",
            }],
            "hostInterfaces": [
                { "namespace": "wasi", "package": "keyvalue", "interfaces": ["store", "atomics"], "config": { "bucket": "x" } },
                { "namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"],
                    "config": { "host": "a.example.com", "host-aliases": "b.example.com" } },
                { "namespace": "wasmcloud", "package": "messaging", "interfaces": ["handler"] },
            ],
        },
    });
    assert_eq!(plan["request"]["workload"], expected);
}

#[tokio::test]
async fn flags_that_contradict_a_manifest_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.yaml");
    let text = "apiVersion: runtime.wasmcloud.dev/v1alpha1\nkind: WorkloadDeployment\nmetadata: {name: w}\n\
        spec: {replicas: 2, template: {spec: {components: [{name: c, image: i}], kubernetes: {}}}}\n";
    std::fs::write(&file, text).unwrap();
    let start = |flags: &str| format!("workload start {} --dry-run {flags}", file.display());
    assert_eq!(run(&start("--host h")).await.code, 2);
    assert_eq!(run(&start("--id one")).await.code, 2);
    let ran = run(&start("--replicas 1 --host h --id one")).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("'spec.kubernetes' has no effect"),
        "{}",
        ran.stderr
    );
    std::fs::write(&file, text.replace("image", "imag")).unwrap();
    let ran = run(&start("")).await;
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr
            .contains("'spec.template.spec.components[0].imag'"),
        "{}",
        ran.stderr
    );
    assert_eq!(run("workload start /nowhere.yaml").await.code, 2);
}

#[tokio::test]
async fn a_manifest_that_does_not_end_can_be_interrupted() {
    let mut command = wash("workload start -");
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = child.id().unwrap();
    let stdin = child.stdin.take();
    until(SOON, "it listens for SIGINT", async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught & 0b10 != 0).then_some(())
    })
    .await
    .unwrap();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = timeout(SOON, child.wait_with_output()).await.unwrap();
    assert_eq!(ran(ended.unwrap()).code, 130);
    drop(stdin);
}
