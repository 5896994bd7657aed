//! The budget of KV tokens.
//!
//! Requests reserve their prompt and expected output; the engines hold what is really there. The budget is the target of the KV cache in
//! the currency of reservations: `target × total × reserved / actual`. The ratio is learned by generations of requests, not by time:
//! right after a burst all requests are young and hold little, and a clock would take that for room.

use super::flow::EngineSample;
use super::headroom::Headroom;
use super::meter::Tick;
use crate::time::Timestamp;

/// Generations of requests over which the ratio is averaged.
const GENERATIONS: f64 = 0.5;
/// Bounds on the ratio: prompts alone against whole responses, and outputs thrice as long as expected.
const MIN_RATIO: f64 = 0.3;
const MAX_RATIO: f64 = 3.0;
/// Part of the budget that must be in flight for the ratio to be learned.
const ENOUGH: f64 = 0.2;
/// How much fuller than the mean one engine may be before the pool counts as that much fuller: balancing is never perfect.
const IMBALANCE: f64 = 1.08;
/// Growth of the budget when work waits and the cache has room, and the ticks of it before. Source: design invariant 8.
const STARVED_GROWTH: f64 = 1.1;
const STARVED_TICKS: u32 = 2;
/// Part of the target below which the cache has room. Source: design invariant 8.
const ROOM: f64 = 0.9;
/// Growth of the ratio a second, as a part of what is missing of the target, while the budget binds.
const APPROACH_PER_S: f64 = 0.3;
/// Seconds by which the growth of the cache is extrapolated before it counts as room: admitted prompts arrive, responses lengthen.
const LOOK_AHEAD_S: f64 = 1.0;
/// Memory of the cache's growth.
const GROWTH_MEMORY_S: f64 = 0.5;

/// What the budget needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvInput {
    /// Reserved tokens in flight when the engines were read.
    pub(super) reserved_then: f64,
    /// Reserved tokens in flight now.
    pub(super) reserved_now: f64,
    /// Prompt tokens admitted since the reading.
    pub(super) credit: f64,
    /// Streams in flight now.
    pub(super) streams: u64,
    /// Part of the cache that may be filled.
    pub(super) target: f64,
    /// Whether work waits while latency is within its objective.
    pub(super) hungry: bool,
}

#[derive(Debug, Clone)]
pub(super) struct KvBudget {
    ratio: f64,
    headroom: Headroom,
    starved: u32,
    growth: f64,
    last: Option<(Timestamp, f64, u64)>,
    bound: Option<f64>,
}

impl KvBudget {
    pub(super) fn new() -> Self {
        Self { ratio: 1.0, headroom: Headroom::new(), starved: 0, growth: 0.0, last: None, bound: None }
    }

    /// The bound in reserved tokens; `None` without a reading.
    pub(super) fn bound(&self) -> Option<f64> {
        self.bound
    }

    /// Nobody reads the engines any more: unbounded, calibration kept.
    pub(super) fn forget_sample(&mut self) {
        self.bound = None;
        self.last = None;
        self.growth = 0.0;
    }

    pub(super) fn step(&mut self, tick: &Tick, sample: &EngineSample, fresh: bool, input: &KvInput) {
        let target = input.target * sample.kv_total_tokens as f64;
        let used = sample.kv_used_tokens as f64;
        if fresh {
            self.follow(tick, sample, used, input);
        }
        self.learn(tick, used, target, input);
        let effective = used.max(sample.kv_fullest * sample.kv_total_tokens as f64 / IMBALANCE) + input.credit;
        self.feed(tick, effective, target, input);
        let bound = self.headroom.part() * self.ratio * target;
        // Above the target, what is in flight is too much whatever the ratio says. Less than the least ratio of what the engines hold is not all
        // that is in flight: proxies that were cut off have not reported yet, and a part of next to nothing would shut everybody out.
        let is_known = input.reserved_now >= MIN_RATIO * effective;
        let over = if effective > target && is_known { input.reserved_now * target / effective } else { bound };
        self.bound = Some(bound.min(over).max(1.0));
    }

    fn follow(&mut self, tick: &Tick, sample: &EngineSample, used: f64, input: &KvInput) {
        if let Some((at, before, preemptions)) = self.last {
            let seconds = sample.at.since(at).as_secs_f64();
            if seconds > 0.0 {
                self.growth += super::meter::weight(seconds, GROWTH_MEMORY_S) * ((used - before) / seconds - self.growth);
            }
            let preempted = sample.preemptions.saturating_sub(preemptions);
            if preempted > 0 {
                self.headroom.fall(tick.now, preempted as f64 / sample.running.max(1) as f64);
            } else {
                self.headroom.recover(tick.now, input.streams);
            }
        }
        self.last = Some((sample.at, used, sample.preemptions));
    }

    /// Averages the ratio over generations: the weight of a tick is the part of the streams that ended in it.
    fn learn(&mut self, tick: &Tick, used: f64, target: f64, input: &KvInput) {
        let enough = input.reserved_then >= ENOUGH * self.ratio * target && used > 0.0;
        if !enough {
            return;
        }
        let weight = (tick.finished.streams as f64 / (GENERATIONS * input.streams.max(1) as f64)).min(1.0);
        self.ratio += weight * ((input.reserved_then / used).clamp(MIN_RATIO, MAX_RATIO) - self.ratio);
    }

    /// Never starve: work waits, the budget binds, and the cache has room and is not about to fill.
    fn feed(&mut self, tick: &Tick, effective: f64, target: f64, input: &KvInput) {
        let ahead = effective + LOOK_AHEAD_S * self.growth.max(0.0);
        let binds = self.bound.is_some_and(|bound| input.reserved_now >= ROOM * bound);
        if input.hungry && binds && ahead < target && target > 0.0 {
            // The ratio of a generation lags behind the mix; what is missing of the target is added by and by.
            self.ratio = (self.ratio * (1.0 + APPROACH_PER_S * tick.seconds.min(1.0) * (1.0 - ahead / target))).min(MAX_RATIO);
        }
        let starved = input.hungry && binds && ahead < ROOM * target;
        self.starved = if starved { self.starved.saturating_add(1) } else { 0 };
        if self.starved >= STARVED_TICKS {
            self.starved = 0;
            self.ratio = (self.ratio * STARVED_GROWTH).min(MAX_RATIO);
        }
    }
}
