//! One member of a group: fetches one message after the other, and settles them.

use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use async_nats::{StatusCode, Subscriber};
use async_trait::async_trait;
use capabilities::messaging::{
    Delivery, Error, Fate, Group, Message, Outcome, Result, Settle, Settled, Settlement,
    Subscription, is_subject,
};
use capabilities::{BoxError, report};
use futures::StreamExt;
use futures::stream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

use crate::OPERATION_TIMEOUT;
use crate::durable::{Kept, REPLY_TO};

/// How long the server remembers that a member waits for a message.
const FETCH_EXPIRES: Duration = Duration::from_secs(30);

/// How long after that it may take to say so.
const FETCH_GRACE: Duration = Duration::from_secs(5);

/// How often a member that waits looks whether it is still on the connection it asked on.
const TICK: Duration = Duration::from_millis(500);

/// How long after a failure a member begins anew.
const RETRY: Duration = Duration::from_millis(500);

/// Joins `group`, of which the server then knows.
pub(crate) async fn consume(kept: Arc<Kept>, group: Group) -> Result<Subscription> {
    let mut member = Member {
        kept,
        group: Arc::new(group),
        session: None,
        is_away: false,
    };
    member.session = Some(member.begin().await?);
    Ok(Box::pin(stream::unfold(member, async |mut member| {
        let delivery = member.next().await;
        Some((delivery, member))
    })))
}

struct Member {
    kept: Arc<Kept>,
    group: Arc<Group>,
    session: Option<Session>,
    /// Whether the log says that nothing can be fetched.
    is_away: bool,
}

/// A consumer that was there, and where its messages come in.
struct Session {
    consumer: PullConsumer,
    inbox: String,
    messages: Subscriber,
    /// The connection it began on.
    connects: u64,
    /// Until when the server remembers that a message is waited for; `None`: nothing was asked for.
    asked: Option<Instant>,
}

impl Member {
    fn connects(&self) -> u64 {
        self.kept
            .client
            .statistics()
            .connects
            .load(Ordering::Relaxed)
    }

    async fn begin(&self) -> Result<Session> {
        let connects = self.connects();
        let client = &self.kept.client;
        let consumer = self.kept.consumer(&self.group).await?;
        let inbox = client.new_inbox();
        let messages = tokio::time::timeout(OPERATION_TIMEOUT, client.subscribe(inbox.clone()));
        let messages = match messages.await {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => return Err(Error::Unavailable(error.into())),
            Err(_) => return Err(Error::Timeout(OPERATION_TIMEOUT)),
        };
        Ok(Session {
            consumer,
            inbox,
            messages,
            connects,
            asked: None,
        })
    }

    /// The next message, however long that takes.
    async fn next(&mut self) -> Delivery {
        loop {
            match self.fetch().await {
                Ok(message) => {
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(group = self.group.name, "messages come again");
                    }
                    if let Some(delivery) = self.deliver(message).await {
                        return delivery;
                    }
                }
                Err(error) => {
                    self.session = None;
                    let (group, error) = (&self.group.name, report(&*error));
                    match std::mem::replace(&mut self.is_away, true) {
                        true => tracing::debug!(group, error, "no messages come yet"),
                        false => tracing::warn!(group, error, "no messages come: trying again"),
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn fetch(&mut self) -> Result<async_nats::Message, BoxError> {
        loop {
            let connects = self.connects();
            let session = match &mut self.session {
                Some(session) if session.connects == connects => session,
                // The server may have forgotten that a message was waited for, or be another one.
                _ => {
                    self.session = None;
                    let session = self.begin().await?;
                    self.session.insert(session)
                }
            };
            if session.asked.is_none() {
                session.ask().await?;
            }
            let Ok(message) = tokio::time::timeout(TICK, session.messages.next()).await else {
                if session.asked.is_some_and(|until| until < Instant::now()) {
                    return Err("the server does not answer".into());
                }
                continue;
            };
            let message = message.ok_or("the connection was closed")?;
            match message.status {
                None => {
                    session.asked = None;
                    return Ok(message);
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => session.asked = None,
                Some(status) => {
                    let why = message.description.as_deref().unwrap_or_default();
                    return Err(format!("the server answers {status} {why}").into());
                }
            }
        }
    }

    /// `None` for a message that is not to be delivered once more.
    async fn deliver(&self, message: async_nats::Message) -> Option<Delivery> {
        let message = jetstream::Message {
            message,
            context: self.kept.jetstream.clone(),
        };
        let (attempt, sequence) = match message.info() {
            Ok(info) => (
                u32::try_from(info.delivered).unwrap_or(u32::MAX),
                info.stream_sequence,
            ),
            Err(error) => {
                tracing::debug!(%error, "a message that is no stream's was ignored");
                return None;
            }
        };
        let (message, acker) = message.split();
        let message = Message {
            subject: message.subject.into_string(),
            reply_to: reply_to(message.headers.as_ref()),
            body: message.payload,
        };
        let settlement = Unsettled {
            kept: Arc::clone(&self.kept),
            group: Arc::clone(&self.group),
            message: message.clone(),
            acker,
            attempt,
            sequence,
        };
        if let Some(why) = self.group.is_spent(attempt) {
            let (group, subject) = (&self.group.name, &message.subject);
            match settlement.carry_out(Fate::Dead(why)).await {
                Ok(_) => tracing::warn!(group, subject, attempt, "a message is a dead letter"),
                Err(error) => {
                    let error = report(&error);
                    tracing::warn!(group, subject, error, "a dead letter could not be sent");
                }
            }
            return None;
        }
        Some(Delivery {
            message,
            attempt,
            settle: Settle::by(settlement),
        })
    }
}

/// Where its sender wants an answer; a header that anybody can write.
fn reply_to(headers: Option<&HeaderMap>) -> Option<String> {
    let reply_to = headers?.get(REPLY_TO)?.as_str();
    is_subject(reply_to).then(|| reply_to.to_owned())
}

impl Session {
    async fn ask(&mut self) -> Result<(), BoxError> {
        let one = pull::BatchConfig {
            batch: 1,
            expires: Some(FETCH_EXPIRES),
            ..pull::BatchConfig::default()
        };
        let asked = self.consumer.request_batch(one, self.inbox.clone().into());
        tokio::time::timeout(OPERATION_TIMEOUT, asked).await??;
        self.asked = Some(Instant::now() + FETCH_EXPIRES + FETCH_GRACE);
        Ok(())
    }
}

/// A message that was delivered and is not settled yet.
struct Unsettled {
    kept: Arc<Kept>,
    group: Arc<Group>,
    message: Message,
    acker: Acker,
    attempt: u32,
    sequence: u64,
}

impl Unsettled {
    async fn say(&self, kind: AckKind) -> Result<()> {
        match tokio::time::timeout(OPERATION_TIMEOUT, self.acker.ack_with(kind)).await {
            Ok(said) => said.map_err(Error::Unavailable),
            Err(_) => Err(Error::Timeout(OPERATION_TIMEOUT)),
        }
    }

    async fn carry_out(&self, fate: Fate) -> Result<Settled> {
        let (kind, settled) = match fate {
            Fate::Done => (AckKind::Ack, Settled::Done),
            Fate::Back => (AckKind::Nak(None), Settled::Again),
            Fate::Again(pause) => (AckKind::Nak(Some(pause)), Settled::Again),
            Fate::Dead(why) => {
                self.bury(&why).await?;
                (AckKind::Term, Settled::Dead)
            }
        };
        self.say(kind).await.map(|()| settled)
    }

    /// Stays the stream's until it is a dead letter's.
    async fn bury(&self, why: &str) -> Result<()> {
        let Some(dead_letter) = &self.group.redelivery.dead_letter else {
            return Ok(());
        };
        let said = (self.attempt, why);
        let (message, group) = (&self.message, &self.group.name);
        let buried = self
            .kept
            .bury(dead_letter, message, group, self.sequence, said);
        if let Err(error) = buried.await {
            let pause = self.group.redelivery.backoff.last().copied();
            self.say(AckKind::Nak(pause)).await?;
            return Err(error);
        }
        Ok(())
    }
}

#[async_trait]
impl Settlement for Unsettled {
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<Settled> {
        let fate = self.group.fate(self.attempt, outcome);
        self.carry_out(fate).await
    }

    async fn renew(&self) {
        if let Err(error) = self.say(AckKind::Progress).await {
            tracing::debug!(error = report(&error), "a message was not renewed");
        }
    }

    fn renew_every(&self) -> Duration {
        self.group.redelivery.ack_wait / 3
    }
}
