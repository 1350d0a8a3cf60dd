//! Where the server binaries are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// Directories in which Debian keeps servers and which a user's `PATH` often lacks.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The binary `name`: what the variable named like it says (`nats-server` → `NATS_SERVER`), else
/// from `PATH`, the sbin directories and Postgres' own, else `<target directory>/tools/bin/<name>`.
///
/// # Errors
/// When it is in none of these; the text names the tool and the remedy.
pub fn find(name: &str) -> Result<PathBuf> {
    let variable = name.replace('-', "_").to_uppercase();
    if let Some(path) = env::var_os(&variable) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("\"{}\", named by {variable}, is not a file", path.display());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let exe = env::current_exe()?;
    let found = env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .chain(postgres_dirs())
        .chain(exe.ancestors().map(|dir| dir.join("tools/bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    match found {
        Some(file) => Ok(file),
        None => bail!("\"{name}\" is not installed; `cargo xtask test` finds or installs it"),
    }
}

/// Where Debian keeps Postgres, the newest first: a directory for each version, in no `PATH`.
fn postgres_dirs() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let version = version.ok()?;
            let number = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, dir)| dir).collect()
}

/// The binary `name` that cargo built in the same profile as the running test.
///
/// # Errors
/// When it is not there; the text names the command that builds it.
pub fn built(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe()?;
    let found = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir: &Path| dir.join(name))
        .find(|f| f.is_file());
    match found {
        Some(file) => Ok(file),
        None => bail!("\"{name}\" is not built; run `cargo build -p {name}`"),
    }
}
