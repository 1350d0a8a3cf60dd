//! `wash oci` and a real registry.

use fleet::registry::{PASSWORD, Registry, USER};

use crate::{example, ran, run, wash};

#[tokio::test]
async fn what_is_pushed_can_be_pulled_and_inspected() {
    let registry = Registry::start().await.unwrap();
    let reference = format!("{}/acme/hello:1", registry.address());
    let (file, dir) = (example("http-hello"), tempfile::tempdir().unwrap());
    let pushed = run(&format!(
        "-o json oci push {reference} {} --insecure",
        file.display()
    ))
    .await;
    assert_eq!(pushed.code, 0, "{}{}", pushed.stdout, pushed.stderr);
    let digest = pushed.envelope()["data"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let copy = dir.path().join("copy.wasm");
    let pulled = run(&format!(
        "-o json docker pull {reference} {} --insecure",
        copy.display()
    ))
    .await;
    let data = pulled.envelope()["data"].clone();
    assert_eq!(data["digest"], digest.as_str());
    assert_eq!(data["output_path"], copy.to_str().unwrap());
    let (sent, received) = (std::fs::read(&file).unwrap(), std::fs::read(&copy).unwrap());
    assert!(sent == received && data["bytes"] == sent.len());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let text = run(&format!(
        "oci pull {reference}@{digest} {} --insecure",
        copy.display()
    ))
    .await;
    assert_eq!(text.stdout.trim(), digest, "{}", text.stderr);
    let wit = run(&format!("inspect {reference} --insecure")).await;
    assert!(
        wit.stdout.contains("export wasi:http/incoming-handler"),
        "{}",
        wit.stderr
    );
}

#[tokio::test]
async fn a_registry_that_says_no_is_told_from_one_that_is_away() {
    let mut registry = Registry::start_with_login().await.unwrap();
    let line = format!(
        "oci push {}/a:1 {} --insecure",
        registry.address(),
        example("http-hello").display()
    );
    let anonymous = run(&line).await;
    assert_eq!(anonymous.code, 1, "{}", anonymous.stderr);
    assert!(anonymous.stderr.contains("hint:"), "{}", anonymous.stderr);
    let mut known = wash(&line);
    known.args(["-u", USER]).env("WASH_OCI_PASSWORD", PASSWORD);
    let known = ran(known.output().await.unwrap());
    assert_eq!(known.code, 0, "{}", known.stderr);
    let mut wrong = wash(&line);
    wrong.args(["-u", USER]).env("WASH_OCI_PASSWORD", "hunter2");
    let wrong = ran(wrong.output().await.unwrap());
    assert_eq!(wrong.code, 1);
    assert!(!wrong.stderr.contains("hunter2"), "{}", wrong.stderr);
    registry.kill();
    assert_eq!(run(&line).await.code, 4);
    assert_eq!(run("oci pull A/B").await.code, 2);
}
