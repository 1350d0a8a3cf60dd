//! Secrets everywhere, all of them with one word in common, which nobody who looks may find.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use fleet::{
    http,
    nats::NatsServer,
    postgres::{self, PostgresServer},
    process::Process,
    registry::{PASSWORD, Registry, USER},
    tools,
    wait::{SOON, until},
    washlet::Washlet,
    workload::{self, Workload},
};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{HOST, admin::ADMIN, app};

/// What every secret here begins with.
const CANARY: &str = "cAnArY4711";

/// Everything that our own crates have to say.
const LEVEL: &str = "info,wash=trace,washlet=trace,engine=trace,capabilities=trace,subjects=trace,\
                     plugins_nats=trace,plugins_local=trace,plugins_postgres=trace";

/// The most that is kept of a log, and so looked at.
const LOG_BYTES_MAX: usize = 4 << 20;

/// The canary as it is, in hexadecimal, and in base64 wherever it begins in what is encoded.
fn disguises() -> Vec<String> {
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![CANARY.to_owned(), hex.to_uppercase(), hex];
    for before in 0..3 {
        let bytes = [vec![0; before], CANARY.as_bytes().to_vec()].concat();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            // What the bytes beside it have a part in says nothing.
            let (first, end) = ((before * 8_usize).div_ceil(6), bytes.len() * 8 / 6);
            all.extend(engine.encode(&bytes).get(first..end).map(str::to_owned));
        }
    }
    all
}

/// The lines of `text` in which the canary shows, in whatever disguise.
fn seen(text: &str) -> Vec<String> {
    let disguises = disguises();
    let shows = |line: &&str| disguises.iter().any(|disguise| line.contains(disguise));
    text.lines().filter(shows).map(str::to_owned).collect()
}

/// A secret.
fn secret(of: &str) -> String {
    format!("{CANARY}-{of}")
}

/// The files below `dir` in which the canary shows.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            found.extend(files(&path)?);
        } else if kind.is_file() {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let text = format!("{}\n{}", path.display(), String::from_utf8_lossy(&bytes));
            if !seen(&text).is_empty() {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}

/// What a host that never joins a fleet says until `end`, started with `args`.
async fn outcast(args: &[&str], postgres: &str, end: &str) -> Result<String> {
    let state = TempDir::new()?;
    let state = state.path().display().to_string();
    let fixed = ["host", "--state-dir", &state, "--log-level", LEVEL];
    let args = fixed.iter().chain(args);
    let variables = [("WASH_POSTGRES_URL", postgres)];
    let process = Process::start(&tools::built("wash")?, args, &variables)?;
    let said = || format!("{}{}", process.stdout.text(), process.stderr.text());
    until(SOON, &format!("it says \"{end}\""), async || {
        said().contains(end).then_some(())
    })
    .await?;
    Ok(said())
}

/// The start requests that succeed, fail and are refused, each with secrets in it.
fn workloads(registry: &str, images: &[String; 4]) -> Vec<Workload> {
    const SECRETS: &str = "wasmcloud:secrets/store,reveal@0.1.0-draft";
    const STORE: &str = "wasi:keyvalue/store,atomics,batch@0.2.0-draft";
    let [reader, vault, kv, hostile] = images;
    let resources = json!({
        "config": { "token": secret("config") },
        "environment": { "PASSWORD": secret("environment") },
    });
    let pulled_by = |password: &str| json!({ "username": USER, "password": password });
    let fields = json!({ "localResources": resources, "imagePullSecret": pulled_by(PASSWORD) });
    let with = |key: &str, value: Value| {
        let mut fields = fields.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
        fields
    };
    let named = |id: &str, image: &str, fields: Value| {
        let workload = Workload::new(id).component("app", image, fields);
        workload.http(&format!("{id}.test"))
    };
    let entry = secret("entry");
    let settings = [("key", entry.as_str())];
    let unknown = [("backend", "nats"), ("passwort", &entry)];
    let refused = json!({
        "config": { "token": secret("config") },
        "environment": { "PASSWORD": secret("environment") },
        "allowedHosts": ["*foo"],
    });
    vec![
        named("reader", reader, fields.clone())
            .interface("wasi:config/store@0.2.0-rc.1", &settings),
        named("vault", vault, fields.clone()).interface(SECRETS, &settings),
        named("files", vault, fields.clone()).interface(SECRETS, &[("backend", "files")]),
        named("env", vault, fields.clone()).interface(SECRETS, &[("backend", "env")]),
        named("kv", kv, fields.clone()).interface(STORE, &[("backend", "postgres")]),
        named("trap", hostile, fields.clone()),
        // Not allowed to pull, in two ways, and nothing there.
        named(
            "stranger",
            &hostile.replace("hostile:1", "hostile:2"),
            with("imagePullSecret", pulled_by(&secret("wrong"))),
        ),
        named("absent", &format!("{registry}/absent:1"), fields.clone()),
        // Refused for something else, or for what the secret is in.
        app("bad-hosts", reader, with("localResources", refused)),
        app("bad-key", kv, fields.clone()).interface(STORE, &unknown),
        app("bad-secrets", vault, fields.clone())
            .interface(SECRETS, &[("backend", "files"), ("token", &entry)]),
        app("bad-interface", reader, fields.clone()).interface("acme:missing/thing", &settings),
        app("too-much", reader, fields.clone()).with(json!({ "volumes": [
            { "name": "v", "hostPath": { "localPath": "/nowhere" } },
        ] })),
    ]
}

/// Requests that cannot be read, at the place where the secret is.
fn unreadable() -> Vec<String> {
    let token = secret("unreadable");
    let component = |fields: Value| {
        let world = json!({ "components": [fields] });
        json!({ "workloadId": "w", "workload": { "witWorld": world } }).to_string()
    };
    vec![
        component(json!({ "localResources": { "environment": token } })),
        component(json!({ "localResources": { "config": [token] } })),
        component(json!({ "localResources": { "config": { "a": { "b": token } } } })),
        component(json!({ "imagePullSecret": token })),
        component(json!({ "imagePullSecret": { "username": [token], "password": 1 } })),
        component(json!({ "imagePullPolicy": token })),
        format!("{{\"workloadId\":\"w\",\"workload\":{{\"password\":\"{token}\" nonsense"),
        format!("{{\"workloadId\":\"w\",\"workload\":\"{token}\"}}"),
    ]
}

/// Whatever succeeds, fails or is refused: no log, heartbeat, event, reply, metric or file shows a secret.
#[tokio::test]
async fn no_secret_shows_anywhere() -> Result<()> {
    let hidden = STANDARD_NO_PAD.encode(format!("user:{}", secret("x")));
    for shown in [&secret("x"), &hidden] {
        assert_eq!(seen(shown).len(), 1, "the search finds what is there");
    }

    let lines = format!(
        "authorization {{ users: [ {{ user: host, password: \"{}\" }}, {{ user: test, password: test }} ] }}\n\
         no_auth_user: test",
        secret("nats")
    );
    let (nats, registry, server) = tokio::try_join!(
        NatsServer::start_with(&lines),
        Registry::start_with_login(),
        PostgresServer::start(),
    )?;
    let database = server.url();
    let database = database.replace(postgres::PASSWORD, &secret("postgres"));
    let dir = TempDir::new()?;
    fs::create_dir(dir.path().join("default"))?;
    fs::write(dir.path().join("default/key"), secret("file"))?;
    let secrets = dir.path().display().to_string();
    let args = [
        &ADMIN[..],
        &[
            "--log-level",
            LEVEL,
            "--heartbeat-interval",
            "500ms",
            "--drain-delay",
            "0s",
        ],
        &["--secrets-dir", &secrets, "--secrets-env-prefix", "CANARY_"],
        &["--data-nats-user", "host"],
    ]
    .concat();
    let (password, in_environment) = (secret("nats"), secret("env"));
    let variables = [
        ("WASH_POSTGRES_URL", database.as_str()),
        ("WASH_DATA_NATS_PASSWORD", &password),
        ("CANARY_default__key", &in_environment),
    ];
    let url = format!("nats://host:{password}@{}", nats.address());
    let mut traffic = nats.client().await?.subscribe(">").await?;
    let mut host = Washlet::start_at(&nats, [&url, &nats.url()], &args, &variables).await?;

    let mut images = Vec::new();
    for name in ["config-reader", "vault", "kv", "hostile"] {
        let image = format!("{name}:1");
        images.push(registry.push(&image, workload::component(name)?).await?);
    }
    let images: [String; 4] = images.try_into().ok().context("four images")?;
    let mut states = String::new();
    for workload in workloads(&registry.address(), &images) {
        let status = host.run(&workload).await?;
        states.push_str(&format!("{} {}\n", workload.id, status.state));
        let payload = json!({ "workloadId": workload.id });
        host.request("workload.inspect", &payload).await?;
    }
    for (id, state) in [
        ("reader", "RUNNING"),
        ("vault", "RUNNING"),
        ("kv", "RUNNING"),
    ]
    .into_iter()
    .chain([
        ("stranger", "ERROR"),
        ("absent", "ERROR"),
        ("bad-key", "ERROR"),
    ]) {
        assert!(states.contains(&format!("{id} {state}\n")), "{states}");
    }
    for payload in unreadable() {
        for command in ["workload.start", "workload.status", "workload.stop"] {
            host.send(command, &payload).await?;
        }
    }
    host.request("workload.list", &json!({})).await?;
    for (id, path, status) in [
        ("reader", "/token", 200),
        ("vault", "/key", 200),
        ("files", "/key", 200),
        ("env", "/key", 200),
        ("env", "/none", 404),
        ("trap", "/trap", 500),
    ] {
        let reply = http::get(host.http_port(), &format!("{id}.test"), path).await?;
        assert_eq!(reply.status, status, "{id} {path}: {}", reply.body);
    }
    // The database refuses the host, and HTTP clients have secrets, too.
    let reply = http::get(host.http_port(), "kv.test", "/bucket/key").await?;
    assert_eq!((reply.status, seen(&reply.body)), (500, Vec::new()));
    let path = format!("/?token={}", secret("query"));
    for name in ["trap.test", "nobody.test", HOST] {
        let request = http::client()?.get(format!("http://127.0.0.1:{}{path}", host.http_port()));
        let bearer = format!("Bearer {}", secret("header"));
        let request = request.header("host", name).header("authorization", bearer);
        request.send().await?;
    }

    let mut log = String::new();
    let mut pages = String::new();
    for restarted in [false, true] {
        if restarted {
            log.push_str(&format!("{}{}", host.log(), host.printed()));
            host.restart().await?;
            until(SOON, "what ran before runs again", async || {
                let reply = http::get(host.http_port(), "vault.test", "/key").await;
                (reply.ok()?.status == 200).then_some(())
            })
            .await?;
        }
        for page in ["/metrics", "/readyz", "/livez", "/nothing"] {
            pages.push_str(&host.admin(page).await?.1);
        }
    }
    host.stop("vault").await?;
    host.terminate();
    assert_eq!(host.wait_exit(SOON).await?.code(), Some(0));
    log.push_str(&format!("{}{}", host.log(), host.printed()));
    assert!(log.contains("DEBUG"), "the log says little");
    assert!(
        log.len() < LOG_BYTES_MAX,
        "the beginning of the log is lost"
    );

    let mut sent = String::new();
    while let Some(Some(message)) = traffic.next().now_or_never() {
        // Those are ours; replies and heartbeats, events and errors are the host's.
        if !message.subject.starts_with("runtime.host.") {
            let payload = String::from_utf8_lossy(&message.payload);
            sent.push_str(&format!(
                "{} {:?} {payload}\n",
                message.subject, message.headers
            ));
        }
    }
    for of in ["runtime.operator.heartbeat.", "washlet.event.", "_INBOX."] {
        assert!(sent.contains(of), "nothing was heard of {of}");
    }

    let good = format!("postgres://fleet:{}@127.0.0.1:1/fleet", secret("unused"));
    let wrong = format!("nats://host:{}@{}", secret("wrong"), nats.address());
    let no_url = format!("nats://host:{}@", secret("no-url"));
    let no_dsn = format!("postgres://fleet:{}@host:port/fleet", secret("no-dsn"));
    let scheduler = "--scheduler-nats-url";
    let outcasts = [
        outcast(&[scheduler, &wrong], &good, "waiting for NATS reason").await?,
        outcast(&[scheduler, &no_url], &good, "invalid").await?,
        outcast(&[scheduler, "nats://127.0.0.1:1"], &no_dsn, "postgres").await?,
    ];
    for (place, text) in [
        ("the log", log),
        ("a page of the admin endpoint", pages),
        ("NATS", sent),
        ("the log of a host that does not start", outcasts.concat()),
    ] {
        assert_eq!(seen(&text), Vec::<String>::new(), "{place} shows a secret");
    }
    assert_eq!(files(host.state_dir())?, Vec::<String>::new());
    Ok(())
}
