//! A bus of one bounded queue for each subscription.

use async_trait::async_trait;
use futures::stream::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

use crate::messaging::{
    Delivery, Error, Message, MessageBus, Offers, Result, Settle, Subscription, is_filter,
    is_group, is_subject, matches,
};

/// The largest body, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How many messages wait for one subscriber; more are dropped.
const QUEUE_MESSAGES_MAX: usize = 4096;
/// How many bytes of bodies wait for one subscriber; more are dropped.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Everybody who listens.
#[derive(Default)]
pub(super) struct Bus {
    subscribers: Mutex<BTreeMap<u64, Subscriber>>,
    /// Names subscriptions and inboxes, and turns the groups.
    next: AtomicU64,
    dropped: AtomicU64,
}

struct Subscriber {
    filter: String,
    group: Option<String>,
    queue: mpsc::Sender<Message>,
    /// Of the bodies in the queue.
    queue_bytes: Arc<AtomicUsize>,
}

impl Bus {
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn subscribers(&self) -> MutexGuard<'_, BTreeMap<u64, Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether anybody listens to `message`.
    fn send(&self, message: &Message) -> Result<bool> {
        check_subject(&message.subject)?;
        if let Some(reply_to) = &message.reply_to {
            check_subject(reply_to)?;
        }
        let bytes = message.body.len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Error::TooLarge {
                bytes,
                bytes_max: MESSAGE_BYTES_MAX,
            });
        }
        let subscribers = self.subscribers();
        let mut groups: BTreeMap<&str, Vec<&Subscriber>> = BTreeMap::new();
        let mut heard = false;
        for subscriber in subscribers.values() {
            if matches(&subscriber.filter, &message.subject) {
                heard = true;
                match &subscriber.group {
                    None => self.deliver(subscriber, message),
                    Some(group) => groups.entry(group).or_default().push(subscriber),
                }
            }
        }
        let turn = self.next();
        for members in groups.values() {
            let turn = turn as usize % members.len();
            let (before, from) = members.split_at(turn);
            // One whose queue is full is passed over while another of the group has room.
            let roomy = from
                .iter()
                .chain(before)
                .find(|member| member.has_room(bytes));
            if let Some(member) = roomy.or(from.first()) {
                self.deliver(member, message);
            }
        }
        Ok(heard)
    }

    fn deliver(&self, subscriber: &Subscriber, message: &Message) {
        let bytes = message.body.len();
        if subscriber.has_room(bytes) {
            // Counted first: the receiver may take the message away at once.
            subscriber.queue_bytes.fetch_add(bytes, Ordering::Relaxed);
            if subscriber.queue.try_send(message.clone()).is_ok() {
                return;
            }
            subscriber.queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn listen(self: &Arc<Self>, filter: &str, group: Option<&str>) -> Listening {
        let id = self.next();
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let queue_bytes = Arc::<AtomicUsize>::default();
        let subscriber = Subscriber {
            filter: filter.to_owned(),
            group: group.map(str::to_owned),
            queue,
            queue_bytes: queue_bytes.clone(),
        };
        self.subscribers().insert(id, subscriber);
        Listening {
            bus: self.clone(),
            id,
            messages,
            queue_bytes,
        }
    }
}

impl Subscriber {
    fn has_room(&self, bytes: usize) -> bool {
        self.queue.capacity() > 0
            && self.queue_bytes.load(Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX
    }
}

fn check_subject(subject: &str) -> Result<()> {
    match is_subject(subject) {
        true => Ok(()),
        false => Err(Error::InvalidSubject(subject.to_owned())),
    }
}

/// The receiving end of a subscription; dropping it unsubscribes.
struct Listening {
    bus: Arc<Bus>,
    id: u64,
    messages: mpsc::Receiver<Message>,
    queue_bytes: Arc<AtomicUsize>,
}

impl Stream for Listening {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let message = self.messages.poll_recv(cx);
        if let Poll::Ready(Some(message)) = &message {
            self.queue_bytes
                .fetch_sub(message.body.len(), Ordering::Relaxed);
        }
        message
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.bus.subscribers().remove(&self.id);
    }
}

#[async_trait]
impl MessageBus for Arc<Bus> {
    fn offers(&self) -> Offers {
        Offers::TRANSIENT
    }

    async fn publish(&self, message: Message) -> Result<()> {
        self.send(&message).map(drop)
    }

    async fn request(&self, message: Message, timeout: Duration) -> Result<Message> {
        let inbox = format!("_INBOX.{}", self.next());
        let mut answers = self.listen(&inbox, None);
        if !self.send(&Message {
            reply_to: Some(inbox),
            ..message
        })? {
            return Err(Error::NoResponders);
        }
        match tokio::time::timeout(timeout, answers.next()).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(Error::Timeout(timeout)),
        }
    }

    async fn subscribe(&self, subject: &str, group: Option<&str>) -> Result<Subscription> {
        if !is_filter(subject) {
            return Err(Error::InvalidSubject(subject.to_owned()));
        }
        if let Some(group) = group.filter(|group| !is_group(group)) {
            return Err(Error::InvalidGroup(group.to_owned()));
        }
        let messages = self.listen(subject, group);
        Ok(Box::pin(messages.map(|message| Delivery {
            message,
            attempt: 1,
            settle: Settle::none(),
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(subject: &str, bytes: usize) -> Message {
        Message {
            subject: subject.into(),
            body: Bytes::from(vec![0; bytes]),
            reply_to: None,
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_messages_and_they_are_counted() {
        let bus = Arc::<Bus>::default();
        let mut slow = bus.subscribe("a", None).await.unwrap();
        for _ in 0..QUEUE_MESSAGES_MAX + 7 {
            bus.publish(message("a", 1)).await.unwrap();
        }
        assert_eq!(bus.dropped(), 7);
        slow.next().await.unwrap();
        bus.publish(message("a", 1)).await.unwrap();
        assert_eq!(bus.dropped(), 7);
    }

    #[tokio::test]
    async fn a_queue_is_bounded_in_bytes() {
        let bus = Arc::<Bus>::default();
        let mut slow = bus.subscribe("a", None).await.unwrap();
        for _ in 0..20 {
            bus.publish(message("a", MESSAGE_BYTES_MAX)).await.unwrap();
        }
        assert_eq!(bus.dropped(), 4);
        slow.next().await.unwrap();
        bus.publish(message("a", MESSAGE_BYTES_MAX)).await.unwrap();
        assert_eq!(bus.dropped(), 4);
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_request() {
        let bus = Arc::<Bus>::default();
        let _silent = bus.subscribe("a", None).await.unwrap();
        let error = bus
            .request(message("a", 0), Duration::from_millis(1))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
        assert_eq!(bus.subscribers().len(), 1);
    }
}
