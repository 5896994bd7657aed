//! Level of the tail of the time to first token: trips when it exceeds its tolerance for several periods in a row.

use core::time::Duration;

use super::baseline::Baseline;
use super::qps::Others;
use super::{Evidence, Gauge, LevelKind, LevelStatus, Reading, SignalSource, Trip};
use crate::estimator::SlidingHistogram;
use crate::histogram::Histogram;
use crate::policy::{HysteresisConfig, P99Config};
use crate::time::Timestamp;

/// Slices of the window: the percentile is computed anew ten times a window.
const SLICES: u32 = 10;
/// Periods of history from which the tolerance is learned.
const HISTORY_PERIODS: usize = 60;
/// Periods before the history counts; until then the tolerance is the limit.
const MIN_PERIODS: usize = 3;

/// The level of the 99th percentile of the time to first token, in milliseconds.
///
/// `tolerance = clamp(mean_factor · mean(history), floor, limit)`, the history being one percentile a period. Nothing is learned from a
/// period above the tolerance or while the level acts, unless it has acted alone for 60 periods: then those are the new history. It trips when `periods` periods in a row end with a percentile above the tolerance; it recovers by the
/// percentile of the sliding window. A window with fewer than `min_samples` responses says nothing: a level that acts then counts
/// down as if the latency were low, since no traffic is no evidence of overload.
#[derive(Debug, Clone)]
pub struct P99Level {
    config: P99Config,
    gauge: Gauge,
    baseline: Baseline,
    window: SlidingHistogram,
    /// Last state of the cumulative histogram.
    before: Option<Histogram>,
    /// Slice that was judged last.
    judged: u64,
    /// Slices that have ended in the current period.
    slices: u32,
    /// Periods in a row above the tolerance.
    exceeded: u32,
    /// Whether the level acted when it was judged last.
    acted: bool,
}

impl P99Level {
    /// A level without a sample.
    #[must_use]
    pub fn new(config: &P99Config, hysteresis: &HysteresisConfig) -> Self {
        let trip = if config.enabled { Trip::new(hysteresis) } else { Trip::disabled(hysteresis) };
        Self {
            config: config.clone(),
            gauge: Gauge::new(LevelKind::P99, trip),
            baseline: Baseline::new(HISTORY_PERIODS),
            window: SlidingHistogram::new(config.window, SLICES),
            before: None,
            judged: 0,
            slices: 0,
            exceeded: 0,
            acted: false,
        }
    }

    /// Takes over a changed policy. What was learned is kept while the window stays the same.
    pub fn set_config(&mut self, config: &P99Config, hysteresis: &HysteresisConfig) {
        if self.config == *config {
            self.gauge.trip.set_hysteresis(hysteresis);
            return;
        }
        let fresh = Self::new(config, hysteresis);
        let before = core::mem::replace(self, fresh);
        if before.config.window == config.window {
            self.baseline = before.baseline;
            self.window = before.window;
            self.before = before.before;
            self.judged = before.judged;
            self.slices = before.slices;
        }
    }

    /// Takes in the cumulative histogram of times to first token, in microseconds.
    pub fn observe(&mut self, now: Timestamp, ttft_us: &Histogram, source: SignalSource, others: Others) {
        self.advance(now, others);
        match &mut self.before {
            Some(before) if before.count() == ttft_us.count() => {}
            Some(before) => {
                self.window.add(now, &before.follow(ttft_us));
                self.gauge.source = source;
            }
            // The first state may be hours old: only what comes after it is recent.
            before @ None => drop(before.insert(Histogram::new()).follow(ttft_us)),
        }
    }

    /// Lets the next histogram be the first of a new series.
    pub fn restart(&mut self) {
        self.before = None;
    }

    /// State after the time that has passed.
    pub fn tick(&mut self, now: Timestamp) -> LevelStatus {
        self.gauge.trip.tick(now);
        self.gauge.status(now)
    }

    /// Judges the window when a slice has ended.
    fn advance(&mut self, now: Timestamp, others: Others) {
        let slice = self.window.number(now);
        if self.judged == 0 {
            self.judged = slice;
        }
        if slice == self.judged {
            return;
        }
        let ended = u32::try_from(slice.saturating_sub(self.judged)).unwrap_or(u32::MAX);
        self.slices = self.slices.saturating_add(ended);
        self.judged = slice;
        let window = self.window.completed(now);
        let p99_ms = (window.count() >= u64::from(self.config.min_samples)).then(|| window.quantile(0.99)).flatten();
        self.judge(now, p99_ms.map(|us| us as f64 / 1000.0), others);
    }

    fn judge(&mut self, now: Timestamp, p99_ms: Option<f64>, others: Others) {
        let period_ended = self.slices >= SLICES;
        if period_ended {
            self.slices = 0;
        }
        if core::mem::replace(&mut self.acted, self.gauge.trip.acts()) && !self.gauge.trip.acts() {
            // What led to the trip that is now over does not count towards the next.
            self.exceeded = 0;
        }
        let Some(value) = p99_ms else {
            self.exceeded = 0;
            self.gauge.trip.observe(now, Reading::Learning);
            return;
        };
        let threshold = self.tolerance_ms();
        self.gauge.value = value;
        self.gauge.threshold = threshold;
        self.gauge.sampled_at = Some(now);
        if period_ended {
            self.exceeded = if value > threshold { self.exceeded.saturating_add(1) } else { 0 };
        }
        let evidence = match self.gauge.trip.evidence(value, threshold) {
            Evidence::Above if !self.gauge.trip.acts() && self.exceeded < self.config.periods => Evidence::Between,
            evidence => evidence,
        };
        self.gauge.trip.observe(now, Reading::Value { value, threshold, evidence });
        // A period above the tolerance is a trip in the making: it is learned only by the rule for a level that acts.
        let climate = others.climate(self.gauge.trip.acts() || value > threshold);
        if period_ended {
            self.baseline.observe(value, climate);
        }
    }

    fn tolerance_ms(&self) -> f64 {
        let limit = ms(self.config.limit);
        let history = self.baseline.learned();
        if history.len() < MIN_PERIODS {
            return limit;
        }
        (history.mean() * self.config.mean_factor).max(ms(self.config.floor)).min(limit)
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::LevelState;
    use super::*;

    struct Bench {
        level: P99Level,
        now_ms: u64,
        ttft: Histogram,
    }

    /// Windows of 1 s, limit 800 ms, floor 50 ms, 3 periods, 20 samples; recovers at 90 % after 500 ms.
    fn bench() -> Bench {
        let config = P99Config {
            window: Duration::from_secs(1),
            limit: Duration::from_millis(800),
            floor: Duration::from_millis(50),
            ..P99Config::default()
        };
        let hysteresis = HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_millis(500) };
        Bench { level: P99Level::new(&config, &hysteresis), now_ms: 1000, ttft: Histogram::new() }
    }

    impl Bench {
        /// Runs `ms` with `n` responses every 100 ms, each of `ttft_ms`.
        fn run(&mut self, ms: u64, n: u64, ttft_ms: u64, others: Others) -> LevelStatus {
            for _ in 0..ms / 100 {
                for _ in 0..n {
                    self.ttft.record(ttft_ms * 1000);
                }
                self.now_ms += 100;
                let now = Timestamp::from_millis(self.now_ms);
                self.level.observe(now, &self.ttft, SignalSource::Filters, others);
            }
            self.level.tick(Timestamp::from_millis(self.now_ms))
        }
    }

    #[test]
    fn says_nothing_before_it_has_enough_responses() {
        let mut bench = bench();
        // One response every 100 ms: 10 in a window, and 20 are needed.
        assert_eq!(bench.run(5_000, 1, 5_000, Others::Calm).state, LevelState::Learning);
    }

    #[test]
    fn trips_above_the_limit_after_three_periods_without_any_history() {
        let mut bench = bench();
        assert_eq!(bench.run(2_900, 10, 900, Others::Calm).state, LevelState::Ok);
        let status = bench.run(1_200, 10, 900, Others::Calm);
        assert_eq!((status.state, status.threshold), (LevelState::Tripped, 800.0));
    }

    #[test]
    fn learns_a_tolerance_from_its_history() {
        let mut bench = bench();
        let status = bench.run(20_000, 10, 100, Others::Calm);
        // 1.8 × 100 ms, within the error of the histogram.
        assert!((status.threshold - 180.0).abs() < 2.0, "{}", status.threshold);
        assert_eq!(bench.run(5_000, 10, 250, Others::Act).state, LevelState::Tripped);
    }

    #[test]
    fn two_bad_periods_are_not_enough() {
        let mut bench = bench();
        bench.run(20_000, 10, 100, Others::Calm);
        bench.run(1_500, 10, 500, Others::Calm);
        assert_eq!(bench.run(10_000, 10, 100, Others::Calm).last_trip, None);
    }

    #[test]
    fn overload_does_not_lift_the_tolerance() {
        let mut bench = bench();
        bench.run(20_000, 10, 100, Others::Calm);
        let status = bench.run(200_000, 10, 500, Others::Act);
        assert_eq!(status.state, LevelState::Tripped);
        assert!((status.threshold - 180.0).abs() < 2.0, "{}", status.threshold);
    }

    #[test]
    fn a_latency_that_moved_while_the_pool_is_healthy_becomes_normal() {
        let mut bench = bench();
        bench.run(20_000, 10, 100, Others::Calm);
        // 60 periods of history, then the window and the countdown.
        let status = bench.run(66_000, 10, 300, Others::Calm);
        assert_eq!(status.state, LevelState::Ok, "threshold {}", status.threshold);
    }

    #[test]
    fn recovers_when_no_traffic_is_left_to_judge_by() {
        let mut bench = bench();
        bench.run(20_000, 10, 100, Others::Calm);
        assert_eq!(bench.run(5_000, 10, 500, Others::Act).state, LevelState::Tripped);
        assert!(!bench.run(2_000, 0, 0, Others::Act).acts(), "the window empties in 1 s, the countdown takes 500 ms");
    }

    #[test]
    fn what_was_counted_before_the_first_look_is_not_recent() {
        let mut bench = bench();
        (0..1000).for_each(|_| bench.ttft.record(60_000_000));
        assert_eq!(bench.run(5_000, 1, 10, Others::Calm).state, LevelState::Learning);
    }
}
