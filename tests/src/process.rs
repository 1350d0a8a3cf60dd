//! A child process and what it printed.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait;

/// The most that is kept of one stream's output; older text is dropped first.
const KEPT_BYTES: usize = 4 << 20;

/// What a process printed on one stream so far, at most its last 4 MiB.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The text so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The last `lines` lines so far.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let skipped = text.lines().count().saturating_sub(lines);
        text.lines().skip(skipped).collect::<Vec<_>>().join("\n")
    }

    /// How many lines so far contain `needle`.
    pub fn count(&self, needle: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(needle))
            .count()
    }

    /// The rest of the first line that contains `marker`, after it.
    pub fn after(&self, marker: &str) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once(marker)?;
        // Without its newline the line may still be incomplete.
        rest.split_once('\n').map(|(line, _)| line.to_owned())
    }

    fn fill(self, mut from: impl Read + Send + 'static) {
        // Ends with the process, whose pipe it reads.
        thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(read @ 1..) = from.read(&mut chunk) {
                let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(chunk.iter().take(read));
                let over = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..over);
            }
        });
    }
}

/// A child process, killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    /// What it printed on standard output.
    pub stdout: Log,
    /// What it printed on standard error.
    pub stderr: Log,
}

impl Process {
    /// Starts `program`, with `env` added to the environment, and reads what it prints.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().copied());
        Self::spawn(command)
    }

    /// Starts `command`, and reads what it prints.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let program = PathBuf::from(command.get_program());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start \"{}\"", program.display()))?;
        let (stdout, stderr) = (Log::default(), Log::default());
        if let Some(pipe) = child.stdout.take() {
            stdout.clone().fill(pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            stderr.clone().fill(pipe);
        }
        let name = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            name,
            child,
            stdout,
            stderr,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`; a process that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        // Not yet reaped, so the id is still its own.
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Kills it (SIGKILL) and returns when it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended, and says how.
    ///
    /// # Errors
    /// After `deadline`, with the end of its standard error.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("\"{}\" ends", self.name);
        let ended = wait::until(deadline, &what, async || self.ended()).await;
        ended.with_context(|| self.failure("did not end"))
    }

    /// Waits until `ready` finds what it looks for, usually in the output.
    ///
    /// # Errors
    /// After `deadline`, or when the process ends first; both with the end of its output.
    pub async fn wait_ready<T>(
        &mut self,
        deadline: Duration,
        ready: impl Fn(&Self) -> Option<T>,
    ) -> Result<T> {
        let found = wait::until(deadline, "it is ready", async || {
            let ended = self.ended();
            match (ready(self), ended) {
                (Some(value), _) => Some(Some(value)),
                (None, Some(_)) => Some(None),
                (None, None) => None,
            }
        })
        .await;
        match found {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!(self.failure("ended at once")),
            Err(_) => bail!(self.failure("did not become ready")),
        }
    }

    /// Says `what` went wrong, with the end of what the process printed.
    pub fn failure(&self, what: &str) -> String {
        format!(
            "\"{}\" {what}; it printed:\n{}\n{}",
            self.name,
            self.stdout.tail(20),
            self.stderr.tail(60)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
