//! The cases of [`KeyValueStore`].

use bytes::Bytes;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::{Case, Cases, Failed, ask, same, want};
use crate::BoxError;
use crate::keyvalue::{
    Entry, Error, Guard, KEY_BYTES_MAX, KeyRange, KeyValueStore, Put, VALUE_BYTES_MAX, Version,
    counter,
};
use crate::plugin::Plugin;

mod settings;
mod watch;

pub use settings::{run_bounds, run_max_bytes};
pub use watch::run_watch;

/// Runs all cases on `plugin`, its host interface configured with `settings`.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Result<(), Failed> {
    let mut cases = Cases::default();
    macro_rules! buckets {
        ($($case:ident)*) => {$(
            cases.run(stringify!($case), async {
                let store = plugin.keyvalue(&ask("contract", false, settings)).await?;
                // The case's name is the bucket's: cases share nothing.
                let bucket = Bucket { store, name: stringify!($case) };
                bucket.store.open(bucket.name).await?;
                $case(&bucket).await
            }).await;
        )*};
    }
    buckets! {
        missing_key_is_none
        values_of_any_size
        values_too_large_are_refused
        unusual_keys
        illegal_keys_are_refused
        writes_change_the_version
        guard_absent
        guard_version
        versions_never_repeat
        one_of_many_guarded_writes_wins
        ttl_expires
        keys_are_sorted_and_paged
        keys_may_change_between_pages
        keys_of_unusual_spelling_are_listed
        increment_sums
        increment_is_exact_under_contention
        increment_refuses_what_it_cannot_add
        opening_again_keeps_what_is_there
    }
    cases
        .run(
            "illegal_buckets_are_refused",
            illegal_buckets(plugin, settings),
        )
        .await;
    cases
        .run(
            "absent_buckets_are_errors",
            absent_buckets(plugin, settings),
        )
        .await;
    cases
        .run("namespaces_are_apart", namespaces(plugin, settings))
        .await;
    cases.finish()
}

/// The bucket of one case.
struct Bucket {
    store: Arc<dyn KeyValueStore>,
    name: &'static str,
}

type Kv<T> = crate::keyvalue::Result<T>;

impl Bucket {
    async fn get(&self, key: &str) -> Kv<Option<Entry>> {
        self.store.get(self.name, key).await
    }

    async fn value(&self, key: &str) -> Kv<Option<Bytes>> {
        Ok(self.get(key).await?.map(|entry| entry.value))
    }

    async fn put(&self, key: &str, value: impl Into<Bytes>, guard: Guard) -> Kv<Option<Version>> {
        self.store
            .put(
                self.name,
                Put {
                    key,
                    value: value.into(),
                    guard,
                    ttl: None,
                },
            )
            .await
    }

    /// The version of an unconditional write.
    async fn set(&self, key: &str, value: impl Into<Bytes>) -> Result<Version, BoxError> {
        let version = self.put(key, value, Guard::Any).await?;
        Ok(version.ok_or("an unconditional write was refused")?)
    }

    async fn delete(&self, key: &str) -> Kv<()> {
        self.store.delete(self.name, key).await
    }

    async fn increment(&self, key: &str, delta: i64) -> Kv<i64> {
        self.store.increment(self.name, key, delta).await
    }

    /// All keys with `prefix`, in pages of `limit`.
    async fn keys(&self, prefix: &str, limit: usize) -> Result<Vec<String>, BoxError> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let range = KeyRange {
                prefix,
                after: keys.last().map(String::as_str),
                limit,
            };
            let page = self.store.keys(self.name, range).await?;
            if page.keys.len() > limit {
                return Err(format!("a page of {limit} has {} keys", page.keys.len()).into());
            }
            if page.more && page.keys.is_empty() {
                return Err("an empty page promises more".into());
            }
            keys.extend(page.keys);
            if !page.more {
                return Ok(keys);
            }
        }
    }
}

async fn missing_key_is_none(bucket: &Bucket) -> Case {
    want!(bucket.get("missing").await, Ok(None));
    want!(bucket.delete("missing").await, Ok(()));
    bucket.set("key", "value").await?;
    want!(bucket.delete("key").await, Ok(()));
    want!(bucket.get("key").await, Ok(None));
    want!(bucket.delete("key").await, Ok(()));
    Ok(())
}

async fn values_of_any_size(bucket: &Bucket) -> Case {
    for size in [0, 1, 7, 65_536, VALUE_BYTES_MAX] {
        let value = Bytes::from(vec![0xA5; size]);
        bucket.set("key", value.clone()).await?;
        let found = bucket.value("key").await?;
        if found.as_ref() != Some(&value) {
            let found = found.map(|value| value.len());
            return Err(format!("wrote {size} bytes, found {found:?}").into());
        }
    }
    Ok(())
}

async fn values_too_large_are_refused(bucket: &Bucket) -> Case {
    bucket.set("key", "before").await?;
    for size in [VALUE_BYTES_MAX + 1, VALUE_BYTES_MAX * 2] {
        let put = bucket.put("key", vec![0; size], Guard::Any).await;
        want!(put, Err(Error::TooLarge { bytes, .. }) if bytes == size);
    }
    same!(bucket.value("key").await?, Some(Bytes::from("before")));
    Ok(())
}

fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "A",
        "a.b",
        "a/b",
        ".",
        "..",
        ".a",
        "a.",
        "a..b",
        "a b",
        " ",
        "*",
        ">",
        "a.*",
        "a.>",
        "$",
        "=",
        "=x=",
        "=x=a",
        "=x==2E",
        "_",
        "a_b",
        "-",
        "key:1",
        "новый ключ",
        "日本語",
        "🦀",
        "é",
        "e\u{301}",
        "\n",
        "\r\n",
        "\u{7f}",
        "\"'\\",
        "%2E",
        "../../etc/passwd",
        "_INBOX.x",
        "KV-Operation",
    ]
    .map(str::to_owned)
    .into();
    keys.push("k".repeat(KEY_BYTES_MAX));
    keys.push("ж".repeat(KEY_BYTES_MAX / 2));
    keys
}

async fn unusual_keys(bucket: &Bucket) -> Case {
    let keys = odd_keys();
    for key in &keys {
        want!(
            bucket.put(key, key.clone(), Guard::Absent).await,
            Ok(Some(_))
        );
    }
    for key in &keys {
        same!(bucket.value(key).await?, Some(Bytes::from(key.clone())));
        bucket.delete(key).await?;
        want!(bucket.get(key).await, Ok(None));
    }
    Ok(())
}

async fn illegal_keys_are_refused(bucket: &Bucket) -> Case {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for key in ["", &long, "a\0b"] {
        want!(bucket.get(key).await, Err(Error::InvalidArgument(_)));
        want!(
            bucket.put(key, "value", Guard::Any).await,
            Err(Error::InvalidArgument(_))
        );
        want!(bucket.delete(key).await, Err(Error::InvalidArgument(_)));
        want!(
            bucket.increment(key, 1).await,
            Err(Error::InvalidArgument(_))
        );
    }
    Ok(())
}

async fn writes_change_the_version(bucket: &Bucket) -> Case {
    let first = bucket.set("key", "same").await?;
    bucket.set("other", "value").await?;
    want!(bucket.get("key").await?, Some(entry) if entry.version == first);
    let second = bucket.set("key", "same").await?;
    want!(second, version if version != first);
    want!(bucket.get("key").await?, Some(entry) if entry.version == second);
    Ok(())
}

async fn guard_absent(bucket: &Bucket) -> Case {
    want!(bucket.put("key", "first", Guard::Absent).await, Ok(Some(_)));
    want!(bucket.put("key", "second", Guard::Absent).await, Ok(None));
    same!(bucket.value("key").await?, Some(Bytes::from("first")));
    bucket.delete("key").await?;
    want!(bucket.put("key", "third", Guard::Absent).await, Ok(Some(_)));
    same!(bucket.value("key").await?, Some(Bytes::from("third")));
    Ok(())
}

async fn guard_version(bucket: &Bucket) -> Case {
    let first = bucket.set("key", "first").await?;
    let second = bucket.put("key", "second", Guard::Version(first)).await?;
    let second = second.ok_or("the current version was refused")?;
    want!(
        bucket.put("key", "stale", Guard::Version(first)).await,
        Ok(None)
    );
    same!(bucket.value("key").await?, Some(Bytes::from("second")));
    bucket.delete("key").await?;
    want!(
        bucket.put("key", "deleted", Guard::Version(second)).await,
        Ok(None)
    );
    want!(
        bucket.put("never", "there", Guard::Version(second)).await,
        Ok(None)
    );
    want!(
        bucket
            .put("never", "there", Guard::Version(Version(0)))
            .await,
        Ok(None)
    );
    want!(bucket.get("never").await, Ok(None));
    want!(bucket.get("key").await, Ok(None));
    Ok(())
}

async fn versions_never_repeat(bucket: &Bucket) -> Case {
    let mut seen = BTreeSet::new();
    for round in 0..5 {
        for guard in [Guard::Absent, Guard::Any] {
            let version = bucket
                .put("key", "value", guard)
                .await?
                .ok_or("a write was refused")?;
            if !seen.insert(version.0) {
                return Err(format!("version {} again in round {round}", version.0).into());
            }
        }
        bucket.delete("key").await?;
    }
    Ok(())
}

async fn one_of_many_guarded_writes_wins(bucket: &Bucket) -> Case {
    let first = bucket.set("updated", "value").await?;
    for (key, guard) in [
        ("created", Guard::Absent),
        ("updated", Guard::Version(first)),
    ] {
        let writes = join_all((0..16).map(|i| bucket.put(key, i.to_string(), guard))).await;
        let mut won = Vec::new();
        for (i, version) in writes.into_iter().enumerate() {
            won.extend(version?.map(|version| Entry {
                value: i.to_string().into(),
                version,
            }));
        }
        same!(won.len(), 1);
        same!(bucket.get(key).await?, won.pop());
    }
    Ok(())
}

async fn ttl_expires(bucket: &Bucket) -> Case {
    let start = Instant::now();
    let put = |key, guard, millis: Option<u64>| {
        let ttl = millis.map(Duration::from_millis);
        bucket.store.put(
            bucket.name,
            Put {
                key,
                value: "value".into(),
                guard,
                ttl,
            },
        )
    };
    put("kept", Guard::Any, Some(1)).await?;
    bucket.set("kept", "for ever").await?;
    let replaced = bucket.set("updated", "for ever").await?;
    want!(
        put("updated", Guard::Version(replaced), Some(1)).await,
        Ok(Some(_))
    );
    want!(put("created", Guard::Absent, Some(1)).await, Ok(Some(_)));
    let version = put("key", Guard::Any, Some(1001))
        .await?
        .ok_or("a write was refused")?;
    // Whole seconds, rounded up: 1.001 s is 2 s.
    for key in ["updated", "created", "key"] {
        while bucket.get(key).await?.is_some() {
            if start.elapsed() > Duration::from_secs(20) {
                return Err(
                    format!("key '{key}' is still there after {:?}", start.elapsed()).into(),
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    want!(start.elapsed(), lived if lived >= Duration::from_millis(1900));
    want!(put("key", Guard::Version(version), None).await, Ok(None));
    want!(put("key", Guard::Absent, None).await, Ok(Some(again)) if again != version);
    same!(bucket.keys("", 10).await?, ["kept", "key"]);
    same!(bucket.value("kept").await?, Some(Bytes::from("for ever")));
    want!(
        put("kept", Guard::Any, Some(u64::MAX)).await,
        Err(Error::InvalidArgument(_))
    );
    Ok(())
}

async fn keys_are_sorted_and_paged(bucket: &Bucket) -> Case {
    same!(bucket.keys("", 10).await?, Vec::<String>::new());
    let mut wanted: Vec<String> = (0..25).map(|i| format!("p/{i}")).collect();
    wanted.extend(["P", "o", "p", "p.", "q"].map(str::to_owned));
    for key in wanted.iter().rev() {
        bucket.set(key, "value").await?;
    }
    bucket.set("p/deleted", "value").await?;
    bucket.delete("p/deleted").await?;
    wanted.sort();
    for limit in [1, 7, 30, 31, 1000] {
        same!(bucket.keys("", limit).await?, wanted);
    }
    wanted.retain(|key| key.starts_with("p/"));
    for limit in [3, 25] {
        same!(bucket.keys("p/", limit).await?, wanted);
    }
    same!(bucket.keys("p/9/", 5).await?, Vec::<String>::new());
    // Where a page starts need not be a key, nor have the prefix.
    for (after, first) in [("p/23x", "p/24"), ("a", "p/0"), ("p/", "p/0")] {
        let range = KeyRange {
            prefix: "p/",
            after: Some(after),
            limit: 1,
        };
        same!(bucket.store.keys(bucket.name, range).await?.keys, [first]);
    }
    let range = KeyRange {
        prefix: "p/",
        after: Some("q"),
        limit: 1,
    };
    let page = bucket.store.keys(bucket.name, range).await?;
    same!((page.keys.len(), page.more), (0, false));
    Ok(())
}

async fn keys_may_change_between_pages(bucket: &Bucket) -> Case {
    for i in 0..20 {
        bucket.set(&format!("stays{i:02}"), "value").await?;
    }
    let mut keys: Vec<String> = Vec::new();
    for i in 0.. {
        let range = KeyRange {
            prefix: "",
            after: keys.last().map(String::as_str),
            limit: 3,
        };
        let page = bucket.store.keys(bucket.name, range).await?;
        keys.extend(page.keys);
        if !page.more {
            break;
        }
        bucket.set(&format!("added{i}"), "value").await?;
        bucket.set("zlast", "value").await?;
        bucket.delete(&format!("added{i}")).await?;
    }
    want!(&keys, keys if keys.windows(2).all(|pair| matches!(pair, [a, b] if a < b)));
    keys.retain(|key| key.starts_with("stays"));
    same!(keys.len(), 20);
    Ok(())
}

async fn keys_of_unusual_spelling_are_listed(bucket: &Bucket) -> Case {
    let mut wanted = odd_keys();
    for key in &wanted {
        bucket.set(key, "value").await?;
    }
    wanted.sort();
    same!(bucket.keys("", 5).await?, wanted);
    wanted.retain(|key| key.starts_with("a."));
    same!(bucket.keys("a.", 5).await?, wanted);
    Ok(())
}

async fn increment_sums(bucket: &Bucket) -> Case {
    same!(bucket.increment("key", 0).await?, 0);
    same!(bucket.increment("key", 5).await?, 5);
    same!(bucket.increment("key", -7).await?, -2);
    same!(
        bucket.value("key").await?,
        Some(Bytes::from_static(&[
            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE
        ]))
    );
    bucket.delete("key").await?;
    same!(bucket.increment("key", 1).await?, 1);
    bucket.set("written", counter::encode(40)).await?;
    same!(bucket.increment("written", 2).await?, 42);
    Ok(())
}

async fn increment_is_exact_under_contention(bucket: &Bucket) -> Case {
    const CALLERS: i64 = 32;
    const CALLS: i64 = 10;
    let callers = join_all((0..CALLERS).map(|_| async {
        let mut sums = Vec::new();
        for _ in 0..CALLS {
            sums.push(bucket.increment("key", 1).await?);
        }
        Ok::<_, Error>(sums)
    }));
    let mut sums = BTreeSet::new();
    for caller in callers.await {
        sums.extend(caller?);
    }
    // Each sum was handed out once, so every caller saw its own addition.
    same!(sums, (1..=CALLERS * CALLS).collect());
    same!(
        bucket.value("key").await?,
        Some(counter::encode(CALLERS * CALLS))
    );
    Ok(())
}

async fn increment_refuses_what_it_cannot_add(bucket: &Bucket) -> Case {
    for value in ["", "7", "123456789"] {
        bucket.set("text", value).await?;
        want!(bucket.increment("text", 1).await, Err(Error::NotACounter(n)) if n == value.len());
        same!(bucket.value("text").await?, Some(Bytes::from(value)));
    }
    for (limit, delta) in [(i64::MAX, 1), (i64::MIN, -1)] {
        bucket.set("key", counter::encode(limit)).await?;
        want!(bucket.increment("key", delta).await, Err(Error::Overflow));
        same!(bucket.increment("key", -delta).await?, limit - delta);
        same!(bucket.increment("key", delta).await?, limit);
    }
    // One caller's overflow is not another's.
    bucket.set("key", counter::encode(i64::MAX - 4)).await?;
    let mut fit = 0;
    for sum in join_all((0..8).map(|_| bucket.increment("key", 1))).await {
        match sum {
            Ok(_) => fit += 1,
            Err(Error::Overflow) => {}
            Err(error) => return Err(error.into()),
        }
    }
    same!(fit, 4);
    same!(bucket.value("key").await?, Some(counter::encode(i64::MAX)));
    Ok(())
}

async fn opening_again_keeps_what_is_there(bucket: &Bucket) -> Case {
    bucket.set("key", "value").await?;
    bucket.store.open(bucket.name).await?;
    same!(bucket.value("key").await?, Some(Bytes::from("value")));
    Ok(())
}

async fn illegal_buckets(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let long = "b".repeat(300);
    let store = plugin.keyvalue(&ask("contract", false, settings)).await?;
    for name in ["", &long] {
        want!(store.open(name).await, Err(Error::InvalidArgument(_)));
        want!(store.get(name, "key").await, Err(Error::InvalidArgument(_)));
    }
    let flat = plugin.keyvalue(&ask("contract", true, settings)).await?;
    for name in ["", &long, "a.b", "a b", "ключ", "a*", ">"] {
        want!(flat.open(name).await, Err(Error::InvalidArgument(_)));
    }
    Ok(())
}

async fn absent_buckets(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let mut strict = settings.clone();
    strict.insert("create".to_owned(), "false".to_owned());
    let strict = plugin.keyvalue(&ask("contract", false, &strict)).await?;
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    let put = Put {
        key: "key",
        value: "value".into(),
        guard: Guard::Any,
        ttl: None,
    };
    want!(strict.open("absent").await, Err(Error::NoSuchBucket(name)) if name == "absent");
    want!(
        strict.get("absent", "key").await,
        Err(Error::NoSuchBucket(_))
    );
    want!(strict.put("absent", put).await, Err(Error::NoSuchBucket(_)));
    want!(
        strict.delete("absent", "key").await,
        Err(Error::NoSuchBucket(_))
    );
    want!(
        strict.keys("absent", range).await,
        Err(Error::NoSuchBucket(_))
    );
    want!(
        strict.increment("absent", "key", 1).await,
        Err(Error::NoSuchBucket(_))
    );
    plugin
        .keyvalue(&ask("contract", false, settings))
        .await?
        .open("absent")
        .await?;
    want!(strict.open("absent").await, Ok(()));
    want!(strict.get("absent", "key").await, Ok(None));
    Ok(())
}

async fn namespaces(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let mut shared = settings.clone();
    shared.insert("shared".to_owned(), "true".to_owned());
    let views = [
        ("a", plugin.keyvalue(&ask("a", false, settings)).await?),
        ("b", plugin.keyvalue(&ask("b", false, settings)).await?),
        ("shared", plugin.keyvalue(&ask("a", false, &shared)).await?),
    ];
    for (view, store) in &views {
        store.open("apart").await?;
        want!(store.get("apart", "key").await, Ok(None));
        let put = Put {
            key: "key",
            value: (*view).into(),
            guard: Guard::Absent,
            ttl: None,
        };
        want!(store.put("apart", put).await, Ok(Some(_)));
    }
    for (view, store) in &views {
        want!(store.get("apart", "key").await, Ok(Some(entry)) if entry.value == *view);
    }
    // What is shared, and what a host with flat names has, is one and the same for all who say so.
    for (namespace, flat, settings) in [("b", false, &shared), ("b", true, settings)] {
        let store = plugin.keyvalue(&ask(namespace, flat, settings)).await?;
        store.open("apart").await?;
        want!(store.get("apart", "key").await, Ok(Some(entry)) if entry.value == "shared");
    }
    let [_, _, (_, shared)] = &views;
    want!(
        shared.open("a__apart").await,
        Err(Error::InvalidArgument(_))
    );
    Ok(())
}
