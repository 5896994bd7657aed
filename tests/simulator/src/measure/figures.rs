//! The figures of one run.

use std::time::Duration;

use serde::Serialize;

use super::recorder::{ClassTally, Run};
use super::series::{Series, jain, least_while_waiting, max_min_shares};
use crate::scenarios::{Scenario, Span};

/// Part of a class's requests that must meet their objectives for a second to count as recovered.
const RECOVERED: f64 = 0.95;
/// Span over which the KV use is averaged before its least value is taken, so that one step of an engine does not count.
const KV_SPAN: Duration = Duration::from_millis(200);
/// A class is short when less than this part of its work was served.
const SHORT: f64 = 0.98;
/// Time after which clients that were told nothing should have come to rest.
const UNTOLD: Duration = Duration::from_secs(60);

/// What one run of one controller achieved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Work tokens per second that were sent in the judged span and completed within their objectives. By the time of sending, since by
    /// the time of completion whoever fills the engines faster would look worse until the first long responses end.
    pub goodput: f64,
    /// Work tokens per second that were completed at all in the judged span.
    pub throughput: f64,
    /// Part of the offered requests of the most important class that met their objectives.
    pub top_class_slo: f64,
    /// By class.
    pub classes: Vec<ClassFigures>,
    /// Jain's index over tenants of served work as a part of the max-min fair share, in the classes that were short; `None` when none
    /// was, or when what was served would not give each tenant one request.
    pub jain: Option<f64>,
    /// From the step until the KV use, as a part of the clairvoyant scheduler's, stays within 5 % of its later mean; `None`: no step, or
    /// never.
    pub settle_s: Option<f64>,
    /// Excess of that part over its later mean, as a part of it.
    pub overshoot: Option<f64>,
    /// From the end of the overload until at least 95 % of what is sent in each second meets its objectives again.
    pub recovery_s: Option<f64>,
    /// Least KV use (mean over 200 ms) while requests waited, as a part of its target or of what the clairvoyant scheduler had in use
    /// then, whichever is less; `None` when none waited.
    pub min_kv_use_while_queued: Option<f64>,
    /// Offered work after the overload and twice the longest `Retry-After`, over that before it.
    pub load_after_overload: Option<f64>,
    /// Longest `Retry-After` given, in seconds.
    pub longest_retry_after_s: f64,
    /// Attempts, over the whole run.
    pub attempts: u64,
}

/// What one class got.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Attempts.
    pub offered: u64,
    /// Part that met the objectives.
    pub slo: f64,
    /// Part that was refused.
    pub refused: f64,
    /// Part whose client left.
    pub left: f64,
    /// Part that engines refused or lost.
    pub failed: f64,
    /// Median of the time to first token, in milliseconds; `None` when no token came.
    pub ttft_p50_ms: Option<f64>,
    /// Its 99th percentile.
    pub ttft_p99_ms: Option<f64>,
    /// 99th percentile of the mean time between tokens, in milliseconds.
    pub tpot_p99_ms: Option<f64>,
}

// === impl Figures ===

impl Figures {
    /// Judges a run of `scenario` against the clairvoyant scheduler's run with the same seed.
    pub fn of(scenario: &Scenario, run: &Run, optimum: &Run) -> Self {
        let judging = &scenario.judging;
        let end = scenario.setup.duration;
        let span_s = (end - judging.from).as_secs_f64();
        let settling = judging.overload.and_then(|span| run.kv_use.settling(span.from, span.to, Some(&optimum.kv_use)));
        let wanted =
            Series { values: optimum.kv_use.values.iter().map(|use_| use_.min(run.kv_target)).collect(), ..optimum.kv_use.clone() };
        let kv = least_while_waiting(&run.kv_use, &wanted, &run.waiting, KV_SPAN, judging.from, end);
        let classes: Vec<ClassFigures> = run.classes.iter().map(ClassFigures::of).collect();
        Self {
            goodput: run.good_work / span_s,
            throughput: run.completed_work / span_s,
            top_class_slo: classes.first().map_or(1.0, |class| class.slo),
            classes,
            jain: fairness(run),
            settle_s: settling.and_then(|settling| settling.settled_after).map(|after| after.as_secs_f64()),
            overshoot: settling.map(|settling| settling.overshoot),
            recovery_s: judging.overload.and_then(|span| recovery(run, span, end)),
            min_kv_use_while_queued: kv,
            load_after_overload: judging.overload.and_then(|span| load_after(run, judging.from, span, end)),
            longest_retry_after_s: run.longest_retry_after.as_secs_f64(),
            attempts: run.attempts,
        }
    }
}

/// See [`Figures::jain`].
fn fairness(run: &Run) -> Option<f64> {
    let mut indices = Vec::new();
    for (class, tally) in run.classes.iter().enumerate() {
        let of_class = || run.tenants.iter().filter(move |((of, _), _)| usize::from(*of) == class).map(|(_, share)| *share);
        let demands: Vec<f64> = of_class().map(|(offered, _)| offered).collect();
        let served: Vec<f64> = of_class().map(|(_, served)| served).collect();
        let (demand, supply): (f64, f64) = (demands.iter().sum(), served.iter().sum());
        let mean_request = demand / tally.offered.max(1) as f64;
        if demands.len() < 2 || supply >= SHORT * demand || supply < mean_request * demands.len() as f64 {
            continue;
        }
        let fair = max_min_shares(&demands, supply);
        let parts: Vec<f64> = served.iter().zip(&fair).filter(|(_, fair)| **fair > 0.0).map(|(served, fair)| served / fair).collect();
        indices.push(jain(&parts));
    }
    indices.into_iter().min_by(f64::total_cmp)
}

/// The end of the last second in which too few requests met their objectives, counted from the end of the overload.
fn recovery(run: &Run, overload: Span, end: Duration) -> Option<f64> {
    let (from, to) = (overload.to.as_secs() as usize, (end.as_secs() as usize).min(run.seconds.len()));
    if to <= from + 1 {
        return None;
    }
    let is_bad = |second: usize| {
        let (sent, good) = run.seconds[second].iter().fold((0, 0), |(sent, good), class| (sent + class.sent, good + class.sent_good));
        f64::from(good) < RECOVERED * f64::from(sent)
    };
    let last_bad = (from..to).rev().find(|second| is_bad(*second));
    Some(last_bad.map_or(0.0, |second| (second + 1 - from) as f64))
}

/// See [`Figures::load_after_overload`].
fn load_after(run: &Run, from: Duration, overload: Span, end: Duration) -> Option<f64> {
    let mean = |from: Duration, to: Duration| {
        let (from, to) = (from.as_secs_f64().ceil() as usize, (to.as_secs() as usize).min(run.seconds.len()));
        let offered: f64 = run.seconds.get(from..to)?.iter().flatten().map(|second| second.offered_work).sum();
        (to > from).then(|| offered / (to - from) as f64)
    };
    let base = mean(from, overload.from)?;
    let told = if run.longest_retry_after.is_zero() { UNTOLD } else { 2 * run.longest_retry_after };
    let after = mean(overload.to + told, end)?;
    (base > 0.0).then(|| after / base)
}

// === impl ClassFigures ===

impl ClassFigures {
    fn of(tally: &ClassTally) -> Self {
        let part = |count: u64| if tally.offered == 0 { 0.0 } else { count as f64 / tally.offered as f64 };
        Self {
            offered: tally.offered,
            slo: if tally.offered == 0 { 1.0 } else { part(tally.good) },
            refused: part(tally.refused),
            left: part(tally.left),
            failed: part(tally.failed),
            ttft_p50_ms: percentile(&tally.ttft_ms, 0.5),
            ttft_p99_ms: percentile(&tally.ttft_ms, 0.99),
            tpot_p99_ms: percentile(&tally.tpot_ms, 0.99),
        }
    }
}

/// The smallest value that at least the part `at` of all values do not exceed; `None` without values.
pub(crate) fn percentile(values: &[f32], at: f64) -> Option<f64> {
    let mut values = values.to_vec();
    let rank = ((values.len() as f64 * at).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    if values.is_empty() {
        return None;
    }
    let (_, value, _) = values.select_nth_unstable_by(rank, f32::total_cmp);
    Some(f64::from(*value))
}
