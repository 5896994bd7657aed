//! When requests leave: a rate over time, evenly or at random.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// A rate over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrivals {
    /// One after the other.
    pub segments: Vec<Segment>,
    /// How arrivals lie within the rate.
    pub pace: Pace,
}

/// A part of the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// How long it lasts.
    pub length: Duration,
    /// Requests per second; 0 is a pause.
    pub rate_rps: f64,
}

/// How arrivals lie within the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At equal distances.
    Constant,
    /// As a Poisson process: independent users.
    Poisson,
}

impl Arrivals {
    /// Poisson arrivals of one rate.
    #[must_use]
    pub fn poisson(rate_rps: f64, length: Duration) -> Self {
        Self::segments(Pace::Poisson, &[(length, rate_rps)])
    }

    /// Arrivals at equal distances.
    #[must_use]
    pub fn constant(rate_rps: f64, length: Duration) -> Self {
        Self::segments(Pace::Constant, &[(length, rate_rps)])
    }

    /// Segments of a length and a rate each.
    #[must_use]
    pub fn segments(pace: Pace, segments: &[(Duration, f64)]) -> Self {
        Self { segments: segments.iter().map(|&(length, rate_rps)| Segment { length, rate_rps }).collect(), pace }
    }

    /// Length of the whole schedule.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Arrival times since the start, ascending, the same for the same seed.
    pub(crate) fn times(&self, seed: u64) -> Times {
        Times { arrivals: self.clone(), rng: StdRng::seed_from_u64(seed), mass: 0.0, segment: 0, before: Duration::ZERO, mass_before: 0.0 }
    }
}

/// Iterator over arrival times.
///
/// The k-th arrival lies where the integral of the rate reaches the k-th point of a unit-rate process (its time-change theorem), so a
/// change of rate needs no special case.
pub(crate) struct Times {
    arrivals: Arrivals,
    rng: StdRng,
    /// Point of the unit-rate process that was reached.
    mass: f64,
    segment: usize,
    /// Time and integral of the rate at the start of `segment`.
    before: Duration,
    mass_before: f64,
}

impl Iterator for Times {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.mass += match self.arrivals.pace {
            Pace::Constant => 1.0,
            // 1 - u lies in (0, 1], so the logarithm is finite.
            Pace::Poisson => -(1.0 - self.rng.random::<f64>()).ln(),
        };
        loop {
            let Segment { length, rate_rps } = *self.arrivals.segments.get(self.segment)?;
            let mass_after = self.mass_before + rate_rps * length.as_secs_f64();
            if self.mass <= mass_after && rate_rps > 0.0 {
                return Some(self.before + Duration::from_secs_f64((self.mass - self.mass_before) / rate_rps));
            }
            self.before += length;
            self.mass_before = mass_after;
            self.segment += 1;
        }
    }
}
