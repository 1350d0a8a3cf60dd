//! What components are given besides storage: configuration, logs, the outside.

use anyhow::Result;
use fleet::{
    http::get,
    wait::{SOON, until},
};
use serde_json::json;

use crate::{HOST, app, one_host};

/// C22: the component's own configuration wins over the entry's; the environment stays out.
#[tokio::test]
async fn configuration_has_layers() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("config-reader").await?;
    let resources = json!({ "localResources": {
        "config": { "both": "component", "own": "1" },
        "environment": { "ENV_ONLY": "e" },
    } });
    let workload = app("app", &image, resources).interface(
        "wasi:config/store@0.2.0-rc.1",
        &[("both", "entry"), ("shared", "2")],
    );
    host.run_well(&workload).await?;
    let ask = async |path: &str| get(host.http_port(), HOST, path).await;
    assert_eq!(ask("/").await?.body, "both=component\nown=1\nshared=2\n");
    assert_eq!(ask("/both").await?.body, "component\n");
    assert_eq!(ask("/ENV_ONLY").await?.status, 404);
    assert!(
        ask("/?env")
            .await?
            .body
            .lines()
            .any(|line| line == "ENV_ONLY=e")
    );
    Ok(())
}

/// C22: what a guest logs and prints is in the host's log, with whose it is.
#[tokio::test]
async fn guests_are_heard_in_the_log() -> Result<()> {
    let (fleet, host) = one_host(&["--log-level", "info"]).await?;
    let image = fleet.push("logger").await?;
    let workload = app("talker", &image, json!({})).interface("wasi:logging/logging", &[]);
    host.run_well(&workload).await?;
    assert_eq!(
        get(host.http_port(), HOST, "/?text=marker-7").await?.body,
        "logged\n"
    );
    for text in [
        "info marker-7",
        "warn marker-7",
        "critical marker-7",
        "stdout marker-7",
        "stderr marker-7",
    ] {
        until(SOON, &format!("\"{text}\" is logged"), async || {
            host.log()
                .lines()
                .find(|line| line.contains(text) && line.contains("talker"))
                .map(drop)
        })
        .await?;
    }
    assert!(
        !host.log().contains("debug marker-7"),
        "the level of the log counts for guests too"
    );
    Ok(())
}

/// C17: whom a component may ask; the registry plays the outside.
#[tokio::test]
async fn outgoing_requests_need_leave() -> Result<()> {
    let (fleet, host) = one_host(&[]).await?;
    let image = fleet.push("fetch").await?;
    let address = fleet.registry.address();
    let (_, port) = address.split_once(':').unwrap_or_default();
    let url = format!("http://{address}/v2/");
    let with_port = format!("127.0.0.1:{port}");
    let with_scheme = format!("http://127.0.0.1:{port}");
    let denied = "error: HttpRequestDenied\n";
    let prohibited = "error: DestinationIpProhibited\n";
    let cases: [(&[&str], &str, Option<&str>); 9] = [
        (&[], &url, Some(denied)),
        (&["127.0.0.1"], &url, None),
        (&[&with_port], &url, None),
        (&[&with_scheme], &url, None),
        (&["127.0.0.1:1"], &url, Some(denied)),
        (&["https://127.0.0.1"], &url, Some(denied)),
        (&["other.test", "*.test"], &url, Some(denied)),
        // A loopback address has to be named.
        (&["*"], &url, Some(prohibited)),
        // The address at which clouds give out credentials is nobody's business.
        (
            &["*", "169.254.169.254"],
            "http://169.254.169.254/latest",
            Some(prohibited),
        ),
    ];
    for (n, (allowed, url, failure)) in cases.into_iter().enumerate() {
        let resources = json!({ "localResources": { "allowedHosts": allowed } });
        let (id, name) = (format!("w{n}"), format!("w{n}.test"));
        let workload = fleet::workload::Workload::new(&id)
            .component("app", &image, resources)
            .interface(
                "wasi:http/incoming-handler,outgoing-handler",
                &[("host", &name)],
            );
        host.run_well(&workload).await?;
        let reply = get(host.http_port(), &name, &format!("/?url={url}")).await?;
        let expected = failure.map_or((200, "{}"), |failure| (502, failure));
        assert_eq!(
            (reply.status, reply.body.as_str()),
            expected,
            "{allowed:?} asks {url}"
        );
        host.stop(&id).await?;
    }
    Ok(())
}
