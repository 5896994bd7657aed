//! How a fleet-wide rate is split among proxies.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::aperture::Extent;
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
            return Self { by_node: BTreeMap::new(), newcomer: ProxyShare { rate: 1.0, safe: 1.0, aperture: Extent::WHOLE } };
        }
        let count = demands.len() as f64;
        let sum: f64 = demands.iter().map(|(_, demand)| demand).sum();
        let equal = EQUAL_PART / (count + 1.0);
        let by_demand = |demand: f64| if sum > 0.0 { demand / sum } else { 1.0 / count };
        let rate = |demand: f64| equal + (1.0 - EQUAL_PART) * by_demand(demand);
        let share = |demand: f64| ProxyShare { rate: rate(demand), safe: 1.0 / count, aperture: Extent::WHOLE };
        Self {
            by_node: demands.iter().map(|(node_id, demand)| ((*node_id).to_owned(), share(*demand))).collect(),
            newcomer: ProxyShare { rate: equal, safe: 1.0 / (count + 1.0), aperture: Extent::WHOLE },
        }
        .laid_out()
    }

    /// Gives each proxy a part of the ring of engines that is as long as its part of the rate, over those of all; one that has not reported
    /// yet goes anywhere.
    fn laid_out(mut self) -> Self {
        let sum: f64 = self.by_node.values().map(|share| share.rate).sum();
        let mut at = 0.0;
        for share in self.by_node.values_mut() {
            let from = at;
            at += share.rate / sum.max(f64::MIN_POSITIVE);
            share.aperture = Extent::new(from, at);
        }
        self
    }

    /// Of each part the part that `weight` gives, 0 to 1, by `node.id`; `None` stands for a proxy that has not reported yet.
    #[must_use]
    pub(super) fn scaled(self, weight: impl Fn(Option<&str>) -> f64) -> Self {
        let scale = |share: ProxyShare, weight: f64| ProxyShare { rate: share.rate * weight, safe: share.safe * weight, ..share };
        let newcomer = scale(self.newcomer, weight(None));
        let part = |(node_id, share): (String, ProxyShare)| {
            let weight = weight(Some(&node_id));
            (node_id, scale(share, weight))
        };
        Self { by_node: self.by_node.into_iter().map(part).collect(), newcomer }.laid_out()
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

    #[test]
    fn apertures_cover_the_ring_without_gaps_by_the_parts_of_the_rate() {
        let shares = Shares::of([("a", 100.0), ("b", 300.0), ("c", 0.0)].into_iter());
        let aperture = |node: &str, shares: &Shares| (shares.by_node[node].aperture.from, shares.by_node[node].aperture.to);
        assert_eq!((aperture("a", &shares).0, aperture("a", &shares).1), (0.0, aperture("b", &shares).0));
        assert!(aperture("b", &shares).1 == aperture("c", &shares).0 && (aperture("c", &shares).1 - 1.0).abs() < 1e-9);
        let half = shares.scaled(|node| if node == Some("b") { 0.0 } else { 0.5 });
        assert!((aperture("a", &half).1 - aperture("c", &half).0).abs() < 1e-9 && aperture("c", &half).1 > 0.99, "an arm covers all of it");
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
