//! Rounds, medians, spreads, the tables and the JSON.

use std::fmt;

use anyhow::Result;
use serde_json::{Value, json};

/// A ratio that differs by more than this from round to round, in percent of its median, says
/// nothing.
const SPREAD_MAX: f64 = 25.0;

/// One thing counted on several sides: once a round, or once in all.
pub(crate) struct Table {
    /// The row it belongs to.
    pub(crate) row: &'static str,
    /// What is counted, with its unit.
    pub(crate) what: String,
    /// Who was measured, in the order of the table.
    pub(crate) sides: Vec<Side>,
    /// The sides that others are compared with.
    pub(crate) peers: Vec<&'static str>,
    /// What was hoped for.
    pub(crate) targets: Vec<Target>,
}

/// Somebody who was measured.
pub(crate) struct Side {
    pub(crate) name: String,
    /// A figure for each round.
    pub(crate) rounds: Vec<f64>,
}

/// A bound on one side's figure, or on its ratio to a peer. It is printed, never asserted.
pub(crate) struct Target {
    pub(crate) side: &'static str,
    /// The peer of the ratio; without one the figure itself is meant.
    pub(crate) over: Option<&'static str>,
    pub(crate) bound: Bound,
}

/// Which way is better.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
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
        let spread = match at(last) - at(0) {
            0.0 => 0.0,
            width => width / median * 100.0,
        };
        Self { median, spread }
    }

    /// Whether it says anything. A rate of nothing gives no number, which is below no limit.
    fn sound(self) -> bool {
        self.spread <= SPREAD_MAX && self.median.is_finite()
    }

    fn json(self, rounds: &[f64]) -> Value {
        json!({ "median": self.median, "spread_percent": self.spread, "rounds": rounds })
    }
}

impl Table {
    /// A table without figures.
    pub(crate) fn new(row: &'static str, what: impl Into<String>) -> Self {
        Self {
            row,
            what: what.into(),
            sides: Vec::new(),
            peers: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Adds a side, with a figure for each round.
    #[must_use]
    pub(crate) fn side(mut self, name: impl Into<String>, rounds: Vec<f64>) -> Self {
        let name = name.into();
        self.sides.push(Side { name, rounds });
        self
    }

    /// Adds a side that was measured once.
    #[must_use]
    pub(crate) fn once(self, name: impl Into<String>, figure: f64) -> Self {
        self.side(name, vec![figure])
    }

    /// Compares the other sides with `name`, if it was measured.
    #[must_use]
    pub(crate) fn peer(mut self, name: &'static str) -> Self {
        self.peers.push(name);
        self
    }

    /// Hopes for a figure.
    #[must_use]
    pub(crate) fn hope(mut self, side: &'static str, bound: Bound) -> Self {
        let over = None;
        self.targets.push(Target { side, over, bound });
        self
    }

    /// Hopes for a ratio.
    #[must_use]
    pub(crate) fn hope_over(
        mut self,
        side: &'static str,
        peer: &'static str,
        bound: Bound,
    ) -> Self {
        let over = Some(peer);
        self.targets.push(Target { side, over, bound });
        self
    }

    fn find(&self, name: &str) -> Option<&Side> {
        self.sides.iter().find(|side| side.name == name)
    }

    /// What `side` has for one of the peer's, round by round: what slows a whole round cancels out.
    fn ratios(&self, side: &Side, peer: &str) -> Option<Vec<f64>> {
        let peer = self.find(peer)?;
        let pairs = side.rounds.iter().zip(&peer.rounds);
        Some(pairs.map(|(side, peer)| side / peer).collect())
    }

    /// The targets of sides and peers that were measured, with what came of each.
    fn outcomes(&self) -> Vec<(&Target, Summary, &'static str)> {
        let outcome = |target: &Target| {
            let side = self.find(target.side)?;
            let rounds = match target.over {
                Some(peer) => self.ratios(side, peer)?,
                None => side.rounds.clone(),
            };
            let summary = Summary::of(&rounds);
            let reached = match target.bound {
                Bound::AtLeast(least) => summary.median >= least,
                Bound::AtMost(most) => summary.median <= most,
            };
            let verdict = match (summary.sound(), reached) {
                (false, _) => "too noisy to tell",
                (true, true) => "reached",
                (true, false) => "not reached",
            };
            Some((summary, verdict))
        };
        let targets = self.targets.iter();
        targets
            .filter_map(|target| {
                outcome(target).map(|(summary, verdict)| (target, summary, verdict))
            })
            .collect()
    }

    /// The comparisons that say nothing.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for (side, peer) in self.pairs() {
            let spread = Summary::of(&self.ratios(side, peer).unwrap_or_default()).spread;
            let sound = spread <= SPREAD_MAX;
            if !sound {
                doubts.push(format!(
                    "\"{}\" over \"{peer}\" says nothing: the ratio differs by {spread:.0} %, over \
                     {SPREAD_MAX:.0} %",
                    side.name
                ));
            }
        }
        doubts
    }

    /// Each side with each peer it is compared with.
    fn pairs(&self) -> impl Iterator<Item = (&Side, &'static str)> {
        let compared = |side: &Side, peer: &str| side.name != peer && self.find(peer).is_some();
        self.sides.iter().flat_map(move |side| {
            let peers = self.peers.iter().copied();
            peers
                .filter(move |peer| compared(side, peer))
                .map(move |peer| (side, peer))
        })
    }

    fn json(&self) -> Value {
        let sides = self.sides.iter().map(|side| {
            let mut value = Summary::of(&side.rounds).json(&side.rounds);
            let ratios = self.peers.iter().filter(|peer| side.name != **peer);
            let ratios = ratios.filter_map(|peer| {
                let ratios = self.ratios(side, peer)?;
                Some(((*peer).to_owned(), Summary::of(&ratios).json(&ratios)))
            });
            if let Some(value) = value.as_object_mut() {
                value.insert("name".to_owned(), side.name.clone().into());
                value.insert("ratios".to_owned(), Value::Object(ratios.collect()));
            }
            value
        });
        let targets = self
            .outcomes()
            .into_iter()
            .map(|(target, summary, verdict)| {
                json!({
                    "side": target.side,
                    "over": target.over,
                    "target": target.bound.to_string(),
                    "median": summary.median,
                    "verdict": verdict,
                })
            });
        json!({
            "row": self.row,
            "what": self.what,
            "sides": sides.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "doubts": self.doubts(),
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

/// A figure with about four digits that matter.
struct Shown(f64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0.abs() {
            1_000.0.. => 0,
            100.0.. => 1,
            1.0.. => 2,
            _ => 4,
        };
        f.pad(&format!("{:.digits$}", self.0))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.row, self.what)?;
        let longest = self.sides.iter().map(|side| side.name.chars().count());
        let width = longest.max().unwrap_or_default().max(20);
        for side in &self.sides {
            let Summary { median, spread } = Summary::of(&side.rounds);
            write!(f, "  {:<width$}{:>11}", side.name, Shown(median))?;
            if side.rounds.len() > 1 {
                write!(f, "  spread {spread:>3.0} %")?;
            }
            for (_, peer) in self.pairs().filter(|(other, _)| std::ptr::eq(*other, side)) {
                let ratio = Summary::of(&self.ratios(side, peer).unwrap_or_default());
                write!(f, "   {:>7} × {peer}", Shown(ratio.median))?;
                if side.rounds.len() > 1 {
                    write!(f, " ({:.0} %)", ratio.spread)?;
                }
            }
            writeln!(f)?;
        }
        for (target, summary, verdict) in self.outcomes() {
            let over = target.over.map(|peer| format!(" × {peer}"));
            writeln!(
                f,
                "  target: {} {}{}: {}, {verdict}",
                target.side,
                target.bound,
                over.unwrap_or_default(),
                Shown(summary.median),
            )?;
        }
        for doubt in self.doubts() {
            writeln!(f, "  {doubt}")?;
        }
        Ok(())
    }
}

/// What was measured of one row: tables, and sentences about what was left out or seen.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) tables: Vec<Table>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// Adds a table.
    pub(crate) fn push(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds a sentence.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// What `sides` had, as a table of rates and one of CPU times, of those whose time was taken.
pub(crate) fn rates_and_cpu<S>(
    row: &'static str,
    [rates, cpu]: [String; 2],
    sides: &[(&'static str, S)],
    figures: Vec<Vec<(f64, Option<f64>)>>,
) -> (Table, Table) {
    let tables = (Table::new(row, rates), Table::new(row, cpu));
    let sides = sides.iter().zip(figures);
    sides.fold(tables, |(rates, cpu), ((name, _), rounds)| {
        let (each, times): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        let times: Vec<f64> = times.into_iter().flatten().collect();
        let cpu = match times.is_empty() {
            true => cpu,
            false => cpu.side(*name, times),
        };
        (rates.side(*name, each), cpu)
    })
}

/// Every figure, with all its rounds.
pub(crate) fn json(rounds: usize, rows: &[(String, Row)]) -> Value {
    let tables = rows.iter().flat_map(|(_, row)| &row.tables);
    let notes = rows.iter().flat_map(|(name, row)| {
        let notes = row.notes.iter();
        notes.map(move |note| json!({ "row": name, "note": note }))
    });
    json!({
        "optimised": !cfg!(debug_assertions),
        "rounds": rounds,
        "tables": tables.map(Table::json).collect::<Vec<_>>(),
        "notes": notes.collect::<Vec<_>>(),
    })
}

/// Measures each of `sides` once in each of `rounds` rounds, the order turned by one from round to
/// round; gives for each side what it had.
///
/// # Errors
/// Those of `measure`.
pub(crate) async fn interleave<S, T>(
    rounds: usize,
    sides: &[S],
    measure: impl AsyncFn(usize, &S) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut had: Vec<Vec<T>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let places = (0..sides.len()).cycle();
        for place in places.skip(round % sides.len().max(1)).take(sides.len()) {
            if let (Some(side), Some(had)) = (sides.get(place), had.get_mut(place)) {
                had.push(measure(round, side).await?);
            }
        }
    }
    Ok(had)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ours: [f64; 3], peer: [f64; 3]) -> Table {
        Table::new("row", "things per second")
            .side("ours", ours.to_vec())
            .side("peer", peer.to_vec())
            .peer("peer")
    }

    #[test]
    fn a_slow_round_of_both_sides_leaves_the_ratio() {
        let table = table([100.0, 50.0, 110.0], [200.0, 100.0, 220.0]);
        let ours = table.find("ours").unwrap();
        assert_eq!(table.ratios(ours, "peer").unwrap(), [0.5, 0.5, 0.5]);
        assert_eq!(table.doubts(), Vec::<String>::new());
        let Summary { median, spread } = Summary::of(&ours.rounds);
        assert_eq!((median, spread), (100.0, 60.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let Summary { median, spread } = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((median, spread), (2.5, 120.0));
    }

    #[test]
    fn a_row_that_says_nothing_says_so() {
        let wide = table([100.0, 130.0, 100.0], [100.0, 100.0, 100.0]);
        assert!(wide.to_string().contains("says nothing"), "{wide}");
        let nothing = table([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]);
        assert_eq!(nothing.doubts().len(), 1);
        let rows = [(
            "row".to_owned(),
            Row {
                tables: vec![wide],
                notes: Vec::new(),
            },
        )];
        let json = json(3, &rows);
        assert!(json["tables"][0]["doubts"][0].is_string(), "{json}");
    }

    #[test]
    fn a_target_is_reached_or_not_or_cannot_be_told() {
        let verdict = |table: Table| {
            let table = table.hope_over("ours", "peer", Bound::AtLeast(2.0));
            table.outcomes()[0].2
        };
        assert_eq!(verdict(table([2.0; 3], [1.0; 3])), "reached");
        assert_eq!(verdict(table([1.9; 3], [1.0; 3])), "not reached");
        let noisy = verdict(table([1.0, 2.0, 3.0], [1.0; 3]));
        assert_eq!(noisy, "too noisy to tell");
        let absent = table([1.0; 3], [1.0; 3]).hope_over("ours", "nobody", Bound::AtMost(1.0));
        assert!(absent.outcomes().is_empty());
    }

    #[test]
    fn every_side_has_every_round_and_the_order_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let order = std::cell::RefCell::new(Vec::new());
        let had =
            runtime
                .unwrap()
                .block_on(interleave(3, &['a', 'b', 'c'], async |round, side| {
                    order.borrow_mut().push(*side);
                    Ok((round, *side))
                }));
        assert_eq!(String::from_iter(order.into_inner()), "abcbcacab");
        let had = had.unwrap();
        assert_eq!(had[1], [(0, 'b'), (1, 'b'), (2, 'b')]);
    }
}
