//! What the control plane may tell its proxies: the policy, and each one's part of the limits.

use std::collections::BTreeMap;

use headgate_core::fleet::{LimitsTable, PoolLimits};
use headgate_protos::v1;
use headgate_xds::{Resource, ResourceName, ResourceType, Snapshot, Version};
use prost::Message as _;

use super::proxy::Proxy;

/// The policy, and the newest limits of its pool.
pub(super) struct Catalogue {
    policy_name: ResourceName,
    pool: ResourceName,
    /// What every proxy is told.
    common: Snapshot,
    limits: LimitsTable,
    /// What each proxy is told beside it; made once for new limits, since a proxy asks again when it has them.
    by_proxy: BTreeMap<u16, Snapshot>,
}

// === impl Catalogue ===

impl Catalogue {
    pub(super) fn new(policy: &v1::Policy, pool: &str) -> Self {
        Self {
            policy_name: name(&policy.name),
            pool: name(pool),
            common: Snapshot::try_new([resource(policy)]).expect("a policy needs nothing else"),
            limits: LimitsTable::default(),
            by_proxy: BTreeMap::new(),
        }
    }

    /// The pool that the policy protects.
    pub(super) fn pool(&self) -> &str {
        self.pool.as_str()
    }

    pub(super) fn set_limits(&mut self, limits: LimitsTable) {
        self.limits = limits;
        self.by_proxy.clear();
    }

    /// The newest limits; `None` before the first.
    pub(super) fn limits(&self) -> Option<&PoolLimits> {
        self.limits.pools.get(self.pool.as_str()).map(|limits| &**limits)
    }

    /// What a proxy may be told.
    pub(super) fn snapshot(&mut self, proxy: u16) -> &Snapshot {
        let Self { policy_name, pool, common, limits, by_proxy } = self;
        by_proxy.entry(proxy).or_insert_with(|| {
            let Some(limits) = limits.for_node(&Proxy::node_id(proxy), pool.as_str()) else { return common.clone() };
            let limits = Resource::new(ResourceType::HeadgateLimits, pool.clone(), limits.encode_to_vec().into());
            let limits = limits.needing(ResourceType::HeadgatePolicy, policy_name.clone());
            common.with([limits]).expect("limits need a policy that is there")
        })
    }
}

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("policy and pool have been validated")
}

fn resource(policy: &v1::Policy) -> Resource {
    let resource = Resource::new(ResourceType::HeadgatePolicy, name(&policy.name), policy.encode_to_vec().into());
    match Version::parse(&policy.version) {
        Some(version) => resource.versioned(version),
        None => resource,
    }
}
