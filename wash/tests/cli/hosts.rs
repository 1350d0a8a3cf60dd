//! Commands that ask hosts, which the tests play over a real NATS server.

use std::collections::BTreeMap;

use async_nats::{Client, Message, Subscriber};
use fleet::nats::NatsServer;
use futures::StreamExt;
use subjects::HostId;
use subjects::control::{Command, ERROR_CODE_HEADER, PING, SEAL_KEY_LABEL};
use subjects::wire::*;

use crate::{Ran, ran, run, wash};

/// What values are sealed to.
const KEY: &str = "XAJ34T7K5LZAJR75GNMPZHAAOIMIDULUE6ASQIT6YZ2PG7375F5W23BG";

/// Hosts that answer as a workload's name tells them to.
struct Hosts {
    client: Client,
    pings: Subscriber,
    commands: Subscriber,
    heartbeats: Vec<HostHeartbeat>,
    /// Answers no ping but a second one.
    late: Option<HostHeartbeat>,
    pinged: usize,
    /// Every command is refused with this code.
    refusing: Option<u16>,
    /// One status is refused, when somebody asks for it next.
    busy: bool,
    workloads: BTreeMap<(String, String), WorkloadSummary>,
}

impl Hosts {
    /// Plays hosts with these ids, all of group `edge`.
    async fn play(nats: &NatsServer, ids: &[&str]) -> Self {
        let client = nats.client().await.unwrap();
        let heartbeat = |id: &&str| HostHeartbeat {
            id: (*id).into(),
            hostname: "10.0.0.1".into(),
            friendly_name: format!("host-{id}"),
            labels: [("hostgroup".to_owned(), "edge".to_owned())].into(),
            system_memory_total: 4 << 30,
            system_memory_free: 2 << 30,
            http_port: 8080,
            version: "1.2.3".into(),
            ..HostHeartbeat::default()
        };
        let (pings, commands) = (
            client.subscribe(PING).await.unwrap(),
            client.subscribe("runtime.host.>").await.unwrap(),
        );
        client.flush().await.unwrap();
        let heartbeats = ids.iter().map(heartbeat).collect();
        Self {
            client,
            pings,
            commands,
            heartbeats,
            late: None,
            pinged: 0,
            refusing: None,
            busy: false,
            workloads: BTreeMap::new(),
        }
    }

    /// Says that values can be sealed to the first host.
    fn give_key(&mut self) {
        let labels = &mut self.heartbeats[0].labels;
        labels.insert(SEAL_KEY_LABEL.to_owned(), KEY.to_owned());
    }

    /// Runs a command, answering as long as it lasts.
    async fn run(&mut self, nats: &NatsServer, line: &str) -> Ran {
        let mut command = wash(line);
        command.env("WASH_NATS_URL", nats.url());
        let mut output = std::pin::pin!(command.output());
        loop {
            tokio::select! {
                output = &mut output => return ran(output.unwrap()),
                Some(ping) = self.pings.next() => self.pong(&ping).await,
                Some(command) = self.commands.next() => self.answer(command).await,
            }
        }
    }

    async fn pong(&mut self, ping: &Message) {
        self.pinged += 1;
        if self.pinged == 2 {
            self.heartbeats.extend(self.late.take());
        }
        for heartbeat in &self.heartbeats {
            self.client
                .publish(ping.reply.clone().unwrap(), heartbeat.encode().into())
                .await
                .unwrap();
        }
    }

    async fn answer(&mut self, message: Message) {
        let id = message.subject.split('.').nth(2).unwrap().to_owned();
        if !self.heartbeats.iter().any(|host| host.id == id) {
            return;
        }
        let command = Command::parse(&HostId::new(id.as_str()).unwrap(), &message.subject).unwrap();
        let mut refused = self.refusing;
        if command == Command::Status && std::mem::take(&mut self.busy) {
            refused = Some(503);
        }
        if let Some(code) = refused {
            return self.refuse(message, code).await;
        }
        let reply = match command {
            Command::Start => {
                let request = WorkloadStartRequest::decode(&message.payload).unwrap();
                let silent = request.workload.as_ref().unwrap().name == "silent";
                let reply = self.start(&id, request);
                if silent {
                    return;
                }
                reply
            }
            Command::Status => {
                let request = WorkloadStatusRequest::decode(&message.payload).unwrap();
                let entry = self
                    .workloads
                    .get_mut(&(id.clone(), request.workload_id.clone()));
                let workload_state = match entry {
                    None => WorkloadState::NotFound,
                    Some(summary) if id.starts_with("stuck") => summary.state,
                    // What was starting when asked runs when asked again.
                    Some(summary) => std::mem::replace(&mut summary.state, WorkloadState::Running),
                };
                let workload_status = Some(WorkloadStatus {
                    workload_id: request.workload_id,
                    workload_state,
                    message: String::new(),
                });
                WorkloadStatusResponse { workload_status }.encode()
            }
            Command::Stop => {
                let request = WorkloadStopRequest::decode(&message.payload).unwrap();
                let had = self
                    .workloads
                    .remove(&(id, request.workload_id.clone()))
                    .is_some();
                let workload_state = if had {
                    WorkloadState::Stopping
                } else {
                    WorkloadState::NotFound
                };
                let workload_status = Some(WorkloadStatus {
                    workload_id: request.workload_id,
                    workload_state,
                    message: String::new(),
                });
                WorkloadStopResponse { workload_status }.encode()
            }
            Command::List => {
                let mine = self.workloads.iter().filter(|((host, _), _)| *host == id);
                WorkloadList {
                    workloads: mine.map(|(_, summary)| summary.clone()).collect(),
                }
                .encode()
            }
            Command::Inspect => {
                let request = WorkloadInspectRequest::decode(&message.payload).unwrap();
                let summary = self.workloads.get(&(id, request.workload_id));
                let workload = summary.map(|summary| WorkloadSummary {
                    attempts: 3,
                    reason: "no such image".into(),
                    ..summary.clone()
                });
                WorkloadInspect {
                    workload,
                    ..WorkloadInspect::default()
                }
                .encode()
            }
            other => panic!("{other}"),
        };
        self.client
            .publish(message.reply.unwrap(), reply.into())
            .await
            .unwrap();
    }

    /// Answers as a host does that cannot serve a command, whatever it is.
    async fn refuse(&self, message: Message, code: u16) {
        let status = WorkloadStatus {
            workload_state: WorkloadState::Error,
            message: "the host is\u{1b}[2J draining".into(),
            ..WorkloadStatus::default()
        };
        let reply = WorkloadStatusResponse {
            workload_status: Some(status),
        };
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(ERROR_CODE_HEADER, code.to_string());
        self.client
            .publish_with_headers(message.reply.unwrap(), headers, reply.encode().into())
            .await
            .unwrap();
    }

    fn start(&mut self, host: &str, request: WorkloadStartRequest) -> Vec<u8> {
        let workload = request.workload.unwrap();
        let (state, message) = match workload.name.as_str() {
            "bad" => (WorkloadState::Error, "interface is not\u{1b}[2J available"),
            "slow" | "silent" => (WorkloadState::Starting, ""),
            _ => (WorkloadState::Running, ""),
        };
        let component = &workload.wit_world.unwrap().components[0];
        let component = ComponentSummary {
            name: component.name.clone(),
            image: component.image.clone(),
            ..ComponentSummary::default()
        };
        let summary = WorkloadSummary {
            workload_id: request.workload_id.clone(),
            namespace: workload.namespace,
            name: workload.name,
            state,
            components: vec![component],
            ..WorkloadSummary::default()
        };
        self.workloads
            .insert((host.to_owned(), request.workload_id.clone()), summary);
        let status = WorkloadStatus {
            workload_id: request.workload_id,
            workload_state: state,
            message: message.into(),
        };
        WorkloadStartResponse {
            workload_status: Some(status),
        }
        .encode()
    }
}

#[tokio::test]
async fn a_missing_server_is_unreachable() {
    let mut nats = NatsServer::start().await.unwrap();
    let url = nats.url();
    nats.kill();
    for line in [
        "hosts",
        "workload list",
        "workload start --image x",
        "workload stop a",
        "workload status a",
    ] {
        let ran = run(&format!("{line} --nats-url {url}")).await;
        assert_eq!(ran.code, 4, "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint:"), "{line}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn an_empty_fleet_is_not_an_error_to_look_at() {
    let nats = NatsServer::start().await.unwrap();
    let url = nats.url();
    let ran = run(&format!("hosts --wait 100ms --nats-url {url}")).await;
    assert!(
        ran.code == 0 && ran.stdout.is_empty() && ran.stderr.contains("no host answered"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        run(&format!("-o json hosts --wait 100ms --nats-url {url}"))
            .await
            .envelope()["data"],
        serde_json::json!([])
    );
    let ran = run(&format!("workload list --wait 100ms --nats-url {url}")).await;
    assert!(
        ran.code == 4 && ran.stderr.contains("no host answered"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn hosts_are_listed_for_people_and_programs() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["b", "a"]).await;
    hosts.heartbeats[0].hostname = "fd00::1\u{1b}[31m".into();
    hosts.give_key();
    let ran = hosts.run(&nats, "hosts --wait 1s").await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.stdout);
    assert!(
        lines[0].starts_with("ID") && lines[0].ends_with("KEY"),
        "{}",
        ran.stdout
    );
    assert!(
        lines[1].contains("host-a")
            && lines[1].contains("10.0.0.1:8080")
            && lines[1].contains("2.0 GiB"),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].contains("edge") && lines[2].ends_with(KEY) && !ran.stdout.contains('\u{1b}'),
        "{}",
        lines[2]
    );
    let data = hosts.run(&nats, "hosts --wait 1s -o json").await.envelope()["data"].clone();
    assert_eq!(
        (data[0]["id"].as_str(), data[1]["systemMemoryFree"].as_str()),
        (Some("a"), Some("2147483648"))
    );
}

#[tokio::test]
async fn a_value_is_sealed_to_hosts_that_have_keys() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["with", "without"]).await;
    hosts.give_key();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("value");
    std::fs::write(&file, "canary\n").unwrap();
    let seal = |flags: &str| format!("secrets seal -o json {flags} {}", file.display());
    let ran = hosts.run(&nats, &seal("--host with")).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let data = &ran.envelope()["data"];
    let sealed = data["sealed"].as_str().unwrap();
    assert!(sealed.starts_with("washlet-sealed:1:") && !sealed.contains("canary"));
    assert_eq!(data["keys"], serde_json::json!([KEY]));
    for (flags, code, why) in [
        ("--host without", 1, "has no key to seal to"),
        (
            "--host-group edge",
            1,
            "host 'without' has no key to seal to",
        ),
        (
            "--host nobody --wait 500ms",
            4,
            "host 'nobody' did not answer within 500ms",
        ),
        (
            "--host-group none --wait 500ms",
            4,
            "no host of group 'none' answered",
        ),
    ] {
        let ran = hosts.run(&nats, &seal(flags)).await;
        assert_eq!(ran.code, code, "{flags}: {}", ran.stderr);
        let message = ran.envelope()["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains(why) && !message.contains("canary"),
            "{message}"
        );
    }
    // A key needs nobody to ask.
    let ran = run(&seal(&format!("--key {KEY} --nats-url nats://127.0.0.1:1"))).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for (flags, why) in [
        ("--key XAJ", "is not the key of a host"),
        (&format!("--key {KEY} --put vault"), "must be BUCKET/KEY"),
        (&format!("--key {KEY} --manifest"), "apiVersion"),
    ] {
        let ran = run(&seal(flags)).await;
        assert_eq!(ran.code, 2, "{flags}: {}", ran.stdout);
        let text = ran.stdout + &ran.stderr;
        assert!(text.contains(why), "{text}");
    }
    std::fs::write(&file, "\n").unwrap();
    let ran = run(&seal(&format!("--key {KEY}"))).await;
    assert_eq!(ran.code, 2, "{}", ran.stdout);
}

#[tokio::test]
async fn a_workload_goes_to_hosts_that_fit_until_it_is_stopped() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a", "b", "c"]).await;
    hosts.heartbeats[0].workload_count = 7;
    let start =
        "workload start --image reg/x:1 --name slow --host-group edge --replicas 2 --wait -o json";
    let ran = hosts.run(&nats, start).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let data = ran.envelope()["data"].clone();
    let on: Vec<&str> = data
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["hostId"].as_str().unwrap())
        .collect();
    assert_eq!(on, ["b", "c"]);
    assert!(
        data.as_array()
            .unwrap()
            .iter()
            .all(|row| row["state"] == "RUNNING"),
        "{data}"
    );
    let id = data[0]["workloadId"].as_str().unwrap();

    let list = hosts.run(&nats, "workload list").await;
    assert_eq!(list.stdout.lines().count(), 3, "{}", list.stdout);
    assert!(
        list.stdout.contains("default/slow") && list.stdout.contains("reg/x:1"),
        "{}",
        list.stdout
    );
    let status = hosts
        .run(&nats, &format!("workload status {id} -o json"))
        .await
        .envelope();
    assert_eq!(
        (
            status["data"][0]["hostId"].as_str(),
            status["data"][0]["state"].as_str()
        ),
        (Some("b"), Some("RUNNING"))
    );
    let failed = (&status["data"][0]["attempts"], &status["data"][0]["reason"]);
    assert_eq!(failed, (&3.into(), &"no such image".into()), "{status}");

    let stop = hosts.run(&nats, &format!("workload stop {id}")).await;
    assert!(
        stop.code == 0 && stop.stdout.contains("STOPPING"),
        "{}{}",
        stop.stdout,
        stop.stderr
    );
    assert_eq!(hosts.workloads.len(), 1);
    let gone = hosts.run(&nats, &format!("workload stop {id}")).await;
    assert_eq!(gone.code, 1, "{}", gone.stderr);
    let gone = hosts
        .run(&nats, &format!("workload stop {id} --host b"))
        .await;
    assert_eq!(gone.code, 3, "{}", gone.stderr);
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a"]).await;
    let refused = hosts
        .run(&nats, "workload start --image x --name bad --wait")
        .await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused
            .stdout
            .contains("interface is not\\u{1b}[2J available"),
        "{}",
        refused.stdout
    );
    let envelope = hosts
        .run(&nats, "workload start --image x --name bad -o json")
        .await
        .envelope();
    assert_eq!(envelope["data"][0]["state"], "ERROR");
    for (flags, why) in [
        ("--host-group core", "1 without label hostgroup=core"),
        ("--environment prod", "1 not in environment 'prod'"),
        ("--replicas 2", "only 1 of the 1"),
        ("--memory-limit-mb 3000", "1 short of memory"),
        ("--host z", "host 'z'"),
    ] {
        let ran = hosts
            .run(
                &nats,
                &format!("workload start --image x --timeout 1s {flags}"),
            )
            .await;
        assert_eq!(ran.code, 4, "{flags}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(why) || ran.stdout.contains(why),
            "{flags}: {}{}",
            ran.stdout,
            ran.stderr
        );
    }
    assert!(
        hosts
            .workloads
            .values()
            .all(|workload| workload.name == "bad")
    );
}

#[tokio::test]
async fn a_refusal_is_no_answer() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a"]).await;
    for (code, line) in [
        (400, "workload list"),
        (503, "workload list"),
        (503, "workload status w"),
        (503, "workload stop w --host a"),
        (500, "workload start --image x"),
    ] {
        hosts.refusing = Some(code);
        let ran = hosts.run(&nats, line).await;
        assert_eq!(ran.code, 3, "{line}: {}{}", ran.stdout, ran.stderr);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            said.contains(&format!("the host is\\u{{1b}}[2J draining (code {code})")),
            "{line}: {said}"
        );
    }
    // A status tells what happened to the workload, and is the answer.
    hosts.refusing = Some(409);
    let ran = hosts.run(&nats, "workload status w --host a").await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("ERROR"), "{}", ran.stdout);
}

#[tokio::test]
async fn a_start_is_followed_also_when_its_answer_does_not_come() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a"]).await;
    let start = "workload start --image x --name silent --timeout 1s -o json";
    let ran = hosts.run(&nats, start).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.envelope()["data"][0]["state"], "STARTING");
    let ran = hosts.run(&nats, &format!("{start} --wait")).await;
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
}

#[tokio::test]
async fn one_lost_status_does_not_end_a_wait() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a"]).await;
    hosts.busy = true;
    let start = "workload start --image x --name slow --wait";
    let ran = hosts.run(&nats, start).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(
        !hosts.busy && ran.stdout.contains("RUNNING"),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn every_replica_gets_the_full_patience() {
    let nats = NatsServer::start().await.unwrap();
    let mut ids: Vec<String> = (10..42).map(|number| format!("stuck-{number}")).collect();
    // Asked when one of those that hold up the others has used up its time.
    ids.push("well".into());
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut hosts = Hosts::play(&nats, &ids).await;
    let start = "workload start --image x --name slow --replicas 33 --wait --timeout 3s -o json";
    let ran = hosts.run(&nats, start).await;
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    let data = ran.envelope()["data"].clone();
    assert_eq!(
        (data[32]["hostId"].as_str(), data[32]["state"].as_str()),
        (Some("well"), Some("RUNNING"))
    );
    assert_eq!(data[0]["state"], "STARTING");
}

#[tokio::test]
async fn a_host_that_answers_late_is_found_before_giving_up() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a", "b"]).await;
    hosts.late = hosts.heartbeats.pop();
    let start = "workload start --image x --replicas 2 --timeout 1s";
    let ran = hosts.run(&nats, start).await;
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert_eq!(hosts.workloads.len(), 2);
}

#[tokio::test]
async fn one_workload_that_cannot_be_stopped_does_not_keep_the_others() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &["a"]).await;
    for id in ["first", "last"] {
        let ran = hosts
            .run(&nats, &format!("workload start --image x --id {id}"))
            .await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let ran = hosts
        .run(&nats, "workload stop first gone last -o json")
        .await;
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(hosts.workloads.is_empty());
    let envelope = ran.envelope();
    let message = envelope["message"].as_str().unwrap();
    assert!(
        message.contains("2 of 3 workloads stopped: workload 'gone' is not"),
        "{message}"
    );
    assert_eq!(
        (
            envelope["data"][0]["workloadId"].as_str(),
            envelope["data"][1]["workloadId"].as_str()
        ),
        (Some("first"), Some("last"))
    );
}

#[tokio::test]
async fn an_interrupted_command_ends_with_130() {
    let nats = NatsServer::start().await.unwrap();
    let mut hosts = Hosts::play(&nats, &[]).await;
    let url = nats.url();
    let mut command = wash(&format!("hosts --wait 10m --nats-url {url}"));
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    // It has asked, so it waits for hosts.
    hosts.pings.next().await.unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(ran(child.wait_with_output().await.unwrap()).code, 130);
}
