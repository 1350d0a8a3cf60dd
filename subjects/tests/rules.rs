//! The proto3 JSON rules, and what messages keep to themselves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use subjects::wire::*;
use time::macros::datetime;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/tests/golden/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

fn heartbeat(value: Value) -> Result<HostHeartbeat, String> {
    HostHeartbeat::decode(value.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn component(value: Value) -> Result<Component, String> {
    Component::decode(value.to_string().as_bytes()).map_err(|error| error.to_string())
}

/// Every field is named, so that a new one does not compile here: operators refuse it.
#[test]
fn a_heartbeat_has_the_fields_of_the_proto() {
    let interface = |namespace: &str, package: &str, version: &str, names: &[&str]| WitInterface {
        namespace: namespace.into(),
        package: package.into(),
        version: version.into(),
        interfaces: names.iter().map(|name| (*name).into()).collect(),
        config: map(&[]),
        name: String::new(),
    };
    let heartbeat = HostHeartbeat {
        id: "0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d".into(),
        hostname: "10.42.0.17".into(),
        friendly_name: "brave-otter-4821".into(),
        version: "2.7.0".into(),
        labels: map(&[("hostgroup", "default")]),
        started_at: Some(datetime!(2026-07-01 12:00:00.123456789 +2)),
        os_arch: "x86_64".into(),
        os_name: "linux".into(),
        os_kernel: "unix".into(),
        system_cpu_usage: 12.5,
        system_memory_total: 67_430_400_000,
        system_memory_free: 1_234_567_168,
        component_count: 2,
        workload_count: 1,
        imports: vec![interface(
            "wasi",
            "keyvalue",
            "0.2.0-draft",
            &["store", "atomics", "batch"],
        )],
        exports: vec![interface("wasmcloud", "messaging", "0.3.0", &["handler"])],
        http_port: 9191,
        environment: "default".into(),
    };
    let written: Value = serde_json::from_slice(&heartbeat.encode()).unwrap();
    let expected: Value = serde_json::from_slice(&golden("HostHeartbeat.published")).unwrap();
    assert_eq!(written, expected);
    assert_eq!(serde_json::to_value(&heartbeat).unwrap(), expected);
    assert_eq!(
        serde_json::from_value::<HostHeartbeat>(expected).unwrap(),
        heartbeat
    );
}

#[test]
fn the_fields_of_a_start_mean_what_they_say() {
    let request =
        WorkloadStartRequest::decode(&golden("WorkloadStartRequest.every-field")).unwrap();
    let resources = LocalResources {
        memory_limit_mb: 64,
        cpu_limit: 500,
        config: map(&[("some_key", "v")]),
        environment: map(&[("LOG_LEVEL", "debug")]),
        volume_mounts: vec![VolumeMount {
            name: "data".into(),
            mount_path: "/data".into(),
            read_only: true,
        }],
        allowed_hosts: vec!["https://api.example.com".into()],
        allowed_ip_name_lookups: vec!["*.example.com".into()],
        allowed_host_loopback_ports: vec!["5432/tcp".into()],
    };
    let secret = ImagePullSecret {
        username: "u".into(),
        password: "p".into(),
    };
    let component = Component {
        name: "hello".into(),
        image: "registry.example.com/hello:1".into(),
        local_resources: Some(resources.clone()),
        pool_size: 4,
        max_invocations: i32::MAX,
        max_concurrency: -1,
        image_pull_secret: Some(secret.clone()),
        image_pull_policy: ImagePullPolicy::Never,
    };
    let interface = WitInterface {
        namespace: "wasi".into(),
        package: "keyvalue".into(),
        version: "0.2.0-draft".into(),
        interfaces: vec!["store".into()],
        config: map(&[("backend", "nats")]),
        name: "cache".into(),
    };
    let host_path = HostPath {
        local_path: "/srv/data".into(),
    };
    let workload = Workload {
        namespace: "default".into(),
        name: "hello".into(),
        annotations: map(&[("some_key", "v")]),
        service: Some(Service {
            image: "registry.example.com/svc:1".into(),
            local_resources: Some(resources),
            max_restarts: u64::MAX,
            image_pull_secret: Some(secret),
            image_pull_policy: ImagePullPolicy::Always,
        }),
        wit_world: Some(WitWorld {
            components: vec![component, Component::default()],
            host_interfaces: vec![interface],
        }),
        volumes: vec![
            Volume {
                name: "data".into(),
                source: VolumeSource::HostPath(host_path),
            },
            Volume {
                name: "tmp".into(),
                source: VolumeSource::EmptyDir,
            },
        ],
    };
    assert_eq!(
        request,
        WorkloadStartRequest {
            workload_id: "7c1a".into(),
            workload: Some(workload)
        }
    );
}

#[test]
fn defaults_are_not_written_but_present_messages_are() {
    assert_eq!(HostHeartbeat::default().encode(), b"{}");
    assert_eq!(WorkloadStatus::default().encode(), b"{}");
    let empty = Component {
        local_resources: Some(LocalResources::default()),
        ..Component::default()
    };
    assert_eq!(empty.encode(), br#"{"localResources":{}}"#);
    assert_eq!(Component::decode(&empty.encode()).unwrap(), empty);
}

#[test]
fn integers_are_read_as_numbers_and_as_text() {
    for value in [json!(1000), json!("1000"), json!(1e3)] {
        assert_eq!(
            heartbeat(json!({"workloadCount": value}))
                .unwrap()
                .workload_count,
            1000
        );
        assert_eq!(
            heartbeat(json!({"httpPort": value})).unwrap().http_port,
            1000
        );
        assert_eq!(
            component(json!({"poolSize": value})).unwrap().pool_size,
            1000
        );
    }
    let max = json!({"workloadCount": u64::MAX});
    assert_eq!(
        heartbeat(max).unwrap().encode(),
        br#"{"workloadCount":"18446744073709551615"}"#
    );
    assert_eq!(
        component(json!({"poolSize": "-2147483648"}))
            .unwrap()
            .pool_size,
        i32::MIN
    );

    for value in [
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("1 "),
        json!(""),
        json!(true),
        json!([1]),
    ] {
        let error = heartbeat(json!({"workloadCount": value})).unwrap_err();
        assert!(
            error.starts_with("'workloadCount' must be an integer from 0 to 18446744073709551615"),
            "{error}"
        );
    }
    for value in [json!(2_147_483_648_u32), json!("-2147483649")] {
        assert!(
            component(json!({"poolSize": value}))
                .unwrap_err()
                .starts_with("'poolSize' must be")
        );
    }
}

#[test]
fn floats_are_written_short_and_read_in_any_spelling() {
    for (value, written) in [
        (json!(12.3), json!(12.3)),
        (json!("12.3"), json!(12.3)),
        (json!(100), json!(100.0)),
        (json!("NaN"), json!("NaN")),
        (json!("-Infinity"), json!("-Infinity")),
    ] {
        let message = heartbeat(json!({"systemCpuUsage": value})).unwrap();
        let read: Value = serde_json::from_slice(&message.encode()).unwrap();
        assert_eq!(read, json!({"systemCpuUsage": written}));
    }
    assert!(heartbeat(json!({"systemCpuUsage": "much"})).is_err());
}

#[test]
fn enums_are_read_by_name_and_number() {
    for value in [json!("WORKLOAD_STATE_NOT_FOUND"), json!(6), json!("6")] {
        let status = WorkloadStatus::decode(json!({"workloadState": value}).to_string().as_bytes());
        assert_eq!(status.unwrap().workload_state, WorkloadState::NotFound);
    }
    for value in [json!("NotFound"), json!(4), json!(-1), json!({})] {
        let error = component(json!({"imagePullPolicy": value})).unwrap_err();
        let start = "'imagePullPolicy' must be one of IMAGE_PULL_POLICY_UNSPECIFIED, IMAGE_PULL_POLICY_ALWAYS, ";
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn times_are_read_in_any_zone_and_written_in_utc() {
    for (text, written) in [
        ("2026-07-01T10:00:00Z", "2026-07-01T10:00:00+00:00"),
        (
            "2026-07-01T12:00:00.000000001+02:00",
            "2026-07-01T10:00:00.000000001+00:00",
        ),
        ("1970-01-01T00:00:00-00:00", "1970-01-01T00:00:00+00:00"),
    ] {
        let message = heartbeat(json!({"startedAt": text})).unwrap();
        let read: Value = serde_json::from_slice(&message.encode()).unwrap();
        assert_eq!(read, json!({"startedAt": written}));
    }
    for value in [
        json!("yesterday"),
        json!(0),
        json!(""),
        json!("0000-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59-01:00"),
    ] {
        let error = heartbeat(json!({"startedAt": value})).unwrap_err();
        assert!(
            error.starts_with("'startedAt' must be an RFC 3339 time"),
            "{error}"
        );
    }
}

#[test]
fn null_is_the_default_of_any_field() {
    let fields = [
        "id",
        "labels",
        "startedAt",
        "systemCpuUsage",
        "workloadCount",
        "imports",
        "httpPort",
    ];
    let nulls: Value = fields
        .iter()
        .map(|field| ((*field).to_owned(), Value::Null))
        .collect();
    assert_eq!(heartbeat(nulls).unwrap(), HostHeartbeat::default());
    let nulls = json!({"localResources": null, "imagePullPolicy": null, "poolSize": null});
    assert_eq!(component(nulls).unwrap(), Component::default());
    let volume = Volume::decode(br#"{"hostPath":null,"emptyDir":null}"#).unwrap();
    assert_eq!(volume, Volume::default());
    // ... but nothing stands for an item or a value.
    assert_eq!(
        heartbeat(json!({"imports": [{}, null]})).unwrap_err(),
        "'imports[1]' must be an object, found null"
    );
    assert_eq!(
        heartbeat(json!({"labels": {"a": null}})).unwrap_err(),
        "'labels.a' must be text, found null"
    );
}

#[test]
fn unknown_fields_are_skipped_and_never_written() {
    let message =
        component(json!({"name": "a", "later": {"x": [1]}, "localResources": {"gpu": 1}}));
    assert_eq!(
        message.unwrap().encode(),
        br#"{"localResources":{},"name":"a"}"#
    );
}

#[test]
fn of_duplicates_one_counts() {
    let twice = HostHeartbeat::decode(br#"{"id":"a","id":"b"}"#).unwrap();
    assert_eq!(twice.id, "b");
    let both = heartbeat(json!({"friendly_name": "snake", "friendlyName": "camel"})).unwrap();
    assert_eq!(both.friendly_name, "camel");
}

#[test]
fn a_volume_is_in_one_place() {
    let unset = Volume::decode(br#"{"name":"tmp"}"#).unwrap();
    assert_eq!(unset.encode(), br#"{"emptyDir":{},"name":"tmp"}"#);
    let error = Workload::decode(br#"{"volumes":[{"emptyDir":{},"hostPath":{}}]}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "'volumes[0]' must not have both hostPath and emptyDir"
    );
}

#[test]
fn what_is_not_a_message_is_refused() {
    for text in ["", "{", r#"{"id":}"#, r#"{"id":"a"} x"#, "\u{feff}{}"] {
        let error = HostHeartbeat::decode(text.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Json(_)), "{text}: {error}");
    }
    for value in [json!(null), json!([]), json!("x"), json!(1)] {
        assert!(
            heartbeat(value)
                .unwrap_err()
                .starts_with("'payload' must be an object, found ")
        );
    }
    assert_eq!(
        heartbeat(json!({"id": 7})).unwrap_err(),
        "'id' must be text, found a number"
    );
    assert_eq!(
        heartbeat(json!({"labels": []})).unwrap_err(),
        "'labels' must be an object, found a list"
    );
    assert_eq!(
        heartbeat(json!({"imports": "x"})).unwrap_err(),
        "'imports' must be a list, found text"
    );
    let key = "\u{1b}".repeat(1000);
    assert!(heartbeat(json!({"labels": {key: 1}})).unwrap_err().len() < 500);
}

#[test]
fn secrets_show_neither_in_debug_nor_in_errors() {
    let payload = String::from_utf8(golden("WorkloadStartRequest.operator")).unwrap();
    let request = WorkloadStartRequest::decode(payload.as_bytes()).unwrap();
    let debug = format!("{request:?}");
    for secret in ["redis://r:6379", "\"hi\"", "\"debug\"", "\"p\""] {
        assert!(
            payload.contains(secret) && !debug.contains(secret),
            "{secret} in {debug}"
        );
    }
    for shown in [
        "\"url\": [redacted]",
        "\"greeting\": [redacted]",
        "password: [redacted]",
        "username: \"u\"",
    ] {
        assert!(debug.contains(shown), "{shown} not in {debug}");
    }
    let misplaced = component(json!({"imagePullSecret": "hunter2"})).unwrap_err();
    assert_eq!(misplaced, "'imagePullSecret' must be an object, found text");
    let misplaced = component(json!({"imagePullPolicy": "hunter2"})).unwrap_err();
    assert!(!misplaced.contains("hunter2"), "{misplaced}");
}
