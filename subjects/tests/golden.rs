//! Every message and subject as it was once fixed; `UPDATE_EXPECT=1` writes the files anew.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde_json::Value;
use subjects::HostId;
use subjects::control::{self, Command, Event};
use subjects::wire::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn update() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// Decodes and encodes the message in `path`, spelled in camelCase and in snake_case.
fn check<T: PartialEq + Debug>(
    path: &Path,
    decode: fn(&[u8]) -> Result<T, Error>,
    encode: fn(&T) -> Vec<u8>,
) {
    let text = std::fs::read(path).unwrap();
    let message = decode(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let encoded = encode(&message);
    let written: Value = serde_json::from_slice(&encoded).unwrap();
    if update() {
        std::fs::write(path, format!("{written:#}\n")).unwrap();
    } else {
        let expected: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(written, expected, "{path:?}");
    }
    assert_eq!(decode(&encoded).unwrap(), message, "{path:?}");
    let snake = snake_case(written).to_string();
    assert_eq!(
        decode(snake.as_bytes()).unwrap(),
        message,
        "{path:?} as {snake}"
    );
}

/// The same message with its fields named as in the proto; keys of maps are data and stay.
fn snake_case(value: Value) -> Value {
    const MAPS: [&str; 4] = ["annotations", "config", "environment", "labels"];
    match value {
        Value::Object(fields) => {
            let rename = |(key, value): (String, Value)| {
                let value = if MAPS.contains(&key.as_str()) {
                    value
                } else {
                    snake_case(value)
                };
                let name = key.chars().fold(String::new(), |mut name, c| {
                    if c.is_ascii_uppercase() {
                        name.push('_');
                    }
                    name.push(c.to_ascii_lowercase());
                    name
                });
                (name, value)
            };
            fields.into_iter().map(rename).collect()
        }
        Value::Array(items) => items.into_iter().map(snake_case).collect(),
        other => other,
    }
}

/// Checks every golden file by the message its name begins with, and that each message has one.
macro_rules! check_all {
    ($($message:ident)*) => {
        let mut missing = BTreeSet::from([$(stringify!($message)),*]);
        for entry in std::fs::read_dir(golden()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let message = name.split('.').next().unwrap();
            match message {
                $(stringify!($message) => check(&path, $message::decode, $message::encode),)*
                _ => panic!("no message is called like {path:?}"),
            }
            missing.remove(message);
        }
        assert_eq!(missing, BTreeSet::new());
    };
}

#[test]
fn messages() {
    check_all! {
        HostHeartbeat
        WorkloadStartRequest WorkloadStartResponse
        WorkloadStatusRequest WorkloadStatusResponse
        WorkloadStopRequest WorkloadStopResponse
        WorkloadInspectRequest WorkloadInspect WorkloadList
        WorkloadHandoverRequest WorkloadHandover
        HostEvent HostDrainRequest HostState
    }
}

#[test]
fn subjects() {
    let host = HostId::new("0d1c2f7e-7a5b-4c37-9a25-6f0e9a1b2c3d").unwrap();
    let mut lines = vec![
        control::HEARTBEATS.to_owned(),
        control::EVENTS.to_owned(),
        control::heartbeat_subject(&host),
        control::commands_subject(&host),
    ];
    lines.extend(Command::ALL.iter().map(|command| command.subject(&host)));
    lines.extend(Event::ALL.iter().map(|event| event.subject(&host)));
    let text = lines.join("\n") + "\n";
    let path = golden().join("subjects.txt");
    if update() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}
