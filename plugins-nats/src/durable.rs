//! Messages that a stream of JetStream keeps until every group has settled them.
//!
//! A group is one durable consumer. A new stream keeps what some group still has to settle. Dead letters that no
//! stream takes have one of their own, named like the other with `-dead`, which keeps them until they are settled
//! or taken away. A stream that exists is used as it is.

use async_nats::Client;
use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{Config, ConsumersError, RetentionPolicy, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use capabilities::messaging::{
    Error, Group, Message, MessageBus, Offers, Result, Subscription, durable, is_filter, matches,
    may_hear,
};
use capabilities::names;
use capabilities::plugin::{Ask, OpenError, Scope};
use capabilities::report;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

use crate::exchange::{self, limited};
use crate::{blueprint, group, messaging};

/// What a message may need besides its body: headers that say where an answer goes, or why it is a dead letter.
pub(crate) const HEADERS_BYTES_MAX: usize = 8 << 10;

/// Where an answer goes. A stream acknowledges a message to the reply subject it came with, so that this travels
/// on its own.
pub(crate) const REPLY_TO: &str = "Washlet-Reply-To";

/// How many messages of one group may be unsettled, on all hosts together.
const UNSETTLED_MAX: i64 = 4096;

/// How long a consumer's name or part of a stream's may be that is made of other text, in bytes.
const READABLE_BYTES_MAX: usize = 100;

/// One entry's view of one stream.
pub(crate) struct Bus(Arc<Kept>);

/// The stream, and how it is made.
pub(crate) struct Kept {
    core: messaging::Bus,
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    scope: Scope,
    /// As it was configured, and as JetStream knows it.
    shown: String,
    name: String,
    /// What a new one is made with; `None` refuses one that does not exist.
    blueprint: Option<Config>,
    /// What a new one takes; empty: what its first group hears.
    subjects: Vec<String>,
}

impl Bus {
    /// Reads the settings of `ask`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is looked up at the server.
    pub(crate) fn open(
        core: messaging::Bus,
        client: Client,
        ask: &Ask<'_>,
    ) -> Result<Self, OpenError> {
        let settings = &ask.settings;
        let shown = settings
            .required("stream", "the name of a stream")?
            .to_owned();
        let scope = ask.scope()?;
        let name =
            names::bucket(&scope, &shown).map_err(|error| OpenError::Storage(error.into()))?;
        if ["KV_", "OBJ_"].iter().any(|taken| name.starts_with(taken)) {
            return Err(OpenError::Setting {
                key: "stream",
                expected: "no name of a bucket's stream (KV_, OBJ_)",
            });
        }
        let expected = "a list of subjects for components, such as 'orders.>, bills.*'";
        let subjects = settings.parsed("stream_subjects", expected, |text| {
            let subjects = text.split(',').map(|subject| subject.trim().to_owned());
            let subjects: Vec<_> = subjects.collect();
            let good = |subject: &String| is_filter(subject) && may_hear(subject);
            subjects.iter().all(good).then_some(subjects)
        })?;
        let blueprint = blueprint::stream(settings)?;
        let create = settings.boolean("create")?.unwrap_or(true);
        Ok(Self(Arc::new(Kept {
            core,
            jetstream: jetstream::new(client.clone()),
            client,
            scope,
            shown,
            name,
            blueprint: create.then_some(blueprint),
            subjects: subjects.unwrap_or_default(),
        })))
    }
}

impl Kept {
    /// The consumer of `group`, made if it is not there, with its stream.
    pub(crate) async fn consumer(&self, group: &Group) -> Result<PullConsumer> {
        let stream = self.jetstream.get_stream(&self.name);
        let stream = match limited(&self.client, stream).await {
            Ok(stream) => stream,
            Err(exchange::Error::NoStream) => self.make(group).await?,
            Err(error) => return Err(error.into()),
        };
        let takes = &stream.cached_info().config.subjects;
        let missing = |subject: &&&str| !takes.iter().any(|taken| matches(taken, subject));
        let filters = group.filters();
        if let Some(missing) = filters.iter().find(missing) {
            return Err(does_not_take(&self.shown, takes, missing));
        }
        if let Some(dead) = &group.redelivery.dead_letter {
            self.keep_dead_letters(dead).await?;
        }
        let mut config = pull::Config {
            durable_name: Some(legal(&group.name)),
            ack_policy: AckPolicy::Explicit,
            ack_wait: group.redelivery.ack_wait,
            // Counted here, so that what is delivered too often becomes a dead letter first.
            max_deliver: -1,
            max_ack_pending: UNSETTLED_MAX,
            inactive_threshold: group.redelivery.forget_after,
            ..pull::Config::default()
        };
        match filters.as_slice() {
            [only] => config.filter_subject = (*only).to_owned(),
            several => {
                let several = several.iter().map(|filter| (*filter).to_owned());
                config.filter_subjects = several.collect();
            }
        }
        Ok(limited(&self.client, stream.create_consumer(config)).await?)
    }

    async fn make(&self, group: &Group) -> Result<Stream> {
        let Some(blueprint) = &self.blueprint else {
            return Err(Error::Setup(format!(
                "stream '{}' does not exist, and 'create' is false",
                self.shown
            )));
        };
        let filters = || group.filters().into_iter().map(str::to_owned).collect();
        let subjects = match self.subjects.is_empty() {
            true => filters(),
            false => self.subjects.clone(),
        };
        let config = Config {
            name: self.name.clone(),
            subjects,
            retention: RetentionPolicy::Interest,
            allow_rollup: false,
            ..blueprint.clone()
        };
        self.create(&self.shown, config).await
    }

    /// Makes a stream, unless another host just did.
    async fn create(&self, shown: &str, config: Config) -> Result<Stream> {
        let name = config.name.clone();
        let taken = config.subjects.join(", ");
        let error = match limited(&self.client, self.jetstream.create_stream(config)).await {
            Ok(stream) => return Ok(stream),
            Err(exchange::Error::Refused(error)) => error,
            Err(error) => return Err(error.into()),
        };
        match limited(&self.client, self.jetstream.get_stream(&name)).await {
            Ok(stream) => Ok(stream),
            Err(_) => Err(Error::Setup(format!(
                "a stream '{shown}' for {taken} cannot be made ({}): if another stream has these subjects, name that \
                 one, with 'shared' if it is no namespace's",
                report(&*error)
            ))),
        }
    }

    /// Whatever stream takes `subject` will do if it keeps what it takes; if none does, one is made.
    async fn keep_dead_letters(&self, subject: &str) -> Result<()> {
        let find = async {
            match self.jetstream.stream_by_subject(subject).await {
                Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
                found => found.map(Some),
            }
        };
        if let Some(name) = limited(&self.client, find).await? {
            return self.hears_dead_letters(&name, subject).await;
        }
        let Some(blueprint) = &self.blueprint else {
            return Err(Error::Setup(format!(
                "no stream takes 'dead_letter' '{subject}', and 'create' is false"
            )));
        };
        let shown = format!("{}-dead", self.shown);
        let name = names::bucket(&self.scope, &shown);
        let config = Config {
            name: name.map_err(|error| Error::Setup(error.to_string()))?,
            subjects: vec![subject.to_owned()],
            retention: RetentionPolicy::WorkQueue,
            allow_rollup: false,
            ..blueprint.clone()
        };
        let stream = self.create(&shown, config).await?;
        let mut config = stream.cached_info().config.clone();
        if config.subjects.iter().any(|taken| matches(taken, subject)) {
            return Ok(());
        }
        if config.retention != RetentionPolicy::WorkQueue {
            return Err(does_not_take(&shown, &config.subjects, subject));
        }
        // It has those of other groups. Who adds at the same moment may undo this: then it is added once more
        // when a dead letter finds no stream.
        config.subjects.push(subject.to_owned());
        limited(&self.client, self.jetstream.update_stream(config)).await?;
        Ok(())
    }

    /// Whether the stream `name` keeps what comes on `subject`.
    async fn hears_dead_letters(&self, name: &str, subject: &str) -> Result<()> {
        let stream = limited(&self.client, self.jetstream.get_stream(name)).await?;
        if stream.cached_info().config.retention != RetentionPolicy::Interest {
            return Ok(());
        }
        let heard = async {
            let mut consumers = stream.consumers();
            while let Some(consumer) = consumers.try_next().await? {
                let config = consumer.config;
                let several = &config.filter_subjects;
                let one = &config.filter_subject;
                let hears_all = several.is_empty() && one.is_empty();
                let mut filters = several.iter().chain([one]);
                if hears_all || filters.any(|filter| matches(filter, subject)) {
                    return Ok(true);
                }
            }
            Ok::<_, ConsumersError>(false)
        };
        match limited(&self.client, heard).await? {
            true => Ok(()),
            false => Err(Error::Setup(format!(
                "dead letters on '{subject}' would be lost: stream '{name}' takes them, and forgets what no group \
                 hears; choose a subject that it does not take, or start first who hears them"
            ))),
        }
    }

    /// Sends a message that a stream must take; whether one has.
    async fn keep(&self, subject: &str, headers: Option<HeaderMap>, body: Bytes) -> Result<bool> {
        let (subject, headers) = (subject.to_owned(), headers.unwrap_or_default());
        let sent = async {
            let sent = self.jetstream.publish_with_headers(subject, headers, body);
            match sent.await?.await {
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => Ok(false),
                taken => taken.map(|_| true),
            }
        };
        Ok(limited(&self.client, sent).await?)
    }

    /// Sends `message`, of `group`, to the subject of dead letters, once however often it is tried in short.
    pub(crate) async fn bury(
        &self,
        dead_letter: &str,
        message: &Message,
        group: &str,
        sequence: u64,
        (deliveries, why): (u32, &str),
    ) -> Result<()> {
        let mut headers = HeaderMap::new();
        let deliveries = deliveries.to_string();
        let id = format!("{}/{}/{sequence}", self.name, legal(group));
        headers.insert(NATS_MESSAGE_ID, id);
        let why = durable::reason(why);
        let said = [
            ("Washlet-Subject", Some(message.subject.as_str())),
            ("Washlet-Reason", Some(why.as_str())),
            ("Washlet-Deliveries", Some(deliveries.as_str())),
            ("Washlet-Group", Some(group)),
            (REPLY_TO, message.reply_to.as_deref()),
        ];
        for (name, value) in said {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        // Whoever sent it without a host may have left no room for them.
        let has_room = message.body.len() + HEADERS_BYTES_MAX <= self.client.max_payload();
        let headers = has_room.then_some(headers);
        let body = &message.body;
        if self
            .keep(dead_letter, headers.clone(), body.clone())
            .await?
        {
            return Ok(());
        }
        self.keep_dead_letters(dead_letter).await?;
        taken(
            dead_letter,
            self.keep(dead_letter, headers, body.clone()).await?,
        )
    }
}

#[async_trait]
impl MessageBus for Bus {
    fn offers(&self) -> Offers {
        Offers::DURABLE
    }

    async fn publish(&self, message: Message) -> Result<()> {
        let kept = &self.0;
        kept.core.check(&message.subject, &message)?;
        messaging::check_reply(&message)?;
        let bytes = message.body.len();
        let bytes_max = kept.client.max_payload().saturating_sub(HEADERS_BYTES_MAX);
        if bytes > bytes_max {
            return Err(Error::TooLarge { bytes, bytes_max });
        }
        let headers = message.reply_to.as_deref().map(|reply_to| {
            let mut headers = HeaderMap::new();
            headers.insert(REPLY_TO, reply_to);
            headers
        });
        let subject = &message.subject;
        taken(subject, kept.keep(subject, headers, message.body).await?)
    }

    async fn request(&self, message: Message, _timeout: Duration) -> Result<Message> {
        self.0.core.check(&message.subject, &message)?;
        Err(Error::Unsupported(
            "a request with durable delivery (name a second entry without it for requests)",
        ))
    }

    async fn subscribe(&self, _subject: &str, _group: Option<&str>) -> Result<Subscription> {
        Err(Error::Unsupported("transient delivery"))
    }

    async fn consume(&self, group: &Group) -> Result<Subscription> {
        group.check()?;
        group::consume(Arc::clone(&self.0), group.clone()).await
    }
}

fn taken(subject: &str, is_taken: bool) -> Result<()> {
    match is_taken {
        true => Ok(()),
        false => {
            let why = format!("no stream takes '{subject}', or JetStream is not there");
            Err(Error::Unavailable(why.into()))
        }
    }
}

fn does_not_take(shown: &str, takes: &[String], subject: &str) -> Error {
    Error::Setup(format!(
        "stream '{shown}' takes {}, not '{subject}': add it there, name another stream, or list all that a new \
         stream is to take in 'stream_subjects'",
        takes.join(", ")
    ))
}

/// `text` as a name that JetStream takes: itself if it is one, else as much of it as is legal and a hash.
fn legal(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.len() <= READABLE_BYTES_MAX && text.chars().all(is_plain) {
        return text.to_owned();
    }
    let readable = text.chars().map(|c| if is_plain(c) { c } else { '-' });
    let readable: String = readable.take(READABLE_BYTES_MAX).collect();
    let hash: [u8; 32] = Sha256::digest(text).into();
    let hash = hash
        .iter()
        .take(8)
        .fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
    format!("{readable}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Consumers that exist are found by these names.
    #[test]
    fn names_of_consumers_do_not_change() {
        for (group, name) in [
            ("workers", "workers"),
            ("a_b-C9", "a_b-C9"),
            ("a.b", "a-b-2e7336dc8eba87ef"),
        ] {
            assert_eq!(legal(group), name);
        }
        let long = legal(&"é".repeat(300));
        assert!(long.len() == READABLE_BYTES_MAX + 17, "{long}");
        assert_ne!(legal("a.b"), legal("a-b"));
    }
}
