//! How the streams below buckets and containers are made.

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use capabilities::plugin::{OpenError, Settings};
use std::ops::RangeInclusive;
use std::time::Duration;

/// What all of them have, with the settings `replicas`, `ttl`, `max_bytes` and `storage`.
pub(crate) fn stream(settings: &Settings<'_>) -> Result<Config, OpenError> {
    let replicas = settings.parsed("replicas", "a number from 1 to 5", within(1..=5))?;
    let expected = "a time of at least 1s, like 90s, 10m, 12h or 7d";
    let max_age = settings.parsed("ttl", expected, parse_ttl)?;
    let max_bytes = settings.parsed("max_bytes", "a positive number of bytes", |value| {
        value.parse().ok().filter(|bytes| *bytes > 0)
    })?;
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

/// A whole number of seconds, or of what its last letter says.
fn parse_ttl(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    let ttl = Duration::from_secs(seconds);
    (ttl >= Duration::from_secs(1) && ttl <= capabilities::keyvalue::TTL_MAX).then_some(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls() {
        for (text, seconds) in [
            ("5", 5),
            ("90s", 90),
            ("10m", 600),
            ("12h", 43_200),
            ("7d", 604_800),
        ] {
            assert_eq!(
                parse_ttl(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "0",
            "0s",
            "-1",
            "1.5h",
            "1w",
            "1 h",
            "1hm",
            "99999999999d",
            "é",
        ] {
            assert_eq!(parse_ttl(text), None, "{text}");
        }
    }
}
