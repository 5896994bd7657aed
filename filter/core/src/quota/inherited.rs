//! What earlier leaders have granted and nobody has told this one of yet.

use core::time::Duration;

use super::{LEARNING, Lease, Terms, in_force, unstretched};
use crate::time::Timestamp;

/// Leases of earlier leaders, of which holders tell one after another.
///
/// When this leader began, all that was in force, or on its way to be, summed to at most the capacity. So those who have told nothing yet hold
/// at most the rest, and every lease of theirs answers a report that was made before: it is at least as old as this leadership.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited {
    /// When this leader began.
    began: Timestamp,
    /// What has been told, in all.
    told: Told,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    rate: f64,
    safe: f64,
    burst: f64,
}

// === impl Inherited ===

impl Inherited {
    pub(super) fn new(began: Timestamp) -> Self {
        Self { began, told: Told::default() }
    }

    /// Takes what a holder says to hold; returns what may be left of it now, to be counted as this leader's own. Nobody holds more than there
    /// is, so a claim counts for no more.
    pub(super) fn tell(&mut self, now: Timestamp, claim: &Lease, terms: &Terms) -> Lease {
        let (rate, whole) = (claim.rate(), whole(terms));
        let part = if rate > whole.rate { whole.rate / rate } else { 1.0 };
        let rates = claim.rates.map(|rate| rate * part);
        let claim = Lease { rates, safe: claim.safe.min(whole.safe), burst: claim.burst.min(whole.burst) };
        self.told.rate += claim.rate();
        self.told.safe += claim.safe;
        self.told.burst += claim.burst;
        // A report that was long on its way says what was in force when it was made.
        claim.left(unstretched(now.since(self.began)), terms.burst_s)
    }

    /// The most that may be in force of what nobody has told of.
    pub(super) fn rate(&self, now: Timestamp, terms: &Terms) -> f64 {
        let left = self.left(terms);
        in_force(left.rate, left.safe, unstretched(now.since(self.began)))
    }

    /// The most of it that may be in force without a control plane.
    pub(super) fn safe(&self, now: Timestamp, terms: &Terms) -> f64 {
        let safe = self.left(terms).safe;
        in_force(safe, safe, unstretched(now.since(self.began)))
    }

    /// The most that may be saved of it.
    pub(super) fn burst(&self, now: Timestamp, terms: &Terms) -> f64 {
        let left = self.left(terms);
        in_force(left.burst, left.safe * terms.burst_s, unstretched(now.since(self.began)))
    }

    /// Time until no more than its safe part is left of any of it.
    pub(super) fn ends_in(&self, now: Timestamp) -> Duration {
        (self.began + LEARNING).since(now)
    }

    fn left(&self, terms: &Terms) -> Told {
        let whole = whole(terms);
        Told {
            rate: (whole.rate - self.told.rate).max(0.0),
            safe: (whole.safe - self.told.safe).max(0.0),
            burst: (whole.burst - self.told.burst).max(0.0),
        }
    }
}

/// What all leases together may be.
fn whole(terms: &Terms) -> Told {
    let Terms { capacity, overbook, safe, burst_s, .. } = terms;
    Told { rate: capacity * (1.0 + overbook), safe: capacity * safe, burst: capacity * burst_s }
}
