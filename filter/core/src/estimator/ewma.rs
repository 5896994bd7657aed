//! Exponentially weighted moving average.

/// `v ← v + α·(x − v)`, beginning at the first sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Ewma {
    alpha: f64,
    value: Option<f64>,
}

impl Ewma {
    /// The weight of a new sample that the background documents ask for.
    pub const DEFAULT_ALPHA: f64 = 0.2;

    /// An average without samples. `alpha` is the weight of a new sample, clamped to `0..=1`; NaN becomes [`Self::DEFAULT_ALPHA`].
    pub fn new(alpha: f64) -> Self {
        let alpha = if alpha.is_nan() { Self::DEFAULT_ALPHA } else { alpha.clamp(0.0, 1.0) };
        Self { alpha, value: None }
    }

    /// Takes a sample in and returns the average. A sample that is not finite is ignored.
    pub fn observe(&mut self, sample: f64) -> Option<f64> {
        if sample.is_finite() {
            self.value = Some(match self.value {
                None => sample,
                Some(value) => value + self.alpha * (sample - value),
            });
        }
        self.value
    }

    /// The average; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        self.value
    }
}

impl Default for Ewma {
    fn default() -> Self {
        Self::new(Self::DEFAULT_ALPHA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_the_first_sample_and_closes_a_fifth_of_the_gap_each_time() {
        let mut ewma = Ewma::default();
        assert_eq!(ewma.value(), None);
        assert_eq!(ewma.observe(10.0), Some(10.0));
        // 10 + 0.2·(20 − 10)
        assert_eq!(ewma.observe(20.0), Some(12.0));
    }

    #[test]
    fn ignores_samples_that_are_not_numbers() {
        let mut ewma = Ewma::new(0.5);
        ewma.observe(4.0);
        ewma.observe(f64::NAN);
        ewma.observe(f64::INFINITY);
        assert_eq!(ewma.value(), Some(4.0));
    }
}
