//! Tasks of this workspace: `cargo xtask TASK`.
//!
//! | module | task |
//! |---|---|
//! | [`bench`] | measures this against its peers |
//! | [`components`] | builds the guests, or checks that the committed ones are what their sources say |
//! | [`demo`] | two hosts serve one component; one dies, the other serves on |
//! | [`test`] | everything that proves the workspace works; formatting and lints |
//! | [`tools`] | finds or installs the servers that both need |

#![expect(
    clippy::print_stdout,
    reason = "tasks talk to the person who runs them"
)]

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

mod bench;
mod components;
mod demo;
mod test;
mod tools;

const USAGE: &str = "\
Usage: cargo xtask TASK

  bench [ROW].. [--short] [--rounds N] [--total N] [--json FILE]
                                builds releases and peers, and measures them beside each other;
                                --short only shows that it works
  components [--check] [--toolchain NAME]
                                builds the guests; --check only compares with the committed ones
  demo [--keep]                 two hosts serve a component, one dies, the other serves on;
                                --keep leaves both up until Ctrl-C
  test [--no-nextest] [NAME..]  builds everything and runs the tests whose name contains a NAME
  lint [--no-deny]              formatting, clippy, licences and sources of dependencies
  tools                         finds or installs nats-server and docker-registry
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let Some((task, rest)) = args.split_first() else {
        bail!("no task given\n\n{USAGE}")
    };
    match task.as_str() {
        "bench" => bench::run(rest),
        "components" => components::run(rest),
        "demo" => demo::run(rest),
        "test" => test::test(rest),
        "lint" => test::lint(rest),
        "tools" => {
            for tool in tools::ALL {
                println!("{}", tool.ensure()?.display());
            }
            Ok(())
        }
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task \"{other}\"\n\n{USAGE}"),
    }
}
