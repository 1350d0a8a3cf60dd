//! The cases of a [`MessageBus`] without durable delivery.

use bytes::Bytes;
use futures::future::{FutureExt, join_all};
use futures::stream::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::{Case, Cases, Failed, ask, same, want};
use crate::BoxError;
use crate::messaging::{
    Error, Group, Message, MessageBus, Outcome, Redelivery, Settled, Subscription,
};
use crate::plugin::Plugin;

/// How long a message may be under way.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// Runs the cases of what `plugin`'s bus offers, its host interface configured with `settings`.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Result<(), Failed> {
    let mut cases = Cases::default();
    let bus = match plugin.messaging(&ask("contract", false, settings)).await {
        Ok(bus) => bus,
        Err(error) => {
            cases.run("opens", async { Err(error.into()) }).await;
            return cases.finish();
        }
    };
    macro_rules! run {
        ($($case:ident)*) => {$(
            // The case's name is its subjects' first token: cases share nothing.
            let subjects = Subjects { bus: bus.clone(), name: stringify!($case) };
            cases.run(stringify!($case), $case(&subjects)).await;
        )*};
    }
    run! {
        messages_arrive_in_order
        nobody_listening_is_success
        bodies_of_any_size
        bodies_too_large_are_refused
        reply_to_travels
        illegal_subjects_are_refused
        a_group_gets_each_message_once
        groups_are_apart
        a_dropped_group_member_gets_nothing
        settling_is_harmless
        durable_delivery_is_refused
    }
    if bus.offers().broadcast {
        run! {
            everybody_gets_a_broadcast
            wildcards_match
            dropping_unsubscribes
        }
    }
    if bus.offers().request {
        run! {
            requests_are_answered
            requests_without_listeners_fail_at_once
            requests_time_out
            many_requests_get_their_own_answers
        }
    }
    cases.finish()
}

/// The subjects of one case.
struct Subjects {
    bus: Arc<dyn MessageBus>,
    name: &'static str,
}

impl Subjects {
    fn subject(&self, rest: &str) -> String {
        format!("{}.{rest}", self.name)
    }

    fn message(&self, rest: &str, body: impl Into<Bytes>) -> Message {
        Message {
            subject: self.subject(rest),
            body: body.into(),
            reply_to: None,
        }
    }

    async fn publish(&self, rest: &str, body: impl Into<Bytes>) -> Result<(), Error> {
        self.bus.publish(self.message(rest, body)).await
    }

    async fn request(&self, rest: &str, body: &str, timeout: Duration) -> Result<Bytes, Error> {
        let message = self.message(rest, body.to_owned());
        self.bus
            .request(message, timeout)
            .await
            .map(|answer| answer.body)
    }

    async fn listen(&self, rest: &str, group: Option<&str>) -> Result<Inbox, Error> {
        Ok(Inbox(self.bus.subscribe(&self.subject(rest), group).await?))
    }

    /// Listens so that each message arrives once, whether or not the bus can broadcast.
    async fn alone(&self, rest: &str) -> Result<Inbox, Error> {
        self.listen(rest, Some("alone")).await
    }
}

struct Inbox(Subscription);

impl Inbox {
    async fn next(&mut self) -> Result<Message, BoxError> {
        let delivery = tokio::time::timeout(ARRIVES_WITHIN, self.0.next())
            .await
            .map_err(|_| "no message arrived")?
            .ok_or("the subscription ended")?;
        want_first(delivery.attempt)?;
        delivery.settle.settle(Outcome::Ack).await?;
        Ok(delivery.message)
    }

    async fn body(&mut self) -> Result<String, BoxError> {
        Ok(String::from_utf8(self.next().await?.body.into())?)
    }

    /// The bodies up to the first that is `last`, without it.
    async fn until(&mut self, last: &str) -> Result<Vec<String>, BoxError> {
        let mut bodies = Vec::new();
        loop {
            match self.body().await? {
                body if body == last => return Ok(bodies),
                body => bodies.push(body),
            }
        }
    }
}

fn want_first(attempt: u32) -> Case {
    same!(attempt, 1);
    Ok(())
}

async fn messages_arrive_in_order(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    for i in 0..100 {
        subjects.publish("a", i.to_string()).await?;
    }
    for i in 0..100 {
        let message = inbox.next().await?;
        same!(message, subjects.message("a", i.to_string()));
    }
    Ok(())
}

async fn nobody_listening_is_success(subjects: &Subjects) -> Case {
    want!(subjects.publish("nobody", "body").await, Ok(()));
    // What was sent before does not come later.
    let mut inbox = subjects.alone("nobody").await?;
    subjects.publish("nobody", "end").await?;
    same!(inbox.body().await?, "end");
    Ok(())
}

async fn bodies_of_any_size(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    for size in [0, 1, 65_536, 1 << 20] {
        let body = Bytes::from(vec![0xA5; size]);
        subjects.publish("a", body.clone()).await?;
        let found = inbox.next().await?.body;
        if found != body {
            return Err(format!("sent {size} bytes, found {}", found.len()).into());
        }
    }
    Ok(())
}

async fn bodies_too_large_are_refused(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    let size = 64 << 20;
    let sent = subjects.publish("a", vec![0; size]).await;
    want!(sent, Err(Error::TooLarge { bytes, bytes_max }) if bytes == size && bytes_max < size);
    // The connection survived.
    subjects.publish("a", "end").await?;
    same!(inbox.body().await?, "end");
    Ok(())
}

async fn reply_to_travels(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    let reply_to = Some(subjects.subject("answers"));
    let message = Message {
        reply_to,
        ..subjects.message("a", "body")
    };
    subjects.bus.publish(message.clone()).await?;
    same!(inbox.next().await?, message);
    Ok(())
}

async fn illegal_subjects_are_refused(subjects: &Subjects) -> Case {
    let message = |subject: &str| Message {
        subject: subject.to_owned(),
        body: Bytes::new(),
        reply_to: None,
    };
    let never = Duration::from_secs(30);
    for subject in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\tb",
        "a\r\nPUB x 0\r\n",
        "a.*",
        "*",
        ">",
        "a.>",
    ] {
        want!(subjects.bus.publish(message(subject)).await, Err(Error::InvalidSubject(s)) if s == subject);
        if subjects.bus.offers().request {
            want!(
                subjects.bus.request(message(subject), never).await,
                Err(Error::InvalidSubject(_))
            );
        }
    }
    for subject in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\r\nPUB x 0\r\n",
        ">.a",
        "a.>.b",
    ] {
        let subscribed = subjects.bus.subscribe(subject, Some("group")).await;
        want!(subscribed.map(drop), Err(Error::InvalidSubject(_)));
    }
    for group in ["", "a b", "a\r\nPUB x 0\r\n"] {
        let subscribed = subjects.listen("a", Some(group)).await;
        want!(subscribed.map(drop), Err(Error::InvalidGroup(g)) if g == group);
    }
    for reply_to in ["", "a b", "a.*"] {
        let message = Message {
            reply_to: Some(reply_to.to_owned()),
            ..subjects.message("a", "")
        };
        want!(
            subjects.bus.publish(message).await,
            Err(Error::InvalidSubject(_))
        );
    }
    Ok(())
}

async fn a_group_gets_each_message_once(subjects: &Subjects) -> Case {
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(subjects.listen("a", Some("group")).await?);
    }
    for i in 0..60 {
        subjects.publish("a", i.to_string()).await?;
    }
    // As many ends as it takes for each member to get one.
    let received = join_all(members.iter_mut().map(|member| member.until("end")));
    let ends = async {
        for _ in 0..10_000 {
            subjects.publish("a", "end").await?;
            tokio::task::yield_now().await;
        }
        Ok::<_, Error>(())
    };
    let (received, ends) = tokio::join!(received, ends);
    ends?;
    let mut bodies = Vec::new();
    for part in received {
        bodies.extend(
            part?
                .iter()
                .map(|body| body.parse::<u32>())
                .collect::<Result<Vec<_>, _>>()?,
        );
    }
    bodies.sort_unstable();
    same!(bodies, (0..60).collect::<Vec<_>>());
    Ok(())
}

async fn groups_are_apart(subjects: &Subjects) -> Case {
    let mut one = subjects.listen("a", Some("one")).await?;
    let mut other = subjects.listen("a", Some("other")).await?;
    for body in ["1", "2"] {
        subjects.publish("a", body).await?;
    }
    for inbox in [&mut one, &mut other] {
        same!(inbox.body().await?, "1");
        same!(inbox.body().await?, "2");
    }
    Ok(())
}

async fn a_dropped_group_member_gets_nothing(subjects: &Subjects) -> Case {
    let dropped = subjects.listen("a", Some("group")).await?;
    let mut inbox = subjects.listen("a", Some("group")).await?;
    let mut barrier = subjects.alone("barrier").await?;
    drop(dropped);
    // The bus may still be sending to the dropped one, for a moment.
    let start = Instant::now();
    loop {
        for i in 0..20 {
            subjects.publish("a", i.to_string()).await?;
        }
        subjects.publish("barrier", "end").await?;
        barrier.until("end").await?;
        let mut received = 0;
        while let Some(delivery) = inbox.0.next().now_or_never() {
            delivery.ok_or("the subscription ended")?;
            received += 1;
        }
        if received == 20 {
            return Ok(());
        }
        if start.elapsed() > ARRIVES_WITHIN {
            return Err(format!("{received} of 20 messages arrived").into());
        }
    }
}

async fn settling_is_harmless(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    let why = || "why".to_owned();
    for outcome in [
        Outcome::Ack,
        Outcome::Retry(why()),
        Outcome::Reject(why()),
        Outcome::Release,
    ] {
        subjects.publish("a", "body").await?;
        let delivery = inbox.0.next().await.ok_or("the subscription ended")?;
        let done = delivery.settle.during(async { 7 }).await;
        let settled = delivery.settle.settle(outcome).await?;
        same!((done, settled), (7, Settled::Done));
    }
    subjects.publish("a", "end").await?;
    same!(inbox.body().await?, "end");
    Ok(())
}

async fn durable_delivery_is_refused(subjects: &Subjects) -> Case {
    let group = Group {
        name: "g".to_owned(),
        subjects: vec![subjects.subject("a")],
        redelivery: Redelivery::default(),
    };
    let joined = subjects.bus.consume(&group).await.map(drop);
    want!(joined, Err(Error::Unsupported(_)));
    Ok(())
}

async fn everybody_gets_a_broadcast(subjects: &Subjects) -> Case {
    let mut inboxes = Vec::new();
    for _ in 0..3 {
        inboxes.push(subjects.listen("a", None).await?);
    }
    inboxes.push(subjects.listen("a", Some("group")).await?);
    subjects.publish("a", "body").await?;
    for inbox in &mut inboxes {
        same!(inbox.body().await?, "body");
    }
    Ok(())
}

async fn wildcards_match(subjects: &Subjects) -> Case {
    let all = ["a", "b", "a.b", "a.c", "a.b.c", "x.b.c"];
    for (filter, wanted) in [
        ("a", vec!["a"]),
        ("*", vec!["a", "b"]),
        ("a.*", vec!["a.b", "a.c"]),
        ("*.b", vec!["a.b"]),
        ("a.>", vec!["a.b", "a.c", "a.b.c"]),
        ("*.b.>", vec!["a.b.c", "x.b.c"]),
        (">", all.to_vec()),
    ] {
        let mut inbox = subjects.listen(filter, None).await?;
        let mut end = subjects.listen("end.>", None).await?;
        for subject in all {
            subjects.publish(subject, subject).await?;
        }
        // A fresh subscription to a subject of the filter shows where the messages end.
        let last = match filter {
            "a" | "*" => "a",
            "a.*" | "*.b" => "a.b",
            _ => "a.b.c",
        };
        subjects.publish(last, "end").await?;
        same!(inbox.until("end").await?, wanted);
        subjects.publish("end.a", "end").await?;
        same!(end.body().await?, "end");
    }
    Ok(())
}

async fn dropping_unsubscribes(subjects: &Subjects) -> Case {
    if !subjects.bus.offers().request {
        return Ok(());
    }
    drop(subjects.listen("a", None).await?);
    let start = Instant::now();
    // The bus knows that nobody listens, at the latest a moment after.
    loop {
        match subjects
            .request("a", "body", Duration::from_millis(200))
            .await
        {
            Err(Error::NoResponders) => return Ok(()),
            Err(Error::Timeout(_)) if start.elapsed() < ARRIVES_WITHIN => {}
            other => return Err(format!("wanted no responders, found {other:?}").into()),
        }
    }
}

async fn requests_are_answered(subjects: &Subjects) -> Case {
    let mut inbox = subjects.alone("a").await?;
    let answer = async {
        let question = inbox.next().await?;
        let reply_to = question
            .reply_to
            .ok_or("the request has no reply subject")?;
        want!(crate::messaging::is_subject(&reply_to), true);
        let answer = |body: &'static str| Message {
            subject: reply_to.clone(),
            body: Bytes::from(body),
            reply_to: None,
        };
        subjects.bus.publish(answer("first")).await?;
        // Only the first counts, the second is nobody's.
        subjects.bus.publish(answer("second")).await?;
        Ok::<_, BoxError>(question.body)
    };
    let request = subjects.request("a", "question", ARRIVES_WITHIN);
    let (question, answer) = tokio::join!(answer, request);
    same!(question?, "question");
    same!(answer?, "first");
    Ok(())
}

async fn requests_without_listeners_fail_at_once(subjects: &Subjects) -> Case {
    let start = Instant::now();
    let request = subjects
        .request("nobody", "body", Duration::from_secs(50))
        .await;
    want!(request, Err(Error::NoResponders));
    want!(start.elapsed(), took if took < Duration::from_secs(25));
    Ok(())
}

async fn requests_time_out(subjects: &Subjects) -> Case {
    let _silent = subjects.alone("a").await?;
    // Longer than a client's own limit may be, and much shorter.
    for timeout in [Duration::from_millis(50), Duration::from_secs(11)] {
        let start = Instant::now();
        let request = subjects.request("a", "body", timeout).await;
        want!(request, Err(Error::Timeout(given)) if given == timeout);
        want!(start.elapsed(), took if took >= timeout);
    }
    Ok(())
}

async fn many_requests_get_their_own_answers(subjects: &Subjects) -> Case {
    const REQUESTS: usize = 200;
    let mut inbox = subjects.alone("a").await?;
    let answers = async {
        let mut questions = Vec::new();
        for _ in 0..REQUESTS {
            questions.push(inbox.next().await?);
        }
        // In the other order.
        for question in questions.into_iter().rev() {
            let subject = question
                .reply_to
                .ok_or("the request has no reply subject")?;
            let answer = Message {
                subject,
                body: question.body,
                reply_to: None,
            };
            subjects.bus.publish(answer).await?;
        }
        Ok::<_, BoxError>(())
    };
    let requests = join_all((0..REQUESTS).map(|i| async move {
        let body = i.to_string();
        let answer = subjects.request("a", &body, ARRIVES_WITHIN).await?;
        same!(answer, body);
        Ok(())
    }));
    let (answers, requests): (_, Vec<Case>) = tokio::join!(answers, requests);
    answers?;
    requests.into_iter().collect()
}
