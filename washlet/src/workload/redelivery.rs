//! How a workload wants messages delivered again, read from the config of its messaging entry.

use capabilities::messaging::{Redelivery, durable, is_subject, matches, may_send};
use std::time::Duration;

use super::spec::duration;

/// A member that is silent for less is not gone.
const ACK_WAIT_MIN: Duration = Duration::from_secs(1);

/// A host that crashed holds its messages no longer.
const ACK_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// A group that is forgotten earlier would be while it is being moved.
const FORGET_AFTER_MIN: Duration = Duration::from_secs(3_600);

/// Longer than anybody waits for anything here.
const TIME_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Pauses that one entry can list.
const PAUSES_MAX: usize = 16;

/// What the values that `text` has for keys mean, for who hears `subjects`; and one key that was there.
///
/// # Errors
/// The key that is wrong, with the reason.
pub(super) fn read<'a>(
    text: impl Fn(&str) -> Option<&'a str>,
    subjects: &[String],
) -> Result<(Redelivery, Option<&'static str>), (&'static str, String)> {
    let mut redelivery = Redelivery::default();
    let mut given = None;
    let mut value = |key: &'static str| {
        let value = text(key);
        given = given.or(value.map(|_| key));
        value
    };
    if let Some(text) = value("ack_wait") {
        let wait = duration(text).filter(|wait| (ACK_WAIT_MIN..=ACK_WAIT_MAX).contains(wait));
        redelivery.ack_wait =
            wait.ok_or(("ack_wait", "must be a time from 1s to 1h".to_owned()))?;
    }
    if let Some(text) = value("backoff") {
        let pause = |text: &str| duration(text.trim()).filter(|pause| *pause <= TIME_MAX);
        let pauses: Option<Vec<_>> = text.split(',').map(pause).collect();
        let pauses = pauses.filter(|pauses| pauses.len() <= PAUSES_MAX);
        let wrong = format!("must be at most {PAUSES_MAX} times, like '1s, 10s, 1m'");
        redelivery.backoff = pauses.ok_or(("backoff", wrong))?;
    }
    if let Some(subject) = value("dead_letter") {
        let why = if !is_subject(subject) {
            Some("is not a subject without wildcards")
        } else if !may_send(subject) {
            Some("belongs to the fleet or to the broker itself")
        } else if subjects.iter().any(|filter| matches(filter, subject)) {
            Some("is among 'subscriptions': dead letters would come again for ever")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(("dead_letter", format!("'{subject}' {why}")));
        }
        redelivery.dead_letter = Some(subject.to_owned());
        redelivery.deliveries_max = Some(durable::DELIVERIES_MAX);
    }
    if let Some(text) = value("max_deliver") {
        let max = text.parse().ok().filter(|max| *max > 0);
        let max = max.ok_or(("max_deliver", "must be a number from 1 on".to_owned()))?;
        redelivery.deliveries_max = Some(max);
    }
    if let Some(text) = value("forget_after") {
        let after = duration(text).filter(|after| (FORGET_AFTER_MIN..=TIME_MAX).contains(after));
        let wrong = || ("forget_after", "must be a time from 1h to 365d".to_owned());
        redelivery.forget_after = after.ok_or_else(wrong)?;
    }
    Ok((redelivery, given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let subjects = ["a.>".to_owned()];
        assert_eq!(
            read(|_| None, &subjects).unwrap(),
            (Redelivery::default(), None)
        );
        let text = |key: &str| match key {
            "ack_wait" => Some("2s"),
            "max_deliver" => Some("3"),
            "backoff" => Some("100ms, 1m"),
            "dead_letter" => Some("dead.a"),
            "forget_after" => Some("2d"),
            other => panic!("{other} is not a key"),
        };
        let expected = Redelivery {
            ack_wait: Duration::from_secs(2),
            deliveries_max: Some(3),
            backoff: vec![Duration::from_millis(100), Duration::from_secs(60)],
            dead_letter: Some("dead.a".to_owned()),
            forget_after: Duration::from_secs(2 * 86_400),
        };
        let (found, key) = read(text, &subjects).unwrap();
        assert_eq!((found, key), (expected, Some("ack_wait")));
        let only = |key: &str| (key == "dead_letter").then_some("dead.a");
        let (found, _) = read(only, &subjects).unwrap();
        assert_eq!(found.deliveries_max, Some(durable::DELIVERIES_MAX));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        for (key, text) in [
            ("ack_wait", "500ms"),
            ("ack_wait", "2h"),
            ("max_deliver", "0"),
            ("max_deliver", "many"),
            ("backoff", "1s,soon"),
            ("backoff", "1s,"),
            ("dead_letter", "dead.>"),
            ("dead_letter", "$JS.API.x"),
            ("dead_letter", "a.dead"),
            ("forget_after", "1s"),
        ] {
            let refused = read(|asked| (asked == key).then_some(text), &["a.>".to_owned()]);
            assert_eq!(refused.map_err(|(found, _)| found), Err(key), "{text}");
        }
    }
}
