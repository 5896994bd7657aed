//! Another machine's monotonic clock, read on ours.
//!
//! Neither calendar takes part, so none can step. Each message says when it was made on its sender's clock; arrival minus that is the
//! distance of the two clocks plus the time on the way. The least of the last seconds, less half of the shortest round trip, is the
//! distance, wrong by no more than half a round trip. A sender that was suspended, or whose clock drifts, is followed within
//! [`SPAN`] at most; until then its samples look older than they are, never younger.

use std::time::Duration;

use headgate_core::time::Timestamp;

/// Time over which the least distance is taken.
const SPAN: Duration = Duration::from_secs(10);

/// The distance to one sender's clock.
#[derive(Clone, Debug, Default)]
pub struct PeerClock {
    /// Least distances of this span and of the one before, in nanoseconds.
    least: [Option<i128>; 2],
    since: Timestamp,
    last_sent_ns: u64,
}

// === impl PeerClock ===

impl PeerClock {
    /// Takes in a message that was made at `sent_ns` on its sender's clock and arrived at `now` on ours.
    pub fn observe(&mut self, now: Timestamp, sent_ns: u64) {
        let distance = i128::from(now.as_nanos()) - i128::from(sent_ns);
        if sent_ns < self.last_sent_ns {
            // A monotonic clock does not go back: it is another clock.
            self.least = [None; 2];
            self.since = now;
        } else if now.since(self.since) >= SPAN {
            self.least = [None, self.least[0]];
            self.since = now;
        }
        self.last_sent_ns = sent_ns;
        self.least[0] = Some(self.least[0].map_or(distance, |least| least.min(distance)));
    }

    /// A moment of the sender's clock on ours: not after `now`, and at the earliest our zero.
    pub fn to_ours(&self, now: Timestamp, theirs_ns: u64, round_trip: Duration) -> Timestamp {
        let Some(least) = self.least.iter().flatten().min() else { return now };
        let half = i128::try_from(round_trip.as_nanos() / 2).unwrap_or(0);
        let ours = (i128::from(theirs_ns) + least - half).clamp(0, i128::from(now.as_nanos()));
        Timestamp::from_nanos(u64::try_from(ours).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender whose clock is `ahead_ms` ahead of ours and whose messages take `way_ms`; gives the age of its sample, in ms.
    fn age(clock: &mut PeerClock, now_ms: u64, ahead_ms: u64, way_ms: u64) -> u64 {
        let now = Timestamp::from_millis(now_ms);
        let sent_ns = (now_ms - way_ms + ahead_ms) * 1_000_000;
        clock.observe(now, sent_ns);
        now.since(clock.to_ours(now, sent_ns, Duration::from_millis(2))).as_millis() as u64
    }

    #[test]
    fn the_age_is_the_time_on_the_way_whatever_the_clocks_say() {
        let mut clock = PeerClock::default();
        assert_eq!(age(&mut clock, 1000, 5_000_000, 1), 1);
        assert_eq!(age(&mut clock, 1100, 5_000_000, 80), 80, "a message that was held up is old");
        assert_eq!(age(&mut clock, 1200, 5_000_000, 1), 1);
    }

    #[test]
    fn a_clock_that_steps_back_is_another_clock() {
        let mut clock = PeerClock::default();
        assert_eq!(age(&mut clock, 1000, 9000, 1), 1);
        assert_eq!(age(&mut clock, 1100, 3000, 1), 1);
    }

    #[test]
    fn a_clock_that_steps_forward_makes_nothing_older_and_nothing_from_the_future() {
        let mut clock = PeerClock::default();
        assert_eq!(age(&mut clock, 1000, 3000, 1), 1);
        assert_eq!(age(&mut clock, 1100, 9000, 1), 1);
        let now = Timestamp::from_millis(1200);
        assert_eq!(clock.to_ours(now, u64::MAX, Duration::ZERO), now);
    }

    #[test]
    fn a_sender_that_was_suspended_looks_old_and_is_believed_again() {
        let mut clock = PeerClock::default();
        let mut ages = Vec::new();
        for n in 0..400 {
            // After 10 s its clock stands still for 5 s.
            let behind = if n < 100 { 0 } else { 5000 };
            ages.push(age(&mut clock, 10_000 + n * 100, 8000 - behind, 1));
        }
        assert_eq!((ages[99], ages[399]), (1, 1));
        assert!(ages.iter().all(|age| (1..=5001).contains(age)), "{ages:?}");
    }
}
