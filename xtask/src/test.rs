//! What proves that the workspace works: tests, formatting, lints.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::tools;

/// `cargo xtask test [--no-nextest] [NAME..]`
pub(crate) fn test(args: &[String]) -> Result<()> {
    let (options, names): (Vec<_>, Vec<_>) = args.iter().partition(|arg| arg.starts_with('-'));
    let mut nextest = has("nextest");
    for option in options {
        match option.as_str() {
            "--no-nextest" => nextest = false,
            other => bail!("`cargo xtask test` has no option \"{other}\""),
        }
    }

    let start = Instant::now();
    let mut servers = Vec::new();
    for tool in tools::ALL {
        servers.push((tool.variable, tool.ensure()?));
    }
    // The scenarios run the real binary, which a test build alone does not make.
    run(cargo().args(["build", "--workspace", "--bins"]))?;

    let mut tests = cargo();
    tests.envs(servers);
    if nextest {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
            "--",
        ]);
    }
    run(tests.args(names))?;
    println!("\ntests passed in {:.0?}", start.elapsed());
    Ok(())
}

/// `cargo xtask lint [--no-deny]`
pub(crate) fn lint(args: &[String]) -> Result<()> {
    let mut deny = true;
    for arg in args {
        match arg.as_str() {
            "--no-deny" => deny = false,
            other => bail!("`cargo xtask lint` has no option \"{other}\""),
        }
    }
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    if !deny {
        println!("\nlint: dependencies not checked (--no-deny)");
    } else if !root().join("deny.toml").is_file() {
        println!("\nlint: dependencies not checked (there is no deny.toml)");
    } else if !has("deny") {
        println!("\nlint: dependencies not checked (`cargo install cargo-deny` to do so)");
    } else {
        run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    }
    println!("lint passed");
    Ok(())
}

/// The workspace's root: `cargo run` says where this package is, the root is above it.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    package.parent().unwrap_or(&package).to_owned()
}

/// The cargo that runs this task, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Runs `command` with its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let args: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy())
        .collect();
    let line = format!("cargo {}", args.join(" "));
    println!("\n$ {line}");
    let status = command
        .status()
        .with_context(|| format!("failed to run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Whether cargo has the subcommand `name`.
fn has(name: &str) -> bool {
    let mut command = cargo();
    command
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
