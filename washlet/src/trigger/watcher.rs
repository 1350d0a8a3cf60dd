//! Changes of keys to components: one loop per component, one call at a time, so that what it is told of a key is
//! in order.
//!
//! What is told is what a key has when its turn comes; of changes that come faster, the last is told. A change whose
//! call fails is not told again.

use capabilities::keyvalue::{self, KeyValueStore};
use capabilities::report;
use engine::Runnable;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::workload::actor::InFlight;

/// How long after a value could not be read it is read again.
const RETRY: Duration = Duration::from_millis(500);

/// A bucket, and where it is.
pub(crate) struct Watched {
    pub(crate) store: Arc<dyn KeyValueStore>,
    pub(crate) bucket: String,
}

/// What the changes that a component is told of go through.
pub(crate) struct Watching {
    pub(crate) target: Runnable,
    /// Turns of the whole host, shared with messages.
    pub(crate) host: Arc<Semaphore>,
    /// Calls that a stop waits for.
    pub(crate) in_flight: InFlight,
}

type Changed = (Arc<Watched>, String);

/// Begins to watch; when this returns, changes of every bucket are told by a task of `drain`.
///
/// # Errors
/// `failed to watch bucket '<bucket>'`, with the storage's own error.
pub(crate) async fn attach(
    watching: Watching,
    watched: Vec<Watched>,
    drain: &Drain,
) -> Result<(), (String, keyvalue::Error)> {
    let mut changes: SelectAll<BoxStream<'static, Changed>> = SelectAll::new();
    for watched in watched.into_iter().map(Arc::new) {
        let begun = async {
            watched.store.open(&watched.bucket).await?;
            watched.store.watch(&watched.bucket).await
        };
        let begun = begun.await;
        match begun {
            Ok(keys) => {
                let keys = keys.map(move |key| (Arc::clone(&watched), key));
                changes.push(keys.boxed());
            }
            Err(error) => {
                let what = format!("failed to watch bucket '{}'", watched.bucket);
                return Err((what, error));
            }
        }
    }
    let owner = drain.clone();
    drain.spawn("changes", async move {
        loop {
            let changed = tokio::select! {
                biased;
                () = owner.stopping() => break,
                changed = changes.next() => changed,
            };
            let Some((watched, key)) = changed else { break };
            watching.tell(&watched, &key, &owner).await;
        }
    });
    Ok(())
}

impl Watching {
    async fn tell(&self, watched: &Watched, key: &str, owner: &Drain) {
        let Watched { store, bucket } = watched;
        let who = self.target.owner();
        let (workload, component) = (&who.workload, &who.component);
        let ready = async {
            let value = loop {
                match store.get(bucket, key).await {
                    Ok(entry) => break entry.map(|entry| entry.value),
                    Err(error) => {
                        let error = report(&error);
                        tracing::debug!(workload, component, bucket, error, "a change waits");
                    }
                }
                tokio::time::sleep(RETRY).await;
            };
            // Not before, or a storage that is away would hold turns.
            (self.host.acquire().await, value)
        };
        let (_turn, value) = tokio::select! {
            biased;
            () = owner.stopping() => return,
            ready = ready => ready,
        };
        let token = self.in_flight.token();
        let called = token.run(self.target.changed(store, bucket, key, value));
        if let Some(Err(error)) = called.await {
            tracing::warn!(workload, component, bucket, %error, "a change was not taken");
        }
    }
}
