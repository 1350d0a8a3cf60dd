//! Days and times as Postgres writes them with `DateStyle` ISO.

use capabilities::sql::{Date, DateRange, Time, Timestamp};
use std::fmt::Write as _;

/// `2024-01-31`, `0044-03-15 BC`, `infinity`.
pub(super) fn read_date(text: &str) -> Option<Date> {
    let (text, before) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    match text {
        "infinity" => return Some(Date::Infinity),
        "-infinity" => return Some(Date::MinusInfinity),
        _ => {}
    }
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year = year.parse::<i32>().ok()?;
    let year = match before {
        true => 1_i32.checked_sub(year)?,
        false => year,
    };
    parts
        .next()
        .is_none()
        .then_some(Date::Day(year, month.parse().ok()?, day.parse().ok()?))
}

/// Shape: the era is apart, because it stands after the time where there is one.
fn day(date: Date) -> Result<(String, &'static str), String> {
    Ok(match date {
        Date::Infinity => ("infinity".to_owned(), ""),
        Date::MinusInfinity => ("-infinity".to_owned(), ""),
        Date::Day(year, month, day) => {
            if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
                return Err(format!("no day has month {month} and day {day}"));
            }
            let (year, era) = match year {
                1.. => (year.unsigned_abs(), ""),
                _ => (1 + year.unsigned_abs(), " BC"),
            };
            (format!("{year:04}-{month:02}-{day:02}"), era)
        }
    })
}

pub(super) fn date(date: Date) -> Result<String, String> {
    day(date).map(|(day, era)| day + era)
}

/// `12:34:56.789`, and what follows it.
fn read_time_of(text: &str) -> Option<(Time, &str)> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | ':' | '.'));
    let (time, rest) = text.split_at(end.unwrap_or(text.len()));
    let mut parts = time.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    if parts.next().is_some() || fraction.len() > 6 {
        return None;
    }
    let time = Time {
        hour: hour.parse().ok()?,
        minute: minute.parse().ok()?,
        second: second.parse().ok()?,
        micro: format!("{fraction:0<6}").parse().ok()?,
    };
    Some((time, rest))
}

pub(super) fn read_time(text: &str) -> Option<Time> {
    read_time_of(text).and_then(|(time, rest)| rest.is_empty().then_some(time))
}

/// With what stands after it, like `+02`.
pub(super) fn read_time_tz(text: &str) -> Option<(Time, String)> {
    let (time, zone) = read_time_of(text)?;
    read_offset(zone).map(|_| (time, zone.to_owned()))
}

pub(super) fn time(time: Time) -> Result<String, String> {
    let Time {
        hour,
        minute,
        second,
        micro,
    } = time;
    if hour > 24 || minute > 59 || second > 60 || micro > 999_999 {
        return Err(format!(
            "no time is {hour}:{minute}:{second} and {micro} µs"
        ));
    }
    Ok(format!("{hour:02}:{minute:02}:{second:02}.{micro:06}"))
}

/// A time with an offset, which may be no more than that.
pub(super) fn time_tz(of_day: Time, zone: &str) -> Result<String, String> {
    match read_offset(zone).is_some() || zone == "Z" || zone == "UTC" {
        true => Ok(time(of_day)? + zone),
        false => Err("an offset is like +02, -03:30 or UTC".to_owned()),
    }
}

/// Seconds east of UTC, of `+02`, `-03:30` or `+00:19:32`.
fn read_offset(text: &str) -> Option<i32> {
    let (sign, digits) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(digits), _) => (1, digits),
        (_, Some(digits)) => (-1, digits),
        _ => return None,
    };
    let mut seconds = 0;
    for (part, unit) in digits.splitn(3, ':').zip([3600, 60, 1]) {
        if part.len() != 2 {
            return None;
        }
        seconds += i32::from(part.parse::<u8>().ok()?) * unit;
    }
    Some(sign * seconds)
}

/// `2024-01-31 12:34:56`, and what follows it.
fn read_timestamp_of(text: &str) -> Option<(Timestamp, &str, bool)> {
    let (text, before) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let midnight = Time::default();
    let Some((day, time)) = text.split_once(' ') else {
        let date = read_date(text).filter(|date| !matches!(date, Date::Day(..)))?;
        return Some((
            Timestamp {
                date,
                time: midnight,
            },
            "",
            true,
        ));
    };
    let date = match before {
        true => read_date(&format!("{day} BC"))?,
        false => read_date(day)?,
    };
    let (time, rest) = read_time_of(time)?;
    Some((Timestamp { date, time }, rest, false))
}

pub(super) fn read_timestamp(text: &str) -> Option<Timestamp> {
    let (timestamp, rest, _) = read_timestamp_of(text)?;
    rest.is_empty().then_some(timestamp)
}

pub(super) fn read_timestamp_tz(text: &str) -> Option<(Timestamp, i32)> {
    let (timestamp, rest, infinite) = read_timestamp_of(text)?;
    match infinite {
        true => Some((timestamp, 0)),
        false => Some((timestamp, read_offset(rest)?)),
    }
}

/// `offset` is seconds east of UTC.
pub(super) fn timestamp(timestamp: Timestamp, offset: Option<i32>) -> Result<String, String> {
    let (mut text, era) = day(timestamp.date)?;
    if !matches!(timestamp.date, Date::Day(..)) {
        return Ok(text);
    }
    text.push(' ');
    text += &time(timestamp.time)?;
    if let Some(offset) = offset {
        let seconds = offset.unsigned_abs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 15 {
            return Err(format!("an offset of {offset} seconds is no offset"));
        }
        text.push(if offset < 0 { '-' } else { '+' });
        // Writing to a text does not fail.
        let _ = write!(text, "{hours:02}:{minutes:02}:{:02}", seconds % 60);
    }
    Ok(text + era)
}

/// The empty range: from a day, to the same day, without it.
const EMPTY: DateRange = DateRange {
    start: Date::Day(2000, 1, 1),
    start_inclusive: false,
    end: Date::Day(2000, 1, 1),
    end_inclusive: false,
};

/// `[2024-01-01,2024-02-01)`; without a bound it goes to an infinite day, without that.
pub(super) fn read_range(text: &str) -> Option<DateRange> {
    if text == "empty" {
        return Some(EMPTY);
    }
    let start_inclusive = text.starts_with('[');
    let end_inclusive = text.ends_with(']');
    let text = text.strip_prefix(['[', '('])?.strip_suffix([']', ')'])?;
    let (start, end) = text.split_once(',')?;
    let bound = |text: &str, none| match text.trim_matches('"') {
        "" => Some(none),
        text => read_date(text),
    };
    Some(DateRange {
        start: bound(start, Date::MinusInfinity)?,
        start_inclusive,
        end: bound(end, Date::Infinity)?,
        end_inclusive,
    })
}

pub(super) fn range(range: DateRange) -> Result<String, String> {
    let bound = |day: Date, none, inclusive: bool| match day == none && !inclusive {
        true => Ok(String::new()),
        false => date(day).map(|text| format!("\"{text}\"")),
    };
    let start = bound(range.start, Date::MinusInfinity, range.start_inclusive)?;
    let end = bound(range.end, Date::Infinity, range.end_inclusive)?;
    let open = if range.start_inclusive { '[' } else { '(' };
    let close = if range.end_inclusive { ']' } else { ')' };
    Ok(format!("{open}{start},{end}{close}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_times_are_read_as_they_are_written() {
        for text in [
            "2024-01-31",
            "0044-03-15 BC",
            "12024-01-01",
            "infinity",
            "-infinity",
        ] {
            assert_eq!(date(read_date(text).unwrap()).unwrap(), text);
        }
        assert_eq!(read_date("0001-01-01 BC"), Some(Date::Day(0, 1, 1)));
        for text in ["00:00:00.000000", "24:00:00.000000", "12:34:56.789012"] {
            assert_eq!(time(read_time(text).unwrap()).unwrap(), text);
        }
        for text in [
            "2024-01-31 12:34:56.500000+00:00:00",
            "0044-03-15 12:00:00.000000-03:30:00 BC",
            "infinity",
        ] {
            let (moment, offset) = read_timestamp_tz(text).unwrap();
            assert_eq!(timestamp(moment, Some(offset)).unwrap(), text);
        }
        assert_eq!(
            read_timestamp_tz("2024-01-31 12:34:56.5+02").unwrap().1,
            7200
        );
        for text in [
            "[\"2024-01-01\",\"2024-02-01\")",
            "(,)",
            "[\"-infinity\",\"infinity\"]",
            "(\"2000-01-01\",\"2000-01-01\")",
        ] {
            assert_eq!(range(read_range(text).unwrap()).unwrap(), text);
        }
        assert_eq!(read_range("empty"), Some(EMPTY));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "2024", "2024-01-01-01", "x-01-01", "2024-01-01 AD"] {
            assert_eq!(read_date(text), None, "{text}");
            assert_eq!(read_timestamp(text), None, "{text}");
        }
        for text in ["", "12:34", "12:34:56.1234567", "12:34:56x", "1:2:3:4"] {
            assert_eq!(read_time(text), None, "{text}");
        }
        assert!(date(Date::Day(2024, 13, 1)).is_err());
        assert!(
            time(Time {
                hour: 25,
                ..Time::default()
            })
            .is_err()
        );
        assert!(time_tz(Time::default(), "'; --").is_err());
        assert!(read_range("[1,2").is_none() && read_range("").is_none());
    }
}
