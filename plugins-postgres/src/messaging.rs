//! Messages in rows: a copy for each group that hears the subject, until that group has settled it.
//!
//! Groups, and so subjects, belong to a namespace. Who waits is woken at once by what is sent on the same host,
//! and by a look at all waiting queues together, which [`Bells::run`] takes, for all else.

use async_trait::async_trait;
use capabilities::messaging::{
    Error, Group, Message, MessageBus, Offers, Result, Subscription, is_subject,
};
use capabilities::plugin::Scope;
use sqlx::Row;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

use crate::OPERATION_TIMEOUT;
use crate::database::{self, Database};
use crate::queue;

/// The largest body, in bytes: what an asynchronous component can send.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How often queues that somebody waits at are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often queues are looked for that have been without members for too long.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// How many messages of such a queue one statement deletes.
const FORGET_ROWS: i64 = 1000;

/// How many such statements follow each other.
const FORGET_STEPS_MAX: usize = 64;

/// How often a message is sent again because a group is being forgotten at that moment.
const SENDS_MAX: u32 = 3;

mod sql {
    pub(super) const SEND: &str = "\
        INSERT INTO washlet.message (queue, subject, reply_to, body) \
        SELECT id, $2, $3, $4 FROM washlet.queue \
        WHERE scope = $1 AND $2 ~ ANY (patterns) AND seen_at + forget_after > now() RETURNING queue";

    pub(super) const READY: &str = "\
        SELECT q.id FROM unnest($1::bigint[]) AS q (id) WHERE EXISTS \
        (SELECT 1 FROM washlet.message m WHERE m.queue = q.id AND m.ready_at <= now())";

    /// Deletes some messages of a queue without members, and the queue after the last; no row without one.
    pub(super) const FORGET: &str = "\
        WITH lone AS (SELECT id FROM washlet.queue WHERE seen_at + forget_after <= now() \
        LIMIT 1 FOR UPDATE SKIP LOCKED), \
        part AS (SELECT m.id FROM washlet.message m JOIN lone ON m.queue = lone.id LIMIT $1), \
        gone AS (DELETE FROM washlet.message m USING part WHERE m.id = part.id), \
        empty AS (DELETE FROM washlet.queue q USING lone \
        WHERE q.id = lone.id AND NOT EXISTS (SELECT 1 FROM part)) SELECT id FROM lone";
}

/// Wakes those who wait for messages.
pub(crate) struct Bells {
    database: Arc<Database>,
    /// By queue, for as long as a member holds it.
    bells: Mutex<HashMap<i64, Weak<Notify>>>,
}

impl Bells {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            bells: Mutex::default(),
        }
    }

    /// What rings when `queue` has a message.
    pub(crate) fn of(&self, queue: i64) -> Arc<Notify> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = bells.get(&queue).and_then(Weak::upgrade) {
            return bell;
        }
        let bell = Arc::<Notify>::default();
        bells.insert(queue, Arc::downgrade(&bell));
        bell
    }

    pub(crate) fn ring(&self, queues: &[i64]) {
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        for bell in queues.iter().filter_map(|queue| bells.get(queue)) {
            if let Some(bell) = bell.upgrade() {
                bell.notify_waiters();
                // For one who is about to wait.
                bell.notify_one();
            }
        }
    }

    /// The queues that have members here.
    fn queues(&self) -> Vec<i64> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|_, bell| bell.strong_count() > 0);
        bells.keys().copied().collect()
    }

    /// Looks after queues for as long as it is polled.
    pub(crate) async fn run(&self) {
        let (mut forgot, mut is_away) = (None::<Instant>, false);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let queues = self.queues();
            if queues.is_empty() {
                continue;
            }
            let looked = self.look(queues).await;
            let forgotten = match forgot {
                Some(forgot) if forgot.elapsed() < FORGET_EVERY => Ok(()),
                _ => {
                    forgot = Some(Instant::now());
                    self.forget().await
                }
            };
            let Err(error) = looked.and(forgotten) else {
                is_away = false;
                continue;
            };
            let error = capabilities::report(&error);
            match std::mem::replace(&mut is_away, true) {
                true => tracing::debug!(error, "queues are still not looked after"),
                false => {
                    tracing::warn!(error, "queues cannot be looked after: messages may be late")
                }
            }
        }
    }

    async fn look(&self, queues: Vec<i64>) -> database::Result<()> {
        let ready = sqlx::query(sql::READY).bind(queues);
        let ready = self.database.rows(ready, OPERATION_TIMEOUT).await?;
        self.ring(&queues_of(&ready)?);
        Ok(())
    }

    async fn forget(&self) -> database::Result<()> {
        for _ in 0..FORGET_STEPS_MAX {
            let forget = sqlx::query(sql::FORGET).bind(FORGET_ROWS);
            if self.database.row(forget).await?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// The queues that a statement gave.
pub(crate) fn queues_of(rows: &[sqlx::postgres::PgRow]) -> database::Result<Vec<i64>> {
    let queues = rows.iter().map(|row| Ok(row.try_get(0)?));
    queues.collect()
}

/// One view of the groups: that of who asked.
pub(crate) struct Bus {
    database: Arc<Database>,
    bells: Arc<Bells>,
    scope: Vec<u8>,
}

impl Bus {
    pub(crate) fn new(database: Arc<Database>, bells: Arc<Bells>, scope: &Scope) -> Self {
        // Stored data fixes these.
        let scope = match scope {
            Scope::Namespace(namespace) => format!("namespace {namespace}"),
            Scope::Shared | Scope::Flat => "shared".to_owned(),
        };
        Self {
            database,
            bells,
            scope: scope.into_bytes(),
        }
    }
}

#[async_trait]
impl MessageBus for Bus {
    fn offers(&self) -> Offers {
        Offers::DURABLE
    }

    async fn publish(&self, message: Message) -> Result<()> {
        let Message {
            subject,
            body,
            reply_to,
        } = message;
        for subject in reply_to.iter().chain([&subject]) {
            if !is_subject(subject) {
                return Err(Error::InvalidSubject(subject.clone()));
            }
        }
        let bytes = body.len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Error::TooLarge {
                bytes,
                bytes_max: MESSAGE_BYTES_MAX,
            });
        }
        let mut sends = 1;
        let queues = loop {
            let send = sqlx::query(sql::SEND)
                .bind(self.scope.clone())
                .bind(encode(&subject))
                .bind(reply_to.as_deref().map(encode))
                .bind(body.to_vec());
            match self.database.rows(send, OPERATION_TIMEOUT).await {
                Err(database::Error::NoReference) if sends < SENDS_MAX => sends += 1,
                sent => break sent?,
            }
        };
        self.bells.ring(&queues_of(&queues)?);
        Ok(())
    }

    async fn request(&self, _message: Message, _timeout: Duration) -> Result<Message> {
        Err(Error::Unsupported(
            "a request with Postgres (name a second entry, with 'nats', for requests)",
        ))
    }

    async fn subscribe(&self, _subject: &str, _group: Option<&str>) -> Result<Subscription> {
        Err(Error::Unsupported("transient delivery"))
    }

    async fn consume(&self, group: &Group) -> Result<Subscription> {
        group.check()?;
        let (database, bells) = (Arc::clone(&self.database), Arc::clone(&self.bells));
        queue::consume(database, bells, self.scope.clone(), group.clone()).await
    }
}

/// A subject as it is stored: bytes that are not visible ASCII, and `%`, as `%` and two hex digits.
pub(crate) fn encode(subject: &str) -> String {
    let mut encoded = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            byte if byte.is_ascii_graphic() => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// What [`encode`] made `encoded` of; what it did not make stays as it is.
pub(crate) fn decode(encoded: &str) -> String {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut parts = encoded.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let byte = part
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, part.get(2..)) {
            (Some(byte), Some(rest)) => {
                bytes.push(byte);
                bytes.extend(rest.bytes());
            }
            _ => bytes.extend([b"%", part.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The regular expression of the stored subjects that belong to `filter`.
pub(crate) fn pattern(filter: &str) -> String {
    let tokens = filter.split('.').map(|token| match token {
        "*" => "[^.]+".to_owned(),
        ">" => ".+".to_owned(),
        token => encode(token).chars().fold(String::new(), |literal, c| {
            // What is a letter must not be escaped, what is not may be.
            let escape = if c.is_ascii_alphanumeric() { "" } else { "\\" };
            literal + escape + c.encode_utf8(&mut [0; 4])
        }),
    });
    format!("^{}$", tokens.collect::<Vec<_>>().join("\\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stored data fixes these.
    #[test]
    fn subjects_are_stored_as_ascii() {
        for (subject, encoded) in [
            ("a.b-C_9", "a.b-C_9"),
            ("50%.x", "50%25.x"),
            ("é.$", "%C3%A9.$"),
        ] {
            assert_eq!(encode(subject), encoded);
            assert_eq!(decode(encoded), subject);
        }
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn filters_become_patterns() {
        for (filter, expected) in [
            ("a.b", r"^a\.b$"),
            ("a.*.>", r"^a\.[^.]+\..+$"),
            (">", "^.+$"),
            ("a+(é)", r"^a\+\(\%C3\%A9\)$"),
        ] {
            assert_eq!(pattern(filter), expected);
        }
    }
}
