//! Share of failures in a sliding window, in O(1) time and memory.

use core::time::Duration;

use crate::policy::ErrorRateConfig;
use crate::time::Timestamp;

/// Slices of a window; a result leaves it after nine to ten tenths of its length.
const SLICES: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    total: u32,
    failed: u32,
}

/// Requests and failures of the trailing window.
#[derive(Debug, Clone)]
pub(super) struct ErrorWindow {
    config: ErrorRateConfig,
    slices: [Slice; SLICES],
    /// Number of the newest slice since the origin of time.
    newest: u64,
    total: u64,
    failed: u64,
}

impl ErrorWindow {
    pub(super) fn new(config: ErrorRateConfig) -> Self {
        Self { config, slices: [Slice::default(); SLICES], newest: 0, total: 0, failed: 0 }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.config);
    }

    pub(super) fn record(&mut self, now: Timestamp, is_failure: bool) {
        self.advance(now);
        self.total = self.total.saturating_add(1);
        self.failed = self.failed.saturating_add(u64::from(is_failure));
        if let Some(slice) = self.slice_mut(self.newest) {
            slice.total = slice.total.saturating_add(1);
            slice.failed = slice.failed.saturating_add(u32::from(is_failure));
        }
    }

    /// Failures in percent of all, when that is at or above the limit and enough requests stand behind it.
    pub(super) fn exceeded(&self) -> Option<f64> {
        let enough = self.total >= u64::from(self.config.min_requests);
        let reached = self.failed.saturating_mul(100) >= self.total.saturating_mul(u64::from(self.config.percent));
        if enough && reached { Some(self.failed as f64 * 100.0 / self.total as f64) } else { None }
    }

    pub(super) fn percent(&self) -> f64 {
        f64::from(self.config.percent)
    }

    fn slice_mut(&mut self, number: u64) -> Option<&mut Slice> {
        self.slices.get_mut((number % SLICES as u64) as usize)
    }

    /// Drops the slices that have left the window.
    fn advance(&mut self, now: Timestamp) {
        let slice_ns = nanos(self.config.window / SLICES as u32).max(1);
        let newest = now.as_nanos() / slice_ns;
        let passed = newest.saturating_sub(self.newest).min(SLICES as u64);
        for number in (newest.saturating_sub(passed) + 1)..=newest {
            let Some(slice) = self.slice_mut(number) else { continue };
            let gone = core::mem::take(slice);
            self.total = self.total.saturating_sub(u64::from(gone.total));
            self.failed = self.failed.saturating_sub(u64::from(gone.failed));
        }
        self.newest = self.newest.max(newest);
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
