//! Which subject and payload is which request, and what is said of those that are none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use subjects::control::{Command, PAYLOAD_BYTES_MAX, PING, Request};
use subjects::wire::Workload;
use subjects::{HostId, WorkloadId};

fn host() -> HostId {
    HostId::new("h-1").unwrap()
}

fn refused(command: &Command, payload: &[u8]) -> (String, Option<String>) {
    let error = Request::decode(command, payload).unwrap_err();
    (
        error.reason.to_string(),
        error.workload_id.map(|id| id.to_string()),
    )
}

#[test]
fn a_subject_names_a_command_of_this_host_only() {
    for command in Command::ALL {
        assert_eq!(
            Command::parse(&host(), &command.subject(&host())),
            Some(command)
        );
    }
    let unknown = |name: &str| Some(Command::Unknown(name.to_owned()));
    assert_eq!(
        Command::parse(&host(), "runtime.host.h-1.workload"),
        unknown("workload")
    );
    assert_eq!(
        Command::parse(&host(), "runtime.host.h-1.a.b.c"),
        unknown("a.b.c")
    );
    assert_eq!(
        Command::parse(&host(), "runtime.host.h-1.washlet.ping"),
        unknown(PING)
    );
    for other in [
        "",
        "runtime.host.h-1",
        "runtime.host.h-12.heartbeat",
        "runtime.host.h.heartbeat",
    ] {
        assert_eq!(Command::parse(&host(), other), None, "{other}");
    }
}

#[test]
fn requests_without_a_message_ignore_their_payload() {
    for payload in [&b""[..], b"{}", b"nonsense"] {
        assert_eq!(
            Request::decode(&Command::Heartbeat, payload).unwrap(),
            Request::Heartbeat
        );
        assert_eq!(
            Request::decode(&Command::Ping, payload).unwrap(),
            Request::Heartbeat
        );
        assert_eq!(
            Request::decode(&Command::List, payload).unwrap(),
            Request::List
        );
    }
}

#[test]
fn requests_about_a_workload_need_its_id() {
    let id = WorkloadId::new("7c1a").unwrap();
    let payload = br#"{"workloadId":"7c1a","workload":{"name":"hello"}}"#;
    let workload = Box::new(Workload {
        name: "hello".into(),
        ..Workload::default()
    });
    let start = Request::Start {
        id: id.clone(),
        workload,
    };
    assert_eq!(Request::decode(&Command::Start, payload).unwrap(), start);
    assert_eq!(
        Request::decode(&Command::Status, payload).unwrap(),
        Request::Status(id.clone())
    );
    assert_eq!(
        Request::decode(&Command::Stop, payload).unwrap(),
        Request::Stop(id.clone())
    );
    assert_eq!(
        Request::decode(&Command::Inspect, payload).unwrap(),
        Request::Inspect(id)
    );

    for command in [
        Command::Start,
        Command::Status,
        Command::Stop,
        Command::Inspect,
    ] {
        for (payload, id) in [
            (r#"{"workload":{}}"#, ""),
            (r#"{"workloadId":"a\nb"}"#, "a\\nb"),
        ] {
            let (reason, known) = refused(&command, payload.as_bytes());
            assert!(
                reason.starts_with(&format!("workload id '{id}' must")),
                "{reason}"
            );
            assert_eq!(known, None);
        }
    }
    let (reason, id) = refused(&Command::Start, br#"{"workloadId":"7c1a","workload":null}"#);
    assert_eq!(
        (reason.as_str(), id.as_deref()),
        ("'workload' is missing", Some("7c1a"))
    );
}

#[test]
fn a_broken_payload_still_tells_its_workload() {
    let deep = format!(
        r#"{{"workload_id":"7c1a","workload":{}"#,
        "[".repeat(100_000)
    );
    let late =
        br#"{"workload":{"witWorld":{"components":[{},{"poolSize":"x"}]}},"workloadId":"7c1a"}"#;
    let big = format!(
        r#"{{"workloadId":"7c1a","x":"{}"}}"#,
        "x".repeat(PAYLOAD_BYTES_MAX)
    );
    for (payload, reason) in [
        (
            &br#"{"workloadId":"7c1a","workload":{"na"#[..],
            "payload is not valid JSON",
        ),
        (
            &b"{\"workloadId\":\"7c1a\",\"workload\":\"\xff"[..],
            "payload is not valid JSON",
        ),
        (deep.as_bytes(), "payload is not valid JSON"),
        (
            late,
            "'workload.witWorld.components[1].poolSize' must be an integer from -2147483648 to 2147483647, found text",
        ),
        (big.as_bytes(), "payload of 1048604 bytes exceeds 1048576"),
    ] {
        assert_eq!(
            refused(&Command::Start, payload),
            (reason.to_owned(), Some("7c1a".to_owned()))
        );
    }
    for payload in [
        &b""[..],
        b"null",
        b"[]",
        b"{",
        br#"{"workloadId":7}"#,
        br#"["workloadId","7c1a"]"#,
    ] {
        assert_eq!(refused(&Command::Start, payload).1, None);
    }
}

#[test]
fn commands_of_other_versions_are_refused_by_name() {
    let command = Command::Unknown("x\ny".into());
    let error = Request::decode(&command, br#"{"workloadId":"7c1a"}"#).unwrap_err();
    assert_eq!(error.to_string(), r"request 'x\ny' cannot be served");
    assert_eq!(error.reason.to_string(), "unknown command");
    assert_eq!(error.workload_id, WorkloadId::new("7c1a").ok());
}

#[test]
fn a_drain_may_say_nothing() {
    let drain = |payload| Request::decode(&Command::Drain, payload);
    let expected = |deadline, moved: &[&str]| Request::Drain {
        deadline,
        moved: moved
            .iter()
            .map(|id| WorkloadId::new(*id).unwrap())
            .collect(),
    };
    assert_eq!(drain(b"").unwrap(), expected(None, &[]));
    assert_eq!(drain(b"{}").unwrap(), expected(None, &[]));
    let deadline = Some(std::time::Duration::from_secs(7));
    assert_eq!(
        drain(br#"{"deadlineSeconds":7,"moved":["7c1a"]}"#).unwrap(),
        expected(deadline, &["7c1a"])
    );
    for bad in [&br#"{"deadlineSeconds":-1}"#[..], br#"{"moved":[""]}"#] {
        assert!(drain(bad).is_err());
    }
}
