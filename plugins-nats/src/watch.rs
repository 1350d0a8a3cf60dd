//! The keys of a bucket that change, by an ordered consumer: the client makes it anew, from where it was, when it
//! misses something or hears nothing.

use capabilities::keyvalue::{Changes, Error, Result, WATCHES_MAX};
use capabilities::{names, report};
use futures::stream::{self, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::bucket::{Buckets, Following};

/// How long after the end of a consumer another is asked for.
const RETRY: Duration = Duration::from_millis(500);

/// How long nothing is told before the bucket is asked whether it is still the same.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// Somebody who watches a bucket.
struct Watch {
    buckets: Arc<Buckets>,
    name: String,
    following: Option<Following>,
    /// The number of the message that was seen last.
    last: u64,
    _place: OwnedSemaphorePermit,
}

/// Watches the bucket called `name` by NATS and `guest_name` by the guest.
pub(crate) async fn begin(
    buckets: Arc<Buckets>,
    name: String,
    guest_name: &str,
) -> Result<Changes> {
    let bucket = buckets.find(&name, guest_name).await?;
    let place = Arc::clone(&buckets.watches).try_acquire_owned();
    let place = place.map_err(|_| {
        Error::Internal(format!("this host watches {WATCHES_MAX} buckets already").into())
    })?;
    let last = bucket.last_sequence().await?;
    let watch = Watch {
        following: Some(bucket.changes(last).await?),
        buckets,
        name,
        last,
        _place: place,
    };
    Ok(Box::pin(stream::unfold(watch, next)))
}

async fn next(mut watch: Watch) -> Option<(String, Watch)> {
    loop {
        let Some(following) = &mut watch.following else {
            tokio::time::sleep(RETRY).await;
            watch.following = match watch.again().await {
                Ok(following) => Some(following),
                Err(error) => {
                    let (bucket, error) = (&watch.name, report(&error));
                    tracing::debug!(bucket, error, "a bucket cannot be watched");
                    None
                }
            };
            continue;
        };
        let message = match timeout(QUIET_MAX, following.messages.next()).await {
            Ok(Some(Ok(message))) => message,
            Err(_) if watch.is_same().await => continue,
            _ => {
                watch.following = None;
                continue;
            }
        };
        if let Ok(info) = message.info() {
            watch.last = info.stream_sequence;
        }
        let key = message.subject.strip_prefix(following.prefix.as_str());
        // Somebody else's spelling of a key is no key.
        if let Some(key) = key.and_then(names::decode_key) {
            return Some((key, watch));
        }
    }
}

impl Watch {
    /// Whether the bucket is still the one that is followed, for all one can know: one that was made anew counts
    /// from the beginning, and the consumer would wait until it is as far as the other was.
    async fn is_same(&mut self) -> bool {
        let last = async {
            let bucket = self.buckets.find(&self.name, &self.name).await?;
            bucket.last_sequence().await
        };
        match last.await {
            Ok(last) => last >= self.last,
            Err(Error::NoSuchBucket(_)) => false,
            // The consumer goes on by itself when the server is there again.
            Err(_) => true,
        }
    }

    /// Goes on where it was, or from the first message of a bucket that was made anew.
    async fn again(&mut self) -> Result<Following> {
        self.buckets.forget(&self.name);
        let bucket = self.buckets.find(&self.name, &self.name).await?;
        if bucket.last_sequence().await? < self.last {
            self.last = 0;
        }
        bucket.changes(self.last).await
    }
}
