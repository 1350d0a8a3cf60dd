//! Whatever arrives on a command's subject is read, or refused in few words.

use std::error::Error;

use anyhow::Result;
use fleet::fuzz;
use subjects::control::{Command, PING, Request, commands_subject};
use subjects::wire::{self, WorkloadStartRequest};
use subjects::{HostId, WorkloadId};

/// The texts of an error and its sources.
fn chain(error: &dyn Error) -> String {
    let source = error.source().map(chain).unwrap_or_default();
    format!("{error}: {source}")
}

/// The first line of an input names the command.
fn command(input: &[u8]) -> (Command, &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (name, payload) = input.split_at(end.unwrap_or(input.len()));
    let name = String::from_utf8_lossy(name).into_owned();
    let known = Command::ALL
        .into_iter()
        .find(|command| command.name() == name);
    let command = known.unwrap_or(Command::Unknown(name));
    (command, payload.get(1..).unwrap_or_default())
}

#[test]
fn fuzz_commands() -> Result<()> {
    let words = [
        "workload.start\n",
        "host.drain\n",
        "\"workloadId\"",
        "\"workload_id\":\"w\"",
        "\"workload\":{",
        "\"witWorld\"",
        "\"components\":[",
        "\"poolSize\"",
        "\"IMAGE_PULL_POLICY_ALWAYS\"",
        "\"localResources\":{",
        "\"moved\":[",
        "\"deadlineSeconds\"",
        "\"config\":{",
    ];
    fuzz::run("commands", &words, |input| {
        let (command, payload) = command(input);
        match Request::decode(&command, payload) {
            Ok(Request::Start { id, workload }) => {
                // What is read is written so that it is read as the same.
                let request = WorkloadStartRequest {
                    workload_id: id.to_string(),
                    workload: Some(*workload),
                };
                let again = WorkloadStartRequest::decode(&request.encode());
                let again =
                    again.map_err(|error| format!("{error}: what was written is not read"))?;
                assert_eq!(again, request, "what was written is read as something else");
                Ok("start".to_owned())
            }
            Ok(Request::Drain { deadline, moved }) => Ok(format!(
                "drain {} {}",
                deadline.is_some(),
                moved.len().min(3)
            )),
            Ok(request) => Ok(format!(
                "{command} {}",
                matches!(request, Request::Heartbeat)
            )),
            Err(error) => {
                let text = chain(&error);
                let named = wire::WorkloadStatusRequest::decode(payload).ok();
                let named = named.and_then(|request| WorkloadId::new(request.workload_id).ok());
                assert!(
                    error.workload_id == named || named.is_none(),
                    "{text}: names another workload"
                );
                Err(text)
            }
        }
    })
}

#[test]
fn fuzz_subjects() -> Result<()> {
    let words = [
        "runtime.host.",
        ".workload.start",
        ".workload.stop",
        ".heartbeat",
        ".host.drain",
        PING,
        "h-1",
        "h-1.",
        "runtime.host.h-1.",
    ];
    let host = HostId::new("h-1")?;
    fuzz::run("subjects", &words, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(other) = HostId::new(text.as_ref()) {
            // An id is one token: it reaches nobody else's subjects.
            let subject = commands_subject(&other);
            assert_eq!(subject.split('.').count(), 4, "{subject}");
            assert!(
                other == host || Command::parse(&host, &Command::Stop.subject(&other)).is_none()
            );
        }
        match Command::parse(&host, &text) {
            Some(command @ Command::Unknown(_)) => {
                assert!(text.starts_with("runtime.host.h-1."), "taken for ours");
                // Refused, and the name in few words.
                Err(Request::decode(&command, b"")
                    .map_or_else(|error| chain(&error), |_| "read".repeat(10_000)))
            }
            Some(command) => {
                assert_eq!(command.subject(&host), text, "another subject for the same");
                Ok(command.to_string())
            }
            None => Err(HostId::new(text.as_ref())
                .map_or_else(|error| chain(&error), |_| "an id".to_owned())),
        }
    })
}
