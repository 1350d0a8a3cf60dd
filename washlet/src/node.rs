//! The machine a host runs on: what it is, how busy it is, how much memory is left.
//!
//! Inside a container "the machine" is what the container may use: limits of its control groups,
//! version 1 and 2, count as far as they are tighter than the hardware.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, System};

/// The processor, like `x86_64`.
pub const OS_ARCH: &str = std::env::consts::ARCH;
/// The operating system, like `linux`.
pub const OS_NAME: &str = std::env::consts::OS;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The machine, with what must be remembered between samples.
pub struct Node {
    os_kernel: String,
    /// What `/proc/self/cgroup` said; empty where there is none.
    membership: String,
    state: Mutex<State>,
}

struct State {
    /// `None` on a platform that shows nothing.
    system: Option<System>,
    cpu_percent: f32,
    /// The group whose quota counts, and what it had used when.
    cpu_used: Option<(CpuQuota, Instant)>,
    last: Option<(Instant, Sample)>,
}

/// How the machine does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Units: percent of all processors, or of the quota when there is one; 0 to 100.
    pub cpu_percent: f32,
    /// Units: bytes.
    pub memory_total: u64,
    /// What could still be used, so without the caches that the kernel would give back. Units: bytes.
    pub memory_free: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// Looks at the machine once, so that the first sample has something to compare with.
    pub fn new() -> Self {
        let mut system = System::new().ok();
        // Without an earlier look this is the usage since boot.
        let cpu_percent = machine_cpu(system.as_mut());
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let cpu_used = cpu_quota(&membership).map(|quota| (quota, Instant::now()));
        Self {
            os_kernel: System::kernel_version()
                .unwrap_or_else(|_| std::env::consts::FAMILY.to_owned()),
            membership,
            state: Mutex::new(State {
                cpu_percent,
                system,
                cpu_used,
                last: None,
            }),
        }
    }

    /// The kernel's version; the family of the system, like `unix`, where it has none.
    pub fn os_kernel(&self) -> &str {
        &self.os_kernel
    }

    /// How the machine does now, the processors since the sample before.
    ///
    /// Shape: reads a few files of the kernel; asked again within 200 ms it repeats its answer, so
    /// that being asked often costs nothing.
    pub fn sample(&self) -> Sample {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if let Some((at, sample)) = state.last
            && at.elapsed() < MINIMUM_CPU_UPDATE_INTERVAL
        {
            return sample;
        }
        let machine = machine_cpu(state.system.as_mut());
        state.refresh_cpu(machine, cpu_quota(&self.membership));
        let (total, available) = state.system.as_mut().map_or((0, 0), |system| {
            system.refresh_memory();
            (system.total_memory(), system.available_memory())
        });
        let groups = memory(&self.membership);
        let sample = Sample {
            cpu_percent: state.cpu_percent.clamp(0.0, 100.0),
            memory_total: groups.iter().map(|group| group.limit).fold(total, u64::min),
            memory_free: groups.iter().map(Memory::free).fold(available, u64::min),
        };
        state.last = Some((Instant::now(), sample));
        sample
    }
}

impl State {
    fn refresh_cpu(&mut self, machine: f32, quota: Option<CpuQuota>) {
        let now = Instant::now();
        self.cpu_percent = match (&self.cpu_used, &quota) {
            (Some((before, at)), Some(after)) => {
                let elapsed = now.duration_since(*at);
                if elapsed < MINIMUM_CPU_UPDATE_INTERVAL {
                    return;
                }
                after.percent_since(before, elapsed)
            }
            (None, Some(_)) => self.cpu_percent,
            (_, None) => machine,
        };
        self.cpu_used = quota.map(|quota| (quota, now));
    }
}

/// Address space that this process may take, in bytes; the most there is without a limit.
pub fn address_bytes() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As);
    limit.current.unwrap_or(u64::MAX)
}

/// Files and sockets that a process may open that wants to be a host, at most.
const FILES_MAX: u64 = 1 << 20;

/// Allows this process as many open files as it may allow itself; gives how many that are.
pub fn raise_files() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(FILES_MAX).min(FILES_MAX);
    if limit.current.is_some_and(|current| current < most) {
        limit.current = Some(most);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// The name of this machine; `localhost` when it has none.
pub fn hostname() -> String {
    System::host_name().unwrap_or_else(|_| "localhost".to_owned())
}

/// Units: percent of all processors, since the call before.
fn machine_cpu(system: Option<&mut System>) -> f32 {
    system.map_or(0.0, |system| {
        system.refresh_cpu_usage();
        system.global_cpu_usage()
    })
}

/// The directories of the group that `membership` names for `controller`, and of the groups around
/// it, inner first; and whether they are of version 2.
fn groups(membership: &str, controller: &str) -> Option<(Vec<PathBuf>, bool)> {
    let mut unified = None;
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if controllers.is_empty() {
            unified = Some(path);
        } else if controllers.split(',').any(|name| name == controller) {
            return Some((chain(&Path::new(CGROUPS).join(controller), path), false));
        }
    }
    Some((chain(Path::new(CGROUPS), unified?), true))
}

/// From `mount`/`path` up to `mount`. A path as seen from outside the container does not exist inside;
/// then only `mount` does, which is the container's own group.
fn chain(mount: &Path, path: &str) -> Vec<PathBuf> {
    // Collected from components, so without the slash that joining an empty path leaves.
    let inner: PathBuf = mount
        .join(path.trim_start_matches('/'))
        .components()
        .collect();
    inner
        .ancestors()
        .take_while(|dir| dir.starts_with(mount))
        .map(Path::to_owned)
        .collect()
}

fn read(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

/// A group's memory. Units: bytes.
#[derive(Debug, PartialEq, Eq)]
struct Memory {
    limit: u64,
    used: u64,
}

impl Memory {
    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// From the text of a group's files; `None` without a limit. `cache` is the line of `stat` with
    /// the file pages that the kernel would drop first.
    fn parse(limit: &str, usage: &str, stat: &str, cache: &str) -> Option<Self> {
        let usage: u64 = usage.trim().parse().ok()?;
        Some(Self {
            limit: limit.trim().parse().ok()?, // "max" is no limit
            used: usage.saturating_sub(field(stat, cache).unwrap_or(0)),
        })
    }
}

fn memory(membership: &str) -> Vec<Memory> {
    let Some((dirs, v2)) = groups(membership, "memory") else {
        return Vec::new();
    };
    let [limit, usage, cache] = if v2 {
        ["memory.max", "memory.current", "inactive_file"]
    } else {
        [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ]
    };
    let parse = |dir: &PathBuf| {
        let stat = read(dir, "memory.stat")?;
        Memory::parse(&read(dir, limit)?, &read(dir, usage)?, &stat, cache)
    };
    dirs.iter().filter_map(parse).collect()
}

/// A group's share of the processors, and what it has used of it so far.
#[derive(Debug, PartialEq)]
struct CpuQuota {
    /// Units: processors.
    cores: f64,
    used: Duration,
}

impl CpuQuota {
    fn percent_since(&self, before: &Self, elapsed: Duration) -> f32 {
        let used = self.used.saturating_sub(before.used).as_secs_f64();
        let share = 100.0 * used / (elapsed.as_secs_f64() * self.cores);
        let percent = share as f32;
        percent.clamp(0.0, 100.0)
    }
}

/// Of `<quota> <period>` in the same unit of time; `None` when there is no quota (`max` or -1).
fn cores(quota: &str) -> Option<f64> {
    let mut parts = quota.split_whitespace().map(str::parse::<f64>);
    let (quota, period) = (parts.next()?.ok()?, parts.next()?.ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The tightest quota of the groups around this process.
fn cpu_quota(membership: &str) -> Option<CpuQuota> {
    let (dirs, v2) = groups(membership, "cpu")?;
    let quota = |(depth, dir): (usize, &PathBuf)| {
        let quota = if v2 {
            read(dir, "cpu.max")?
        } else {
            format!(
                "{} {}",
                read(dir, "cpu.cfs_quota_us")?,
                read(dir, "cpu.cfs_period_us")?
            )
        };
        Some((depth, cores(&quota)?))
    };
    let quotas = dirs.iter().enumerate().filter_map(quota);
    let (depth, cores) = quotas.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let used = if v2 {
        Duration::from_micros(field(&read(dirs.get(depth)?, "cpu.stat")?, "usage_usec")?)
    } else {
        let (dirs, _) = groups(membership, "cpuacct")?;
        let nanos = read(dirs.get(depth)?, "cpuacct.usage")?;
        Duration::from_nanos(nanos.trim().parse().ok()?)
    };
    Some(CpuQuota { cores, used })
}

/// The number after `name` in lines of `<name> <number>`.
fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, number)| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(membership: &str, controller: &str) -> (Vec<String>, bool) {
        let (dirs, v2) = groups(membership, controller).unwrap();
        (
            dirs.iter().map(|dir| dir.display().to_string()).collect(),
            v2,
        )
    }

    #[test]
    fn groups_are_found_in_both_versions() {
        let (dirs, v2) = paths("0::/kubepods/pod1/c1\n", "memory");
        assert!(v2);
        assert_eq!(
            dirs,
            [
                "/sys/fs/cgroup/kubepods/pod1/c1",
                "/sys/fs/cgroup/kubepods/pod1",
                "/sys/fs/cgroup/kubepods",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(
            paths("0::/\n", "cpu"),
            (vec!["/sys/fs/cgroup".to_owned()], true)
        );

        let hybrid =
            "5:devices:/\n4:memory:/docker/ab:cd\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let (dirs, v2) = paths(hybrid, "memory");
        assert!(!v2);
        assert_eq!(
            dirs,
            [
                "/sys/fs/cgroup/memory/docker/ab:cd",
                "/sys/fs/cgroup/memory/docker",
                "/sys/fs/cgroup/memory"
            ]
        );
        let own = (vec!["/sys/fs/cgroup/cpuacct".to_owned()], false);
        assert_eq!(paths(hybrid, "cpuacct"), own);
        assert_eq!(groups("", "memory"), None);
        assert_eq!(groups("nonsense\n4:memory\n", "memory"), None);
    }

    #[test]
    fn memory_is_limit_and_usage_without_droppable_cache() {
        let stat = "anon 100\nfile 900\ninactive_file 300\nactive_file 600\n";
        let memory = Memory::parse("1000\n", "800\n", stat, "inactive_file").unwrap();
        assert_eq!(
            memory,
            Memory {
                limit: 1000,
                used: 500
            }
        );
        assert_eq!(memory.free(), 500);
        assert_eq!(Memory::parse("max\n", "800\n", stat, "inactive_file"), None);

        let v1 = "inactive_file 1\ntotal_inactive_file 200\n";
        let memory =
            Memory::parse("9223372036854771712", "800", v1, "total_inactive_file").unwrap();
        assert_eq!(memory.used, 600);
        // The kernel counts the two at different moments.
        assert_eq!(
            Memory::parse("100", "150", "inactive_file 200", "inactive_file")
                .unwrap()
                .used,
            0
        );
        assert_eq!(
            Memory {
                limit: 100,
                used: 150
            }
            .free(),
            0
        );
        assert_eq!(Memory::parse("", "1", "", "x"), None);
    }

    #[test]
    fn a_quota_is_a_number_of_processors() {
        assert_eq!(cores("150000 100000\n"), Some(1.5));
        for none in [
            "max 100000",
            "-1\n 100000\n",
            "",
            "100000",
            "100000 0",
            "a b",
        ] {
            assert_eq!(cores(none), None, "{none}");
        }
    }

    #[test]
    fn usage_is_a_percentage_of_the_quota() {
        let stat = "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n";
        assert_eq!(field(stat, "usage_usec"), Some(1_500_000));
        assert_eq!(field(stat, "usage"), None);
        let at = |millis| CpuQuota {
            cores: 0.5,
            used: Duration::from_millis(millis),
        };
        let second = Duration::from_secs(1);
        assert_eq!(at(350).percent_since(&at(100), second), 50.0);
        assert_eq!(at(9000).percent_since(&at(100), second), 100.0);
        assert_eq!(at(100).percent_since(&at(200), second), 0.0);
    }

    #[test]
    fn a_sample_of_this_machine_is_plausible() {
        let node = Node::new();
        let first = node.sample();
        assert!((0.0..=100.0).contains(&first.cpu_percent), "{first:?}");
        assert!(
            first.memory_free > 0 && first.memory_free <= first.memory_total,
            "{first:?}"
        );
        assert_eq!(first, node.sample());
        assert!(!node.os_kernel().is_empty());
    }
}
