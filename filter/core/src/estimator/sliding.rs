//! Histogram of a sliding window of time.

use alloc::vec::Vec;
use core::time::Duration;

use crate::histogram::{Histogram, HistogramDelta};
use crate::time::Timestamp;

/// Samples of the last `window`, kept in slices of equal length, so that they expire a slice at a time.
///
/// The window covers between `window − window/slices` and `window`. Memory does not depend on the number of samples.
#[derive(Debug, Clone)]
pub struct SlidingHistogram {
    slices: Vec<Slice>,
    slice_ns: u64,
}

#[derive(Debug, Clone, Default)]
struct Slice {
    /// Number of the slice since the clock's zero; 0 for one that was never used.
    number: u64,
    histogram: Histogram,
}

impl SlidingHistogram {
    /// An empty window of `slices` slices, at least one; a slice is at least 1 ns long.
    pub fn new(window: Duration, slices: u32) -> Self {
        let slices = slices.max(1);
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let slice_ns = (window_ns / u64::from(slices)).max(1);
        Self { slices: (0..slices).map(|_| Slice::default()).collect(), slice_ns }
    }

    /// Counts one sample now.
    pub fn record(&mut self, now: Timestamp, value: u64) {
        if let Some(histogram) = self.current(now) {
            histogram.record(value);
        }
    }

    /// Counts all samples of `samples` as taken now.
    pub fn merge(&mut self, now: Timestamp, samples: &Histogram) {
        if let Some(histogram) = self.current(now) {
            histogram.merge(samples);
        }
    }

    /// Counts all samples of `delta` as taken now.
    pub fn add(&mut self, now: Timestamp, delta: &HistogramDelta) {
        if let Some(histogram) = self.current(now) {
            histogram.add_delta(delta);
        }
    }

    /// All samples of the window that ends now.
    pub fn window(&self, now: Timestamp) -> Histogram {
        let number = self.number(now);
        let mut merged = Histogram::new();
        for slice in &self.slices {
            if slice.number <= number && number - slice.number < self.slices.len() as u64 {
                merged.merge(&slice.histogram);
            }
        }
        merged
    }

    /// All samples of the whole slices before the one that `now` lies in, as long as nothing has been counted in that one yet.
    pub fn completed(&self, now: Timestamp) -> Histogram {
        let number = self.number(now);
        let mut merged = Histogram::new();
        for slice in &self.slices {
            if slice.number < number && number - slice.number <= self.slices.len() as u64 {
                merged.merge(&slice.histogram);
            }
        }
        merged
    }

    /// Number of the slice that `now` lies in; it grows by one every `window / slices`.
    pub fn number(&self, now: Timestamp) -> u64 {
        // Begins at 1: 0 marks a slice that was never used, whose histogram is empty.
        now.as_nanos() / self.slice_ns + 1
    }

    fn current(&mut self, now: Timestamp) -> Option<&mut Histogram> {
        let number = self.number(now);
        let index = usize::try_from(number % self.slices.len() as u64).ok()?;
        let slice = self.slices.get_mut(index)?;
        if slice.number != number {
            slice.number = number;
            slice.histogram.clear();
        }
        Some(&mut slice.histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn samples_leave_when_they_are_older_than_the_window() {
        let mut sliding = SlidingHistogram::new(Duration::from_secs(1), 10);
        sliding.record(at_ms(50), 7);
        sliding.record(at_ms(850), 9);
        assert_eq!(sliding.window(at_ms(950)).count(), 2);
        // The slice 0..100 ms leaves at 1,000 ms, the slice 800..900 ms at 1,800 ms.
        assert_eq!(sliding.window(at_ms(1_000)).quantile(1.0), Some(9));
        assert_eq!(sliding.window(at_ms(1_800)).count(), 0);
    }

    #[test]
    fn a_slice_that_comes_round_again_starts_empty() {
        let mut sliding = SlidingHistogram::new(Duration::from_millis(20), 2);
        for ms in 0..1_000 {
            sliding.record(at_ms(ms), 1);
        }
        // Ten samples of the full slice 980..990 and ten of 990..1000.
        assert_eq!(sliding.window(at_ms(999)).count(), 20);
    }
}
