//! Measurements of `wash` beside peers that do the same work.
//!
//! | module | what it measures or does |
//! |---|---|
//! | [`http`] | components on a host, under `wasmtime serve`, and a bare hyper server |
//! | [`latency`] | answers at half of the rate that the host can bear |
//! | [`overload`] | four times as much as the host can take |
//! | [`starts`] | starting workloads beside bare NATS requests; the first start of an image |
//! | [`starvation`] | answers to commands when guests leave no processor |
//! | [`restore`] | a killed host until all that ran serves again |
//! | [`drain`] | requests while one of two hosts leaves |
//! | [`density`] | an idle host, and hosts with up to 10,000 workloads |
//! | [`keyvalue`] | key-value through components beside `async-nats` |
//! | [`blob`] | objects through a component beside `async-nats` |
//! | [`postgres`] | the last two on Postgres, beside `sqlx` |
//! | [`messaging`] | messages sent back beside `async-nats` |
//! | [`instructions`] | instructions of a request, by callgrind |
//! | [`invoke`] | the engine alone, for their sake |
//! | [`server`] | the HTTP servers that are measured |
//! | [`load`] | the HTTP load |
//! | [`proc`] | CPU time and memory of a process |
//! | [`report`] | rounds, medians, spreads, the tables and the JSON |
//!
//! Nothing here asserts a time; what is asserted is that the work was done.

#![expect(clippy::print_stdout, reason = "results go to the person who measures")]

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

mod blob;
mod density;
mod drain;
mod http;
mod instructions;
mod invoke;
mod keyvalue;
mod latency;
mod load;
mod messaging;
mod overload;
mod postgres;
mod proc;
mod report;
mod restore;
mod server;
mod starts;
mod starvation;

const USAGE: &str = "\
Usage: benches [ROW].. [OPTIONS]

Rows: http, latency, overload, starts, starvation, restore, drain, density, keyvalue, blob, messaging,
      instructions

  --short       shows that it works, not how fast
  --rounds N    how often each side is measured, 3..=99 [default: 5; 3 with --short]
  --total N     requests of a round of `keyvalue` and `messaging` [default: 20000; 1000 with --short]
  --json FILE   also writes the figures of every round to FILE

WASMTIME names the binary of `wasmtime serve`, BENCHES_PYTHON_COMPONENT a component with Python in
it; without them their rows are left out. `cargo xtask bench` sets both.
";

/// What can be measured.
const ROWS: [&str; 12] = [
    "http",
    "latency",
    "overload",
    "starts",
    "starvation",
    "restore",
    "drain",
    "density",
    "keyvalue",
    "blob",
    "messaging",
    "instructions",
];

/// How much is measured, and with what.
#[derive(Debug)]
struct Options {
    rows: Vec<String>,
    short: bool,
    rounds: usize,
    total: u64,
    json: Option<PathBuf>,
    /// The binary of `wasmtime serve`.
    wasmtime: Option<PathBuf>,
    /// A component with an interpreter in it.
    python: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        Some("peer-hyper") => server::hyper(args.get(1).map(String::as_str)),
        Some("peer-invoke") => invoke::peer(args.get(1).is_some_and(|arg| arg == "warm")),
        Some("peer-echo") => messaging::echo(args.get(1).map_or("", String::as_str)),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => measure(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    // Servers inherit it; with backtraces, errors that nobody sees cost microseconds per request.
    if env::var_os("RUST_BACKTRACE").is_none_or(|value| value != "0") {
        let mut again = Command::new(env::current_exe()?);
        again.args(args).env("RUST_BACKTRACE", "0");
        let error = again.env_remove("RUST_LIB_BACKTRACE").exec();
        return Err(error).context("failed to start again without backtraces");
    }
    // One thread, which leaves the other cores to the servers.
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            // Leaves this way too, or the servers would live on.
            tokio::select! {
                outcome = all(&options) => outcome,
                _ = interrupt.recv() => bail!("interrupted"),
                _ = terminate.recv() => bail!("terminated"),
            }
        })
}

async fn all(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("This is an unoptimised build: its figures say nothing about a release.\n");
    }
    let mut rows = Vec::new();
    for name in &options.rows {
        let measured = match name.as_str() {
            "http" => http::measure(options).await,
            "latency" => latency::measure(options).await,
            "overload" => overload::measure(options).await,
            "starts" => starts::measure(options).await,
            "starvation" => starvation::measure(options).await,
            "restore" => restore::measure(options).await,
            "drain" => drain::measure(options).await,
            "density" => density::measure(options).await,
            "keyvalue" => keyvalue::measure(options).await,
            "blob" => blob::measure(options).await,
            "messaging" => messaging::measure(options).await,
            _ => instructions::measure(options).await,
        };
        let row = measured.with_context(|| format!("failed to measure \"{name}\""))?;
        for table in &row.tables {
            println!("{table}");
        }
        for note in &row.notes {
            println!("{name}: {note}");
        }
        println!();
        rows.push((name.clone(), row));
    }
    if let Some(file) = &options.json {
        let json = report::json(options.rounds, &rows);
        fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("failed to write \"{}\"", file.display()))?;
    }
    Ok(())
}

/// A file that a variable names.
fn named(variable: &str) -> Result<Option<PathBuf>> {
    let file = env::var_os(variable).map(PathBuf::from);
    if let Some(file) = file.as_ref().filter(|file| !file.is_file()) {
        bail!("\"{}\", named by {variable}, is not a file", file.display());
    }
    Ok(file)
}

fn parse(args: &[String]) -> Result<Options> {
    let (mut rows, mut short, mut rounds) = (Vec::new(), false, None);
    let (mut total, mut json) = (None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value\n\n{USAGE}"))
        };
        match arg.as_str() {
            "--short" => short = true,
            "--rounds" => rounds = Some(number(arg, value()?, 99)?),
            "--total" => total = Some(number(arg, value()?, 100_000_000)?),
            "--json" => json = Some(PathBuf::from(value()?)),
            row if ROWS.contains(&row) => rows.push(row.to_owned()),
            other => bail!("there is no row and no option \"{other}\"\n\n{USAGE}"),
        }
    }
    let rounds = rounds.unwrap_or(if short { 3 } else { 5 });
    if rounds < 3 {
        bail!("--rounds is at least 3: one or two say nothing about the spread");
    }
    if rows.is_empty() {
        rows = ROWS.map(str::to_owned).to_vec();
    }
    Ok(Options {
        rows,
        short,
        rounds: usize::try_from(rounds)?,
        total: total.unwrap_or(if short { 1_000 } else { 20_000 }),
        json,
        wasmtime: named("WASMTIME")?,
        python: named("BENCHES_PYTHON_COMPONENT")?,
    })
}

fn number(option: &str, text: &str, max: u64) -> Result<u64> {
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => bail!("{option} \"{text}\" is no number from 1 to {max}"),
    }
}
