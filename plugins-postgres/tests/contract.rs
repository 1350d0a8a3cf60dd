//! The Postgres plugin keeps the contract, against a real server.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use capabilities::contract;
use capabilities::contract::durable::Power;
use fleet::postgres::PostgresServer;
use plugins_postgres::{Dsn, Postgres};
use std::collections::BTreeMap;

fn plugin(server: &PostgresServer) -> Postgres {
    Postgres::new(Some(&Dsn::parse(&server.url()).unwrap()))
}

#[tokio::test]
async fn keyvalue() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    let settings = BTreeMap::new();
    contract::keyvalue::run(&plugin, &settings).await.unwrap();
    contract::keyvalue::run_bounds(&plugin, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn blobstore() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    contract::blobstore::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn watches() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    contract::keyvalue::run_watch(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn messaging() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    let settings = BTreeMap::new();
    contract::durable::run(&plugin, &settings, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn config() {
    let server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    contract::config::run(&plugin, &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn messaging_goes_on_when_the_server_was_killed() {
    let mut server = PostgresServer::start().await.unwrap();
    let plugin = plugin(&server);
    let cut = async |power| {
        match power {
            Power::Off => server.kill(),
            Power::On => server.restart().await?,
        }
        Ok(())
    };
    contract::durable::survives(&plugin, &BTreeMap::new(), cut)
        .await
        .unwrap();
}
