//! Token bucket of a throttled class.

use crate::time::Timestamp;

/// A bucket that fills at `rate_rps` up to `burst` requests; each admitted request takes one.
///
/// A change of the rate keeps what is in the bucket: a control loop that pushes a new rate every 100 ms must not hand out a new
/// burst every 100 ms.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate_rps: f64,
    burst: f64,
    tokens: f64,
    filled_at: Timestamp,
}

impl TokenBucket {
    /// A bucket that holds one request, or `burst` where that is less: whoever was just admitted without a bound has had its burst.
    #[must_use]
    pub fn new(now: Timestamp, rate_rps: f64, burst: f64) -> Self {
        Self { rate_rps, burst, tokens: burst.min(1.0), filled_at: now }
    }

    /// A bucket that holds all of `burst`: whoever comes first may use it at once, as in Envoy's own `local_ratelimit`.
    #[must_use]
    pub fn full(now: Timestamp, rate_rps: f64, burst: f64) -> Self {
        Self { rate_rps, burst, tokens: burst, filled_at: now }
    }

    /// Fills at `rate_rps` up to `burst` from `now` on. Until `now` the old rate counts; tokens above the new burst are lost.
    pub fn set_rate(&mut self, now: Timestamp, rate_rps: f64, burst: f64) {
        self.fill(now);
        self.rate_rps = rate_rps;
        self.burst = burst;
        self.tokens = self.tokens.min(burst);
    }

    /// Takes one request out; false when there is none.
    pub fn take(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        let admits = self.tokens >= 1.0;
        if admits {
            self.tokens -= 1.0;
        }
        admits
    }

    /// Puts one request back that was taken and then not admitted.
    pub fn put_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst);
    }

    /// Takes `amount` out while there is anything in it, so that an amount larger than the burst passes, too; the debt is paid first.
    pub fn take_amount(&mut self, now: Timestamp, amount: f64) -> bool {
        self.fill(now);
        let admits = self.tokens > 0.0;
        if admits {
            self.tokens -= amount;
        }
        admits
    }

    /// Counts an amount that passed without asking: it uses up what there is and makes no debt.
    pub fn use_up(&mut self, now: Timestamp, amount: f64) {
        self.fill(now);
        self.tokens = self.tokens.min((self.tokens - amount).max(0.0));
    }

    fn fill(&mut self, now: Timestamp) {
        let elapsed_s = now.since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed_s * self.rate_rps).min(self.burst);
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn taken(bucket: &mut TokenBucket, from: Timestamp, span: Duration, tries: u32) -> u32 {
        (0..tries).filter(|attempt| bucket.take(from + span * *attempt / tries)).count() as u32
    }

    #[test]
    fn admits_its_rate_and_no_more_over_ten_seconds() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 50.0, 5.0);
        let admitted = taken(&mut bucket, Timestamp::ZERO, Duration::from_secs(10), 10_000);
        // 50/s for 10 s and the one request that it starts with.
        assert!((499..=501).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::full(Timestamp::ZERO, 10.0, 3.0);
        assert_eq!([(); 4].map(|()| bucket.take(Timestamp::ZERO)), [true, true, true, false]);
        assert!(!bucket.take(Timestamp::from_millis(99)), "a token comes every 100 ms");
        assert!(bucket.take(Timestamp::from_millis(100)));
    }

    #[test]
    fn never_holds_more_than_its_burst() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 100.0, 7.0);
        let later = Timestamp::ZERO + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 7);
    }

    #[test]
    fn a_change_of_the_rate_does_not_refill() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 10.0, 10.0);
        let mut now = Timestamp::ZERO;
        let mut admitted = 0;
        for step in 0..100 {
            bucket.set_rate(now, 10.0 + f64::from(step % 2), 10.0);
            admitted += taken(&mut bucket, now, Duration::from_millis(100), 20);
            now = now + Duration::from_millis(100);
        }
        // 10.5/s on average for 10 s.
        assert!((103..=107).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_gives_nothing() {
        let start = Timestamp::from_millis(1000);
        let mut bucket = TokenBucket::new(start, 1000.0, 1.0);
        assert!(bucket.take(start));
        assert!(!bucket.take(start));
        assert!(!bucket.take(Timestamp::ZERO));
        assert!(!bucket.take(start), "the step back must not count as elapsed time later");
    }

    #[test]
    fn large_amounts_pass_at_the_rate_and_what_passed_without_asking_counts() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 100.0, 100.0);
        let passed = (1..=1000).filter(|step| bucket.take_amount(Timestamp::from_millis(step * 10), 500.0)).count();
        // 100/s for 10 s in pieces of 500, and the one that it starts with.
        assert!((2..=3).contains(&passed), "{passed}");
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 100.0, 100.0);
        bucket.use_up(Timestamp::from_millis(500), 1e6);
        assert!(!bucket.take_amount(Timestamp::from_millis(500), 1.0));
        assert!(bucket.take_amount(Timestamp::from_millis(510), 1.0), "no debt");
    }

    #[test]
    fn a_rate_of_zero_admits_nothing_more() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 0.0, 1.0);
        assert_eq!(taken(&mut bucket, Timestamp::ZERO, Duration::from_secs(100), 100), 1);
    }
}
