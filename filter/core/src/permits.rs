//! The worker's part of `maxInFlight`: who may use which permit, and how many the worker would like to hold.

use core::time::Duration;

use crate::policy::{Class, Policy};
use crate::time::Timestamp;

/// Classes of a policy, at most.
pub(crate) const MAX_CLASSES: usize = 8;
/// Length of a window of the demand.
const WINDOW: Duration = Duration::from_millis(100);
/// Permits beyond the demand that a worker wants at least: the lease is adjusted a few times a tick, arrivals come between.
const MIN_HEADROOM: u32 = 4;
/// Weight of the newest window in the rate of arrivals.
const RATE_ALPHA: f64 = 0.2;

/// Permits of one worker, and the part of each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Permits {
    pub(crate) total: u32,
    /// By class: permits that only it may use.
    reserved: [u32; MAX_CLASSES],
    /// Permits that every class may use.
    shared: u32,
}

impl Permits {
    /// Divides `total` permits. Each reservation is its percentage, rounded to the nearest whole permit; together they are at most
    /// 90 %, and where rounding up passes the total the less important class gets less.
    pub(crate) fn new(policy: &Policy, total: u32) -> Self {
        let mut permits = Self { total, reserved: [0; MAX_CLASSES], shared: total };
        for (reserved, class) in permits.reserved.iter_mut().zip(policy.classes()) {
            let Class { reserved_percent, .. } = class;
            let nearest = (u64::from(total) * u64::from(*reserved_percent) + 50) / 100;
            *reserved = u32::try_from(nearest).unwrap_or(u32::MAX).min(permits.shared);
            permits.shared -= *reserved;
        }
        permits
    }

    /// Permits that `class` can use at most.
    pub(crate) fn usable_by(&self, class: usize) -> u32 {
        self.shared.saturating_add(self.reserved.get(class).copied().unwrap_or(0))
    }

    /// Whether one more request of `class` may start. `in_flight` is by class; `orphans` are requests of classes that the policy no
    /// longer has.
    ///
    /// A class first fills its own part; what is beyond it, of all classes together, must fit the shared part. After permits were
    /// taken away or reservations changed more may be in flight than that allows, so the total is checked first.
    pub(crate) fn allows(&self, class: usize, in_flight: &[u32; MAX_CLASSES], orphans: u32) -> bool {
        let used = in_flight.iter().fold(orphans, |sum, used| sum.saturating_add(*used));
        if used >= self.total {
            return false;
        }
        let own = self.reserved.get(class).copied().unwrap_or(0);
        if in_flight.get(class).is_some_and(|used| *used < own) {
            return true;
        }
        let beyond = in_flight.iter().zip(&self.reserved).fold(orphans, |sum, (used, own)| sum.saturating_add(used.saturating_sub(*own)));
        beyond < self.shared
    }
}

/// What was asked of a worker lately.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    began: Timestamp,
    offered: u64,
    peak: u32,
    blocked: u32,
    last_peak: u32,
    last_blocked: u32,
    pub(crate) rate_rps: f64,
}

impl Demand {
    pub(crate) fn note_in_flight(&mut self, in_flight: u32) {
        self.peak = self.peak.max(in_flight);
    }

    pub(crate) fn note_blocked(&mut self) {
        self.blocked = self.blocked.saturating_add(1);
    }

    /// Starts a new window when the current one is over. `offered` is cumulative.
    pub(crate) fn roll(&mut self, now: Timestamp, offered: u64, in_flight: u32) {
        let elapsed = now.since(self.began);
        if elapsed < WINDOW {
            return;
        }
        let rate_rps = offered.saturating_sub(self.offered) as f64 / elapsed.as_secs_f64();
        *self = Self {
            began: now,
            offered,
            peak: in_flight,
            blocked: 0,
            last_peak: self.peak,
            last_blocked: self.blocked,
            rate_rps: self.rate_rps + RATE_ALPHA * (rate_rps - self.rate_rps),
        };
    }

    /// Permits that the demand of the last two windows needs, with headroom of a half.
    pub(crate) fn permits_wanted(&self, in_flight: u32) -> u32 {
        let peak = self.peak.max(self.last_peak).max(in_flight);
        let blocked = self.blocked.max(self.last_blocked);
        let needed = peak.saturating_add(blocked);
        needed.saturating_add((needed / 2).max(MIN_HEADROOM))
    }
}

#[cfg(test)]
mod tests {
    use headgate_protos::v1;

    use super::*;
    use crate::policy::fixture;

    fn in_flight(high: u32, medium: u32, low: u32) -> [u32; MAX_CLASSES] {
        [high, medium, low, 0, 0, 0, 0, 0]
    }

    #[test]
    fn a_reservation_is_rounded_and_only_its_class_may_use_it() {
        let permits = |total| Permits::new(&fixture::policy(|_| {}), total);
        // 20 % of 3, 2 and 12 permits: 0.6, 0.4, 2.4.
        assert_eq!([3, 2, 12].map(|total| permits(total).shared), [2, 2, 10]);
        let twelve = permits(12);
        assert!(!twelve.allows(2, &in_flight(0, 4, 6), 0) && twelve.allows(0, &in_flight(0, 4, 6), 0));
        assert!(twelve.allows(0, &in_flight(11, 0, 0), 0) && !twelve.allows(0, &in_flight(12, 0, 0), 0));
        assert!(!twelve.allows(2, &in_flight(0, 0, 9), 1), "requests of former classes count");
    }

    #[test]
    fn reservations_never_pass_the_total() {
        let policy = fixture::policy(|spec| {
            spec.classes[1].when_tripped = v1::WhenTripped::ReservedLane.into();
            spec.classes[0].reserved_percent = Some(45);
            spec.classes[1].reserved_percent = Some(45);
        });
        for total in 0..100 {
            let permits = Permits::new(&policy, total);
            assert_eq!(permits.reserved.iter().sum::<u32>() + permits.shared, total);
        }
    }

    #[test]
    fn permits_taken_away_admit_nobody_until_enough_requests_are_over() {
        let permits = Permits::new(&fixture::policy(|_| {}), 5);
        assert!(!permits.allows(0, &in_flight(0, 0, 5), 0), "the reserve may not lift the total");
        assert!(permits.allows(0, &in_flight(0, 0, 4), 0));
    }
}
