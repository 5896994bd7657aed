//! Mean and standard deviation of the newest samples.

use alloc::vec::Vec;

/// Mean and standard deviation of the newest `capacity` samples, in O(1) per sample.
///
/// The sums are those of Welford's method with replacement; they are computed anew from the ring whenever it has turned once, so
/// rounding errors do not add up over days. Memory: `capacity` × 8 bytes, allocated as samples come.
#[derive(Debug, Clone, PartialEq)]
pub struct MovingStats {
    ring: Vec<f64>,
    capacity: usize,
    next: usize,
    mean: f64,
    /// Sum of squared distances from the mean.
    spread: f64,
}

impl MovingStats {
    /// Statistics of the newest `capacity` samples; at least one.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Vec::new(), capacity: capacity.max(1), next: 0, mean: 0.0, spread: 0.0 }
    }

    /// Takes a sample in; the oldest leaves when the ring is full. A sample that is not finite is ignored.
    pub fn observe(&mut self, sample: f64) {
        if !sample.is_finite() {
            return;
        }
        match self.ring.get_mut(self.next) {
            Some(oldest) => {
                let left = core::mem::replace(oldest, sample);
                let change = sample - left;
                let mean = self.mean + change / self.ring.len() as f64;
                self.spread += change * ((sample - mean) + (left - self.mean));
                self.mean = mean;
            }
            None => {
                self.ring.push(sample);
                let distance = sample - self.mean;
                self.mean += distance / self.ring.len() as f64;
                self.spread += distance * (sample - self.mean);
            }
        }
        self.next += 1;
        if self.next >= self.capacity {
            self.next = 0;
            self.recompute();
        }
    }

    /// Samples held, at most the capacity.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether no sample has come yet.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Whether the window is full.
    pub fn is_full(&self) -> bool {
        self.ring.len() >= self.capacity
    }

    /// Mean; 0 without samples.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Standard deviation of the population; 0 without samples, never NaN.
    pub fn sigma(&self) -> f64 {
        if self.ring.is_empty() { 0.0 } else { libm::sqrt((self.spread / self.ring.len() as f64).max(0.0)) }
    }

    /// Forgets all samples and keeps the memory.
    pub fn clear(&mut self) {
        self.ring.clear();
        self.next = 0;
        self.mean = 0.0;
        self.spread = 0.0;
    }

    fn recompute(&mut self) {
        let n = self.ring.len() as f64;
        self.mean = self.ring.iter().sum::<f64>() / n;
        self.spread = self.ring.iter().map(|sample| (sample - self.mean) * (sample - self.mean)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(samples: &[f64]) -> (f64, f64) {
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        (mean, libm::sqrt(samples.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / n))
    }

    #[test]
    fn is_zero_without_samples() {
        let stats = MovingStats::new(3);
        assert!(stats.is_empty());
        assert_eq!((stats.mean(), stats.sigma()), (0.0, 0.0));
    }

    #[test]
    fn forgets_samples_older_than_the_window() {
        let mut stats = MovingStats::new(2);
        for sample in [1000.0, 1.0, 3.0] {
            stats.observe(sample);
        }
        // Mean of 1 and 3; each is 1 away from it.
        assert_eq!((stats.mean(), stats.sigma()), (2.0, 1.0));
    }

    #[test]
    fn stays_accurate_when_huge_samples_pass_through() {
        let mut stats = MovingStats::new(10);
        stats.observe(1e15);
        for turn in 0..35 {
            stats.observe(f64::from(turn % 2));
        }
        assert!((stats.mean() - 0.5).abs() < 1e-9, "{}", stats.mean());
        assert!((stats.sigma() - 0.5).abs() < 1e-9, "{}", stats.sigma());
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(samples in prop::collection::vec(0.0..1e6_f64, 1..200), capacity in 1..50_usize) {
            let mut stats = MovingStats::new(capacity);
            samples.iter().for_each(|s| stats.observe(*s));
            let (mean, sigma) = naive(&samples[samples.len().saturating_sub(capacity)..]);
            prop_assert!((stats.mean() - mean).abs() < 1e-3, "{} {mean}", stats.mean());
            prop_assert!((stats.sigma() - sigma).abs() < 1e-2, "{} {sigma}", stats.sigma());
        }
    }
}
