//! The books of the fleet's load: cumulative reports of many workers become totals per pool and class.
//!
//! Every report carries all counters of a worker VM since it began, so what a report adds is its difference from the newest one
//! before it. A lost report loses nothing, a repeated or late one counts nothing, and a VM that restarts (`vm_epoch`) starts from
//! zero. The difference goes into two accounts: the totals, which are exact, and the account of the control loop, which takes only
//! what is recent: a difference over a long gap (a proxy seen for the first time, a stream that was away) says nothing about the
//! rate now and would look like a burst.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::{FleetQuotas, GONE_AFTER, MAX_PROXIES, PolicySet};
use crate::histogram::Histogram;
use crate::overload::Flow;
use crate::policy::{books_name, canary_part, candidate_books, serving_pool};
use crate::reason::Reason;
use crate::time::Timestamp;

mod arms;
mod book;
mod flow;
mod forget;
mod latency;
mod node;
mod served;
mod share;
#[cfg(test)]
mod tests;

use self::book::{Arm, PoolBook};
pub use self::flow::QueueTotals;
use self::flow::add_gauges;
use self::forget::Forgotten;
pub use self::latency::{Completeness, LATENCY_WINDOW, MAX_MODELS, PoolLatencies, RecentView, StreamBook, StreamView, Tellers};
use self::node::{BUDGET_DEMAND_S, Node, RATE_DEMAND_S};
pub use self::served::FleetServed;
pub use self::share::Shares;

/// Worker VMs of one proxy that are read from one report (leases have 64 slots).
const MAX_WORKERS: usize = 128;
/// Longest gap between two reports of a VM whose difference still tells the rate now.
const RECENT: Duration = Duration::from_secs(2);
/// Silence after which a VM's requests in flight are no longer believed.
const LIVE: Duration = Duration::from_secs(2);
/// Time for which the counters of a silent proxy are remembered, so that its return counts nothing twice.
const REMEMBER: Duration = Duration::from_secs(600);
/// Window of the percentiles that people see.
const VIEW_WINDOW: Duration = Duration::from_secs(10);
/// Slices of that window.
const VIEW_SLICES: u32 = 10;

/// The books.
#[derive(Default)]
pub struct Ledger {
    pools: BTreeMap<String, PoolBook>,
    nodes: BTreeMap<String, Node>,
    workers: v1::WorkerCounters,
    unaccounted: u64,
    unreadable: u64,
    forgotten: Forgotten,
    quotas: FleetQuotas,
}

/// Totals of one class over all proxies since this program began; each only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassTotals {
    /// Requests that arrived.
    pub offered: u64,
    /// Requests admitted.
    pub admitted: u64,
    /// Admitted requests that ended well.
    pub completed: u64,
    /// Admitted requests that ended with 5xx or no response.
    pub failed: u64,
    /// Admitted requests whose client went away.
    pub cancelled: u64,
    /// Refused requests by [`Reason::as_str`], in the order of [`Reason::ALL`].
    pub refused: [u64; Reason::ALL.len()],
    /// Of a candidate that watches: requests that it would have served and the policy in force did not.
    pub only_here: u64,
    /// Of a candidate that watches: requests that the policy in force served and it would not have.
    pub only_there: u64,
}

/// What the control loop sees of one class; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlCounters {
    /// Requests that arrived.
    pub offered: u64,
    /// Requests admitted.
    pub admitted: u64,
    /// Admitted requests that ended well.
    pub completed: u64,
    /// Admitted requests that ended with 5xx or no response.
    pub failed: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// Load of one class now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassView {
    /// Name of the class.
    pub class: String,
    /// Totals.
    pub totals: ClassTotals,
    /// What the control loop sees.
    pub control: ControlCounters,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests in flight whose first token has not come.
    pub waiting: u64,
}

/// Load of one pool now.
#[derive(Clone, Default)]
pub struct PoolView {
    /// The classes, in the policy's order.
    pub classes: Vec<ClassView>,
    /// Times to first token over all classes, in microseconds, cumulative: what the control loop sees. `None` when
    /// nobody keeps books of the pool.
    pub ttft: Option<Histogram>,
    /// Work under overload control over all workers; `None` as long as none has reported any. Counters only grow and leave out what
    /// lies behind a gap; gauges are those of the workers that are alive.
    pub flow: Option<Flow>,
    /// What became of queued requests, since this program began.
    pub queue: QueueTotals,
    /// Bytes that queued requests count for now.
    pub queued_bytes: u64,
    /// Whom work was served lately, where many tenants ask for it.
    pub served: Option<Arc<FleetServed>>,
    /// Time of the first report about the pool.
    pub first_report_at: Option<Timestamp>,
    /// Proxies that reported the pool lately.
    pub proxies: usize,
}

/// Percentiles of the time to first token of one class over the last 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TtftView {
    /// Median, in milliseconds; `None` without a sample.
    pub p50_ms: Option<f64>,
    /// 99th percentile, in milliseconds.
    pub p99_ms: Option<f64>,
}

// === impl Ledger ===

impl Ledger {
    /// Takes the policies in force: only their pools and classes are accounted for, so names in a report cannot grow the books.
    /// What persists keeps its totals.
    pub fn set_policies(&mut self, policies: &PolicySet) {
        let (mut before, mut leaving) = (core::mem::take(&mut self.pools), Vec::new());
        let governing = policies.policies.values().filter_map(|stored| stored.policy.spec.as_ref());
        let compared: BTreeSet<&str> = governing.filter(|spec| canary_part(spec).is_some()).map(|spec| spec.pool.as_str()).collect();
        for stored in policies.policies.values() {
            let Some(spec) = &stored.policy.spec else { continue };
            // The first policy of a pool, by name, has it; the store refuses a second.
            let name = books_name(spec);
            if self.pools.contains_key(&*name) {
                continue;
            }
            let is_halted = spec.candidate.as_ref().is_some_and(|candidate| !candidate.halted.is_empty());
            let canary = canary_part(spec).map(|part| Arm { part, is_halted });
            let kept = match before.remove(&*name) {
                Some(book) if book.canary.is_some() == canary.is_some() => book,
                // What a policy counted when it only watched was no load of the pool.
                other => {
                    leaving.extend(other.map(|book| (name.clone().into_owned(), book)));
                    PoolBook::new()
                }
            };
            let mut book = kept.with_classes(&spec.classes);
            book.canary = canary;
            book.served.set_policy(&stored.policy, spec);
            book.set_judged(compared.contains(spec.pool.as_str()) && (canary.is_some() || spec.candidate.is_none()));
            self.pools.insert(name.into_owned(), book);
        }
        leaving.extend(before);
        for (name, gone) in &leaving {
            arms::leave(&mut self.pools, name, gone);
        }
    }

    /// Takes one report. Returns whether its proxy is accounted for: the books may be full.
    pub fn record(&mut self, now: Timestamp, report: &v1::LoadReport) -> bool {
        self.quotas.record(now, report);
        if !self.nodes.contains_key(&report.node_id) && self.nodes.len() >= MAX_PROXIES && !self.evict(now) {
            self.unaccounted += 1;
            return false;
        }
        let forgotten = &self.forgotten;
        if !self.nodes.contains_key(&report.node_id) {
            self.nodes.insert(report.node_id.clone(), Node::new(forgotten.may_know(&report.node_id)));
        }
        let Some(node) = self.nodes.get_mut(&report.node_id) else { return false };
        let is_return = node.heard_at.is_none();
        node.heard_at = Some(now);
        for worker in report.workers.iter().take(MAX_WORKERS) {
            let Some(mut accepted) = node.accept(now, worker) else { continue };
            add_counters(&mut self.workers, &accepted.counters);
            self.unreadable += accepted.unreadable;
            // A VM that is new in a proxy already known has just begun: all its counters are recent.
            let is_recent = accepted.gap.map_or(!is_return, |gap| gap <= RECENT);
            for delta in &mut accepted.policies {
                let Some(book) = self.pools.get_mut(delta.pool) else { continue };
                book.first_report_at.get_or_insert(now);
                let requests = delta.classes.iter().map(|class| book.add(now, class, is_recent)).fold(0, u64::saturating_add);
                // Under overload control the budgets are of work, and so is what decides how they are split.
                let work = delta.account.as_ref().map(|account| book.add_account(account, is_recent));
                if let Some((version, report)) = delta.served {
                    book.served.add(now, version, report);
                }
                book.add_latencies(now, &mut delta.latency, !is_return);
                let (amount, memory_s) = work.map_or((requests, RATE_DEMAND_S), |work| (work, BUDGET_DEMAND_S));
                node.add_demand(now, delta.pool, amount, memory_s);
            }
        }
        latency::book_losses(&mut self.pools, node);
        true
    }

    /// Load of every pool now.
    pub fn view(&self, now: Timestamp) -> BTreeMap<String, PoolView> {
        let mut views: BTreeMap<String, PoolView> = self.pools.iter().map(|(pool, book)| (pool.clone(), book.view())).collect();
        for node in self.nodes.values().filter(|node| node.is_present(now)) {
            for (pool, view) in &mut views {
                view.proxies += usize::from(node.reports(pool));
            }
            for (pool, class) in node.live_classes(now) {
                let Some(view) = views.get_mut(pool) else { continue };
                if let Some(entry) = view.classes.iter_mut().find(|entry| entry.class == class.class) {
                    entry.in_flight += u64::from(class.in_flight);
                    entry.waiting += u64::from(class.waiting);
                }
            }
            for (pool, account) in node.live_accounts(now) {
                let Some(view) = views.get_mut(pool) else { continue };
                add_gauges(view.flow.get_or_insert_default(), &account.flow);
                view.queued_bytes = view.queued_bytes.saturating_add(account.queued_bytes);
            }
        }
        views
    }

    /// Percentiles of one class over the last 10 s.
    pub fn ttft(&self, now: Timestamp, pool: &str, class: &str) -> TtftView {
        let Some(book) = self.pools.get(pool).and_then(|pool| pool.classes.iter().find(|book| book.name == class)) else {
            return TtftView::default();
        };
        let window = book.window.window(now);
        // Percentiles are for people: microseconds as a float lose nothing below 285 years.
        let at = |q| window.quantile(q).map(|micros| micros as f64 / 1000.0);
        TtftView { p50_ms: at(0.5), p99_ms: at(0.99) }
    }

    /// Every proxy's part of the rates of `pool`.
    pub fn shares(&self, now: Timestamp, pool: &str) -> Shares {
        let candidate = candidate_books(serving_pool(pool));
        if let Some(arm) = self.pools.get(&candidate).and_then(|book| book.canary).filter(|arm| !arm.is_halted) {
            return arms::shares(self.nodes.iter(), now, (pool, &candidate), arm.part);
        }
        let demands = self.nodes.iter().filter(|(_, node)| node.is_present(now) && node.reports(pool));
        Shares::of(demands.map(|(node_id, node)| (node_id.as_str(), node.demand(now, pool))))
    }

    /// Load of every pool as its controllers see it: a policy and its candidate that governs a part of its requests have one pool, so
    /// each sees what both bring to it.
    pub fn control_view(&self, now: Timestamp) -> BTreeMap<String, PoolView> {
        let mut views = self.view(now);
        for (name, _) in self.pools.iter().filter(|(_, book)| book.canary.is_some()) {
            arms::join(&mut views, name);
        }
        views
    }

    /// What is compared of a class: the times to first token of `pool`'s, in microseconds, and its other counters, all since the books
    /// began and of recent reports only. `None` unless a candidate is compared there.
    pub fn judged(&self, pool: &str, class: &str) -> Option<(&Histogram, ControlCounters)> {
        let book = self.pools.get(pool)?.classes.iter().find(|book| book.name == class)?;
        Some((book.judged_ttft.as_ref()?, book.control))
    }

    /// The quotas, of which reports tell the ledger as well.
    pub fn quotas(&mut self) -> &mut FleetQuotas {
        &mut self.quotas
    }

    /// Counters of the workers that belong to no policy.
    pub fn worker_counters(&self) -> &v1::WorkerCounters {
        &self.workers
    }

    /// Reports that were not accounted for because the books were full.
    pub fn unaccounted(&self) -> u64 {
        self.unaccounted
    }

    /// Overload reports that could not be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

// === impl ControlCounters ===

impl ControlCounters {
    fn add(&mut self, other: Self) {
        let Self { offered, admitted, completed, failed, refused } = other;
        self.offered = self.offered.saturating_add(offered);
        self.admitted = self.admitted.saturating_add(admitted);
        self.completed = self.completed.saturating_add(completed);
        self.failed = self.failed.saturating_add(failed);
        self.refused = self.refused.saturating_add(refused);
    }
}

// === impl ClassTotals ===

impl ClassTotals {
    /// Refused requests, by reason; reasons that never occurred are left out.
    pub fn refused_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::ALL.iter().zip(self.refused).filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.as_str(), count))
    }

    /// What came since `before`, none of whose requests are more than these: but for reasons of refusal, which may come back with a policy.
    fn since(&self, before: &Self) -> Self {
        let mut refused = self.refused;
        for (new, old) in refused.iter_mut().zip(before.refused) {
            *new = new.saturating_sub(old);
        }
        Self {
            offered: self.offered - before.offered,
            admitted: self.admitted - before.admitted,
            completed: self.completed - before.completed,
            failed: self.failed - before.failed,
            cancelled: self.cancelled - before.cancelled,
            refused,
            only_here: self.only_here.saturating_sub(before.only_here),
            only_there: self.only_there.saturating_sub(before.only_there),
        }
    }

    fn add(&mut self, delta: &Self) {
        self.offered = self.offered.saturating_add(delta.offered);
        self.admitted = self.admitted.saturating_add(delta.admitted);
        self.completed = self.completed.saturating_add(delta.completed);
        self.failed = self.failed.saturating_add(delta.failed);
        self.cancelled = self.cancelled.saturating_add(delta.cancelled);
        self.only_here = self.only_here.saturating_add(delta.only_here);
        self.only_there = self.only_there.saturating_add(delta.only_there);
        for (total, more) in self.refused.iter_mut().zip(delta.refused) {
            *total = total.saturating_add(more);
        }
    }
}

fn add_counters(totals: &mut v1::WorkerCounters, delta: &v1::WorkerCounters) {
    totals.unmatched = totals.unmatched.saturating_add(delta.unmatched);
    totals.host_errors = totals.host_errors.saturating_add(delta.host_errors);
    totals.unreadable = totals.unreadable.saturating_add(delta.unreadable);
    totals.denied_claims = totals.denied_claims.saturating_add(delta.denied_claims);
    totals.untracked = totals.untracked.saturating_add(delta.untracked);
}
