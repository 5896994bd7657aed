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
#[derive(Default)]
struct Vm {
    heard_at: Timestamp,
    at_ns: u64,
    policies: Vec<VmPolicy>,
    counters: v1::WorkerCounters,
}

/// What a VM said last of one policy.
#[derive(Default)]
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
#[derive(Default)]
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
        let before = self.vms.get(&key).map(|vm| vm.at_ns);
        if before.is_some_and(|at_ns| worker.at_ns <= at_ns) {
            return None;
        }
        if before.is_none() {
            self.make_room();
        }
        let accepted = Accepted { gap: before.map(|at_ns| Duration::from_nanos(worker.at_ns - at_ns)), ..Accepted::default() };
        let accepted = self.vms.entry(key).or_default().follow(now, worker, accepted);
        let is_baseline = before.is_none() && (self.is_known_of_old || self.forgotten_at_ns.is_some_and(|at| worker.at_ns <= at));
        Some(if is_baseline { accepted.into_baseline() } else { accepted })
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

    fn make_room(&mut self) {
        if self.vms.len() >= MAX_VMS
            && let Some(oldest) = self.vms.iter().min_by_key(|(_, vm)| vm.heard_at).map(|(key, _)| *key)
        {
            let gone = self.vms.remove(&oldest);
            self.forgotten_at_ns = self.forgotten_at_ns.max(gone.as_ref().map(|vm| vm.at_ns));
            self.lost.extend(gone.iter().flat_map(Vm::series));
        }
    }
}

impl Vm {
    /// Takes its next report; `accepted` with what that adds.
    fn follow<'a>(&mut self, now: Timestamp, worker: &'a v1::WorkerReport, mut accepted: Accepted<'a>) -> Accepted<'a> {
        let counters = worker.counters.unwrap_or_default();
        accepted.counters = counters_delta(&counters, &self.counters);
        (self.heard_at, self.at_ns, self.counters) = (now, worker.at_ns, counters);
        for pool in worker.pools.iter().take(MAX_POLICIES_PER_PROXY) {
            // One that was deleted and applied anew in between is not known: its counters start from zero.
            let fresh = || VmPolicy { policy: pool.policy.clone(), ..VmPolicy::default() };
            if let Some(policy) = next(&mut self.policies, accepted.policies.len(), |known| known.policy == pool.policy, fresh) {
                let (delta, is_readable) = policy.follow(worker.at_ns, pool);
                accepted.policies.push(delta);
                accepted.unreadable += u64::from(!is_readable);
            }
        }
        self.policies.truncate(accepted.policies.len());
        accepted
    }

    /// Pools and the series of latencies that it has begun in each.
    fn series(&self) -> impl Iterator<Item = (String, u64)> {
        self.policies.iter().filter_map(|policy| Some((policy.pool.clone(), policy.latency.as_ref()?.series())))
    }
}

impl VmPolicy {
    /// Takes the next report; what it adds, and whether its overload report can be read.
    fn follow<'a>(&mut self, at_ns: u64, report: &'a v1::PoolReport) -> (PolicyDelta<'a>, bool) {
        if self.pool != report.pool {
            self.pool.clone_from(&report.pool);
        }
        let (account, is_readable) = self.follow_account(report);
        let served = report.overload.as_ref().filter(|overload| overload.served_second != self.served_second);
        self.served_second = served.map_or(self.served_second, |overload| overload.served_second);
        let delta = PolicyDelta {
            pool: &report.pool,
            classes: self.follow_classes(report),
            account,
            served: served.map(|overload| (report.policy_version.as_str(), overload)),
            latency: LatencyAccount::follow(&mut self.latency, at_ns, report.latency.as_ref()),
        };
        (delta, is_readable)
    }

    fn follow_classes<'a>(&mut self, report: &'a v1::PoolReport) -> Vec<ClassDelta<'a>> {
        let mut deltas = Vec::with_capacity(report.classes.len().min(MAX_CLASSES));
        for report in report.classes.iter().take(MAX_CLASSES) {
            let fresh = || VmClass { class: report.class.clone(), ..VmClass::default() };
            if let Some(class) = next(&mut self.classes, deltas.len(), |known| known.class == report.class, fresh) {
                deltas.push(class.follow(report));
            }
        }
        self.classes.truncate(deltas.len());
        deltas
    }

    fn follow_account(&mut self, report: &v1::PoolReport) -> (Option<AccountDelta>, bool) {
        let account = report.overload.as_ref().map(|overload| Account::follow(self.account.as_ref(), report, overload));
        match account {
            None => {
                self.account = None;
                (None, true)
            }
            Some(Ok((account, delta))) => {
                self.account = Some(account);
                (Some(delta), true)
            }
            // The next one that can be read counts from the one before.
            Some(Err(_)) => (None, false),
        }
    }
}

/// The entry of `known` that `is` tells, or a new one, put behind the first `read`; `None` when it is among those: what a report names twice is
/// read once.
fn next<T>(known: &mut Vec<T>, read: usize, is: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> Option<&mut T> {
    let at = known.iter().position(is).unwrap_or_else(|| {
        known.push(new());
        known.len() - 1
    });
    if at < read {
        return None;
    }
    known.swap(read, at);
    known.get_mut(read)
}

impl VmClass {
    /// Takes the next report; what it adds.
    fn follow<'a>(&mut self, report: &'a v1::ClassReport) -> ClassDelta<'a> {
        let totals = ClassTotals {
            offered: report.offered,
            admitted: report.admitted,
            completed: report.completed,
            failed: report.failed,
            cancelled: report.cancelled,
            refused: refused(report),
            only_here: report.only_here,
            only_there: report.only_there,
        };
        // Counters that went down belong to a policy that came back: they start from zero.
        if has_restarted(&self.totals, &totals) {
            (self.totals, self.ttft) = (ClassTotals::default(), None);
        }
        let delta = ClassDelta {
            class: &report.class,
            totals: totals.since(&self.totals),
            ttft: ttft_delta(self.ttft.as_ref(), report.ttft_us.as_ref()),
        };
        (self.totals, self.in_flight, self.waiting) = (totals, report.in_flight, report.waiting);
        self.ttft.clone_from(&report.ttft_us);
        delta
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
