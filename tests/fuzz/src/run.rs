//! The loop: mutate, run, keep what is new, report what is wrong.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use headgate_core::rng::Rng;

use crate::Target;
use crate::mutate::{below, mutate};

/// Longest time that one input may take; more is a finding.
const SLOW: Duration = Duration::from_secs(1);
/// Inputs that are kept and mutated.
const MAX_KEPT: usize = 4096;
/// Attempts to make a finding smaller.
const SHRINKS: u32 = 2000;

/// What one input did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing wrong; the fingerprint of what happened.
    Fine(u64),
    /// It panicked, with this message.
    Panicked(String),
    /// It took longer than a second.
    Slow(Duration),
}

/// What fuzzing one target came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Inputs that were run.
    pub inputs: u64,
    /// Fingerprints that were seen.
    pub fingerprints: usize,
    /// Inputs that showed something new, in the order in which they were found; the corpus is not among them.
    pub novel: Vec<Vec<u8>>,
    /// Inputs that are wrong, made small, each with what it does. The first of every message.
    pub findings: Vec<(Vec<u8>, Outcome)>,
    /// How long it took.
    pub took: Duration,
}

/// Runs one input.
pub fn once(target: &Target, input: &[u8]) -> Outcome {
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    match result {
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
            Outcome::Panicked(text.unwrap_or("a panic without a message").to_owned())
        }
        Ok(_) if began.elapsed() > SLOW => Outcome::Slow(began.elapsed()),
        Ok(fingerprint) => Outcome::Fine(fingerprint),
    }
}

/// Mutates `corpus` until `length` has passed.
pub fn fuzz(target: &Target, corpus: &[Vec<u8>], seed: u64, length: Duration) -> Summary {
    let began = Instant::now();
    let mut rng = Rng::new(seed);
    let mut kept = corpus.to_vec();
    let mut seen = BTreeSet::new();
    let mut messages = BTreeSet::new();
    let mut summary = Summary::default();
    for input in corpus {
        if let Outcome::Fine(fingerprint) = once(target, input) {
            seen.insert(fingerprint);
        }
    }
    while began.elapsed() < length {
        let (base, other) = (below(&mut rng, kept.len()), below(&mut rng, kept.len()));
        let empty = Vec::new();
        let input = mutate(&mut rng, kept.get(base).unwrap_or(&empty), kept.get(other).unwrap_or(&empty), target.words);
        summary.inputs += 1;
        match once(target, &input) {
            Outcome::Fine(fingerprint) => {
                if seen.insert(fingerprint) && kept.len() < MAX_KEPT {
                    kept.push(input.clone());
                    summary.novel.push(input);
                }
            }
            wrong => {
                if messages.insert(message(&wrong)) {
                    let small = shrink(&mut rng, target, input, &wrong);
                    summary.findings.push((small, wrong));
                }
            }
        }
    }
    summary.fingerprints = seen.len();
    summary.took = began.elapsed();
    summary
}

/// Takes pieces out as long as the same goes wrong.
fn shrink(rng: &mut Rng, target: &Target, mut input: Vec<u8>, wrong: &Outcome) -> Vec<u8> {
    for _ in 0..SHRINKS {
        let from = below(rng, input.len());
        let length = 1 + below(rng, (input.len() - from).min(64));
        let mut shorter = input.clone();
        shorter.drain(from..(from + length).min(input.len()));
        if message(&once(target, &shorter)) == message(wrong) {
            input = shorter;
        }
        if input.is_empty() {
            break;
        }
    }
    input
}

/// What tells one finding from another: the message without its numbers.
fn message(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Fine(_) => "fine".to_owned(),
        Outcome::Slow(_) => "slow".to_owned(),
        Outcome::Panicked(text) => text.chars().filter(|char| !char.is_ascii_digit()).take(120).collect(),
    }
}
