//! Bytes in, bytes out: decodes a request, asks the host, encodes the reply. Knows no NATS.

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::report;
use subjects::WorkloadId;
use subjects::control::{Command, DecodeError, Request};
use subjects::wire;

use super::nats::{Answer, Answered, Failure, Lane};
use crate::host::{Host, LeaveError, StartError};

/// The request cannot be read, or asks for nothing we know. Trying it again does not help.
const BAD_REQUEST: u16 = 400;
/// The host does not have it.
const NOT_FOUND: u16 = 404;
/// The workload is in the way of what was asked, or failed.
const CONFLICT: u16 = 409;
/// Not now.
const UNAVAILABLE: u16 = 503;

#[async_trait]
impl Answer for Host {
    fn lane(&self, command: &Command) -> Lane {
        match command {
            Command::Start => Lane::Start,
            Command::Stop => Lane::Stop,
            _ => Lane::Fast,
        }
    }

    async fn answer(&self, command: Command, payload: Bytes) -> Answered {
        if command == Command::Heartbeat {
            // Operators ask for it; people look for hosts with a ping.
            self.probed();
        }
        match Request::decode(&command, &payload) {
            Ok(request) => self.carry_out(request).await,
            Err(error) => undecodable(&command, &error),
        }
    }

    fn heartbeat(&self) -> Bytes {
        Host::heartbeat(self).encode().into()
    }

    fn failed(&self, command: &Command, payload: &Bytes, text: &str) -> Bytes {
        let id = match Request::decode(command, payload) {
            Ok(
                Request::Start { id, .. }
                | Request::Status(id)
                | Request::Stop(id)
                | Request::Handover(id),
            ) => id.to_string(),
            Err(DecodeError {
                workload_id: Some(id),
                ..
            }) => id.to_string(),
            _ => String::new(),
        };
        error_body(id, text.to_owned())
    }
}

impl Host {
    async fn carry_out(&self, request: Request) -> Answered {
        if let Request::Start { id, .. } | Request::Status(id) | Request::Stop(id) = &request {
            self.confirm(id);
        }
        match request {
            Request::Cordon => left(self.cordon(true).await.map(|state| state.encode())),
            Request::Uncordon => left(self.cordon(false).await.map(|state| state.encode())),
            Request::Drain { deadline, moved } => {
                let state = self.leave(deadline, moved).await;
                left(state.map(|state| state.encode()))
            }
            Request::Handover(id) => left(self.hand_over(&id).await.map(|given| given.encode())),
            Request::Heartbeat => ok(Host::heartbeat(self).encode()),
            Request::List => ok(self.list().encode()),
            Request::Start { id, workload } => {
                let (status, failure) = match self.start(id.clone(), *workload).await {
                    Ok(status) => {
                        let failure = failure(&status);
                        (status, failure)
                    }
                    Err(error) => refused(&id, &error),
                };
                let reply = wire::WorkloadStartResponse {
                    workload_status: Some(status),
                };
                Answered {
                    payload: reply.encode().into(),
                    failure,
                }
            }
            Request::Status(id) => {
                let status = self.status(&id);
                let failure = failure(&status);
                let reply = wire::WorkloadStatusResponse {
                    workload_status: Some(status),
                };
                Answered {
                    payload: reply.encode().into(),
                    failure,
                }
            }
            Request::Stop(id) => {
                let status = self.stop(&id).await;
                let failure = failure(&status);
                let reply = wire::WorkloadStopResponse {
                    workload_status: Some(status),
                };
                Answered {
                    payload: reply.encode().into(),
                    failure,
                }
            }
            Request::Inspect(id) => match self.inspect(&id) {
                Some(inspected) => ok(inspected.encode()),
                None => {
                    let summary = wire::WorkloadSummary {
                        workload_id: id.to_string(),
                        state: wire::WorkloadState::NotFound,
                        message: format!("Workload not found: {id}"),
                        ..wire::WorkloadSummary::default()
                    };
                    let text = summary.message.clone();
                    let reply = wire::WorkloadInspect {
                        workload: Some(summary),
                        ..wire::WorkloadInspect::default()
                    };
                    let failure = Failure {
                        code: NOT_FOUND,
                        text,
                        retry: false,
                    };
                    Answered {
                        payload: reply.encode().into(),
                        failure: Some(failure),
                    }
                }
            },
        }
    }
}

/// What the reply's headers say of a status that is not good news.
fn failure(status: &wire::WorkloadStatus) -> Option<Failure> {
    let (code, retry) = match status.workload_state {
        wire::WorkloadState::Error => (CONFLICT, true),
        wire::WorkloadState::NotFound => (NOT_FOUND, false),
        _ => return None,
    };
    Some(Failure {
        code,
        text: status.message.clone(),
        retry,
    })
}

/// A start that was not taken.
fn refused(id: &WorkloadId, error: &StartError) -> (wire::WorkloadStatus, Option<Failure>) {
    let text = report(error);
    let status = wire::WorkloadStatus {
        workload_id: id.to_string(),
        workload_state: wire::WorkloadState::Error,
        message: text.clone(),
    };
    let code = match error {
        StartError::Spec(_) => BAD_REQUEST,
        StartError::Draining
        | StartError::Cordoned
        | StartError::Full
        | StartError::NoMemory { .. }
        | StartError::NoInstances { .. }
        | StartError::Journal(_) => UNAVAILABLE,
        _ => CONFLICT,
    };
    (
        status,
        Some(Failure {
            code,
            text,
            retry: error.is_transient(),
        }),
    )
}

/// What comes of a command about the host itself.
fn left(outcome: Result<Vec<u8>, LeaveError>) -> Answered {
    let error = match outcome {
        Ok(payload) => return ok(payload),
        Err(error) => error,
    };
    let text = report(&error);
    let (code, retry) = match &error {
        LeaveError::Deadline { .. } => (BAD_REQUEST, false),
        LeaveError::NotFound(_) => (NOT_FOUND, false),
        LeaveError::Cordon { .. } | LeaveError::Forget { .. } => (UNAVAILABLE, true),
        _ => (CONFLICT, false),
    };
    let id = match &error {
        LeaveError::NotFound(id) | LeaveError::NotMovable(id) | LeaveError::NotJournaled(id) => {
            id.to_string()
        }
        _ => String::new(),
    };
    let payload = error_body(id, text.clone());
    Answered {
        payload,
        failure: Some(Failure { code, text, retry }),
    }
}

fn ok(payload: Vec<u8>) -> Answered {
    Answered {
        payload: payload.into(),
        failure: None,
    }
}

/// Every refusal has the shape of a status, so that a client reads the cause whatever it asked.
fn error_body(workload_id: String, message: String) -> Bytes {
    let workload_state = wire::WorkloadState::Error;
    let status = wire::WorkloadStatus {
        workload_id,
        workload_state,
        message,
    };
    wire::WorkloadStatusResponse {
        workload_status: Some(status),
    }
    .encode()
    .into()
}

fn undecodable(command: &Command, error: &DecodeError) -> Answered {
    let text = report(error);
    tracing::warn!(%command, text, "refused a request");
    let id = error
        .workload_id
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let payload = error_body(id, text.clone());
    Answered {
        payload,
        failure: Some(Failure {
            code: BAD_REQUEST,
            text,
            retry: false,
        }),
    }
}
