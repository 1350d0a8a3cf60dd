//! What the kernel says of a process, in `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The unit of the CPU times in `/proc`: `USER_HZ`, which has been 100 on every machine for decades.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of the process so far.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let [user, system] = times(pid)?;
    Ok(user + system)
}

/// User time of the process so far.
pub(crate) fn user(pid: u32) -> Result<Duration> {
    times(pid).map(|[user, _]| user)
}

/// User and system time.
fn times(pid: u32) -> Result<[Duration; 2]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may contain anything; the times are the 12th and 13th after it.
    let (_, rest) = stat.rsplit_once(')').context("no name in /proc/_/stat")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse);
    let ticks: Vec<u32> = ticks.collect::<Result<_, _>>()?;
    let [user, system] = ticks.as_slice() else {
        bail!("no times in /proc/_/stat")
    };
    Ok([TICK * *user, TICK * *system])
}

/// Resident memory, in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    mebibytes(pid, "status", &["VmRSS:"])
}

/// The most resident memory so far, in MiB.
pub(crate) fn resident_peak(pid: u32) -> Result<f64> {
    mebibytes(pid, "status", &["VmHWM:"])
}

/// Resident memory that no other process shares, in MiB.
pub(crate) fn private(pid: u32) -> Result<f64> {
    mebibytes(pid, "smaps_rollup", &["Private_Clean:", "Private_Dirty:"])
}

/// The sum of the lines of `file` that begin with `names`.
fn mebibytes(pid: u32, file: &str, names: &[&str]) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let mut sum = 0.0;
    for name in names {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in /proc/_/{file}"))?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        sum += kibibytes / 1024.0;
    }
    Ok(sum)
}

/// One processor for the load, another for what it is sent to.
pub(crate) struct Apart {
    before: CpuSet,
    /// Those that this process may use.
    processors: Vec<usize>,
}

impl Apart {
    /// Nothing is pinned yet.
    pub(crate) fn new() -> Result<Self> {
        let before = sched_getaffinity(None)?;
        let processors = (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu));
        Ok(Self {
            before,
            processors: processors.collect(),
        })
    }

    /// Whether there is but one, for both.
    pub(crate) fn is_alone(&self) -> bool {
        self.processors.len() < 2
    }

    /// What this thread starts from now on is a server.
    pub(crate) fn servers(&self) -> Result<()> {
        self.only(self.processors.last())
    }

    /// This thread, and what it starts from now on.
    pub(crate) fn load(&self) -> Result<()> {
        self.only(self.processors.first())
    }

    fn only(&self, processor: Option<&usize>) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(*processor.context("no processor")?);
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Everything as before.
    pub(crate) fn end(&self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.before)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_time_and_memory() {
        let pid = std::process::id();
        cpu(pid).unwrap();
        let (now, peak, own) = (resident(pid), resident_peak(pid), private(pid));
        let (now, peak, own) = (now.unwrap(), peak.unwrap(), own.unwrap());
        assert!(now > 0.0 && peak >= now && own > 0.0 && own <= peak);
    }
}
