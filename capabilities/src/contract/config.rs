//! The cases of live [`ConfigSource`]s: what is written into a bucket is read as configuration.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::{Case, Cases, Failed, ask, beside, same, want};
use crate::BoxError;
use crate::config::{ConfigSource, Error, SEEN_WITHIN};
use crate::keyvalue::{Guard, KeyValueStore, Put};
use crate::plugin::{OpenError, Plugin};

/// How often a source is looked at that is to change.
const LOOK: Duration = Duration::from_millis(5);

/// Runs all cases on `plugin`, its host interface configured with `settings`; runs `plugin` meanwhile.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Result<(), Failed> {
    beside(plugin, all(plugin, settings)).await
}

async fn all(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Result<(), Failed> {
    let mut cases = Cases::default();
    macro_rules! buckets {
        ($($case:ident)*) => {$(
            cases.run(stringify!($case), async {
                // The case's name is the bucket's: cases share nothing.
                $case(&Bucket::new(plugin, settings, "contract", stringify!($case)).await?).await
            }).await;
        )*};
    }
    buckets! {
        an_empty_bucket_has_nothing
        what_was_there_before_is_read
        a_change_is_seen
        a_removed_key_is_gone
        many_changes_end_with_the_last
        unusual_keys_and_values
        a_value_that_is_no_text_is_an_error_of_its_key
        two_sources_see_the_same
        namespaces_are_apart
        shared_buckets_are_everybodys
        an_absent_bucket_is_made_or_refused
        a_source_needs_a_bucket
    }
    cases.finish()
}

/// The bucket of one case.
struct Bucket<'a> {
    plugin: &'a dyn Plugin,
    settings: BTreeMap<String, String>,
    namespace: &'static str,
    store: Arc<dyn KeyValueStore>,
    name: &'static str,
}

impl<'a> Bucket<'a> {
    async fn new(
        plugin: &'a dyn Plugin,
        settings: &BTreeMap<String, String>,
        namespace: &'static str,
        name: &'static str,
    ) -> Result<Self, BoxError> {
        let store = plugin.keyvalue(&ask(namespace, false, settings)).await?;
        Ok(Self {
            plugin,
            settings: settings.clone(),
            namespace,
            store,
            name,
        })
    }

    async fn source(&self) -> Result<Arc<dyn ConfigSource>, OpenError> {
        self.source_with(&[("bucket", self.name)]).await
    }

    async fn source_with(&self, more: &[(&str, &str)]) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let mut settings = self.settings.clone();
        let more = more.iter();
        settings.extend(more.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let ask = ask(self.namespace, false, &settings);
        let source = self.plugin.config(&ask).await?;
        ask.settings.finish()?;
        Ok(source)
    }

    async fn set(&self, key: &str, value: impl Into<Bytes>) -> Case {
        let put = Put {
            key,
            value: value.into(),
            guard: Guard::Any,
            ttl: None,
        };
        self.store.put(self.name, put).await?;
        Ok(())
    }

    async fn open(&self) -> Case {
        Ok(self.store.open(self.name).await?)
    }
}

/// Waits until `key` has `value`, which must not take longer than is promised.
async fn seen(source: &Arc<dyn ConfigSource>, key: &str, value: Option<&str>) -> Case {
    let start = Instant::now();
    loop {
        let found = source.get(key).await?;
        if found.as_deref() == value {
            return Ok(());
        }
        if start.elapsed() > SEEN_WITHIN {
            let text = format!("'{key}' is {found:?} after {SEEN_WITHIN:?}, not {value:?}");
            return Err(text.into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn an_empty_bucket_has_nothing(bucket: &Bucket<'_>) -> Case {
    let source = bucket.source().await?;
    same!(source.get("key").await?, None);
    same!(source.get("").await?, None);
    same!(source.all().await?, BTreeMap::new());
    Ok(())
}

async fn what_was_there_before_is_read(bucket: &Bucket<'_>) -> Case {
    bucket.open().await?;
    for n in 0..300 {
        bucket.set(&format!("key{n}"), format!("value{n}")).await?;
    }
    bucket.set("key7", "again").await?;
    bucket.store.delete(bucket.name, "key8").await?;
    // At once: a component is not started before its configuration is there.
    let source = bucket.source().await?;
    same!(source.get("key0").await?.as_deref(), Some("value0"));
    same!(source.get("key299").await?.as_deref(), Some("value299"));
    same!(source.get("key7").await?.as_deref(), Some("again"));
    same!(source.get("key8").await?, None);
    same!(source.all().await?.len(), 299);
    Ok(())
}

async fn a_change_is_seen(bucket: &Bucket<'_>) -> Case {
    let source = bucket.source().await?;
    for value in ["one", "two", "", "three"] {
        bucket.set("key", value).await?;
        seen(&source, "key", Some(value)).await?;
        let all = BTreeMap::from([("key".to_owned(), value.to_owned())]);
        same!(source.all().await?, all);
    }
    Ok(())
}

async fn a_removed_key_is_gone(bucket: &Bucket<'_>) -> Case {
    let source = bucket.source().await?;
    for _ in 0..3 {
        bucket.set("key", "value").await?;
        seen(&source, "key", Some("value")).await?;
        bucket.store.delete(bucket.name, "key").await?;
        seen(&source, "key", None).await?;
        same!(source.all().await?, BTreeMap::new());
    }
    Ok(())
}

async fn many_changes_end_with_the_last(bucket: &Bucket<'_>) -> Case {
    let source = bucket.source().await?;
    for n in 0..500 {
        bucket.set("key", n.to_string()).await?;
    }
    seen(&source, "key", Some("499")).await
}

async fn unusual_keys_and_values(bucket: &Bucket<'_>) -> Case {
    let source = bucket.source().await?;
    let keys = ["a b", "ü", "a..b", "=x=", "a/b_c-d=e.f", "*", ">", "UPPER"];
    for key in keys {
        bucket.set(key, format!("ü\n{key}")).await?;
    }
    for key in keys {
        seen(&source, key, Some(&format!("ü\n{key}"))).await?;
    }
    let all: Vec<String> = source.all().await?.into_keys().collect();
    let mut sorted = keys.map(str::to_owned);
    sorted.sort_unstable();
    same!(all, sorted);
    same!(source.get(&"long".repeat(10_000)).await?, None);
    same!(source.get("a\0b").await?, None);
    Ok(())
}

async fn a_value_that_is_no_text_is_an_error_of_its_key(bucket: &Bucket<'_>) -> Case {
    bucket.open().await?;
    bucket.set("bad", &[0xff, 0xfe][..]).await?;
    bucket.set("good", "text").await?;
    let source = bucket.source().await?;
    same!(source.get("good").await?.as_deref(), Some("text"));
    want!(source.get("bad").await, Err(Error::NotText(key)) if key == "bad");
    want!(source.all().await, Err(Error::NotText(key)) if key == "bad");
    bucket.set("bad", "text").await?;
    let start = Instant::now();
    while source.get("bad").await.is_err() && start.elapsed() < SEEN_WITHIN {
        tokio::time::sleep(LOOK).await;
    }
    same!(source.get("bad").await?.as_deref(), Some("text"));
    Ok(())
}

async fn two_sources_see_the_same(bucket: &Bucket<'_>) -> Case {
    let (one, two) = (bucket.source().await?, bucket.source().await?);
    bucket.set("key", "1").await?;
    seen(&one, "key", Some("1")).await?;
    seen(&two, "key", Some("1")).await?;
    drop(one);
    bucket.set("key", "2").await?;
    seen(&two, "key", Some("2")).await?;
    drop(two);
    // Nobody looked for a while.
    bucket.set("key", "3").await?;
    let again = bucket.source().await?;
    same!(again.get("key").await?.as_deref(), Some("3"));
    bucket.set("key", "4").await?;
    seen(&again, "key", Some("4")).await
}

async fn namespaces_are_apart(bucket: &Bucket<'_>) -> Case {
    let other = Bucket::new(bucket.plugin, &bucket.settings, "other", bucket.name).await?;
    let (here, there) = (bucket.source().await?, other.source().await?);
    bucket.set("key", "here").await?;
    seen(&here, "key", Some("here")).await?;
    other.set("key", "there").await?;
    seen(&there, "key", Some("there")).await?;
    same!(here.get("key").await?.as_deref(), Some("here"));
    Ok(())
}

async fn shared_buckets_are_everybodys(bucket: &Bucket<'_>) -> Case {
    let mut settings = bucket.settings.clone();
    settings.insert("shared".to_owned(), "true".to_owned());
    let here = Bucket::new(bucket.plugin, &settings, "contract", bucket.name).await?;
    let there = Bucket::new(bucket.plugin, &settings, "other", bucket.name).await?;
    let (one, two) = (here.source().await?, there.source().await?);
    here.set("key", "1").await?;
    seen(&one, "key", Some("1")).await?;
    seen(&two, "key", Some("1")).await?;
    same!(bucket.source().await?.get("key").await?, None);
    Ok(())
}

async fn an_absent_bucket_is_made_or_refused(bucket: &Bucket<'_>) -> Case {
    let existing = [("bucket", bucket.name), ("create", "false")];
    let refused = bucket.source_with(&existing).await;
    want!(refused.map(drop), Err(OpenError::Storage(_)));
    bucket.source().await?;
    bucket.source_with(&existing).await?;
    Ok(())
}

async fn a_source_needs_a_bucket(bucket: &Bucket<'_>) -> Case {
    for more in [&[][..], &[("bucket", " ")]] {
        let refused = bucket.source_with(more).await.map(drop);
        want!(refused, Err(OpenError::Setting { key: "bucket", .. }));
    }
    Ok(())
}
