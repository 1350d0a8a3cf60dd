//! Measures: builds what is measured, finds or makes the peers, and runs `benches`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    test::{cargo, root, run as cargo_run},
    tools::{self, quiet},
};

/// What `wasmtime serve` is measured of: the release that the engine is built on.
const WASMTIME_VERSION: &str = "48.0.8";

/// What makes components of Python.
const COMPONENTIZE_PY: &str = "componentize-py==0.25.0";

/// The crate in whose sources the interfaces of `wasi:http` are found.
const WIT_CRATE: &str = "wasmtime-wasi-http";

/// The world of the Python component, without its version.
const WORLD: &str = "wasi:http/proxy";

/// `cargo xtask bench [ROW].. [--short] [--rounds N] [--total N] [--json FILE]`
///
/// Shape: arguments go to `benches` as they are. With `--short` everything is built as the tests
/// have it, and there are no peers but those of this repository.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let short = args.iter().any(|arg| arg == "--short");
    let mut variables = Vec::new();
    for tool in tools::FLEET {
        variables.push((tool.variable, tool.ensure()?));
    }
    let rows = |names: &[&str]| {
        let named: Vec<_> = args
            .iter()
            .filter(|arg| ALL_ROWS.contains(&arg.as_str()))
            .collect();
        named.is_empty() || named.iter().any(|row| names.contains(&row.as_str()))
    };
    if !short && rows(&["http"]) {
        variables.push(("WASMTIME", wasmtime()?));
    }
    if !short && rows(&["http", "starts"]) {
        match python() {
            Ok(component) => variables.push(("BENCHES_PYTHON_COMPONENT", component)),
            Err(error) => println!(
                "\nThe Python component could not be made, so its rows are left out: {error:#}"
            ),
        }
    }
    let profile: &[&str] = if short { &[] } else { &["--release"] };
    let packages = ["build", "--package", "wash", "--package", "benches"];
    cargo_run(cargo().args(packages).args(profile))?;
    let folder = if short { "debug" } else { "release" };
    let benches = tools::target_dir()?.join(folder).join("benches");
    println!();
    let mut command = Command::new(&benches);
    // Relative names of files are those of the caller.
    let status = command.args(args).envs(variables).status();
    let status = status.with_context(|| format!("failed to run \"{}\"", benches.display()))?;
    ensure!(status.success(), "the measurement failed: {status}");
    Ok(())
}

/// The rows that can be named.
const ALL_ROWS: [&str; 9] = [
    "http",
    "latency",
    "overload",
    "starts",
    "density",
    "keyvalue",
    "messaging",
    "blob",
    "instructions",
];

/// Where tools are kept.
fn kept() -> Result<PathBuf> {
    // A task that was built as a release, or run as one, has its tools where the others have them.
    Ok(tools::target_dir()?.join("tools"))
}

/// The binary of wasmtime: found, or built from its crate.
fn wasmtime() -> Result<PathBuf> {
    if let Some(file) = env::var_os("WASMTIME") {
        return Ok(file.into());
    }
    let suits = |file: &Path| {
        let version = Command::new(file).arg("--version").output();
        let wanted = WASMTIME_VERSION.split('.').next().unwrap_or_default();
        version.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.starts_with(&format!("wasmtime {wanted}."))
        })
    };
    let tools = kept()?;
    let installed = tools.join("bin/wasmtime");
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|dir| dir.join("wasmtime"))
        .chain([installed.clone()])
        .find(|file| file.is_file() && suits(file));
    if let Some(file) = found {
        return Ok(file);
    }
    println!(
        "\nBuilding wasmtime {WASMTIME_VERSION} for `wasmtime serve`: this takes several minutes, \
         once. A wasmtime of that series on PATH would do, too."
    );
    // Beside the workspace's own, which it would otherwise lock.
    let build = tools.join("build");
    let mut install = cargo();
    install
        .args([
            "install",
            "--locked",
            "wasmtime-cli",
            "--version",
            WASMTIME_VERSION,
        ])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build);
    let outcome = cargo_run(&mut install);
    // Some GB that nobody needs again.
    let _ = fs::remove_dir_all(build);
    outcome?;
    Ok(installed)
}

/// The component of `benches/python`: as it was made before, or made anew.
fn python() -> Result<PathBuf> {
    if let Some(file) = env::var_os("BENCHES_PYTHON_COMPONENT") {
        return Ok(file.into());
    }
    let source = root().join("benches/python");
    let tools = kept()?;
    let component = tools.join("python.wasm");
    let changed = |file: &Path| fs::metadata(file).and_then(|data| data.modified());
    if let (Ok(made), Ok(written)) = (changed(&component), changed(&source.join("app.py")))
        && made > written
    {
        return Ok(component);
    }
    let venv = tools.join("venv");
    let componentize = venv.join("bin/componentize-py");
    if !componentize.is_file() {
        println!("\nInstalling {COMPONENTIZE_PY} into {}", venv.display());
        tools::ensure_pip()?;
        fs::create_dir_all(&tools)?;
        quiet(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let pip = [
            "install",
            "--quiet",
            "--disable-pip-version-check",
            COMPONENTIZE_PY,
        ];
        quiet(Command::new(venv.join("bin/pip")).args(pip))?;
    }
    let (wit, version) = wit()?;
    // Renamed into place, so that a second run never sees half a file.
    let made = tools.join("python.wasm.part");
    println!("\nMaking a component of benches/python/app.py");
    let mut make = Command::new(componentize);
    make.arg("--wit-path")
        .arg(wit)
        .args(["--world", &format!("{WORLD}@{version}")])
        .args(["componentize", "app", "--python-path"])
        .arg(&source)
        .arg("--output")
        .arg(&made);
    quiet(make.current_dir(&source))?;
    fs::rename(&made, &component)?;
    Ok(component)
}

/// Where the interfaces of `wasi:http` lie, and their version: the engine's own.
fn wit() -> Result<(PathBuf, String)> {
    let output = cargo()
        .args(["metadata", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let package = packages.into_iter().flatten().find(|package| {
        let name = package.get("name").and_then(Value::as_str);
        name == Some(WIT_CRATE)
    });
    let manifest = package.and_then(|package| package.get("manifest_path")?.as_str());
    let manifest = manifest.with_context(|| format!("{WIT_CRATE} is not in Cargo.lock"))?;
    let wit = Path::new(manifest).with_file_name("wit");
    let file = wit.join("world.wit");
    let text = fs::read_to_string(&file);
    let text = text.with_context(|| format!("failed to read \"{}\"", file.display()))?;
    let Some((_, rest)) = text.split_once(&format!("{WORLD}@")) else {
        bail!("\"{}\" does not name {WORLD}", file.display());
    };
    let version = rest.split(';').next().unwrap_or_default();
    Ok((wit, version.trim().to_owned()))
}
