//! Sorted pages of names, for both.

use capabilities::keyvalue::{KeyRange, Page};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::time::Duration;

use crate::database::{Error, Result};

/// How long a listing may take.
pub(crate) const LISTING_TIMEOUT: Duration = Duration::from_secs(60);

/// Greater than any UTF-8.
const LAST: u8 = 0xFF;

/// The names of `range` as bytes: from the first, up to but without the second; and how many to ask for, one
/// more than wanted.
pub(crate) fn bounds(range: &KeyRange<'_>) -> (Vec<u8>, Vec<u8>, i64) {
    let prefix = range.prefix.as_bytes();
    // The least that is greater.
    let after = range.after.map(|after| [after.as_bytes(), &[0]].concat());
    let from = after.unwrap_or_default().max(prefix.to_vec());
    let to = [prefix, &[LAST]].concat();
    let limit = i64::try_from(range.limit.saturating_add(1)).unwrap_or(i64::MAX);
    (from, to, limit)
}

/// The page that `rows` are: none when the bucket or container is absent, one without a name when it is empty.
pub(crate) fn page(rows: &[PgRow], limit: usize) -> Result<Option<Page>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(key) = row.try_get::<Option<&[u8]>, _>(0)? {
            let key = String::from_utf8(key.to_vec());
            keys.push(key.map_err(|error| Error::Internal(error.into()))?);
        }
    }
    let more = keys.len() > limit;
    keys.truncate(limit);
    Ok(Some(Page { keys, more }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_what_has_the_prefix_and_comes_after() {
        let names = ["", "a", "a\0", "aa", "a\u{10FFFF}", "b", "ж", "\u{10FFFF}"];
        for prefix in names {
            for after in [None, Some(""), Some("a"), Some("aa"), Some("ж")] {
                let range = KeyRange {
                    prefix,
                    after,
                    limit: 1,
                };
                let (from, to, limit) = bounds(&range);
                assert_eq!(limit, 2);
                for name in names {
                    let wanted = name.starts_with(prefix) && after.is_none_or(|after| name > after);
                    let bytes = name.as_bytes();
                    let held = bytes >= from.as_slice() && bytes < to.as_slice();
                    assert_eq!(held, wanted, "{name:?} of {prefix:?} after {after:?}");
                }
            }
        }
    }
}
