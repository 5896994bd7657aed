//! What one proxy asks of a quota, smoothed so that chance moves nothing and a shift moves at once.

use super::{CLASSES, PerClass};
use crate::time::Timestamp;

/// Time over which the estimate is a mean while nothing out of the ordinary happens, in seconds.
const SLOW_S: f64 = 8.0;
/// Time constants of the means that notice what is out of the ordinary, in seconds: large changes soon, smaller ones later.
const FAST_S: [f64; 3] = [0.25, 1.0, 4.0];
/// Standard deviations that are out of the ordinary: with 1,000 proxies and ten reports a second, one false alarm a second or less.
const SIGMAS: f64 = 4.0;
/// Variance of a request's cost plus one, in squares of its mean: as of an exponential distribution.
const COST_SPREAD: f64 = 2.0;
/// Shortest time over which a rate is taken, in seconds.
const LEAST_S: f64 = 0.02;

/// Units and requests that were asked for since the report before, by class.
pub type Asked = [(f64, f64); CLASSES];

/// The estimates of one proxy.
#[derive(Clone, Debug, Default)]
pub(super) struct Demand {
    classes: [Estimate; CLASSES],
    /// Not yet counted.
    pending: Asked,
    pending_s: f64,
    /// Counted.
    observed_s: f64,
}

/// The estimate of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    fast: [f64; FAST_S.len()],
    slow: f64,
    /// Seconds over which `slow` is a mean.
    span_s: f64,
    /// Mean cost of a request.
    cost: f64,
}

// === impl Demand ===

impl Demand {
    /// Counts what was asked for over the `elapsed` seconds to this report.
    pub(super) fn observe(&mut self, elapsed_s: f64, asked: &Asked) {
        for (pending, new) in self.pending.iter_mut().zip(asked) {
            pending.0 += new.0;
            pending.1 += new.1;
        }
        self.pending_s += elapsed_s;
        if self.pending_s < LEAST_S {
            return;
        }
        for (estimate, (units, requests)) in self.classes.iter_mut().zip(&self.pending) {
            estimate.observe(self.pending_s, *units, *requests);
        }
        self.observed_s += self.pending_s;
        self.pending = Asked::default();
        self.pending_s = 0.0;
    }

    /// By how much what is asked for in a second differs by chance, as a standard deviation.
    pub(super) fn deviation(&self) -> f64 {
        libm::sqrt(self.classes.iter().map(|estimate| estimate.slow * estimate.cost).sum())
    }

    /// Time over which reports have said what was asked for, in seconds.
    pub(super) const fn observed_s(&self) -> f64 {
        self.observed_s
    }

    /// What is asked for of each class, per second.
    pub(super) fn rates(&self) -> PerClass {
        self.classes.map(|estimate| estimate.slow)
    }
}

impl Estimate {
    fn observe(&mut self, elapsed_s: f64, units: f64, requests: f64) {
        if requests > 0.0 {
            let mean = units / requests;
            self.cost += (mean - self.cost) * if self.cost > 0.0 { requests / (requests + 32.0) } else { 1.0 };
        }
        let rate = units / elapsed_s;
        let expected = self.slow * elapsed_s;
        if units > expected + sigmas(self.cost, expected) + self.cost {
            (self.fast, self.slow, self.span_s) = ([rate; FAST_S.len()], rate, elapsed_s);
            return;
        }
        self.span_s = (self.span_s + elapsed_s).min(SLOW_S);
        self.slow += (rate - self.slow) * (elapsed_s / self.span_s).min(1.0);
        let mut switched = None;
        for (fast, memory_s) in self.fast.iter_mut().zip(FAST_S) {
            *fast += (rate - *fast) * (1.0 - libm::exp(-elapsed_s / memory_s));
            // A mean that forgets over this time is as good as a plain one over twice of it.
            let span_s = 2.0 * memory_s;
            let noise = sigmas(self.cost, self.slow * span_s) / span_s;
            if switched.is_none() && self.span_s > span_s && (*fast - self.slow).abs() > noise {
                switched = Some((*fast, span_s));
            }
        }
        if let Some((rate, span_s)) = switched {
            // All begin anew from there: a slower one still remembers what is over.
            (self.fast, self.slow, self.span_s) = ([rate; FAST_S.len()], rate, span_s);
        }
    }
}

/// How far units may be from the `expected` ones, at requests of this mean cost, before it is out of the ordinary.
fn sigmas(cost: f64, expected: f64) -> f64 {
    SIGMAS * libm::sqrt(COST_SPREAD * cost * expected.max(cost))
}

/// Seconds between two reports of one clock; `None` when the second is not later.
pub(super) fn elapsed_s(from: Timestamp, to: Timestamp) -> Option<f64> {
    (to > from).then(|| to.since(from).as_secs_f64())
}
