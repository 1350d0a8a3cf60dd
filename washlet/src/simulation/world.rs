//! What one seed decides, and what the parts of its simulation share: chance, power, the disk, the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ledger::Ledger;
use crate::journal::Storage;

/// What a seed decides. Shape: clones go on with the same numbers.
#[derive(Clone)]
pub(super) struct Chance(Arc<Mutex<fleet::fuzz::Chance>>);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fleet::fuzz::Chance::new(seed))))
    }

    /// Below `bound`.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap().draw() % bound.max(1)
    }

    /// True once in `times`; never for none.
    pub(super) fn one_in(&self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }

    /// Up to `longest` milliseconds; most often much less.
    pub(super) fn pause(&self, longest: u64) -> Duration {
        let longest = match self.below(4) {
            0 => longest,
            1 => longest / 8,
            _ => longest / 64,
        };
        Duration::from_millis(self.below(longest + 1))
    }
}

/// How much goes wrong: once in so many times; never for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) disk_fails: u64,
    pub(super) message_lost: u64,
    pub(super) message_twice: u64,
    pub(super) reply_fails: u64,
    pub(super) start_fails: u64,
    pub(super) start_panics: u64,
    /// The longest pauses, in milliseconds.
    pub(super) disk_ms: u64,
    pub(super) message_ms: u64,
    pub(super) reply_ms: u64,
    pub(super) start_ms: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to, and had the time.
    Drained,
    /// It was killed; what it wrote is there.
    Killed,
    /// The machine lost its power: what was not committed may be there or not.
    PowerCut,
}

/// Whether the process still lives, and until when.
#[derive(Default)]
struct Power {
    alive: bool,
    /// Steps until it ends; none: it does not.
    steps_left: Option<u64>,
    /// Tasks that run on for so many polls after that.
    polls: u64,
    began: Option<Instant>,
}

/// What is on the disk, and what is only thought to be.
#[derive(Default)]
struct Platter {
    durable: BTreeMap<String, Vec<u8>>,
    /// Changes since the last commit; `None` removes.
    log: Vec<(String, Option<Vec<u8>>)>,
}

impl Platter {
    /// What a process sees.
    fn seen(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.durable.clone();
        for (name, bytes) in &self.log {
            match bytes {
                Some(bytes) => files.insert(name.clone(), bytes.clone()),
                None => files.remove(name),
            };
        }
        files
    }
}

/// Everything of one seed that outlives a process.
pub(super) struct World {
    pub(super) chance: Chance,
    faults: Mutex<Faults>,
    power: Mutex<Power>,
    pub(super) crash: Notify,
    platter: Mutex<Platter>,
    ledger: Mutex<Ledger>,
    /// Artifacts that are kept for those that use them.
    pub(super) held: AtomicUsize,
    trace: Mutex<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            chance: Chance::new(seed),
            faults: Mutex::default(),
            power: Mutex::default(),
            crash: Notify::new(),
            platter: Mutex::default(),
            ledger: Mutex::default(),
            held: AtomicUsize::new(0),
            trace: Mutex::default(),
        })
    }

    pub(super) fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Notes what happened, for whoever reads why a seed failed.
    pub(super) fn trace(&self, what: fmt::Arguments<'_>) {
        let began = self.power.lock().unwrap().began;
        let at = began.map_or(0, |began| began.elapsed().as_millis());
        let mut trace = self.trace.lock().unwrap();
        if let Ok(mut ledger) = self.ledger.try_lock() {
            let news = ledger.take_news().into_iter();
            trace.extend(news.map(|violation| format!("        VIOLATION {violation}")));
        }
        trace.push(format!("{at:>7} {what}"));
    }

    pub(super) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut *self.trace.lock().unwrap())
    }

    /// A process begins, and ends after so many steps, if it is to.
    pub(super) fn begin(&self, steps_left: Option<u64>, polls: u64) {
        *self.power.lock().unwrap() = Power {
            alive: true,
            steps_left,
            polls,
            began: Some(Instant::now()),
        };
    }

    /// Something that others can see is about to happen; `false`: the process is no more.
    pub(super) fn step(&self) -> bool {
        let mut power = self.power.lock().unwrap();
        match &mut power.steps_left {
            Some(0) | None => {}
            Some(steps) => {
                *steps -= 1;
                if *steps == 0 {
                    power.alive = power.polls > 0;
                    self.crash.notify_one();
                }
            }
        }
        power.alive
    }

    pub(super) fn is_alive(&self) -> bool {
        self.power.lock().unwrap().alive
    }

    /// Completes when the process has crashed.
    pub(super) async fn crashed(&self) {
        self.crash.notified().await;
        let polls = self.power.lock().unwrap().polls;
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
        self.power.lock().unwrap().alive = false;
    }

    /// The process has ended: what is on the disk now?
    pub(super) fn end(&self, end: End) {
        let mut power = self.power.lock().unwrap();
        (power.alive, power.began) = (false, None);
        drop(power);
        let mut platter = self.platter.lock().unwrap();
        let mut files = platter.seen();
        if end == End::PowerCut {
            let log = std::mem::take(&mut platter.log);
            files = platter.durable.clone();
            // Of each file's changes the first few; those of different files in any order.
            let mut lost = BTreeSet::new();
            for (name, bytes) in log {
                if self.chance.one_in(2) {
                    lost.insert(name.clone());
                }
                if lost.contains(&name) {
                    continue;
                }
                match bytes {
                    Some(bytes) => files.insert(name, bytes),
                    None => files.remove(&name),
                };
            }
        }
        platter.log.clear();
        platter.durable = files;
    }

    /// The names of the files on the disk.
    pub(super) fn files(&self) -> Vec<String> {
        self.platter.lock().unwrap().seen().into_keys().collect()
    }
}

/// The disk of a [`World`]: slow, failing, and gone with the process.
pub(super) struct SimulatedDisk(pub(super) Arc<World>);

impl SimulatedDisk {
    /// Does `change`, unless the disk refuses or the process is no more.
    fn act(&self, what: &str, change: impl FnOnce(&mut Platter)) -> io::Result<()> {
        let world = &self.0;
        if !world.step() {
            return Err(io::Error::other("the process is no more"));
        }
        if world.chance.one_in(world.faults().disk_fails) {
            world.trace(format_args!("disk: {what}: fails"));
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        world.trace(format_args!("disk: {what}"));
        change(&mut world.platter.lock().unwrap());
        world.step();
        Ok(())
    }
}

impl Storage for SimulatedDisk {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("simulated").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.files())
    }

    fn read(&self, name: &str, _: u64) -> io::Result<Vec<u8>> {
        let files = self.0.platter.lock().unwrap().seen();
        let bytes = files.get(name).cloned();
        bytes.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let short = &name[..name.len().min(4)];
        let (half, temporary) = (bytes[..bytes.len() / 2].to_vec(), format!(".tmp{short}"));
        // What a crash in the middle leaves.
        self.act(&format!("half of {short}"), |platter| {
            platter.log.push((temporary.clone(), Some(half)));
        })?;
        self.act(&format!("write {short}"), |platter| {
            platter.log.push((temporary, None));
            platter.log.push((name.to_owned(), Some(bytes.to_vec())));
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let short = &name[..name.len().min(4)];
        self.act(&format!("remove {short}"), |platter| {
            platter.log.push((name.to_owned(), None));
        })
    }

    fn commit(&self) -> io::Result<()> {
        self.act("commit", |platter| {
            platter.durable = platter.seen();
            platter.log.clear();
        })
    }

    fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        panic!("\"{name}\" was written whole, and cannot be read");
    }

    fn set_aside_before(&self) -> u64 {
        0
    }

    fn carry_out(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let world = Arc::clone(&self.0);
        async move {
            let longest = world.faults().disk_ms;
            tokio::time::sleep(world.chance.pause(longest)).await;
            work();
            tokio::time::sleep(world.chance.pause(longest)).await;
        }
        .boxed()
    }
}

/// Counts what is kept, and by that whether it is let go.
pub(super) struct Held(Arc<World>);

impl Held {
    pub(super) fn new(world: &Arc<World>) -> Self {
        world.held.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(world))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}
