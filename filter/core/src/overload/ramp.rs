//! How fast budgets may grow: slow start after a breaker closes, an engine comes back or a budget was cut.

use core::time::Duration;

use crate::time::Timestamp;

/// Part of a budget with which a slow start begins: what was safe enough to find out.
const START: f64 = 0.3;
/// Length of a slow start, about the time that a pool takes to show what it can do.
const LENGTH: Duration = Duration::from_secs(3);
/// Growth of a budget a second beyond which it is a jump: a doubling in half a second.
const GROWTH_PER_S: f64 = 4.0;

/// Multiplier of all budgets.
#[derive(Debug, Clone, Default)]
pub(super) struct SlowStart {
    /// When it began, and the part of the pool that starts cold.
    began: Option<(Timestamp, f64)>,
}

impl SlowStart {
    /// `cold`: the part of the pool that starts, `0..=1`; NaN counts as 0. The rest works on and keeps its part of the budgets: were they
    /// all to start anew, the engines that are warm would fill them, and the cold one would idle. What an earlier start has left cold is
    /// cold still.
    pub(super) fn begin(&mut self, now: Timestamp, cold: f64) {
        let cold = if cold > 0.0 { cold.min(1.0) } else { 0.0 };
        let left = (1.0 - self.part(now)) / (1.0 - START);
        self.began = Some((now, cold.max(left.min(1.0))));
    }

    /// The part of the budgets that may be used, `1 − cold · (1 − START) ..= 1`, growing on a straight line.
    pub(super) fn part(&mut self, now: Timestamp) -> f64 {
        let Some((began, cold)) = self.began else { return 1.0 };
        let passed = now.since(began).as_secs_f64() / LENGTH.as_secs_f64();
        if passed >= 1.0 {
            self.began = None;
        }
        1.0 - cold * (1.0 - START) * (1.0 - passed.min(1.0))
    }
}

/// A budget that falls at once and grows at most by a factor a second.
#[derive(Debug, Clone, Default)]
pub(super) struct Smooth {
    value: Option<u64>,
}

impl Smooth {
    /// Moves to `target`; `None` is unbounded and takes effect at once, as does the first bound. Never 0.
    pub(super) fn step(&mut self, target: Option<f64>, seconds: f64) -> Option<u64> {
        let bound = target.filter(|target| target.is_finite()).map(|target| (target.max(1.0)) as u64);
        self.value = match (self.value, bound) {
            (Some(before), Some(bound)) => {
                let most = before as f64 * (1.0 + GROWTH_PER_S * seconds.clamp(0.0, 1.0)) + 1.0;
                Some(bound.min(most as u64))
            }
            (_, bound) => bound,
        };
        self.value
    }
}
