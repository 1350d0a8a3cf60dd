//! Durable messages keep the contract, against a real server with JetStream; what is left there, and who is told.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream::{self, stream};
use capabilities::contract;
use capabilities::contract::durable::Power;
use capabilities::messaging::{
    Error, Group, Message, MessageBus, Outcome, Redelivery, Subscription,
};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::nats::NatsServer;
use futures::StreamExt;
use plugins_nats::Nats;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

const CONTRACT: [(&str, &str); 3] = [
    ("delivery", "durable"),
    ("stream", "contract"),
    ("stream_subjects", "durable.>"),
];

const DURABLE: [(&str, &str); 2] = [("delivery", "durable"), ("stream", "s")];

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

async fn plugin(server: &NatsServer) -> Nats {
    Nats::new(server.client().await.unwrap())
}

async fn bus(plugin: &Nats, pairs: &[(&str, &str)]) -> Result<Arc<dyn MessageBus>, OpenError> {
    let settings = settings(pairs);
    let ask = Ask {
        namespace: "ns",
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&settings),
    };
    let bus = plugin.messaging(&ask).await?;
    ask.settings.finish()?;
    Ok(bus)
}

fn group(name: &str, subject: &str) -> Group {
    Group {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        redelivery: Redelivery::default(),
    }
}

fn message(subject: &str, body: &str) -> Message {
    Message {
        subject: subject.to_owned(),
        body: body.to_owned().into(),
        reply_to: Some("answers.here".to_owned()),
    }
}

/// The body of the next message, settled with `outcome`.
async fn next(member: &mut Subscription, outcome: Outcome) -> String {
    let delivery = tokio::time::timeout(DEADLINE, member.next());
    let delivery = delivery.await.unwrap().unwrap();
    delivery.settle.settle(outcome).await.unwrap();
    String::from_utf8(delivery.message.body.into()).unwrap()
}

#[tokio::test]
async fn messaging() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let dead = settings(&[("delivery", "durable"), ("stream", "contract-dead")]);
    contract::durable::run(&plugin, &settings(&CONTRACT), &dead)
        .await
        .unwrap();
    // One consumer for each group, however often its members came and went.
    let jetstream = jetstream::new(server.client().await.unwrap());
    let stream = jetstream.get_stream("contract__contract").await.unwrap();
    let names: Vec<_> = stream.consumer_names().collect().await;
    let names: Vec<String> = names.into_iter().map(Result::unwrap).collect();
    let of_one = names
        .iter()
        .filter(|name| name.starts_with("a_group_is_remembered-"));
    assert_eq!(of_one.count(), 1, "{names:?}");
}

#[tokio::test]
async fn messaging_goes_on_when_the_server_was_killed() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let cut = async |power| {
        match power {
            Power::Off => server.kill(),
            Power::On => server.restart().await?,
        }
        Ok(())
    };
    contract::durable::survives(&plugin, &settings(&CONTRACT), cut)
        .await
        .unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    let mut stream = jetstream.get_stream("contract__contract").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.consumer_count, 1);
}

#[tokio::test]
async fn a_dead_letter_says_why() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let bus = bus(&plugin, &DURABLE).await.unwrap();
    let client = server.client().await.unwrap();
    let mut dead = client.subscribe("dead.>").await.unwrap();
    let mut group = group("workers", "a.>");
    group.redelivery.dead_letter = Some("dead.a".to_owned());
    let mut member = bus.consume(&group).await.unwrap();
    // Whoever fills a message to the brim leaves no room to say why.
    let brim = "x".repeat(client.max_payload());
    for body in ["small", &brim] {
        client.publish("a.b", body.to_owned().into()).await.unwrap();
        let why = Outcome::Reject("no\r\nthanks".to_owned());
        assert_eq!(next(&mut member, why).await, body);
        let letter = tokio::time::timeout(DEADLINE, dead.next()).await;
        let letter = letter.unwrap().unwrap();
        assert_eq!(letter.payload, body);
        let header = |name: &str| {
            let headers = letter.headers.as_ref();
            headers.and_then(|headers| Some(headers.get(name)?.as_str().to_owned()))
        };
        let said = [
            ("Washlet-Subject", "a.b"),
            ("Washlet-Reason", "no  thanks"),
            ("Washlet-Deliveries", "1"),
            ("Washlet-Group", "workers"),
        ];
        for (name, value) in said {
            let expected = (body == "small").then(|| value.to_owned());
            assert_eq!(header(name), expected, "{name}");
        }
    }
    // They are in a stream of their own, until somebody takes them; the others are gone.
    let jetstream = jetstream::new(client);
    for (stream, messages) in [("ns__s-dead", 2), ("ns__s", 0)] {
        let mut stream = jetstream.get_stream(stream).await.unwrap();
        assert_eq!(stream.info().await.unwrap().state.messages, messages);
    }
}

/// A stream that people made is used as it is; core NATS' clients fill it; the answer's subject stays.
#[tokio::test]
async fn a_stream_of_others_is_used_as_it_is() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let jetstream = jetstream::new(server.client().await.unwrap());
    let orders = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.*".to_owned()],
        ..stream::Config::default()
    };
    jetstream.create_stream(orders).await.unwrap();
    let theirs = [
        ("delivery", "durable"),
        ("stream", "ORDERS"),
        ("shared", "true"),
        ("create", "false"),
    ];
    let theirs = bus(&plugin, &theirs).await.unwrap();
    let client = server.client().await.unwrap();
    // The stream answers.
    client.request("orders.1", "early".into()).await.unwrap();
    theirs.publish(message("orders.2", "late")).await.unwrap();
    let mut member = theirs.consume(&group("g", "orders.*")).await.unwrap();
    assert_eq!(next(&mut member, Outcome::Ack).await, "early");
    let delivery = member.next().await.unwrap();
    assert_eq!(delivery.message, message("orders.2", "late"));

    let refused = theirs.consume(&group("g", "bills.*")).await.map(drop);
    assert!(
        matches!(&refused, Err(Error::Setup(why)) if why.contains("takes orders.*, not 'bills.*'")),
        "{refused:?}"
    );
    let lost = theirs.publish(message("bills.1", "body")).await;
    assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
    // Two streams cannot take one subject.
    let other = [("delivery", "durable"), ("stream", "other")];
    let other = bus(&plugin, &other).await.unwrap();
    let refused = other.consume(&group("g", "orders.1")).await.map(drop);
    assert!(
        matches!(&refused, Err(Error::Setup(why)) if why.contains("cannot be made")),
        "{refused:?}"
    );
}

/// A stream that forgets what nobody hears is no place for dead letters.
#[tokio::test]
async fn dead_letters_are_not_sent_where_nobody_hears_them() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let jetstream = jetstream::new(server.client().await.unwrap());
    let ours = bus(&plugin, &DURABLE).await.unwrap();
    let mut careless = group("g", "a.b");
    careless.subjects.push("a.c".to_owned());
    let _other = ours.consume(&careless).await.unwrap();
    careless.subjects.pop();
    careless.redelivery.dead_letter = Some("a.c".to_owned());
    careless.name = "h".to_owned();
    ours.consume(&careless).await.map(drop).unwrap();
    let stream = jetstream.get_stream("ns__s").await.unwrap();
    stream.delete_consumer("g").await.unwrap();
    let refused = ours.consume(&careless).await.map(drop);
    assert!(
        matches!(&refused, Err(Error::Setup(why)) if why.contains("would be lost")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused_when_it_is_opened() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let durable = ("delivery", "durable");
    for (pairs, word) in [
        (
            vec![("delivery", "always")],
            "'delivery' must be durable or transient",
        ),
        (vec![durable], "'stream' must be the name of a stream"),
        (
            vec![("stream", "s")],
            "unknown config keys: stream (known: delivery)",
        ),
        (
            vec![durable, ("stream", "s"), ("history", "2")],
            "unknown config keys: history",
        ),
        (
            vec![durable, ("stream", "KV_a"), ("shared", "true")],
            "no name of a bucket",
        ),
        (
            vec![durable, ("stream", "s"), ("stream_subjects", "a,>")],
            "'stream_subjects' must be",
        ),
    ] {
        let error = bus(&plugin, &pairs).await.err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
    }
    let absent = [durable, ("stream", "absent"), ("create", "false")];
    let absent = bus(&plugin, &absent).await.unwrap();
    let refused = absent.consume(&group("g", "a")).await.map(drop);
    assert!(matches!(refused, Err(Error::Setup(_))), "{refused:?}");
}

/// What a member was waiting for does not stay with a consumer that is gone.
#[tokio::test]
async fn a_consumer_that_others_delete_is_made_again() {
    let server = NatsServer::start().await.unwrap();
    let plugin = plugin(&server).await;
    let bus = bus(&plugin, &DURABLE).await.unwrap();
    let mut member = bus.consume(&group("g", "a")).await.unwrap();
    let jetstream = jetstream::new(server.client().await.unwrap());
    let deleting = async {
        let stream = jetstream.get_stream("ns__s").await.unwrap();
        stream.delete_consumer("g").await.unwrap();
        // Nobody hears what is sent before it is there again.
        while stream
            .get_consumer::<jetstream::consumer::pull::Config>("g")
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bus.publish(message("a", "body")).await.unwrap();
    };
    let (body, ()) = tokio::join!(next(&mut member, Outcome::Ack), deleting);
    assert_eq!(body, "body");
}
