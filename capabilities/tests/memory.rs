//! The memory plugin keeps the contract.

use capabilities::contract;
use capabilities::memory::Memory;
use std::collections::BTreeMap;

const BYTES_MAX: usize = 64 << 20;

#[tokio::test]
async fn keyvalue() {
    let (plugin, settings) = (Memory::new(BYTES_MAX), BTreeMap::new());
    contract::keyvalue::run(&plugin, &settings).await.unwrap();
    contract::keyvalue::run_bounds(&plugin, &settings)
        .await
        .unwrap();
}

#[tokio::test]
async fn buckets_that_are_full() {
    contract::keyvalue::run_max_bytes(&Memory::new(BYTES_MAX), &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messaging() {
    contract::messaging::run(&Memory::new(BYTES_MAX), &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn blobstore() {
    contract::blobstore::run(&Memory::new(BYTES_MAX), &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn watches() {
    contract::keyvalue::run_watch(&Memory::new(BYTES_MAX), &BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn config() {
    contract::config::run(&Memory::new(BYTES_MAX), &BTreeMap::new())
        .await
        .unwrap();
}
