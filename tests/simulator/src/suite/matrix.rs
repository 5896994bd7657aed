//! Scenarios × algorithms × seeds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use headgate_protos::v1;
use nix::time::{ClockId, clock_gettime};

use super::algorithm::{Algorithm, PlayError};
use crate::measure::{Figures, Recorder, Run};
use crate::scenarios::Scenario;
use crate::world::{Totals, World};

/// A recorded run, and what it took.
#[derive(Debug)]
pub struct Played {
    /// What was recorded.
    pub run: Run,
    /// Counts of the world.
    pub totals: Totals,
    /// Processor time that the simulation took.
    pub took: Duration,
}

/// Plays `scenario` under `algorithm` with `seed`.
///
/// # Errors
/// When the policy is not valid or an invariant is broken.
pub fn play(scenario: &Scenario, algorithm: Algorithm, policy: Option<&v1::Policy>, seed: u64) -> Result<Played, PlayError> {
    let mut controller = algorithm.controller(scenario, policy)?;
    let mut recorder = Recorder::new(scenario);
    let began = cpu_time();
    let totals = World::new(&scenario.setup, seed).run(controller.as_mut(), &mut recorder)?;
    Ok(Played { took: cpu_time().saturating_sub(began), totals, run: recorder.into_run() })
}

/// Time that this thread has had a core for: what a run costs does not depend on who else wants the core.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What to play.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Scenarios, in the order of the report.
    pub scenarios: Vec<Scenario>,
    /// Algorithms. The oracle and no control take part in any case, as the measure of the others.
    pub algorithms: Vec<Algorithm>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Headgate's policy; `None`: the default one of each scenario.
    pub policy: Option<v1::Policy>,
    /// Threads.
    pub threads: usize,
}

/// One cell of the matrix.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures.
    pub figures: Figures,
    /// Work completed per second over that of no control whose clients never give up: the engines at their best.
    pub throughput_vs_none: f64,
    /// Goodput over that of the oracle.
    pub goodput_vs_oracle: f64,
    /// Time that the simulation took.
    pub took: Duration,
}

/// How far a suite is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Worlds done: a scenario with a seed, under all algorithms.
    pub done: usize,
    /// Worlds in all.
    pub of: usize,
    /// The one that was just done.
    pub last: String,
}

type Cells = BTreeMap<Algorithm, Outcome>;

// === impl Plan ===

impl Plan {
    /// Plays everything; `progress` is told after each world. The result is by scenario, algorithm and seed, in the plan's order,
    /// whatever order the threads had.
    ///
    /// # Errors
    /// The first run that gave no result.
    pub fn play(&self, progress: &mut dyn FnMut(&Progress)) -> Result<Vec<Vec<Cells>>, PlayError> {
        let worlds: Vec<(usize, u64)> =
            (0..self.scenarios.len()).flat_map(|scenario| self.seeds.iter().map(move |seed| (scenario, *seed))).collect();
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        let mut results: Vec<Option<Cells>> = vec![None; worlds.len()];
        thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, worlds.len().max(1)) {
                let (sender, next, worlds) = (sender.clone(), &next, &worlds);
                scope.spawn(move || {
                    while let Some((scenario, seed)) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let at = scenario * self.seeds.len() + self.seeds.iter().position(|other| other == seed).unwrap_or_default();
                        let cells = compare(&self.scenarios[*scenario], &self.algorithms, self.policy.as_ref(), *seed);
                        if sender.send((at, cells)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (done, (at, cells)) in receiver.iter().enumerate() {
                let (scenario, seed) = worlds[at];
                let last = format!("{} seed {seed}", self.scenarios[scenario].name());
                results[at] = Some(cells?);
                progress(&Progress { done: done + 1, of: worlds.len(), last });
            }
            Ok::<(), PlayError>(())
        })?;
        let mut results = results.into_iter().flatten();
        Ok(self.scenarios.iter().map(|_| results.by_ref().take(self.seeds.len()).collect()).collect())
    }
}

/// Plays one world under each of `algorithms`, and the oracle and no control besides.
///
/// # Errors
/// The first run that gave no result.
pub fn compare(scenario: &Scenario, algorithms: &[Algorithm], policy: Option<&v1::Policy>, seed: u64) -> Result<Cells, PlayError> {
    let measure = Measure::of(scenario, seed)?;
    let mut cells = Cells::new();
    for algorithm in algorithms.iter().chain([&Algorithm::NoControl]) {
        if *algorithm != Algorithm::Oracle && !cells.contains_key(algorithm) {
            cells.insert(*algorithm, measure.judge(scenario, &play(scenario, *algorithm, policy, seed)?));
        }
    }
    cells.insert(Algorithm::Oracle, measure.judge(scenario, &measure.optimum));
    Ok(cells)
}

/// Plays one world under one algorithm, for a report of its own: what was recorded, and how it compares.
///
/// # Errors
/// When a run gave no result.
pub fn compare_one(scenario: &Scenario, algorithm: Algorithm, policy: Option<&v1::Policy>, seed: u64) -> Result<(Run, Outcome), PlayError> {
    let measure = Measure::of(scenario, seed)?;
    let played = play(scenario, algorithm, policy, seed)?;
    let outcome = measure.judge(scenario, &played);
    Ok((played.run, outcome))
}

/// What runs of one world are measured by.
struct Measure {
    optimum: Played,
    /// Work that the engines complete when nobody gives up.
    best_work: f64,
}

// === impl Measure ===

impl Measure {
    fn of(scenario: &Scenario, seed: u64) -> Result<Self, PlayError> {
        let optimum = play(scenario, Algorithm::Oracle, None, seed)?;
        let best_work = play(&scenario.with_endless_patience(), Algorithm::NoControl, None, seed)?.run.completed_work;
        Ok(Self { optimum, best_work })
    }

    fn judge(&self, scenario: &Scenario, played: &Played) -> Outcome {
        Outcome {
            figures: Figures::of(scenario, &played.run, &self.optimum.run),
            throughput_vs_none: played.run.completed_work / self.best_work.max(1.0),
            goodput_vs_oracle: played.run.good_work / self.optimum.run.good_work.max(1.0),
            took: played.took,
        }
    }
}
