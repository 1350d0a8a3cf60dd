//! Messages on Postgres, beyond the contract: whom subjects belong to, what is left in the database.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use capabilities::messaging::{Group, Message, MessageBus, Outcome, Redelivery, Subscription};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use fleet::postgres::PostgresServer;
use futures::StreamExt;
use plugins_postgres::{Dsn, Postgres};
use sqlx::{Connection, PgConnection, Row};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

async fn bus(
    plugin: &Postgres,
    namespace: &str,
    pairs: &[(&str, &str)],
) -> Result<Arc<dyn MessageBus>, OpenError> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let settings: BTreeMap<_, _> = pairs.iter().map(owned).collect();
    let ask = Ask {
        namespace,
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&settings),
    };
    let bus = plugin.messaging(&ask).await?;
    ask.settings.finish()?;
    Ok(bus)
}

fn group(name: &str, redelivery: Redelivery) -> Group {
    Group {
        name: name.to_owned(),
        subjects: vec!["a.>".to_owned()],
        redelivery,
    }
}

fn message(subject: &str, body: &str) -> Message {
    Message {
        subject: subject.to_owned(),
        body: body.to_owned().into(),
        reply_to: None,
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
async fn subjects_belong_to_a_namespace_unless_they_are_shared() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()));
    let shared = [("shared", "true")];
    let here = bus(&plugin, "here", &[]).await.unwrap();
    let there = bus(&plugin, "there", &[("delivery", "durable")]);
    let there = there.await.unwrap();
    let (all, all_too) = tokio::try_join!(
        bus(&plugin, "here", &shared),
        bus(&plugin, "there", &shared)
    )
    .unwrap();
    let group = group("g", Redelivery::default());
    let (mut in_here, mut in_there, mut in_all) = (
        here.consume(&group).await.unwrap(),
        there.consume(&group).await.unwrap(),
        all.consume(&group).await.unwrap(),
    );
    for (bus, body) in [(&here, "here"), (&there, "there"), (&all_too, "all")] {
        bus.publish(message("a.b", body)).await.unwrap();
    }
    assert_eq!(next(&mut in_here, Outcome::Ack).await, "here");
    assert_eq!(next(&mut in_there, Outcome::Ack).await, "there");
    assert_eq!(next(&mut in_all, Outcome::Ack).await, "all");
    for (pairs, word) in [
        ([("delivery", "transient")], "transient"),
        ([("delivery", "often")], "delivery"),
        ([("stream", "s")], "known: delivery, shared"),
    ] {
        let error = bus(&plugin, "here", &pairs).await.err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_dead_letter_says_why_and_settled_messages_leave_nothing() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()));
    let bus = bus(&plugin, "ns", &[]).await.unwrap();
    let redelivery = Redelivery {
        dead_letter: Some("dead.a".to_owned()),
        ..Redelivery::default()
    };
    let mut member = bus.consume(&group("g", redelivery)).await.unwrap();
    for body in ["good", "bad"] {
        bus.publish(message("a.b", body)).await.unwrap();
    }
    assert_eq!(next(&mut member, Outcome::Ack).await, "good");
    let why = Outcome::Reject("no thanks".to_owned());
    assert_eq!(next(&mut member, why).await, "bad");
    let mut client = PgConnection::connect(&server.url()).await.unwrap();
    let rows = sqlx::query(
        "SELECT subject, body, reason, died_subject, died_deliveries, died_group FROM washlet.message",
    );
    let rows = rows.fetch_all(&mut client).await.unwrap();
    assert_eq!(rows.len(), 1);
    let text = |column: usize| rows[0].get::<String, _>(column);
    let bytes = |column: usize| String::from_utf8(rows[0].get(column)).unwrap();
    assert_eq!((text(0), bytes(1)), ("dead.a".to_owned(), "bad".to_owned()));
    assert_eq!(
        (bytes(2), text(3)),
        ("no thanks".to_owned(), "a.b".to_owned())
    );
    assert_eq!((rows[0].get::<i32, _>(4), bytes(5)), (1, "g".to_owned()));
}

/// Messages of a group that has had no member for too long are not kept, and neither is the group.
#[tokio::test]
async fn a_group_without_members_is_forgotten() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()));
    let bus = bus(&plugin, "ns", &[]).await.unwrap();
    let redelivery = Redelivery {
        forget_after: Duration::from_millis(300),
        ..Redelivery::default()
    };
    drop(bus.consume(&group("g", redelivery)).await.unwrap());
    let mut client = PgConnection::connect(&server.url()).await.unwrap();
    let start = Instant::now();
    let mut rows = async |what: &'static str| {
        let count = sqlx::query(what).fetch_one(&mut client).await.unwrap();
        count.get::<i64, _>(0)
    };
    let messages = "SELECT count(*) FROM washlet.message";
    loop {
        bus.publish(message("a.b", "body")).await.unwrap();
        let before = rows(messages).await;
        bus.publish(message("a.b", "body")).await.unwrap();
        if rows(messages).await == before {
            break;
        }
        assert!(start.elapsed() < DEADLINE);
    }
    // A host that has members of any group takes it away.
    let _other = bus
        .consume(&group("other", Redelivery::default()))
        .await
        .unwrap();
    let gone = async {
        while rows("SELECT count(*) FROM washlet.queue").await > 1 {
            assert!(start.elapsed() < DEADLINE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rows(messages).await, 0);
    };
    tokio::select! {
        () = gone => {}
        () = plugin.run() => {}
    }
}
