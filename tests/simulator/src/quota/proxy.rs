//! One proxy with one worker.

use std::time::Duration;

use headgate_core::quota::{Allowance, CLASSES, Grant, Held, HolderKey, HolderReport, Lease, Mark, Purse};
use headgate_core::time::Timestamp;

/// A proxy: what it holds and has used.
pub(super) struct Proxy {
    key: HolderKey,
    /// How far its clock is ahead of the control plane's.
    ahead: Duration,
    burst_s: f64,
    held: Held,
    purse: Purse,
    /// Units, and so requests, that were ever asked for.
    asked: f64,
    /// Those that were used.
    used: f64,
}

/// Counters as they are, so that a report that is lost loses nothing.
#[derive(Clone, Copy)]
pub(super) struct Report {
    at: Timestamp,
    mark: Mark,
    lease: Lease,
    asked: f64,
    used: f64,
    saved: f64,
}

/// What was heard of a proxy.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    asked: f64,
    used: f64,
}

impl Heard {
    /// What a report says beyond what was heard; nothing, when that was newer.
    pub(super) fn take(&mut self, report: &Report) -> HolderReport {
        let Report { at, mark, lease, saved, .. } = *report;
        let (new, used) = ((report.asked - self.asked).max(0.0), (report.used - self.used).max(0.0));
        *self = Self { asked: self.asked.max(report.asked), used: self.used.max(report.used) };
        let mut asked = [(0.0, 0.0); CLASSES];
        asked.first_mut().into_iter().for_each(|first| *first = (new, new));
        HolderReport { at, mark, lease, asked, used, saved }
    }
}

impl Proxy {
    pub(super) fn new(index: usize, now: Timestamp, burst_s: f64) -> Self {
        let (holder, ahead) = (index as u64 + 1, Duration::from_secs(index as u64));
        let key = HolderKey { node: index.to_string(), holder, is_candidate: false };
        Self { key, ahead, burst_s, held: Held::new(holder), purse: Purse::new(now + ahead), asked: 0.0, used: 0.0 }
    }

    pub(super) const fn key(&self) -> &HolderKey {
        &self.key
    }

    fn settle(&mut self, now: Timestamp) -> Allowance {
        let at = now + self.ahead;
        let allowance = self.held.allowance(at, self.burst_s);
        self.purse.settle(at, &allowance);
        allowance
    }

    /// Takes a grant as the wire carries it.
    pub(super) fn accept(&mut self, now: Timestamp, grant: &Grant) {
        self.settle(now);
        self.held.accept(now + self.ahead, &Grant::from_wire(&grant.to_wire("quota")));
        self.settle(now);
    }

    /// Serves requests of one unit each of the first class; returns how many passed.
    pub(super) fn serve(&mut self, now: Timestamp, requests: u32) -> u32 {
        let allowance = self.settle(now);
        self.asked += f64::from(requests);
        let mut passed = 0;
        while passed < requests && self.purse.covers(0, 1.0, &allowance) {
            self.purse.take(0, 1.0);
            passed += 1;
        }
        self.used += f64::from(passed);
        passed
    }

    /// What was ever used and is not owed.
    pub(super) fn paid(&self) -> f64 {
        self.used - self.purse.debt()
    }

    /// What it reports, as the wire carries it.
    pub(super) fn report(&self, now: Timestamp) -> Report {
        let at = now + self.ahead;
        let lease = Lease::from_wire(&self.held.lease(at, self.burst_s).to_wire());
        Report { at, mark: self.held.mark(), lease, asked: self.asked, used: self.used, saved: self.purse.total() }
    }

    pub(super) fn in_force(&self, now: Timestamp) -> f64 {
        self.held.allowance(now + self.ahead, self.burst_s).rates.iter().sum()
    }
}
