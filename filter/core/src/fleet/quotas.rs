//! All quotas of all policies in the leading control plane: reports in, grants out.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::{MAX_POLICIES_PER_PROXY, MAX_PROXIES, PolicySet};
use crate::policy::{Policy, QuotaUnit, books_name, canary_part, candidate_books, serving_pool};
use crate::quota::{Allocator, CLASSES, HolderKey, HolderReport, Lease, Mark, QuotaView};
use crate::time::Timestamp;

/// Silence after which a worker's counters are forgotten; what it reports then is where counting begins.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Workers whose counters are remembered.
const MAX_WORKERS: usize = 4 * MAX_PROXIES;
/// Quotas that are remembered, those included that no policy has any more: they may come back while leases of them are in force.
const MAX_QUOTAS: usize = 4096;

/// The most that is believed to have been asked for between two reports: a thousand times the largest quota. Sums of it stay finite.
const MOST_ASKED: f64 = 1e18;

/// Grants of one pool, by `node.id`.
pub type PoolGrants = BTreeMap<String, Vec<v1::QuotaGrant>>;

/// One quota, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetQuotaView {
    /// Pool.
    pub pool: String,
    /// Name.
    pub name: String,
    /// What is counted.
    pub unit: QuotaUnit,
    /// Whether leases never pass the capacity.
    pub is_strict: bool,
    /// How it stands.
    pub quota: QuotaView,
    /// Amount used since this leader began.
    pub used_total: f64,
    /// Requests refused for it since this leader began.
    pub refused_total: u64,
}

/// The quotas.
#[derive(Debug, Default)]
pub struct FleetQuotas {
    /// Of this leader; 0: it leads nobody.
    fence: u64,
    /// Whether the policies that were there when it began are known.
    has_begun: bool,
    books: BTreeMap<(String, String), Book>,
    /// The candidates that govern, by what their books are called: what they use is the quotas' of the pool, whose grants to them go where
    /// their limits go.
    candidates: BTreeSet<String>,
    workers: BTreeMap<(String, u32, u64), Worker>,
    grants: BTreeMap<String, Arc<PoolGrants>>,
}

#[derive(Debug)]
struct Book {
    name: String,
    unit: QuotaUnit,
    /// Whether a policy has it.
    is_current: bool,
    allocator: Allocator,
    used: f64,
    refused: u64,
}

/// The newest counters of one VM, by pool and quota.
#[derive(Debug)]
struct Worker {
    heard_at: Timestamp,
    counters: BTreeMap<(String, String), v1::QuotaReport>,
}

// === impl FleetQuotas ===

impl FleetQuotas {
    /// Begins to lead: with `fence`, greater than that of every leader before, and without any knowledge of what those have granted.
    pub fn begin(&mut self, fence: u64) {
        *self = Self { fence, ..Self::default() };
    }

    /// Takes the policies in force. Of the quotas of the first ones after [`begin`](Self::begin), earlier leaders may have granted
    /// something; those that come later are new.
    pub fn set_policies(&mut self, now: Timestamp, policies: &PolicySet) {
        for book in self.books.values_mut() {
            book.is_current = false;
        }
        let specs = policies.policies.values().filter_map(|stored| stored.policy.spec.as_ref());
        self.candidates = specs.filter(|spec| canary_part(spec).is_some()).map(|spec| books_name(spec).into_owned()).collect();
        let with_quotas =
            policies.policies.values().filter(|stored| stored.policy.spec.as_ref().is_some_and(|spec| !spec.quotas.is_empty()));
        for policy in with_quotas.filter_map(|stored| Policy::try_from_wire(&stored.policy).ok()) {
            if self.candidates.contains(policy.pool()) {
                continue;
            }
            for config in policy.quotas() {
                let key = (policy.pool().to_owned(), config.key.clone());
                if !self.books.contains_key(&key) && self.books.len() >= MAX_QUOTAS {
                    self.forget_one();
                }
                let (fence, is_new) = (self.fence, self.has_begun);
                let book = self.books.entry(key).or_insert_with(|| Book {
                    name: config.name.clone(),
                    unit: config.unit,
                    is_current: true,
                    allocator: Allocator::new(now, fence, config.terms, is_new),
                    used: 0.0,
                    refused: 0,
                });
                book.is_current = true;
                book.allocator.set_terms(config.terms);
            }
        }
        self.has_begun = true;
        let has_current = |books: &str| {
            let (pool, _) = self.account(books);
            self.books.iter().any(|((of, _), book)| *of == pool && book.is_current)
        };
        let gone: Vec<String> = self.grants.keys().filter(|pool| !has_current(pool)).cloned().collect();
        gone.iter().for_each(|pool| drop(self.grants.remove(pool)));
    }

    /// Whose quotas those of `books` are, and whether `books` are those of a candidate that shares them.
    fn account(&self, books: &str) -> (String, bool) {
        if self.candidates.contains(books) { (serving_pool(books).to_owned(), true) } else { (books.to_owned(), false) }
    }

    fn forget_one(&mut self) {
        let gone = self.books.iter().find(|(_, book)| !book.is_current).map(|(key, _)| key.clone());
        gone.into_iter().for_each(|key| drop(self.books.remove(&key)));
    }

    /// Takes one report of a proxy.
    pub fn record(&mut self, now: Timestamp, report: &v1::LoadReport) {
        if self.fence == 0 || self.books.is_empty() {
            return;
        }
        let mut heard: BTreeMap<(String, String, HolderKey), (Use, HolderReport)> = BTreeMap::new();
        for worker in &report.workers {
            for pool in worker.pools.iter().take(MAX_POLICIES_PER_PROXY) {
                let (account, is_candidate) = self.account(&pool.pool);
                for quota in pool.quotas.iter().take(MAX_POLICIES_PER_PROXY).filter(|quota| quota.holder != 0) {
                    let key = (account.clone(), quota.quota.clone());
                    let Some(book) = self.books.get_mut(&key) else { continue };
                    let before = counters(&mut self.workers, now, &report.node_id, worker);
                    let reported = (pool.pool.clone(), quota.quota.clone());
                    let before = before.and_then(|counters| counters.insert(reported, quota.clone()));
                    let new = since(before.as_ref(), quota, worker.at_ns);
                    book.used += new.used;
                    book.refused = book.refused.saturating_add(refused_since(before.as_ref(), quota));
                    let new = (Use::of(quota), new);
                    let holder = HolderKey { node: report.node_id.clone(), holder: quota.holder, is_candidate };
                    let merged = heard.entry((key.0, key.1, holder));
                    merged.and_modify(|merged| merge(merged, &new)).or_insert(new);
                }
            }
        }
        for ((pool, quota, holder), (_, merged)) in heard {
            if let Some(book) = self.books.get_mut(&(pool, quota)) {
                book.allocator.hear(now, &holder, &merged);
            }
        }
    }

    /// Decides what is granted now; returns whether anything is.
    pub fn step(&mut self, now: Timestamp) -> bool {
        let mut is_changed = false;
        for ((pool, quota), book) in self.books.iter_mut().filter(|(_, book)| book.is_current) {
            let issues = book.allocator.step(now);
            if issues.is_empty() {
                continue;
            }
            is_changed = true;
            for issue in issues {
                let books = if issue.key.is_candidate { candidate_books(pool) } else { pool.clone() };
                // Whoever was told the grants before still has them.
                let grants = Arc::make_mut(self.grants.entry(books).or_default());
                let of_node = grants.entry(issue.key.node).or_default();
                // Of several processes with one name only the last that was heard can be told.
                of_node.retain(|grant| grant.quota != *quota);
                of_node.push(issue.grant.to_wire(quota));
            }
        }
        is_changed
    }

    /// Forgets workers and grants of proxies that are gone.
    pub fn expire(&mut self, now: Timestamp) {
        self.workers.retain(|_, worker| now.since(worker.heard_at) < FORGOTTEN);
        let candidates = &self.candidates;
        for (books, grants) in &mut self.grants {
            let is_candidate = candidates.contains(books);
            let pool = if is_candidate { serving_pool(books) } else { books };
            let known = |node: &str, grant: &v1::QuotaGrant| {
                let key = HolderKey { node: node.to_owned(), holder: grant.holder, is_candidate };
                self.books.get(&(pool.to_owned(), grant.quota.clone())).is_some_and(|book| book.is_current && book.allocator.knows(&key))
            };
            if grants.iter().any(|(node, grants)| grants.iter().any(|grant| !known(node, grant))) {
                Arc::make_mut(grants).retain(|node, grants| {
                    grants.retain(|grant| known(node, grant));
                    !grants.is_empty()
                });
            }
        }
    }

    /// The grants of every pool that has any.
    pub fn grants(&self) -> impl Iterator<Item = (&str, &Arc<PoolGrants>)> {
        self.grants.iter().map(|(pool, grants)| (pool.as_str(), grants))
    }

    /// The quotas as they stand.
    pub fn views(&self, now: Timestamp) -> Vec<FleetQuotaView> {
        let current = self.books.iter().filter(|(_, book)| book.is_current);
        let view = |((pool, _), book): (&(String, String), &Book)| FleetQuotaView {
            pool: pool.clone(),
            name: book.name.clone(),
            unit: book.unit,
            is_strict: book.allocator.terms().overbook == 0.0,
            quota: book.allocator.view(now),
            used_total: book.used,
            refused_total: book.refused,
        };
        current.map(view).collect()
    }
}

/// The counters of a VM, if there is room for them.
fn counters<'a>(
    workers: &'a mut BTreeMap<(String, u32, u64), Worker>,
    now: Timestamp,
    node: &str,
    report: &v1::WorkerReport,
) -> Option<&'a mut BTreeMap<(String, String), v1::QuotaReport>> {
    let key = (node.to_owned(), report.slot, report.vm_epoch);
    if !workers.contains_key(&key) && workers.len() >= MAX_WORKERS {
        return None;
    }
    let worker = workers.entry(key).or_insert_with(|| Worker { heard_at: now, counters: BTreeMap::new() });
    worker.heard_at = now;
    Some(&mut worker.counters)
}

/// What a worker reports, with what is new of it. Without counters before, nothing is: they may be of any time.
fn since(before: Option<&v1::QuotaReport>, new: &v1::QuotaReport, at_ns: u64) -> HolderReport {
    let mut asked = [(0.0, 0.0); CLASSES];
    let mut used = 0.0;
    if let Some(before) = before.filter(|before| before.requests.iter().zip(&new.requests).all(|(before, new)| before <= new)) {
        let difference = |new: &[f64], old: &[f64], class: usize| {
            let at = |amounts: &[f64]| amounts.get(class).copied().filter(|amount| amount.is_finite()).unwrap_or(0.0);
            (at(new) - at(old)).clamp(0.0, MOST_ASKED)
        };
        for (class, (units, requests)) in asked.iter_mut().enumerate() {
            *units = difference(&new.asked, &before.asked, class);
            let count = |requests: &[u64]| requests.get(class).copied().unwrap_or(0);
            *requests = count(&new.requests).saturating_sub(count(&before.requests)) as f64;
        }
        used = difference(&[new.used], &[before.used], 0);
    }
    HolderReport {
        at: Timestamp::from_nanos(at_ns),
        mark: Mark { fence: new.fence, sequence: new.sequence },
        lease: new.lease.as_ref().map(Lease::from_wire).unwrap_or_default(),
        asked,
        used,
        saved: if new.saved.is_finite() { new.saved.clamp(-MOST_ASKED, MOST_ASKED) } else { 0.0 },
    }
}

fn refused_since(before: Option<&v1::QuotaReport>, new: &v1::QuotaReport) -> u64 {
    before.map_or(0, |before| new.refused.saturating_sub(before.refused))
}

/// Whether a worker uses what its proxy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It has never served a request. It only shows that the proxy is there, so that this has a lease before its first request: what it
    /// holds it takes up anew before it uses it, so an older grant in it counts for nothing.
    Idle,
    /// It does.
    Active,
}

impl Use {
    fn of(quota: &v1::QuotaReport) -> Self {
        if quota.requests.is_empty() { Self::Idle } else { Self::Active }
    }
}

/// Puts the reports of two workers of a proxy together. Those that use it decide, if there are any.
fn merge((uses, merged): &mut (Use, HolderReport), (other_uses, other): &(Use, HolderReport)) {
    if uses != other_uses {
        if *other_uses == Use::Active {
            (*uses, *merged) = (*other_uses, *other);
        }
        return;
    }
    merged.at = merged.at.max(other.at);
    merged.mark = merged.mark.min(other.mark);
    if other.lease.rate() > merged.lease.rate() {
        merged.lease = other.lease;
    }
    for (sum, more) in merged.asked.iter_mut().zip(&other.asked) {
        sum.0 += more.0;
        sum.1 += more.1;
    }
    merged.used += other.used;
    merged.saved += other.saved;
}

#[cfg(test)]
mod tests;
