//! The control loop over a real NATS server, with an answer that knows no workloads.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests too"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::{Client, Message, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use fleet::nats::NatsServer;
use fleet::wait::{SOON, until};
use futures::StreamExt;
use subjects::HostId;
use subjects::control::{
    self, Command, ERROR_CODE_HEADER, Event, PING, RETRY_HEADER, heartbeat_subject,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use washlet::config::{NatsAuth, NatsConfig, NatsTls};
use washlet::control::nats::{Answer, Answered, Control, ControlError, Failure, Lane, connect};
use washlet::drain::Drain;
use washlet::health::Health;

/// Starts wait for a permit of `gate`; a payload of `panic` or `large` gets that.
struct Scripted {
    gate: Semaphore,
    heartbeats: AtomicU32,
    seen: Mutex<Vec<String>>,
}

fn ok(payload: impl Into<Bytes>) -> Answered {
    Answered {
        payload: payload.into(),
        failure: None,
    }
}

#[async_trait]
impl Answer for Scripted {
    fn lane(&self, command: &Command) -> Lane {
        match command {
            Command::Start => Lane::Start,
            _ => Lane::Fast,
        }
    }

    async fn answer(&self, command: Command, payload: Bytes) -> Answered {
        let text = String::from_utf8_lossy(&payload).into_owned();
        self.seen.lock().unwrap().push(text.clone());
        match (command, text.as_str()) {
            (Command::Start, _) => {
                self.gate.acquire().await.unwrap().forget();
                ok(format!("started {text}"))
            }
            (Command::Unknown(name), _) => {
                let text = format!("unknown command '{name}'");
                let failure = Failure {
                    code: 400,
                    text: text.clone(),
                    retry: false,
                };
                Answered {
                    payload: text.into(),
                    failure: Some(failure),
                }
            }
            (_, "panic") => panic!("scripted"),
            (_, "large") => ok(vec![b'x'; 100_000]),
            (command, _) => ok(format!("{command} {text}")),
        }
    }

    fn failed(&self, command: &Command, payload: &Bytes, text: &str) -> Bytes {
        format!(
            "{command} {} failed: {text}",
            String::from_utf8_lossy(payload)
        )
        .into()
    }

    fn heartbeat(&self) -> Bytes {
        self.heartbeats
            .fetch_add(1, Ordering::Relaxed)
            .to_string()
            .into()
    }
}

const INTERVAL: Duration = Duration::from_millis(100);
const STARTS: usize = 3;

/// A running control loop, and a client to talk to it.
struct Fixture {
    server: NatsServer,
    client: Client,
    own: Client,
    host: HostId,
    answer: Arc<Scripted>,
    heartbeats: Subscriber,
    events: Subscriber,
    drain: Drain,
    ended: oneshot::Receiver<Result<(), ControlError>>,
}

fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig {
        url: server.url(),
        tls: NatsTls::default(),
        auth: NatsAuth::None,
        inbox_prefix: None,
        ping_interval: std::time::Duration::from_secs(5),
    }
}

impl Fixture {
    async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    async fn start_with(lines: &str) -> Result<Self> {
        let server = NatsServer::start_with(lines).await?;
        let client = server.client().await?;
        let host = HostId::new("host-1")?;
        let heartbeats = client.subscribe(heartbeat_subject(&host)).await?;
        let events = client.subscribe(control::EVENTS).await?;
        // An answer, that nobody listens, on the same connection: the server knows the subscriptions.
        let _ = client.request("nobody", "".into()).await;

        let drain = Drain::new(Handle::current());
        let own = connect(&config(&server), "washlet-host-1", &drain).await?;
        let own = own.context("connected")?;
        let answer = Arc::new(Scripted {
            gate: Semaphore::new(0),
            heartbeats: AtomicU32::new(0),
            seen: Mutex::default(),
        });
        let (sender, ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let control = Control {
            client: own.clone(),
            host: host.clone(),
            heartbeat_interval: INTERVAL,
            starts_in_queue: STARTS,
            grace: SOON,
            health: Health::default(),
            restore_within: Duration::from_millis(400),
            ready: Some(ready),
        };
        let (answering, draining) = (Arc::clone(&answer), drain.clone());
        drain.spawn("control", async move {
            let _ = sender.send(control.run(answering, draining).await);
        });
        timeout(SOON, is_ready).await??;
        Ok(Self {
            server,
            client,
            own,
            host,
            answer,
            heartbeats,
            events,
            drain,
            ended,
        })
    }

    async fn ask(&self, command: &Command, payload: &str) -> Result<Message> {
        let subject = command.subject(&self.host);
        timeout(
            SOON,
            self.client.request(subject, payload.to_owned().into()),
        )
        .await?
        .with_context(|| format!("{command}"))
    }

    /// Sends a command whose reply is awaited later.
    async fn send(&self, command: &Command, payload: &str) -> Result<Subscriber> {
        let inbox = self.client.new_inbox();
        let replies = self.client.subscribe(inbox.clone()).await?;
        let (subject, payload) = (command.subject(&self.host), payload.to_owned());
        self.client
            .publish_with_reply(subject, inbox, payload.into())
            .await?;
        self.client.flush().await?;
        Ok(replies)
    }

    async fn seen(&self, number: usize) -> Result<Vec<String>> {
        until(SOON, "the commands arrive", async || {
            let seen = self.answer.seen.lock().unwrap();
            (seen.len() >= number).then(|| seen.clone())
        })
        .await
    }

    /// The fixture stays: its server has to pass on what was said last.
    async fn end(&mut self) -> Result<Result<(), ControlError>> {
        self.drain.stop();
        Ok(timeout(SOON, &mut self.ended).await??)
    }
}

async fn next(from: &mut Subscriber) -> Result<Message> {
    timeout(SOON, from.next()).await?.context("a message")
}

fn text(message: &Message) -> &str {
    std::str::from_utf8(&message.payload).unwrap()
}

/// Code and retryability, as the headers tell them.
fn failure(message: &Message) -> Option<(&str, &str)> {
    let headers = message.headers.as_ref()?;
    Some((
        headers.get(ERROR_CODE_HEADER)?.as_str(),
        headers.get(RETRY_HEADER)?.as_str(),
    ))
}

#[tokio::test]
async fn a_host_says_that_it_is_there_and_keeps_saying_so() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let started = next(&mut fixture.events).await?;
    assert_eq!(
        started.subject.as_str(),
        Event::Started.subject(&fixture.host)
    );
    let event = subjects::wire::HostEvent::decode(&started.payload)?;
    assert_eq!(event.id, fixture.host.as_str());
    assert!(event.at.is_some());
    for number in 0..4 {
        let heartbeat = next(&mut fixture.heartbeats).await?;
        assert_eq!(text(&heartbeat), number.to_string());
        assert!(heartbeat.headers.is_none());
        if number == 0 {
            // Whoever has heard of a host can ask it at once.
            let reply = fixture.ask(&Command::Heartbeat, "now").await?;
            assert_eq!((text(&reply), failure(&reply)), ("heartbeat now", None));
        }
    }
    let mut events = fixture.client.subscribe(control::EVENTS).await?;
    // An answer on the same connection: the server knows the subscription by now.
    fixture.ask(&Command::Heartbeat, "known").await?;
    let goodbye = Event::Goodbye.subject(&fixture.host);
    assert_eq!(fixture.end().await?, Ok(()));
    assert_eq!(next(&mut events).await?.subject.as_str(), goodbye);
    Ok(())
}

#[tokio::test]
async fn a_slow_start_delays_nothing_else() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let mut start = fixture.send(&Command::Start, "a").await?;
    fixture.seen(1).await?;
    assert_eq!(
        text(&fixture.ask(&Command::Status, "a").await?),
        "workload.status a"
    );
    let before = fixture.answer.heartbeats.load(Ordering::Relaxed);
    until(SOON, "heartbeats go on", async || {
        let heartbeat = next(&mut fixture.heartbeats).await.ok()?;
        (text(&heartbeat).parse::<u32>().ok()? > before + 2).then_some(())
    })
    .await?;
    fixture.answer.gate.add_permits(1);
    assert_eq!(text(&next(&mut start).await?), "started a");
    Ok(())
}

#[tokio::test]
async fn starts_above_the_bound_are_refused_at_once() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut taken = Vec::new();
    for number in 0..STARTS {
        taken.push(fixture.send(&Command::Start, &number.to_string()).await?);
    }
    let refused = fixture.ask(&Command::Start, "one more").await?;
    assert_eq!(failure(&refused), Some(("503", "true")));
    assert!(
        text(&refused).starts_with("workload.start one more failed: "),
        "{refused:?}"
    );
    assert_eq!(fixture.answer.seen.lock().unwrap().len(), STARTS);
    // Others have a bound of their own.
    assert_eq!(failure(&fixture.ask(&Command::Stop, "0").await?), None);

    fixture.answer.gate.add_permits(STARTS);
    for (number, replies) in taken.iter_mut().enumerate() {
        assert_eq!(text(&next(replies).await?), format!("started {number}"));
    }
    fixture.answer.gate.add_permits(1);
    assert_eq!(
        text(&fixture.ask(&Command::Start, "again").await?),
        "started again"
    );
    Ok(())
}

#[tokio::test]
async fn commands_reach_the_host_in_the_order_of_their_arrival() -> Result<()> {
    let fixture = Fixture::start().await?;
    let sent: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    for payload in &sent {
        let subject = Command::Stop.subject(&fixture.host);
        fixture
            .client
            .publish(subject, payload.clone().into())
            .await?;
    }
    fixture.client.flush().await?;
    assert_eq!(fixture.seen(sent.len()).await?, sent);
    Ok(())
}

#[tokio::test]
async fn whatever_is_asked_is_answered() -> Result<()> {
    // The message below is 100,000 bytes.
    let mut fixture = Fixture::start_with("max_payload: 65536").await?;
    let unknown = Command::Unknown("workload.dance".to_owned());
    let reply = fixture.ask(&unknown, "{").await?;
    assert_eq!(failure(&reply), Some(("400", "false")));
    assert_eq!(text(&reply), "unknown command 'workload.dance'");

    let reply = fixture.ask(&Command::Status, "panic").await?;
    assert_eq!(failure(&reply), Some(("500", "true")));
    assert!(
        text(&reply).starts_with("workload.status panic failed: "),
        "{reply:?}"
    );

    let reply = fixture.ask(&Command::Inspect, "large").await?;
    assert_eq!(failure(&reply), Some(("500", "false")));
    assert!(
        text(&reply).contains("reply of 100000 bytes exceeds"),
        "{reply:?}"
    );

    assert_eq!(
        text(&fixture.ask(&Command::Ping, "").await?),
        format!("{PING} ")
    );
    // Nothing of this has hurt it.
    assert_eq!(
        text(&fixture.ask(&Command::List, "").await?),
        "workload.list "
    );
    next(&mut fixture.heartbeats).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_is_heard_again_after_its_server_came_back() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    next(&mut fixture.heartbeats).await?;
    fixture.server.restart().await?;
    let client = fixture.server.client().await?;
    let mut heartbeats = client.subscribe(heartbeat_subject(&fixture.host)).await?;
    next(&mut heartbeats).await?;
    let subject = Command::Status.subject(&fixture.host);
    let reply = until(SOON, "it answers", async || {
        client.request(subject.clone(), "again".into()).await.ok()
    })
    .await?;
    assert_eq!(text(&reply), "workload.status again");
    assert!(fixture.ended.try_recv().is_err());
    Ok(())
}

#[tokio::test]
async fn draining_finishes_what_was_taken_and_says_goodbye_first() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    next(&mut fixture.events).await?;
    let mut start = fixture.send(&Command::Start, "a").await?;
    fixture.seen(1).await?;
    fixture.drain.stop();
    let goodbye = next(&mut fixture.events).await?;
    assert_eq!(
        goodbye.subject.as_str(),
        Event::Goodbye.subject(&fixture.host)
    );
    assert!(fixture.ended.try_recv().is_err());
    // Nobody takes commands any more.
    until(SOON, "it has unsubscribed", async || {
        let asked = fixture
            .client
            .request(Command::Status.subject(&fixture.host), "".into())
            .await;
        let gone = async_nats::RequestErrorKind::NoResponders;
        asked.is_err_and(|error| error.kind() == gone).then_some(())
    })
    .await?;
    fixture.answer.gate.add_permits(1);
    assert_eq!(text(&next(&mut start).await?), "started a");
    assert_eq!(fixture.end().await?, Ok(()));
    Ok(())
}

#[tokio::test]
async fn a_host_without_its_server_leaves_without_waiting_for_it() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    fixture.server.kill();
    until(SOON, "the connection is lost", async || {
        let state = fixture.own.connection_state();
        (state == async_nats::connection::State::Disconnected).then_some(())
    })
    .await?;
    let start = std::time::Instant::now();
    assert_eq!(fixture.end().await?, Ok(()));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_cannot_be_restored_ends_the_loop() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture.own.drain().await?;
    let Err(ControlError::Lost { subject, .. }) = timeout(SOON, fixture.ended).await?? else {
        panic!("it ended in good order");
    };
    assert_eq!(subject, "runtime.host.host-1.>");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let mut server = NatsServer::start().await?;
    server.kill();
    let drain = Drain::new(Handle::current());
    let waits = {
        let (config, drain) = (config(&server), drain.clone());
        async move { connect(&config, "early", &drain).await }
    };
    let (connected, restarted) = tokio::join!(timeout(SOON, waits), server.restart());
    restarted?;
    assert!(connected??.is_some());

    server.kill();
    let (config, stopped) = (config(&server), drain.clone());
    let (connected, ()) = tokio::join!(timeout(SOON, connect(&config, "late", &stopped)), async {
        drain.stop();
    });
    assert!(connected??.is_none());
    Ok(())
}
