//! A workload that fails is started again, ever later while it goes on failing.
//!
//! ```text
//! Starting ─► Running ─ a part fails ─┐     after 60 s of running, failures are counted anew
//!   ▲  └─ cannot start ─► Failed ◄────┘
//!   └── pause: 1 s, doubled up to 300 s, jittered
//! ```
//! Any command wins over a pending attempt: a stop ends it, a start begins at once. What was refused is not
//! here at all, and new content for a live id has one attempt, since what it was to replace goes on.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use subjects::{HostId, WorkloadId};
use tokio::time::{Instant, sleep_until};

use super::Host;
use crate::workload::actor::{Actor, Ended};
use crate::workload::{Failure, State, progress};

/// The first and the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// After running for so long a workload is taken for healthy.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// How long to wait after that many failures in a row. Shape: `chance`, 0 to 1, shortens it by up to a half,
/// so that not all that failed for one reason come back at the same time.
fn pause(attempts: u32, chance: f64) -> Duration {
    let doubled = 2u32.saturating_pow(attempts.saturating_sub(1));
    let pause = PAUSE.0.saturating_mul(doubled).min(PAUSE.1);
    pause - (pause / 2).mul_f64(chance.clamp(0.0, 1.0))
}

/// Another one for each host, workload and attempt, and always the same, so that the simulation can repeat it.
fn chance(host: &HostId, id: &WorkloadId, attempts: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (host, id, attempts).hash(&mut hasher);
    (hasher.finish() % 1_000) as f64 / 1_000.0
}

/// Whether to try again.
enum Attempt {
    Now,
    /// A start that may be taken back has its place.
    Later,
    Never,
}

impl Host {
    /// Runs a workload until it is stopped, again and again while it fails.
    pub(super) async fn keep_up(&self, actor: &mut Actor, own: &progress::Receiver) {
        let replaces = actor.turn.is_some();
        let mut attempts = 0_u32;
        while let Ended::Failed { cause, ran } = actor.run().await {
            if ran.is_some_and(|ran| ran >= HEALTHY_AFTER) {
                attempts = 0;
            }
            attempts = attempts.saturating_add(1);
            let once = replaces && ran.is_none();
            let again = !once && !self.0.draining.is_stopping();
            let (id, workload) = (&actor.spec.id, &actor.spec.name);
            let pause = again.then(|| pause(attempts, chance(self.id(), id, attempts)));
            tracing::warn!(%id, workload, cause, attempts, again_in = ?pause, "workload failed");
            let next = pause.map(|pause| Instant::now() + pause);
            actor.enter(State::Failed(Failure {
                cause,
                attempts,
                next,
            }));
            let Some(mut next) = next else { return };
            loop {
                tokio::select! {
                    biased;
                    () = actor.stop.cancelled() => {}
                    () = sleep_until(next) => {}
                }
                match self.begin_again(actor, own) {
                    Attempt::Now => break,
                    Attempt::Never => return,
                    Attempt::Later => next = Instant::now() + PAUSE.0,
                }
            }
        }
    }

    /// Begins one more attempt, unless a command came between: both under the lock under which those act.
    fn begin_again(&self, actor: &Actor, own: &progress::Receiver) -> Attempt {
        let table = self.table();
        if actor.stop.is_cancelled() {
            actor.enter(State::Gone);
            return Attempt::Never;
        }
        if self.0.draining.is_stopping() {
            return Attempt::Never;
        }
        let entry = table.get(&actor.spec.id);
        if !entry.is_some_and(|entry| entry.state.same(own)) {
            return Attempt::Later;
        }
        self.0.health.retried();
        actor.enter(State::Starting);
        Attempt::Now
    }

    /// Why a workload that this host starts again by itself does not run.
    pub fn failing(&self, id: &WorkloadId) -> Option<String> {
        let table = self.table();
        let entry = table.get(id)?;
        let course = entry.course.borrow();
        let failing = match entry.state.get() {
            State::Failed(failure) => failure.next.is_some(),
            State::Starting => course.attempts > 0,
            _ => false,
        };
        failing.then(|| course.reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_differ() {
        let seconds = |attempts| pause(attempts, 0.0).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, 11, u32::MAX].map(seconds),
            [1, 2, 4, 256, 300, 300, 300]
        );
        assert_eq!(pause(1, 1.0), Duration::from_millis(500));
        assert_eq!(pause(u32::MAX, 1.0), Duration::from_secs(150));
        let host = HostId::new("h").unwrap();
        let ids = (0..20).map(|n| WorkloadId::new(format!("w-{n}")).unwrap());
        let chances: Vec<_> = ids.map(|id| chance(&host, &id, 1)).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance != chances[0]));
    }
}
