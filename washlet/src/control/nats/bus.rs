//! What the control plane needs of a connection to NATS, so that the simulation can stand in for one.

use std::future::Future;
use std::sync::atomic::Ordering;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use capabilities::BoxError;
use futures::StreamExt;

use super::connect::chance;
use crate::health::Link;

/// A connection to NATS. Shape: clones are the same connection.
pub trait Bus: Clone + Send + Sync + 'static {
    /// Messages of one subscription.
    type Incoming: Incoming;

    /// How the connection is.
    fn link(&self) -> Link;

    /// The largest message the server takes, in bytes.
    fn payload_bytes_max(&self) -> usize;

    /// From 0 to 1, by chance: so that many hosts do not do the same at the same time.
    fn chance(&self) -> f64;

    /// Subscribes to `subject`; the server may learn of it later.
    fn subscribe(
        &self,
        subject: String,
    ) -> impl Future<Output = Result<Self::Incoming, BoxError>> + Send;

    /// Completes when the server knows what was subscribed to, or cannot be asked.
    fn round_trip(&self) -> impl Future<Output = ()> + Send;

    /// Hands a message over; it may be lost afterwards.
    fn publish(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Whether everything published has left.
    fn flush(&self) -> impl Future<Output = bool> + Send;
}

/// Messages of one subscription, in order.
pub trait Incoming: Send + 'static {
    /// The next one; `None` when the subscription has ended.
    ///
    /// Shape: dropping it loses no message.
    fn next(&mut self) -> impl Future<Output = Option<Message>> + Send;

    /// No more messages; those that are here already still come.
    fn unsubscribe(&mut self) -> impl Future<Output = ()> + Send;
}

impl Bus for Client {
    type Incoming = Subscriber;

    fn link(&self) -> Link {
        Link {
            up: self.connection_state() == State::Connected,
            made: self.statistics().connects.load(Ordering::Relaxed),
        }
    }

    fn payload_bytes_max(&self) -> usize {
        self.max_payload()
    }

    fn chance(&self) -> f64 {
        chance()
    }

    async fn subscribe(&self, subject: String) -> Result<Subscriber, BoxError> {
        Ok(Client::subscribe(self, subject).await?)
    }

    async fn round_trip(&self) {
        let inbox = self.new_inbox();
        if let Ok(mut own) = Client::subscribe(self, inbox.clone()).await
            && Client::publish(self, inbox, Bytes::new()).await.is_ok()
        {
            StreamExt::next(&mut own).await;
        }
    }

    async fn publish(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), BoxError> {
        match headers {
            None => Client::publish(self, subject, payload).await?,
            Some(headers) => {
                Client::publish_with_headers(self, subject, headers, payload).await?;
            }
        }
        Ok(())
    }

    async fn flush(&self) -> bool {
        Client::flush(self).await.is_ok()
    }
}

impl Incoming for Subscriber {
    async fn next(&mut self) -> Option<Message> {
        StreamExt::next(self).await
    }

    async fn unsubscribe(&mut self) {
        // An unsubscribed stream ends after what it holds already.
        let _ = Subscriber::unsubscribe(self).await;
    }
}
