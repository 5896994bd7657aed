//! The mean time between tokens that is aimed at.

use super::latency::{QUANTILE_COUNT, Recent};
use super::meter::{Tick, weight};

/// Least and largest part of the objective that the mean may take, and the quantiles of the responses that are to meet it: the one that is
/// wanted, and the least with which a window of few responses has to do. A step that is a tenth shorter costs 1 to 4 % of the work, by how
/// much of it decoding takes; short responses, which a single long step makes slow, lie up to half above the mean; and an engine that becomes
/// slow at once makes those slow that it has: of them a part of 0.93 loses a quarter more.
const PART: (f64, f64) = (0.65, 0.88);
const QUANTILE: (f64, f64) = (0.99, 0.999);
/// How many times as slow as all an engine may be for its responses to be waited for: beyond that the others would idle for its sake.
const MOST_SLOWER: f64 = 4.0;
/// Memory with which a larger distance of the slowest responses from the mean is believed, and with which it is forgotten. The slowest of
/// a hundred responses are another number every second, and an aim that followed each would stop and start prefill by turns.
const WIDEN_S: f64 = 1.0;
const NARROW_S: f64 = 7.0;

/// The objective less the distance of the slowest responses from the mean, each of which has to meet it.
///
/// The distance is a difference, not a ratio: where the load comes and goes the mean falls to a third while nothing waits, and a ratio
/// to that would say that responses differ by much when they do not. For the same reason it is one from the steps of now where these are
/// longer than the responses that end: those that began with a step of the load end beside others from before it, and how far they are
/// apart says what has changed, not how responses differ. Taken for that, it made the engines do a third less for 15 s after each step.
/// What the aim needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct AimInput {
    /// Objective of the time between tokens, in seconds.
    pub(super) slo_s: f64,
    /// Time between tokens of the slowest engine over that of all, 1 and more. Its responses are as far above the mean as it is slower, on top
    /// of what responses differ by.
    pub(super) slowest: f64,
    /// Time between tokens now, in seconds; 0: not known.
    pub(super) step_s: f64,
    /// Whether work waits: responses to an idle pool say nothing of those to a full one.
    pub(super) is_short: bool,
}

#[derive(Debug, Clone)]
pub(super) struct TpotAim {
    /// Distance as a part of the objective.
    spread: f64,
    aim_s: f64,
}

impl TpotAim {
    /// Nothing is known of responses.
    pub(super) fn new(slo_s: f64) -> Self {
        Self { spread: 0.0, aim_s: PART.1 * slo_s }
    }

    /// The aim, in seconds: `slo · (1 − spread)` within `0.65 / slowest ..= 0.88` of it.
    pub(super) fn seconds(&self) -> f64 {
        self.aim_s
    }

    /// Takes in the responses that have ended lately.
    pub(super) fn follow(&mut self, tick: &Tick, ended: &Recent, input: &AimInput) {
        let AimInput { slo_s, slowest, step_s, is_short } = *input;
        let least = PART.0 / if slowest > 1.0 { slowest.min(MOST_SLOWER) } else { 1.0 };
        let wanted = (1.0 - 1.0 / ended.count().max(1) as f64).clamp(QUANTILE.0, QUANTILE.1);
        if let (true, Some(tail), Some(mean)) = (is_short, ended.quantile(wanted, QUANTILE_COUNT), ended.mean(QUANTILE_COUNT)) {
            let beyond_s = (tail.as_secs_f64() - mean.as_secs_f64().max(step_s)).max(0.0);
            let distance = (beyond_s / slo_s.max(1e-6)).min(1.0 - least);
            let memory_s = if distance > self.spread { WIDEN_S } else { NARROW_S };
            self.spread += weight(tick.seconds, memory_s) * (distance - self.spread);
        }
        self.aim_s = slo_s * (1.0 - self.spread).clamp(least, PART.1);
    }
}
