//! `--manifest-dir`: workloads that run because a file says so, with nobody to ask.
//!
//! The files are those of `wash workload start -f`. A changed file's workloads are started before those it
//! described before are stopped; one that does not start leaves them as they are. What a file describes is
//! started again when it failed, or when somebody stopped it: the file decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::Watcher as _;
use sha2::{Digest as _, Sha256};
use subjects::WorkloadId;
use subjects::wire::{Workload, WorkloadState};
use tokio::sync::Notify;
use washlet::config::Identity;
use washlet::drain::Drain;
use washlet::host::Host;

use crate::manifest::{self, Plan};

/// How often the directory is looked at, whether or not the kernel reports a change.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A file is taken for written when nothing happened for so long.
const SETTLE: Duration = Duration::from_millis(150);

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Files that count; more are left out and said.
const FILES_MAX: usize = 1_000;

/// The workloads of one file.
struct Followed {
    /// Of the file's content.
    digest: [u8; 32],
    workloads: BTreeMap<WorkloadId, Workload>,
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
    let mut followed = HashMap::new();
    // What was said of a file, so that it is said once.
    let mut said: HashMap<PathBuf, String> = HashMap::new();
    loop {
        let round = look(&dir, &host, &identity, &mut followed, &mut said);
        tokio::select! {
            () = round => {}
            () = control.stopping() => break,
        }
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = control.stopping() => break,
        }
        // Until it is quiet: a file is written in many steps.
        while tokio::time::timeout(SETTLE, changed.notified())
            .await
            .is_ok()
        {}
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

/// Brings what runs in line with the files.
async fn look(
    dir: &Path,
    host: &Host,
    identity: &Identity,
    followed: &mut HashMap<PathBuf, Followed>,
    said: &mut HashMap<PathBuf, String>,
) {
    let files = match files(dir) {
        Ok(files) => files,
        Err(error) => {
            // Gone for a moment is no order to stop.
            tracing::warn!(%error, dir = %dir.display(), "the directory of manifests cannot be read");
            return;
        }
    };
    let gone: Vec<_> = followed
        .keys()
        .filter(|file| !files.contains(*file))
        .cloned()
        .collect();
    for file in gone {
        if let Some(before) = followed.remove(&file) {
            tracing::info!(file = %file.display(), "a manifest is gone; its workloads are stopped");
            for id in before.workloads.keys() {
                host.stop(id).await;
            }
        }
        said.remove(&file);
    }
    for file in files {
        let outcome = bring_up(&file, host, identity, followed).await;
        match outcome {
            Ok(()) => _ = said.remove(&file),
            Err(problem) if said.get(&file) != Some(&problem) => {
                tracing::warn!(
                    file = %file.display(), problem,
                    "a manifest is not in force; what it said before is, if anything"
                );
                said.insert(file, problem);
            }
            Err(_) => {}
        }
    }
}

/// Starts what `file` says and stops what it said before.
async fn bring_up(
    file: &Path,
    host: &Host,
    identity: &Identity,
    followed: &mut HashMap<PathBuf, Followed>,
) -> Result<(), String> {
    let text = read(file)?;
    let digest: [u8; 32] = Sha256::digest(&text).into();
    let before = followed.get(file);
    let workloads = match before.filter(|before| before.digest == digest) {
        Some(before) => before.workloads.clone(),
        None => {
            let plans = manifest::read(&text).map_err(|error| error.to_string())?;
            let here = plans.into_iter().filter(|plan| is_for(plan, identity));
            let mut workloads = BTreeMap::new();
            for (index, plan) in here.enumerate() {
                workloads.insert(id(file, &digest, index)?, plan.workload);
            }
            workloads
        }
    };
    let mut problem = None;
    for (id, workload) in &workloads {
        if host.status(id).workload_state == WorkloadState::Running {
            continue;
        }
        let started = host.start_unjournaled(id.clone(), workload.clone()).await;
        let name = &workload.name;
        match started {
            Ok(status) if status.workload_state == WorkloadState::Error => {
                problem.get_or_insert(format!("workload '{name}': {}", status.message));
            }
            // One that is still being pulled is as good as running: the file asks for it.
            Ok(_) => {
                tracing::info!(%id, name, file = %file.display(), "a manifest's workload is started")
            }
            Err(error) => {
                let error = capabilities::report(&error);
                problem.get_or_insert(format!("workload '{name}': {error}"));
            }
        }
    }
    let replaces = before.is_some_and(|before| before.digest != digest);
    if let (Some(problem), true) = (&problem, replaces) {
        for id in workloads.keys() {
            host.stop(id).await;
        }
        return Err(problem.clone());
    }
    let kept = Followed { digest, workloads };
    if let Some(before) = followed.insert(file.to_owned(), kept)
        && before.digest != digest
    {
        for id in before.workloads.keys() {
            host.stop(id).await;
        }
    }
    problem.map_or(Ok(()), Err)
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
    while files.len() > FILES_MAX {
        let left_out = files.pop_last();
        tracing::warn!(?left_out, "there are more than {FILES_MAX} manifests");
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

/// An id that says where it comes from, and changes with the content, so that the new one may run beside
/// the old one.
fn id(file: &Path, digest: &[u8; 32], index: usize) -> Result<WorkloadId, String> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let token = |c: char| match c.is_ascii_alphanumeric() || c == '-' || c == '_' {
        true => c,
        false => '-',
    };
    let stem: String = stem.chars().map(token).take(64).collect();
    let mut hash = Sha256::new();
    hash.update(file.as_os_str().as_encoded_bytes());
    hash.update(digest);
    hash.update(index.to_le_bytes());
    let hash = hash.finalize();
    let short: String = hash
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    WorkloadId::new(format!("manifest-{stem}-{short}")).map_err(|error| error.to_string())
}
