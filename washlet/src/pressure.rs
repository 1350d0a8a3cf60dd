//! What the machine is short of, so that work goes elsewhere before anything fails.
//!
//! ```text
//! used: ── above `on`, for a while ──► short ── below `off`, for as long ──► not any more
//! ```
//! The two levels are apart, and what changes fast is looked at longer, so that nothing flaps; heartbeats' label, the
//! event and the metrics say the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::drain::Drain;
use crate::health::Health;
use crate::host::Host;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Something that there may be too little of.
#[derive(Debug, PartialEq)]
pub(crate) struct Resource {
    /// As in labels and events.
    pub(crate) name: &'static str,
    /// Units: percent used.
    on: f64,
    /// Units: percent used.
    off: f64,
    /// Looks in a row that have to say the same.
    looks: u8,
}

const fn resource(name: &'static str, on: f64, off: f64, looks: u8) -> Resource {
    Resource {
        name,
        on,
        off,
        looks,
    }
}

/// All of them, in the order in which they are named.
pub(crate) const RESOURCES: [Resource; 4] = [
    resource("memory", 90.0, 80.0, 2),
    DISK,
    resource("cpu", 95.0, 80.0, 15),
    resource("instances", 90.0, 75.0, 5),
];

/// Where images, compiled code and the journal are.
pub(crate) const DISK: Resource = resource("disk", 90.0, 85.0, 2);

/// Whether there is too little of one of them.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    short: bool,
    /// Looks in a row that say otherwise.
    otherwise: u8,
}

impl Condition {
    /// So much is used now; `None` where that cannot be known, which changes nothing.
    fn look(&mut self, of: &Resource, used: Option<f64>) {
        let other = match (self.short, used) {
            (_, None) => false,
            (false, Some(used)) => used > of.on,
            (true, Some(used)) => used < of.off,
        };
        self.otherwise = if other { self.otherwise + 1 } else { 0 };
        if self.otherwise >= of.looks {
            *self = Self {
                short: !self.short,
                otherwise: 0,
            };
        }
    }
}

/// Looks after `host` until `control` stops, and says in `health` what it is short of; `dirs` are on the disk.
pub(crate) fn watch(host: Host, dirs: Vec<PathBuf>, health: Health, control: &Drain) {
    let owner = control.clone();
    control.spawn("pressure", async move {
        let mut conditions = [Condition::default(); RESOURCES.len()];
        loop {
            tokio::select! {
                () = owner.stopping() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let dirs = dirs.clone();
            // A file system that hangs holds up nothing else.
            let disk = tokio::task::spawn_blocking(move || fullest(&dirs)).await;
            let sample = host.sample();
            let instances = host.engine().instances();
            let used = [
                percent(
                    sample.memory_total.saturating_sub(sample.memory_free),
                    sample.memory_total,
                ),
                disk.ok().flatten(),
                Some(f64::from(sample.cpu_percent)),
                percent(instances.live, instances.max),
            ];
            for ((condition, resource), used) in conditions.iter_mut().zip(&RESOURCES).zip(used) {
                condition.look(resource, used);
            }
            let short = conditions.iter().zip(&RESOURCES);
            let short = short.filter(|(condition, _)| condition.short);
            health.is_short_of(short.map(|(_, resource)| resource.name).collect());
        }
    });
}

/// Whether the disk still has to be given something back. Blocks.
pub(crate) fn disk_is_tight(dirs: &[PathBuf]) -> bool {
    fullest(dirs).is_some_and(|used| used >= DISK.off)
}

/// Of the file systems of `dirs` the fullest. Units: percent used.
fn fullest(dirs: &[PathBuf]) -> Option<f64> {
    dirs.iter()
        .filter_map(|dir| disk(dir))
        .max_by(f64::total_cmp)
}

/// As `df` shows it: what only root may use counts as used by nobody.
fn disk(dir: &Path) -> Option<f64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    percent(used, used.saturating_add(stat.f_bavail))
}

fn percent(used: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| 100.0 * used as f64 / of as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_comes_and_goes_with_a_gap_in_between() {
        let mut condition = Condition::default();
        let mut look = |used: Option<f64>| {
            condition.look(&DISK, used);
            condition.short
        };
        // One look above is a moment; what is between the levels changes nothing, whence it comes.
        for (used, short) in [
            (Some(91.0), false),
            (Some(89.0), false),
            (Some(91.0), false),
            (Some(92.0), true),
            (Some(86.0), true),
            (Some(84.0), true),
            (None, true),
            (Some(84.0), true),
            (Some(80.0), false),
            (Some(89.9), false),
            (Some(89.9), false),
        ] {
            assert_eq!(look(used), short, "{used:?}");
        }
    }

    #[test]
    fn levels_are_apart_and_names_are_labels() {
        for Resource {
            name,
            on,
            off,
            looks,
        } in RESOURCES
        {
            assert!(off < on && on < 100.0 && looks > 1, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase()), "{name}");
        }
    }

    #[test]
    fn a_disk_is_between_empty_and_full() {
        let dir = tempfile::tempdir().unwrap();
        let used = disk(dir.path()).unwrap();
        assert!((0.0..=100.0).contains(&used), "{used}");
        assert_eq!(disk(&dir.path().join("nothing")), None);
        assert!(fullest(&[dir.path().join("nothing"), dir.path().to_owned()]).is_some());
        assert_eq!(percent(1, 0), None);
    }
}
