//! Delivery that comes again until it is settled: who shares the messages, and what becomes of each.

use std::time::Duration;

use super::{Error, Outcome, Result, is_filter, is_group, is_subject, matches};
use crate::plugin::{OpenError, Settings};

/// Deliveries of a message before it is a dead letter, where there is a subject for it.
pub const DELIVERIES_MAX: u32 = 5;

/// The longest reason that goes along with a dead letter, in bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Members that share messages: each goes to one of them, and again, until one has settled it.
///
/// Shape: the bus remembers a group by its name while none of its members is there, and keeps its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Filters of the subjects that it hears, at least one.
    pub subjects: Vec<String>,
    /// How messages come again.
    pub redelivery: Redelivery,
}

/// How messages come again that were not handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redelivery {
    /// How long a member may show no sign of life before its message goes to another.
    pub ack_wait: Duration,
    /// After so many deliveries a message is a dead letter; `None`: never.
    pub deliveries_max: Option<u32>,
    /// Pauses before the second delivery, the third and so on; the last one is that of all further ones.
    pub backoff: Vec<Duration>,
    /// Where dead letters go; `None`: nowhere, they are gone.
    pub dead_letter: Option<String>,
    /// How long a group without members is remembered.
    pub forget_after: Duration,
}

impl Default for Redelivery {
    fn default() -> Self {
        Self {
            ack_wait: Duration::from_secs(30),
            deliveries_max: None,
            backoff: [1, 10, 60].map(Duration::from_secs).to_vec(),
            dead_letter: None,
            forget_after: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// What a bus is to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Forget it.
    Done,
    /// Deliver it again, after this long.
    Again(Duration),
    /// Deliver it again at once, as if it had not been delivered where that can be.
    Back,
    /// It is a dead letter, for this reason.
    Dead(String),
}

impl Group {
    /// Whether a bus can serve it.
    ///
    /// # Errors
    /// [`Error::InvalidGroup`], [`Error::InvalidSubject`]; [`Error::Setup`] without subjects, or when it would
    /// hear its own dead letters.
    pub fn check(&self) -> Result<()> {
        if !is_group(&self.name) {
            return Err(Error::InvalidGroup(self.name.clone()));
        }
        if self.subjects.is_empty() {
            return Err(Error::Setup(format!(
                "group '{}' has no subject",
                self.name
            )));
        }
        if let Some(bad) = self.subjects.iter().find(|subject| !is_filter(subject)) {
            return Err(Error::InvalidSubject(bad.clone()));
        }
        match &self.redelivery.dead_letter {
            Some(dead) if !is_subject(dead) => Err(Error::InvalidSubject(dead.clone())),
            Some(dead) if self.subjects.iter().any(|filter| matches(filter, dead)) => {
                let name = &self.name;
                Err(Error::Setup(format!(
                    "dead letters of group '{name}' go to '{dead}', which it hears itself"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The filters that none of the others includes.
    pub fn filters(&self) -> Vec<&str> {
        let mut filters: Vec<&str> = Vec::new();
        for subject in &self.subjects {
            if filters.iter().any(|filter| matches(filter, subject)) {
                continue;
            }
            filters.retain(|filter| !matches(subject, filter));
            filters.push(subject);
        }
        filters
    }

    /// What becomes of a message whose `attempt`th delivery had this `outcome`.
    pub fn fate(&self, attempt: u32, outcome: Outcome) -> Fate {
        match outcome {
            Outcome::Ack => Fate::Done,
            Outcome::Release => Fate::Back,
            Outcome::Reject(why) => Fate::Dead(why),
            Outcome::Retry(why) => match self.redelivery.deliveries_max {
                Some(max) if attempt >= max => Fate::Dead(why),
                _ => Fate::Again(self.redelivery.pause(attempt)),
            },
        }
    }

    /// Why a message is a dead letter before its `attempt`th delivery: no member lived to settle the last one.
    pub fn is_spent(&self, attempt: u32) -> Option<String> {
        let max = self.redelivery.deliveries_max?;
        (attempt > max).then(|| format!("delivered {max} times and never settled"))
    }
}

impl Redelivery {
    fn pause(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let pause = self.backoff.get(index).or(self.backoff.last());
        pause.copied().unwrap_or_default()
    }
}

/// `why` as one line of at most [`REASON_BYTES_MAX`].
pub fn reason(why: &str) -> String {
    let mut line: String = why
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    while line.len() > REASON_BYTES_MAX {
        line.pop();
    }
    line
}

/// Whether the setting `delivery` asks for durable delivery; `None` when it is not there.
///
/// # Errors
/// [`OpenError::Setting`] when it is neither `durable` nor `transient`.
pub fn delivery(settings: &Settings<'_>) -> Result<Option<bool>, OpenError> {
    settings.parsed(
        "delivery",
        "durable or transient",
        |delivery| match delivery {
            "durable" => Some(true),
            "transient" => Some(false),
            _ => None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(subjects: &[&str], redelivery: Redelivery) -> Group {
        Group {
            name: "g".to_owned(),
            subjects: subjects
                .iter()
                .map(|subject| (*subject).to_owned())
                .collect(),
            redelivery,
        }
    }

    #[test]
    fn pauses_grow_and_the_last_stays() {
        let group = group(&["a"], Redelivery::default());
        let pauses = (1..=5).map(|attempt| group.fate(attempt, Outcome::Retry(String::new())));
        let seconds = [1, 10, 60, 60, 60].map(|s| Fate::Again(Duration::from_secs(s)));
        assert_eq!(pauses.collect::<Vec<_>>(), seconds);
    }

    #[test]
    fn the_last_delivery_decides() {
        let redelivery = Redelivery {
            deliveries_max: Some(2),
            ..Redelivery::default()
        };
        let group = group(&["a"], redelivery);
        let retry = || Outcome::Retry("why".to_owned());
        assert!(matches!(group.fate(1, retry()), Fate::Again(_)));
        assert_eq!(group.fate(2, retry()), Fate::Dead("why".to_owned()));
        assert_eq!(group.fate(2, Outcome::Release), Fate::Back);
        assert_eq!(
            (group.is_spent(2), group.is_spent(3).is_some()),
            (None, true)
        );
    }

    #[test]
    fn what_another_filter_includes_is_left_out() {
        for (subjects, filters) in [
            (vec!["a.b", "a.>", "c"], vec!["a.>", "c"]),
            (vec!["a.*", "a.>", "a.b"], vec!["a.>"]),
            (vec!["a.*", "*.b", "a.*"], vec!["a.*", "*.b"]),
        ] {
            assert_eq!(group(&subjects, Redelivery::default()).filters(), filters);
        }
    }

    #[test]
    fn nobody_hears_their_own_dead_letters() {
        let redelivery = Redelivery {
            dead_letter: Some("a.dead".to_owned()),
            ..Redelivery::default()
        };
        let refused = group(&["b", "a.>"], redelivery.clone()).check();
        assert!(matches!(refused, Err(Error::Setup(_))), "{refused:?}");
        group(&["a.b"], redelivery).check().unwrap();
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let text = reason(&format!("a\r\nb{}", "é".repeat(300)));
        assert!(text.starts_with("a  bé") && text.len() <= REASON_BYTES_MAX);
    }
}
