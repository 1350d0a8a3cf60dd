//! Rounds, medians, spreads, the table and the JSON.

use std::fmt;

use anyhow::Result;
use serde_json::{Value, json};

/// A row whose ratio differs by more than this from round to round, in percent of the median, says
/// nothing.
const SPREAD_MAX: f64 = 25.0;

/// One thing measured on both sides, once a round.
pub(crate) struct Figure {
    /// The row it belongs to.
    pub(crate) row: &'static str,
    /// What is counted, with its unit.
    pub(crate) what: &'static str,
    /// What the peer is.
    pub(crate) peer_name: &'static str,
    /// The figures of `wash`, one a round.
    pub(crate) wash: Vec<f64>,
    /// Those of the peer, from the same rounds.
    pub(crate) peer: Vec<f64>,
}

/// Median and spread of some rounds.
#[derive(Clone, Copy)]
struct Summary {
    median: f64,
    /// From the least to the most, in percent of the median.
    spread: f64,
}

impl Summary {
    fn of(rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(sorted.len() / 2));
        let spread = (at(last) - at(0)) / median * 100.0;
        Self { median, spread }
    }

    fn json(self, rounds: &[f64]) -> Value {
        json!({ "median": self.median, "spread_percent": self.spread, "rounds": rounds })
    }
}

impl Figure {
    /// What `wash` has for one of the peer's, round by round: what slows a whole round cancels out.
    fn ratios(&self) -> Vec<f64> {
        let pairs = self.wash.iter().zip(&self.peer);
        pairs.map(|(wash, peer)| wash / peer).collect()
    }

    /// Why the row says nothing, if it does not.
    fn doubt(&self) -> Option<String> {
        let spread = Summary::of(&self.ratios()).spread;
        // A rate of nothing gives no number at all, which is not below any limit either.
        let sound = spread <= SPREAD_MAX;
        (!sound).then(|| {
            format!("says nothing: its ratio differs by {spread:.0} %, over {SPREAD_MAX:.0} %")
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.row, self.what)?;
        for (name, rounds) in [
            ("wash", &self.wash),
            (self.peer_name, &self.peer),
            ("ratio", &self.ratios()),
        ] {
            let Summary { median, spread } = Summary::of(rounds);
            let digits = if median < 1.0 {
                4
            } else if median < 1_000.0 {
                2
            } else {
                0
            };
            write!(f, "  {name:<28}{median:>12.digits$}")?;
            writeln!(f, "   spread {spread:>3.0} %")?;
        }
        match self.doubt() {
            Some(doubt) => writeln!(f, "  {doubt}"),
            None => Ok(()),
        }
    }
}

/// Every figure, with all its rounds.
pub(crate) fn json(rounds: usize, figures: &[Figure]) -> Value {
    let figures = figures.iter().map(|figure| {
        let ratios = figure.ratios();
        json!({
            "row": figure.row,
            "what": figure.what,
            "peer_name": figure.peer_name,
            "wash": Summary::of(&figure.wash).json(&figure.wash),
            "peer": Summary::of(&figure.peer).json(&figure.peer),
            "ratio": Summary::of(&ratios).json(&ratios),
            "doubt": figure.doubt(),
        })
    });
    json!({
        "optimised": !cfg!(debug_assertions),
        "rounds": rounds,
        "figures": figures.collect::<Vec<_>>(),
    })
}

/// Measures both sides `rounds` times, in turn, each going first in every other round; gives what
/// `wash` and the peer had.
pub(crate) async fn interleave<T>(
    rounds: usize,
    wash: impl AsyncFn(usize) -> Result<T>,
    peer: impl AsyncFn(usize) -> Result<T>,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            ours.push(wash(round).await?);
            theirs.push(peer(round).await?);
        } else {
            theirs.push(peer(round).await?);
            ours.push(wash(round).await?);
        }
    }
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(wash: [f64; 3], peer: [f64; 3]) -> Figure {
        Figure {
            row: "row",
            what: "things per second",
            peer_name: "peer",
            wash: wash.to_vec(),
            peer: peer.to_vec(),
        }
    }

    #[test]
    fn a_slow_round_of_both_sides_leaves_the_ratio() {
        let figure = figure([100.0, 50.0, 110.0], [200.0, 100.0, 220.0]);
        assert_eq!(figure.ratios(), [0.5, 0.5, 0.5]);
        assert_eq!(figure.doubt(), None);
        let Summary { median, spread } = Summary::of(&figure.wash);
        assert_eq!((median, spread), (100.0, 60.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let Summary { median, spread } = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((median, spread), (2.5, 120.0));
    }

    #[test]
    fn a_row_that_says_nothing_says_so() {
        let wide = figure([100.0, 130.0, 100.0], [100.0, 100.0, 100.0]);
        assert!(wide.to_string().contains("says nothing"), "{wide}");
        let nothing = figure([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]);
        assert!(nothing.doubt().is_some());
        let json = json(3, &[wide]);
        assert!(json["figures"][0]["doubt"].is_string(), "{json}");
    }
}
