//! The results of a suite as they are written to JSON: means over seeds, their confidence, and how Headgate stands against each other.

use std::collections::BTreeMap;

use serde::Serialize;

use super::algorithm::{Algorithm, PlayError};
use super::matrix::{Outcome, Plan, Progress};
use crate::measure::{Estimate, Figures, Paired, Standing};
use crate::scenarios::Scenario;

/// Part of the top class's objectives above which more is of no account: 99.9 %.
const SLO_ENOUGH: f64 = 0.999;

/// A suite's results.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteResults {
    /// By scenario.
    pub scenarios: Vec<ScenarioResults>,
    /// Attempts of clients that were simulated in a second on one core, with Headgate's production code in every decision.
    pub sim_requests_per_s_per_core: f64,
    /// The same in each scenario. What a second of a small fleet costs beside its requests (ticks, reports, control steps) weighs most there.
    pub sim_requests_per_s_per_core_by_scenario: BTreeMap<String, f64>,
    /// The same with each algorithm, over all scenarios.
    pub sim_requests_per_s_per_core_by_controller: BTreeMap<&'static str, f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
}

/// A scenario's results.
#[derive(Clone, Debug, Serialize)]
pub struct ScenarioResults {
    /// Its name.
    pub name: String,
    /// Offered work over capacity at its height.
    pub load: f64,
    /// What it shows.
    pub summary: String,
    /// Names of its classes, the most important first.
    pub classes: Vec<String>,
    /// By algorithm.
    pub controllers: BTreeMap<&'static str, ControllerResults>,
    /// How Headgate stands against each baseline, and on which it is not ahead.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headgate_against: BTreeMap<&'static str, Against>,
    /// Baselines that Headgate is not ahead of here.
    pub headgate_not_ahead_of: Vec<&'static str>,
}

/// Means over the seeds; a figure that a run does not have is left out of the mean, and `None` when no run has it.
#[derive(Clone, Debug, Serialize)]
pub struct ControllerResults {
    /// Goodput over that of the clairvoyant scheduler.
    pub goodput_vs_oracle: f64,
    /// Part of the top class that met its objectives.
    pub top_class_slo: f64,
    /// Work completed over that of no control at its best, whose clients never give up.
    pub throughput_vs_none: f64,
    /// Jain's index over tenants.
    pub jain: Option<f64>,
    /// Settling after the step, in seconds.
    pub settle_s: Option<f64>,
    /// Overshoot after the step, as a part.
    pub overshoot: Option<f64>,
    /// Recovery after the overload, in seconds.
    pub recovery_s: Option<f64>,
    /// Least KV use while requests waited, as a part of its target or of the clairvoyant scheduler's use.
    pub min_kv_use_while_queued: Option<f64>,
    /// Offered load after the overload over that before it.
    pub load_after_overload: Option<f64>,
    /// Longest `Retry-After`, in seconds.
    pub longest_retry_after_s: f64,
    /// Part of the requests that met their objectives, by class.
    pub slo_by_class: Vec<f64>,
    /// 99th percentile of the time to first token by class, in milliseconds.
    pub ttft_p99_ms_by_class: Vec<Option<f64>>,
    /// Work tokens per second within objectives.
    pub goodput: f64,
    /// 95 % intervals of the figures above, by name.
    pub confidence: BTreeMap<&'static str, Estimate>,
}

/// How Headgate stands against one baseline, on the same seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// `ahead` or `not ahead`.
    pub verdict: &'static str,
    /// Difference of `goodput_vs_oracle`.
    pub goodput: Paired,
    /// Difference of `top_class_slo`.
    pub top_class_slo: Paired,
}

// === impl SuiteResults ===

impl SuiteResults {
    /// Plays `plan` and sums it up.
    ///
    /// # Errors
    /// The first run that gave no result.
    pub fn of(plan: &Plan, progress: &mut dyn FnMut(&Progress)) -> Result<Self, PlayError> {
        let played = plan.play(progress)?;
        let speed_of = |algorithm: Algorithm| requests_per_s(played.iter().flatten().filter_map(|cells| cells.get(&algorithm)));
        let in_scenario = |(scenario, cells): (&Scenario, &Vec<BTreeMap<Algorithm, Outcome>>)| {
            let speed = requests_per_s(cells.iter().filter_map(|cells| cells.get(&Algorithm::Headgate)))?;
            Some((scenario.name().to_owned(), speed))
        };
        Ok(Self {
            scenarios: plan.scenarios.iter().zip(&played).map(|(scenario, cells)| ScenarioResults::of(scenario, cells)).collect(),
            sim_requests_per_s_per_core: speed_of(Algorithm::Headgate).unwrap_or(0.0),
            sim_requests_per_s_per_core_by_scenario: plan.scenarios.iter().zip(&played).filter_map(in_scenario).collect(),
            sim_requests_per_s_per_core_by_controller: Algorithm::ALL
                .iter()
                .filter_map(|algorithm| Some((algorithm.name(), speed_of(*algorithm)?)))
                .collect(),
            seeds: plan.seeds.clone(),
        })
    }
}

/// Attempts over the processor time of these runs together; `None` of no run.
fn requests_per_s<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Option<f64> {
    let sums = |(attempts, seconds): (f64, f64), outcome: &Outcome| {
        (attempts + outcome.figures.attempts as f64, seconds + outcome.took.as_secs_f64())
    };
    let (attempts, seconds) = outcomes.fold((0.0, 0.0), sums);
    (attempts > 0.0).then(|| attempts / seconds.max(1e-9))
}

// === impl ScenarioResults ===

impl ScenarioResults {
    /// Sums up the cells of one scenario, one map a seed.
    pub fn of(scenario: &Scenario, cells: &[BTreeMap<Algorithm, Outcome>]) -> Self {
        let mut by_algorithm: BTreeMap<Algorithm, Vec<&Outcome>> = BTreeMap::new();
        for (algorithm, outcome) in cells.iter().flatten() {
            by_algorithm.entry(*algorithm).or_default().push(outcome);
        }
        let ours = by_algorithm.get(&Algorithm::Headgate);
        let headgate_against: BTreeMap<&'static str, Against> = by_algorithm
            .iter()
            .filter(|(algorithm, _)| algorithm.is_baseline())
            .filter_map(|(algorithm, theirs)| Some((algorithm.name(), Against::of(ours?, theirs)?)))
            .collect();
        Self {
            name: scenario.name().to_owned(),
            load: scenario.judging.load,
            summary: scenario.summary.clone(),
            classes: scenario.setup.classes.iter().map(|class| class.name.clone()).collect(),
            controllers: by_algorithm.iter().map(|(algorithm, outcomes)| (algorithm.name(), ControllerResults::of(outcomes))).collect(),
            headgate_not_ahead_of: headgate_against.iter().filter(|(_, against)| !against.is_ahead()).map(|(name, _)| *name).collect(),
            headgate_against,
        }
    }
}

// === impl Against ===

impl Against {
    /// Ahead: more goodput, and a top class that is better served or as well served as anyone needs.
    fn of(ours: &[&Outcome], theirs: &[&Outcome]) -> Option<Self> {
        let goodput = Paired::of(&column(ours, |outcome| outcome.goodput_vs_oracle), &column(theirs, |outcome| outcome.goodput_vs_oracle))?;
        let slo = |outcomes: &[&Outcome]| column(outcomes, |outcome| outcome.figures.top_class_slo);
        let top_class_slo = Paired::of(&slo(ours), &slo(theirs))?;
        let is_slo_enough = slo(ours).iter().sum::<f64>() >= SLO_ENOUGH * ours.len() as f64;
        let is_slo_ahead = match top_class_slo.standing {
            Standing::Ahead => true,
            Standing::Level => is_slo_enough,
            Standing::Behind => false,
        };
        let is_ahead = goodput.standing == Standing::Ahead && is_slo_ahead;
        Some(Self { verdict: if is_ahead { "ahead" } else { "not ahead" }, goodput, top_class_slo })
    }

    /// Whether Headgate is ahead.
    pub fn is_ahead(&self) -> bool {
        self.verdict == "ahead"
    }
}

fn column(outcomes: &[&Outcome], value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
    outcomes.iter().map(|outcome| value(outcome)).collect()
}

// === impl ControllerResults ===

/// A figure of a run that it may not have.
type Optional = (&'static str, fn(&Figures) -> Option<f64>);

const OPTIONAL: [Optional; 6] = [
    ("jain", |figures| figures.jain),
    ("settle_s", |figures| figures.settle_s),
    ("overshoot", |figures| figures.overshoot),
    ("recovery_s", |figures| figures.recovery_s),
    ("min_kv_use_while_queued", |figures| figures.min_kv_use_while_queued),
    ("load_after_overload", |figures| figures.load_after_overload),
];

impl ControllerResults {
    /// Sums up the runs of one algorithm, one a seed.
    pub fn of(outcomes: &[&Outcome]) -> Self {
        let mut confidence: BTreeMap<&'static str, Estimate> = BTreeMap::new();
        confidence.extend(Estimate::of(&column(outcomes, |outcome| outcome.goodput_vs_oracle)).map(|of| ("goodput_vs_oracle", of)));
        confidence.extend(Estimate::of(&column(outcomes, |outcome| outcome.figures.top_class_slo)).map(|of| ("top_class_slo", of)));
        confidence.extend(Estimate::of(&column(outcomes, |outcome| outcome.throughput_vs_none)).map(|of| ("throughput_vs_none", of)));
        confidence.extend(Estimate::of(&column(outcomes, |outcome| outcome.figures.goodput)).map(|of| ("goodput", of)));
        for (name, of) in OPTIONAL {
            let values: Vec<f64> = outcomes.iter().filter_map(|outcome| of(&outcome.figures)).collect();
            confidence.extend(Estimate::of(&values).map(|estimate| (name, estimate)));
        }
        let mean = |name: &str| confidence.get(name).map(|estimate| estimate.mean);
        let classes = outcomes.first().map_or(0, |outcome| outcome.figures.classes.len());
        let of_class = |class: usize| outcomes.iter().map(move |outcome| &outcome.figures.classes[class]);
        let tail = |class: usize| {
            let values: Vec<f64> = of_class(class).filter_map(|figures| figures.ttft_p99_ms).collect();
            Estimate::of(&values).map(|estimate| estimate.mean)
        };
        Self {
            goodput_vs_oracle: mean("goodput_vs_oracle").unwrap_or(0.0),
            top_class_slo: mean("top_class_slo").unwrap_or(0.0),
            throughput_vs_none: mean("throughput_vs_none").unwrap_or(0.0),
            jain: mean("jain"),
            settle_s: mean("settle_s"),
            overshoot: mean("overshoot"),
            recovery_s: mean("recovery_s"),
            min_kv_use_while_queued: mean("min_kv_use_while_queued"),
            load_after_overload: mean("load_after_overload"),
            longest_retry_after_s: outcomes.iter().map(|outcome| outcome.figures.longest_retry_after_s).fold(0.0, f64::max),
            slo_by_class: (0..classes).map(|class| of_class(class).map(|of| of.slo).sum::<f64>() / outcomes.len() as f64).collect(),
            ttft_p99_ms_by_class: (0..classes).map(tail).collect(),
            goodput: mean("goodput").unwrap_or(0.0),
            confidence,
        }
    }
}
