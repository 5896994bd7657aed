//! What the samples say.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::request::Request;
use crate::variant::{ADMITTING, DECOMPOSED, EMPTY_FILTER, NO_FILTER};

/// Microseconds of CPU per request, by variant and in the order of the rounds.
pub(crate) type Samples = BTreeMap<String, Vec<f64>>;

/// What is written: the figures of the request that counts, and those of the others.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    first: Option<Figures>,
    others: Vec<Figures>,
}

impl Report {
    pub(crate) fn of(mut figures: Vec<Figures>) -> Self {
        let others = figures.split_off(figures.len().min(1));
        Self { first: figures.pop(), others }
    }
}

#[derive(Serialize)]
pub(crate) struct Figures {
    request: Request,
    rounds: u32,
    cpu_us_per_request: BTreeMap<String, Spread>,
    /// What Headgate adds when admitting, over what the empty filter adds: median over the rounds. Absent when one was not measured.
    added_vs_empty: Option<f64>,
    /// Where it comes from, in the order in which each adds to the one before. Empty when a step was not measured.
    decomposition: Vec<Step>,
    /// CPU of the Envoy process without requests, in milliseconds a second: what is done by the clock, which requests share. Empty without
    /// a decomposition.
    idle_ms_per_s: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// What one more thing to do adds.
#[derive(Serialize)]
struct Step {
    name: String,
    /// To the step before, in microseconds.
    step_us: f64,
    /// To Envoy without a filter, in microseconds.
    added_us: f64,
    /// That, over what the empty filter adds.
    vs_empty: f64,
}

impl Figures {
    pub(crate) fn of(request: Request, rounds: u32, samples: &Samples, idle: &Samples) -> Self {
        let spreads = samples.iter().filter_map(|(name, samples)| {
            let mut sorted = samples.clone();
            sorted.sort_by(f64::total_cmp);
            Some((name.clone(), Spread { median: median(samples)?, min: *sorted.first()?, max: *sorted.last()? }))
        });
        Self {
            request,
            rounds,
            cpu_us_per_request: spreads.collect(),
            added_vs_empty: vs_empty(samples, ADMITTING),
            decomposition: decomposition(samples).unwrap_or_default(),
            idle_ms_per_s: idle.iter().filter_map(|(name, samples)| Some((name.clone(), median(samples)?))).collect(),
        }
    }

    pub(crate) fn print(&self) {
        let base = self.cpu_us_per_request.get(NO_FILTER).map_or(0.0, |spread| spread.median);
        println!("\n{:?} request: CPU of the Envoy process, µs, {} rounds\n", self.request, self.rounds);
        println!("{:<22} {:>8} {:>8} {:>8} {:>8}", "", "median", "min", "max", "added");
        for (name, spread) in &self.cpu_us_per_request {
            println!("{name:<22} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", spread.median, spread.min, spread.max, spread.median - base);
        }
        if !self.decomposition.is_empty() {
            println!("\n{:<22} {:>8} {:>8} {:>8}", "", "step", "added", "× empty");
            for Step { name, step_us, added_us, vs_empty } in &self.decomposition {
                println!("{name:<22} {step_us:>8.2} {added_us:>8.2} {vs_empty:>8.2}");
            }
        }
        for (name, idle) in &self.idle_ms_per_s {
            println!("{name:<22} {idle:>8.2} ms a second without requests");
        }
        if let Some(ratio) = self.added_vs_empty {
            println!("\nHeadgate admitting adds {ratio:.2} times what the empty filter adds.");
        }
    }
}

/// What each of [`DECOMPOSED`] adds.
fn decomposition(samples: &Samples) -> Option<Vec<Step>> {
    let pairs = DECOMPOSED.windows(2).filter_map(|pair| if let [before, name] = *pair { Some((before, name)) } else { None });
    let steps = pairs.filter(|(_, name)| *name != EMPTY_FILTER).map(|(before, name)| {
        Some(Step {
            name: name.into(),
            step_us: added(samples, before, name)?,
            added_us: added(samples, NO_FILTER, name)?,
            vs_empty: vs_empty(samples, name)?,
        })
    });
    steps.collect()
}

/// What `name` adds to Envoy, over what the empty filter adds.
fn vs_empty(samples: &Samples, name: &str) -> Option<f64> {
    Some(added(samples, NO_FILTER, name)? / added(samples, NO_FILTER, EMPTY_FILTER)?)
}

/// Median over the rounds of what `name` takes more than `base`. It is taken within a round: neighbours in time see the same machine.
fn added(samples: &Samples, base: &str, name: &str) -> Option<f64> {
    let added: Vec<f64> = samples.get(name)?.iter().zip(samples.get(base)?).map(|(with, without)| with - without).collect();
    median(&added)
}

/// The middle sample, or the mean of the two in the middle.
fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: &[(&str, [f64; 3])]) -> Samples {
        of.iter().map(|(name, samples)| ((*name).to_owned(), samples.to_vec())).collect()
    }

    #[test]
    fn each_step_is_compared_with_its_neighbour_of_the_same_round() {
        // The second round is 5 µs slower for all.
        let samples = samples(&[
            (NO_FILTER, [10.0, 15.0, 10.0]),
            (EMPTY_FILTER, [14.0, 19.0, 14.0]),
            ("floor_context", [11.0, 16.0, 11.0]),
            ("floor_callbacks", [12.5, 17.5, 12.5]),
            ("floor_header_map", [14.0, 19.0, 14.0]),
            ("floor_clocks", [15.0, 20.0, 15.0]),
            (ADMITTING, [16.0, 21.0, 16.0]),
        ]);
        let figures = Figures::of(Request::Chat, 3, &samples, &Samples::new());
        assert_eq!(figures.added_vs_empty, Some(1.5));
        let steps: Vec<_> = figures.decomposition.iter().map(|step| (step.step_us, step.added_us, step.vs_empty)).collect();
        assert_eq!(steps, [(1.0, 1.0, 0.25), (1.5, 2.5, 0.625), (1.5, 4.0, 1.0), (1.0, 5.0, 1.25), (1.0, 6.0, 1.5)]);
    }

    #[test]
    fn without_the_steps_there_is_no_decomposition() {
        let samples = samples(&[(NO_FILTER, [10.0; 3]), (EMPTY_FILTER, [14.0; 3]), (ADMITTING, [16.0; 3])]);
        let figures = Figures::of(Request::Chat, 3, &samples, &Samples::new());
        assert!(figures.decomposition.is_empty());
        assert_eq!(figures.added_vs_empty, Some(1.5));
    }
}
