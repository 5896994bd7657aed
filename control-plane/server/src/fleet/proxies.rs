//! What is known of each proxy: its policies, what it refused, when it last spoke.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use headgate_core::fleet::{GONE_AFTER, MAX_POLICIES_PER_PROXY, MAX_PROXIES};
use headgate_protos::v1;

use crate::rollout;

/// Refusals in one answer about a policy (`policy_service.proto`).
const MAX_REJECTIONS: usize = 64;
/// Longest remembered error text, in bytes.
const MAX_ERROR_BYTES: usize = 4096;
/// The proxies of the fleet, by `node.id`.
#[derive(Debug, Default)]
pub struct Proxies {
    table: Mutex<BTreeMap<String, Proxy>>,
}

#[derive(Debug)]
struct Proxy {
    last_report_at: Instant,
    filter_version: String,
    workers: usize,
    policies: Vec<Held>,
    /// When its policies last changed.
    changed_at: Instant,
    /// By policy: what the filter refused, as it said on either stream.
    rejected: BTreeMap<String, v1::RejectedPolicy>,
}

/// A policy in force in a proxy.
#[derive(Debug)]
struct Held {
    policy: v1::AppliedPolicy,
    /// When it was first said of this version.
    since: Instant,
}

/// What one proxy has of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyHolding {
    /// `node.id`.
    pub node_id: String,
    /// Version that it has in force; empty: none.
    pub version: String,
    /// Version that it is meant to have; empty: the policy is not for it.
    pub wanted_version: String,
    /// For how long it has that; without any, for how long its policies have not changed.
    pub held_for: Duration,
    /// The version that it refused.
    pub refused: Option<v1::RejectedPolicy>,
    /// Time since its last report.
    pub last_report_age: Duration,
}

/// One proxy as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyView {
    /// `node.id`.
    pub node_id: String,
    /// Version of its filter.
    pub filter_version: String,
    /// Time since its last report.
    pub last_report_age: Duration,
    /// Worker VMs in its last report.
    pub workers: usize,
    /// Policies in force.
    pub policies: Vec<v1::AppliedPolicy>,
    /// Policies that it refused.
    pub rejected: Vec<v1::RejectedPolicy>,
}

/// How far one version of a policy has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyReach {
    /// Proxies that have it in force.
    pub proxies_current: u32,
    /// Proxies that have another version of the policy in force, or none.
    pub proxies_behind: u32,
    /// Proxies that refused a version of it. At most 64.
    pub rejections: Vec<v1::PolicyRejection>,
}

// === impl Proxies ===

impl Proxies {
    /// Takes what a load report says of its proxy. Returns whether the proxy is accounted for: the table may be full.
    pub fn record_report(&self, now: Instant, report: &v1::LoadReport) -> bool {
        let mut table = self.lock();
        if !table.contains_key(&report.node_id) && table.len() >= MAX_PROXIES {
            return false;
        }
        let proxy = table.entry(report.node_id.clone()).or_insert_with(|| Proxy::new(now));
        proxy.last_report_at = now;
        proxy.filter_version.clone_from(&report.filter_version);
        proxy.workers = report.workers.len();
        proxy.hold(now, &report.policies);
        // The report is the whole truth: a refusal that it no longer names has been mended.
        proxy.rejected.clear();
        for rejection in report.rejected.iter().take(MAX_POLICIES_PER_PROXY) {
            proxy.reject(rejection.clone());
        }
        true
    }

    /// Takes a NACK of the policy `name` from the discovery stream of `node_id`.
    pub fn record_nack(&self, now: Instant, node_id: &str, rejection: v1::RejectedPolicy) {
        let mut table = self.lock();
        if !table.contains_key(node_id) && table.len() >= MAX_PROXIES {
            return;
        }
        table.entry(node_id.to_owned()).or_insert_with(|| Proxy::new(now)).reject(rejection);
    }

    /// Forgets proxies that have been silent for [`GONE_AFTER`]; returns their `node.id`s.
    pub fn expire(&self, now: Instant) -> Vec<String> {
        let mut table = self.lock();
        let gone: Vec<String> =
            table.iter().filter(|(_, proxy)| now.duration_since(proxy.last_report_at) >= GONE_AFTER).map(|(id, _)| id.clone()).collect();
        for node_id in &gone {
            table.remove(node_id);
        }
        gone
    }

    /// All proxies, by `node.id`.
    pub fn views(&self, now: Instant) -> Vec<ProxyView> {
        self.lock().iter().map(|(node_id, proxy)| proxy.view(node_id, now)).collect()
    }

    /// Count of proxies.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no proxy is known.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Newest epoch of limits that any proxy has, by policy.
    pub fn limits_epochs(&self) -> BTreeMap<String, u64> {
        let mut epochs = BTreeMap::new();
        for applied in self.lock().values().flat_map(Proxy::applied) {
            let newest = epochs.entry(applied.name.clone()).or_insert(0);
            *newest = applied.limits_epoch.max(*newest);
        }
        epochs
    }

    /// How far a policy has come among the proxies that it is for.
    pub fn reach(&self, policy: &v1::Policy) -> PolicyReach {
        let mut reach = PolicyReach::default();
        let (name, version) = (&policy.name, &policy.version);
        for (node_id, proxy) in self.lock().iter() {
            if proxy.applied().any(|applied| applied.name == *name && applied.version == *version) {
                reach.proxies_current += 1;
            } else if rollout::has_candidate(policy, node_id) {
                reach.proxies_behind += 1;
            }
            if let Some(rejected) = proxy.rejected.get(name)
                && reach.rejections.len() < MAX_REJECTIONS
            {
                reach.rejections.push(v1::PolicyRejection {
                    node_id: node_id.clone(),
                    version: rejected.version.clone(),
                    error: rejected.error.clone(),
                });
            }
        }
        reach
    }

    /// What each proxy has of a policy, by `node.id`: the first `most` of those behind `after`.
    pub fn holdings(&self, now: Instant, policy: &v1::Policy, after: &str, most: usize) -> Vec<PolicyHolding> {
        let table = self.lock();
        let behind = table.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        behind.take(most).map(|(node_id, proxy)| proxy.holding(node_id, now, policy)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Proxy>> {
        // A poisoned table is still a table: every write leaves it whole.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl Proxy ===

impl Proxy {
    fn new(now: Instant) -> Self {
        let (policies, rejected) = (Vec::new(), BTreeMap::new());
        Self { last_report_at: now, filter_version: String::new(), workers: 0, policies, changed_at: now, rejected }
    }

    fn applied(&self) -> impl Iterator<Item = &v1::AppliedPolicy> {
        self.policies.iter().map(|held| &held.policy)
    }

    /// Takes the policies in force. A version that stays keeps its time.
    fn hold(&mut self, now: Instant, policies: &[v1::AppliedPolicy]) {
        let before = std::mem::take(&mut self.policies);
        let is_same = |held: &Held, policy: &v1::AppliedPolicy| held.policy.name == policy.name && held.policy.version == policy.version;
        let since = |policy: &v1::AppliedPolicy| before.iter().find(|held| is_same(held, policy)).map_or(now, |held| held.since);
        let hold = |policy: &v1::AppliedPolicy| Held { policy: policy.clone(), since: since(policy) };
        self.policies = policies.iter().take(MAX_POLICIES_PER_PROXY).map(hold).collect();
        if before.len() != self.policies.len() || self.policies.iter().any(|held| held.since == now) {
            self.changed_at = now;
        }
    }

    fn holding(&self, node_id: &str, now: Instant, policy: &v1::Policy) -> PolicyHolding {
        let held = self.policies.iter().find(|held| held.policy.name == policy.name);
        let is_meant = rollout::has_candidate(policy, node_id);
        PolicyHolding {
            node_id: node_id.to_owned(),
            version: held.map(|held| held.policy.version.clone()).unwrap_or_default(),
            wanted_version: if is_meant { policy.version.clone() } else { String::new() },
            held_for: now.duration_since(held.map_or(self.changed_at, |held| held.since)),
            refused: self.rejected.get(&policy.name).cloned(),
            last_report_age: now.duration_since(self.last_report_at),
        }
    }

    fn reject(&mut self, mut rejection: v1::RejectedPolicy) {
        if self.rejected.len() >= MAX_POLICIES_PER_PROXY && !self.rejected.contains_key(&rejection.name) {
            return;
        }
        let end = (0..=rejection.error.len().min(MAX_ERROR_BYTES)).rev().find(|&at| rejection.error.is_char_boundary(at)).unwrap_or(0);
        rejection.error.truncate(end);
        self.rejected.insert(rejection.name.clone(), rejection);
    }

    fn view(&self, node_id: &str, now: Instant) -> ProxyView {
        ProxyView {
            node_id: node_id.to_owned(),
            filter_version: self.filter_version.clone(),
            last_report_age: now.duration_since(self.last_report_at),
            workers: self.workers,
            policies: self.applied().cloned().collect(),
            rejected: self.rejected.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node_id: &str, version: &str, rejected: &[&str]) -> v1::LoadReport {
        let reject =
            |name: &&str| v1::RejectedPolicy { name: (*name).to_owned(), version: "2".to_owned(), error: "classes: is missing".to_owned() };
        v1::LoadReport {
            node_id: node_id.to_owned(),
            policies: vec![v1::AppliedPolicy { name: "demo".to_owned(), version: version.to_owned(), limits_epoch: 7 }],
            rejected: rejected.iter().map(reject).collect(),
            ..Default::default()
        }
    }

    fn version(version: &str) -> v1::Policy {
        v1::Policy { name: "demo".to_owned(), version: version.to_owned(), ..v1::Policy::default() }
    }

    #[test]
    fn the_reach_of_a_version_tells_current_behind_and_refused() {
        let (proxies, now) = (Proxies::default(), Instant::now());
        proxies.record_report(now, &report("a", "2", &[]));
        proxies.record_report(now, &report("b", "1", &["demo"]));
        let reach = proxies.reach(&version("2"));
        assert_eq!((reach.proxies_current, reach.proxies_behind), (1, 1));
        assert_eq!(reach.rejections.len(), 1);
        assert_eq!((reach.rejections[0].node_id.as_str(), reach.rejections[0].error.as_str()), ("b", "classes: is missing"));
    }

    #[test]
    fn what_a_proxy_has_is_told_with_the_time_since_when_and_page_by_page() {
        let (proxies, began) = (Proxies::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        for (seconds, seen) in [(0, "1"), (1, "2"), (4, "2")] {
            proxies.record_report(at(seconds), &report("a", seen, &[]));
        }
        proxies.record_report(at(3), &report("b", "1", &["demo"]));
        proxies.record_report(at(3), &v1::LoadReport { node_id: "c".to_owned(), ..Default::default() });
        let all = proxies.holdings(at(5), &version("2"), "", 9);
        let shown: Vec<_> = all.iter().map(|of| (of.node_id.as_str(), of.version.as_str(), of.held_for.as_secs())).collect();
        assert_eq!(shown, [("a", "2", 4), ("b", "1", 2), ("c", "", 2)]);
        assert!(all.iter().all(|of| of.wanted_version == "2") && all[0].last_report_age == Duration::from_secs(1));
        assert_eq!(all[1].refused.as_ref().map(|refused| refused.error.as_str()), Some("classes: is missing"));
        assert_eq!(proxies.holdings(at(5), &version("2"), "", 2), all[..2]);
        assert_eq!(proxies.holdings(at(5), &version("2"), "b", 2), all[2..]);
    }

    #[test]
    fn a_refusal_that_a_report_no_longer_names_is_mended() {
        let (proxies, now) = (Proxies::default(), Instant::now());
        proxies.record_nack(now, "a", v1::RejectedPolicy { name: "demo".to_owned(), ..Default::default() });
        assert_eq!(proxies.reach(&version("2")).rejections.len(), 1);
        proxies.record_report(now, &report("a", "2", &[]));
        assert!(proxies.reach(&version("2")).rejections.is_empty());
    }

    #[test]
    fn a_silent_proxy_is_forgotten_after_five_seconds() {
        let (proxies, now) = (Proxies::default(), Instant::now());
        proxies.record_report(now, &report("a", "1", &[]));
        proxies.record_report(now + Duration::from_secs(3), &report("b", "1", &[]));
        assert_eq!(proxies.expire(now + Duration::from_secs(5)), ["a"]);
        assert_eq!(proxies.len(), 1);
    }

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let proxies = Proxies::default();
        let error = "ä".repeat(MAX_ERROR_BYTES);
        proxies.record_nack(Instant::now(), "a", v1::RejectedPolicy { name: "demo".to_owned(), version: String::new(), error });
        assert_eq!(proxies.reach(&version("")).rejections[0].error.len(), MAX_ERROR_BYTES);
    }

    #[test]
    fn a_full_table_takes_no_further_proxy() {
        let (proxies, now) = (Proxies::default(), Instant::now());
        for n in 0..MAX_PROXIES {
            assert!(proxies.record_report(now, &report(&n.to_string(), "1", &[])));
        }
        assert!(!proxies.record_report(now, &report("one more", "1", &[])));
        assert!(proxies.record_report(now, &report("7", "1", &[])), "a known one still reports");
    }
}
