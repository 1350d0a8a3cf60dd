//! `wash`: runs a host, and commands the hosts of a fleet.

mod args;
mod dev;
mod fleet;
mod guests;
mod host;
mod hosts;
mod inspect;
mod manifest;
mod manifests;
mod oci;
mod output;
mod registries;
mod secrets;
mod supervisor;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::json;
use washlet::telemetry;

use args::{Cli, Command, LogFormat, OciCommand, SecretsCommand, WorkloadCommand};
use output::{Exit, Failure, Format, Report};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(error),
    };
    if let Command::CompileComponent { layout } = cli.command {
        // Its output is code, not a result.
        return ExitCode::from(engine::compiler::run(layout));
    }
    output::finish(cli.global.output, run(cli))
}

fn run(cli: Cli) -> Result<Report, Failure> {
    let serves = matches!(cli.command, Command::Host(_) | Command::Dev(_));
    let filter = cli.global.log_filter(if serves { "info" } else { "warn" });
    let format = match cli.global.log_format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    telemetry::init(&filter, format).map_err(|error| {
        Failure::usage(format!(
            "--log-level '{filter}': {}",
            capabilities::report(&error)
        ))
    })?;
    // Two TLS libraries' worth of code asks for the default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.command {
        // These two have runtimes of their own.
        Command::Host(args) => host::run(*args, cli.global.log_format),
        Command::Dev(args) => dev::run(*args),
        Command::Hosts(args) => client(hosts::run(&args)),
        Command::Workload(WorkloadCommand::Start(args)) => client(workload::start(&args)),
        Command::Workload(WorkloadCommand::Stop(args)) => client(workload::stop(&args)),
        Command::Workload(WorkloadCommand::Status(args)) => client(workload::status(&args)),
        Command::Workload(WorkloadCommand::List(args)) => client(workload::list(&args)),
        Command::Secrets(SecretsCommand::Seal(args)) => client(secrets::seal(&args)),
        Command::Oci(OciCommand::Pull(args)) => client(oci::pull(&args)),
        Command::Oci(OciCommand::Push(args)) => client(oci::push(&args)),
        Command::Inspect(args) => client(inspect::run(&args)),
        Command::Completion { shell } => completion(shell),
        Command::CompileComponent { .. } => Err(Failure::usage("is no command for people")),
    }
}

/// Runs a command that ends by itself, or on Ctrl-C.
fn client(command: impl Future<Output = Result<Report, Failure>>) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(anyhow::Error::from)?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = command => result,
            Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    });
    // What still runs is not worth waiting for.
    runtime.shutdown_background();
    result
}

fn completion(shell: clap_complete::Shell) -> Result<Report, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wash", &mut script);
    let text = String::from_utf8(script).map_err(anyhow::Error::from)?;
    let data = json!({ "shell": shell.to_string(), "script": text });
    Ok(Report {
        text,
        data,
        ..Report::default()
    })
}

/// Help and version, or what is wrong with the command line.
fn usage(mut error: clap::Error) -> ExitCode {
    args::conceal(&mut error);
    let words: Vec<String> = std::env::args().collect();
    let long = words
        .iter()
        .any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"));
    let pair = |pair: &[String]| matches!(pair, [flag, json] if matches!(flag.as_str(), "-o" | "--output") && json == "json");
    let json = long || words.windows(2).any(pair);
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        return output::finish(Format::Json, Err(Failure::usage(text)));
    }
    // It goes where it belongs: help to stdout, errors to stderr.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(Exit::Usage as u8)
    } else {
        ExitCode::SUCCESS
    }
}
