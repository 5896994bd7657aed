//! Bound on retries: beyond a part of the first attempts of the last 10 s they are refused first.

use crate::time::Timestamp;

/// Length of the window, in buckets of a second.
const SECONDS: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    first_attempts: u32,
    /// Retries that came.
    retries: u32,
    /// Retries that were let through.
    passed: u32,
}

/// Attempts of the last 10 s in one worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct RetryBudget {
    seconds: [Second; SECONDS],
    /// Seconds since the origin of the newest bucket.
    newest: u64,
}

/// Why a retry is beyond the budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OverBudget {
    /// Retries in percent of first attempts.
    pub(crate) percent: f64,
    /// The most that may be.
    pub(crate) limit: f64,
}

impl RetryBudget {
    /// Counts a first attempt.
    pub(crate) fn note_first_attempt(&mut self, now: Timestamp) {
        self.newest(now).first_attempts += 1;
    }

    /// Counts a retry and lets it through while those let through stay within `ratio · first attempts + min_rps · 10 s`; a retry that is
    /// refused takes nothing from those that follow.
    ///
    /// # Errors
    /// The numbers of a refusal.
    pub(crate) fn take(&mut self, now: Timestamp, ratio: f64, min_rps: f64) -> Result<(), OverBudget> {
        self.newest(now).retries += 1;
        let sum = self.seconds.iter().fold([0.0; 3], |[first, retries, passed], second| {
            [first + f64::from(second.first_attempts), retries + f64::from(second.retries), passed + f64::from(second.passed)]
        });
        let [first_attempts, retries, passed] = sum;
        if passed + 1.0 > ratio * first_attempts + min_rps * SECONDS as f64 {
            return Err(OverBudget { percent: 100.0 * retries / first_attempts.max(1.0), limit: 100.0 * ratio });
        }
        self.newest(now).passed += 1;
        Ok(())
    }

    /// The bucket of `now`, after emptying those that have left the window. A clock that steps back counts into the newest.
    fn newest(&mut self, now: Timestamp) -> &mut Second {
        let second = (now.as_nanos() / 1_000_000_000).max(self.newest);
        let passed = usize::try_from(second - self.newest).unwrap_or(SECONDS).min(SECONDS);
        for step in 1..=passed as u64 {
            let index = (self.newest + step) as usize % SECONDS;
            if let Some(bucket) = self.seconds.get_mut(index) {
                *bucket = Second::default();
            }
        }
        if passed == SECONDS {
            self.seconds = [Second::default(); SECONDS];
        }
        self.newest = second;
        let [first, rest @ ..] = &mut self.seconds;
        match (second % SECONDS as u64) as usize {
            0 => first,
            index => rest.get_mut(index - 1).unwrap_or(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    /// Retries out of `retries` that pass in a second with `first` first attempts.
    fn passed(budget: &mut RetryBudget, second: u64, first: u32, retries: u32) -> usize {
        (0..first).for_each(|_| budget.note_first_attempt(at(second)));
        (0..retries).filter(|_| budget.take(at(second), 0.1, 0.0).is_ok()).count()
    }

    #[test]
    fn retries_pass_up_to_their_part_of_first_attempts_however_many_come() {
        let mut budget = RetryBudget::default();
        let sum: usize = (100..110).map(|second| passed(&mut budget, second, 100, 1000)).sum();
        assert_eq!(sum, 100);
        assert_eq!(passed(&mut budget, 111, 100, 1000), 10, "what left the window makes room");
    }

    #[test]
    fn a_few_retries_always_pass_and_the_refusal_has_numbers() {
        let mut budget = RetryBudget::default();
        budget.note_first_attempt(at(50));
        let passed = (0..100).filter(|_| budget.take(at(50), 0.1, 1.0).is_ok()).count();
        assert_eq!(passed, 10, "1 per second over 10 s");
        assert_eq!(budget.take(at(50), 0.1, 1.0), Err(OverBudget { percent: 10_100.0, limit: 10.0 }));
    }

    #[test]
    fn a_pause_longer_than_the_window_forgets_everything() {
        let mut budget = RetryBudget::default();
        assert_eq!(passed(&mut budget, 5, 1000, 0), 0);
        assert_eq!(passed(&mut budget, 1_000_005, 0, 10), 0);
        assert_eq!(passed(&mut budget, 4, 0, 10), 0, "nor does a clock that steps back bring it back");
    }
}
