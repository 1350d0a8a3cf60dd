//! The fleet seen from a client: finding hosts and asking them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use async_nats::{Client, Message, RequestErrorKind, StatusCode};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use subjects::control::{Command, ERROR_CODE_HEADER, Event, HEARTBEATS, PING};
use subjects::wire::{
    HostDrainRequest, HostHeartbeat, HostState, WorkloadHandover, WorkloadHandoverRequest,
    WorkloadInspect, WorkloadInspectRequest, WorkloadList, WorkloadStartRequest,
    WorkloadStartResponse, WorkloadStatus, WorkloadStatusRequest, WorkloadStatusResponse,
    WorkloadStopRequest, WorkloadStopResponse, WorkloadSummary,
};
use subjects::{HostId, WorkloadId};
use tokio::time::{Instant, timeout, timeout_at};
use washlet::control::nats::{ConnectError, connect_once};

use crate::args::ClientNats;
use crate::output::{Exit, Failure, printable};

/// How long a host may take to answer anything but a start.
const REPLY: Duration = Duration::from_secs(5);
/// When no further host spoke up for so long, those that did are taken for all of them.
const QUIET: Duration = Duration::from_millis(400);
/// The largest fleet that is looked at.
const HOSTS_MAX: usize = 10_000;
/// How many hosts are asked at once.
pub(crate) const ASKED_AT_ONCE: usize = 32;

/// A connection to the NATS server where the hosts are.
pub(crate) struct Fleet {
    client: Client,
}

/// How long to look for hosts.
#[derive(Clone, Copy)]
pub(crate) enum Look {
    /// So long, also for hosts that only send heartbeats.
    Full(Duration),
    /// At most so long, and only until hosts that answer have answered.
    UntilQuiet(Duration),
}

impl Fleet {
    /// Connects, trying once.
    pub(crate) async fn connect(nats: &ClientNats) -> Result<Self, Failure> {
        let config = nats.config()?;
        let error = match connect_once(&config, "wash").await {
            Ok(client) => return Ok(Self { client }),
            Err(error) => error,
        };
        let exit = if error.is_configuration() {
            Exit::Usage
        } else {
            Exit::Unreachable
        };
        let failure = Failure::new(exit, capabilities::report(&error));
        Err(match error {
            ConnectError::Unreachable { .. } => {
                failure.hint("start nats-server, or name another by --nats-url")
            }
            ConnectError::Auth { .. } => {
                failure.hint("sign in with --nats-creds, --nats-nkey, --nats-user or --nats-token")
            }
            _ => failure,
        })
    }

    /// The hosts that answer or send a heartbeat meanwhile, by id.
    pub(crate) async fn hosts(&self, look: Look) -> Result<Vec<HostHeartbeat>, Failure> {
        let inbox = self.client.new_inbox();
        let failed = |error: &dyn std::error::Error| {
            Failure::new(
                Exit::Unreachable,
                format!("failed to look for hosts: {error}"),
            )
        };
        let replies = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|e| failed(&e))?;
        let heartbeats = self
            .client
            .subscribe(HEARTBEATS)
            .await
            .map_err(|e| failed(&e))?;
        let asked = self.client.publish_with_reply(PING, inbox, "".into()).await;
        asked.map_err(|e| failed(&e))?;
        self.client.flush().await.map_err(|e| failed(&e))?;

        let (Look::Full(wait) | Look::UntilQuiet(wait)) = look;
        let end = Instant::now() + wait;
        let mut until = end;
        let mut messages = futures::stream::select(replies, heartbeats);
        let mut hosts = BTreeMap::new();
        while hosts.len() < HOSTS_MAX {
            let Ok(Some(message)) = timeout_at(until, messages.next()).await else {
                break;
            };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                continue;
            }
            match HostHeartbeat::decode(&message.payload) {
                Ok(host) if HostId::new(host.id.as_str()).is_ok() => {
                    hosts.insert(host.id.clone(), host);
                    if let Look::UntilQuiet(_) = look {
                        until = end.min(Instant::now() + QUIET);
                    }
                }
                Ok(_) => tracing::warn!(subject = %message.subject, "a heartbeat names no host"),
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "not a heartbeat");
                }
            }
        }
        Ok(hosts.into_values().collect())
    }

    /// The ids of `host` alone if given, else of all hosts found; nobody is a failure.
    pub(crate) async fn ids(
        &self,
        host: Option<&HostId>,
        wait: Duration,
    ) -> Result<Vec<HostId>, Failure> {
        if let Some(host) = host {
            return Ok(vec![host.clone()]);
        }
        let hosts = self.hosts(Look::UntilQuiet(wait)).await?;
        let ids: Vec<_> = hosts
            .into_iter()
            .filter_map(|host| HostId::new(host.id).ok())
            .collect();
        if ids.is_empty() {
            Err(nobody(wait))
        } else {
            Ok(ids)
        }
    }

    /// Asks `host` to start a workload, which it may take its time for.
    pub(crate) async fn start(
        &self,
        host: &HostId,
        request: &WorkloadStartRequest,
        patience: Duration,
    ) -> Result<WorkloadStatus, Failure> {
        let payload = request.encode();
        let reply: WorkloadStartResponse =
            self.ask(host, Command::Start, payload, patience).await?;
        said(host, reply.workload_status)
    }

    /// Asks `host` how far a workload is.
    pub(crate) async fn status(
        &self,
        host: &HostId,
        id: &WorkloadId,
    ) -> Result<WorkloadStatus, Failure> {
        let payload = WorkloadStatusRequest {
            workload_id: id.to_string(),
        }
        .encode();
        let reply: WorkloadStatusResponse = self.ask(host, Command::Status, payload, REPLY).await?;
        said(host, reply.workload_status)
    }

    /// Asks `host` to stop a workload.
    pub(crate) async fn stop(
        &self,
        host: &HostId,
        id: &WorkloadId,
    ) -> Result<WorkloadStatus, Failure> {
        let payload = WorkloadStopRequest {
            workload_id: id.to_string(),
        }
        .encode();
        // A host finishes the calls in flight first.
        let reply: WorkloadStopResponse = self.ask(host, Command::Stop, payload, REPLY * 7).await?;
        said(host, reply.workload_status)
    }

    /// All workloads of `host`.
    pub(crate) async fn list(&self, host: &HostId) -> Result<Vec<WorkloadSummary>, Failure> {
        let reply: WorkloadList = self.ask(host, Command::List, Vec::new(), REPLY).await?;
        Ok(reply.workloads)
    }

    /// One workload of `host`.
    pub(crate) async fn inspect(
        &self,
        host: &HostId,
        id: &WorkloadId,
    ) -> Result<WorkloadInspect, Failure> {
        let payload = WorkloadInspectRequest {
            workload_id: id.to_string(),
        }
        .encode();
        self.ask(host, Command::Inspect, payload, REPLY).await
    }

    /// Has `host` take no new workloads, or take them again.
    pub(crate) async fn cordon(&self, host: &HostId, cordoned: bool) -> Result<HostState, Failure> {
        let command = match cordoned {
            true => Command::Cordon,
            false => Command::Uncordon,
        };
        self.ask(host, command, Vec::new(), REPLY).await
    }

    /// What a workload of `host` was started with, to start it elsewhere.
    pub(crate) async fn handover(
        &self,
        host: &HostId,
        id: &WorkloadId,
    ) -> Result<WorkloadStartRequest, Failure> {
        let payload = WorkloadHandoverRequest {
            workload_id: id.to_string(),
        }
        .encode();
        let reply: WorkloadHandover = self.ask(host, Command::Handover, payload, REPLY).await?;
        reply.start.ok_or_else(|| {
            let text = format!("host '{host}' handed nothing over");
            Failure::new(Exit::Failed, text)
        })
    }

    /// Has `host` leave within `deadline_seconds` (0: as long as it takes) and forget what was `moved`; with
    /// whether its goodbye was heard.
    pub(crate) async fn drain(
        &self,
        host: &HostId,
        deadline_seconds: u64,
        moved: Vec<String>,
    ) -> Result<(HostState, bool), Failure> {
        let failed = |error: &dyn std::error::Error| {
            let text = format!("failed to listen for host '{host}': {error}");
            Failure::new(Exit::Unreachable, text)
        };
        let goodbye = self.client.subscribe(Event::Goodbye.subject(host)).await;
        let mut goodbye = goodbye.map_err(|error| failed(&error))?;
        let payload = HostDrainRequest {
            deadline_seconds,
            moved,
        }
        .encode();
        let state = self.ask(host, Command::Drain, payload, REPLY * 2).await?;
        let heard = timeout(REPLY, goodbye.next()).await;
        Ok((state, matches!(heard, Ok(Some(_)))))
    }

    /// Puts `value` into the key-value bucket `bucket`, which is made if it is missing; names are those of NATS.
    pub(crate) async fn put(&self, bucket: &str, key: &str, value: String) -> Result<(), Failure> {
        let jetstream = jetstream::new(self.client.clone());
        let put = async {
            let store = match jetstream.get_key_value(bucket).await {
                Ok(store) => store,
                Err(_) => {
                    let config = kv::Config {
                        bucket: bucket.to_owned(),
                        history: 1,
                        ..kv::Config::default()
                    };
                    jetstream.create_key_value(config).await?
                }
            };
            store.put(key, value.into()).await?;
            Ok::<_, async_nats::Error>(())
        };
        let failed = |why: String| {
            let text = format!("failed to write to bucket '{bucket}': {why}");
            Failure::new(Exit::Failed, text)
                .hint("--nats-url is to be the server of the hosts' data, with JetStream and the right to write")
        };
        match timeout(REPLY, put).await {
            Ok(put) => put.map_err(|error| failed(capabilities::report(&*error))),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        host: &HostId,
        command: Command,
        payload: Vec<u8>,
        patience: Duration,
    ) -> Result<T, Failure> {
        let unreachable = |why: &str| {
            Failure::new(Exit::Unreachable, format!("host '{host}' {why}"))
                .hint("`wash hosts` lists the hosts that answer")
        };
        let request = async_nats::Request::new()
            .payload(payload.into())
            .timeout(None);
        let answer = self.client.send_request(command.subject(host), request);
        let message = match timeout(patience, answer).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(unreachable("is not there"));
            }
            Ok(Err(error)) => return Err(unreachable(&format!("cannot be asked: {error}"))),
            Err(_) => {
                let patience = humantime::format_duration(patience);
                return Err(unreachable(&format!(
                    "did not answer '{command}' within {patience}"
                )));
            }
        };
        if let Some(refusal) = refusal(&command, &message) {
            let text = format!("host '{host}' refused '{command}': {refusal}");
            return Err(Failure::new(Exit::Refused, text));
        }
        serde_json::from_slice(&message.payload).map_err(|_| {
            Failure::new(
                Exit::Failed,
                format!("host '{host}' answered '{command}' with something else"),
            )
        })
    }
}

/// Nobody answered.
pub(crate) fn nobody(wait: Duration) -> Failure {
    let wait = humantime::format_duration(wait);
    Failure::new(Exit::Unreachable, format!("no host answered within {wait}"))
        .hint("start one with `wash host`, or look longer with --wait 20s")
}

/// Why the host did not do what was asked; `None` when the reply is an answer.
///
/// Shape: a refusal reads as any command's message, because unknown fields are ignored, so the header decides.
/// Below 500 it speaks of the workload, which the reply to some commands tells too.
fn refusal(command: &Command, message: &Message) -> Option<String> {
    let code = message.headers.as_ref()?.get(ERROR_CODE_HEADER)?.as_str();
    let server_side = || code.parse::<u16>().is_ok_and(|code| code >= 500);
    let tells = matches!(
        command,
        Command::Start | Command::Status | Command::Stop | Command::Inspect
    );
    if tells && !server_side() {
        return None;
    }
    let reply = serde_json::from_slice::<WorkloadStatusResponse>(&message.payload).ok();
    let status = reply.and_then(|reply| reply.workload_status);
    let text = status
        .map(|status| status.message)
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "it gave no reason".to_owned());
    Some(printable(&format!("{text} (code {code})")))
}

fn said(host: &HostId, status: Option<WorkloadStatus>) -> Result<WorkloadStatus, Failure> {
    status.ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!("host '{host}' answered without a status"),
        )
    })
}
