use super::*;
use std::string::ToString;

mod overshoot;
mod sharing;
mod taking_over;

fn terms(capacity: f64) -> Terms {
    Terms { capacity, overbook: 0.0, reserve: 0.0025, safe: 0.01, burst_s: 1.0, floors: [0.0; CLASSES] }
}

/// A worker that is its proxy's only one.
struct Proxy {
    key: HolderKey,
    /// How far its clock is ahead.
    ahead: Duration,
    held: Held,
    purse: Purse,
    /// In force when the purse was last filled.
    allowance: Allowance,
    asked: [(f64, f64); CLASSES],
    /// Since the last report.
    used: f64,
    burst_s: f64,
    /// What it says to hold instead of what it does.
    claims: Option<Lease>,
    /// What it says to be asked for besides, per report, of the first class.
    lie: f64,
}

impl Proxy {
    fn new(now: Timestamp, node: usize, holder: u64, ahead: Duration) -> Self {
        Self {
            key: HolderKey { node: node.to_string(), holder, is_candidate: false },
            ahead,
            held: Held::new(holder),
            purse: Purse::new(now + ahead),
            allowance: Allowance::default(),
            asked: Default::default(),
            used: 0.0,
            burst_s: 1.0,
            claims: None,
            lie: 0.0,
        }
    }

    fn settle(&mut self, now: Timestamp) {
        let now = now + self.ahead;
        self.allowance = self.held.allowance(now, self.burst_s);
        self.purse.settle(now, &self.allowance);
    }

    fn accept(&mut self, now: Timestamp, grant: &Grant) {
        self.settle(now);
        self.held.accept(now + self.ahead, grant);
        self.settle(now);
    }

    fn in_force(&self, now: Timestamp) -> f64 {
        self.held.allowance(now + self.ahead, self.burst_s).rates.iter().sum()
    }

    /// What it may save.
    fn savable(&self, now: Timestamp) -> f64 {
        self.held.allowance(now + self.ahead, self.burst_s).burst
    }

    fn ask(&mut self, class: usize, requests: u32, cost: f64) -> u32 {
        self.asked[class].0 += f64::from(requests) * cost;
        self.asked[class].1 += f64::from(requests);
        let mut passes = || {
            let is_covered = self.purse.covers(class, cost, &self.allowance);
            is_covered.then(|| self.purse.take(class, cost)).is_some()
        };
        let passed = (0..requests).take_while(|_| passes()).count() as u32;
        self.used += f64::from(passed) * cost;
        passed
    }

    fn report(&mut self, now: Timestamp) -> HolderReport {
        let at = now + self.ahead;
        let (mut asked, used) = (core::mem::take(&mut self.asked), core::mem::take(&mut self.used));
        asked[0].0 += self.lie;
        asked[0].1 += self.lie;
        let lease = self.claims.unwrap_or_else(|| self.held.lease(at, self.burst_s));
        HolderReport { at, mark: self.held.mark(), lease, asked, used, saved: self.purse.total() }
    }
}

#[test]
fn a_lease_falls_to_its_safe_part_and_ends() {
    let mut rates = [0.0; CLASSES];
    (rates[0], rates[1]) = (60.0, 40.0);
    let lease = Lease { rates, safe: 10.0, burst: 300.0 };
    let in_force = |seconds: f64| lease.in_force(Duration::from_secs_f64(seconds), 2.0);
    let sum = |seconds: f64| in_force(seconds).rates.iter().sum::<f64>();
    assert_eq!([0.0, 3.0, 4.5, 6.0, 300.0, 607.0].map(sum), [100.0, 100.0, 55.0, 10.0, 10.0, 0.0]);
    assert_eq!([0.0, 3.0, 4.5, 6.0, 300.0, 607.0].map(|seconds| in_force(seconds).burst), [300.0, 300.0, 160.0, 20.0, 20.0, 0.0]);
    let halfway = in_force(4.5).rates;
    assert!((halfway[0] / halfway[1] - 1.5).abs() < 1e-9, "the classes fall together");
}

#[test]
fn a_worker_takes_what_is_newer_and_meant_for_it() {
    let now = Timestamp::from_millis(10_000);
    let grant = |holder, fence, sequence, rate: f64, at: u64| Grant {
        holder,
        mark: Mark { fence, sequence },
        reported_at: Timestamp::from_millis(at),
        lease: Some(Lease { rates: [rate; CLASSES], safe: 0.0, burst: rate }),
    };
    let mut held = Held::new(7);
    assert!(!held.accept(now, &grant(8, 1, 1, 5.0, 9_900)), "another process of the same name");
    assert!(!held.accept(now, &grant(7, 1, 1, 5.0, 10_001)), "of another clock");
    assert!(held.accept(now, &grant(7, 1, 2, 5.0, 9_900)));
    assert!(!held.accept(now, &grant(7, 1, 2, 9.0, 9_900)), "repeated");
    assert!(!held.accept(now, &grant(7, 1, 1, 9.0, 9_950)), "overtaken");
    let keep = Grant { lease: None, ..grant(7, 2, 1, 0.0, 9_990) };
    assert!(held.accept(now, &keep) && held.allowance(now, 1.0).rates[0] == 5.0);
    assert!(!held.accept(now, &grant(7, 1, 3, 9.0, 9_999)), "of a leader that is none any more");
    let late = now + TTL + DECAY;
    assert!(!held.accept(late, &grant(7, 1, 9, 9.0, 9_999)), "late");
    assert!(held.accept(late, &grant(7, 1, 9, 9.0, 15_000)), "the only one there is");
}

/// Two classes that may save a second's worth.
fn allowance(high: f64, low: f64) -> Allowance {
    let mut rates = [0.0; CLASSES];
    (rates[0], rates[1]) = (high, low);
    Allowance { rates, burst: high + low }
}

#[test]
fn a_purse_saves_its_burst_and_what_a_class_leaves_goes_to_the_others() {
    let mut allowance = allowance(10.0, 30.0);
    let mut purse = Purse::new(Timestamp::ZERO);
    purse.settle(Timestamp::from_millis(500), &allowance);
    assert_eq!((purse.saved(0), purse.saved(1)), (5.0, 15.0));
    assert!(purse.covers(0, 5.0, &allowance) && !purse.covers(7, 0.1, &allowance));
    purse.take(0, 5.0);
    assert!(!purse.covers(0, 0.1, &allowance));
    purse.settle(Timestamp::from_millis(1_100), &allowance);
    assert_eq!((purse.saved(0), purse.saved(1)), (9.0, 30.0), "3 that class 1 has no room for went over");
    purse.settle(Timestamp::from_millis(60_000), &allowance);
    assert_eq!((purse.saved(0), purse.saved(1)), (10.0, 30.0));
    allowance = self::allowance(10.0, 3.0);
    purse.settle(Timestamp::from_millis(60_000), &allowance);
    assert_eq!((purse.saved(0), purse.saved(1)), (10.0, 3.0), "what a smaller grant cannot save is lost");
}

#[test]
fn what_costs_more_than_can_be_saved_passes_with_a_debt_that_is_paid_first() {
    let allowance = allowance(10.0, 1.0);
    let mut purse = Purse::new(Timestamp::ZERO);
    let covers = |purse: &Purse, class, cost| purse.covers(class, cost, &allowance);
    assert!(!covers(&purse, 0, 50.0), "nothing has been saved");
    purse.settle(Timestamp::from_millis(900), &allowance);
    assert!(!covers(&purse, 0, 50.0), "more can be saved");
    purse.settle(Timestamp::from_millis(1_000), &allowance);
    assert!(covers(&purse, 0, 50.0) && covers(&purse, 0, 610.0) && !covers(&purse, 0, 611.0), "a minute's rate, and what is saved");
    assert!(!covers(&purse, 2, 0.1), "a class that is given nothing owes nothing");
    purse.take(0, 50.0);
    assert_eq!((purse.saved(0), purse.debt()), (-40.0, 40.0));
    // Four seconds pay it, and what the other class has no room for helps.
    purse.settle(Timestamp::from_millis(3_000), &allowance);
    assert_eq!((purse.debt(), purse.saved(1)), (18.0, 1.0));
    assert!(!covers(&purse, 0, 1.0));
    purse.settle(Timestamp::from_millis(4_800), &allowance);
    assert!(covers(&purse, 0, 1.0));
}
