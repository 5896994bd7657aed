//! Whom the fleet served work: what the workers tell of their tenants, added up.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::fairness::HALF_LIFE_S;
use crate::fairness::served::{MANY, SLOTS, Served, TELL_EVERY, read};
use crate::permits::MAX_CLASSES;
use crate::time::Timestamp;

/// Work served to tenants over the whole fleet, in the classes that are asked by many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetServed(Served);

/// Work tokens served to each tenant of each class of one pool, decaying: half after the longest half-life of a worker, which is that of one
/// that serves each of its tenants but now and then.
#[derive(Default)]
pub(super) struct ServedBook {
    /// Version of the policy whose tenants are counted.
    policy_version: String,
    /// Classes and tenants in the policy's order: what slots mean.
    names: Vec<String>,
    /// By slot; empty until any are told.
    counters: Vec<f64>,
    decayed_at: Timestamp,
    newest: Option<Arc<FleetServed>>,
}

// === impl FleetServed ===

impl FleetServed {
    pub(in crate::fleet) fn write(&self, limits: &mut v1::OverloadLimits) {
        limits.served_slot_deltas.clone_from(&self.0.slot_deltas);
        limits.served_work.clone_from(&self.0.work);
    }

    /// What was written; `None` when nothing was.
    pub(in crate::fleet) fn read(limits: &mut v1::OverloadLimits) -> Option<Self> {
        let (slot_deltas, work) = (core::mem::take(&mut limits.served_slot_deltas), core::mem::take(&mut limits.served_work));
        (!work.is_empty()).then_some(Self(Served { slot_deltas, work }))
    }
}

// === impl ServedBook ===

impl ServedBook {
    /// Follows a policy: counters of other tenants or classes end.
    pub(super) fn set_policy(&mut self, policy: &v1::Policy, spec: &v1::PolicySpec) {
        let classes = spec.classes.iter().map(|class| &class.name);
        let tenants = spec.classification.iter().flat_map(|classification| &classification.tenants);
        let names: Vec<String> = classes.chain(tenants.map(|tenant| &tenant.name)).cloned().collect();
        if names != self.names {
            *self = Self { names, ..Self::default() };
        }
        self.policy_version.clone_from(&policy.version);
    }

    /// Adds what a worker that has the policy's `version` served in a second.
    pub(super) fn add(&mut self, now: Timestamp, version: &str, report: &v1::OverloadReport) {
        if version != self.policy_version || report.served_work.is_empty() {
            return;
        }
        if self.counters.is_empty() {
            self.counters = alloc::vec![0.0; SLOTS];
            self.decayed_at = now;
        }
        for (slot, work) in read(&report.served_slot_deltas, &report.served_work) {
            if let Some(counter) = self.counters.get_mut(slot) {
                *counter += work;
            }
        }
        self.tell(now);
    }

    /// The newest telling.
    pub(super) fn newest(&self) -> Option<Arc<FleetServed>> {
        self.newest.clone()
    }

    fn tell(&mut self, now: Timestamp) {
        let passed = now.since(self.decayed_at);
        if passed < TELL_EVERY {
            return;
        }
        self.decayed_at = now;
        let left = libm::exp2(-passed.as_secs_f64() / HALF_LIFE_S.1);
        self.counters.iter_mut().for_each(|counter| *counter *= left);
        let (mut served, mut last) = (Served::default(), 0);
        for (class, counters) in self.counters.chunks(SLOTS / MAX_CLASSES).enumerate() {
            if counters.iter().filter(|work| **work >= 1.0).count() >= MANY {
                let first = class * counters.len();
                for (tenant, work) in counters.iter().enumerate() {
                    served.push(&mut last, first + tenant, *work);
                }
            }
        }
        self.newest = (!served.work.is_empty()).then(|| Arc::new(FleetServed(served)));
    }
}

#[cfg(test)]
mod tests;
