//! `--manifest-dir`: workloads that run because a file says so, with nobody to ask.
//!
//! The files are those of `wash workload start -f`. What a changed file describes is started before what it
//! described before is stopped, and until all of it runs the latter goes on; what did not change is left
//! alone. What a file describes is started again when somebody stopped it: the file decides. No file waits for
//! another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use notify::Watcher as _;
use sha2::{Digest as _, Sha256};
use subjects::WorkloadId;
use subjects::wire::{Workload, WorkloadStartRequest, WorkloadState};
use tokio::sync::Notify;
use tokio::time::timeout;
use washlet::config::Identity;
use washlet::drain::Drain;
use washlet::host::Host;

use crate::manifest::{self, Plan};

/// How often the directory is looked at, whether or not the kernel reports a change.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The same while something is being started.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long one look waits for what it starts; it goes on anyhow.
const START_WITHIN: Duration = Duration::from_secs(2);

/// A file is taken for written when nothing happened for so long.
const SETTLE: Duration = Duration::from_millis(150);

/// How often a look waits for that: files that change all the time are looked at all the same.
const SETTLES_MAX: usize = 20;

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Files that count; more are left out and said.
const FILES_MAX: usize = 1_000;

/// Files whose workloads are started at once.
const FILES_AT_ONCE: usize = 64;

/// What a file says.
#[derive(Clone, Default)]
struct Said {
    /// Of the file's content.
    digest: [u8; 32],
    workloads: BTreeMap<WorkloadId, Workload>,
}

/// What became of a file.
#[derive(Default)]
struct Followed {
    /// What it says, or said last when that could be started.
    current: Option<Said>,
    /// What it says now, while not all of that runs yet.
    next: Option<Said>,
    /// What the log has of it, so that it is there once.
    problem: Option<String>,
}

/// How a file is.
enum Outcome {
    InForce,
    /// Something is being started.
    Pending,
    Problem(String),
}

/// Follows one directory.
struct Follower {
    dir: PathBuf,
    host: Host,
    identity: Identity,
    control: Drain,
}

/// Runs what the files in `dir` describe until `control` stops.
pub(crate) async fn follow(dir: PathBuf, host: Host, identity: Identity, control: Drain) {
    let changed = Arc::new(Notify::new());
    let watcher = watch(&dir, &changed).inspect_err(|error| {
        tracing::warn!(
            %error, dir = %dir.display(), every = ?LOOK_EVERY,
            "changes of manifests are not reported, and looked for now and then"
        );
    });
    let stopping = control.clone();
    let follower = Follower {
        dir,
        host,
        identity,
        control,
    };
    let follow = async {
        let mut followed = HashMap::new();
        loop {
            let pause = match follower.look(&mut followed).await {
                true => LOOK_AGAIN,
                false => LOOK_EVERY,
            };
            if timeout(pause, changed.notified()).await.is_ok() {
                // Until it is quiet: a file is written in many steps.
                for _ in 0..SETTLES_MAX {
                    if timeout(SETTLE, changed.notified()).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = stopping.stopping() => {}
    }
    drop(watcher);
}

fn watch(dir: &Path, changed: &Arc<Notify>) -> notify::Result<impl notify::Watcher + use<>> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            changed.notify_one();
        }
    })?;
    watcher.watch(dir, notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

impl Follower {
    /// Brings what runs in line with the files; whether something is still being started.
    async fn look(&self, followed: &mut HashMap<PathBuf, Followed>) -> bool {
        let files = match files(&self.dir) {
            Ok(files) => files,
            Err(error) => {
                // Gone for a moment is no order to stop.
                tracing::warn!(
                    %error, dir = %self.dir.display(), "the directory of manifests cannot be read"
                );
                return false;
            }
        };
        followed.retain(|file, before| {
            let there = files.contains(file);
            if !there {
                tracing::info!(file = %file.display(), "a manifest is gone; its workloads are stopped");
                self.stop(before.current.as_ref(), &[]);
                self.stop(before.next.as_ref(), &[]);
            }
            there
        });
        for file in files {
            followed.entry(file).or_default();
        }
        let looks: Vec<_> = followed
            .iter_mut()
            .map(|(file, followed)| self.look_at(file, followed))
            .collect();
        let looks = stream::iter(looks).buffer_unordered(FILES_AT_ONCE);
        // All of them, not only up to the first that is.
        looks.fold(false, async |any, pending| any | pending).await
    }

    /// Brings what runs in line with `file`; whether something is still being started.
    async fn look_at(&self, file: &Path, followed: &mut Followed) -> bool {
        let problem = match self.bring_up(file, followed).await {
            Outcome::InForce => None,
            Outcome::Pending => return true,
            Outcome::Problem(problem) => Some(problem),
        };
        if let Some(problem) = &problem
            && followed.problem.as_ref() != Some(problem)
        {
            tracing::warn!(
                file = %file.display(), problem,
                "a manifest is not in force; what it said before is, if anything"
            );
        }
        followed.problem = problem;
        false
    }

    /// Starts what `file` says, and stops what it said before once that runs.
    async fn bring_up(&self, file: &Path, followed: &mut Followed) -> Outcome {
        let now = match self.read(file, followed) {
            Ok(now) => now,
            Err(problem) => {
                let abandoned = followed.next.take();
                self.stop(abandoned.as_ref(), &[followed.current.as_ref()]);
                return Outcome::Problem(problem);
            }
        };
        let other = followed.next.take();
        let other = other.filter(|next| next.digest != now.digest);
        self.stop(other.as_ref(), &[followed.current.as_ref(), Some(&now)]);
        let starts = now.workloads.iter();
        let starts = starts.map(|(id, workload)| self.start(file, id, workload));
        let outcomes = join_all(starts).await;
        let pending = outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Pending));
        let problem = outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Problem(problem) => Some(problem),
            _ => None,
        });
        let before = followed.current.as_ref();
        let replaces = before.is_some_and(|before| before.digest != now.digest);
        match (problem, pending) {
            (Some(problem), _) if replaces => {
                self.stop(Some(&now), &[before]);
                Outcome::Problem(problem)
            }
            (None, true) if replaces => {
                followed.next = Some(now);
                Outcome::Pending
            }
            (problem, pending) => {
                self.stop(before, &[Some(&now)]);
                followed.current = Some(now);
                match (problem, pending) {
                    (Some(problem), _) => Outcome::Problem(problem),
                    (None, true) => Outcome::Pending,
                    (None, false) => Outcome::InForce,
                }
            }
        }
    }

    /// What `file` says, which is known unless it changed.
    fn read(&self, file: &Path, followed: &Followed) -> Result<Said, String> {
        let text = read(file)?;
        let digest: [u8; 32] = Sha256::digest(&text).into();
        let known = followed.current.iter().chain(&followed.next);
        if let Some(known) = known.into_iter().find(|known| known.digest == digest) {
            return Ok(known.clone());
        }
        let plans = manifest::read(&text).map_err(|error| error.to_string())?;
        let mut workloads = BTreeMap::new();
        for plan in plans {
            let name = &plan.workload.name;
            if !is_for(&plan, &self.identity) {
                let file = file.display();
                tracing::info!(%file, name, "a manifest's workload is for other hosts");
                continue;
            }
            if !plan.without_effect.is_empty() {
                let fields = plan.without_effect.join(", ");
                tracing::warn!(file = %file.display(), name, fields, "fields without effect here");
            }
            let mut nth = 0;
            while workloads.contains_key(&id(file, &plan.workload, nth)?) {
                nth += 1;
            }
            workloads.insert(id(file, &plan.workload, nth)?, plan.workload);
        }
        Ok(Said { digest, workloads })
    }

    async fn start(&self, file: &Path, id: &WorkloadId, workload: &Workload) -> Outcome {
        let before = self.host.status(id).workload_state;
        if before == WorkloadState::Running {
            return Outcome::InForce;
        }
        let name = &workload.name;
        let problem = |cause: String| Outcome::Problem(format!("workload '{name}': {cause}"));
        // The host tries it again by itself.
        if let Some(cause) = self.host.failing(id) {
            return problem(cause);
        }
        let start = self.host.start_unjournaled(id.clone(), workload.clone());
        let error = match timeout(START_WITHIN, start).await {
            Ok(Ok(status)) if status.workload_state == WorkloadState::Running => {
                tracing::info!(%id, name, file = %file.display(), "a manifest's workload is started");
                return Outcome::InForce;
            }
            Ok(Ok(status)) if status.workload_state == WorkloadState::Error => {
                self.host.failing(id).unwrap_or(status.message)
            }
            // It goes on, or was stopped meanwhile.
            Ok(Ok(_)) | Err(_) => return Outcome::Pending,
            Ok(Err(error)) => capabilities::report(&error),
        };
        problem(error)
    }

    /// Stops what is in `said` and in none of `kept`.
    fn stop(&self, said: Option<&Said>, kept: &[Option<&Said>]) {
        let is_kept = |id: &WorkloadId| {
            let mut kept = kept.iter().flatten();
            kept.any(|kept| kept.workloads.contains_key(id))
        };
        let ids = said.into_iter().flat_map(|said| said.workloads.keys());
        for id in ids.filter(|id| !is_kept(id)) {
            let (host, id) = (self.host.clone(), id.clone());
            let mut stop = Box::pin(async move { _ = host.stop(&id).await });
            // It acts up to its first wait, so before any later start; calls in flight hold up no file.
            if (&mut stop).now_or_never().is_none() {
                self.control.spawn("manifest stop", stop);
            }
        }
    }
}

/// The manifests in `dir`, by name.
fn files(dir: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let manifest = path.extension().is_some_and(|extension| {
            extension == "yaml" || extension == "yml" || extension == "json"
        });
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Links are followed: that is how mounted configuration looks.
        if manifest && !hidden && path.is_file() {
            files.insert(path);
        }
    }
    let left_out = files.len().saturating_sub(FILES_MAX);
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "there are more than {FILES_MAX} manifests; the last by name do not count"
        );
    }
    for _ in 0..left_out {
        files.pop_last();
    }
    Ok(files)
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = File::open(file).map_err(|error| error.to_string())?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Whether a manifest's own conditions let it run here. Replicas are of a fleet; here it is one.
fn is_for(plan: &Plan, identity: &Identity) -> bool {
    let label = |key: &str| match key {
        "hostgroup" => Some(&identity.group),
        key => identity.labels.get(key),
    };
    let host = plan.host.as_ref().is_none_or(|host| *host == identity.id);
    let environment = plan.environment.is_empty() || plan.environment == identity.environment;
    let mut selector = plan.selector.iter();
    host && environment && selector.all(|(key, value)| label(key) == Some(value))
}

/// An id that says where it comes from, and changes with the workload, so that the new one may run beside
/// the old one. Shape: `nth` tells equal ones apart.
fn id(file: &Path, workload: &Workload, nth: u32) -> Result<WorkloadId, String> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let token = |c: char| match c.is_ascii_alphanumeric() || c == '-' || c == '_' {
        true => c,
        false => '-',
    };
    let stem: String = stem.chars().map(token).take(64).collect();
    let content = WorkloadStartRequest {
        workload_id: String::new(),
        workload: Some(workload.clone()),
    };
    let mut hash = Sha256::new();
    hash.update(file.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(content.encode());
    hash.update(nth.to_le_bytes());
    let hash = hash.finalize();
    let short: String = hash
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    WorkloadId::new(format!("manifest-{stem}-{short}")).map_err(|error| error.to_string())
}
