//! Messages of a stream one after the other, asked for in batches and without a consumer: the server
//! keeps nothing for who reads, and nothing arrives that was not asked for.

use async_nats::jetstream::message::StreamMessage;
use async_nats::{Client, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;

use crate::exchange::{Error, Result, limited, no_responders};

/// What ends a batch.
const END_OF_BATCH: u16 = 204;

/// What only messages of a batch have.
const NUM_PENDING: &str = "Nats-Num-Pending";

/// A reader of one stream's messages on some subjects, in their order.
pub(crate) struct Scan {
    client: Client,
    stream: String,
    filter: String,
    /// The sequence number to go on at.
    next: u64,
    /// Where the answers to the last request arrive, while there are more.
    answers: Option<Subscriber>,
    /// Whether that request brought anything.
    found: bool,
}

impl Scan {
    /// Begins at the sequence number `from`; `filter` may have wildcards.
    pub(crate) fn new(client: &Client, stream: &str, filter: &str, from: u64) -> Self {
        Self {
            client: client.clone(),
            stream: stream.to_owned(),
            filter: filter.to_owned(),
            next: from,
            answers: None,
            found: false,
        }
    }

    /// The next message; `None` when there is none so far.
    ///
    /// Shape: when the server has to be asked, it is asked for `batch` messages. A server that knows no
    /// batches (before 2.11) sends one for each request. After an error it goes on where it was.
    pub(crate) async fn next(&mut self, batch: u64) -> Result<Option<StreamMessage>> {
        let next = self.advance(batch).await;
        if !matches!(next, Ok(Some(_))) {
            self.answers = None;
        }
        next
    }

    async fn advance(&mut self, batch: u64) -> Result<Option<StreamMessage>> {
        loop {
            let answers = match &mut self.answers {
                Some(answers) => answers,
                None => {
                    self.found = false;
                    self.answers.insert(self.ask(batch).await?)
                }
            };
            let answer = limited(&self.client, async {
                answers.next().await.ok_or("the connection was closed")
            });
            let answer = answer.await?;
            match answer.status {
                None | Some(StatusCode::OK) => {
                    let message = StreamMessage::try_from(answer)
                        .map_err(|error| Error::Refused(Box::new(error)))?;
                    if message.headers.get(NUM_PENDING).is_none() {
                        self.answers = None;
                    }
                    self.found = true;
                    self.next = message.sequence + 1;
                    return Ok(Some(message));
                }
                Some(status) if status.as_u16() == END_OF_BATCH => {
                    self.answers = None;
                    if !self.found {
                        return Ok(None);
                    }
                }
                Some(StatusCode::NOT_FOUND) => return Ok(None),
                Some(StatusCode::NO_RESPONDERS) => {
                    return Err(no_responders("no responders".into()));
                }
                Some(status) => {
                    let why = answer.description.unwrap_or_default();
                    return Err(Error::Refused(format!("{status}: {why}").into()));
                }
            }
        }
    }

    async fn ask(&self, batch: u64) -> Result<Subscriber> {
        let request = serde_json::json!({
            "seq": self.next.max(1),
            "next_by_subj": self.filter,
            "batch": batch,
        });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let asked = async {
            let inbox = self.client.new_inbox();
            let answers = self.client.subscribe(inbox.clone()).await?;
            let request = Bytes::from(request.to_string());
            self.client
                .publish_with_reply(subject, inbox, request)
                .await?;
            Ok::<_, async_nats::Error>(answers)
        };
        limited(&self.client, asked).await
    }
}
