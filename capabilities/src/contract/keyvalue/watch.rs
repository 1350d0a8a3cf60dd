//! The cases of watches.

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::{Case, Cases, Failed, ask, want};
use super::{Bucket, odd_keys};
use crate::BoxError;
use crate::keyvalue::{Changes, Error, Guard, WATCHES_MAX};
use crate::plugin::Plugin;

/// Runs the cases of watches, for storages that have them.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run_watch(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
) -> Result<(), Failed> {
    let mut cases = Cases::default();
    let changes = watch_changes(plugin, settings);
    cases.run("changes_are_told", changes).await;
    let many = watch_many(plugin, settings);
    cases.run("who_is_behind_is_told_what_is_last", many).await;
    let bounds = watch_bounds(plugin, settings);
    cases.run("watches_are_of_one_bucket_and_end", bounds).await;
    cases.finish()
}

async fn watched(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
    name: &'static str,
) -> Result<Bucket, BoxError> {
    let store = plugin.keyvalue(&ask("contract", false, settings)).await?;
    store.open(name).await?;
    Ok(Bucket { store, name })
}

/// Waits until `key` is told, which others may be before.
async fn told(changes: &mut Changes, key: &str) -> Case {
    let next = async {
        loop {
            match changes.next().await {
                Some(changed) if changed == key => return Ok(()),
                Some(_) => {}
                None => return Err("the watch ended".into()),
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(10), next).await {
        Ok(told) => told,
        Err(_) => Err(format!("'{key}' was not told").into()),
    }
}

async fn watch_changes(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let bucket = watched(plugin, settings, "watched").await?;
    bucket.set("before", "value").await?;
    let mut changes = bucket.store.watch(bucket.name).await?;
    bucket.set("key", "value").await?;
    // What was there before is no change.
    want!(changes.next().await.as_deref(), Some("key"));
    bucket.put("key", "again", Guard::Any).await?;
    told(&mut changes, "key").await?;
    bucket.delete("key").await?;
    told(&mut changes, "key").await?;
    bucket.increment("count", 1).await?;
    told(&mut changes, "count").await?;
    bucket.delete("before").await?;
    told(&mut changes, "before").await?;
    let mut untold: BTreeSet<String> = odd_keys().into_iter().collect();
    for key in &untold {
        bucket.set(key, "value").await?;
    }
    while !untold.is_empty() {
        let key = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
        let Ok(Some(key)) = key else {
            return Err(format!("{untold:?} were not told").into());
        };
        untold.remove(&key);
    }
    Ok(())
}

async fn watch_many(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let bucket = watched(plugin, settings, "watched-many").await?;
    let mut changes = bucket.store.watch(bucket.name).await?;
    let keys: Vec<String> = (0..40).map(|n| format!("key{n}")).collect();
    // More than may wait.
    for round in 0..30 {
        let sets = keys.iter().map(|key| bucket.set(key, round.to_string()));
        for set in join_all(sets).await {
            set?;
        }
    }
    let mut last: BTreeMap<String, Bytes> = BTreeMap::new();
    while last.len() < keys.len() || last.values().any(|value| value != "29") {
        let key = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
        let Ok(Some(key)) = key else {
            return Err(format!("after {last:?} nothing was told").into());
        };
        if let Some(value) = bucket.value(&key).await? {
            last.insert(key, value);
        }
    }
    Ok(())
}

async fn watch_bounds(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let one = watched(plugin, settings, "watched-one").await?;
    let other = watched(plugin, settings, "watched-other").await?;
    want!(one.store.watch("absent").await.map(drop), Err(Error::NoSuchBucket(name)) if name == "absent");
    let mut changes = one.store.watch(one.name).await?;
    other.set("other", "value").await?;
    one.set("one", "value").await?;
    want!(changes.next().await.as_deref(), Some("one"));
    // Each that ends makes room for another.
    for _ in 0..2 * WATCHES_MAX {
        drop(one.store.watch(one.name).await?);
    }
    let mut again = one.store.watch(one.name).await?;
    one.set("again", "value").await?;
    told(&mut changes, "again").await?;
    told(&mut again, "again").await
}
