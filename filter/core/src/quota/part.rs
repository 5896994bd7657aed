//! What one worker asks of a quota, by which its proxy's lease is divided among the workers.

use crate::time::Timestamp;

/// Time over which a rate is taken, in seconds.
const LEAST_S: f64 = 0.1;
/// Time constants of the means whose greater one counts, in seconds: a worker that is asked for more gets more at once, and keeps it for as long
/// as chance may explain that it is asked for less.
const MEMORIES_S: [f64; 2] = [0.5, 4.0];

/// The estimate of one quota in one worker.
#[derive(Debug, Clone, Copy, Default)]
pub struct PartDemand {
    /// What had been asked for in all, then.
    asked: f64,
    at: Timestamp,
    means: [f64; 2],
}

impl PartDemand {
    /// Takes what has been asked for in all up to `now`.
    pub fn roll(&mut self, now: Timestamp, asked: f64) {
        let elapsed_s = now.since(self.at).as_secs_f64();
        if elapsed_s < LEAST_S {
            return;
        }
        let rate = (asked - self.asked).max(0.0) / elapsed_s;
        for (mean, memory_s) in self.means.iter_mut().zip(MEMORIES_S) {
            *mean += (rate - *mean) * (1.0 - libm::exp(-elapsed_s / memory_s));
        }
        (self.asked, self.at) = (asked, now);
    }

    /// In the quota's unit per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.means.iter().copied().fold(0.0, f64::max)
    }
}
