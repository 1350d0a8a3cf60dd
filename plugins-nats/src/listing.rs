//! Sorted pages of what NATS lists in no order: what one page leaves is kept for the next.

use capabilities::keyvalue::{KeyRange, Page};
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many names of one listing are kept for the pages after the first.
const NAMES_MAX: usize = 10_000;
/// How many bytes of names one of them is.
const BYTES_MAX: usize = 1 << 20;
/// How many listings are kept for their next page, the newest ones.
const LISTINGS_MAX: usize = 4;
/// How long a listing is good for.
const AGE_MAX: Duration = Duration::from_secs(30);

/// The listings of one store that have a next page.
#[derive(Default)]
pub(crate) struct Listings(Mutex<VecDeque<Listing>>);

/// The names after a page, sorted.
struct Listing {
    of: String,
    prefix: String,
    /// The last name of the page before.
    after: String,
    rest: VecDeque<String>,
    /// Whether there are names beyond `rest`.
    more: bool,
    taken: Instant,
}

/// The smallest names of a range, at most [`NAMES_MAX`].
#[derive(Default)]
pub(crate) struct Smallest {
    names: BTreeSet<String>,
    bytes: usize,
    /// Whether some were left out.
    more: bool,
}

impl Smallest {
    /// Takes `name` if it is in `range` and among the smallest.
    pub(crate) fn offer(&mut self, name: String, range: &KeyRange<'_>) {
        if name.starts_with(range.prefix) && range.after.is_none_or(|after| name.as_str() > after) {
            let length = name.len();
            if self.names.insert(name) {
                self.bytes += length;
            }
        }
        while self.names.len() > NAMES_MAX || self.bytes > BYTES_MAX {
            self.bytes -= self.names.pop_last().map_or(self.bytes, |name| name.len());
            self.more = true;
        }
    }
}

impl Listings {
    /// A page of what `of` holds: the rest of a listing, or the beginning of a new one, made by `list`.
    pub(crate) async fn page<E>(
        &self,
        of: &str,
        range: &KeyRange<'_>,
        list: impl Future<Output = Result<Smallest, E>>,
    ) -> Result<Page, E> {
        let (mut rest, beyond) = match self.take(of, range) {
            Some(listing) => (listing.rest, listing.more),
            None => {
                let list = list.await?;
                (list.names.into_iter().collect(), list.more)
            }
        };
        let keys: Vec<String> = rest.drain(..range.limit.max(1).min(rest.len())).collect();
        let more = beyond || !rest.is_empty();
        if let Some(after) = keys.last().filter(|_| !rest.is_empty()) {
            self.keep(Listing {
                of: of.to_owned(),
                prefix: range.prefix.to_owned(),
                after: after.clone(),
                rest,
                more: beyond,
                taken: Instant::now(),
            });
        }
        Ok(Page { keys, more })
    }

    /// What the page before left.
    fn take(&self, of: &str, range: &KeyRange<'_>) -> Option<Listing> {
        let after = range.after?;
        let mut listings = self.fresh();
        let found = listings.iter().position(|listing| {
            listing.of == of && listing.prefix == range.prefix && listing.after == after
        })?;
        listings.remove(found)
    }

    fn keep(&self, listing: Listing) {
        let mut listings = self.fresh();
        if listings.len() >= LISTINGS_MAX {
            listings.pop_front();
        }
        listings.push_back(listing);
    }

    fn fresh(&self) -> MutexGuard<'_, VecDeque<Listing>> {
        let mut listings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listings.retain(|listing| listing.taken.elapsed() < AGE_MAX);
        listings
    }
}
