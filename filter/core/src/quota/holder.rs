//! One proxy in the books of a quota.

use alloc::string::String;
use alloc::vec::Vec;

use super::consumption::Consumption;
use super::demand::{Asked, Demand, elapsed_s};
use super::{Grant, Lease, Mark, PerClass, in_force, unstretched};
use crate::time::Timestamp;

/// Grants that are told apart while none of them is acknowledged; more count as one that is as much as any of them.
const MAX_ISSUED: usize = 16;

/// How full a purse is to be at most, 0 to 1: as far from empty, where requests are refused, as from full, where what is granted is lost.
const MIDDLE: f64 = 0.5;
/// How much of it is enough, in standard deviations of what is asked for in a second: what lies in purses is used by nobody.
const ENOUGH: f64 = 1.5;
/// Time in which a purse is to come there, in seconds: long against the 0.2 s of a report and its answer, since what moves is unused for that
/// long.
const LEVELLING_S: f64 = 2.0;
/// Time of reports after which it is known what a holder is asked for, in seconds.
const KNOWN_S: f64 = 0.5;
/// The least and the most that is wanted for it, in parts of what is asked for.
const LEAST: f64 = 0.25;
const MOST: f64 = 2.0;

/// Who holds: a proxy, and the random number of its process; for a policy, or for the candidate that governs a part of its requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HolderKey {
    /// `node.id` of the proxy.
    pub node: String,
    /// Random number of its process.
    pub holder: u64,
    /// Whether it holds for the candidate: both share the quotas of the policy.
    pub is_candidate: bool,
}

/// What a proxy reports of a quota.
#[derive(Clone, Copy, Debug)]
pub struct HolderReport {
    /// When the report was made, on the proxy's clock.
    pub at: Timestamp,
    /// The oldest grant that any of its workers holds.
    pub mark: Mark,
    /// What is in force of it, the most in any of them.
    pub lease: Lease,
    /// What was asked for since the last report that was taken.
    pub asked: Asked,
    /// What was used since then, in the quota's unit.
    pub used: f64,
    /// What its workers have saved, less what they owe, in the quota's unit.
    pub saved: f64,
}

/// One holder.
#[derive(Debug)]
pub(super) struct Holder {
    /// When it was last heard, on the control plane's clock.
    pub(super) heard_at: Timestamp,
    /// The report heard then, on its own clock.
    reported_at: Timestamp,
    /// The grant that it said to have.
    pub(super) mark: Mark,
    /// Number of the newest grant that was sent.
    sequence: u64,
    /// When that was.
    pub(super) sent_at: Timestamp,
    /// What the newest grant gives.
    pub(super) lease: Lease,
    /// Grants that may be in force.
    issued: Vec<Issued>,
    demand: Demand,
    consumption: Consumption,
    /// What it had saved by its last report.
    saved: f64,
    /// Use per second over the last seconds.
    pub(super) use_rate: f64,
}

#[derive(Clone, Copy, Debug)]
struct Issued {
    sequence: u64,
    rate: f64,
    safe: f64,
    burst: f64,
    sent_at: Timestamp,
}

// === impl Holder ===

impl Holder {
    /// A holder that has just been heard for the first time.
    pub(super) fn new(now: Timestamp, report: &HolderReport) -> Self {
        Self {
            heard_at: now,
            reported_at: report.at,
            mark: report.mark,
            sequence: 0,
            sent_at: Timestamp::ZERO,
            lease: Lease::default(),
            issued: Vec::new(),
            demand: Demand::default(),
            consumption: Consumption::default(),
            saved: 0.0,
            use_rate: 0.0,
        }
    }

    /// Takes a report, unless a newer one was taken before. `fence` is this leader's. Returns whether it tells what it holds of an earlier leader,
    /// now that it listens to no such one: to be [taken over](Self::take_over).
    pub(super) fn hear(&mut self, now: Timestamp, fence: u64, report: &HolderReport) -> bool {
        let Some(elapsed_s) = elapsed_s(self.reported_at, report.at) else { return false };
        self.demand.observe(elapsed_s, &report.asked);
        let could = self.asked().iter().sum::<f64>().min(self.lease.rate());
        self.consumption.observe(elapsed_s, could, (report.used + report.saved - self.saved) / elapsed_s);
        (self.heard_at, self.reported_at, self.mark, self.saved) = (now, report.at, report.mark, report.saved);
        self.use_rate += (report.used / elapsed_s - self.use_rate) * (1.0 - libm::exp(-elapsed_s));
        if report.mark.fence != fence {
            return false;
        }
        let acknowledged = report.mark.sequence;
        self.issued.retain(|issued| issued.sequence >= acknowledged);
        self.issued.is_empty()
    }

    /// Counts as this leader's own what is left of a lease that it holds of an earlier one.
    pub(super) fn take_over(&mut self, now: Timestamp, lease: Lease) {
        self.lease = lease;
        self.sequence = self.sequence.max(self.mark.sequence);
        // Every call to listen that is still on its way leaves it this lease: the acknowledgement of none of them is told anew.
        self.count(self.sequence, now);
    }

    /// Whether it can be granted something: it listens to this leader, or has never had anything of any. While earlier grants may be in force
    /// (`is_learning`) others have to tell first what they hold.
    pub(super) fn is_ready(&self, fence: u64, is_learning: bool) -> bool {
        !is_learning || self.mark.fence == fence || self.mark == Mark::default()
    }

    /// The most that may be in force now.
    pub(super) fn most(&self, now: Timestamp) -> f64 {
        let of = |issued: &Issued| in_force(issued.rate, issued.safe, unstretched(now.since(issued.sent_at)));
        self.issued.iter().map(of).fold(0.0, f64::max)
    }

    /// The most that it may save now, of a quota of which `burst_s` seconds can be saved.
    pub(super) fn most_burst(&self, now: Timestamp, burst_s: f64) -> f64 {
        let of = |issued: &Issued| in_force(issued.burst, issued.safe * burst_s, unstretched(now.since(issued.sent_at)));
        self.issued.iter().map(of).fold(0.0, f64::max)
    }

    /// The most that may be in force without a control plane.
    pub(super) fn most_safe(&self) -> f64 {
        self.issued.iter().map(|issued| issued.safe).fold(0.0, f64::max)
    }

    /// What it is asked for of each class.
    pub(super) fn asked(&self) -> PerClass {
        self.demand.rates()
    }

    /// What it wants of each class: what it is asked for, as far as that is believed, and what fills or empties its purse to where it is to
    /// be. `even` is an even part of the capacity.
    pub(super) fn wants(&self, even: f64) -> PerClass {
        let mut asked = self.asked();
        if self.demand.observed_s() < KNOWN_S {
            // Of an earlier leader it had what it was asked for.
            asked.iter_mut().zip(&self.lease.rates).for_each(|(asked, had)| *asked = asked.max(*had));
            return asked;
        }
        let rate: f64 = asked.iter().sum();
        if rate <= 0.0 {
            return asked;
        }
        let lacking = (self.lease.burst * MIDDLE).min(ENOUGH * self.demand.deviation()) - self.saved;
        let factor = (1.0 + lacking / (LEVELLING_S * rate)).clamp(LEAST, MOST);
        let believed = self.consumption.believed(rate, even) / rate;
        asked.map(|asked| asked * factor * believed)
    }

    /// Sends what it is given from now on; `None`: that it keeps what it has.
    pub(super) fn issue(&mut self, now: Timestamp, holder: u64, fence: u64, lease: Option<Lease>) -> Grant {
        self.sequence += 1;
        self.sent_at = now;
        if let Some(lease) = lease {
            self.lease = lease;
            self.count(self.sequence, now);
        }
        Grant { holder, mark: Mark { fence, sequence: self.sequence }, reported_at: self.reported_at, lease }
    }

    /// Whether nothing was sent to it yet.
    pub(super) const fn is_fresh(&self) -> bool {
        self.sequence == 0
    }

    /// What the newest grant gives, as far as it still counts: more would be a raise.
    pub(super) fn granted(&self, now: Timestamp) -> f64 {
        self.lease.rate().min(self.most(now))
    }

    fn count(&mut self, sequence: u64, now: Timestamp) {
        let new = Issued { sequence, rate: self.lease.rate(), safe: self.lease.safe, burst: self.lease.burst, sent_at: now };
        if self.issued.len() < MAX_ISSUED {
            self.issued.push(new);
        } else if let Some(last) = self.issued.last_mut() {
            // The sum of them: as new as the newest, as much as the most. It leaves when the newest is acknowledged.
            let (rate, safe, burst) = (last.rate.max(new.rate), last.safe.max(new.safe), last.burst.max(new.burst));
            *last = Issued { rate, safe, burst, ..new };
        }
    }
}
