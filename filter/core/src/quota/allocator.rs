//! One quota in the control plane: what was granted to whom, and what is granted next.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::holder::Holder;
use super::inherited::Inherited;
use super::plan::{self, Seat, Supply};
use super::{CLASSES, Grant, HolderKey, HolderReport, Lease, PerClass, Terms};
use crate::fleet::MAX_PROXIES;
use crate::time::Timestamp;

/// Silence after which a holder gets nothing new: what it has counts until it ends.
const LIVE: Duration = Duration::from_secs(1);
/// Silence after which a holder is forgotten once nothing of what it has counts.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// Age of a grant at which it is given anew.
const RENEW: Duration = Duration::from_secs(1);
/// Time between two calls to listen.
const CALL: Duration = Duration::from_millis(500);
/// Part of a grant that another division over classes must move to be worth a push.
const REMIX: f64 = 0.1;
/// Part of what a proxy may save that must change to be worth a push.
const OTHER_BURST: f64 = 0.25;
/// Part of what all may save that is kept for newcomers.
const KEPT: f64 = 0.05;

/// One quota.
#[derive(Debug)]
pub struct Allocator {
    fence: u64,
    terms: Terms,
    /// What earlier leaders have granted; `None`: nothing.
    inherited: Option<Inherited>,
    holders: BTreeMap<HolderKey, Holder>,
}

/// A grant to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Issue {
    /// To whom.
    pub key: HolderKey,
    /// What.
    pub grant: Grant,
}

/// A quota, for people. Amounts are in its unit per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuotaView {
    /// Capacity.
    pub capacity: f64,
    /// What the newest grants give.
    pub granted: f64,
    /// The most that may be in force.
    pub committed: f64,
    /// What is used, over the last second.
    pub used: f64,
    /// What is asked for.
    pub wanted: f64,
    /// Time until the grants of earlier leaders have ended.
    pub learning: Duration,
    /// The holders.
    pub holders: Vec<HolderView>,
}

/// One holder, for people. Amounts are in the quota's unit per second.
#[derive(Clone, Debug, PartialEq)]
pub struct HolderView {
    /// Who.
    pub key: HolderKey,
    /// What its newest grant gives.
    pub granted: f64,
    /// The most that may be in force.
    pub committed: f64,
    /// What it uses.
    pub used: f64,
    /// What it asks for.
    pub wanted: f64,
    /// Time since it was heard.
    pub silent: Duration,
}

// === impl Allocator ===

impl Allocator {
    /// A quota of which nobody holds anything for all that this leader knows. `is_new`: nobody can hold anything, since the quota did not
    /// exist before this leader began.
    #[must_use]
    pub fn new(now: Timestamp, fence: u64, terms: Terms, is_new: bool) -> Self {
        Self { fence, terms, inherited: (!is_new).then(|| Inherited::new(now)), holders: BTreeMap::new() }
    }

    /// Shares out by other terms from now on. A smaller capacity is kept as soon as the holders have given back what is too much.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// The terms in force.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether a holder is known.
    #[must_use]
    pub fn knows(&self, key: &HolderKey) -> bool {
        self.holders.contains_key(key)
    }

    /// Takes what a proxy reports. Whoever comes when [`MAX_PROXIES`] are known is given nothing.
    pub fn hear(&mut self, now: Timestamp, key: &HolderKey, report: &HolderReport) {
        if let Some(holder) = self.holders.get_mut(key) {
            if holder.hear(now, self.fence, report) {
                let told = self.inherited.as_mut().map(|inherited| inherited.tell(now, &report.lease, &self.terms));
                holder.take_over(now, told.unwrap_or_default());
            }
        } else if self.holders.len() < MAX_PROXIES {
            // Its first report only says that it is there: what it holds it says when it has been called to listen.
            self.holders.insert(key.clone(), Holder::new(now, report));
        }
    }

    /// Decides what is granted now. Every grant that it returns counts as sent.
    pub fn step(&mut self, now: Timestamp) -> Vec<Issue> {
        self.holders.retain(|_, holder| now.since(holder.heard_at) < FORGOTTEN || holder.most(now) > 0.0);
        let mut issues = self.call(now);
        let (mut seats, silent) = self.seats(now);
        let committed: f64 = seats.iter().map(|seat| seat.most).sum();
        let Terms { capacity, overbook, reserve, .. } = self.terms;
        let elsewhere = silent + self.inherited.map_or(0.0, |inherited| inherited.rate(now, &self.terms));
        let reserve = reserve * capacity;
        plan::aim(&mut seats, &self.terms, capacity - reserve - elsewhere);
        let savable = self.savable(now);
        let is_seated = self.seated(now);
        let others = savable - self.most_burst_of(now, |holder| !is_seated(holder));
        plan::save(&mut seats, &self.terms, others.min(savable * (1.0 - KEPT)));
        let free = capacity * (1.0 + overbook) - elsewhere - committed;
        plan::decide(&mut seats, Supply { free, reserve }, capacity);
        issues.extend(self.issue(now, &seats));
        issues
    }

    /// Time until no more than the safe part is left of what earlier leaders have granted.
    fn learning(&self, now: Timestamp) -> Duration {
        self.inherited.map_or(Duration::ZERO, |inherited| inherited.ends_in(now))
    }

    /// Has those listen who may hold something of earlier leaders.
    fn call(&mut self, now: Timestamp) -> Vec<Issue> {
        let (fence, is_learning) = (self.fence, !self.learning(now).is_zero());
        let issue = |(key, holder): (&HolderKey, &mut Holder)| {
            let is_due = holder.is_fresh() || now.since(holder.sent_at) >= CALL;
            let is_called = is_due && now.since(holder.heard_at) < LIVE && !holder.is_ready(fence, is_learning);
            is_called.then(|| Issue { key: key.clone(), grant: holder.issue(now, key.holder, fence, None) })
        };
        self.holders.iter_mut().filter_map(issue).collect()
    }

    /// The holders that are heard, in order, and what the others may have in force.
    fn seats(&self, now: Timestamp) -> (Vec<Seat>, f64) {
        let mut seats = Vec::with_capacity(self.holders.len());
        let mut silent = 0.0;
        let is_seated = self.seated(now);
        let even = self.terms.capacity / (self.holders.len() as f64).max(1.0);
        for holder in self.holders.values() {
            let most = holder.most(now);
            if is_seated(holder) {
                let asked = holder.asked().iter().sum();
                seats.push(Seat { most, granted: holder.granted(now), asked, wants: holder.wants(even), ..Seat::default() });
            } else {
                silent += most;
            }
        }
        (seats, silent)
    }

    /// Who is heard and can be granted something.
    fn seated(&self, now: Timestamp) -> impl Fn(&Holder) -> bool + use<> {
        let (fence, is_learning) = (self.fence, !self.learning(now).is_zero());
        move |holder| now.since(holder.heard_at) < LIVE && holder.is_ready(fence, is_learning)
    }

    /// What those may save who are known by now.
    fn savable(&self, now: Timestamp) -> f64 {
        let inherited = self.inherited.map_or(0.0, |inherited| inherited.burst(now, &self.terms));
        self.terms.capacity * self.terms.burst_s - inherited
    }

    /// The most that those holders may save.
    fn most_burst_of(&self, now: Timestamp, is_of_them: impl Fn(&Holder) -> bool) -> f64 {
        self.holders.values().filter(|holder| is_of_them(holder)).map(|holder| holder.most_burst(now, self.terms.burst_s)).sum()
    }

    fn known_safe(&self) -> f64 {
        self.holders.values().map(Holder::most_safe).sum()
    }

    fn issue(&mut self, now: Timestamp, seats: &[Seat]) -> Vec<Issue> {
        let fence = self.fence;
        let base = self.terms.safe * self.terms.capacity / (seats.len() as f64).max(1.0);
        let inherited = self.inherited.map_or(0.0, |inherited| inherited.safe(now, &self.terms));
        let mut safe_left = self.terms.safe * self.terms.capacity - inherited - self.known_safe();
        let burst_s = self.terms.burst_s;
        let mut savable_left = self.savable(now) - self.most_burst_of(now, |_| true);
        let is_seated = self.seated(now);
        let seated = self.holders.iter_mut().filter(|(_, holder)| is_seated(holder));
        let mut issues = Vec::new();
        for ((key, holder), seat) in seated.zip(seats) {
            let granted = seat.moved.unwrap_or(seat.granted);
            let rates = scaled(&seat.target, granted);
            let most_burst = holder.most_burst(now, burst_s);
            let burst = seat.burst.min(most_burst + savable_left.max(0.0));
            let is_due = now.since(holder.sent_at) >= RENEW
                || remix(&holder.lease.rates, &rates) > REMIX * granted
                || (burst - holder.lease.burst).abs() > OTHER_BURST * holder.lease.burst;
            if seat.moved.is_none() && !(is_due && granted > 0.0) {
                continue;
            }
            let most_safe = holder.most_safe();
            let safe = base.min(granted).min(most_safe + safe_left.max(0.0));
            safe_left -= (safe - most_safe).max(0.0);
            savable_left -= (burst - most_burst).max(0.0);
            issues.push(Issue { key: key.clone(), grant: holder.issue(now, key.holder, fence, Some(Lease { rates, safe, burst })) });
        }
        issues
    }

    /// The quota as it stands.
    #[must_use]
    pub fn view(&self, now: Timestamp) -> QuotaView {
        let view = |(key, holder): (&HolderKey, &Holder)| {
            let is_live = now.since(holder.heard_at) < LIVE;
            let wanted = if is_live { holder.asked().iter().sum() } else { 0.0 };
            HolderView {
                key: key.clone(),
                granted: holder.granted(now),
                committed: holder.most(now),
                used: if is_live { holder.use_rate } else { 0.0 },
                wanted,
                silent: now.since(holder.heard_at),
            }
        };
        let holders: Vec<HolderView> = self.holders.iter().map(view).collect();
        let sum = |of: fn(&HolderView) -> f64| holders.iter().map(of).sum();
        QuotaView {
            capacity: self.terms.capacity,
            granted: sum(|holder| holder.granted),
            committed: sum(|holder| holder.committed),
            used: sum(|holder| holder.used),
            wanted: sum(|holder| holder.wanted),
            learning: self.learning(now),
            holders,
        }
    }
}

/// `rates` so that they sum to `sum`; all of it in the first class when they are nothing.
fn scaled(rates: &PerClass, sum: f64) -> PerClass {
    let whole: f64 = rates.iter().sum();
    if whole > 0.0 {
        // Rounding must not make more of it.
        return rates.map(|rate| rate * (sum / whole) * (1.0 - f64::EPSILON * CLASSES as f64));
    }
    let mut first = [0.0; CLASSES];
    first.first_mut().into_iter().for_each(|rate| *rate = sum);
    first
}

/// What another division over classes moves.
fn remix(before: &PerClass, after: &PerClass) -> f64 {
    before.iter().zip(after).map(|(before, after)| (before - after).abs()).sum::<f64>() / 2.0
}
