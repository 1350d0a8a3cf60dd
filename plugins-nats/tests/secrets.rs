//! Secrets in buckets, sealed, whatever happens to the bucket and its server.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use async_nats::jetstream::{self, kv};
use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use capabilities::report;
use capabilities::secrets::{Error, Opener, Secret, SecretSource, Unopened};
use fleet::nats::NatsServer;
use fleet::wait::{SOON, until};
use plugins_nats::Nats;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens what begins with the namespace; how real values are sealed is the host's.
struct Prefix;

impl Opener for Prefix {
    fn open(&self, namespace: &str, sealed: &str) -> Result<Secret, Unopened> {
        let value = sealed.strip_prefix("sealed ").ok_or(Unopened::NotSealed)?;
        match value.strip_prefix(&format!("{namespace} ")) {
            Some(value) => Ok(Secret::new(value.to_owned())),
            None => Err(Unopened::Damaged(namespace.to_owned())),
        }
    }
}

async fn source(
    plugin: &Nats,
    namespace: &str,
    pairs: &[(&str, &str)],
) -> Result<Arc<dyn SecretSource>, OpenError> {
    let pairs = pairs.iter();
    let settings: BTreeMap<String, String> = pairs
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let settings = Settings::new(&settings);
    let ask = Ask {
        namespace,
        settings,
        flat_names: false,
        workload: "tests",
        component: "tests",
    };
    let source = plugin.secrets(&ask).await?;
    ask.settings.finish().map(|()| source)
}

async fn bucket(server: &NatsServer, name: &str) -> kv::Store {
    let jetstream = jetstream::new(server.client().await.unwrap());
    let config = kv::Config {
        bucket: name.to_owned(),
        storage: jetstream::stream::StorageType::File,
        ..kv::Config::default()
    };
    jetstream.create_key_value(config).await.unwrap()
}

#[tokio::test]
async fn sealed_values_are_opened_and_others_refused() {
    let mut server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap()).with_opener(Arc::new(Prefix));
    let vault = [("bucket", "vault")];
    let absent = source(&plugin, "team-a", &vault).await.err().unwrap();
    let text = report(&absent);
    assert!(
        text.contains("no bucket 'vault' (in NATS: 'team-a__vault')"),
        "{text}"
    );
    for bad in [&[][..], &[("bucket", "vault"), ("shared", "true")]] {
        bucket(&server, "team-a__vault").await;
        let refused = source(&plugin, "team-a", bad).await.err().unwrap();
        let setting = matches!(
            refused,
            OpenError::Setting { .. } | OpenError::UnknownSettings { .. }
        );
        assert!(setting, "{refused}");
    }

    let kv = bucket(&server, "team-a__vault").await;
    let secrets = source(&plugin, "team-a", &vault).await.unwrap();
    assert!(secrets.get("key").await.unwrap().is_none());
    for value in ["one", "another"] {
        kv.put("key", format!("sealed team-a {value}\n").into())
            .await
            .unwrap();
        let secret = secrets.get("key").await.unwrap().unwrap();
        assert_eq!(secret.reveal(), value, "a replaced value is read anew");
    }
    kv.put("=x=a=20key", "sealed team-a odd".into())
        .await
        .unwrap();
    assert_eq!(secrets.get("a key").await.unwrap().unwrap().reveal(), "odd");
    for (value, why) in [
        ("canary", Unopened::NotSealed),
        (
            "sealed team-b canary",
            Unopened::Damaged("team-a".to_owned()),
        ),
    ] {
        kv.put("bad", value.into()).await.unwrap();
        let refused = secrets.get("bad").await.unwrap_err();
        assert!(!report(&refused).contains("canary"), "{refused}");
        assert!(
            matches!(&refused, Error::Sealed { source, .. } if *source == why),
            "{refused}"
        );
    }
    kv.delete("key").await.unwrap();
    assert!(secrets.get("key").await.unwrap().is_none());
    // Another namespace's bucket has another name.
    assert!(source(&plugin, "team-b", &vault).await.is_err());

    kv.put("key", "sealed team-a kept".into()).await.unwrap();
    server.kill();
    let away = secrets.get("key").await.unwrap_err();
    assert!(matches!(away, Error::Io { .. }), "{away}");
    server.restart().await.unwrap();
    until(SOON, "the value is there again", async || {
        let secret = secrets.get("key").await.ok()??;
        (secret.reveal() == "kept").then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_host_without_a_key_offers_no_secrets() {
    let server = NatsServer::start().await.unwrap();
    let plugin = Nats::new(server.client().await.unwrap());
    let refused = source(&plugin, "default", &[("bucket", "vault")]).await;
    assert!(matches!(refused, Err(OpenError::NotOffered("secrets"))));
}
