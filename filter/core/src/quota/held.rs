//! The grant that a worker holds.

use core::time::Duration;

use super::{Allowance, CLASSES, DECAY, Grant, Lease, Mark, TTL};
use crate::time::Timestamp;

/// The newest grant of one quota in one worker. All workers of a proxy have the same holder and clock, and so come to hold the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    holder: u64,
    mark: Mark,
    lease: Lease,
    /// Beginning of the lease: when the report was made that it answers.
    since: Timestamp,
}

// === impl Held ===

impl Held {
    /// Nothing is held yet by the process whose random number is `holder`.
    #[must_use]
    pub const fn new(holder: u64) -> Self {
        Self {
            holder,
            mark: Mark { fence: 0, sequence: 0 },
            lease: Lease { rates: [0.0; CLASSES], safe: 0.0, burst: 0.0 },
            since: Timestamp::ZERO,
        }
    }

    /// Takes a grant if it is for this holder and newer than what it has; returns whether it was.
    ///
    /// A leader with a lower fence than the one before is believed when nothing has come of that one until the lease has fallen to its safe
    /// part, and only in answer to a recent report: that is a control plane whose calendar was set back, not a message that was late.
    pub fn accept(&mut self, now: Timestamp, grant: &Grant) -> bool {
        let age = now.since(grant.reported_at);
        let is_mine = grant.holder == self.holder && grant.reported_at <= now;
        let is_newer = grant.mark > self.mark;
        let is_only_one = grant.mark.fence < self.mark.fence && age <= TTL && self.age(now) > TTL.saturating_add(DECAY);
        if !is_mine || !(is_newer || is_only_one) {
            return false;
        }
        self.mark = grant.mark;
        if let Some(lease) = grant.lease {
            self.lease = lease;
            self.since = grant.reported_at;
        }
        true
    }

    /// What is in force now, of a quota of which `burst_s` seconds can be saved.
    #[must_use]
    pub fn allowance(&self, now: Timestamp, burst_s: f64) -> Allowance {
        self.lease.in_force(self.age(now), burst_s)
    }

    /// Age of the lease.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Duration {
        now.since(self.since)
    }

    /// Which grant it is, for the next report.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        self.mark
    }

    /// What is in force of it, for the next report: a new leader must not take what has ended for what is held.
    #[must_use]
    pub fn lease(&self, now: Timestamp, burst_s: f64) -> Lease {
        self.lease.left(self.age(now), burst_s)
    }
}
