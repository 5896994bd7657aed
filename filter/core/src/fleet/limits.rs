//! What the control loop has computed, and each proxy's part of it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;

use headgate_protos::v1;

use super::OverloadPush;

/// The limits of all pools, by pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitsTable {
    /// The pools; shared, since every subscriber holds the table.
    pub pools: BTreeMap<String, Arc<PoolLimits>>,
}

/// The limits of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolLimits {
    /// The limits of the whole fleet: rates and bursts are totals over all proxies.
    pub fleet: v1::Limits,
    /// Overload control over all proxies; `None` when the policy has none.
    pub overload: Option<OverloadPush>,
    /// Parts of the proxies that report load for the pool, by `node.id`. Their sum is at most one.
    pub shares: BTreeMap<String, ProxyShare>,
    /// Part of a proxy that has not reported yet.
    pub newcomer: ProxyShare,
}

/// One proxy's part of a pool's rates, both in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProxyShare {
    /// Part of the rate now, by demand.
    pub rate: f64,
    /// Part of the safe rate, by count of proxies: it must stay safe when demand has moved and nobody says so.
    pub safe: f64,
}

// === impl LimitsTable ===

impl LimitsTable {
    /// What the proxy `node_id` is to know of `pool`; `None` when the pool has no limits.
    pub fn for_node(&self, node_id: &str, pool: &str) -> Option<v1::Limits> {
        self.pools.get(pool).map(|limits| limits.for_node(node_id))
    }
}

// === impl PoolLimits ===

impl PoolLimits {
    /// The proxy's part of the limits: rates and budgets scaled by its share; bursts too, but never below one request, without which
    /// a positive rate would admit nothing.
    pub fn for_node(&self, node_id: &str) -> v1::Limits {
        let share = self.shares.get(node_id).copied().unwrap_or(self.newcomer);
        let mut limits = self.fleet.clone();
        for class in &mut limits.classes {
            class.rate_rps *= share.rate;
            class.safe_rps *= share.safe;
            if class.burst > 0.0 {
                class.burst = (class.burst * share.rate).max(1.0);
            }
        }
        limits.overload = self.overload.as_ref().map(|overload| overload.for_share(share));
        limits
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::vec;

    use super::*;

    #[test]
    fn a_proxy_gets_its_part_of_the_rates_and_at_least_one_request_of_burst() {
        let class = |rate_rps: f64, burst: f64| v1::ClassLimit { rate_rps, burst, safe_rps: 8.0, drain_rps: 40.0, ..Default::default() };
        let limits = PoolLimits {
            fleet: v1::Limits { classes: vec![class(100.0, 100.0), class(0.0, 0.0)], ..Default::default() },
            shares: [("busy".to_owned(), ProxyShare { rate: 0.9, safe: 0.5 })].into(),
            newcomer: ProxyShare { rate: 0.005, safe: 0.25 },
            overload: None,
        };
        let busy = limits.for_node("busy");
        assert_eq!((busy.classes[0].rate_rps, busy.classes[0].burst, busy.classes[0].safe_rps), (90.0, 90.0, 4.0));
        assert_eq!(busy.classes[0].drain_rps, 40.0, "the drain is that of the pool");
        assert_eq!(busy.classes[1].burst, 0.0);
        assert_eq!(limits.for_node("new").classes[0].burst, 1.0);
    }
}
