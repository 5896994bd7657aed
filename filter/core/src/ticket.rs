//! When refused clients are told to come back: a virtual ticket clock for each class.

use core::time::Duration;

use crate::rng::Rng;
use crate::time::Timestamp;

/// Part of the wait that is added at random, at most.
const JITTER: f64 = 0.25;
/// Range of the wait while nobody knows how fast the pool drains: 1 s to half of the cap.
const UNKNOWN_DRAIN_MIN: Duration = Duration::from_secs(1);

/// Hands out one slot of the pool's future capacity to each refused request, so that N refused clients get N different times to
/// come back instead of one.
///
/// `t = max(now, next_free) + 1 / drain`, `next_free = t`, `retry_after = (t − now) × (1 + U(0, 0.25))`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TicketClock {
    next_free: Timestamp,
}

impl TicketClock {
    /// Time after which the client should come back; more than zero, at most `cap`.
    ///
    /// `drain_rps`: requests of this class per second that this worker can expect to admit; anything but a positive number means
    /// unknown, and then the wait is uniform between 1 s and half of `cap` (never less than 1 s). A slot whose wait with full
    /// jitter would pass the cap is spread over the last fifth below it; `next_free` stops at `now + cap`, so a flood does not
    /// push the slots of later clients away.
    pub fn retry_after(&mut self, now: Timestamp, drain_rps: f64, cap: Duration, rng: &mut Rng) -> Duration {
        if !drain_rps.is_finite() || drain_rps <= 0.0 {
            return unknown_drain(cap, rng);
        }
        let spacing = Duration::try_from_secs_f64(1.0 / drain_rps).unwrap_or(cap).min(cap);
        let slot = (self.next_free.max(now) + spacing).min(now + cap);
        self.next_free = slot;
        jittered(slot.since(now), cap, rng)
    }
}

fn unknown_drain(cap: Duration, rng: &mut Rng) -> Duration {
    let max = (cap / 2).max(UNKNOWN_DRAIN_MIN);
    (UNKNOWN_DRAIN_MIN + (max - UNKNOWN_DRAIN_MIN).mul_f64(rng.next_f64())).min(cap)
}

/// `span` with up to 25 % added at random, at most `cap`, for waits that have no slots: the countdown of a breaker. As with slots,
/// waits that would pass the cap are spread over the last fifth below it.
pub fn jittered(span: Duration, cap: Duration, rng: &mut Rng) -> Duration {
    let base = span.min(cap.div_f64(1.0 + JITTER));
    base.mul_f64(1.0 + JITTER * rng.next_f64()).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const CAP: Duration = Duration::from_secs(30);

    fn waits(clients: u32, drain_rps: f64) -> Vec<Duration> {
        let (mut clock, mut rng) = (TicketClock::default(), Rng::new(7));
        (0..clients).map(|_| clock.retry_after(Timestamp::from_millis(5), drain_rps, CAP, &mut rng)).collect()
    }

    #[test]
    fn a_burst_of_refused_clients_gets_slots_at_the_drain_rate() {
        let waits = waits(100, 10.0);
        for (index, wait) in waits.iter().enumerate() {
            let slot_s = (index + 1) as f64 / 10.0;
            let wait_s = wait.as_secs_f64();
            // The slot, plus at most a quarter of it.
            assert!(wait_s >= slot_s - 1e-6 && wait_s <= slot_s * 1.25 + 1e-6, "client {index}: {wait_s} s for the slot at {slot_s} s");
        }
    }

    #[test]
    fn waits_beyond_the_cap_are_spread_below_it() {
        let waits = waits(10_000, 10.0);
        assert!(waits.iter().all(|wait| *wait <= CAP));
        let late = &waits[1000..];
        let mut in_second = [0_u32; 31];
        for wait in late {
            in_second[wait.as_secs() as usize] += 1;
        }
        // 9,000 clients over the six seconds from 24 s to 30 s: 1,500 each.
        for second in 24..30 {
            assert!((1300..1700).contains(&in_second[second]), "{in_second:?}");
        }
    }

    #[test]
    fn a_flood_does_not_push_later_clients_away() {
        let (mut clock, mut rng) = (TicketClock::default(), Rng::new(7));
        for _ in 0..100_000 {
            clock.retry_after(Timestamp::ZERO, 10.0, CAP, &mut rng);
        }
        let after_the_flood = clock.retry_after(Timestamp::ZERO + CAP, 10.0, CAP, &mut rng);
        assert!(after_the_flood < Duration::from_millis(126), "{after_the_flood:?}");
    }

    #[test]
    fn without_a_known_drain_waits_are_spread_over_half_the_cap() {
        for drain in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let waits = waits(1000, drain);
            let (min, max) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(*min >= Duration::from_secs(1) && *min < Duration::from_millis(1200), "{min:?}");
            assert!(*max <= Duration::from_secs(15) && *max > Duration::from_millis(14_500), "{max:?}");
        }
    }

    #[test]
    fn a_cap_of_one_second_is_kept_even_then() {
        let (mut clock, mut rng) = (TicketClock::default(), Rng::new(7));
        for drain in [0.0, 1e-300, 1e300] {
            assert!(clock.retry_after(Timestamp::ZERO, drain, Duration::from_secs(1), &mut rng) <= Duration::from_secs(1));
        }
    }
}
