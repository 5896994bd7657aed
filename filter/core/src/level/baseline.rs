//! What is normal for a signal, learned from the time in which nothing acts.

use crate::estimator::MovingStats;

/// Whether a sample may be learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Climate {
    /// The level does not act.
    Calm,
    /// The level acts and no other does: the pool itself shows no sign of overload.
    ActsAlone,
    /// The level acts and another does too: this is overload.
    Overload,
}

/// Moving statistics that overload cannot drag upwards.
///
/// While its level acts, nothing is learned. A signal that has really moved would otherwise be held down for ever: when the level
/// has acted for a whole window while no other level did, the samples of that window become the baseline. So a permanent doubling
/// is learned within one window, and a burst or an overload that the pool itself shows is never learned.
#[derive(Debug, Clone)]
pub(super) struct Baseline {
    learned: MovingStats,
    /// Samples of the time in which the level has acted alone.
    candidate: MovingStats,
}

impl Baseline {
    pub(super) fn new(window_samples: usize) -> Self {
        Self { learned: MovingStats::new(window_samples), candidate: MovingStats::new(window_samples) }
    }

    /// Takes a sample in as the climate allows.
    pub(super) fn observe(&mut self, sample: f64, climate: Climate) {
        match climate {
            Climate::Calm => {
                self.candidate.clear();
                self.learned.observe(sample);
            }
            Climate::Overload => self.candidate.clear(),
            Climate::ActsAlone => {
                self.candidate.observe(sample);
                if self.candidate.is_full() {
                    core::mem::swap(&mut self.learned, &mut self.candidate);
                    self.candidate.clear();
                }
            }
        }
    }

    /// What has been learned.
    pub(super) fn learned(&self) -> &MovingStats {
        &self.learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_is_never_learned() {
        let mut baseline = Baseline::new(4);
        (0..4).for_each(|_| baseline.observe(10.0, Climate::Calm));
        (0..100).for_each(|_| baseline.observe(90.0, Climate::Overload));
        assert_eq!(baseline.learned().mean(), 10.0);
    }

    #[test]
    fn a_signal_that_moved_alone_is_learned_after_a_whole_window_and_not_before() {
        let mut baseline = Baseline::new(4);
        (0..4).for_each(|_| baseline.observe(10.0, Climate::Calm));
        (0..3).for_each(|_| baseline.observe(20.0, Climate::ActsAlone));
        baseline.observe(20.0, Climate::Overload);
        (0..3).for_each(|_| baseline.observe(20.0, Climate::ActsAlone));
        assert_eq!(baseline.learned().mean(), 10.0, "the overload between them started the count anew");
        baseline.observe(20.0, Climate::ActsAlone);
        assert_eq!(baseline.learned().mean(), 20.0);
    }
}
