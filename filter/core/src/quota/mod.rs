//! Quotas over the fleet: how much of one bounded rate each proxy may use, without a call per request.
//!
//! The leading control plane owns an [`Allocator`] for each quota. It hands out [`Grant`]s, a rate for a time, and each worker holds the
//! newest one in a [`Held`] and spends it from a [`Purse`]. What comes back are load reports: what was asked for, and which grant is in
//! force.
//!
//! **Strict.** At every moment the rates in force, over all proxies, sum to at most the capacity, whatever messages are lost, repeated,
//! reordered or late, whoever starts anew, and whoever cannot be reached. It follows from four rules:
//! 1. A grant's rate never rises by itself: it holds for [`TTL`], falls over [`DECAY`] to its safe part, and ends after [`SAFE_FOR`].
//! 2. A grant's time runs from the report that it answers, on the clock of the proxy that made the report. The control plane counts it from
//!    when it was sent, which is later. So it ends there before it ends here, and a message that was late is late for its own grant.
//! 3. The control plane counts for each proxy the most of all grants that may still be in force, and raises only out of what is left of
//!    the capacity. A grant stops counting when a newer one is acknowledged by all workers of the proxy, or when it ends.
//! 4. A new leader counts the whole capacity as granted by earlier ones, less what ends of it with time: after [`LEARNING`] no more than
//!    the safe part is left. It takes over what a proxy says it holds once the proxy has promised to listen to no earlier leader
//!    ([`Grant::lease`] absent), and so much less is unknown: among those who have told, it moves grants at once.
//!
//! What may be saved is leased in the same way: together never more than the capacity gives in `burst` seconds, with a part for each proxy that
//! follows its demand. So in any time `t` the fleet uses at most `capacity × (t + burst)`, and what is owed at its end. Who owes pays before
//! anything else passes; a request leaves a debt when it costs more than its class can save, of at most [`MAX_DEBT`] of the class's rate, or
//! when it was more than expected.

use core::time::Duration;

mod allocator;
mod consumption;
mod demand;
mod fill;
mod held;
mod holder;
mod inherited;
mod part;
mod plan;
mod purse;
#[cfg(test)]
mod tests;
mod wire;

pub use self::allocator::{Allocator, HolderView, Issue, QuotaView};
pub use self::demand::Asked;
pub use self::held::Held;
pub use self::holder::{HolderKey, HolderReport};
pub use self::part::PartDemand;
pub use self::purse::{MAX_DEBT, Purse};
use crate::time::Timestamp;

/// Classes of a policy (`policy.proto`: 1 to 8); the first is the most important.
pub const CLASSES: usize = crate::permits::MAX_CLASSES;
/// Time for which a grant holds.
pub const TTL: Duration = Duration::from_secs(3);
/// Time over which it then falls to its safe part.
pub const DECAY: Duration = Duration::from_secs(3);
/// Time for which that part then holds.
pub const SAFE_FOR: Duration = Duration::from_secs(600);
/// Time after which nothing above its safe part is left of any grant of an earlier leader.
pub const LEARNING: Duration = stretched(TTL.saturating_add(DECAY));

/// One part in so many that two clocks may run apart: the control plane waits so much longer for the end of a grant.
const DRIFT: u32 = 100;

/// `span` as it may last on the slower of two clocks.
const fn stretched(span: Duration) -> Duration {
    match span.checked_div(DRIFT) {
        Some(more) => span.saturating_add(more),
        None => span,
    }
}

/// The least that the slower of two clocks may have run in `span` of the other: so much counts as over.
fn unstretched(span: Duration) -> Duration {
    let whole = stretched(Duration::from_secs(1));
    span.mul_f64(1.0 / whole.as_secs_f64())
}

/// What is asked of a quota, one number a class, in its unit per second.
pub type PerClass = [f64; CLASSES];

/// Whose grant and which: those of a later leader are newer, and of one leader those with the higher number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Fence of the leader ([`first_epoch`](crate::fleet::first_epoch)); 0: nobody.
    pub fence: u64,
    /// Number among the leader's grants to this holder, from 1.
    pub sequence: u64,
}

/// A rate for a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lease {
    /// Rate of each class, in the quota's unit per second. Not negative, finite.
    pub rates: PerClass,
    /// What is left of their sum without a control plane. Range: 0..=sum of the rates.
    pub safe: f64,
    /// What may be saved of it, in the quota's unit. Not negative, finite.
    pub burst: f64,
}

/// What is in force of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    /// Rate of each class, in the quota's unit per second.
    pub rates: PerClass,
    /// What may be saved of all of them, in the quota's unit.
    pub burst: f64,
}

/// What a proxy is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grant {
    /// For whom: random number of the proxy's process.
    pub holder: u64,
    /// Which it is.
    pub mark: Mark,
    /// When the report was made that it answers, on the proxy's clock.
    pub reported_at: Timestamp,
    /// What it gives; `None`: the proxy keeps what it has for as long as it has it, and from now on listens to no leader before this one.
    pub lease: Option<Lease>,
}

/// How a capacity is shared out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Capacity, in the quota's unit per second. Finite, above zero.
    pub capacity: f64,
    /// Part of the capacity by which the sum may pass it for the time of a move; 0: strict. Range: 0..=0.01.
    pub overbook: f64,
    /// Part of the capacity that is kept for newcomers and sudden demand. Range: 0..=0.2.
    pub reserve: f64,
    /// Part of the capacity that the proxies keep, evenly, without a control plane. Range: 0..=0.5.
    pub safe: f64,
    /// Time for which a purse may save, in seconds.
    pub burst_s: f64,
    /// Part of the capacity that each class gets before more important ones get more than theirs. Sum: at most 1.
    pub floors: PerClass,
}

impl Lease {
    /// Sum of its rates.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rates.iter().sum()
    }

    /// What is in force of a lease `age` after its beginning, of a quota of which `burst_s` seconds can be saved: never more than before, and
    /// at most what it gives.
    #[must_use]
    pub fn in_force(&self, age: Duration, burst_s: f64) -> Allowance {
        let rate = self.rate();
        if rate <= 0.0 {
            return Allowance::default();
        }
        let factor = in_force(rate, self.safe, age) / rate;
        let burst = in_force(self.burst, self.safe * burst_s, age);
        Allowance { rates: self.rates.map(|of_class| of_class * factor), burst }
    }

    /// What is left of it `age` after its beginning, as a lease.
    #[must_use]
    pub fn left(&self, age: Duration, burst_s: f64) -> Self {
        let Allowance { rates, burst } = self.in_force(age, burst_s);
        let left = Self { rates, safe: 0.0, burst };
        Self { safe: self.safe.min(left.rate()), ..left }
    }
}

impl Allowance {
    /// Of it, a part of 0 to 1.
    #[must_use]
    pub fn part(&self, part: f64) -> Self {
        Self { rates: self.rates.map(|rate| rate * part), burst: self.burst * part }
    }

    /// What a class can save: of the whole, its part of the rates.
    fn rooms(&self) -> PerClass {
        let rate: f64 = self.rates.iter().sum();
        let seconds = if rate > 0.0 { self.burst / rate } else { 0.0 };
        self.rates.map(|rate| rate * seconds)
    }
}

/// What is in force of `rate` with its safe part, `age` after the beginning.
fn in_force(rate: f64, safe: f64, age: Duration) -> f64 {
    let safe = safe.min(rate);
    match age.checked_sub(TTL) {
        None => rate,
        Some(over) if over < DECAY => rate + (safe - rate) * (over.as_secs_f64() / DECAY.as_secs_f64()),
        Some(over) if over <= DECAY.saturating_add(SAFE_FOR) => safe,
        Some(_) => 0.0,
    }
}
