//! One proxy in the books: the newest report of each of its worker VMs, and its recent demand.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::flow::Account;
use super::latency::{LatencyAccount, LatencyDelta};
use super::{ClassTotals, LIVE};
use crate::fleet::{GONE_AFTER, MAX_POLICIES_PER_PROXY};
use crate::histogram::Histogram;
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
    /// By policy; without their overload reports, which are in `accounts`.
    pools: BTreeMap<String, v1::PoolReport>,
    /// By policy: overload control.
    accounts: BTreeMap<String, Account>,
    /// By policy: latencies.
    latencies: BTreeMap<String, LatencyAccount>,
    counters: v1::WorkerCounters,
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
pub(super) struct Accepted {
    /// Time between the two on the worker's clock; `None` when there was none before.
    pub(super) gap: Option<Duration>,
    /// Differences, one for each policy and class.
    pub(super) deltas: Vec<ClassDelta>,
    /// Differences of overload control, by policy.
    pub(super) accounts: BTreeMap<String, Account>,
    /// Latencies that came, by policy.
    pub(super) latencies: BTreeMap<String, LatencyDelta>,
    /// Policies whose overload report could not be read: their work stays out of the books until one can.
    pub(super) unreadable: u64,
    /// Differences of the counters without a policy.
    pub(super) counters: v1::WorkerCounters,
}

/// What a report adds to one class.
pub(super) struct ClassDelta {
    pub(super) policy: String,
    pub(super) class: String,
    pub(super) totals: ClassTotals,
    /// `None` when nothing was added, or the report's histogram cannot be read.
    pub(super) ttft: Option<Histogram>,
}

// === impl Node ===

impl Node {
    pub(super) fn new(is_known_of_old: bool) -> Self {
        Self { is_known_of_old, ..Self::default() }
    }

    /// Takes the report of one VM; `None` when it is not newer than what is known of that VM.
    pub(super) fn accept(&mut self, now: Timestamp, worker: &v1::WorkerReport) -> Option<Accepted> {
        let key = (worker.slot, worker.vm_epoch);
        let before = self.vms.get(&key);
        if before.is_some_and(|vm| worker.at_ns <= vm.at_ns) {
            return None;
        }
        let gap = before.map(|vm| Duration::from_nanos(worker.at_ns - vm.at_ns));
        let empty = v1::PoolReport::default();
        let mut accepted = Accepted { gap, ..Accepted::default() };
        let (mut accounts, mut latencies) = (BTreeMap::new(), BTreeMap::new());
        for pool in worker.pools.iter().take(MAX_POLICIES_PER_PROXY) {
            // A policy that was deleted and applied anew in between is not in `before`: its counters start from zero.
            let old = before.and_then(|vm| vm.pools.get(&pool.policy)).unwrap_or(&empty);
            accepted.deltas.extend(pool.classes.iter().take(MAX_CLASSES).map(|class| class_delta(&pool.policy, class, old)));
            let (account, delta) =
                LatencyAccount::follow(before.and_then(|vm| vm.latencies.get(&pool.policy)), worker.at_ns, pool.latency.as_ref());
            accepted.latencies.insert(pool.policy.clone(), delta);
            latencies.extend(account.map(|account| (pool.policy.clone(), account)));
            let old = before.and_then(|vm| vm.accounts.get(&pool.policy));
            match pool.overload.as_ref().map(|report| Account::read(pool, report)) {
                None => {}
                Some(Ok(account)) => {
                    accepted.accounts.insert(pool.policy.clone(), account.since(old.unwrap_or(&Account::default())));
                    accounts.insert(pool.policy.clone(), account);
                }
                Some(Err(_)) => {
                    accepted.unreadable += 1;
                    // The next one that can be read counts from here.
                    accounts.extend(old.map(|old| (pool.policy.clone(), old.clone())));
                }
            }
        }
        let new = worker.counters.unwrap_or_default();
        accepted.counters = counters_delta(&new, &before.map(|vm| vm.counters).unwrap_or_default());
        let without_overload = |pool: &v1::PoolReport| v1::PoolReport { overload: None, latency: None, quotas: Vec::new(), ..pool.clone() };
        let pools = worker.pools.iter().take(MAX_POLICIES_PER_PROXY).map(|pool| (pool.policy.clone(), without_overload(pool))).collect();
        if before.is_none() && (self.is_known_of_old || self.forgotten_at_ns.is_some_and(|at| worker.at_ns <= at)) {
            accepted = accepted.into_baseline();
        }
        self.make_room(&key);
        self.vms.insert(key, Vm { heard_at: now, at_ns: worker.at_ns, pools, accounts, latencies, counters: new });
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

    /// Newest class reports of the VMs that are alive, each with its pool.
    pub(super) fn live_classes(&self, now: Timestamp) -> impl Iterator<Item = (&str, &v1::ClassReport)> {
        let live = self.vms.values().filter(move |vm| now.since(vm.heard_at) < LIVE);
        live.flat_map(|vm| vm.pools.values()).flat_map(|pool| pool.classes.iter().map(|class| (pool.pool.as_str(), class)))
    }

    /// Newest accounts of the VMs that are alive, each with its pool.
    pub(super) fn live_accounts(&self, now: Timestamp) -> impl Iterator<Item = (&str, &Account)> {
        let live = self.vms.values().filter(move |vm| now.since(vm.heard_at) < LIVE);
        live.flat_map(|vm| {
            vm.accounts.iter().filter_map(|(policy, account)| vm.pools.get(policy).map(|pool| (pool.pool.as_str(), account)))
        })
    }

    /// Adds `amount` to the demand for `pool`, an average over `memory_s` seconds.
    pub(super) fn add_demand(&mut self, now: Timestamp, pool: &str, amount: u64, memory_s: f64) {
        if !self.demands.contains_key(pool) && self.demands.len() >= MAX_POLICIES_PER_PROXY {
            return;
        }
        let rate = self.demand(now, pool) + amount as f64 / memory_s;
        self.demands.insert(pool.to_owned(), Demand { rate, at: now, memory_s });
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
            let of_pool = vm.pools.iter().filter(move |(_, report)| report.pool == pool);
            of_pool.map(move |(policy, _)| (is_silent, vm.latencies.get(policy).is_some_and(LatencyAccount::is_behind)))
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
        self.latencies.iter().filter_map(|(policy, account)| self.pools.get(policy).map(|pool| (pool.pool.clone(), account.series())))
    }
}

impl Accepted {
    /// The report is where counting begins, and what it holds is not counted.
    fn into_baseline(self) -> Self {
        let missing = self.latencies.into_iter().map(|(policy, delta)| (policy, delta.into_missing())).collect();
        Self { latencies: missing, ..Self::default() }
    }
}

fn class_delta(policy: &str, new: &v1::ClassReport, pool_before: &v1::PoolReport) -> ClassDelta {
    let empty = v1::ClassReport::default();
    let before = pool_before.classes.iter().find(|class| class.class == new.class);
    // Counters that went down belong to a policy that came back: they start from zero.
    let old = before.filter(|old| !has_restarted(old, new)).unwrap_or(&empty);
    ClassDelta {
        policy: policy.to_owned(),
        class: new.class.clone(),
        totals: ClassTotals {
            offered: new.offered - old.offered,
            admitted: new.admitted - old.admitted,
            completed: new.completed - old.completed,
            failed: new.failed - old.failed,
            cancelled: new.cancelled - old.cancelled,
            refused: Reason::ALL.map(|reason| refused(new, reason).saturating_sub(refused(old, reason))),
            only_here: new.only_here.saturating_sub(old.only_here),
            only_there: new.only_there.saturating_sub(old.only_there),
        },
        ttft: ttft_delta(old.ttft_us.as_ref(), new.ttft_us.as_ref()),
    }
}

fn has_restarted(old: &v1::ClassReport, new: &v1::ClassReport) -> bool {
    let counters = |class: &v1::ClassReport| [class.offered, class.admitted, class.completed, class.failed, class.cancelled];
    counters(new).iter().zip(counters(old)).any(|(new, old)| *new < old)
}

fn refused(class: &v1::ClassReport, reason: Reason) -> u64 {
    class.refused.iter().filter(|entry| entry.reason == reason.as_str()).map(|entry| entry.count).fold(0, u64::saturating_add)
}

fn ttft_delta(old: Option<&v1::Histogram>, new: Option<&v1::Histogram>) -> Option<Histogram> {
    let new = new?;
    if old == Some(new) {
        return None;
    }
    let new = Histogram::from_wire(new).ok()?;
    match old.map(Histogram::from_wire) {
        Some(Ok(old)) => Some(new.diff(&old)),
        _ => Some(new),
    }
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
