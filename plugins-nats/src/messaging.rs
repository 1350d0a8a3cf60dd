//! Messages on core NATS: at most once, to whoever listens.

use async_nats::connection::State;
use async_nats::{Client, PublishErrorKind, Request, RequestErrorKind, SubscribeErrorKind};
use async_trait::async_trait;
use capabilities::messaging::{
    Delivery, Error, Message, MessageBus, Offers, Result, Settle, Subscription, is_filter,
    is_group, is_subject,
};
use futures::StreamExt;
use std::future::Future;
use std::time::Duration;

use crate::OPERATION_TIMEOUT;

/// How long the server has to show that it knows a subscription; less than the whole exchange has.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(2);

/// The subjects of one connection; they are the whole account's, whatever the namespace.
pub(crate) struct Bus {
    client: Client,
}

impl Bus {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Whether `message` can be sent to `subject`.
    pub(crate) fn check(&self, subject: &str, message: &Message) -> Result<()> {
        if !is_subject(subject) {
            return Err(Error::InvalidSubject(subject.to_owned()));
        }
        let (bytes, bytes_max) = (message.body.len(), self.client.max_payload());
        match bytes > bytes_max {
            true => Err(Error::TooLarge { bytes, bytes_max }),
            false => Ok(()),
        }
    }

    /// The error of an exchange that got no answer in `limit`.
    fn silence(&self, limit: Duration) -> Error {
        match self.client.connection_state() {
            State::Connected => Error::Timeout(limit),
            _ => Error::Unavailable("not connected to NATS".into()),
        }
    }

    async fn limited<T>(&self, exchange: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(OPERATION_TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(self.silence(OPERATION_TIMEOUT)))
    }

    /// Returns when the server has seen all that was sent before.
    ///
    /// The client's own flush ends at the socket. Nobody listens on a fresh inbox, and the server, which
    /// reads a connection in order, says so.
    async fn round_trip(&self) -> Result<()> {
        let request = Request::new().timeout(Some(ROUND_TRIP_TIMEOUT));
        match self
            .client
            .send_request(self.client.new_inbox(), request)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(()),
                RequestErrorKind::TimedOut
                    if self.client.connection_state() == State::Connected =>
                {
                    tracing::debug!("no round trip: the account may forbid publishing to inboxes");
                    Ok(())
                }
                RequestErrorKind::TimedOut => Err(self.silence(OPERATION_TIMEOUT)),
                _ => Err(Error::Unavailable(error.into())),
            },
        }
    }
}

#[async_trait]
impl MessageBus for Bus {
    fn offers(&self) -> Offers {
        Offers::TRANSIENT
    }

    async fn publish(&self, message: Message) -> Result<()> {
        self.check(&message.subject, &message)?;
        check_reply(&message)?;
        let Message {
            subject,
            body,
            reply_to,
        } = message;
        let bytes = body.len();
        self.limited(async {
            let sent = match reply_to {
                Some(reply_to) => {
                    self.client
                        .publish_with_reply(subject.clone(), reply_to, body)
                        .await
                }
                None => self.client.publish(subject.clone(), body).await,
            };
            sent.map_err(|error| match error.kind() {
                PublishErrorKind::InvalidSubject => Error::InvalidSubject(subject),
                PublishErrorKind::MaxPayloadExceeded => Error::TooLarge {
                    bytes,
                    bytes_max: self.client.max_payload(),
                },
                PublishErrorKind::Send => Error::Unavailable(error.into()),
            })
        })
        .await
    }

    async fn request(&self, message: Message, timeout: Duration) -> Result<Message> {
        self.check(&message.subject, &message)?;
        let bytes = message.body.len();
        let request = Request::new().payload(message.body).timeout(Some(timeout));
        let exchange = self.client.send_request(message.subject.clone(), request);
        // The client's limit begins when the request is queued, which takes time while disconnected.
        let answer = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => return Err(self.silence(timeout)),
        };
        answer.map(received).map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Error::NoResponders,
            RequestErrorKind::TimedOut => self.silence(timeout),
            RequestErrorKind::InvalidSubject => Error::InvalidSubject(message.subject),
            RequestErrorKind::MaxPayloadExceeded => Error::TooLarge {
                bytes,
                bytes_max: self.client.max_payload(),
            },
            RequestErrorKind::Other => Error::Unavailable(error.into()),
        })
    }

    async fn subscribe(&self, subject: &str, group: Option<&str>) -> Result<Subscription> {
        if !is_filter(subject) {
            return Err(Error::InvalidSubject(subject.to_owned()));
        }
        if let Some(group) = group.filter(|group| !is_group(group)) {
            return Err(Error::InvalidGroup(group.to_owned()));
        }
        let messages = self
            .limited(async {
                let subscribed = match group {
                    Some(group) => {
                        self.client
                            .queue_subscribe(subject.to_owned(), group.to_owned())
                            .await
                    }
                    None => self.client.subscribe(subject.to_owned()).await,
                };
                let messages = subscribed.map_err(|error| match error.kind() {
                    SubscribeErrorKind::InvalidSubject => Error::InvalidSubject(subject.to_owned()),
                    _ => Error::Unavailable(error.into()),
                })?;
                self.round_trip().await?;
                Ok(messages)
            })
            .await?;
        // A status is the server's own word, such as that nobody listens; no guest sent it.
        Ok(Box::pin(
            messages
                .filter(|message| std::future::ready(message.status.is_none()))
                .map(|message| Delivery {
                    message: received(message),
                    attempt: 1,
                    settle: Settle::none(),
                }),
        ))
    }
}

/// Whether an answer to `message` could be sent, if one is asked for.
pub(crate) fn check_reply(message: &Message) -> Result<()> {
    match &message.reply_to {
        Some(reply_to) if !is_subject(reply_to) => Err(Error::InvalidSubject(reply_to.clone())),
        _ => Ok(()),
    }
}

fn received(message: async_nats::Message) -> Message {
    Message {
        subject: message.subject.into_string(),
        body: message.payload,
        reply_to: message.reply.map(async_nats::Subject::into_string),
    }
}
