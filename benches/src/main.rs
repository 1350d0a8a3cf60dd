//! Measurements of `wash` beside peers that do the same work without WebAssembly.
//!
//! | module | what it measures or does |
//! |---|---|
//! | [`http`] | a hello component beside a bare hyper server |
//! | [`keyvalue`] | counting through two hosts beside a bare compare-and-swap loop |
//! | [`starts`] | starting workloads beside bare NATS requests |
//! | [`load`] | the HTTP load |
//! | [`report`] | rounds, medians, spreads, the table and the JSON |
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

mod http;
mod keyvalue;
mod load;
mod report;
mod starts;

const USAGE: &str = "\
Usage: benches [http|keyvalue|starts].. [OPTIONS]

  --short       a few seconds in all: shows that it works, not how fast
  --rounds N    how often each side is measured, 3..=99 [default: 3]
  --total N     how many additions a round of `keyvalue` makes [default: 20000; 1000 with --short]
  --json FILE   also writes the figures of every round to FILE
";

/// What can be measured.
const ROWS: [&str; 3] = ["http", "keyvalue", "starts"];

/// How much is measured.
#[derive(Debug)]
struct Options {
    rows: Vec<String>,
    short: bool,
    rounds: usize,
    total: u64,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        Some("peer-hyper") => http::peer(),
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
    let mut figures = Vec::new();
    for row in &options.rows {
        let measured = match row.as_str() {
            "http" => http::measure(options).await,
            "keyvalue" => keyvalue::measure(options).await,
            _ => starts::measure(options).await,
        };
        let measured = measured.with_context(|| format!("failed to measure \"{row}\""))?;
        for figure in &measured {
            println!("{figure}");
        }
        figures.extend(measured);
    }
    if let Some(file) = &options.json {
        let json = report::json(options.rounds, &figures);
        fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("failed to write \"{}\"", file.display()))?;
    }
    Ok(())
}

fn parse(args: &[String]) -> Result<Options> {
    let (mut rows, mut short, mut rounds) = (Vec::new(), false, 3);
    let (mut total, mut json) = (None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value\n\n{USAGE}"))
        };
        match arg.as_str() {
            "--short" => short = true,
            "--rounds" => rounds = number(arg, value()?, 99)?,
            "--total" => total = Some(number(arg, value()?, 100_000_000)?),
            "--json" => json = Some(PathBuf::from(value()?)),
            row if ROWS.contains(&row) => rows.push(row.to_owned()),
            other => bail!("there is no row and no option \"{other}\"\n\n{USAGE}"),
        }
    }
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
    })
}

fn number(option: &str, text: &str, max: u64) -> Result<u64> {
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => bail!("{option} \"{text}\" is no number from 1 to {max}"),
    }
}
