//! Grants and leases on the wire.

use headgate_protos::v1;

use super::{CLASSES, Grant, Lease, Mark, PerClass};
use crate::time::Timestamp;

impl Lease {
    /// On the wire.
    #[must_use]
    pub fn to_wire(&self) -> v1::QuotaLease {
        let given = self.rates.iter().rposition(|rate| *rate > 0.0).map_or(0, |last| last + 1);
        v1::QuotaLease { rates: self.rates.iter().take(given).copied().collect(), safe: self.safe, burst: self.burst }
    }

    /// From the wire. What is no amount is none.
    #[must_use]
    pub fn from_wire(wire: &v1::QuotaLease) -> Self {
        let mut rates: PerClass = [0.0; CLASSES];
        for (rate, given) in rates.iter_mut().zip(&wire.rates) {
            *rate = amount(*given);
        }
        let lease = Self { rates, safe: 0.0, burst: amount(wire.burst) };
        Self { safe: amount(wire.safe).min(lease.rate()), ..lease }
    }
}

impl Grant {
    /// On the wire, of the quota `key`.
    #[must_use]
    pub fn to_wire(&self, key: &str) -> v1::QuotaGrant {
        v1::QuotaGrant {
            quota: key.into(),
            holder: self.holder,
            fence: self.mark.fence,
            sequence: self.mark.sequence,
            reported_at_ns: self.reported_at.as_nanos(),
            lease: self.lease.as_ref().map(Lease::to_wire),
        }
    }

    /// From the wire.
    #[must_use]
    pub fn from_wire(wire: &v1::QuotaGrant) -> Self {
        Self {
            holder: wire.holder,
            mark: Mark { fence: wire.fence, sequence: wire.sequence },
            reported_at: Timestamp::from_nanos(wire.reported_at_ns),
            lease: wire.lease.as_ref().map(Lease::from_wire),
        }
    }
}

/// A finite amount that is not negative; anything else is 0.
fn amount(amount: f64) -> f64 {
    if amount.is_finite() { amount.max(0.0) } else { 0.0 }
}
