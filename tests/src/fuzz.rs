//! Decoders against input that nobody meant: what is in the corpus, and mutations of it.
//!
//! No instrumented build is needed, so every run of the tests has it: a target says in a word what came of
//! an input, and an input with which something new came out is mutated further. What happens follows from
//! the seed. `FUZZ_EXECUTIONS=10000000` runs longer, `FUZZ_SEED=7` from another seed.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Executions of a target in every run of the tests.
const EXECUTIONS: u64 = 20_000;

/// The longest input, in bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Inputs that are mutated further, beyond the corpus.
const POOL_MAX: usize = 2_000;

/// Longer than any input may take, however busy the machine is.
const HANGS: Duration = Duration::from_secs(20);

/// What a target may add to the memory of its process, in KiB.
const GROWTH_KIB_MAX: u64 = 256 << 10;

/// The longest text of an error, in bytes.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// What is put into inputs of every target.
const WORDS: [&str; 24] = [
    "\0",
    "\u{1b}[31m",
    "\r\n",
    "..",
    "/../",
    "%2e%2e%2f",
    "%00",
    "\u{202e}",
    "\u{fffd}",
    "-1",
    "0",
    "18446744073709551616",
    "1e999",
    "null",
    "true",
    "[[[[[[[[",
    "{{{{{{{{",
    "\"",
    "\\u0000",
    "*",
    ">",
    "@",
    ":",
    "://",
];

/// Runs `target` on the corpus `tests/corpus/<name>`, and on mutations of it into which `words` are mixed.
///
/// The target answers with a word or two for what came of an input, or with the text of the error; texts of
/// errors have to be short and printable.
///
/// # Errors
/// When the target panics, hangs, grows or says too much; names the input and the seed.
pub fn run(
    name: &str,
    words: &[&str],
    target: impl Fn(&[u8]) -> Result<String, String>,
) -> Result<()> {
    run_costly(name, 1, words, target)
}

/// As [`run`], for a target of which one execution counts for `cost`.
///
/// # Errors
/// As for [`run`].
pub fn run_costly(
    name: &str,
    cost: u64,
    words: &[&str],
    target: impl Fn(&[u8]) -> Result<String, String>,
) -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .with_context(|| format!("there is no corpus {}", corpus.display()))?
        .map(|file| Ok(file?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut pool = files.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    ensure!(!pool.is_empty(), "the corpus {} is empty", corpus.display());
    let seed = variable("FUZZ_SEED")?.unwrap_or(1);
    let executions = variable("FUZZ_EXECUTIONS")?.unwrap_or(EXECUTIONS) / cost.max(1);
    let words: Vec<_> = words
        .iter()
        .chain(&WORDS)
        .map(|word| word.as_bytes())
        .collect();
    let mut chance = Chance::new(seed);
    let mut outcomes = BTreeMap::<String, u64>::new();
    let before = peak_kib();
    let kept = pool.len();
    for execution in 0..executions {
        let index = usize::try_from(execution).unwrap_or(usize::MAX);
        let input = match pool.get(index).filter(|_| index < kept) {
            Some(file) => file.clone(),
            None => mutate(&mut chance, &pool, &words),
        };
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let took = began.elapsed();
        let wrong = |what: String| {
            format!(
                "{name}: {what}, in execution {execution} from FUZZ_SEED={seed}; put the input into tests/corpus/{name}: {}",
                input.escape_ascii()
            )
        };
        ensure!(took < HANGS, "{}", wrong(format!("took {took:?}")));
        let outcome = match outcome {
            Ok(Ok(word)) => word,
            Ok(Err(text)) => {
                ensure!(
                    text.len() <= ERROR_BYTES_MAX,
                    "{}",
                    wrong(format!("the error has {} bytes: {:.200}", text.len(), text))
                );
                let odd = text.chars().find(|char| char.is_control() && *char != '\n');
                ensure!(
                    odd.is_none(),
                    "{}",
                    wrong(format!("the error has {odd:?}: {text:?}"))
                );
                shape(&text)
            }
            Err(panic) => bail!("{}", wrong(format!("panicked: {}", said(&*panic)))),
        };
        let times = outcomes.entry(outcome).or_default();
        *times += 1;
        if *times == 1 && pool.len() < kept + POOL_MAX {
            pool.push(input);
        }
    }
    let grown = peak_kib().saturating_sub(before);
    ensure!(
        grown <= GROWTH_KIB_MAX,
        "{name}: the process grew by {grown} KiB (FUZZ_SEED={seed})"
    );
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!(
            "{name}: {executions} executions, {} outcomes, FUZZ_SEED={seed}\n",
            outcomes.len()
        ),
    );
    Ok(())
}

fn variable(name: &str) -> Result<Option<u64>> {
    let Some(value) = std::env::var_os(name) else {
        return Ok(None);
    };
    let number = value.to_str().and_then(|value| value.parse().ok());
    Ok(Some(
        number.with_context(|| format!("{name} is not a number"))?,
    ))
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}

/// An error without what depends on the input: letters of its first words.
fn shape(text: &str) -> String {
    let outside = text.split(['\'', '"']).step_by(2);
    let letters = outside
        .flat_map(str::chars)
        .filter(|char| char.is_ascii_alphabetic());
    letters.take(80).collect()
}

/// The most memory this process ever had, in KiB; 0 where the system does not tell.
pub fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// Numbers that look random and follow from a seed: SplitMix64.
pub struct Chance(u64);

impl Chance {
    /// Those of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.draw() % bound).unwrap_or_default()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// A part of `bytes`, seldom a long one.
    fn part<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.below(bytes.len() + 1);
        let rest = bytes.get(start..).unwrap_or_default();
        let most = if self.below(8) == 0 {
            rest.len()
        } else {
            rest.len().min(32)
        };
        rest.get(..self.below(most + 1)).unwrap_or_default()
    }
}

/// One input out of others.
fn mutate(chance: &mut Chance, pool: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = chance.pick(pool).cloned().unwrap_or_default();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        match chance.below(8) {
            0 => {
                let bit = 1 << chance.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let end = at + chance.part(input.get(at..).unwrap_or_default()).len();
                input.drain(at..end.min(input.len()));
            }
            2 => {
                let copy = chance.part(&input).to_vec();
                let copies = 1 + chance.below(4);
                input.splice(at..at, copy.repeat(copies));
            }
            3 => {
                let other = chance.pick(pool).map(Vec::as_slice).unwrap_or_default();
                let part = chance.part(other).to_vec();
                input.splice(at..at, part);
            }
            4 => {
                let byte = chance.below(256).to_le_bytes().first().copied();
                input.splice(at..at, byte);
            }
            5 => input.truncate(at),
            6 if chance.below(16) == 0 => {
                // Deep or long, as one that means harm would.
                let word = chance.pick(words).copied().unwrap_or_default();
                let times = chance.below(4_096);
                input.splice(at..at, word.repeat(times));
            }
            _ => {
                let word = chance.pick(words).copied().unwrap_or_default().to_vec();
                input.splice(at..at, word);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found of a decoder that is wrong in some way.
    fn found(target: impl Fn(&[u8]) -> Result<String, String>) -> String {
        run("subjects", &[], target).unwrap_err().to_string()
    }

    #[test]
    fn a_decoder_that_is_wrong_is_found() {
        let panics = found(|input| {
            assert!(!input.ends_with(b"*"), "scripted");
            Ok(String::new())
        });
        assert!(panics.contains("panicked: scripted"), "{panics}");
        let long = found(|input| Err("x".repeat(40 * input.len())));
        assert!(long.contains("the error has"), "{long}");
        let unescaped = found(|input| Err(String::from_utf8_lossy(input).into_owned()));
        assert!(unescaped.contains("the error has"), "{unescaped}");
        // Only what came out of something new leads there.
        let deep = found(|input| {
            let stars = input.iter().take_while(|byte| **byte == b'*').count();
            assert!(stars < 6, "six stars");
            Ok(stars.to_string())
        });
        assert!(deep.contains("six stars"), "{deep}");
    }
}
