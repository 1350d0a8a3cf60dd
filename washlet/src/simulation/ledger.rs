//! What was asked of the host and what it answered, and so what may and must be true of each workload.
//!
//! Commands for one workload act in the order in which the host took them. One that was acknowledged is
//! firm: nothing before it counts any more. Of those after it any may have acted, unless it was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use subjects::wire::{WorkloadState, WorkloadStatusResponse};
use tokio::time::Instant;

/// A workload, by its number.
pub(super) type Workload = usize;

/// What is to run of a workload: one of its contents, or nothing.
pub(super) type Wanted = Option<u64>;

/// A command that was sent to the host, as one copy of it that may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Start(Workload, u64),
    Stop(Workload),
    Status(Workload),
    Heartbeat,
    List,
    /// Not a request at all.
    Noise,
}

impl Asked {
    /// What it makes of which workload.
    fn effect(self) -> Option<(Workload, Wanted)> {
        match self {
            Self::Start(workload, content) => Some((workload, Some(content))),
            Self::Stop(workload) => Some((workload, None)),
            _ => None,
        }
    }

    fn workload(self) -> Option<Workload> {
        match self {
            Self::Start(workload, _) | Self::Stop(workload) | Self::Status(workload) => {
                Some(workload)
            }
            _ => None,
        }
    }
}

/// What is known of a command's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Not answered; or answered in a way that leaves it open.
    Open,
    /// Acknowledged.
    Firm,
    /// Refused: it does nothing.
    Void,
}

struct Copy {
    asked: Asked,
    taken: bool,
    replies: u32,
    verdict: Verdict,
}

/// A command that acts, or may act, on a workload.
struct Act {
    wanted: Wanted,
    /// `None` for what the host did by itself.
    copy: Option<usize>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    copies: Vec<Copy>,
    acts: BTreeMap<Workload, Vec<Act>>,
    /// Before the acts.
    base: BTreeMap<Workload, Wanted>,
    /// Workloads of before the restart that nobody asked for since.
    unasked: BTreeSet<Workload>,
    probed: Option<Instant>,
    violations: Vec<String>,
    /// Not in the trace yet.
    news: Vec<String>,
}

impl Ledger {
    pub(super) fn send(&mut self, asked: Asked) -> usize {
        self.copies.push(Copy {
            asked,
            taken: false,
            replies: 0,
            verdict: Verdict::Open,
        });
        self.copies.len() - 1
    }

    pub(super) fn asked(&self, copy: usize) -> Asked {
        self.copies[copy].asked
    }

    /// The host took a command.
    pub(super) fn take(&mut self, copy: usize, orphan_after: Duration) {
        self.copies[copy].taken = true;
        let asked = self.copies[copy].asked;
        if let Some((workload, wanted)) = asked.effect() {
            let acts = self.acts.entry(workload).or_default();
            acts.push(Act {
                wanted,
                copy: Some(copy),
            });
        }
        if let Some(workload) = asked.workload() {
            self.unasked.remove(&workload);
        }
        if asked == Asked::Heartbeat && !self.unasked.is_empty() {
            let since = *self.probed.get_or_insert_with(Instant::now);
            if since.elapsed() >= orphan_after {
                // From now on the host may stop what nobody asks for.
                for workload in &self.unasked {
                    let acts = self.acts.entry(*workload).or_default();
                    acts.push(Act {
                        wanted: None,
                        copy: None,
                    });
                }
            }
        }
    }

    /// The host begins to answer a command.
    pub(super) fn begin_answer(&mut self, copy: usize) {
        self.copies[copy].replies += 1;
        if self.copies[copy].replies > 1 {
            let asked = self.copies[copy].asked;
            self.violate(format!("#{copy} {asked:?} was answered twice"));
        }
    }

    /// The answer has left the host.
    pub(super) fn answered(&mut self, copy: usize, code: Option<u16>, payload: &[u8]) -> String {
        let asked = self.copies[copy].asked;
        let status = WorkloadStatusResponse::decode(payload).ok();
        let status = status.and_then(|reply| reply.workload_status);
        let status = status.unwrap_or_default();
        self.copies[copy].verdict = match (asked, code, status.workload_state) {
            (Asked::Start(..), None, WorkloadState::Running) => Verdict::Firm,
            // What ran before goes on until the new content runs.
            (Asked::Start(..), None, WorkloadState::Starting)
                if !status.message.contains("until it runs") =>
            {
                Verdict::Firm
            }
            (Asked::Stop(_), None, WorkloadState::Stopping) => Verdict::Firm,
            (Asked::Stop(_), Some(404), _) => Verdict::Firm,
            // Nothing was done; but for a journal that may have kept it all the same.
            (Asked::Start(..), Some(400 | 409 | 503), WorkloadState::Error)
                if [
                    "already exists",
                    "draining",
                    "too many commands",
                    "goes on:",
                ]
                .iter()
                .any(|text| status.message.contains(text))
                    && !status.message.contains("journal") =>
            {
                Verdict::Void
            }
            (Asked::Stop(_), Some(503), _) => Verdict::Void,
            _ => Verdict::Open,
        };
        let code = code.map(|code| format!(" {code}")).unwrap_or_default();
        format!("{:?}{code} {}", self.copies[copy].verdict, status.message)
    }

    /// What may be wanted of `workload` now.
    pub(super) fn allowed(&self, workload: Workload) -> BTreeSet<Wanted> {
        let mut allowed = BTreeSet::new();
        let acts = self.acts.get(&workload).map(Vec::as_slice);
        for act in acts.unwrap_or_default().iter().rev() {
            let verdict = act
                .copy
                .map_or(Verdict::Open, |copy| self.copies[copy].verdict);
            match verdict {
                Verdict::Void => {}
                Verdict::Open => {
                    allowed.insert(act.wanted);
                }
                Verdict::Firm => {
                    allowed.insert(act.wanted);
                    return allowed;
                }
            }
        }
        allowed.insert(self.base.get(&workload).copied().flatten());
        allowed
    }

    /// `found` must be what may be wanted of `workload`.
    pub(super) fn check(&mut self, workload: Workload, found: Wanted, whence: &str) {
        let allowed = self.allowed(workload);
        if !allowed.contains(&found) {
            self.violate(format!(
                "{whence}: of w{workload} there is {found:?}, and may be {allowed:?}"
            ));
        }
    }

    /// Every command that the host took was answered.
    pub(super) fn check_answered(&mut self) {
        let missing: Vec<_> = (self.copies.iter().enumerate())
            .filter(|(_, copy)| copy.taken && copy.replies == 0)
            .map(|(number, copy)| format!("#{number} {:?} was not answered", copy.asked))
            .collect();
        missing
            .into_iter()
            .for_each(|missing| self.violate(missing));
    }

    /// How the host is to have refused no command for want of room.
    pub(super) fn is_firm(&self, copy: usize) -> bool {
        self.copies[copy].verdict == Verdict::Firm
    }

    /// A process begins with what `found` says of each workload: nothing of before is under way any more.
    pub(super) fn restart(&mut self, found: &BTreeMap<Workload, u64>) {
        self.copies.iter_mut().for_each(|copy| copy.taken = false);
        self.acts.clear();
        self.base = found
            .iter()
            .map(|(id, content)| (*id, Some(*content)))
            .collect();
        self.unasked = found.keys().copied().collect();
        self.probed = None;
    }

    pub(super) fn violate(&mut self, what: String) {
        self.news.push(what.clone());
        self.violations.push(what);
    }

    pub(super) fn take_news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.news)
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }
}
