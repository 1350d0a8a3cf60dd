//! The control plane: heartbeats, commands, replies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fleet::{
    http,
    proxy::Proxy,
    wait::{SOON, until},
    washlet::{Fleet, Washlet, status_of},
    workload::Workload,
};
use futures::{StreamExt, future::join_all};
use serde_json::{Value, json};

use crate::{HOST, app, one_host, serving};

/// The fields an operator knows; it drops a heartbeat that has any other.
const HEARTBEAT_FIELDS: [&str; 17] = [
    "id",
    "hostname",
    "friendlyName",
    "version",
    "labels",
    "startedAt",
    "osArch",
    "osName",
    "osKernel",
    "systemCpuUsage",
    "systemMemoryTotal",
    "systemMemoryFree",
    "componentCount",
    "workloadCount",
    "imports",
    "exports",
    "httpPort",
];

fn check_heartbeat(heartbeat: &Value) -> Result<()> {
    let fields = heartbeat.as_object().context("a heartbeat is an object")?;
    for (name, value) in fields {
        ensure!(
            name == "environment" || HEARTBEAT_FIELDS.contains(&name.as_str()),
            "an operator does not know the field {name}"
        );
        let well = match name.as_str() {
            "labels" => value.is_object(),
            "imports" | "exports" => value.is_array(),
            "systemCpuUsage" | "httpPort" => value.is_number(),
            "systemMemoryTotal" | "systemMemoryFree" | "componentCount" | "workloadCount" => value
                .as_str()
                .is_some_and(|text| text.parse::<u64>().is_ok()),
            _ => value.as_str().is_some_and(|text| !text.is_empty()),
        };
        ensure!(well, "{name} is {value}");
    }
    for name in [
        "id",
        "hostname",
        "friendlyName",
        "version",
        "startedAt",
        "systemMemoryTotal",
    ] {
        ensure!(fields.contains_key(name), "a heartbeat has {name}");
    }
    Ok(())
}

/// C1: soon, with no field that an operator refuses, and from the same host after a restart.
#[tokio::test]
async fn the_first_heartbeat_comes_soon_and_keeps_its_id() -> Result<()> {
    let (_fleet, mut host) = one_host(&["--host-group", "edge", "--label", "zone=a"]).await?;
    let first = host.heartbeat().clone();
    check_heartbeat(&first)?;
    assert!(
        host.awake_after < Duration::from_secs(5),
        "after {:?}",
        host.awake_after
    );
    let key = &first["labels"]["washlet.dev/xkey"];
    assert_eq!(key.as_str().unwrap_or_default().len(), 56, "{key}");
    let labels = json!({ "hostgroup": "edge", "zone": "a", "washlet.dev/xkey": key });
    assert_eq!(first["labels"], labels);
    let name = first["friendlyName"].as_str().context("a name")?;
    let dns = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    assert!(
        name.chars().all(dns),
        "{name} names a resource in Kubernetes"
    );

    host.restart().await?;
    check_heartbeat(host.heartbeat())?;
    assert_eq!(host.heartbeat()["id"], first["id"]);
    assert_eq!(host.heartbeat()["friendlyName"], first["friendlyName"]);
    assert_ne!(host.heartbeat()["startedAt"], first["startedAt"]);
    Ok(())
}

/// C2, C3: eight pulls from a silent registry delay neither heartbeats nor answers.
#[tokio::test]
async fn hanging_pulls_delay_nothing_else() -> Result<()> {
    let (fleet, host) = one_host(&["--heartbeat-interval", "1s"]).await?;
    let proxy = Proxy::start(&fleet.registry.address()).await?;
    fleet.push("http-hello").await?;
    proxy.pause();
    let image = |n: u32| format!("{}/http-hello:{n}", proxy.address());
    let hanging: Vec<_> = (1..=8)
        .map(|n| app(&format!("w{n}"), &image(n), json!({})))
        .collect();
    let starts = join_all(hanging.iter().map(|w| host.run(w)));

    let meanwhile = async {
        until(SOON, "a pull reaches the registry", async || {
            (proxy.connections() > 0).then_some(())
        })
        .await?;
        let mut heartbeats = host
            .nats()
            .subscribe(format!("runtime.operator.heartbeat.{}", host.id()))
            .await?;
        heartbeats.next().await.context("a heartbeat")?;
        for _ in 0..3 {
            let since = Instant::now();
            heartbeats.next().await.context("a heartbeat")?;
            let gap = since.elapsed();
            ensure!(
                gap > Duration::from_millis(500) && gap < Duration::from_millis(1500),
                "{gap:?}"
            );
        }
        let since = Instant::now();
        let heartbeat = host.request("heartbeat", &json!({})).await?;
        check_heartbeat(&heartbeat)?;
        assert_eq!(heartbeat["id"], host.id());
        assert_eq!(heartbeat["workloadCount"], "8");
        for workload in &hanging {
            assert_eq!(host.status(&workload.id).await?.state, "STARTING");
        }
        host.run_well(&Workload::new("empty")).await?;
        assert_eq!(host.stop("w8").await?.state, "STOPPING");
        ensure!(
            since.elapsed() < Duration::from_secs(2),
            "answers took {:?}",
            since.elapsed()
        );
        proxy.resume();
        Ok(())
    };
    let (states, done) = tokio::join!(starts, meanwhile);
    done?;
    // Only tag 1 exists; the registry says so for the others once it speaks.
    let states: Vec<_> = states.into_iter().collect::<Result<_>>()?;
    assert_eq!(states[0].state, "RUNNING", "{states:?}");
    assert_eq!(states[1].state, "ERROR", "{states:?}");
    Ok(())
}

/// C4, C6: the words of the protocol.
#[tokio::test]
async fn an_empty_workload_starts_and_stops() -> Result<()> {
    let (_fleet, host) = one_host(&[]).await?;
    let started = host.run(&Workload::new("empty")).await?;
    assert_eq!(
        (started.id.as_str(), started.state.as_str()),
        ("empty", "RUNNING")
    );
    assert_eq!(started.message, "Workload started successfully");
    assert_eq!(host.status("empty").await?.message, "Workload is Running");
    let stopped = host.stop("empty").await?;
    assert_eq!(
        (stopped.id.as_str(), stopped.state.as_str()),
        ("empty", "STOPPING")
    );
    assert_eq!(stopped.message, "Workload stopped successfully");

    let status = host.status("empty").await?;
    assert_eq!(
        (status.id.as_str(), status.state.as_str()),
        ("empty", "NOT_FOUND")
    );
    assert_eq!(status.message, "Workload not found: empty");
    let stopped = host.stop("empty").await?;
    assert_eq!(stopped.state, "NOT_FOUND");
    assert_eq!(stopped.message, "Workload not found");
    Ok(())
}

/// C5: the same again is a question; something else under the same id replaces it.
#[tokio::test]
async fn a_second_start_disturbs_nothing() -> Result<()> {
    let (fleet, host) = serving("http-hello").await?;
    let image = format!("{}/http-hello:1", fleet.registry.address());
    let same = host.run(&app("app", &image, json!({}))).await?;
    assert_eq!((same.id.as_str(), same.state.as_str()), ("app", "RUNNING"));

    let other = host
        .run(&app("app", &image, json!({ "poolSize": 2 })))
        .await?;
    assert_eq!(
        (other.id.as_str(), other.state.as_str()),
        ("app", "RUNNING")
    );
    assert_eq!(host.status("app").await?.state, "RUNNING");
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    Ok(())
}

/// C7: the error names component and reference, and the id can be used again.
#[tokio::test]
async fn a_missing_image_is_named_and_its_id_stays_free() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = format!("{}/nothing/here:9", fleet.registry.address());
    let refused = host.run(&app("app", &image, json!({}))).await?;
    assert_eq!(
        (refused.id.as_str(), refused.state.as_str()),
        ("app", "ERROR")
    );
    let words = &refused.message;
    assert!(
        words.contains("failed to pull image for component 'app'"),
        "{words}"
    );
    assert!(words.contains(&image), "{words}");
    let status = host.status("app").await?;
    assert_eq!(status.state, "ERROR");
    assert!(status.message.contains(&image), "{}", status.message);

    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await
}

/// C8, C10 and their kin: what cannot be honoured is refused with the words that help, and
/// without what is secret.
#[tokio::test]
async fn what_cannot_be_honoured_is_refused() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let hello = fleet.push("http-hello").await?;
    let counter = fleet.push("http-counter").await?;
    let needy = fleet.push("unserved").await?;
    let resources = |resources: Value| json!({ "localResources": resources });
    let cases: [(Workload, &[&str]); 11] = [
        (
            app("bad-hosts", &hello, resources(json!({ "allowedHosts": ["*foo", "ok.test", "http://x/path"] }))),
            &["invalid local_resources", "*foo", "http://x/path"],
        ),
        (
            app("no-provider", &needy, json!({})).interface("acme:missing/thing@1.0.0", &[("password", "hunter2")]),
            &["requested interfaces that are not available on this host", "acme:missing"],
        ),
        (
            app("later", &hello, json!({})).interface("wasmcloud:blobstore/blobstore@1.0.0", &[]),
            &["requested interfaces that are not available on this host", "wasmcloud:blobstore"],
        ),
        (app("undeclared", &needy, json!({})), &["acme:missing"]),
        (app("undeclared-store", &counter, json!({})), &["wasi:keyvalue", "hostInterfaces"]),
        (
            app("no-backend", &counter, json!({}))
                .interface("wasi:keyvalue/store,atomics", &[("backend", "tape"), ("password", "hunter2")]),
            &["tape"],
        ),
        (
            app("bad-setting", &counter, json!({}))
                .interface("wasi:keyvalue/store,atomics", &[("passwort", "hunter2")]),
            &["passwort"],
        ),
        (
            Workload::new("no-host")
                .component("app", &hello, json!({}))
                .interface("wasi:http/incoming-handler", &[("host", "under_score")]),
            &["under_score", "is not a valid RFC 1123 hostname"],
        ),
        (
            app("no-volume", &hello, json!({}))
                .with(json!({ "volumes": [{ "name": "v", "hostPath": { "localPath": "/nowhere/at/all" } }] })),
            &["volumes"],
        ),
        (app("bad-image", "UPPER CASE", json!({})), &["UPPER CASE"]),
        (app("too-much", &hello, resources(json!({ "memoryLimitMb": 1_000_000 }))), &["memory"]),
    ];
    for (workload, words) in &cases {
        let refused = host.run(workload).await?;
        let (id, text) = (&workload.id, &refused.message);
        assert_eq!(refused.state, "ERROR", "{id}: {text}");
        assert_eq!(&refused.id, id);
        for word in *words {
            assert!(
                text.contains(word),
                "{id}: \"{text}\" does not say \"{word}\""
            );
        }
        assert!(!text.contains("hunter2"), "{id}: \"{text}\" tells a secret");
    }
    assert!(!host.log().contains("hunter2"), "the log tells a secret");
    Ok(())
}

/// C9: whatever arrives is answered, and the host goes on.
#[tokio::test]
async fn nonsense_is_answered() -> Result<()> {
    let (_fleet, host) = one_host(&[]).await?;
    let deep = "[".repeat(100_000);
    let nonsense = [
        "",
        "{",
        "null",
        "[]",
        "\u{0}\u{1}",
        "{}",
        r#"{"workloadId":""}"#,
        r#"{"workloadId":"w"}"#,
        r#"{"workloadId":"w","workload":7}"#,
        r#"{"workloadId":"w","workload":{"witWorld":{"components":[{"poolSize":"many"}]}}}"#,
        r#"{"workloadId":"w","workload":{"witWorld":{"components":[{"imagePullPolicy":"SOMETIMES"}]}}}"#,
        &deep,
    ];
    for payload in nonsense {
        let shown: String = payload.chars().take(80).collect();
        let reply = host.send("workload.start", payload).await?;
        let status = status_of(&serde_json::from_slice(&reply.payload)?)?;
        assert_eq!(status.state, "ERROR", "{shown}");
        assert!(!status.message.is_empty(), "{shown}");
        if payload.contains(r#""w""#) {
            assert_eq!(status.id, "w", "{shown}");
        }
        let headers = reply.headers.context("the reply has headers")?;
        assert!(headers.get("Nats-Service-Error-Code").is_some(), "{shown}");
        assert_eq!(
            headers.get("Washlet-Retry").map(|v| v.as_str()),
            Some("false"),
            "{shown}"
        );
    }
    for command in ["workload.dance", "workload", "x.y.z", "host.explode"] {
        let reply = host.send(command, "{}").await?;
        assert!(
            reply
                .headers
                .is_some_and(|h| h.get("Nats-Service-Error-Code").is_some()),
            "{command}"
        );
    }
    // A newer operator may know more fields.
    let mut newer = Workload::new("newer").request();
    newer["fieldOfTheFuture"] = json!({ "a": 1 });
    let status = status_of(&host.request("workload.start", &newer).await?)?;
    assert_eq!(status.state, "RUNNING", "{}", status.message);
    Ok(())
}

/// Commands for one id act in the order they came, also while a stop waits for a call in flight.
#[tokio::test]
async fn a_start_after_a_stop_starts_anew_and_a_further_stop_takes_it_back() -> Result<()> {
    for stopped_again in [false, true] {
        let (fleet, host) = serving("hostile").await?;
        let workload = app(
            "app",
            &format!("{}/hostile:1", fleet.registry.address()),
            json!({}),
        );
        let slow = http::get(host.http_port(), HOST, "/slow?ms=2000");
        let commands = async {
            http::get(host.http_port(), HOST, "/slow?ms=200").await?;
            let again = async {
                until(SOON, "the workload is stopping", async || {
                    (host.status("app").await.ok()?.state == "STOPPING").then_some(())
                })
                .await?;
                let stop = async {
                    // On one connection: an answer to what was sent after the start.
                    host.status("app").await?;
                    match stopped_again {
                        true => host.stop("app").await.map(drop),
                        false => Ok(()),
                    }
                };
                let (started, stopped) = tokio::join!(host.run(&workload), stop);
                stopped.and(started)
            };
            let (stopped, started) = tokio::join!(host.stop("app"), again);
            assert_eq!(stopped?.state, "STOPPING");
            started
        };
        let (slow, started) = tokio::join!(slow, commands);
        assert_eq!(slow?.body, "slow\n");
        let (started, end) = (
            started?,
            if stopped_again {
                "NOT_FOUND"
            } else {
                "RUNNING"
            },
        );
        let said = if stopped_again { "STOPPING" } else { "RUNNING" };
        assert_eq!(started.state, said, "{}", started.message);
        until(SOON, "the last command holds", async || {
            (host.status("app").await.ok()?.state == end).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// C11: the call in flight ends well, then nothing answers.
#[tokio::test]
async fn stopping_finishes_calls_in_flight() -> Result<()> {
    let (_fleet, host) = serving("hostile").await?;
    let slow = http::get(host.http_port(), HOST, "/slow?ms=1500");
    let stop = async {
        // The call has to be in the guest first: a second answer proves that requests get there.
        http::get(host.http_port(), HOST, "/slow?ms=200").await?;
        host.stop("app").await
    };
    let (slow, stopped) = tokio::join!(slow, stop);
    assert_eq!(slow?.body, "slow\n");
    assert_eq!(stopped?.state, "STOPPING");
    until(SOON, "the workload is gone", async || {
        (host.status("app").await.ok()?.state == "NOT_FOUND").then_some(())
    })
    .await?;
    assert_eq!(http::get(host.http_port(), HOST, "/ok").await?.status, 404);
    Ok(())
}

/// C27: told to end, a host finishes what it does, says goodbye and exits 0.
#[tokio::test]
async fn sigterm_drains_and_exits_well() -> Result<()> {
    let (fleet, mut host) = one_host(&["--drain-delay", "500ms"]).await?;
    let image = fleet.push("hostile").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    let subject = format!("washlet.event.{}.goodbye", host.id());
    let mut goodbye = host.listen(&subject).await?;
    let port = host.http_port();
    let slow = http::get(port, HOST, "/slow?ms=2000");
    let end = async {
        http::get(port, HOST, "/slow?ms=200").await?;
        host.terminate();
        host.wait_exit(SOON).await
    };
    let (slow, status) = tokio::join!(slow, end);
    assert_eq!(slow?.body, "slow\n");
    assert_eq!(status?.code(), Some(0));
    tokio::time::timeout(SOON, goodbye.next())
        .await?
        .context("a goodbye")?;
    Ok(())
}

/// The server's death and return costs neither workloads nor, later, answers.
#[tokio::test]
async fn a_lost_nats_server_comes_back() -> Result<()> {
    let (mut fleet, host) = one_host(&["--heartbeat-interval", "1s"]).await?;
    let image = fleet.push("http-hello").await?;
    host.run_well(&app("app", &image, json!({}))).await?;
    fleet.nats.kill();
    assert_eq!(http::get(host.http_port(), HOST, "/").await?.status, 200);
    fleet.nats.restart().await?;
    until(SOON, "the host answers again", async || {
        (host.status("app").await.ok()?.state == "RUNNING").then_some(())
    })
    .await
}

/// Every host of a fleet answers one question, each for itself.
#[tokio::test]
async fn a_ping_finds_all_hosts() -> Result<()> {
    let fleet = Fleet::start().await?;
    let hosts = [fleet.host(&[]).await?, fleet.host(&[]).await?];
    let client = hosts[0].nats();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply("washlet.ping", inbox, "".into())
        .await?;
    let mut found = Vec::new();
    for _ in &hosts {
        let answer = tokio::time::timeout(SOON, answers.next())
            .await?
            .context("an answer")?;
        let heartbeat: Value = serde_json::from_slice(&answer.payload)?;
        check_heartbeat(&heartbeat)?;
        found.push(heartbeat["id"].as_str().unwrap_or_default().to_owned());
    }
    found.sort();
    let mut ids: Vec<_> = hosts.iter().map(Washlet::id).collect();
    ids.sort_unstable();
    assert_eq!(found, ids);
    Ok(())
}
