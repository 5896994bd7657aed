//! How a fleet-wide rate is split among proxies.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::fleet::ProxyShare;

/// Part of every rate that is split equally, one part kept for a proxy that has not reported yet: a proxy whose demand is new
/// must be able to admit its first requests.
const EQUAL_PART: f64 = 0.05;

/// Parts of all proxies. `Σ rate ≤ 1`, the newcomer's included; `Σ safe ≤ 1` over the proxies that report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shares {
    /// By `node.id`.
    pub by_node: BTreeMap<String, ProxyShare>,
    /// Part of a proxy that has not reported yet. With no proxy at all it is everything.
    pub newcomer: ProxyShare,
}

// === impl Shares ===

impl Shares {
    /// Parts by demand, in requests per second.
    ///
    /// `share_i = e / (n + 1) + (1 - e) · d_i / Σd`, `e` the equal part, `n` proxies. Without any demand all are equal.
    pub fn of<'a>(demands: impl Iterator<Item = (&'a str, f64)>) -> Self {
        let demands: Vec<(&str, f64)> = demands.collect();
        if demands.is_empty() {
            return Self { by_node: BTreeMap::new(), newcomer: ProxyShare { rate: 1.0, safe: 1.0 } };
        }
        let count = demands.len() as f64;
        let sum: f64 = demands.iter().map(|(_, demand)| demand).sum();
        let equal = EQUAL_PART / (count + 1.0);
        let by_demand = |demand: f64| if sum > 0.0 { demand / sum } else { 1.0 / count };
        let share = |demand: f64| ProxyShare { rate: equal + (1.0 - EQUAL_PART) * by_demand(demand), safe: 1.0 / count };
        Self {
            by_node: demands.iter().map(|(node_id, demand)| ((*node_id).to_owned(), share(*demand))).collect(),
            newcomer: ProxyShare { rate: equal, safe: 1.0 / (count + 1.0) },
        }
    }

    /// Of each part the part that `weight` gives, 0 to 1, by `node.id`; `None` stands for a proxy that has not reported yet.
    #[must_use]
    pub(super) fn scaled(self, weight: impl Fn(Option<&str>) -> f64) -> Self {
        let scale = |share: ProxyShare, weight: f64| ProxyShare { rate: share.rate * weight, safe: share.safe * weight };
        let newcomer = scale(self.newcomer, weight(None));
        let part = |(node_id, share): (String, ProxyShare)| {
            let weight = weight(Some(&node_id));
            (node_id, scale(share, weight))
        };
        Self { by_node: self.by_node.into_iter().map(part).collect(), newcomer }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lone_proxy_gets_nearly_everything() {
        let shares = Shares::of([("a", 100.0)].into_iter());
        assert!(shares.by_node["a"].rate > 0.95);
        assert_eq!(shares.by_node["a"].safe, 1.0);
    }

    #[test]
    fn a_proxy_without_demand_keeps_a_little() {
        let shares = Shares::of([("busy", 100.0), ("idle", 0.0)].into_iter());
        assert!(shares.by_node["idle"].rate > 0.0);
        assert!(shares.by_node["busy"].rate > 0.9);
    }

    proptest! {
        #[test]
        fn parts_never_sum_above_one(demands in proptest::collection::vec(0.0..1e9_f64, 0..50)) {
            let names: Vec<String> = (0..demands.len()).map(|n| n.to_string()).collect();
            let shares = Shares::of(names.iter().map(String::as_str).zip(demands));
            let sum: f64 = shares.by_node.values().map(|share| share.rate).sum::<f64>() + shares.newcomer.rate;
            prop_assert!(sum <= 1.0 + 1e-9, "{sum}");
            let safe: f64 = shares.by_node.values().map(|share| share.safe).sum();
            prop_assert!(safe <= 1.0 + 1e-9, "{safe}");
        }
    }
}
