//! What happened since the last step, from cumulative counters; and the work offered by level.

use alloc::vec::Vec;
use core::time::Duration;

use super::fit::FitSums;
use super::flow::{Flow, OverloadSignals};
use super::level::{COHORTS, LEVELS, OfferedLevels};
use super::work::Work;
use crate::time::Timestamp;

/// Steps closer together than this are one: a rate over less is noise.
const MIN_STEP: Duration = Duration::from_millis(5);
/// Memory of the work offered by level: a second, as the design asks; long against single requests, short against a burst.
const DEMAND_MEMORY_S: f64 = 1.0;
/// Memory of the total that sees a step of the load early.
const SURGE_MEMORY_S: f64 = 0.3;
/// Part of the early total that counts: its noise is about this much larger than that of the slow one.
const SURGE_PART: f64 = 0.85;

/// What one step saw. All counts are those since the step before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tick {
    pub(super) now: Timestamp,
    pub(super) seconds: f64,
    pub(super) admitted: Work,
    pub(super) finished: Work,
    pub(super) offered_requests: u64,
    pub(super) retries: u64,
    pub(super) output_tokens: u64,
    pub(super) responses: u64,
    /// Of them, those with a time between tokens.
    pub(super) streamed: u64,
    pub(super) engine_refusals: u64,
    pub(super) ttft_fit: FitSums,
}

/// Whether the counters go on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Read {
    /// They go on: what happened.
    Tick(Tick),
    /// The first reading of a series: differences begin here.
    Restarted,
    /// Too little time has passed.
    TooSoon,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    admitted: Work,
    finished: Work,
    offered_requests: u64,
    retries: u64,
    output_tokens: u64,
    responses: u64,
    streamed: u64,
    engine_refusals: u64,
    ttft_fit: FitSums,
}

/// Differences between readings.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    series: Option<u64>,
    at: Timestamp,
    before: Counts,
}

impl Meter {
    /// Takes a reading.
    pub(super) fn read(&mut self, now: Timestamp, signals: &OverloadSignals<'_>) -> Read {
        let counts = Counts::of(signals.flow);
        if self.series != Some(signals.series) {
            *self = Self { series: Some(signals.series), at: now, before: counts };
            return Read::Restarted;
        }
        let span = now.since(self.at);
        if span < MIN_STEP {
            return Read::TooSoon;
        }
        let before = core::mem::replace(&mut self.before, counts);
        self.at = now;
        Read::Tick(counts.since(&before, now, span.as_secs_f64()))
    }
}

impl Tick {
    /// A tick in which nothing happened, a whole control period long.
    pub(super) fn idle(now: Timestamp) -> Self {
        Counts::default().since(&Counts::default(), now, 0.1)
    }

    /// Work tokens that are over: `prefill + w · (kv − prefill)`; negative in a tick with more first tokens than ends.
    pub(super) fn finished_work(&self, output_weight: f64) -> f64 {
        let (prefill, kv) = (self.finished.prefill_tokens as f64, self.finished.kv_tokens as f64);
        prefill + output_weight * (kv - prefill)
    }
}

impl Counts {
    fn of(flow: &Flow) -> Self {
        Self {
            admitted: flow.admitted,
            finished: flow.finished,
            offered_requests: flow.offered_requests,
            retries: flow.retries,
            output_tokens: flow.output_tokens,
            responses: flow.responses,
            streamed: flow.tpot_us.count(),
            engine_refusals: flow.engine_refusals,
            ttft_fit: flow.ttft_fit,
        }
    }

    /// A counter that went back (a worker left) counts as unchanged.
    fn since(&self, before: &Self, now: Timestamp, seconds: f64) -> Tick {
        Tick {
            now,
            seconds,
            admitted: self.admitted.minus(before.admitted),
            finished: self.finished.minus(before.finished),
            offered_requests: self.offered_requests.saturating_sub(before.offered_requests),
            retries: self.retries.saturating_sub(before.retries),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
            responses: self.responses.saturating_sub(before.responses),
            streamed: self.streamed.saturating_sub(before.streamed),
            engine_refusals: self.engine_refusals.saturating_sub(before.engine_refusals),
            ttft_fit: self.ttft_fit.diff(&before.ttft_fit),
        }
    }
}

/// Weight of a sample of `seconds` in an average that remembers `memory_s`: `dt / (dt + memory)`, the exponential to first order.
pub(super) fn weight(seconds: f64, memory_s: f64) -> f64 {
    if seconds > 0.0 { seconds / (seconds + memory_s.max(1e-3)) } else { 0.0 }
}

/// Work offered by level, in work tokens per second.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    before: Vec<u64>,
    rates: Vec<f64>,
    /// Levels of the classes of which work was ever offered: the rates beyond are 0, and no sum need run over them.
    used: usize,
    surge: f64,
}

impl Demand {
    pub(super) fn new() -> Self {
        Self {
            before: alloc::vec![0; usize::from(LEVELS)],
            rates: alloc::vec![0.0; usize::from(LEVELS)],
            used: usize::from(COHORTS),
            surge: 0.0,
        }
    }

    /// Differences begin at these counters.
    pub(super) fn restart(&mut self, offered: &OfferedLevels) {
        self.before.fill(0);
        for (level, work) in offered.iter() {
            if let Some(before) = self.before.get_mut(usize::from(level)) {
                *before = work;
            }
        }
    }

    /// Takes in the counters after `seconds`.
    pub(super) fn observe(&mut self, seconds: f64, offered: &OfferedLevels) {
        if seconds <= 0.0 {
            return;
        }
        let weight_slow = weight(seconds, DEMAND_MEMORY_S);
        for rate in self.rates.iter_mut().take(self.used) {
            *rate *= 1.0 - weight_slow;
        }
        let mut total = 0.0;
        for (level, work) in offered.iter() {
            let index = usize::from(level);
            let (Some(before), Some(rate)) = (self.before.get_mut(index), self.rates.get_mut(index)) else { continue };
            self.used = self.used.max((index + 1).next_multiple_of(usize::from(COHORTS)));
            // Of most levels, since a tick is short against the time between two requests of one.
            if work == *before {
                continue;
            }
            let grown = work.saturating_sub(*before) as f64 / seconds;
            *before = work;
            *rate += weight_slow * grown;
            total += grown;
        }
        self.surge += weight(seconds, SURGE_MEMORY_S) * (total - self.surge);
    }

    /// Rate of every level, 0 the most important, of the classes up to the last of which work was ever offered.
    pub(super) fn rates(&self) -> &[f64] {
        self.rates.get(..self.used).unwrap_or(&self.rates)
    }

    /// Factor (at least 1) by which the total is likely ahead of the sum of [`rates`](Self::rates), since a step has begun.
    pub(super) fn surge(&self, total: f64) -> f64 {
        if total > 0.0 { (SURGE_PART * self.surge / total).max(1.0) } else { 1.0 }
    }
}
