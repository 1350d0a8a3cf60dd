//! The subjects, and what a request on one of them asks.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::wire::{self, Workload};
use crate::{HostId, WorkloadId};

/// The heartbeats of every host.
pub const HEARTBEATS: &str = "runtime.operator.heartbeat.>";
/// Every host answers a request here with its heartbeat.
pub const PING: &str = "washlet.ping";
/// The events of every host.
pub const EVENTS: &str = "washlet.event.>";

/// A reply that is a failure carries its code in this header, as NATS services do.
pub const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";
/// A reply that is a failure says in this header, `true` or `false`, whether to try again.
pub const RETRY_HEADER: &str = "Washlet-Retry";

/// The label of a host that takes no new workloads: `true`.
pub const CORDONED_LABEL: &str = "washlet.dev/cordoned";
/// The label of a host with the public key that values are sealed to for it. Shape: `X` and 55 characters.
pub const SEAL_KEY_LABEL: &str = "washlet.dev/xkey";

/// The label of a host that is short of something. Shape: `memory`, `disk`, `cpu` and `instances`, with `.` between.
pub const PRESSURE_LABEL: &str = "washlet.dev/pressure";
/// The annotation of a workload of several replicas that may be moved to another host, with how to choose it:
/// `{"replicas":2,"selector":{"hostgroup":"edge"},"environment":""}`.
pub const PLACEMENT_ANNOTATION: &str = "washlet.dev/placement";

/// The largest request payload that is read.
///
/// Units: bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Where `host` publishes its heartbeats.
pub fn heartbeat_subject(host: &HostId) -> String {
    format!("runtime.operator.heartbeat.{host}")
}

/// What `host` subscribes to: all its commands but [`PING`].
pub fn commands_subject(host: &HostId) -> String {
    format!("runtime.host.{host}.>")
}

/// Something that happens to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It listens for commands.
    Started,
    /// It leaves, in good order.
    Goodbye,
    /// It takes no more work.
    Draining,
    /// It is short of something.
    Pressure,
    /// One of its workloads changed state.
    Workload,
}

impl Event {
    /// All events, in the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::Started,
        Self::Goodbye,
        Self::Draining,
        Self::Pressure,
        Self::Workload,
    ];

    /// Where `host` publishes the event.
    pub fn subject(self, host: &HostId) -> String {
        let event = match self {
            Self::Started => "started",
            Self::Goodbye => "goodbye",
            Self::Draining => "draining",
            Self::Pressure => "pressure",
            Self::Workload => "workload",
        };
        format!("washlet.event.{host}.{event}")
    }
}

/// What a subject asks a host to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Describe yourself.
    Heartbeat,
    /// Run a workload.
    Start,
    /// Say how far a workload is.
    Status,
    /// Stop a workload.
    Stop,
    /// Name all workloads.
    List,
    /// Describe a workload.
    Inspect,
    /// Give away what a workload was started with, so that another host starts it.
    Handover,
    /// Take no new workloads.
    Cordon,
    /// Take new workloads again.
    Uncordon,
    /// Finish and stop all workloads.
    Drain,
    /// Describe yourself, asked of all hosts at once.
    Ping,
    /// A command of some other version, by its name.
    Unknown(String),
}

impl Command {
    /// All commands but [`Unknown`](Self::Unknown), in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::Heartbeat,
        Self::Start,
        Self::Status,
        Self::Stop,
        Self::List,
        Self::Inspect,
        Self::Handover,
        Self::Cordon,
        Self::Uncordon,
        Self::Drain,
        Self::Ping,
    ];

    /// The tokens that follow the host in the subject; all of it for [`Ping`](Self::Ping).
    pub fn name(&self) -> &str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Start => "workload.start",
            Self::Status => "workload.status",
            Self::Stop => "workload.stop",
            Self::List => "workload.list",
            Self::Inspect => "workload.inspect",
            Self::Handover => "workload.handover",
            Self::Cordon => "host.cordon",
            Self::Uncordon => "host.uncordon",
            Self::Drain => "host.drain",
            Self::Ping => PING,
            Self::Unknown(name) => name,
        }
    }

    /// Where to send the command to `host`.
    pub fn subject(&self, host: &HostId) -> String {
        match self {
            Self::Ping => PING.to_owned(),
            command => format!("runtime.host.{host}.{}", command.name()),
        }
    }

    /// What `subject` asks of `host`; `None` when it is not for this host.
    pub fn parse(host: &HostId, subject: &str) -> Option<Self> {
        if subject == PING {
            return Some(Self::Ping);
        }
        let name = subject
            .strip_prefix("runtime.host.")?
            .strip_prefix(host.as_str())?
            .strip_prefix('.')?;
        let known = Self::ALL
            .into_iter()
            .find(|c| c.name() == name && *c != Self::Ping);
        Some(known.unwrap_or_else(|| Self::Unknown(name.to_owned())))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command with its checked payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Describe yourself; asked by [`Command::Heartbeat`] or [`Command::Ping`].
    Heartbeat,
    /// Run `workload` as `id`.
    Start {
        /// The id to run it as.
        id: WorkloadId,
        /// What to run.
        workload: Box<Workload>,
    },
    /// Say how far a workload is.
    Status(WorkloadId),
    /// Stop a workload.
    Stop(WorkloadId),
    /// Name all workloads.
    List,
    /// Describe a workload.
    Inspect(WorkloadId),
    /// Give away what a workload was started with.
    Handover(WorkloadId),
    /// Take no new workloads.
    Cordon,
    /// Take new workloads again.
    Uncordon,
    /// Leave the fleet in good order.
    Drain {
        /// How long it may take; `None`: as long as the host usually takes.
        deadline: Option<Duration>,
        /// Workloads that run elsewhere by now: a restart does not start them again.
        moved: Vec<WorkloadId>,
    },
}

impl Request {
    /// Reads the payload of `command`; those without a message ignore it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], with the workload's id if the payload tells it at all.
    pub fn decode(command: &Command, payload: &[u8]) -> Result<Self, DecodeError> {
        Self::read(command, payload).map_err(|reason| DecodeError {
            command: command.clone(),
            workload_id: workload_id(payload),
            reason,
        })
    }

    fn read(command: &Command, payload: &[u8]) -> Result<Self, Reason> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Reason::TooLarge {
                bytes: payload.len(),
            });
        }
        Ok(match command {
            Command::Heartbeat | Command::Ping => Self::Heartbeat,
            Command::List => Self::List,
            Command::Start => {
                let request = wire::WorkloadStartRequest::decode(payload)?;
                let id = WorkloadId::new(request.workload_id)?;
                let workload = request.workload.ok_or(Reason::NoWorkload)?;
                Self::Start {
                    id,
                    workload: Box::new(workload),
                }
            }
            Command::Status => {
                let request = wire::WorkloadStatusRequest::decode(payload)?;
                Self::Status(WorkloadId::new(request.workload_id)?)
            }
            Command::Stop => {
                let request = wire::WorkloadStopRequest::decode(payload)?;
                Self::Stop(WorkloadId::new(request.workload_id)?)
            }
            Command::Inspect => {
                let request = wire::WorkloadInspectRequest::decode(payload)?;
                Self::Inspect(WorkloadId::new(request.workload_id)?)
            }
            Command::Handover => {
                let request = wire::WorkloadHandoverRequest::decode(payload)?;
                Self::Handover(WorkloadId::new(request.workload_id)?)
            }
            Command::Cordon => Self::Cordon,
            Command::Uncordon => Self::Uncordon,
            Command::Drain => {
                let request = match payload {
                    [] => wire::HostDrainRequest::default(),
                    payload => wire::HostDrainRequest::decode(payload)?,
                };
                let deadline = request.deadline_seconds;
                let moved = request.moved.into_iter().map(WorkloadId::new);
                Self::Drain {
                    deadline: (deadline > 0).then(|| Duration::from_secs(deadline)),
                    moved: moved.collect::<Result<_, _>>()?,
                }
            }
            Command::Unknown(_) => return Err(Reason::UnknownCommand),
        })
    }
}

/// A request that cannot be served as it is.
#[derive(thiserror::Error, Debug)]
#[error("request '{}' cannot be served", crate::clip(command.name()))]
pub struct DecodeError {
    /// What was asked.
    pub command: Command,
    /// The workload it was about, to be echoed in the reply.
    pub workload_id: Option<WorkloadId>,
    /// What is wrong.
    #[source]
    pub reason: Reason,
}

/// Why a request cannot be served.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// This host does not know the command.
    #[error("unknown command")]
    UnknownCommand,
    /// The payload is above [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {bytes} bytes exceeds {PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// The payload's size.
        bytes: usize,
    },
    /// A start without anything to start.
    #[error("'workload' is missing")]
    NoWorkload,
    /// The workload's id is missing or malformed.
    #[error(transparent)]
    WorkloadId(#[from] crate::IdError),
    /// The payload is not the command's message.
    #[error(transparent)]
    Wire(#[from] wire::Error),
}

/// The workload id in a payload that may be broken anywhere after it.
fn workload_id(payload: &[u8]) -> Option<WorkloadId> {
    struct Find<'a>(&'a mut Option<WorkloadId>);

    impl<'de> Visitor<'de> for Find<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
            while let Some(key) = fields.next_key::<String>()? {
                if matches!(key.as_str(), "workloadId" | "workload_id") {
                    *self.0 = WorkloadId::new(fields.next_value::<String>()?).ok();
                } else {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }

    let mut id = None;
    // Whatever stops the reader, it is the id found until then that counts.
    let _ = serde_json::Deserializer::from_slice(payload).deserialize_map(Find(&mut id));
    id
}
