//! Exact additions to a key, one compare-and-swap for all that wait on this host.
//!
//! Callers of one key stand in line. Those who come while a batch is under way form the next one, which
//! starts when that is done. A batch is a shared future: whoever of its callers is polled drives it, so
//! a cancelled caller takes nothing with it. Its own addition may still happen.
//!
//! Invariant: a key has at most one batch under way and one forming; a line is gone with its last caller.

use bytes::Bytes;
use capabilities::keyvalue::{Error, Result, counter};
use futures::future::{BoxFuture, FutureExt, Shared};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bucket::{Bucket, Last};

/// How long a host waits at most before it tries again after another host's write.
const BACKOFF_MAX: Duration = Duration::from_millis(64);

/// A bucket and an encoded key, both as NATS has them.
pub(crate) type Id = (String, String);

/// The lines of all keys.
#[derive(Default)]
pub(crate) struct Counters {
    lines: Mutex<HashMap<Id, Line>>,
}

#[derive(Default)]
struct Line {
    callers: usize,
    /// The batch that still takes additions.
    forming: Option<(Vec<i64>, Batch)>,
    /// The batch that the next one waits for.
    newest: Option<Batch>,
}

type Batch = Shared<BoxFuture<'static, Result<Arc<Done>, Arc<Error>>>>;

struct Done {
    last: Last,
    /// One for each addition; `None` when it overflowed.
    sums: Vec<Option<i64>>,
}

impl Counters {
    /// Adds `delta` at `id` in `bucket`; the sum.
    pub(crate) async fn add(self: &Arc<Self>, bucket: Bucket, id: Id, delta: i64) -> Result<i64> {
        let (batch, place) = self.join(bucket, &id, delta);
        let _caller = Caller {
            counters: self,
            id: &id,
        };
        let done = batch.await.map_err(|error| again(&error))?;
        done.sums
            .get(place)
            .copied()
            .flatten()
            .ok_or(Error::Overflow)
    }

    /// The batch that has `delta`, and where.
    fn join(self: &Arc<Self>, bucket: Bucket, id: &Id, delta: i64) -> (Batch, usize) {
        let mut lines = self.lines();
        let line = lines.entry(id.clone()).or_default();
        line.callers += 1;
        if let Some((deltas, batch)) = &mut line.forming {
            deltas.push(delta);
            return (batch.clone(), deltas.len() - 1);
        }
        let (counters, id, previous) = (self.clone(), id.clone(), line.newest.take());
        let batch = async move {
            // What the batch before left saves reading it.
            let known = match previous {
                Some(previous) => previous.await.ok().map(|done| done.last.clone()),
                None => None,
            };
            let deltas = counters.close(&id);
            apply(&bucket, &id.1, &deltas, known)
                .await
                .map(Arc::new)
                .map_err(Arc::new)
        };
        let batch = batch.boxed().shared();
        line.newest = Some(batch.clone());
        line.forming = Some((vec![delta], batch.clone()));
        (batch, 0)
    }

    /// The additions of the forming batch, which takes no more.
    fn close(&self, id: &Id) -> Vec<i64> {
        let forming = self
            .lines()
            .get_mut(id)
            .and_then(|line| line.forming.take());
        forming.map(|(deltas, _)| deltas).unwrap_or_default()
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Id, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves the line when dropped.
struct Caller<'a> {
    counters: &'a Counters,
    id: &'a Id,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let mut lines = self.counters.lines();
        let Some(line) = lines.get_mut(self.id) else {
            return;
        };
        line.callers -= 1;
        if line.callers == 0 {
            let line = lines.remove(self.id);
            // Dropping a batch may run anything; not under the lock.
            drop(lines);
            drop(line);
        }
    }
}

/// Adds `deltas` one after the other in one write, again and again until no other host came between.
async fn apply(
    bucket: &Bucket,
    key: &str,
    deltas: &[i64],
    mut known: Option<Last>,
) -> Result<Done> {
    let mut backoff = Duration::from_millis(1);
    loop {
        let (last, fresh) = match known.take() {
            Some(last) => (last, false),
            None => (bucket.last(key).await?, true),
        };
        let old = last
            .value
            .as_ref()
            .map_or(Ok(0), |value| counter::decode(value))?;
        let (sum, sums) = add_each(old, deltas);
        let overflowed = sums.contains(&None);
        if overflowed && !fresh {
            // Only what is really there may be found too large.
            continue;
        }
        if overflowed && sums.iter().all(Option::is_none) {
            return Ok(Done { last, sums });
        }
        let value: Bytes = counter::encode(sum);
        if let Some(revision) = bucket
            .write(key, value.clone(), Some(last.revision), None)
            .await?
        {
            return Ok(Done {
                last: Last {
                    revision,
                    value: Some(value),
                },
                sums,
            });
        }
        if fresh {
            tokio::time::sleep(backoff.mul_f64(0.5 + random() / 2.0)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// The whole sum and each caller's own; what does not fit is left out.
fn add_each(old: i64, deltas: &[i64]) -> (i64, Vec<Option<i64>>) {
    let mut sum = old;
    let mut sums = Vec::with_capacity(deltas.len());
    for delta in deltas {
        let added = sum.checked_add(*delta);
        sum = added.unwrap_or(sum);
        sums.push(added);
    }
    (sum, sums)
}

/// In 0..1, so that hosts do not try again all at once.
fn random() -> f64 {
    f64::from(RandomState::new().build_hasher().finish() as u32) / f64::from(u32::MAX)
}

/// A batch's error for one of its callers.
fn again(error: &Arc<Error>) -> Error {
    match &**error {
        Error::NoSuchBucket(name) => Error::NoSuchBucket(name.clone()),
        Error::AccessDenied => Error::AccessDenied,
        Error::NotACounter(bytes) => Error::NotACounter(*bytes),
        Error::Timeout(limit) => Error::Timeout(*limit),
        Error::Unavailable(source) => Error::Unavailable(capabilities::report(&**source).into()),
        Error::Full(source) => Error::Full(capabilities::report(&**source).into()),
        Error::Internal(source) => Error::Internal(capabilities::report(&**source).into()),
        other => Error::Internal(capabilities::report(other).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_that_do_not_fit_are_left_out() {
        assert_eq!(
            add_each(1, &[2, -4, 0]),
            (-1, vec![Some(3), Some(-1), Some(-1)])
        );
        let max = i64::MAX;
        assert_eq!(
            add_each(max - 1, &[1, 1, -2, 2]),
            (max, vec![Some(max), None, Some(max - 2), Some(max)])
        );
        assert_eq!(add_each(i64::MIN, &[-1]), (i64::MIN, vec![None]));
    }
}
