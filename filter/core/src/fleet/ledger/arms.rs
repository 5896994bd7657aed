//! A policy and its candidate that governs a part of its requests: two books of one pool.
//!
//! Each has a controller of its own, which sees what both bring to the pool and so finds what the pool as a whole may do; of that it gets
//! the part that is asked for under its policy. So what the two may do together lies between what either would allow alone.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::node::Node;
use super::{PoolBook, PoolView, Shares};
use crate::policy::{CanaryPart, serving_pool};
use crate::time::Timestamp;

/// Lets both of them see the sum. `candidate` is the name of the candidate's books.
pub(super) fn join(views: &mut BTreeMap<String, PoolView>, candidate: &str) {
    let pool = serving_pool(candidate);
    let (Some(arm), Some(whole)) = (views.get(candidate).cloned(), views.get_mut(pool)) else { return };
    for class in &mut whole.classes {
        let Some(other) = arm.classes.iter().find(|other| other.class == class.class) else { continue };
        class.control.add(other.control);
        class.in_flight = class.in_flight.saturating_add(other.in_flight);
        class.waiting = class.waiting.saturating_add(other.waiting);
    }
    if let Some(ttft) = &arm.ttft {
        whole.ttft.get_or_insert_default().merge(ttft);
    }
    if let Some(flow) = &arm.flow {
        whole.flow.get_or_insert_default().add(flow);
    }
    whole.queued_bytes = whole.queued_bytes.saturating_add(arm.queued_bytes);
    whole.first_report_at = match (whole.first_report_at, arm.first_report_at) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let joined = whole.clone();
    if let Some(arm) = views.get_mut(candidate) {
        let (classes, proxies) = (core::mem::take(&mut arm.classes), arm.proxies);
        // Tenants are told by their places in a policy's list.
        *arm = PoolView { proxies, served: arm.served.take(), ..joined };
        for class in &mut arm.classes {
            class.totals = classes.iter().find(|own| own.class == class.class).map(|own| own.totals.clone()).unwrap_or_default();
        }
    }
}

/// The books `name` end. When they were those of a candidate that governed, what they brought to the pool stays in the pool's: its
/// counters never fall.
pub(super) fn leave(pools: &mut BTreeMap<String, PoolBook>, name: &str, book: &PoolBook) {
    let Some(whole) = pools.get_mut(serving_pool(name)).filter(|_| book.canary.is_some()) else { return };
    for class in &mut whole.classes {
        if let Some(other) = book.classes.iter().find(|other| other.name == class.name) {
            class.control.add(other.control);
        }
    }
    whole.ttft.merge(&book.ttft);
    if let Some(flow) = &book.flow {
        whole.flow.get_or_insert_default().add(flow);
    }
}

/// Parts of the books `of`: those of the pool, or of the candidate.
///
/// A proxy gets its part of the pool by what is asked of it under both; of that the candidate gets what its policy says, so that neither
/// has to wait until its demand is known: every request that it refused meanwhile would count against it.
pub(super) fn shares<'a>(
    nodes: impl Iterator<Item = (&'a String, &'a Node)>,
    now: Timestamp,
    (of, candidate): (&str, &str),
    part: CanaryPart,
) -> Shares {
    let (pool, is_candidate) = (serving_pool(candidate), of == candidate);
    let present: Vec<(&str, &Node)> = nodes
        .filter(|(_, node)| node.is_present(now) && (node.reports(pool) || node.reports(candidate)))
        .map(|(node_id, node)| (node_id.as_str(), node))
        .collect();
    let have: BTreeSet<&str> = present
        .iter()
        .filter(|(_, node)| node.live_classes(now).any(|(books, _)| books == candidate))
        .map(|(node_id, _)| *node_id)
        .collect();
    let whole = Shares::of(present.iter().map(|(node_id, node)| (*node_id, node.demand(now, pool) + node.demand(now, candidate))));
    let weight = |node_id: Option<&str>| match (part, is_candidate) {
        (CanaryPart::Requests(percent), true) => f64::from(percent.min(100)) / 100.0,
        (CanaryPart::Requests(percent), false) if node_id.is_none_or(|id| have.contains(id)) => 1.0 - f64::from(percent.min(100)) / 100.0,
        (CanaryPart::Proxies(_), false) if node_id.is_some_and(|id| have.contains(id)) => 0.0,
        (CanaryPart::Requests(_) | CanaryPart::Proxies(_), _) => 1.0,
    };
    whole.scaled(weight)
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::borrow::ToOwned;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    use headgate_protos::v1;

    use super::*;
    use crate::fleet::{ControlCounters, Ledger, PolicySet, PoolLimits, StoredPolicy};
    use crate::histogram::Histogram;

    fn policy(name: &str, candidate: Option<v1::Candidate>) -> v1::Policy {
        let when_tripped = v1::WhenTripped::GradientThrottle.into();
        let class = v1::PriorityClass { name: "all".to_owned(), when_tripped, ..Default::default() };
        let spec = v1::PolicySpec { pool: "pool".to_owned(), classes: vec![class], candidate, ..Default::default() };
        v1::Policy { name: name.to_owned(), spec: Some(spec), version: String::new() }
    }

    fn canary(requests: Option<u32>, proxies: Option<u32>) -> v1::Policy {
        let candidate = v1::Candidate { of: "z".to_owned(), requests_percent: requests, proxies_percent: proxies, ..Default::default() };
        policy("a", Some(candidate))
    }

    /// The books of a policy, and of a candidate whose name comes before it.
    fn set(candidate: Option<v1::Policy>) -> PolicySet {
        let policies = [Some(policy("z", None)), candidate].into_iter().flatten();
        let stored = |policy: v1::Policy| (policy.name.clone(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }));
        PolicySet { policies: policies.map(stored).collect() }
    }

    /// What one worker of `node` reports: requests of both, all served after 1 ms, but for those that the candidate refuses.
    fn report(node: &str, at_ms: u64, requests: u64, candidate: Option<(u64, u64)>) -> v1::LoadReport {
        let books = |policy: &str, pool: &str, served: u64, refused: u64| {
            let mut ttft = Histogram::new();
            (0..served).for_each(|_| ttft.record(1000));
            let class = v1::ClassReport {
                class: "all".to_owned(),
                offered: served + refused,
                admitted: served,
                completed: served,
                refused: vec![v1::ReasonCount { reason: "qps".to_owned(), count: refused }],
                in_flight: 2,
                ttft_us: Some(ttft.to_wire()),
                ..Default::default()
            };
            v1::PoolReport { policy: policy.to_owned(), pool: pool.to_owned(), classes: vec![class], ..Default::default() }
        };
        let mut pools = vec![books("z", "pool", requests, 0)];
        pools.extend(candidate.map(|(served, refused)| books("a", "pool~candidate", served, refused)));
        let worker = v1::WorkerReport { slot: 0, vm_epoch: 1, at_ns: at_ms * 1_000_000, pools, counters: None };
        v1::LoadReport { node_id: node.to_owned(), workers: vec![worker], ..Default::default() }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn control(view: &BTreeMap<String, PoolView>, books: &str) -> ControlCounters {
        view[books].classes[0].control
    }

    #[test]
    fn both_controllers_see_the_load_of_both_and_people_see_each() {
        let mut ledger = Ledger::default();
        ledger.set_policies(&set(Some(canary(Some(10), None))));
        ledger.record(at(100), &report("n", 100, 0, Some((0, 0))));
        ledger.record(at(200), &report("n", 200, 90, Some((6, 4))));
        let joined = ledger.control_view(at(200));
        let expected = ControlCounters { offered: 100, admitted: 96, completed: 96, failed: 0, refused: 4 };
        assert_eq!((control(&joined, "pool"), control(&joined, "pool~candidate")), (expected, expected));
        assert_eq!(joined["pool"].classes[0].in_flight, 4);
        assert_eq!(joined["pool~candidate"].ttft.as_ref().unwrap().count(), 96);
        let own = ledger.view(at(200));
        assert_eq!((control(&own, "pool").offered, control(&own, "pool~candidate").offered), (90, 10));
        let (ttft, counted) = ledger.judged("pool~candidate", "all").unwrap();
        assert_eq!((ttft.count(), counted.refused), (6, 4), "each is judged by its own");
    }

    #[test]
    fn what_a_candidate_brought_stays_with_the_pool_when_it_ends() {
        for end in [None, Some(v1::Policy { name: "b".to_owned(), ..canary(Some(10), None) })] {
            let mut ledger = Ledger::default();
            ledger.set_policies(&set(Some(canary(Some(10), None))));
            ledger.record(at(100), &report("n", 100, 0, Some((0, 0))));
            ledger.record(at(200), &report("n", 200, 90, Some((10, 0))));
            ledger.set_policies(&set(end.clone()));
            assert_eq!(control(&ledger.control_view(at(200)), "pool").offered, 100, "{end:?}");
            ledger.set_policies(&set(None));
            assert_eq!(control(&ledger.control_view(at(200)), "pool").offered, 100);
            assert!(ledger.judged("pool", "all").is_none(), "nobody is compared any more");
        }
    }

    #[test]
    fn what_a_candidate_counts_while_it_watches_is_no_load() {
        let mut watching = canary(None, None);
        watching.spec.as_mut().unwrap().enforcement = v1::Enforcement::Shadow.into();
        let mut ledger = Ledger::default();
        ledger.set_policies(&set(Some(watching)));
        ledger.record(at(100), &report("n", 100, 0, Some((0, 0))));
        ledger.record(at(200), &report("n", 200, 90, Some((90, 0))));
        assert_eq!(control(&ledger.control_view(at(200)), "pool").offered, 90);
        ledger.set_policies(&set(Some(canary(Some(10), None))));
        assert_eq!(control(&ledger.control_view(at(200)), "pool").offered, 90, "it begins to govern with books of its own");
    }

    /// Rates of both nodes under the policy, then under its candidate.
    fn rates(ledger: &Ledger, now: Timestamp) -> Vec<f64> {
        let of = |books: &str| ledger.shares(now, books).by_node.values().map(|share| share.rate).collect::<Vec<_>>();
        [of("pool"), of("pool~candidate")].concat()
    }

    #[test]
    fn a_part_of_the_requests_has_that_part_of_every_proxys_rates_from_the_first_moment() {
        let mut ledger = Ledger::default();
        ledger.set_policies(&set(Some(canary(Some(20), None))));
        for (node, requests) in [("a", 100), ("b", 300)] {
            ledger.record(at(100), &report(node, 100, 0, Some((0, 0))));
            ledger.record(at(200), &report(node, 200, requests, Some((0, 0))));
        }
        let [a, b, candidate_a, candidate_b] = rates(&ledger, at(200))[..] else { unreachable!() };
        assert!((candidate_a / (a + candidate_a) - 0.2).abs() < 1e-9 && (candidate_b / (b + candidate_b) - 0.2).abs() < 1e-9);
        assert!(a + b + candidate_a + candidate_b <= 1.0 && b > 2.0 * a, "{a} {b}");
    }

    /// Else clients of both would be told to come back while those of the other have the place.
    #[test]
    fn clients_that_either_refuses_are_told_times_that_the_one_pool_can_keep() {
        let mut ledger = Ledger::default();
        ledger.set_policies(&set(Some(canary(Some(30), None))));
        for node in ["a", "b"] {
            ledger.record(at(100), &report(node, 100, 0, Some((0, 0))));
            ledger.record(at(200), &report(node, 200, 100, Some((0, 0))));
        }
        let drains = |books: &str| -> f64 {
            let Shares { by_node, newcomer } = ledger.shares(at(200), books);
            let class = v1::ClassLimit { drain_rps: 100.0, ..Default::default() };
            let fleet = v1::Limits { classes: vec![class], ..Default::default() };
            let limits = PoolLimits { fleet, shares: by_node, newcomer, ..Default::default() };
            ["a", "b"].map(|node| limits.for_node(node).classes[0].drain_rps).iter().sum()
        };
        let (policy, candidate) = (drains("pool"), drains("pool~candidate"));
        assert!((candidate / (policy + candidate) - 0.3).abs() < 1e-9, "{policy} {candidate}");
        assert!(policy + candidate <= 100.0 && policy + candidate > 95.0, "{policy} {candidate}");
    }

    #[test]
    fn a_proxy_with_the_candidate_has_its_part_under_the_candidate_alone_until_it_loses_it() {
        let mut ledger = Ledger::default();
        ledger.set_policies(&set(Some(canary(None, Some(50)))));
        for (node, served, candidate) in [("a", 100, None), ("b", 0, Some((100, 0)))] {
            ledger.record(at(100), &report(node, 100, 0, candidate.map(|_| (0, 0))));
            ledger.record(at(200), &report(node, 200, served, candidate));
        }
        let shares = ["pool", "pool~candidate"].map(|books| ledger.shares(at(200), books).by_node);
        assert_eq!(shares[0]["b"].rate, 0.0, "nothing is asked of it under the policy");
        assert!(shares[0]["a"].rate + shares[1]["b"].rate <= 1.0 && shares[1]["b"].rate > 0.45);
        assert_eq!((shares[0]["a"].safe, shares[1]["b"].safe), (0.5, 0.5));
        let mut halted = canary(None, Some(50));
        halted.spec.as_mut().unwrap().candidate.as_mut().unwrap().halted = "worse".to_string();
        ledger.set_policies(&set(Some(halted)));
        assert!(ledger.shares(at(200), "pool").by_node["b"].rate > 0.0, "all of it is the policy's again");
    }
}
