//! The rules of the house that no compiler checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Which of our crates each crate may build on. A new arrow is a change of architecture.
const ARROWS: [(&str, &[&str]); 12] = [
    ("benches", &["capabilities", "engine", "fleet"]),
    ("capabilities", &[]),
    ("engine", &["capabilities"]),
    // As who is not of this house: nothing builds on it.
    ("example-host", &["capabilities", "engine", "washlet"]),
    ("fleet", &[]),
    ("plugins-local", &["capabilities"]),
    ("plugins-nats", &["capabilities"]),
    ("plugins-postgres", &["capabilities"]),
    ("subjects", &[]),
    (
        "wash",
        &[
            "capabilities",
            "engine",
            "plugins-local",
            "plugins-nats",
            "plugins-postgres",
            "subjects",
            "washlet",
        ],
    ),
    ("washlet", &["capabilities", "engine", "subjects"]),
    ("xtask", &[]),
];

/// What a crate may never depend on, however it is used.
const STRANGERS: [(&str, &[&str]); 8] = [
    ("subjects", &["wasmtime", "async-nats", "tokio", "hyper"]),
    (
        "capabilities",
        &["wasmtime", "async-nats", "hyper", "reqwest"],
    ),
    ("plugins-local", &["wasmtime", "hyper", "async-nats"]),
    ("plugins-nats", &["wasmtime", "hyper"]),
    ("plugins-postgres", &["wasmtime", "async-nats", "hyper"]),
    ("engine", &["async-nats", "reqwest", "sqlx"]),
    ("fleet", &["wasmtime"]),
    ("washlet", &["clap", "sqlx"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

struct Dependency {
    name: String,
    /// Whether it is a crate of this workspace.
    ours: bool,
    /// Whether only tests need it.
    test: bool,
}

/// What each crate depends on.
fn dependencies() -> Result<BTreeMap<String, Vec<Dependency>>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let field = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = field(&metadata, "packages");
    let packages = packages.as_array().context("there are no packages")?;
    let name = |value: &Value| field(value, "name").as_str().unwrap_or_default().to_owned();
    Ok(packages
        .iter()
        .map(|package| {
            let dependencies = field(package, "dependencies");
            let dependencies = dependencies.as_array().into_iter().flatten();
            let dependencies = dependencies.map(|dependency| Dependency {
                name: name(dependency),
                ours: field(dependency, "path").is_string(),
                test: field(dependency, "kind") == "dev",
            });
            (name(package), dependencies.collect())
        })
        .collect())
}

/// Every file of the repository, as its path from the root and its bytes.
fn files() -> Result<Vec<(String, Vec<u8>)>> {
    let root = root();
    let mut dirs = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            let built = ["target", ".git"].iter().any(|name| path.ends_with(name));
            if kind.is_dir() && !built {
                dirs.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
                // An editor may take its temporary file away meanwhile.
                if let Ok(bytes) = fs::read(&path) {
                    files.push((name, bytes));
                }
            }
        }
    }
    ensure!(files.len() > 50, "this is not the whole repository");
    Ok(files)
}

/// The places in Rust files below `folder` where `word` stands outside a comment.
fn mentions(folder: &str, word: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, bytes) in files()? {
        if !name.starts_with(folder) || !name.ends_with(".rs") {
            continue;
        }
        for (line, text) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            if text.contains(word) && !text.trim_start().starts_with("//") {
                found.push(format!("{name}:{}", line + 1));
            }
        }
    }
    Ok(found)
}

#[test]
fn crates_build_on_each_other_as_drawn() -> Result<()> {
    let drawn: BTreeMap<_, BTreeSet<_>> = ARROWS
        .iter()
        .map(|(from, to)| (*from, to.iter().copied().collect()))
        .collect();
    let all = dependencies()?;
    let built: BTreeMap<_, BTreeSet<_>> = all
        .iter()
        .map(|(from, to)| {
            let ours = to.iter().filter(|to| to.ours && !to.test);
            (from.as_str(), ours.map(|to| to.name.as_str()).collect())
        })
        .collect();
    assert_eq!(built, drawn);
    for (from, to) in &all {
        for Dependency { name, .. } in to.iter().filter(|to| to.ours && to.test) {
            let allowed = name == "fleet" || drawn[from.as_str()].contains(name.as_str());
            assert!(
                allowed,
                "the tests of {from} need {name}: only fleet may be added for tests"
            );
        }
    }
    Ok(())
}

#[test]
fn crates_do_not_know_what_they_should_not() -> Result<()> {
    let all = dependencies()?;
    for (from, strangers) in STRANGERS {
        let dependencies = all.get(from).with_context(|| format!("no crate {from}"))?;
        for Dependency { name, .. } in dependencies.iter().filter(|to| !to.test) {
            let strange = strangers
                .iter()
                .any(|stranger| name == stranger || name.starts_with(&format!("{stranger}-")));
            assert!(!strange, "{from} depends on {name}");
        }
    }
    Ok(())
}

#[test]
fn a_washlet_knows_nats_in_one_file() -> Result<()> {
    let (there, elsewhere): (Vec<_>, Vec<_>) = mentions("washlet/src/", "async_nats::")?
        .into_iter()
        .partition(|place| place.starts_with("washlet/src/control/nats"));
    assert_eq!(elsewhere, Vec::<String>::new());
    assert!(
        !there.is_empty(),
        "the one file is not where this test looks"
    );
    Ok(())
}

#[test]
fn tasks_are_spawned_in_one_file() -> Result<()> {
    let spawns = [["tokio::", "spawn("], [".spawn", "_on("]].map(|parts| parts.concat());
    let [free, owned] = &spawns;
    assert_eq!(mentions("", free)?, Vec::<String>::new());
    let (there, elsewhere): (Vec<_>, Vec<_>) = mentions("", owned)?
        .into_iter()
        .partition(|place| place.starts_with("washlet/src/drain.rs:"));
    assert_eq!(elsewhere, Vec::<String>::new());
    assert!(
        !there.is_empty(),
        "the one file is not where this test looks"
    );
    Ok(())
}

#[test]
fn every_wit_package_is_listed() -> Result<()> {
    let list = fs::read_to_string(root().join("wit/README.md"))?;
    for entry in fs::read_dir(root().join("wit"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(
                list.contains(&name),
                "wit/README.md does not name \"{name}\""
            );
        }
    }
    Ok(())
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() -> Result<()> {
    // In two parts, or this file would be one of them.
    let places =
        [["/ro", "ot/"], ["/wo", "rk/"], ["/home/", "runner/"]].map(|parts| parts.concat());
    for (name, bytes) in files()? {
        for place in &places {
            let found = bytes
                .windows(place.len())
                .any(|window| window == place.as_bytes());
            assert!(!found, "{name} contains \"{place}\"");
        }
    }
    Ok(())
}
