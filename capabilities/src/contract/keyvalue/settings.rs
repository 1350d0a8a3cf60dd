//! The cases of what an entry says of its values.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

use super::super::{Case, Cases, Failed, ask, same, want};
use super::Bucket;
use crate::BoxError;
use crate::keyvalue::{Error, Guard};
use crate::plugin::{OpenError, Plugin};

/// Runs the cases of `max_value_bytes` and `ttl`, for storages that have such settings.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run_bounds(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
) -> Result<(), Failed> {
    let mut cases = Cases::default();
    let bytes = value_bytes(plugin, settings);
    cases.run("an_entry_bounds_its_values", bytes).await;
    let ttl = ttl(plugin, settings);
    cases.run("an_entry_gives_its_values_a_ttl", ttl).await;
    cases.finish()
}

/// Runs the case of `max_bytes`, for storages that have such a setting.
///
/// # Errors
/// [`Failed`], if it did.
pub async fn run_max_bytes(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
) -> Result<(), Failed> {
    let mut cases = Cases::default();
    let case = max_bytes(plugin, settings);
    cases.run("a_full_bucket_takes_no_more", case).await;
    cases.finish()
}

/// The bucket `name`, by an entry that also says `key`.
async fn bucket_with(
    plugin: &dyn Plugin,
    settings: &BTreeMap<String, String>,
    name: &'static str,
    (key, value): (&str, &str),
) -> Result<Bucket, BoxError> {
    let mut settings = settings.clone();
    settings.insert(key.to_owned(), value.to_owned());
    let ask = ask("contract", false, &settings);
    let store = plugin.keyvalue(&ask).await?;
    ask.settings.finish()?;
    store.open(name).await?;
    Ok(Bucket { store, name })
}

async fn value_bytes(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let bound = async |bytes| {
        let setting = ("max_value_bytes", bytes);
        bucket_with(plugin, settings, "value-bytes", setting).await
    };
    let small = bound("64").await?;
    small.set("key", vec![1; 64]).await?;
    for guard in [Guard::Any, Guard::Absent] {
        want!(
            small.put("key", vec![2; 65], guard).await,
            Err(Error::TooLarge {
                bytes: 65,
                bytes_max: 64
            })
        );
    }
    same!(small.value("key").await?, Some(Bytes::from(vec![1; 64])));
    // It is the entry's, not the bucket's: another writes more, and all is read.
    let large = bound("65").await?;
    large.set("key", vec![2; 65]).await?;
    same!(small.value("key").await?, Some(Bytes::from(vec![2; 65])));
    same!(small.increment("count", 7).await?, 7);
    for bytes in ["0", "7", "-1", "1 KiB", "1040385"] {
        let refused = bound(bytes).await;
        want!(
            refused
                .map(drop)
                .map_err(|e| e.downcast::<OpenError>().map(|e| *e)),
            Err(Ok(OpenError::Setting {
                key: "max_value_bytes",
                ..
            }))
        );
    }
    Ok(())
}

async fn ttl(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let bucket = bucket_with(plugin, settings, "ttl", ("ttl", "2s")).await?;
    let start = Instant::now();
    bucket.set("key", "value").await?;
    want!(bucket.put("new", "value", Guard::Absent).await, Ok(Some(_)));
    same!(bucket.increment("count", 2).await?, 2);
    same!(bucket.increment("count", 3).await?, 5);
    while !bucket.keys("", 10).await?.is_empty() {
        if start.elapsed() > Duration::from_secs(20) {
            return Err(format!("keys are there after {:?}", start.elapsed()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    want!(start.elapsed(), lived if lived >= Duration::from_millis(1900));
    same!(bucket.value("key").await?, None);
    same!(bucket.increment("count", 1).await?, 1);
    want!(bucket.put("new", "value", Guard::Absent).await, Ok(Some(_)));
    for ttl in ["soon", "0", "1.5h"] {
        let refused = bucket_with(plugin, settings, "ttl", ("ttl", ttl)).await;
        want!(
            refused
                .map(drop)
                .map_err(|e| e.downcast::<OpenError>().map(|e| *e)),
            Err(Ok(OpenError::Setting { key: "ttl", .. }))
        );
    }
    Ok(())
}

async fn max_bytes(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let setting = ("max_bytes", "20000");
    let bucket = bucket_with(plugin, settings, "max-bytes", setting).await?;
    let mut keys = Vec::new();
    let refused = loop {
        let key = format!("key-{}", keys.len());
        match bucket.put(&key, vec![1; 1000], Guard::Any).await {
            Ok(_) if keys.len() < 20 => keys.push(key),
            refused => break refused,
        }
    };
    want!(refused, Err(Error::Full(_)));
    want!(keys.len(), written if written >= 10);
    // What is there stays, and makes room when it goes.
    for key in &keys {
        same!(bucket.value(key).await?, Some(Bytes::from(vec![1; 1000])));
    }
    for key in keys.iter().take(2) {
        bucket.delete(key).await?;
    }
    bucket.set("again", vec![2; 1000]).await?;
    Ok(())
}
