//! Whether more work in flight still brings more work done.
//!
//! Cinnamon's covariance guard: when the number in flight and the work finished do not rise together while latency rises, the limit is
//! beyond the knee, and it is lowered; a new, slower latency is never taken for the norm.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::time::Timestamp;

/// Period of a sample: several responses.
const PERIOD: Duration = Duration::from_millis(500);
/// Samples that are compared: eight seconds, longer than most bursts.
const SAMPLES: usize = 16;
/// Spread of the number in flight, as a part of its mean, below which a covariance says nothing.
const LEAST_SPREAD: f64 = 0.03;
/// Growth of latency from the older to the newer half that counts as rising.
const RISES: f64 = 1.15;

#[derive(Debug, Clone, Copy)]
struct Sample {
    in_flight: f64,
    finished: f64,
    latency_s: f64,
}

/// The guard of one pool.
#[derive(Debug, Clone, Default)]
pub(super) struct CovarianceGuard {
    samples: VecDeque<Sample>,
    began: Option<Timestamp>,
    sum: (f64, f64, f64),
    ticks: f64,
}

impl CovarianceGuard {
    /// Takes in one tick: streams in flight, work finished per second, mean latency in seconds. Returns whether more is futile; then the
    /// samples begin anew, since they tell of the limit before.
    pub(super) fn observe(&mut self, now: Timestamp, in_flight: f64, finished: f64, latency_s: f64) -> bool {
        let began = *self.began.get_or_insert(now);
        self.sum = (self.sum.0 + in_flight, self.sum.1 + finished, self.sum.2 + latency_s);
        self.ticks += 1.0;
        if now.since(began) < PERIOD {
            return false;
        }
        let (in_flight, finished, latency_s) = core::mem::take(&mut self.sum);
        let ticks = core::mem::take(&mut self.ticks).max(1.0);
        self.began = None;
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { in_flight: in_flight / ticks, finished: finished / ticks, latency_s: latency_s / ticks });
        let futile = self.is_futile();
        if futile {
            self.samples.clear();
        }
        futile
    }

    fn is_futile(&self) -> bool {
        if self.samples.len() < SAMPLES {
            return false;
        }
        let n = self.samples.len() as f64;
        let mean = |of: fn(&Sample) -> f64| self.samples.iter().map(of).sum::<f64>() / n;
        let (mean_in_flight, mean_finished) = (mean(|s| s.in_flight), mean(|s| s.finished));
        let moment = |f: &dyn Fn(&Sample) -> f64| self.samples.iter().map(f).sum::<f64>() / n;
        let variance = moment(&|s| (s.in_flight - mean_in_flight) * (s.in_flight - mean_in_flight));
        let covariance = moment(&|s| (s.in_flight - mean_in_flight) * (s.finished - mean_finished));
        let half = SAMPLES / 2;
        let older: f64 = self.samples.iter().take(half).map(|s| s.latency_s).sum();
        let newer: f64 = self.samples.iter().skip(half).map(|s| s.latency_s).sum();
        let spread = LEAST_SPREAD * mean_in_flight;
        variance > spread * spread && covariance <= 0.0 && newer > RISES * older
    }
}
