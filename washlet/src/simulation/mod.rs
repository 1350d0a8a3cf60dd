//! A host, its control loop and its journal, simulated: everything that depends on luck follows from a seed.
//!
//! ```text
//! seed ─► plan: commands, copies of them, when they arrive, how each process ends
//!              │                                      ┌──► journal ──► simulated disk ─┐
//!              ▼                                      │                                ├─► ledger: what
//!        simulated bus ──► control loop ──► host ─────┴──► workloads ──► simulated     │   must be true
//!              ▲                                                         runner        │
//!              └──────────────────────── answers ──────────────────────────────────────┘
//! ```
//! The clock is paused and there is one thread, so a seed always runs the same; a process is cut after any
//! poll of any task, in any step of the disk, before or after any answer. What must hold:
//!
//! - a command is answered at most once, and exactly once when the process did not end before;
//! - what was acknowledged is so after any restart, until a later command says otherwise;
//! - at the end the table, the journal, routes, artifacts and tasks are down to nothing, and no permit is lost.
//!
//! `SIMULATION_SEED=7` runs one seed and prints what happened, `SIMULATION_SEEDS=100000` that many.

mod bus;
mod ledger;
mod run;
mod world;

use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use subjects::wire;

/// Seeds of every run of the tests.
const SEEDS: u64 = 2_000;

/// How long operators may probe without asking for a workload of before the restart.
const ORPHAN_AFTER: Duration = Duration::from_secs(20);

/// Workloads of a seed.
const WORKLOADS: usize = 3;

fn workload_id(workload: usize) -> String {
    format!("w{workload}")
}

/// The host name that leads to a workload.
fn route(workload: usize) -> String {
    format!("w{workload}.test")
}

/// The image that `content` is about.
fn image(content: u64) -> String {
    format!("registry.test/c{content}:1")
}

fn workload(workload: usize, content: u64) -> wire::Workload {
    let name = workload_id(workload);
    let json = serde_json::json!({"namespace": "ns", "name": name, "witWorld": {
        "components": [{"name": "c", "image": image(content)}],
        "hostInterfaces": [{
            "namespace": "wasi", "package": "http", "interfaces": ["incoming-handler"],
            "config": {"host": route(workload)},
        }],
    }});
    wire::Workload::decode(json.to_string().as_bytes()).unwrap()
}

/// A variable of the environment, as a number.
fn variable(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    let value = value.to_str().and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} is not a number")))
}

/// What is the same in all seeds, because nothing of it remembers anything.
static FIXED: LazyLock<run::Fixed> = LazyLock::new(|| {
    let hello =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/http-hello/http-hello.wasm");
    run::Fixed::new(&std::fs::read(hello).unwrap())
});

#[test]
fn what_was_acknowledged_holds_whatever_happens() {
    if let Some(seed) = variable("SIMULATION_SEED") {
        let outcome = run::seed(&FIXED, seed);
        outcome.trace.iter().for_each(|line| eprintln!("{line}"));
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}");
        return;
    }
    let seeds = variable("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (next, threads) = (AtomicU64::new(0), std::thread::available_parallelism());
    let failed = std::thread::scope(|scope| {
        let run = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return None;
                }
                let outcome = std::panic::catch_unwind(|| run::seed(&FIXED, seed).violations);
                let violations = outcome.unwrap_or_else(|_| vec!["it panicked".to_owned()]);
                if !violations.is_empty() {
                    next.store(seeds, Ordering::Relaxed);
                    return Some((seed, violations));
                }
            }
        };
        let threads: Vec<_> = (0..threads.map_or(1, usize::from))
            .map(|_| scope.spawn(run))
            .collect();
        let found = threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap());
        found.min_by_key(|(seed, _)| *seed)
    });
    if let Some((seed, violations)) = failed {
        let violations = violations.join("\n");
        panic!(
            "seed {seed} (alone, with all that happened: SIMULATION_SEED={seed}):\n{violations}"
        );
    }
    eprintln!("{seeds} seeds");
}

#[test]
fn a_seed_always_runs_the_same() {
    for seed in 0..20 {
        let (once, twice) = (run::seed(&FIXED, seed), run::seed(&FIXED, seed));
        let differs = once
            .trace
            .iter()
            .zip(&twice.trace)
            .position(|(once, twice)| once != twice);
        assert_eq!(differs, None, "seed {seed}");
        assert!(once.trace.len() > 10, "seed {seed}: {:?}", once.trace);
    }
}
