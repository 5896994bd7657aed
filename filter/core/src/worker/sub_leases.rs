//! What this worker asks of the records that the workers of its proxy share, and what it holds of them.

use alloc::string::String;
use alloc::vec::Vec;

use super::Worker;
use crate::lease::{Grant, Holding, Want};
use crate::pool::Pool;
use crate::shared::Keys;

#[cfg(test)]
mod tests;

/// One record, and what this worker asks of it now.
#[derive(Debug, Clone, PartialEq)]
pub struct SubLease {
    /// Key in shared data.
    pub key: String,
    /// What it uses and could use.
    pub want: Want,
    /// What the proxy as a whole may use.
    pub grant: Grant,
    policy: usize,
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The permits of the policy, and its rates but for those of quotas.
    Policy,
    /// The lease of a quota, by its position.
    Quota(usize),
}

impl SubLease {
    /// Whether it is the record of the policy itself, not of one of its quotas.
    #[must_use]
    pub fn is_of_policy(&self) -> bool {
        self.of == Of::Policy
    }
}

impl Worker {
    /// The records of all policies in their order, each followed by those of its quotas.
    #[must_use]
    pub fn sub_leases(&self, keys: &Keys) -> Vec<SubLease> {
        let mut leases = Vec::new();
        for (policy, pool) in self.pools.iter().enumerate() {
            let name = pool.policy.name();
            let grant = Grant { permits_total: self.permits_total(policy) };
            leases.push(SubLease { key: keys.lease(name), want: self.wants(policy), grant, policy, of: Of::Policy });
            for (index, (config, rate_wanted)) in pool.policy.quotas().iter().zip(pool.quotas.wanted()).enumerate() {
                let want = Want { rate_wanted, ..Want::default() };
                let key = keys.quota_lease(name, &config.name);
                leases.push(SubLease { key, want, grant: Grant { permits_total: None }, policy, of: Of::Quota(index) });
            }
        }
        leases
    }

    /// Takes what this worker holds of a record.
    pub fn take_holding(&mut self, lease: &SubLease, holding: Holding) {
        match lease.of {
            Of::Policy => {
                self.set_workers(lease.policy, holding.workers);
                self.set_aperture(lease.policy, holding.aperture);
                self.set_permits(lease.policy, holding.permits.unwrap_or(u32::MAX), holding.rate_share);
            }
            Of::Quota(index) => self.set_quota_part(lease.policy, index, holding.rate_share),
        }
    }

    /// Gives the worker its part, 0 to 1, of the proxy's lease of one quota of a policy. It lapses after half a second.
    pub fn set_quota_part(&mut self, policy_index: usize, quota_index: usize, part: f64) {
        let now = self.now;
        if let Some(Pool { quotas, policy, .. }) = self.pools.get_mut(policy_index) {
            quotas.set_part(now, policy, quota_index, part);
        }
    }
}
