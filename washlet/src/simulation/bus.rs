//! A NATS server and its clients, as far as a host sees them: messages come late, twice or never.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use capabilities::BoxError;
use subjects::control::{self, Command, ERROR_CODE_HEADER};
use subjects::{HostId, WorkloadId, wire};
use tokio::sync::mpsc;

use super::ledger::Asked;
use super::world::World;
use super::{ORPHAN_AFTER, workload, workload_id};
use crate::control::nats::{Bus, HeaderMap, Incoming, Message, Subject};
use crate::health::Link;

/// Messages that wait for the host.
const QUEUE: usize = 1_024;

/// What a reply's subject begins with; the number of the copy follows.
const REPLY: &str = "reply.";

/// A connection of one process.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    world: Arc<World>,
    host: HostId,
    commands: Mutex<Option<mpsc::Sender<Message>>>,
}

/// Messages of one subscription.
pub(super) struct Messages {
    line: Line,
    receiver: mpsc::Receiver<Message>,
    /// Held where nothing ever comes.
    _sender: Option<mpsc::Sender<Message>>,
}

impl Line {
    pub(super) fn new(world: Arc<World>, host: HostId) -> Self {
        let commands = Mutex::default();
        Self(Arc::new(Inner {
            world,
            host,
            commands,
        }))
    }

    /// A copy of a command arrives, if anybody listens.
    pub(super) fn arrive(&self, copy: usize) {
        let world = &self.0.world;
        let asked = world.ledger().asked(copy);
        let id = |workload| WorkloadId::new(workload_id(workload)).unwrap().to_string();
        let (command, payload) = match asked {
            Asked::Start(number, content) => {
                let request = wire::WorkloadStartRequest {
                    workload_id: id(number),
                    workload: Some(workload(number, content)),
                };
                (Command::Start, request.encode())
            }
            Asked::Stop(number) => {
                let workload_id = id(number);
                let request = wire::WorkloadStopRequest { workload_id };
                (Command::Stop, request.encode())
            }
            Asked::Status(number) => {
                let workload_id = id(number);
                let request = wire::WorkloadStatusRequest { workload_id };
                (Command::Status, request.encode())
            }
            Asked::Heartbeat => (Command::Heartbeat, Vec::new()),
            Asked::List => (Command::List, Vec::new()),
            Asked::Noise => (Command::Start, b"{\"workloadId\": [".to_vec()),
        };
        let message = Message {
            subject: command.subject(&self.0.host).into(),
            reply: Some(format!("{REPLY}{copy}").into()),
            length: payload.len(),
            payload: payload.into(),
            headers: None,
            status: None,
            description: None,
        };
        let commands = self.0.commands.lock().unwrap();
        let heard = commands
            .as_ref()
            .is_some_and(|commands| commands.try_send(message).is_ok());
        world.trace(format_args!(
            "bus: #{copy} {asked:?} arrives, heard: {heard}"
        ));
    }

    /// The server forgets the subscription.
    pub(super) fn lose(&self) {
        self.0.world.trace(format_args!("bus: subscription lost"));
        self.0.commands.lock().unwrap().take();
    }
}

impl Bus for Line {
    type Incoming = Messages;

    fn link(&self) -> Link {
        Link { up: true, made: 1 }
    }

    fn payload_bytes_max(&self) -> usize {
        1 << 20
    }

    fn chance(&self) -> f64 {
        self.0.world.chance.below(1_000) as f64 / 1_000.0
    }

    async fn subscribe(&self, subject: String) -> Result<Messages, BoxError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let _sender = match subject == control::commands_subject(&self.0.host) {
            true => {
                *self.0.commands.lock().unwrap() = Some(sender);
                None
            }
            false => Some(sender),
        };
        Ok(Messages {
            line: self.clone(),
            receiver,
            _sender,
        })
    }

    async fn round_trip(&self) {
        let world = &self.0.world;
        tokio::time::sleep(world.chance.pause(world.faults().message_ms)).await;
    }

    async fn publish(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), BoxError> {
        let world = &self.0.world;
        let copy = subject
            .strip_prefix(REPLY)
            .and_then(|copy| copy.parse().ok());
        let Some(copy) = copy else {
            return Ok(());
        };
        if !world.step() {
            return std::future::pending().await;
        }
        world.ledger().begin_answer(copy);
        let faults = world.faults();
        let pause = world.chance.pause(faults.reply_ms);
        if pause > Duration::ZERO {
            tokio::time::sleep(pause).await;
        }
        if !world.is_alive() {
            return std::future::pending().await;
        }
        if world.chance.one_in(faults.reply_fails) {
            world.trace(format_args!("bus: answer to #{copy} fails"));
            return Err("the simulation wants it so".into());
        }
        let code = headers
            .as_ref()
            .and_then(|headers| headers.get(ERROR_CODE_HEADER));
        let code = code.and_then(|code| code.as_str().parse().ok());
        let verdict = world.ledger().answered(copy, code, &payload);
        world.trace(format_args!("bus: answer to #{copy}: {verdict}"));
        world.step();
        Ok(())
    }

    async fn flush(&self) -> bool {
        true
    }
}

impl Incoming for Messages {
    async fn next(&mut self) -> Option<Message> {
        let message = self.receiver.recv().await?;
        let copy = message
            .reply
            .as_ref()
            .and_then(|reply| reply.strip_prefix(REPLY));
        if let Some(copy) = copy.and_then(|copy| copy.parse().ok()) {
            let world = &self.line.0.world;
            world.trace(format_args!("bus: #{copy} is taken"));
            world.ledger().take(copy, ORPHAN_AFTER);
        }
        Some(message)
    }

    async fn unsubscribe(&mut self) {
        self.line.0.commands.lock().unwrap().take();
        self._sender = None;
    }
}
