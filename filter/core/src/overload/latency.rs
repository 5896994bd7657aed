//! Latencies of the last seconds, the time to first token that a prompt takes without a queue, and the queue that stands.

use core::time::Duration;

use super::fit::{FitSums, Line};
use super::flow::Flow;
use super::meter::{Tick, weight};
use crate::histogram::Histogram;
use crate::time::Timestamp;

/// Samples behind a quantile or a mean that is believed.
pub(super) const QUANTILE_COUNT: u64 = 10;
/// A window of a cumulative histogram covers one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(1);
/// Memory of the fit: ten seconds, the design's shortest time of learning.
const FIT_MEMORY_S: f64 = 10.0;
/// Samples behind a line that is believed.
const FIT_MIN_COUNT: f64 = 20.0;
/// Memory with which the line without a queue rises while nothing queues: prompts change slowly.
const BASELINE_RISE_S: f64 = 10.0;
/// Memory with which it falls: a shorter time to first token is proof.
const BASELINE_FALL_S: f64 = 1.0;
/// Interval over which the smallest wait counts as a queue that stands: CoDel's argument, a burst drains within it. Several ticks,
/// so that each has first tokens.
const STANDING_INTERVAL: Duration = Duration::from_millis(500);
/// Standing wait that is tolerated, as a part of the objective, and at least [`STANDING_MIN`]. Source: field map 4a.
const STANDING_PART: f64 = 0.05;
const STANDING_MIN: Duration = Duration::from_millis(20);

/// Samples of the last one to two seconds of a cumulative histogram.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent {
    /// The cumulative state of the last look.
    seen: Histogram,
    /// What came since the window turned, and what came since it turned before that.
    half: Histogram,
    window: Histogram,
    turned_at: Option<Timestamp>,
}

impl Recent {
    /// Takes in the cumulative state.
    pub(super) fn observe(&mut self, now: Timestamp, cumulative: &Histogram) {
        let Some(turned_at) = self.turned_at else {
            self.restart(now, cumulative);
            return;
        };
        if cumulative.count() != self.seen.count() {
            let came = self.seen.follow(cumulative);
            self.half.add_delta(&came);
            self.window.add_delta(&came);
        }
        if now.since(turned_at) >= HALF_WINDOW {
            core::mem::swap(&mut self.window, &mut self.half);
            self.half.clear();
            self.turned_at = Some(now);
        }
    }

    /// The window begins here.
    pub(super) fn restart(&mut self, now: Timestamp, cumulative: &Histogram) {
        self.seen.clear();
        self.seen.follow(cumulative);
        self.half.clear();
        self.window.clear();
        self.turned_at = Some(now);
    }

    /// Quantile of the window; `None` with fewer than `min_count` samples.
    pub(super) fn quantile(&self, q: f64, min_count: u64) -> Option<Duration> {
        (self.window.count() >= min_count).then(|| self.window.quantile(q).map(Duration::from_micros)).flatten()
    }

    /// Samples of the window.
    pub(super) fn count(&self) -> u64 {
        self.window.count()
    }

    /// Mean of the window; `None` with fewer than `min_count` samples.
    pub(super) fn mean(&self, min_count: u64) -> Option<Duration> {
        let mean = self.window.mean().filter(|_| self.window.count() >= min_count)?;
        Some(Duration::from_micros(mean as u64))
    }
}

/// Whether the engines queue, as far as anyone but the time to first token can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engines {
    /// Their own metrics show no queue, or the pool is not busy.
    Clear,
    /// Their own metrics show a queue.
    Queue,
    /// Nobody reads them and the pool is busy.
    Unknown,
}

/// Time to first token: recent samples, the line without a queue, the standing part of the wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Latency {
    pub(super) queue_wait: Recent,
    pub(super) service: Recent,
    pub(super) tpot: Recent,
    sums: FitSums,
    slope: Option<f64>,
    /// Time to first token of a prompt of mean length without a queue, in seconds.
    base: Option<f64>,
    interval: Option<Interval>,
    standing: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Interval {
    began: Timestamp,
    least_s: f64,
}

impl Latency {
    /// Histograms begin at these states; what was learned stays.
    pub(super) fn restart(&mut self, now: Timestamp, flow: &Flow) {
        self.queue_wait.restart(now, &flow.queue_wait_us);
        self.service.restart(now, &flow.service_ttft_us);
        self.tpot.restart(now, &flow.tpot_us);
    }

    pub(super) fn observe(&mut self, tick: &Tick, flow: &Flow, engines: Engines) {
        self.queue_wait.observe(tick.now, &flow.queue_wait_us);
        self.service.observe(tick.now, &flow.service_ttft_us);
        self.tpot.observe(tick.now, &flow.tpot_us);
        self.sums.scale(1.0 - weight(tick.seconds, FIT_MEMORY_S));
        self.sums.add(&tick.ttft_fit);
        if let Some(Line { slope, .. }) = self.sums.line(FIT_MIN_COUNT).filter(|line| line.slope > 0.0) {
            let before = *self.slope.get_or_insert(slope / 1e6);
            self.slope = Some(before + weight(tick.seconds, FIT_MEMORY_S) * (slope / 1e6 - before));
        }
        self.follow_wait(tick, engines);
    }

    /// Seconds of prefill for one token of a prompt on one engine; `None` until it is known.
    pub(super) fn seconds_per_token(&self) -> Option<f64> {
        self.slope
    }

    /// Time to first token that a prompt takes without a queue; zero until it is known.
    pub(super) fn unqueued(&self) -> Duration {
        span(self.base.unwrap_or(0.0))
    }

    /// Smallest wait in the engines over the last whole interval.
    pub(super) fn standing(&self) -> Duration {
        self.standing
    }

    /// Standing wait from which on a queue stands: `max(20 ms, 5 % of the objective)`.
    pub(super) fn standing_target(ttft_slo: Duration) -> Duration {
        STANDING_MIN.max(ttft_slo.mul_f64(STANDING_PART))
    }

    /// Mean time to first token of this tick, moved to prompts of the usual length by the slope.
    fn follow_wait(&mut self, tick: &Tick, engines: Engines) {
        let (Some(mean_s), Some(x), Some(usual_x)) =
            (tick.ttft_fit.mean_y().map(|us| us / 1e6), tick.ttft_fit.mean_x(), self.sums.mean_x())
        else {
            self.close_interval(tick.now);
            return;
        };
        let at_usual = (mean_s - self.slope.unwrap_or(0.0) * (x - usual_x)).max(0.0);
        let base = *self.base.get_or_insert(at_usual);
        let memory = match (at_usual < base, engines) {
            (true, _) => Some(BASELINE_FALL_S),
            (false, Engines::Clear) => Some(BASELINE_RISE_S),
            // Under overload the base never rises: a queue must not become the norm.
            (false, Engines::Queue | Engines::Unknown) => None,
        };
        if let Some(memory) = memory {
            self.base = Some(base + weight(tick.seconds, memory) * (at_usual - base));
        }
        let wait = (at_usual - base).max(0.0);
        let interval = self.interval.get_or_insert(Interval { began: tick.now, least_s: wait });
        interval.least_s = interval.least_s.min(wait);
        self.close_interval(tick.now);
    }

    fn close_interval(&mut self, now: Timestamp) {
        let Some(interval) = self.interval.filter(|interval| now.since(interval.began) >= STANDING_INTERVAL) else { return };
        self.standing = span(interval.least_s);
        self.interval = None;
    }
}

/// A span of seconds; what is not a span is none.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}
