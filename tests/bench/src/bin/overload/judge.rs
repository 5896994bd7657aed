//! What a run achieved, judged as the simulator judges its own.

use std::time::Duration;

use headgate_sim::measure::{Figures as Simulated, work};
use headgate_test_support::load::{Kind as Ending, Outcome};
use serde::Serialize;

use crate::world::{CLASSES, TPOT_SLO, TTFT_SLO, WARM_UP, class_and_kind};

/// Figures of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// Work tokens per second that were completed within their objectives.
    pub(crate) goodput: f64,
    /// Work tokens per second that were completed at all.
    pub(crate) throughput: f64,
    /// Part of the most important class's requests that met their objectives.
    pub(crate) top_class_slo: f64,
    /// By class, most important first.
    pub(crate) classes: Vec<ClassFigures>,
}

/// Figures of one class.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ClassFigures {
    pub(crate) class: &'static str,
    /// Requests sent in the judged span.
    pub(crate) offered: u64,
    /// Part of them that met their objectives.
    pub(crate) slo: f64,
    /// Part of them that was refused by whoever controls admission.
    pub(crate) refused: f64,
    /// Part of them that failed: refused by the engine, or given up by the client.
    pub(crate) failed: f64,
    /// Median of the time to first token of those that were served, in milliseconds.
    pub(crate) ttft_p50_ms: Option<f64>,
    /// Its 99th percentile.
    pub(crate) ttft_p99_ms: Option<f64>,
}

/// Requests of one class.
#[derive(Clone, Default)]
struct Tally {
    offered: u64,
    good: u64,
    refused: u64,
    failed: u64,
    ttft_ms: Vec<f64>,
}

/// Judges what a load has seen; requests count by when they were to leave, work by when it was done.
pub(crate) fn real(outcomes: &[Outcome], length: Duration) -> Figures {
    let is_judged = |at: Duration| at >= WARM_UP && at < WARM_UP + length;
    let mut tallies = vec![Tally::default(); CLASSES.len()];
    let (mut good_work, mut all_work) = (0.0, 0.0);
    for outcome in outcomes {
        let (class, kind) = class_and_kind(outcome.class);
        let is_good = is_good(outcome);
        if is_judged(outcome.scheduled_at) {
            tallies[class].take(outcome, is_good);
        }
        if outcome.kind == Ending::Admitted && is_judged(outcome.ended_at) {
            let work = work(kind.prompt_tokens, kind.output_tokens);
            all_work += work;
            good_work += if is_good { work } else { 0.0 };
        }
    }
    let classes: Vec<ClassFigures> = tallies.iter().zip(&CLASSES).map(|(tally, class)| tally.figures(class.name)).collect();
    let (goodput, throughput) = (good_work / length.as_secs_f64(), all_work / length.as_secs_f64());
    Figures { goodput, throughput, top_class_slo: classes.first().map_or(1.0, |class| class.slo), classes }
}

/// The same of a simulated run.
pub(crate) fn simulated(figures: &Simulated) -> Figures {
    let class = |(figures, class): (&headgate_sim::measure::ClassFigures, &crate::world::Class)| ClassFigures {
        class: class.name,
        offered: figures.offered,
        slo: figures.slo,
        refused: figures.refused,
        failed: figures.left + figures.failed,
        ttft_p50_ms: figures.ttft_p50_ms,
        ttft_p99_ms: figures.ttft_p99_ms,
    };
    Figures {
        goodput: figures.goodput,
        throughput: figures.throughput,
        top_class_slo: figures.top_class_slo,
        classes: figures.classes.iter().zip(&CLASSES).map(class).collect(),
    }
}

fn is_good(outcome: &Outcome) -> bool {
    let (_, kind) = class_and_kind(outcome.class);
    let Some(first) = outcome.first_byte_at else { return false };
    let per_token = outcome.ended_at.saturating_sub(first) / kind.output_tokens.saturating_sub(1).max(1);
    outcome.kind == Ending::Admitted && first.saturating_sub(outcome.scheduled_at) <= TTFT_SLO && per_token <= TPOT_SLO
}

impl Tally {
    fn take(&mut self, outcome: &Outcome, is_good: bool) {
        self.offered += 1;
        self.good += u64::from(is_good);
        match &outcome.kind {
            Ending::Admitted => {
                let first = outcome.first_byte_at.unwrap_or(outcome.ended_at);
                self.ttft_ms.push(first.saturating_sub(outcome.scheduled_at).as_secs_f64() * 1e3);
            }
            Ending::Refused { .. } => self.refused += 1,
            // Envoy's own filters answer 503 and give no reason; the engine answers 503 when its queue is full. Both are failures to
            // the client, and neither is goodput.
            Ending::Failed { .. } => self.failed += 1,
        }
    }

    fn figures(&self, class: &'static str) -> ClassFigures {
        let part = |count: u64| if self.offered == 0 { 0.0 } else { count as f64 / self.offered as f64 };
        ClassFigures {
            class,
            offered: self.offered,
            slo: if self.offered == 0 { 1.0 } else { part(self.good) },
            refused: part(self.refused),
            failed: part(self.failed),
            ttft_p50_ms: percentile(&self.ttft_ms, 0.5),
            ttft_p99_ms: percentile(&self.ttft_ms, 0.99),
        }
    }
}

fn percentile(values: &[f64], at: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * at).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}
