//! Level of GPU memory: trips above a share of the total.

use core::time::Duration;

use super::{Gauge, LevelKind, LevelStatus, Reading, SignalSource, Trip};
use crate::policy::{GpuMemoryConfig, HysteresisConfig};
use crate::time::Timestamp;

/// Sampling periods after which a sample is stale.
const STALE_PERIODS: u32 = 3;
/// Age below which no sample is stale, however short the period. While a process makes its CUDA context the driver answers late: on an
/// H200 (driver 580), sampled every 20 ms, by 88 to 102 ms for each of 6 processes that came to a GPU without another, so that a sample
/// was 123 ms old before the next was there. A tripped level must not open its gate each time that happens.
const MIN_STALE_AGE: Duration = Duration::from_millis(250);

/// Memory of the pool's GPUs, or what stands for it ([`Self::of_kv_cache`]), at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemorySample {
    /// When it was taken, on the clock of `now`.
    pub at: Timestamp,
    /// Memory in use, in bytes, over all devices of the pool.
    pub used_bytes: u64,
    /// Total memory, in bytes, over all devices of the pool.
    pub total_bytes: u64,
    /// Who measured it.
    pub source: SignalSource,
}

impl GpuMemorySample {
    /// Memory in use in percent of the total; `None` when there is no memory at all.
    #[must_use]
    pub fn percent(&self) -> Option<f64> {
        (self.total_bytes > 0).then(|| self.used_bytes as f64 / self.total_bytes as f64 * 100.0)
    }
}

/// The level of GPU memory, in percent of the total. It trips above `trip_percent`; a sample older than three sampling periods, and
/// than 250 ms, is stale and takes the level out of the decision.
#[derive(Debug, Clone)]
pub struct GpuMemoryLevel {
    trip_percent: f64,
    stale_after: Duration,
    gauge: Gauge,
}

impl GpuMemoryLevel {
    /// A level without a sample.
    #[must_use]
    pub fn new(config: &GpuMemoryConfig, hysteresis: &HysteresisConfig) -> Self {
        let trip = if config.enabled { Trip::new(hysteresis) } else { Trip::disabled(hysteresis) };
        let mut gauge = Gauge::new(LevelKind::GpuMemory, trip);
        gauge.threshold = config.trip_percent;
        Self { trip_percent: config.trip_percent, stale_after: config.stale_after(), gauge }
    }

    /// Takes over a changed policy and keeps state and sample.
    pub fn set_config(&mut self, config: &GpuMemoryConfig, hysteresis: &HysteresisConfig) {
        self.trip_percent = config.trip_percent;
        self.stale_after = config.stale_after();
        self.gauge.threshold = config.trip_percent;
        self.gauge.trip.set_hysteresis(hysteresis);
        if config.enabled {
            self.gauge.trip.enable();
        } else {
            self.gauge.trip.disable();
        }
    }

    /// Takes in the newest sample; the same one may come again. A sample without any memory is no sample.
    pub fn observe(&mut self, now: Timestamp, sample: &GpuMemorySample) {
        let Some(value) = sample.percent() else { return };
        self.gauge.value = value;
        self.gauge.source = sample.source;
        self.gauge.sampled_at = Some(sample.at);
        if now.since(sample.at) <= self.stale_after {
            let evidence = self.gauge.trip.evidence(value, self.trip_percent);
            self.gauge.trip.observe(now, Reading::Value { value, threshold: self.trip_percent, evidence });
        }
    }

    /// State after the time that has passed.
    pub fn tick(&mut self, now: Timestamp) -> LevelStatus {
        match self.gauge.sampled_at {
            Some(at) if now.since(at) > self.stale_after => self.gauge.trip.observe(now, Reading::Stale),
            _ => self.gauge.trip.tick(now),
        }
        self.gauge.status(now)
    }
}

impl GpuMemoryConfig {
    /// Age at which a sample leaves the decision: three sampling periods, but not less than 250 ms.
    #[must_use]
    pub fn stale_after(&self) -> Duration {
        self.sample.saturating_mul(STALE_PERIODS).max(MIN_STALE_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::LevelState;
    use super::*;

    fn level() -> GpuMemoryLevel {
        GpuMemoryLevel::new(&GpuMemoryConfig::default(), &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) })
    }

    fn see(level: &mut GpuMemoryLevel, at_ms: u64, percent: u64) -> LevelStatus {
        let at = Timestamp::from_millis(at_ms);
        level.observe(at, &GpuMemorySample { at, used_bytes: percent << 30, total_bytes: 100 << 30, source: SignalSource::Nvml });
        level.tick(at)
    }

    #[test]
    fn waits_for_a_first_sample() {
        assert_eq!(level().tick(Timestamp::from_millis(9000)).state, LevelState::Learning);
    }

    #[test]
    fn trips_above_three_quarters_and_recovers_below_nine_tenths_of_that() {
        let mut level = level();
        assert_eq!(see(&mut level, 0, 75).state, LevelState::Ok);
        let tripped = see(&mut level, 100, 76);
        assert_eq!((tripped.state, tripped.value, tripped.threshold), (LevelState::Tripped, 76.0, 75.0));
        // 0.9 × 75 = 67.5.
        assert_eq!(see(&mut level, 200, 68).state, LevelState::Tripped);
        assert_eq!(see(&mut level, 300, 67).state, LevelState::Recovering);
        assert_eq!(see(&mut level, 1300, 67).state, LevelState::Ok);
    }

    #[test]
    fn is_stale_when_three_periods_brought_no_sample() {
        let mut level = level();
        see(&mut level, 0, 99);
        assert_eq!(level.tick(Timestamp::from_millis(300)).state, LevelState::Tripped);
        let status = level.tick(Timestamp::from_millis(301));
        assert_eq!((status.state, status.age), (LevelState::Stale, Duration::from_millis(301)));
    }

    #[test]
    fn a_driver_that_answers_late_is_not_stale_however_short_the_period() {
        let config = GpuMemoryConfig { sample: Duration::from_millis(20), ..GpuMemoryConfig::default() };
        let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
        see(&mut level, 0, 99);
        assert_eq!(level.tick(Timestamp::from_millis(250)).state, LevelState::Tripped);
        assert_eq!(level.tick(Timestamp::from_millis(251)).state, LevelState::Stale);
    }

    #[test]
    fn a_sample_without_memory_is_no_sample() {
        let mut level = level();
        let at = Timestamp::ZERO;
        level.observe(at, &GpuMemorySample { at, used_bytes: 0, total_bytes: 0, source: SignalSource::Nvml });
        assert_eq!(level.tick(at).state, LevelState::Learning);
    }
}
