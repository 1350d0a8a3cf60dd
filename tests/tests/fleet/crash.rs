//! A host that is killed at any moment while it pulls, compiles and writes: what it acknowledged is there, what
//! it acknowledged to have stopped is not, and nothing that it serves is damaged.
//!
//! `CRASH_KILLS` says how often it is killed; a long run takes about a second for each.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    env, fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use fleet::{
    http,
    wait::{SOON, until},
    washlet::{Fleet, Washlet},
    workload::{self, Workload},
};
use futures::future::try_join_all;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::{
    admin::{ADMIN, sample},
    one_host,
};

/// How often the host is killed in every run.
const KILLS: usize = 8;

/// Who command the host at once, each its own workloads.
const CALLERS: usize = 3;

/// How many workloads each of them has.
const WORKLOADS: usize = 3;

/// The latest moment of a kill after the host was commanded.
const KILLED_WITHIN: Duration = Duration::from_millis(700);

/// How many images are still started; older ones only stay where they run.
const RECENT: usize = 8;

/// What `http-hello` answers; an image of its own has other text of the same length.
const TEXT: &str = "Hello from a washlet!";

/// What the image of that number answers.
fn text(image: usize) -> String {
    format!("Hello from img {:05}!", image % 100_000)
}

/// What must have become of a workload after a restart.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    /// It runs this image.
    Runs(usize),
    /// It is not there.
    Gone,
    /// A command was not answered yet: it runs one of these images, or is not there if so it may be.
    Open { images: Vec<usize>, gone: bool },
}

/// As good as random.
struct Dice(Cell<u64>);

impl Dice {
    fn new() -> Result<Self> {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        Ok(Self(Cell::new(u64::from(seed) | 1)))
    }

    /// Less than `below`.
    fn roll(&self, below: usize) -> usize {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        usize::try_from(state >> 33).unwrap_or_default() % below.max(1)
    }
}

/// What is known of the host.
struct Known {
    dice: Dice,
    /// Their references, the newest last.
    images: Vec<String>,
    fates: RefCell<BTreeMap<String, Fate>>,
    acknowledged: Cell<usize>,
}

impl Known {
    /// Pushes an image that no host has.
    async fn push(&mut self, fleet: &Fleet) -> Result<()> {
        let number = self.images.len();
        let mut wasm = workload::component("http-hello")?;
        let at = wasm
            .windows(TEXT.len())
            .position(|part| part == TEXT.as_bytes());
        let place = at.and_then(|at| wasm.get_mut(at..at + TEXT.len()));
        let place = place.context("the text is not in the component")?;
        place.copy_from_slice(text(number).as_bytes());
        let image = format!("hello-{number}:1");
        self.images.push(fleet.registry.push(&image, wasm).await?);
        Ok(())
    }

    fn request(&self, id: &str, image: usize) -> Result<Workload> {
        let reference = self.images.get(image).context("an image")?;
        let workload = Workload::new(id).component("app", reference, json!({}));
        Ok(workload.http(&format!("{id}.test")))
    }

    fn note(&self, id: &str, fate: Fate) {
        self.fates.borrow_mut().insert(id.to_owned(), fate);
    }

    /// Commands `host` without an end; begins with the newest image.
    async fn command(&self, host: &Washlet, caller: usize) -> Result<()> {
        let mut newest = caller == 0;
        loop {
            let id = format!("w-{caller}-{}", self.dice.roll(WORKLOADS));
            let fate = self.fates.borrow().get(&id).cloned();
            let image = match std::mem::take(&mut newest) {
                true => self.images.len() - 1,
                false => self.images.len() - 1 - self.dice.roll(self.images.len().min(RECENT)),
            };
            let start = async |before: Option<usize>| {
                let gone = before.is_none();
                let images = before.into_iter().chain([image]).collect();
                self.note(&id, Fate::Open { images, gone });
                host.run_well(&self.request(&id, image)?).await?;
                self.note(&id, Fate::Runs(image));
                anyhow::Ok(())
            };
            match fate {
                None | Some(Fate::Gone) => start(None).await?,
                Some(Fate::Runs(before)) if self.dice.roll(2) == 0 => start(Some(before)).await?,
                Some(Fate::Runs(before)) => {
                    let images = vec![before];
                    self.note(&id, Fate::Open { images, gone: true });
                    let status = host.stop(&id).await?;
                    ensure!(status.state == "STOPPING", "{id}: {status:?}");
                    self.note(&id, Fate::Gone);
                }
                Some(Fate::Open { .. }) => bail!("{id} is open after a check"),
            }
            self.acknowledged.set(self.acknowledged.get() + 1);
        }
    }

    /// Looks at everything after a restart, and learns what became of what was open.
    async fn check(&self, host: &Washlet) -> Result<()> {
        let there = listed(host).await?;
        let fates = self.fates.borrow().clone();
        let looks = fates.iter().map(async |(id, fate)| {
            let (images, may_be_gone) = match fate {
                Fate::Gone => (Vec::new(), true),
                Fate::Runs(image) => (vec![*image], false),
                Fate::Open { images, gone } => (images.clone(), *gone),
            };
            if !there.contains(id) {
                ensure!(may_be_gone, "{id} was acknowledged and is lost: {fate:?}");
                self.note(id, Fate::Gone);
                return Ok(());
            }
            ensure!(!images.is_empty(), "{id} was stopped and is there again");
            let said = until(SOON, &format!("{id} answers"), async || {
                let reply = http::get(host.http_port(), &format!("{id}.test"), "/").await;
                let reply = reply.ok().filter(|reply| reply.status == 200)?;
                Some(reply.body)
            })
            .await?;
            let image = images.iter().find(|image| said.trim() == text(**image));
            let image =
                image.with_context(|| format!("{id} answers \"{said}\", not {images:?}"))?;
            self.note(id, Fate::Runs(*image));
            Ok(())
        });
        try_join_all(looks).await?;
        let fates = self.fates.borrow().clone();
        for (id, fate) in fates {
            if fate == Fate::Gone {
                let http = http::get(host.http_port(), &format!("{id}.test"), "/").await?;
                ensure!(http.status == 404, "{id} is gone and answers");
            }
        }
        for damage in [
            "washlet_journal_quarantined",
            "washlet_code_discarded_total",
        ] {
            ensure!(sample(host, damage).await? == 0, "{damage}: {}", host.log());
        }
        intact(host.state_dir())
    }
}

/// The ids of the workloads that `host` has.
async fn listed(host: &Washlet) -> Result<Vec<String>> {
    let list = host.request("workload.list", &json!({})).await?;
    let all = list.get("workloads").and_then(Value::as_array);
    let ids = all.into_iter().flatten().filter_map(|one| {
        let id = one.get("workloadId")?.as_str()?;
        Some(id.to_owned())
    });
    Ok(ids.collect())
}

/// Every image on disk is what its name says, and nothing was set aside.
fn intact(state: &Path) -> Result<()> {
    let artifacts = state.join("artifacts");
    for entry in fs::read_dir(artifacts.join("blobs/sha256"))? {
        let path = entry?.path();
        let digest = Sha256::digest(fs::read(&path)?);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = path.file_name().unwrap_or_default();
        ensure!(name == digest.as_str(), "{} is damaged", path.display());
    }
    for aside in [state.join("quarantine"), artifacts.join("quarantine")] {
        let count = fs::read_dir(&aside).map_or(0, Iterator::count);
        ensure!(count == 0, "{} has {count} files", aside.display());
    }
    Ok(())
}

/// Killed while it starts, replaces and stops workloads, again and again.
#[tokio::test]
async fn a_kill_at_any_moment_loses_and_damages_nothing() -> Result<()> {
    let kills = match env::var_os("CRASH_KILLS") {
        Some(kills) => kills.to_string_lossy().parse()?,
        None => KILLS,
    };
    let (fleet, mut host) = one_host(&ADMIN).await?;
    let mut known = Known {
        dice: Dice::new()?,
        images: Vec::new(),
        fates: RefCell::default(),
        acknowledged: Cell::new(0),
    };
    known.push(&fleet).await?;
    for kill in 1..=kills {
        known.push(&fleet).await?;
        let within = usize::try_from(KILLED_WITHIN.as_micros())?;
        let moment = Duration::from_micros(known.dice.roll(within).try_into()?);
        let commands = (0..CALLERS).map(|caller| known.command(&host, caller));
        match timeout(moment, try_join_all(commands)).await {
            Err(_) => {}
            Ok(ended) => bail!("kill {kill}: a command failed: {:?}", ended.err()),
        }
        host.kill();
        host.restart().await?;
        known
            .check(&host)
            .await
            .with_context(|| format!("after kill {kill} of {kills}, {moment:?} after its start"))?;
        if kill % 100 == 0 {
            eprintln!("{kill} kills");
        }
    }
    let acknowledged = known.acknowledged.get();
    eprintln!("crash loop: {kills} kills, {acknowledged} commands acknowledged, 0 corruptions");
    Ok(())
}
