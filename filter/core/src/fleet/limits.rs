//! What the control loop has computed, and each proxy's part of it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;

use headgate_protos::v1;

use super::{FleetServed, OverloadPush, PoolGrants, Ring};
use crate::aperture::Extent;
use crate::overload::{OverloadState, Work};

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
    /// Leases of the proxies, by `node.id`.
    pub grants: Arc<PoolGrants>,
}

/// One proxy's part of a pool's rates and engines.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProxyShare {
    /// Part of the rate now, by demand, `0..=1`.
    pub rate: f64,
    /// Part of the safe rate, by count of proxies, `0..=1`: it must stay safe when demand has moved and nobody says so.
    pub safe: f64,
    /// Its part of the ring of engines.
    pub aperture: Extent,
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
    /// The proxy's part of the limits: rates, drains and budgets scaled by its share, that of a candidate's books included; bursts too, but
    /// never below one request, without which a positive rate would admit nothing.
    pub fn for_node(&self, node_id: &str) -> v1::Limits {
        let share = self.shares.get(node_id).copied().unwrap_or(self.newcomer);
        let mut limits = self.fleet.clone();
        for class in &mut limits.classes {
            class.rate_rps *= share.rate;
            class.drain_rps *= share.rate;
            class.safe_rps *= share.safe;
            if class.burst > 0.0 {
                class.burst = (class.burst * share.rate).max(1.0);
            }
        }
        limits.overload = self.overload.as_ref().map(|overload| overload.for_share(share));
        limits.quotas = self.grants.get(node_id).cloned().unwrap_or_default();
        limits
    }
}

impl PoolLimits {
    /// The form in which replicas pass them on, with the shares of those nodes that `is_wanted` names.
    #[must_use]
    pub fn to_wire(&self, is_wanted: impl Fn(&str) -> bool) -> v1::FleetLimits {
        let overload = self.overload.as_ref();
        v1::FleetLimits {
            fleet: Some(v1::Limits { overload: overload.map(OverloadPush::whole), ..self.fleet.clone() }),
            least: overload.map(|overload| overload.least.to_wire()),
            shares: self.shares.iter().filter(|(node, _)| is_wanted(node)).map(|(node, share)| (node.clone(), share.to_wire())).collect(),
            newcomer: Some(self.newcomer.to_wire()),
            grants: self.grants.iter().filter(|(node, _)| is_wanted(node)).map(|(node, grants)| (node.clone(), leases(grants))).collect(),
        }
    }

    /// Reads that form. `None` when it names no limits.
    #[must_use]
    pub fn from_wire(wire: v1::FleetLimits) -> Option<Self> {
        let v1::FleetLimits { fleet, least, shares, newcomer, grants } = wire;
        let mut fleet = fleet?;
        let least = Work::from_wire(least.as_ref());
        let overload = fleet.overload.take().map(|mut whole| OverloadPush {
            state: Arc::new(OverloadState::from_wire(&whole)),
            least,
            ring: Arc::new(Ring::from_wire(&whole)),
            served: FleetServed::read(&mut whole).map(Arc::new),
        });
        let shares = shares.into_iter().map(|(node, part)| (node, ProxyShare::from_wire(&part))).collect();
        let grants = Arc::new(grants.into_iter().map(|(node, grants)| (node, grants.grants)).collect());
        let newcomer = newcomer.as_ref().map_or(ProxyShare::default(), ProxyShare::from_wire);
        Some(Self { fleet, overload, shares, newcomer, grants })
    }
}

fn leases(grants: &[v1::QuotaGrant]) -> v1::QuotaGrants {
    v1::QuotaGrants { grants: grants.to_vec() }
}

// === impl ProxyShare ===

impl ProxyShare {
    fn to_wire(self) -> v1::ProxyPart {
        v1::ProxyPart { rate: self.rate, safe: self.safe, aperture_from: self.aperture.from, aperture_to: self.aperture.to }
    }

    fn from_wire(wire: &v1::ProxyPart) -> Self {
        let part = |part: f64| if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        let aperture = Extent::new(part(wire.aperture_from), part(wire.aperture_to));
        Self { rate: part(wire.rate), safe: part(wire.safe), aperture }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::vec;

    use super::*;
    use crate::overload::{Budgets, CutOff, RungState, Saturation, Term};
    use core::time::Duration;

    #[test]
    fn a_proxy_gets_its_part_of_the_rates_and_at_least_one_request_of_burst() {
        let class = |rate_rps: f64, burst: f64| v1::ClassLimit { rate_rps, burst, safe_rps: 8.0, drain_rps: 40.0, ..Default::default() };
        let limits = PoolLimits {
            fleet: v1::Limits { classes: vec![class(100.0, 100.0), class(0.0, 0.0)], ..Default::default() },
            shares: [("busy".to_owned(), ProxyShare { rate: 0.9, safe: 0.5, ..Default::default() })].into(),
            newcomer: ProxyShare { rate: 0.005, safe: 0.25, ..Default::default() },
            overload: None,
            grants: Arc::default(),
        };
        let busy = limits.for_node("busy");
        assert_eq!((busy.classes[0].rate_rps, busy.classes[0].burst, busy.classes[0].safe_rps), (90.0, 90.0, 4.0));
        assert_eq!(busy.classes[0].drain_rps, 36.0, "else N proxies would hand out each slot of the pool's future N times");
        assert_eq!(busy.classes[1].burst, 0.0);
        assert_eq!(limits.for_node("new").classes[0].burst, 1.0);
    }

    #[test]
    fn limits_that_another_replica_passes_on_are_those_of_this_one() {
        let budgets = Budgets { prefill_tokens: Some(1000), kv_tokens: None, streams: Some(40) };
        let rungs = vec![RungState::Released, RungState::Engaged, RungState::Unavailable, RungState::Engaged];
        let state = OverloadState {
            budgets,
            safe_budgets: Budgets { kv_tokens: Some(500), ..budgets },
            cut_off: CutOff { level: 300, fraction: 0.25 },
            saturation: Saturation { value: 0.9, binding: Some(Term::Kv), ..Saturation::NONE },
            rungs,
            drain_work_per_s: 1234.5,
            expected_ttft: Duration::from_millis(125),
            retry_ratio: 0.1,
            prompt_factor: 0.75,
            output_tokens: 200.0,
            floors_work_per_s: vec![10.0, 0.0],
            sample_epoch: 7,
            tpot_is_engines: false,
        };
        let class = v1::ClassLimit { rate_rps: 100.0, burst: 10.0, safe_rps: 8.0, drain_rps: 40.0, ..Default::default() };
        let mut served = v1::OverloadLimits { served_slot_deltas: vec![5, 7], served_work: vec![100, 200], ..Default::default() };
        let limits = PoolLimits {
            fleet: v1::Limits { pool: "llm".to_owned(), epoch: 9, classes: vec![class], ..Default::default() },
            overload: Some(OverloadPush {
                state: Arc::new(state),
                least: Work { prefill_tokens: 50, kv_tokens: 60, streams: 1 },
                ring: Arc::new(Ring::of([("10.0.0.1:8000".to_owned(), 1.0), ("10.0.0.2:8000".to_owned(), 3.0)])),
                served: FleetServed::read(&mut served).map(Arc::new),
            }),
            shares: ["a", "b"]
                .map(|node| (node.to_owned(), ProxyShare { rate: 0.3, safe: 0.5, aperture: Extent { from: 0.25, to: 0.75 } }))
                .into(),
            newcomer: ProxyShare { rate: 0.01, safe: 0.25, ..Default::default() },
            grants: Arc::new(["a", "b"].map(|node| (node.to_owned(), vec![v1::QuotaGrant { fence: 5, ..Default::default() }])).into()),
        };
        let there = PoolLimits::from_wire(limits.to_wire(|node| node == "a")).unwrap();
        assert_eq!(there.for_node("a"), limits.for_node("a"));
        let told = there.for_node("a").overload.unwrap();
        assert_eq!((told.engine_bounds, told.served_work), (vec![0.0, 1.5], vec![100, 200]));
        assert_eq!(there.for_node("new"), limits.for_node("new"));
        assert_eq!(there.for_node("a").quotas.len(), 1);
        assert_eq!((there.shares.len(), there.grants.len()), (1, 1), "the other proxy is none of that replica's");
    }
}
