//! How the streams below buckets and containers are made.

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use capabilities::keyvalue;
use capabilities::plugin::{OpenError, Settings};
use std::ops::RangeInclusive;

/// What all of them have, with the settings `replicas`, `ttl`, `max_bytes` and `storage`.
pub(crate) fn stream(settings: &Settings<'_>) -> Result<Config, OpenError> {
    let replicas = settings.parsed("replicas", "a number from 1 to 5", within(1..=5))?;
    let max_age = keyvalue::ttl(settings)?;
    let max_bytes = keyvalue::bytes_max(settings)?;
    let storage = settings.parsed("storage", "file or memory", |value| match value {
        "file" => Some(StorageType::File),
        "memory" => Some(StorageType::Memory),
        _ => None,
    })?;
    Ok(Config {
        num_replicas: replicas.unwrap_or(1) as usize,
        max_age: max_age.unwrap_or_default(),
        max_bytes: max_bytes.unwrap_or(-1),
        storage: storage.unwrap_or_default(),
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        ..Config::default()
    })
}

/// Reads a number in `range`.
pub(crate) fn within(range: RangeInclusive<u32>) -> impl Fn(&str) -> Option<u32> {
    move |value: &str| value.parse().ok().filter(|number| range.contains(number))
}
