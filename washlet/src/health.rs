//! How the host is, for those who look from outside: what is not ready, and what has been counted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

use engine::shards::{self, Shards};

use crate::drain::Drain;

/// How often the control plane shows that it runs.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// How long it may not have.
const BEAT_WITHIN: Duration = Duration::from_secs(30);

/// Classes of HTTP statuses, from 1xx on.
pub(crate) const CLASSES: usize = 5;

/// Facts about a host that its parts write, and the admin endpoint reads. Shape: clones are the same.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    began: Instant,
    /// Milliseconds after `began` at which the control plane was last seen to run.
    beat: AtomicU64,
    /// Commands are heard, as far as this process knows.
    hears: AtomicBool,
    /// Tells of the connection that commands come over; `None` before there is one.
    link: Mutex<Option<Watched>>,
    /// Tells of the connection that data goes over, if there is one.
    data: Mutex<Option<Watched>>,
    draining: AtomicBool,
    /// Workloads of before the restart that neither run nor have failed yet.
    restoring: AtomicUsize,
    subscribed: AtomicU64,
    heartbeats: AtomicU64,
    heartbeats_failed: AtomicU64,
    commands: AtomicU64,
    retries: AtomicU64,
    without_room: AtomicU64,
    /// What the machine is short of.
    short_of: watch::Sender<Vec<&'static str>>,
    answered: Shards<Answered>,
}

type Watched = Box<dyn Fn() -> Link + Send + Sync>;

/// A connection to NATS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Times that it was made.
    pub made: u64,
}

/// Responses to HTTP requests, by class of their status, from 1xx on.
#[derive(Default)]
pub(crate) struct Answered([AtomicU64; CLASSES]);

impl Answered {
    /// One more, with `status`.
    pub(crate) fn add(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.0.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All of them together.
pub(crate) fn sum<'a>(parts: impl Iterator<Item = &'a Answered>) -> [u64; CLASSES] {
    let mut sums = [0; CLASSES];
    for Answered(part) in parts {
        for (sum, count) in sums.iter_mut().zip(part) {
            *sum += count.load(Ordering::Relaxed);
        }
    }
    sums
}

/// What a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Its handler succeeded.
    Handled,
    /// Its handler did not; with durable delivery it comes again.
    Failed,
    /// It will not be delivered again, with durable delivery.
    Dead,
    /// It was not delivered, for want of a turn.
    Dropped,
}

impl Came {
    /// All of them, by the names that they are counted under.
    pub(crate) const ALL: [(&'static str, Self); 4] = [
        ("handled", Self::Handled),
        ("failed", Self::Failed),
        ("dead_letter", Self::Dead),
        ("dropped", Self::Dropped),
    ];
}

/// Messages by what they came to.
#[derive(Default)]
pub(crate) struct Messages([AtomicU64; Came::ALL.len()]);

impl Messages {
    pub(crate) fn add(&self, came: Came) {
        if let Some(count) = self.0.get(came as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count(&self, came: Came) -> u64 {
        let count = self.0.get(came as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// What was counted since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that commands were subscribed to.
    pub subscribed: u64,
    /// Times that the connection that commands come over was made.
    pub connected: u64,
    /// Heartbeats published.
    pub heartbeats: u64,
    /// Heartbeats that could not be published.
    pub heartbeats_failed: u64,
    /// Commands answered.
    pub commands: u64,
    /// Times that a failed workload was started again.
    pub retries: u64,
    /// Starts refused because they did not fit.
    pub without_room: u64,
    /// Responses to HTTP requests, by class of their status, from 1xx on.
    pub answered: [u64; CLASSES],
}

impl Default for Health {
    fn default() -> Self {
        Self::since(Instant::now())
    }
}

impl Health {
    /// Of a process that began at `began`.
    fn since(began: Instant) -> Self {
        Self(Arc::new(Inner {
            began,
            beat: AtomicU64::new(0),
            hears: AtomicBool::new(false),
            link: Mutex::new(None),
            data: Mutex::new(None),
            draining: AtomicBool::new(false),
            restoring: AtomicUsize::new(0),
            subscribed: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            heartbeats_failed: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            without_room: AtomicU64::new(0),
            short_of: watch::Sender::default(),
            answered: Shards::new(shards::count(), |_| Default::default()),
        }))
    }

    /// Has the control plane show that it runs, until `control` stops.
    pub(crate) fn beat(&self, control: &Drain) {
        let (this, owner) = (self.clone(), control.clone());
        control.spawn("beat", async move {
            loop {
                let now = this.0.began.elapsed().as_millis();
                let now = u64::try_from(now).unwrap_or(u64::MAX);
                this.0.beat.store(now, Ordering::Relaxed);
                tokio::select! {
                    () = owner.stopping() => return,
                    () = tokio::time::sleep(BEAT_EVERY) => {}
                }
            }
        });
    }

    /// `link` tells of the connection that commands come over.
    pub(crate) fn watch(&self, link: impl Fn() -> Link + Send + Sync + 'static) {
        *self.0.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(link));
    }

    fn link(&self) -> Link {
        let link = self.0.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().map(|link| link()).unwrap_or_default()
    }

    /// `link` tells of the connection that data goes over.
    pub(crate) fn watch_data(&self, link: impl Fn() -> Link + Send + Sync + 'static) {
        *self.0.data.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(link));
    }

    /// How the connection is that data goes over, if there is one.
    pub(crate) fn data(&self) -> Option<Link> {
        let data = self.0.data.lock().unwrap_or_else(PoisonError::into_inner);
        data.as_ref().map(|link| link())
    }

    /// Commands are heard from now on, or not any more.
    pub(crate) fn hears(&self, hears: bool) {
        self.0.hears.store(hears, Ordering::Relaxed);
        if hears {
            self.0.subscribed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The host is on its way out.
    pub(crate) fn drains(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// One more workload of before the restart is being started, until the result is dropped.
    pub(crate) fn restoring(&self) -> Restoring {
        self.0.restoring.fetch_add(1, Ordering::Relaxed);
        Restoring(self.clone())
    }

    /// A heartbeat was published, or could not be.
    pub(crate) fn heartbeat(&self, published: bool) {
        let count = match published {
            true => &self.0.heartbeats,
            false => &self.0.heartbeats_failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A command was answered.
    pub(crate) fn command(&self) {
        self.0.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// A workload that had failed is started again.
    pub(crate) fn retried(&self) {
        self.0.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A start was refused because it does not fit.
    pub(crate) fn no_room(&self) {
        self.0.without_room.fetch_add(1, Ordering::Relaxed);
    }

    /// What the machine is short of from now on.
    pub(crate) fn is_short_of(&self, resources: Vec<&'static str>) {
        let changed = self.0.short_of.send_if_modified(|short_of| {
            let changed = *short_of != resources;
            *short_of = resources;
            changed
        });
        if changed {
            let resources = self.pressure().borrow().join(", ");
            tracing::warn!(resources, "what the machine is short of has changed");
        }
    }

    /// What the machine is short of.
    pub(crate) fn pressure(&self) -> watch::Receiver<Vec<&'static str>> {
        self.0.short_of.subscribe()
    }

    /// An HTTP request was answered.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        self.0.answered.here().add(status);
    }

    /// Whether the connection that commands come over is up.
    pub fn is_connected(&self) -> bool {
        self.link().up
    }

    /// Whether the control plane runs: a restart would help if not.
    pub fn is_alive(&self) -> bool {
        let beat = Duration::from_millis(self.0.beat.load(Ordering::Relaxed));
        // What is draining has stopped on purpose.
        self.0.draining.load(Ordering::Relaxed)
            || self.0.began.elapsed().saturating_sub(beat) < BEAT_WITHIN
    }

    /// Everything for which nobody should rely on this host now; empty when it is ready.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push("draining".to_owned());
        }
        match (self.is_connected(), self.0.hears.load(Ordering::Relaxed)) {
            (false, _) => reasons.push("control plane: not connected to NATS".to_owned()),
            (true, false) => reasons.push("control plane: commands are not heard yet".to_owned()),
            (true, true) => {}
        }
        match self.0.restoring.load(Ordering::Relaxed) {
            0 => {}
            left => reasons.push(format!(
                "workloads: {left} of before the restart are starting"
            )),
        }
        reasons
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        Counts {
            subscribed: self.0.subscribed.load(Ordering::Relaxed),
            connected: self.link().made,
            heartbeats: self.0.heartbeats.load(Ordering::Relaxed),
            heartbeats_failed: self.0.heartbeats_failed.load(Ordering::Relaxed),
            commands: self.0.commands.load(Ordering::Relaxed),
            retries: self.0.retries.load(Ordering::Relaxed),
            without_room: self.0.without_room.load(Ordering::Relaxed),
            answered: sum(self.0.answered.iter()),
        }
    }
}

/// See [`Health::restoring`].
pub(crate) struct Restoring(Health);

impl Drop for Restoring {
    fn drop(&mut self) {
        self.0.0.restoring.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Handle;

    /// Of a control plane that has not shown that it runs for longer than it may.
    fn silent() -> Option<Health> {
        let long = BEAT_WITHIN + Duration::from_secs(1);
        Instant::now().checked_sub(long).map(Health::since)
    }

    #[tokio::test]
    async fn a_control_plane_that_hangs_is_not_alive() {
        // A machine that booted a moment ago has no such moment.
        let Some(health) = silent() else { return };
        assert!(!health.is_alive());
        let control = Drain::new(Handle::current());
        health.beat(&control);
        // Its task runs as soon as this one lets it.
        tokio::task::yield_now().await;
        assert!(health.is_alive());
        control.stop();
    }

    #[test]
    fn one_that_has_stopped_on_purpose_is() {
        let Some(health) = silent() else { return };
        health.drains();
        assert!(health.is_alive());
    }

    #[test]
    fn everything_that_is_not_ready_is_named() {
        let health = Health::default();
        let reasons = |health: &Health| health.not_ready().join("; ");
        assert_eq!(reasons(&health), "control plane: not connected to NATS");
        health.watch(|| Link { up: true, made: 1 });
        assert_eq!(
            reasons(&health),
            "control plane: commands are not heard yet"
        );
        health.hears(true);
        let starting = [health.restoring(), health.restoring()];
        assert_eq!(
            reasons(&health),
            "workloads: 2 of before the restart are starting"
        );
        drop(starting);
        assert_eq!(reasons(&health), "");
        health.drains();
        assert_eq!(reasons(&health), "draining");
    }
}
