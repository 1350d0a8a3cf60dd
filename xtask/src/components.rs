//! The guests: builds them, keeps the committed files in step with their sources.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use crate::{test, tools};

const TARGET: &str = "wasm32-wasip2";

/// Names the committed file of a guest, below its workspace.
type Place = fn(&str) -> String;

/// The workspaces of guests, and where each keeps the file of a guest.
const WORKSPACES: [(&str, Place); 4] = [
    ("examples", |name| format!("{name}/{name}.wasm")),
    ("tests/components", |name| format!("wasm/{name}.wasm")),
    ("tests/async", |name| {
        format!("../components/wasm/{name}.wasm")
    }),
    ("tests/labelled", |name| {
        format!("../components/wasm/{name}.wasm")
    }),
];

/// `cargo xtask components [--check] [--toolchain NAME]`
///
/// Shape: without `--check` the committed files are replaced and `TOOLCHAIN` names what built them.
/// With it nothing is written: the same compiler and cargo must give the same bytes, any other the
/// same imports and exports.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut check = false;
    let mut toolchain = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--check" => check = true,
            "--toolchain" => toolchain = Some(args.next().context("--toolchain needs a name")?),
            other => bail!("`cargo xtask components` has no option \"{other}\""),
        }
    }

    let compiler = Compiler::find(toolchain.map(String::as_str))?;
    let target_dir = tools::target_dir()?.join("components");
    let mut differences = 0;
    for (folder, place) in WORKSPACES {
        let workspace = test::root().join(folder);
        compiler.build(&workspace, &target_dir)?;
        let record = workspace.join("TOOLCHAIN");
        let same_compiler = fs::read_to_string(&record).is_ok_and(|text| text == compiler.version);
        for name in guests(&workspace)? {
            let file = format!("{}.wasm", name.replace('-', "_"));
            let built = fs::read(target_dir.join(TARGET).join("release").join(file))?;
            let built = component(built).with_context(|| format!("{folder}/{name}"))?;
            let path = workspace.join(place(&name));
            let verdict = if !check {
                fs::write(&path, &built)
                    .with_context(|| format!("failed to write \"{}\"", path.display()))?;
                Ok("built")
            } else {
                compare(fs::read(&path).ok().as_deref(), &built, same_compiler)?
            };
            differences += usize::from(verdict.is_err());
            let (Ok(verdict) | Err(verdict)) = verdict;
            println!(
                "{folder}/{name}: {} KiB, {verdict}",
                built.len().div_ceil(1024)
            );
        }
        if !check {
            fs::write(&record, &compiler.version)?;
        }
    }
    ensure!(
        differences == 0,
        "guests that differ from their sources: {differences}; `cargo xtask components` builds them anew"
    );
    Ok(())
}

/// What was linked as a component; what the linker left a module, for its own knowledge of components is
/// too old, is made one.
fn component(linked: Vec<u8>) -> Result<Vec<u8>> {
    if !Parser::is_core_wasm(&linked) {
        return Ok(linked);
    }
    ComponentEncoder::default()
        .validate(true)
        .module(&linked)?
        .adapter(
            WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
            WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        )?
        .encode()
}

/// What a rebuild says of a committed file.
fn compare(
    committed: Option<&[u8]>,
    built: &[u8],
    same_compiler: bool,
) -> Result<Result<&'static str, &'static str>> {
    let Some(committed) = committed else {
        return Ok(Err("is not committed"));
    };
    Ok(if committed == built {
        Ok("same bytes")
    } else if same_compiler {
        Err("other bytes from the same compiler")
    } else if world(committed)? == world(built)? {
        Ok("same imports and exports, other compiler")
    } else {
        Err("other imports or exports")
    })
}

struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
    /// What `TOOLCHAIN` holds: `rustc -V` and `cargo -V`, a line each.
    version: String,
}

impl Compiler {
    fn find(toolchain: Option<&str>) -> Result<Self> {
        let rustc = match toolchain {
            Some(name) => {
                output(Command::new("rustup").args(["which", "rustc", "--toolchain", name]))?
            }
            None => "rustc".to_owned(),
        };
        let rustc = PathBuf::from(rustc.trim_end());
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim_end());
        if !sysroot
            .join("lib/rustlib")
            .join(TARGET)
            .join("lib")
            .is_dir()
        {
            let option = toolchain.map(|name| format!(" --toolchain {name}"));
            bail!(
                "the target {TARGET} is not installed; `rustup target add {TARGET}{}`, \
                 or name a toolchain that has it with --toolchain",
                option.unwrap_or_default()
            );
        }
        let version = output(Command::new(&rustc).arg("-V"))? + &output(test::cargo().arg("-V"))?;
        Ok(Self {
            rustc,
            sysroot,
            version,
        })
    }

    fn build(&self, workspace: &Path, target_dir: &Path) -> Result<()> {
        let mut cargo = test::cargo();
        cargo
            .current_dir(workspace)
            .env("RUSTC", &self.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags()?)
            .env_remove("RUSTFLAGS")
            .args(["build", "--release", "--locked", "--target", TARGET])
            .arg("--target-dir")
            .arg(target_dir);
        // Official toolchains hide where their std was compiled. One from a tarball has that path
        // in every panic message, so std is compiled along with the guest.
        if self.version.contains("(built from a source tarball)") {
            cargo
                .env("RUSTC_BOOTSTRAP", "1")
                .arg("-Zbuild-std=std,panic_abort");
        }
        test::run(&mut cargo)
    }

    /// Hides this machine's paths, so that bytes do not depend on them.
    fn flags(&self) -> Result<String> {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(env::home_dir()?.join(".cargo")))
            .context("there is neither CARGO_HOME nor a home directory")?;
        let flags = [
            (cargo_home, "/cargo"),
            (test::root(), "/src"),
            (self.sysroot.join("lib/rustlib/src/rust"), "/rust"),
        ]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
        Ok(flags.join("\x1f"))
    }
}

/// The folders of `workspace` that hold a guest, sorted.
fn guests(workspace: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(workspace)? {
        let entry = entry?;
        // A library that guests share is no guest.
        if fs::read_to_string(entry.path().join("Cargo.toml"))
            .is_ok_and(|manifest| manifest.contains("cdylib"))
        {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The imports and exports of a component, with versions as far as they decide compatibility: each
/// compiler's std asks for a patch release of WASI of its own.
fn world(component: &[u8]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(imports) if depth == 1 => {
                for import in imports {
                    names.insert(format!("import {}", compatible(import?.name.name)));
                }
            }
            Payload::ComponentExportSection(exports) if depth == 1 => {
                for export in exports {
                    names.insert(format!("export {}", compatible(export?.name.name)));
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// `wasi:io/poll@0.2.12` as `wasi:io/poll@0.2`; a prerelease stays as it is.
fn compatible(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, patch)) if patch.bytes().all(|digit| digit.is_ascii_digit()) => stem,
        _ => name,
    }
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("failed to run \"{program}\""))?;
    ensure!(
        output.status.success(),
        "\"{program}\" failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(path: &str) -> BTreeSet<String> {
        world(&fs::read(test::root().join(path)).unwrap()).unwrap()
    }

    #[test]
    fn every_committed_guest_has_an_export_that_a_host_drives() {
        for (folder, place) in WORKSPACES {
            let workspace = test::root().join(folder);
            for name in guests(&workspace).unwrap() {
                let world = committed(&format!("{folder}/{}", place(&name)));
                let driven = world.contains("export wasi:http/incoming-handler@0.2")
                    || world.contains("export wasi:http/handler@0.3")
                    || world.contains("export wasmcloud:messaging/handler@0.2");
                assert!(driven, "{folder}/{name}: {world:?}");
            }
        }
    }

    #[test]
    fn a_world_has_the_top_level_names_only() {
        let world = committed("examples/http-hello/http-hello.wasm");
        let world: Vec<&str> = world.iter().map(String::as_str).collect();
        assert_eq!(
            world,
            [
                "export wasi:http/incoming-handler@0.2",
                "import wasi:http/types@0.2",
                "import wasi:io/error@0.2",
                "import wasi:io/streams@0.2",
            ]
        );
    }

    #[test]
    fn another_compiler_may_change_bytes_but_not_the_world() {
        let hello = fs::read(test::root().join("examples/http-hello/http-hello.wasm")).unwrap();
        let counter =
            fs::read(test::root().join("examples/http-counter/http-counter.wasm")).unwrap();
        // A trailing custom section: other bytes, the same world.
        let mut padded = hello.clone();
        padded.extend([0, 2, 1, b'x']);
        assert!(compare(Some(&hello), &hello, true).unwrap().is_ok());
        assert!(compare(Some(&hello), &padded, true).unwrap().is_err());
        assert!(compare(Some(&hello), &padded, false).unwrap().is_ok());
        assert!(compare(Some(&hello), &counter, false).unwrap().is_err());
        assert!(compare(None, &hello, false).unwrap().is_err());
    }
}
