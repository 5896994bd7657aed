//! One worker VM: when the adapter calls core. Periods and order are those of `filter/wasm/src/root.rs`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::discovery::PolicySnapshot;
use headgate_core::lease::{Grant, Holding, LeaseRecord, Want};
use headgate_core::policy::Policy;
use headgate_core::shared::{Keys, Revisions, SharedLimits};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;

use super::reports::Reports;

/// Time between two ticks.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// Between two refreshes of the sub-leases and of the report.
const SHARE_EVERY: Duration = Duration::from_millis(100);
/// Between two reports of a VM that has not seen a request.
const IDLE_REPORT_EVERY: Duration = Duration::from_millis(400);
/// Between two refreshes of the sub-leases when they do not suffice.
const LEASE_AGAIN: Duration = Duration::from_millis(5);

/// What the VMs of a proxy share.
#[derive(Default)]
pub(super) struct SharedData {
    /// A handful, whose keys differ in length: looked at one by one they are found without comparing texts.
    values: Vec<(String, Vec<u8>)>,
    /// Records of leases, as their bytes are read: to seal and check them would cost more than to refresh a lease.
    leases: Vec<(String, LeaseRecord)>,
    /// Under `Keys::report`, by slot.
    pub(super) reports: Reports,
    /// What `Keys::policies` and `Keys::limits` decode to, and the revision of it: each VM decodes the same.
    policies: (u64, Option<Vec<Arc<Policy>>>),
    limits: (u64, Rc<SharedLimits>),
}

impl SharedData {
    /// The value under a key; empty when there is none.
    pub(super) fn get(&self, key: &str) -> &[u8] {
        self.values.iter().find(|(known, _)| known == key).map_or(&[], |(_, value)| value)
    }

    pub(super) fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.values.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => self.values.push((key.to_owned(), value)),
        }
    }

    /// One refresh of `owner`'s place in the record under a key: its slot and what it holds, as of `headgate_core::shared::refresh_lease`.
    fn refresh_lease(&mut self, key: &str, now: Timestamp, owner: u64, want: Want, grant: Grant) -> Option<(usize, Holding)> {
        let at = self.leases.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
            self.leases.push((key.to_owned(), LeaseRecord::new()));
            self.leases.len() - 1
        });
        let record = &mut self.leases[at].1;
        let held = record.refresh(now, owner, want, grant);
        debug_assert_eq!(LeaseRecord::decode(&record.encode()).map(|read| read.encode()), Some(record.encode()));
        held
    }

    /// The valid policies as of a revision; `None` when they cannot be read.
    fn policies(&mut self, keys: &Keys, revision: u64) -> Option<Vec<Arc<Policy>>> {
        if self.policies.0 != revision {
            let valid = |wire: &v1::Policy| Policy::try_from_wire(wire).ok().map(Arc::new);
            let snapshot = PolicySnapshot::decode(self.get(&keys.policies));
            self.policies = (revision, snapshot.map(|snapshot| snapshot.policies.iter().filter_map(valid).collect()));
        }
        self.policies.1.clone()
    }

    /// The limits as of a revision.
    fn limits(&mut self, keys: &Keys, revision: u64) -> Rc<SharedLimits> {
        if self.limits.0 != revision {
            self.limits = (revision, Rc::new(SharedLimits::read(self.get(&keys.limits))));
        }
        Rc::clone(&self.limits.1)
    }
}

/// One worker VM.
pub(super) struct Vm {
    pub(super) worker: Worker,
    pub(super) owner: u64,
    seen: Revisions,
    /// By policy, the key of its sub-leases and what the proxy as a whole may use.
    leases: Vec<(String, Grant)>,
    /// Permits by policy, `None`: unbounded. Empty before the first request.
    permits: Vec<Option<u32>>,
    /// Part of the proxy's rates and budgets that it holds.
    pub(super) share: f64,
    leased_at: Timestamp,
    reported_at: Timestamp,
    pub(super) looked_at: Timestamp,
}

// === impl Vm ===

impl Vm {
    pub(super) fn new(owner: u64) -> Self {
        Self {
            worker: Worker::new(owner),
            owner,
            seen: Revisions::default(),
            leases: Vec::new(),
            permits: Vec::new(),
            share: 0.0,
            leased_at: Timestamp::ZERO,
            reported_at: Timestamp::ZERO,
            looked_at: Timestamp::ZERO,
        }
    }

    pub(super) fn on_tick(&mut self, now: Timestamp, keys: &Keys, shared: &mut SharedData) {
        self.worker.on_tick(now);
        self.take_up(now, keys, shared);
        if !self.permits.is_empty() && (now.since(self.leased_at) >= SHARE_EVERY || self.is_short_of_permits()) {
            self.lease(now, shared);
        }
        if self.reports_next(now) {
            self.reported_at = now;
            self.report(now, keys, shared);
        }
    }

    /// Whether a tick now would share a report.
    fn reports_next(&self, now: Timestamp) -> bool {
        let every = if self.permits.is_empty() { IDLE_REPORT_EVERY } else { SHARE_EVERY };
        now.since(self.reported_at) >= every
    }

    /// Before a decision: takes permits up when there are none left.
    pub(super) fn ensure_permits(&mut self, now: Timestamp, shared: &mut SharedData) {
        if self.permits.is_empty() || (self.is_short_of_permits() && now.since(self.leased_at) >= LEASE_AGAIN) {
            self.lease(now, shared);
        }
    }

    /// Takes up what the leader has shared since the last look.
    fn take_up(&mut self, now: Timestamp, keys: &Keys, shared: &mut SharedData) {
        let newest = Revisions::decode(shared.get(&keys.revisions));
        if newest == self.seen {
            return;
        }
        let has_policies = newest.policies != self.seen.policies;
        if has_policies && let Some(policies) = shared.policies(keys, newest.policies) {
            self.worker.set_policies(now, policies);
            let grant = |policy: &Policy| Grant { permits_total: policy.concurrency().map(|concurrency| concurrency.max_in_flight) };
            self.leases = self.worker.policies().map(|policy| (keys.lease(policy.name()), grant(policy))).collect();
            if !self.permits.is_empty() {
                self.lease(now, shared);
            }
        }
        if has_policies || newest.limits != self.seen.limits {
            for pool in &shared.limits(keys, newest.limits).pools {
                if let Some(limits) = &pool.limits {
                    self.worker.set_limits(Timestamp::from_nanos(pool.at_ns), limits);
                }
            }
        }
        self.seen = newest;
    }

    fn is_short_of_permits(&self) -> bool {
        let is_short = |(index, held): (usize, &Option<u32>)| held.is_some_and(|held| self.worker.wants(index).permits_in_use >= held);
        self.permits.iter().enumerate().any(is_short)
    }

    fn lease(&mut self, now: Timestamp, shared: &mut SharedData) {
        self.leased_at = now;
        self.permits.clear();
        for (index, (key, grant)) in self.leases.iter().enumerate() {
            let held = shared.refresh_lease(key, now, self.owner, self.worker.wants(index), *grant);
            if let Some((_, Holding { permits, rate_share, aperture, workers })) = held {
                self.worker.set_workers(index, workers);
                self.worker.set_aperture(index, aperture);
                self.worker.set_permits(index, permits.unwrap_or(u32::MAX), rate_share);
                self.share = rate_share;
            }
            self.permits.push(held.and_then(|(_, holding)| holding.permits));
        }
    }

    fn report(&mut self, now: Timestamp, keys: &Keys, shared: &mut SharedData) {
        let none = Grant { permits_total: None };
        let Some((slot, _)) = shared.refresh_lease(&keys.roster, now, self.owner, Want::default(), none) else { return };
        shared.reports.set(slot, self.worker.report(now, slot as u32));
    }
}
