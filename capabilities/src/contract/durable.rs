//! The cases of a [`MessageBus`] with durable delivery. Their subjects begin with `durable.`, those of dead letters
//! with `dead.`.

use bytes::Bytes;
use futures::future::{FutureExt, join_all, select_all};
use futures::stream::StreamExt;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

use super::{Case, Cases, Failed, ask, beside, same, want};
use crate::BoxError;
use crate::messaging::{
    Delivery, Error, Group, Message, MessageBus, Outcome, Redelivery, Settled, Subscription,
};
use crate::plugin::{OpenError, Plugin};

/// How long a message may be under way, a second delivery included.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

/// How long the groups of these cases leave a message with a member that shows no sign of life ..
const ACK_WAIT: Duration = Duration::from_secs(1);

/// .. and with nobody after a failure.
const PAUSE: Duration = Duration::from_millis(300);

/// Runs all cases on `plugin`, its host interface configured with `settings`, and with `dead` where dead letters are
/// heard; runs `plugin` meanwhile.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
    dead: &BTreeMap<String, String>,
) -> Result<(), Failed> {
    beside(plugin, all(plugin, settings, dead)).await
}

async fn all(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
    dead: &BTreeMap<String, String>,
) -> Result<(), Failed> {
    let mut cases = Cases::default();
    let opened =
        async { Ok::<_, OpenError>((open(plugin, settings).await?, open(plugin, dead).await?)) };
    let (bus, dead) = match opened.await {
        Ok(both) => both,
        Err(error) => {
            cases.run("opens", async { Err(error.into()) }).await;
            return cases.finish();
        }
    };
    macro_rules! run {
        ($($case:ident)*) => {$(
            // Named like the case are its subjects and groups: cases share nothing.
            let topic = Topic { bus: bus.clone(), dead: dead.clone(), name: stringify!($case) };
            cases.run(stringify!($case), $case(&topic)).await;
        )*};
    }
    run! {
        messages_arrive_in_order
        nobody_listening_is_success
        bodies_of_any_size
        bodies_too_large_are_refused
        reply_to_travels
        illegal_subjects_and_groups_are_refused
        what_is_not_durable_is_refused
        a_group_gets_each_message_once
        groups_are_apart
        a_group_hears_several_subjects
        a_group_is_remembered
        what_fails_comes_again_later
        what_is_dropped_comes_again
        what_is_being_handled_stays
        what_is_given_back_comes_at_once
        too_many_failures_are_a_dead_letter
        what_nobody_lived_to_settle_is_a_dead_letter
        a_rejected_message_is_a_dead_letter
        a_dead_letter_waits_to_be_heard
        a_rejected_message_without_a_place_is_gone
        cancelled_members_lose_nothing
        cancelled_senders_break_nothing
    }
    cases.finish()
}

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Die at once.
    Off,
    /// Be there again.
    On,
}

/// What was sent and acknowledged arrives, although the server is gone for a while; `cut` sees to that.
///
/// # Errors
/// [`Failed`] when something is missing.
pub async fn survives(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
    cut: impl AsyncFnMut(Power) -> Result<(), BoxError>,
) -> Result<(), Failed> {
    let case = async {
        let bus = open(plugin, settings).await?;
        let topic = Topic {
            dead: bus.clone(),
            bus,
            name: "cut",
        };
        nothing_acknowledged_is_lost(&topic, cut).await
    };
    let mut cases = Cases::default();
    let all = async {
        cases.run("nothing_acknowledged_is_lost", case).await;
        cases.finish()
    };
    beside(plugin, all).await
}

async fn open(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
) -> Result<Arc<dyn MessageBus>, OpenError> {
    let ask = ask("contract", false, settings);
    let bus = plugin.messaging(&ask).await?;
    ask.settings.finish()?;
    Ok(bus)
}

/// The subjects and groups of one case.
struct Topic {
    bus: Arc<dyn MessageBus>,
    /// Where dead letters are heard.
    dead: Arc<dyn MessageBus>,
    name: &'static str,
}

impl Topic {
    fn subject(&self, rest: &str) -> String {
        format!("durable.{}.{rest}", self.name)
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

    fn group(&self, name: &str, subjects: &[&str]) -> Group {
        Group {
            name: format!("{}.{name}", self.name),
            subjects: subjects.iter().map(|rest| self.subject(rest)).collect(),
            redelivery: Redelivery {
                ack_wait: ACK_WAIT,
                backoff: vec![PAUSE],
                ..Redelivery::default()
            },
        }
    }

    fn dead_letter(&self) -> String {
        format!("dead.{}", self.name)
    }

    /// Who hears the dead letters of this case.
    async fn dead(&self) -> Result<Member, Error> {
        let mut group = self.group("dead", &[]);
        group.subjects.push(self.dead_letter());
        Ok(Member(self.dead.consume(&group).await?))
    }

    /// As [`group`](Self::group), with dead letters after so many deliveries.
    fn group_with_dead_letters(&self, deliveries_max: u32) -> Group {
        let mut group = self.group("g", &["a"]);
        group.redelivery.deliveries_max = Some(deliveries_max);
        group.redelivery.dead_letter = Some(self.dead_letter());
        group
    }

    async fn join(&self, group: &Group) -> Result<Member, Error> {
        Ok(Member(self.bus.consume(group).await?))
    }

    async fn alone(&self, rest: &str) -> Result<Member, Error> {
        self.join(&self.group("alone", &[rest])).await
    }
}

struct Member(Subscription);

impl Member {
    async fn next(&mut self) -> Result<Delivery, BoxError> {
        let delivery = timeout(ARRIVES_WITHIN, self.0.next());
        let delivery = delivery.await.map_err(|_| "no message arrived")?;
        Ok(delivery.ok_or("the subscription ended")?)
    }

    /// The next message, and which delivery of it that is; settled with `outcome`.
    async fn take(&mut self, outcome: Outcome) -> Result<(Message, u32, Settled), BoxError> {
        let delivery = self.next().await?;
        let settled = delivery.settle.settle(outcome).await?;
        Ok((delivery.message, delivery.attempt, settled))
    }

    /// The body of the next message, which is handled.
    async fn body(&mut self) -> Result<String, BoxError> {
        let (message, _, settled) = self.take(Outcome::Ack).await?;
        same!(settled, Settled::Done);
        Ok(String::from_utf8(message.body.into())?)
    }
}

/// A body, to be compared.
macro_rules! text {
    ($message:expr) => {
        String::from_utf8_lossy(&$message.body)
    };
}

fn retry() -> Outcome {
    Outcome::Retry("not now".to_owned())
}

async fn messages_arrive_in_order(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    for i in 0..50 {
        topic.publish("a", i.to_string()).await?;
    }
    for i in 0..50 {
        let (message, attempt, _) = member.take(Outcome::Ack).await?;
        same!(message, topic.message("a", i.to_string()));
        same!(attempt, 1);
    }
    Ok(())
}

async fn nobody_listening_is_success(topic: &Topic) -> Case {
    let _other = topic.alone("other").await?;
    want!(topic.publish("nobody", "body").await, Ok(()));
    // What was sent before does not come later.
    let mut member = topic.join(&topic.group("late", &["nobody"])).await?;
    topic.publish("nobody", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

async fn bodies_of_any_size(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    for size in [0, 1, 65_536, 1_000_000] {
        let body = Bytes::from(vec![0xA5; size]);
        topic.publish("a", body.clone()).await?;
        let (message, ..) = member.take(Outcome::Ack).await?;
        if message.body != body {
            let found = message.body.len();
            return Err(format!("sent {size} bytes, found {found}").into());
        }
    }
    Ok(())
}

async fn bodies_too_large_are_refused(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    let size = 64 << 20;
    let sent = topic.publish("a", vec![0; size]).await;
    want!(sent, Err(Error::TooLarge { bytes, bytes_max }) if bytes == size && bytes_max < size);
    topic.publish("a", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

async fn reply_to_travels(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    let message = Message {
        reply_to: Some(topic.subject("ответы.%41")),
        ..topic.message("a", "body")
    };
    topic.bus.publish(message.clone()).await?;
    same!(member.take(Outcome::Ack).await?.0, message);
    Ok(())
}

async fn illegal_subjects_and_groups_are_refused(topic: &Topic) -> Case {
    for subject in ["", "a.", "a..b", "a b", "a.*", ">", "a\r\nPUB x 0\r\n"] {
        let message = |subject: &str, reply_to: Option<&str>| Message {
            subject: subject.to_owned(),
            body: Bytes::new(),
            reply_to: reply_to.map(str::to_owned),
        };
        let sent = topic.bus.publish(message(subject, None)).await;
        want!(sent, Err(Error::InvalidSubject(s)) if s == subject);
        let sent = topic.bus.publish(message("durable.a", Some(subject))).await;
        want!(sent, Err(Error::InvalidSubject(_)));
    }
    for subject in ["", "a b", ">.a"] {
        let mut group = topic.group("g", &["a"]);
        group.subjects.push(subject.to_owned());
        let joined = topic.join(&group).await.map(drop);
        want!(joined, Err(Error::InvalidSubject(s)) if s == subject);
    }
    let mut group = topic.group("g", &["a"]);
    group.name = "a b".to_owned();
    let joined = topic.join(&group).await.map(drop);
    want!(joined, Err(Error::InvalidGroup(_)));
    let mut group = topic.group("g", &["a.>"]);
    group.redelivery.dead_letter = Some(topic.subject("a.dead"));
    let joined = topic.join(&group).await.map(drop);
    want!(joined, Err(Error::Setup(_)));
    Ok(())
}

async fn what_is_not_durable_is_refused(topic: &Topic) -> Case {
    let offers = topic.bus.offers();
    want!(offers.durable && !offers.broadcast && !offers.request, true);
    let subscribed = topic.bus.subscribe(&topic.subject("a"), None).await;
    want!(subscribed.map(drop), Err(Error::Unsupported(_)));
    let message = topic.message("a", "body");
    let asked = topic.bus.request(message, ARRIVES_WITHIN).await;
    want!(asked, Err(Error::Unsupported(_)));
    Ok(())
}

async fn a_group_gets_each_message_once(topic: &Topic) -> Case {
    const MESSAGES: u32 = 60;
    let group = topic.group("g", &["a"]);
    let members = join_all((0..3).map(|_| topic.join(&group))).await;
    for i in 0..MESSAGES {
        topic.publish("a", i.to_string()).await?;
    }
    let bodies = RefCell::new(Vec::new());
    let working = members.into_iter().map(|member| {
        let bodies = &bodies;
        async move {
            let mut member = member?;
            loop {
                let body = member.body().await?.parse::<u32>()?;
                bodies.borrow_mut().push(body);
                if bodies.borrow().len() >= MESSAGES as usize {
                    return Case::Ok(());
                }
            }
        }
        .boxed_local()
    });
    let (first, _, others) = select_all(working).await;
    first?;
    drop(others);
    let mut bodies = bodies.into_inner();
    bodies.sort_unstable();
    same!(bodies, (0..MESSAGES).collect::<Vec<_>>());
    Ok(())
}

async fn groups_are_apart(topic: &Topic) -> Case {
    let mut one = topic.join(&topic.group("one", &["a"])).await?;
    let mut other = topic.join(&topic.group("other", &["a"])).await?;
    for body in ["1", "2"] {
        topic.publish("a", body).await?;
    }
    for member in [&mut one, &mut other] {
        same!(member.body().await?, "1");
        same!(member.body().await?, "2");
    }
    Ok(())
}

async fn a_group_hears_several_subjects(topic: &Topic) -> Case {
    let group = topic.group("g", &["a.*", "a.1", "b.>"]);
    let mut member = topic.join(&group).await?;
    for rest in ["a.1", "a", "a.1.2", "b", "b.1.2", "c", "a.2"] {
        topic.publish(rest, rest.to_owned()).await?;
    }
    for rest in ["a.1", "b.1.2", "a.2"] {
        same!(member.body().await?, rest);
    }
    topic.publish("b.end", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

async fn a_group_is_remembered(topic: &Topic) -> Case {
    drop(topic.alone("a").await?);
    for body in ["1", "2"] {
        topic.publish("a", body).await?;
    }
    let mut member = topic.alone("a").await?;
    same!(member.body().await?, "1");
    drop(member);
    let mut member = topic.alone("a").await?;
    same!(member.body().await?, "2");
    Ok(())
}

async fn what_fails_comes_again_later(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    topic.publish("a", "body").await?;
    let start = Instant::now();
    for attempt in 1..=3 {
        let (message, found, settled) = member.take(retry()).await?;
        same!((text!(message), found), ("body".into(), attempt));
        same!(settled, Settled::Again);
    }
    want!(start.elapsed(), took if took >= 2 * PAUSE);
    same!(member.body().await?, "body");
    topic.publish("a", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

async fn what_is_dropped_comes_again(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    topic.publish("a", "body").await?;
    drop(member.next().await?);
    let start = Instant::now();
    let (message, attempt, _) = member.take(Outcome::Ack).await?;
    same!((text!(message), attempt), ("body".into(), 2));
    want!(start.elapsed(), took if took >= ACK_WAIT / 2);
    Ok(())
}

async fn what_is_being_handled_stays(topic: &Topic) -> Case {
    let group = topic.group("g", &["a"]);
    let mut one = topic.join(&group).await?;
    let mut other = topic.join(&group).await?;
    topic.publish("a", "body").await?;
    let Delivery { settle, .. } = one.next().await?;
    let handled = settle.during(tokio::time::sleep(3 * ACK_WAIT));
    tokio::select! {
        () = handled => {}
        again = other.next() => {
            let attempt = again?.attempt;
            return Err(format!("it was delivered again, for the {attempt}. time").into());
        }
    }
    same!(settle.settle(Outcome::Ack).await?, Settled::Done);
    topic.publish("a", "end").await?;
    same!(other.body().await?, "end");
    Ok(())
}

async fn what_is_given_back_comes_at_once(topic: &Topic) -> Case {
    let mut group = topic.group("g", &["a"]);
    let long = Duration::from_secs(3600);
    group.redelivery.backoff = vec![long];
    group.redelivery.ack_wait = long;
    let mut member = topic.join(&group).await?;
    topic.publish("a", "body").await?;
    let (_, _, settled) = member.take(Outcome::Release).await?;
    same!(settled, Settled::Again);
    same!(member.body().await?, "body");
    Ok(())
}

async fn too_many_failures_are_a_dead_letter(topic: &Topic) -> Case {
    let mut member = topic.join(&topic.group_with_dead_letters(2)).await?;
    let mut dead = topic.dead().await?;
    topic.publish("a", "body").await?;
    same!(member.take(retry()).await?.2, Settled::Again);
    same!(member.take(retry()).await?.2, Settled::Dead);
    let (message, attempt, _) = dead.take(Outcome::Ack).await?;
    same!((message.subject, attempt), (topic.dead_letter(), 1));
    same!(message.body, "body");
    topic.publish("a", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

async fn what_nobody_lived_to_settle_is_a_dead_letter(topic: &Topic) -> Case {
    let mut member = topic.join(&topic.group_with_dead_letters(1)).await?;
    let mut dead = topic.dead().await?;
    topic.publish("a", "body").await?;
    drop(member.next().await?);
    tokio::select! {
        found = dead.body() => same!(found?, "body"),
        again = member.next() => {
            let attempt = again?.attempt;
            return Err(format!("it was delivered again, for the {attempt}. time").into());
        }
    }
    Ok(())
}

async fn a_rejected_message_is_a_dead_letter(topic: &Topic) -> Case {
    let mut member = topic.join(&topic.group_with_dead_letters(9)).await?;
    let mut dead = topic.dead().await?;
    let message = Message {
        reply_to: Some(topic.subject("answers")),
        ..topic.message("a", "body")
    };
    topic.bus.publish(message.clone()).await?;
    let why = Outcome::Reject("no\r\nthanks".to_owned());
    same!(member.take(why).await?.2, Settled::Dead);
    let subject = topic.dead_letter();
    same!(
        dead.take(Outcome::Ack).await?.0,
        Message { subject, ..message }
    );
    Ok(())
}

async fn a_dead_letter_waits_to_be_heard(topic: &Topic) -> Case {
    let mut member = topic.join(&topic.group_with_dead_letters(1)).await?;
    topic.publish("a", "body").await?;
    same!(member.take(retry()).await?.2, Settled::Dead);
    same!(topic.dead().await?.body().await?, "body");
    Ok(())
}

async fn a_rejected_message_without_a_place_is_gone(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    topic.publish("a", "body").await?;
    let why = Outcome::Reject("never".to_owned());
    same!(member.take(why).await?.2, Settled::Dead);
    topic.publish("a", "end").await?;
    same!(member.body().await?, "end");
    Ok(())
}

/// Members come and go wherever they are; what they were given comes again.
async fn cancelled_members_lose_nothing(topic: &Topic) -> Case {
    const MESSAGES: usize = 20;
    let group = topic.group("g", &["a"]);
    drop(topic.join(&group).await?);
    for i in 0..MESSAGES {
        topic.publish("a", i.to_string()).await?;
    }
    let (mut bodies, start) = (BTreeSet::new(), Instant::now());
    for round in 0_u64.. {
        if bodies.len() == MESSAGES {
            break;
        }
        if start.elapsed() > 2 * ARRIVES_WITHIN {
            return Err(format!("{} of {MESSAGES} arrived", bodies.len()).into());
        }
        let patience = Duration::from_millis(round % 8);
        let mut member = topic.join(&group).await?;
        while let Ok(delivery) = timeout(patience, member.next()).await {
            let Delivery {
                message, settle, ..
            } = delivery?;
            // Every third is dropped, too.
            if bodies.len() % 3 != 2 || round % 2 == 0 {
                settle.settle(Outcome::Ack).await?;
                bodies.insert(text!(message).into_owned());
            }
        }
    }
    Ok(())
}

async fn cancelled_senders_break_nothing(topic: &Topic) -> Case {
    let mut member = topic.alone("a").await?;
    for _ in 0..50 {
        let _ = topic.publish("a", "maybe").now_or_never();
        let _ = timeout(Duration::from_micros(200), topic.publish("a", "maybe")).await;
    }
    topic.publish("a", "end").await?;
    loop {
        match member.body().await?.as_str() {
            "end" => return Ok(()),
            body => same!(body, "maybe"),
        }
    }
}

async fn nothing_acknowledged_is_lost(
    topic: &Topic,
    mut cut: impl AsyncFnMut(Power) -> Result<(), BoxError>,
) -> Case {
    const MESSAGES: usize = 100;
    let mut member = topic.alone("a").await?;
    let (sent, received) = (RefCell::new(BTreeSet::new()), RefCell::new(BTreeSet::new()));
    let (failed, is_back) = (Cell::new(0), Cell::new(false));
    let sending = async {
        let mut after = 0;
        for i in 0.. {
            match topic.publish("a", i.to_string()).await {
                Ok(()) => {
                    sent.borrow_mut().insert(i.to_string());
                    after += usize::from(is_back.get());
                }
                Err(Error::Unavailable(_) | Error::Timeout(_)) => {
                    failed.set(failed.get() + 1);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error.into()),
            }
            if after > MESSAGES {
                break;
            }
        }
        Case::Ok(())
    };
    let receiving = async {
        loop {
            let delivery = member.0.next().await.ok_or("the subscription ended")?;
            // One that cannot be settled comes again.
            if delivery.settle.settle(Outcome::Ack).await.is_ok() {
                let body = text!(delivery.message).into_owned();
                received.borrow_mut().insert(body);
            }
        }
    };
    let enough = async {
        while received.borrow().len() < MESSAGES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cut(Power::Off).await?;
        let before = failed.get();
        while failed.get() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cut(Power::On).await?;
        is_back.set(true);
        Case::Ok(())
    };
    let all = async {
        let (sending, enough) = tokio::join!(sending, enough);
        sending.and(enough)?;
        while !sent.borrow().is_subset(&received.borrow()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Case::Ok(())
    };
    let done: Case = tokio::select! {
        all = all => all,
        ended = receiving => ended,
    };
    let (sent, received) = (sent.borrow().len(), received.borrow().len());
    done.map_err(|error| format!("{sent} sent, {received} received: {error}").into())
}
