//! The compiler as a process of its own, so that its memory is given back, and what a hostile component
//! does to it happens to nobody else.
//!
//! ```text
//! this process  ── component ─► stdin ┐
//!                                     ├ program args.. LAYOUT
//! a file        ◄── its code ── stdout┘   exit code 0; or why not, on stderr
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Signal, nice, set_parent_process_death_signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::runner::Wasi;
use crate::{CompileError, Layout};

/// How long the smallest component may take, how much longer each further MiB, and the largest: a small one
/// made to be hard gives its place to others sooner.
const COMPILE_TIME: [Duration; 3] = [
    Duration::from_secs(120),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

/// Units: bytes.
const ERROR_BYTES_MAX: u64 = 4 << 10;

/// How much the compiler gives way to guests.
const NICENESS: i32 = 10;

/// The component is not valid.
const EXIT_INVALID: u8 = 3;

/// The code could not be written.
const EXIT_OUTPUT: u8 = 4;

/// The program that compiles: one whose last argument is a [`Layout`]'s name and that calls [`run`].
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The executable.
    pub program: PathBuf,
    /// What comes before the layout.
    pub args: Vec<OsString>,
}

/// Why there is no code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The process could not be started; another way may be open.
    Spawn(io::Error),
    /// The code could not be written where it was to go.
    Output(String),
    /// It is the component.
    Compile(CompileError),
}

impl Compiler {
    /// Compiles `bytes` for `layout` into `output`. Dropping the future ends the process.
    pub(crate) async fn compile(
        &self,
        layout: Layout,
        bytes: Bytes,
        output: File,
    ) -> Result<(), Failure> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.args)
            .arg(layout.name())
            // It needs none of it, and there may be secrets.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the host, which ends it if it has to.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(Failure::Spawn)?;
        let time_max = time_max(bytes.len());
        let (mut stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let feed = async move {
            if let Some(stdin) = &mut stdin {
                // If it does not read all, its exit code says why.
                let _ = stdin.write_all(&bytes).await;
            }
        };
        let listen = async move {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                let _ = stderr.take(ERROR_BYTES_MAX).read_to_end(&mut said).await;
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        };
        let compile = async { tokio::join!(feed, listen, child.wait()) };
        let failed = |why: String| Failure::Compile(CompileError::Failed(why));
        let Ok(((), said, status)) = tokio::time::timeout(time_max, compile).await else {
            let seconds = time_max.as_secs();
            return Err(failed(format!("the compiler took more than {seconds} s")));
        };
        let status = status.map_err(|error| failed(format!("the compiler was lost: {error}")))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(code) if code == i32::from(EXIT_INVALID) => {
                Err(Failure::Compile(CompileError::Invalid(said)))
            }
            Some(code) if code == i32::from(EXIT_OUTPUT) => Err(Failure::Output(said)),
            Some(_) => Err(failed(said)),
            None => Err(failed(format!(
                "the compiler was ended by a signal ({status}), perhaps for want of memory"
            ))),
        }
    }
}

/// How long a component of so many bytes may take.
fn time_max(bytes: usize) -> Duration {
    let [least, each, most] = COMPILE_TIME;
    let further = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    least.saturating_add(each.saturating_mul(further)).min(most)
}

/// What the program of a [`Compiler`] does: component from stdin, code to stdout. Gives the exit code.
pub fn run(layout: Layout) -> u8 {
    // If the host is gone, nobody waits for it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = nice(NICENESS);
    // When memory is short, a component that is not yet there goes before all that are.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    match compile(layout) {
        Ok(()) => 0,
        Err((code, error)) => {
            let _ = write!(io::stderr(), "{error}");
            code
        }
    }
}

fn compile(layout: Layout) -> Result<(), (u8, String)> {
    let mut component = Vec::new();
    io::stdin()
        .read_to_end(&mut component)
        .map_err(|error| (1, format!("the component did not arrive: {error}")))?;
    let code = wasmtime::Engine::new(&layout.config(Wasi::of(&component)))
        .map_err(|error| (1, format!("{error:#}")))?
        .precompile_component(&component)
        .map_err(|error| (EXIT_INVALID, format!("{error:#}")))?;
    let mut output = io::stdout().lock();
    output
        .write_all(&code)
        .and_then(|()| output.flush())
        .map_err(|error| (EXIT_OUTPUT, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_components_have_more_time() {
        let seconds = |bytes| time_max(bytes).as_secs();
        assert_eq!([0, 1 << 20, 3 << 20].map(seconds), [120, 180, 300]);
        assert_eq!([50 << 20, usize::MAX].map(seconds), [600, 600]);
    }
}
