//! Level of the request rate: trips at `factor × (moving average + σ·k)`.

use super::baseline::{Baseline, Climate};
use super::{Gauge, LevelKind, LevelStatus, Reading, SignalSource, Trip};
use crate::policy::{HysteresisConfig, QpsConfig};
use crate::time::Timestamp;

/// What the other levels say, which decides whether a level that acts may learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// No other level acts.
    Calm,
    /// Another level acts.
    Act,
}

impl Others {
    pub(super) fn climate(self, acts: bool) -> Climate {
        match (acts, self) {
            (false, _) => Climate::Calm,
            (true, Self::Calm) => Climate::ActsAlone,
            (true, Self::Act) => Climate::Overload,
        }
    }
}

/// The level of the request rate, in requests per second.
///
/// `threshold = max(floor_rps, trip_factor · (mean + sigmas · σ))` over the samples of `baseline_window`; one sample a period from
/// the cumulative number of offered requests. Offered, not admitted: what the level itself refuses must not look like recovery.
/// Until `min_samples` samples are learned it cannot trip. While it acts nothing is learned, unless it has acted alone for a whole
/// window: then that window is the new baseline, so a permanent doubling is learned within one window and a burst never.
#[derive(Debug, Clone)]
pub struct QpsLevel {
    config: QpsConfig,
    gauge: Gauge,
    baseline: Baseline,
    /// Time and total of the last sample.
    last: Option<(Timestamp, u64)>,
}

impl QpsLevel {
    /// A level that has learned nothing.
    #[must_use]
    pub fn new(config: &QpsConfig, hysteresis: &HysteresisConfig) -> Self {
        let trip = if config.enabled { Trip::new(hysteresis) } else { Trip::disabled(hysteresis) };
        Self {
            config: config.clone(),
            gauge: Gauge::new(LevelKind::Qps, trip),
            baseline: Baseline::new(window_samples(config)),
            last: None,
        }
    }

    /// Takes over a changed policy. What was learned is kept while period and window stay the same.
    pub fn set_config(&mut self, config: &QpsConfig, hysteresis: &HysteresisConfig) {
        if self.config == *config {
            self.gauge.trip.set_hysteresis(hysteresis);
            return;
        }
        let fresh = Self::new(config, hysteresis);
        let learned = (self.config.sample, self.config.baseline_window) == (config.sample, config.baseline_window);
        let before = core::mem::replace(self, fresh);
        if learned {
            self.baseline = before.baseline;
            self.last = before.last;
        }
    }

    /// Takes in the cumulative number of offered requests. A sample is drawn once a period; a total that shrank starts anew.
    pub fn observe(&mut self, now: Timestamp, offered: u64, source: SignalSource, others: Others) {
        let Some((at, before)) = self.last.filter(|(_, before)| *before <= offered) else {
            self.last = Some((now, offered));
            return;
        };
        let elapsed = now.since(at);
        if elapsed < self.config.sample {
            return;
        }
        self.last = Some((now, offered));
        let rate = (offered - before) as f64 / elapsed.as_secs_f64();
        self.judge(now, rate, source);
        self.baseline.observe(rate, others.climate(self.gauge.trip.acts()));
    }

    /// Lets the next total be the first of a new series of counters.
    pub fn restart(&mut self) {
        self.last = None;
    }

    /// State after the time that has passed.
    pub fn tick(&mut self, now: Timestamp) -> LevelStatus {
        self.gauge.trip.tick(now);
        self.gauge.status(now)
    }

    fn judge(&mut self, now: Timestamp, rate: f64, source: SignalSource) {
        let learned = self.baseline.learned();
        self.gauge.value = rate;
        self.gauge.source = source;
        self.gauge.sampled_at = Some(now);
        let reading = if learned.len() < self.config.min_samples.try_into().unwrap_or(usize::MAX) && !learned.is_full() {
            self.gauge.threshold = 0.0;
            Reading::Learning
        } else {
            let threshold = (self.config.trip_factor * (learned.mean() + self.config.sigmas * learned.sigma())).max(self.config.floor_rps);
            self.gauge.threshold = threshold;
            Reading::Value { value: rate, threshold, evidence: self.gauge.trip.evidence(rate, threshold) }
        };
        self.gauge.trip.observe(now, reading);
    }
}

fn window_samples(config: &QpsConfig) -> usize {
    let samples = config.baseline_window.as_nanos() / config.sample.as_nanos().max(1);
    usize::try_from(samples).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::LevelState;
    use super::*;
    use core::time::Duration;

    struct Bench {
        level: QpsLevel,
        second: u64,
        offered: u64,
    }

    /// 1 s samples, 60 s window, trips at 1.5 × (mean + 2σ), learned after 30 samples, recovers at 90 % after 2 s.
    fn bench() -> Bench {
        let config = QpsConfig { baseline_window: Duration::from_secs(60), ..QpsConfig::default() };
        let hysteresis = HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(2) };
        let mut bench = Bench { level: QpsLevel::new(&config, &hysteresis), second: 0, offered: 0 };
        bench.run(1, 0, Others::Calm);
        bench
    }

    impl Bench {
        fn run(&mut self, seconds: u64, rate: u64, others: Others) -> LevelStatus {
            let mut status = self.level.tick(self.now());
            for _ in 0..seconds {
                self.second += 1;
                self.offered += rate;
                self.level.observe(self.now(), self.offered, SignalSource::Filters, others);
                status = self.level.tick(self.now());
            }
            status
        }

        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.second * 1000)
        }
    }

    #[test]
    fn does_not_trip_while_it_learns() {
        let mut bench = bench();
        assert_eq!(bench.run(30, 1000, Others::Calm).state, LevelState::Learning);
    }

    #[test]
    fn trips_at_the_factor_times_the_learned_rate() {
        let mut bench = bench();
        // A constant rate has no deviation: the threshold is 1.5 × 100.
        assert_eq!(bench.run(40, 100, Others::Calm).threshold, 150.0);
        assert_eq!(bench.run(1, 150, Others::Calm).state, LevelState::Ok);
        bench.run(60, 100, Others::Calm);
        let tripped = bench.run(1, 151, Others::Calm);
        assert_eq!((tripped.state, tripped.value), (LevelState::Tripped, 151.0));
    }

    #[test]
    fn never_trips_below_the_floor() {
        let mut bench = bench();
        bench.run(40, 1, Others::Calm);
        // Ten times the baseline, but at the default floor of 10 requests a second.
        assert_eq!(bench.run(5, 10, Others::Calm).state, LevelState::Ok);
    }

    #[test]
    fn overload_does_not_lift_the_threshold() {
        let mut bench = bench();
        bench.run(60, 100, Others::Calm);
        let status = bench.run(1000, 400, Others::Act);
        assert_eq!((status.state, status.threshold), (LevelState::Tripped, 150.0));
    }

    #[test]
    fn a_permanent_doubling_of_a_healthy_pool_is_learned_within_one_window() {
        let mut bench = bench();
        bench.run(60, 100, Others::Calm);
        assert_eq!(bench.run(59, 200, Others::Calm).state, LevelState::Tripped);
        // One window of 60 samples, then the countdown of 2 s.
        let status = bench.run(4, 200, Others::Calm);
        assert_eq!((status.state, status.threshold), (LevelState::Ok, 300.0));
    }

    #[test]
    fn a_burst_is_not_learned() {
        let mut bench = bench();
        bench.run(60, 100, Others::Calm);
        bench.run(20, 500, Others::Calm);
        let status = bench.run(10, 100, Others::Calm);
        assert_eq!((status.state, status.threshold), (LevelState::Ok, 150.0));
    }

    #[test]
    fn counters_that_start_anew_do_not_look_like_a_rate() {
        let mut bench = bench();
        bench.run(60, 100, Others::Calm);
        bench.offered = 0;
        assert_eq!(bench.run(2, 100, Others::Calm).value, 100.0);
    }
}
