//! One proxy in the books: the newest report of each of its worker VMs, and its recent demand.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::flow::{Account, AccountDelta};
use super::latency::{LatencyAccount, LatencyDelta};
use super::{ClassTotals, LIVE};
use crate::fleet::{GONE_AFTER, MAX_POLICIES_PER_PROXY};
use crate::histogram::HistogramDelta;
use crate::reason::Reason;
use crate::time::Timestamp;

/// VMs remembered of one proxy, dead ones included: a late report of a dead VM must not count anew.
const MAX_VMS: usize = 256;
/// Classes read from one report of one policy (`policy.proto`: 1 to 8).
pub(super) const MAX_CLASSES: usize = 8;
/// Time constant of the estimate of demand for rates, in seconds: a rate that moves to where it is asked for costs nobody.
pub(super) const RATE_DEMAND_S: f64 = 1.0;
/// Time constant of the estimate of demand for budgets, in seconds: requests hold their part of a budget for about that long, and a proxy
/// whose part shrinks under them idles while another has room.
pub(super) const BUDGET_DEMAND_S: f64 = 10.0;

/// One proxy.
#[derive(Default)]
pub(super) struct Node {
    /// Time of its newest report; `None` before the first.
    pub(super) heard_at: Option<Timestamp>,
    vms: BTreeMap<(u32, u64), Vm>,
    demands: BTreeMap<String, Demand>,
    /// Its counters up to now may be in the books already, of a time that was forgotten.
    is_known_of_old: bool,
    /// Pools, and how many series of latencies each has lost that the books do not know of yet.
    pub(super) lost: Vec<(String, u64)>,
    /// Newest report of any VM that was forgotten to make room, in nanoseconds on the proxy's clock.
    forgotten_at_ns: Option<u64>,
}

/// The newest report of one VM.
struct Vm {
    heard_at: Timestamp,
    at_ns: u64,
    policies: Vec<VmPolicy>,
    counters: v1::WorkerCounters,
}

/// What a VM said last of one policy.
struct VmPolicy {
    policy: String,
    pool: String,
    classes: Vec<VmClass>,
    /// Overload control.
    account: Option<Account>,
    /// Number of the newest second of which it told whom work was served.
    served_second: u64,
    latency: Option<LatencyAccount>,
}

/// What a VM said last of one class.
pub(super) struct VmClass {
    pub(super) class: String,
    totals: ClassTotals,
    pub(super) in_flight: u32,
    pub(super) waiting: u32,
    ttft: Option<v1::Histogram>,
}

/// What is asked of one pool per second, decaying over `memory_s`: work tokens under overload control, otherwise requests of the
/// throttled classes.
#[derive(Clone, Copy, Default)]
struct Demand {
    rate: f64,
    at: Timestamp,
    memory_s: f64,
}

/// What a report adds to the newest one before it.
#[derive(Default)]
pub(super) struct Accepted<'a> {
    /// Time between the two on the worker's clock; `None` when there was none before.
    pub(super) gap: Option<Duration>,
    /// One entry a policy.
    pub(super) policies: Vec<PolicyDelta<'a>>,
    /// Policies whose overload report could not be read: their work stays out of the books until one can.
    pub(super) unreadable: u64,
    /// Differences of the counters without a policy.
    pub(super) counters: v1::WorkerCounters,
}

/// What a report adds to one policy.
pub(super) struct PolicyDelta<'a> {
    pub(super) pool: &'a str,
    pub(super) classes: Vec<ClassDelta<'a>>,
    /// Of overload control.
    pub(super) account: Option<AccountDelta>,
    /// Version of the policy and the report, when it tells whom work was served in another second.
    pub(super) served: Option<(&'a str, &'a v1::OverloadReport)>,
    pub(super) latency: LatencyDelta,
}

/// What a report adds to one class.
pub(super) struct ClassDelta<'a> {
    pub(super) class: &'a str,
    pub(super) totals: ClassTotals,
    /// `None` when nothing was added, or the report's histogram cannot be read.
    pub(super) ttft: Option<HistogramDelta>,
}

// === impl Node ===

impl Node {
    pub(super) fn new(is_known_of_old: bool) -> Self {
        Self { is_known_of_old, ..Self::default() }
    }

    /// Takes the report of one VM; `None` when it is not newer than what is known of that VM.
    pub(super) fn accept<'a>(&mut self, now: Timestamp, worker: &'a v1::WorkerReport) -> Option<Accepted<'a>> {
        let key = (worker.slot, worker.vm_epoch);
        if self.vms.get(&key).is_some_and(|vm| worker.at_ns <= vm.at_ns) {
            return None;
        }
        self.make_room(&key);
        let before = self.vms.remove(&key);
        let gap = before.as_ref().map(|vm| Duration::from_nanos(worker.at_ns - vm.at_ns));
        let is_first = before.is_none();
        let (mut known, old_counters) = before.map_or_else(Default::default, |vm| (vm.policies, vm.counters));
        let counters = worker.counters.unwrap_or_default();
        let mut accepted = Accepted { gap, counters: counters_delta(&counters, &old_counters), ..Accepted::default() };
        let mut policies: Vec<VmPolicy> = Vec::with_capacity(known.len());
        for pool in worker.pools.iter().take(MAX_POLICIES_PER_PROXY) {
            // A policy that is named twice is read once.
            if policies.iter().any(|read| read.policy == pool.policy) {
                continue;
            }
            // One that was deleted and applied anew in between is not known: its counters start from zero.
            let old = known.iter().position(|old| old.policy == pool.policy).map(|at| known.swap_remove(at));
            let (read, delta, is_readable) = VmPolicy::follow(old, worker.at_ns, pool);
            policies.push(read);
            accepted.policies.push(delta);
            accepted.unreadable += u64::from(!is_readable);
        }
        if is_first && (self.is_known_of_old || self.forgotten_at_ns.is_some_and(|at| worker.at_ns <= at)) {
            accepted = accepted.into_baseline();
        }
        self.vms.insert(key, Vm { heard_at: now, at_ns: worker.at_ns, policies, counters });
        Some(accepted)
    }

    /// Whether the proxy has spoken lately.
    pub(super) fn is_present(&self, now: Timestamp) -> bool {
        self.heard_at.is_some_and(|at| now.since(at) < GONE_AFTER)
    }

    /// Whether the proxy has reported `pool`.
    pub(super) fn reports(&self, pool: &str) -> bool {
        self.demands.contains_key(pool)
    }

    /// Newest words on the classes of the VMs that are alive, each with its pool.
    pub(super) fn live_classes(&self, now: Timestamp) -> impl Iterator<Item = (&str, &VmClass)> {
        self.live(now).flat_map(|policy| policy.classes.iter().map(|class| (policy.pool.as_str(), class)))
    }

    /// Newest accounts of the VMs that are alive, each with its pool.
    pub(super) fn live_accounts(&self, now: Timestamp) -> impl Iterator<Item = (&str, &Account)> {
        self.live(now).filter_map(|policy| Some((policy.pool.as_str(), policy.account.as_ref()?)))
    }

    fn live(&self, now: Timestamp) -> impl Iterator<Item = &VmPolicy> {
        self.vms.values().filter(move |vm| now.since(vm.heard_at) < LIVE).flat_map(|vm| &vm.policies)
    }

    /// Adds `amount` to the demand for `pool`, an average over `memory_s` seconds.
    pub(super) fn add_demand(&mut self, now: Timestamp, pool: &str, amount: u64, memory_s: f64) {
        if !self.demands.contains_key(pool) && self.demands.len() >= MAX_POLICIES_PER_PROXY {
            return;
        }
        let rate = self.demand(now, pool) + amount as f64 / memory_s;
        let demand = Demand { rate, at: now, memory_s };
        match self.demands.get_mut(pool) {
            Some(known) => *known = demand,
            None => drop(self.demands.insert(pool.to_owned(), demand)),
        }
    }

    /// Demand for `pool` now, per second.
    pub(super) fn demand(&self, now: Timestamp, pool: &str) -> f64 {
        self.demands.get(pool).map_or(0.0, |demand| demand.rate * libm::exp(-now.since(demand.at).as_secs_f64() / demand.memory_s))
    }

    /// The whole proxy is forgotten.
    pub(super) fn lose_all(&mut self) {
        self.lost.extend(self.vms.values().flat_map(Vm::series));
    }

    /// For each VM that reports `pool`: whether it is silent, and whether its newest latencies could not be read.
    pub(super) fn gaps(&self, now: Timestamp, pool: &str) -> impl Iterator<Item = (bool, bool)> {
        self.vms.values().flat_map(move |vm| {
            let is_silent = now.since(vm.heard_at) >= LIVE;
            let of_pool = vm.policies.iter().filter(move |policy| policy.pool == pool);
            of_pool.map(move |policy| (is_silent, policy.latency.as_ref().is_some_and(LatencyAccount::is_behind)))
        })
    }

    fn make_room(&mut self, key: &(u32, u64)) {
        if self.vms.len() >= MAX_VMS
            && !self.vms.contains_key(key)
            && let Some(oldest) = self.vms.iter().min_by_key(|(_, vm)| vm.heard_at).map(|(key, _)| *key)
        {
            let gone = self.vms.remove(&oldest);
            self.forgotten_at_ns = self.forgotten_at_ns.max(gone.as_ref().map(|vm| vm.at_ns));
            self.lost.extend(gone.iter().flat_map(Vm::series));
        }
    }
}

impl Vm {
    /// Pools and the series of latencies that it has begun in each.
    fn series(&self) -> impl Iterator<Item = (String, u64)> {
        self.policies.iter().filter_map(|policy| Some((policy.pool.clone(), policy.latency.as_ref()?.series())))
    }
}

impl VmPolicy {
    /// What is known after a report, what it adds, and whether its overload report can be read.
    fn follow<'a>(old: Option<Self>, at_ns: u64, report: &'a v1::PoolReport) -> (Self, PolicyDelta<'a>, bool) {
        let (name, books) = (&report.policy, &report.pool);
        let nothing =
            || Self { policy: name.clone(), pool: books.clone(), classes: Vec::new(), account: None, served_second: 0, latency: None };
        let old = old.unwrap_or_else(nothing);
        let classes: Vec<VmClass> = report.classes.iter().take(MAX_CLASSES).map(VmClass::of).collect();
        let new_classes = classes.iter().zip(&report.classes);
        let classes_delta = new_classes.map(|(new, report)| ClassDelta::between(&old.classes, new, &report.class)).collect();
        let (latency, latency_delta) = LatencyAccount::follow(old.latency, at_ns, report.latency.as_ref());
        let account = report.overload.as_ref().map(|overload| Account::follow(old.account.as_ref(), report, overload));
        let (account, account_delta, is_readable) = match account {
            None => (None, None, true),
            Some(Ok((account, delta))) => (Some(account), Some(delta), true),
            // The next one that can be read counts from the one before.
            Some(Err(_)) => (old.account, None, false),
        };
        let pool = if old.pool == *books { old.pool } else { books.clone() };
        let served = report.overload.as_ref().filter(|overload| overload.served_second != old.served_second);
        let served_second = served.map_or(old.served_second, |overload| overload.served_second);
        let delta = PolicyDelta {
            pool: books,
            classes: classes_delta,
            account: account_delta,
            served: served.map(|overload| (report.policy_version.as_str(), overload)),
            latency: latency_delta,
        };
        (Self { policy: old.policy, pool, classes, account, served_second, latency }, delta, is_readable)
    }
}

impl VmClass {
    fn of(report: &v1::ClassReport) -> Self {
        Self {
            class: report.class.clone(),
            totals: ClassTotals {
                offered: report.offered,
                admitted: report.admitted,
                completed: report.completed,
                failed: report.failed,
                cancelled: report.cancelled,
                refused: refused(report),
                only_here: report.only_here,
                only_there: report.only_there,
            },
            in_flight: report.in_flight,
            waiting: report.waiting,
            ttft: report.ttft_us.clone(),
        }
    }
}

impl<'a> Accepted<'a> {
    /// The report is where counting begins, and what it holds is not counted.
    fn into_baseline(self) -> Self {
        let missing = |delta: PolicyDelta<'a>| PolicyDelta {
            pool: delta.pool,
            classes: Vec::new(),
            account: None,
            served: None,
            latency: delta.latency.into_missing(),
        };
        Self { policies: self.policies.into_iter().map(missing).collect(), ..Self::default() }
    }
}

impl<'a> ClassDelta<'a> {
    fn between(known: &[VmClass], new: &VmClass, class: &'a str) -> Self {
        let before = known.iter().find(|old| old.class == class);
        // Counters that went down belong to a policy that came back: they start from zero.
        let old = before.filter(|old| !has_restarted(&old.totals, &new.totals));
        let totals = old.map_or_else(|| new.totals.clone(), |old| new.totals.since(&old.totals));
        Self { class, totals, ttft: ttft_delta(old.and_then(|old| old.ttft.as_ref()), new.ttft.as_ref()) }
    }
}

fn has_restarted(old: &ClassTotals, new: &ClassTotals) -> bool {
    let counters = |totals: &ClassTotals| [totals.offered, totals.admitted, totals.completed, totals.failed, totals.cancelled];
    counters(new).iter().zip(counters(old)).any(|(new, old)| *new < old)
}

/// Refused requests in the order of [`Reason::ALL`].
fn refused(class: &v1::ClassReport) -> [u64; Reason::ALL.len()] {
    let mut counts = [0_u64; Reason::ALL.len()];
    for entry in &class.refused {
        for (_, count) in Reason::ALL.iter().zip(&mut counts).filter(|(reason, _)| reason.as_str() == entry.reason) {
            *count = count.saturating_add(entry.count);
        }
    }
    counts
}

fn ttft_delta(old: Option<&v1::Histogram>, new: Option<&v1::Histogram>) -> Option<HistogramDelta> {
    if old == new {
        return None;
    }
    HistogramDelta::between(old, new?).ok()
}

fn counters_delta(new: &v1::WorkerCounters, old: &v1::WorkerCounters) -> v1::WorkerCounters {
    v1::WorkerCounters {
        unmatched: new.unmatched.saturating_sub(old.unmatched),
        host_errors: new.host_errors.saturating_sub(old.host_errors),
        unreadable: new.unreadable.saturating_sub(old.unreadable),
        denied_claims: new.denied_claims.saturating_sub(old.denied_claims),
        untracked: new.untracked.saturating_sub(old.untracked),
    }
}
