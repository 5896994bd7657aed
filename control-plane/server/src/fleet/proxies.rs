//! What is known of each proxy: its policies, what it refused, when it last spoke.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use headgate_protos::v1;

/// Proxies that are remembered at once; a further one is served but not accounted for.
pub const MAX_PROXIES: usize = 20_000;
/// Policies and refusals that are remembered of one proxy.
pub const MAX_POLICIES_PER_PROXY: usize = 256;
/// Refusals in one answer about a policy (`policy_service.proto`).
const MAX_REJECTIONS: usize = 64;
/// Longest remembered error text, in bytes.
const MAX_ERROR_BYTES: usize = 4096;
/// Silence after which a proxy counts as gone.
pub const GONE_AFTER: Duration = Duration::from_secs(5);

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
    policies: Vec<v1::AppliedPolicy>,
    /// By policy: what the filter refused, as it said on either stream.
    rejected: BTreeMap<String, v1::RejectedPolicy>,
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
        proxy.policies = report.policies.iter().take(MAX_POLICIES_PER_PROXY).cloned().collect();
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
        for applied in self.lock().values().flat_map(|proxy| &proxy.policies) {
            let newest = epochs.entry(applied.name.clone()).or_insert(0);
            *newest = applied.limits_epoch.max(*newest);
        }
        epochs
    }

    /// How far `version` of the policy `name` has come.
    pub fn reach(&self, name: &str, version: &str) -> PolicyReach {
        let mut reach = PolicyReach::default();
        for (node_id, proxy) in self.lock().iter() {
            if proxy.policies.iter().any(|applied| applied.name == name && applied.version == version) {
                reach.proxies_current += 1;
            } else {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Proxy>> {
        // A poisoned table is still a table: every write leaves it whole.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl Proxy ===

impl Proxy {
    fn new(now: Instant) -> Self {
        Self { last_report_at: now, filter_version: String::new(), workers: 0, policies: Vec::new(), rejected: BTreeMap::new() }
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
            policies: self.policies.clone(),
            rejected: self.rejected.values().cloned().collect(),
        }
    }
}
