//! Workers, reports, the leader and back: the same messages as on the wire.

use alloc::sync::Arc;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::fleet::StoredPolicy;
use crate::policy::fixture;
use crate::request::{HeaderView, RequestInfo, VerifiedIdentity};
use crate::stream::{Event, Outcome, Stream, StreamEnd};
use crate::worker::Worker;

const SPIFFE: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: Some(b"spiffe://cluster.local/ns/a/sa/vip"), jwt_claims: &[] };
const NOBODY: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: None, jwt_claims: &[] };
const HEADERS: &[(&[u8], &[u8])] = &[(b":path", b"/v1/chat/completions"), (b"content-length", b"400")];

fn quota(amount: f64, unit: v1::QuotaUnit) -> v1::Quota {
    v1::Quota { name: "all".into(), unit: unit.into(), amount, ..Default::default() }
}

fn wire(quotas: Vec<v1::Quota>) -> v1::Policy {
    let mut wire = fixture::wire();
    wire.spec.as_mut().unwrap().quotas = quotas;
    wire
}

fn set_of(wire: &v1::Policy) -> PolicySet {
    let stored = Arc::new(StoredPolicy { policy: wire.clone(), changed_at_unix_ms: 0 });
    PolicySet { policies: [(wire.name.clone(), stored)].into() }
}

/// Proxies of two workers each, which report every 100 ms and hear 50 ms later.
struct Fleet {
    now: Timestamp,
    quotas: FleetQuotas,
    proxies: Vec<[Worker; 2]>,
    /// Whether a proxy hears and is heard.
    connected: Vec<bool>,
    /// Whether it has been asked for anything.
    has_served: Vec<bool>,
    /// Bytes of each response.
    response_bytes: usize,
}

impl Fleet {
    fn new(proxies: usize, wire: &v1::Policy) -> Self {
        let now = Timestamp::from_millis(10_000);
        let mut quotas = FleetQuotas::default();
        quotas.begin(1);
        quotas.set_policies(now, &PolicySet::default());
        quotas.set_policies(now, &set_of(wire));
        let policy = Arc::new(Policy::try_from_wire(wire).unwrap());
        let worker = |seed: usize, process: usize| {
            let mut worker = Worker::new(seed as u64);
            worker.set_process(process as u64);
            worker.set_policies(now, vec![policy.clone()]);
            worker
        };
        let proxies: Vec<_> = (0..proxies).map(|node| [worker(2 * node + 1, node + 1), worker(2 * node + 2, node + 1)]).collect();
        let connected = vec![true; proxies.len()];
        let has_served = vec![false; proxies.len()];
        // 256 tokens of output are presumed, and four bytes a token.
        Self { now, quotas, proxies, connected, has_served, response_bytes: 1024 }
    }

    /// 100 ms in which each proxy is asked for so many requests, by both workers in turn; returns those that passed.
    fn round(&mut self, asked: &dyn Fn(usize) -> (usize, VerifiedIdentity<'static>)) -> usize {
        self.now = self.now + Duration::from_millis(50);
        self.quotas.step(self.now);
        let grants: Vec<Arc<PoolGrants>> = self.quotas.grants().map(|(_, grants)| grants.clone()).collect();
        let mut passed = 0;
        for (node, workers) in self.proxies.iter_mut().enumerate() {
            let of_node = grants.iter().filter_map(|grants| grants.get(&node.to_string())).flatten().cloned().collect();
            let limits = v1::Limits { pool: "llm".into(), quotas: of_node, ..Default::default() };
            for worker in workers.iter_mut() {
                worker.on_tick(self.now);
                if self.connected[node] {
                    worker.set_limits(self.now, &limits);
                }
                // As an adapter does from a worker's first request on.
                if self.has_served[node] {
                    worker.set_quota_part(0, 0, 0.5);
                }
            }
            let (requests, identity) = asked(node);
            if requests > 0 && !self.has_served[node] {
                self.has_served[node] = true;
                workers.iter_mut().for_each(|worker| worker.set_quota_part(0, 0, 0.5));
            }
            for index in 0..requests {
                let request = RequestInfo::new(HeaderView::from_pairs(HEADERS), identity);
                let mut stream = Stream::new();
                let outcome = stream.handle(&mut workers[index % 2], self.now, Event::RequestHeaders(&request));
                passed += usize::from(outcome == Outcome::Continue);
                stream.handle(&mut workers[index % 2], self.now, Event::ResponseHeaders { status: 200, failed_dependency: None });
                let body = Event::ResponseBody { len: self.response_bytes, end_of_stream: true };
                stream.handle(&mut workers[index % 2], self.now, body);
                stream.handle(&mut workers[index % 2], self.now, Event::Log { endpoint: None, end: StreamEnd::Complete });
            }
        }
        self.now = self.now + Duration::from_millis(50);
        for (node, workers) in self.proxies.iter_mut().enumerate().filter(|(node, _)| self.connected[*node]) {
            let workers = workers.iter_mut().enumerate().map(|(slot, worker)| worker.report(self.now, slot as u32)).collect();
            self.quotas.record(self.now, &v1::LoadReport { node_id: node.to_string(), workers, ..Default::default() });
        }
        passed
    }

    fn rounds(&mut self, count: usize, asked: &dyn Fn(usize) -> (usize, VerifiedIdentity<'static>)) -> usize {
        (0..count).map(|_| self.round(asked)).sum()
    }

    fn view(&self) -> FleetQuotaView {
        self.quotas.views(self.now).remove(0)
    }
}

#[test]
fn the_fleet_serves_the_rate_wherever_it_is_asked_for_and_no_more() {
    let mut fleet = Fleet::new(10, &wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]));
    let hot = |hot: usize| move |node: usize| (if node == hot { 400 } else { 4 }, NOBODY);
    fleet.rounds(20, &hot(3));
    // What was saved before is used as well.
    let settled = fleet.rounds(20, &hot(3));
    assert!((1950..=2150).contains(&settled), "{settled} in 2 s");
    let moved = fleet.rounds(20, &hot(7));
    assert!(moved <= 2000 + 1000, "{moved} in 2 s");
    let settled = fleet.rounds(20, &hot(7));
    assert!((1950..=2150).contains(&settled), "{settled} in 2 s");
    let view = fleet.view();
    assert!(view.quota.committed <= 1000.0 && view.quota.holders.len() == 10, "{view:?}");
    assert!(view.used_total > 6000.0 && view.refused_total > 10_000, "{view:?}");
}

#[test]
fn a_refusal_names_the_quota_and_says_when_to_come_back() {
    let mut fleet = Fleet::new(1, &wire(vec![quota(20.0, v1::QuotaUnit::Requests)]));
    fleet.rounds(10, &|_| (100, NOBODY));
    let request = RequestInfo::new(HeaderView::from_pairs(HEADERS), NOBODY);
    let worker = &mut fleet.proxies[0][0];
    let refused = (0..50).find_map(|_| match Stream::new().handle(worker, fleet.now, Event::RequestHeaders(&request)) {
        Outcome::Reply(reply) => Some(reply),
        _ => None,
    });
    let reply = refused.expect("20 a second are used up");
    assert_eq!(reply.status, 429);
    let header = |name: &str| reply.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap();
    assert!(header("x-headgate-reason").starts_with("quota; value=1; threshold=0"), "{reply:?}");
    let wait_ms: f64 = header("retry-after-ms").parse().unwrap();
    assert!((50.0..=30_000.0).contains(&wait_ms), "{wait_ms} ms at 10 a second in this worker");
}

#[test]
fn tokens_are_counted_by_what_a_request_is_expected_to_be_and_only_of_the_tenants_named() {
    let of_vip = v1::Quota { tenants: vec!["vip".into()], ..quota(3560.0 * 10.0, v1::QuotaUnit::Tokens) };
    let mut fleet = Fleet::new(2, &wire(vec![of_vip]));
    // 400 bytes are 100 tokens, and 256 of output are presumed: 100 requests a second.
    fleet.rounds(20, &|_| (20, SPIFFE));
    let passed = fleet.rounds(20, &|_| (20, SPIFFE));
    assert!((190..=202).contains(&passed), "{passed} in 2 s");
    assert_eq!(fleet.rounds(1, &|_| (500, NOBODY)), 1000, "nobody else falls under it");
}

#[test]
fn a_proxy_that_is_cut_off_falls_to_its_safe_part_and_the_others_take_over() {
    let mut fleet = Fleet::new(4, &wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]));
    let asked = |_: usize| (50, NOBODY);
    fleet.rounds(30, &asked);
    fleet.connected[0] = false;
    fleet.rounds(70, &asked);
    let of_three = fleet.rounds(10, &asked);
    assert!((980..=1005).contains(&of_three), "{of_three} in 1 s, 7 s after the cut");
    let view = fleet.view();
    let lost = view.quota.holders.iter().find(|holder| holder.key.node == "0").unwrap();
    assert!(lost.committed <= 2.5 + 1e-9 && lost.silent >= Duration::from_secs(7), "{lost:?}");
}

#[test]
fn a_new_leader_takes_over_what_is_held_and_nobody_is_refused_for_it() {
    let wire = wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]);
    let mut fleet = Fleet::new(4, &wire);
    let asked = |_: usize| (20, NOBODY);
    fleet.rounds(30, &asked);
    fleet.quotas.begin(2);
    fleet.quotas.set_policies(fleet.now, &set_of(&wire));
    assert_eq!(fleet.rounds(100, &asked), 100 * 80, "through its learning and after");
    assert_eq!(fleet.view().quota.learning, Duration::ZERO);
}

#[test]
fn a_quota_that_comes_back_is_known() {
    let wire = wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]);
    let mut fleet = Fleet::new(2, &wire);
    fleet.rounds(20, &|_| (100, NOBODY));
    fleet.quotas.set_policies(fleet.now, &PolicySet::default());
    assert!(fleet.quotas.views(fleet.now).is_empty() && fleet.quotas.grants().next().is_none());
    fleet.quotas.set_policies(fleet.now, &set_of(&wire));
    let view = fleet.view();
    assert!(view.quota.committed > 900.0, "what was granted still counts: {view:?}");
}

#[test]
fn a_proxy_that_is_gone_leaves_no_grant() {
    let mut fleet = Fleet::new(2, &wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]));
    fleet.rounds(20, &|_| (10, NOBODY));
    fleet.connected[1] = false;
    fleet.now = fleet.now + Duration::from_secs(700);
    fleet.rounds(20, &|_| (10, NOBODY));
    fleet.quotas.expire(fleet.now);
    let nodes: Vec<String> = fleet.quotas.grants().flat_map(|(_, grants)| grants.keys().cloned()).collect();
    assert_eq!(nodes, ["0"]);
}

#[test]
fn a_policy_and_its_candidate_share_a_quota_and_each_is_told_its_own_leases() {
    let base = wire(vec![quota(100.0, v1::QuotaUnit::Requests)]);
    let mut next = base.clone();
    next.name = "next".into();
    let of = base.name.clone();
    next.spec.as_mut().unwrap().candidate = Some(v1::Candidate { of, requests_percent: Some(30), ..Default::default() });
    let mut set = set_of(&base);
    set.policies.extend(set_of(&next).policies);
    let (began, mut quotas) = (Timestamp::from_millis(10_000), FleetQuotas::default());
    quotas.begin(1);
    quotas.set_policies(began, &PolicySet::default());
    quotas.set_policies(began, &set);
    let key = Policy::try_from_wire(&base).unwrap().quotas()[0].key.clone();
    let held = |quotas: &FleetQuotas, books: &str| -> v1::QuotaGrant {
        let grants = quotas.grants().find(|(pool, _)| *pool == books).and_then(|(_, grants)| grants.get("n").cloned());
        grants.and_then(|grants| grants.first().cloned()).unwrap_or_default()
    };
    // Under both together twice as much is asked as there is.
    for round in 1..=100_u64 {
        let now = began + Duration::from_millis(100 * round);
        let report = |quotas: &FleetQuotas, policy: &str, books: &str, rate: u64| {
            let grant = held(quotas, books);
            let asked = rate * round / 10;
            let quota = v1::QuotaReport {
                quota: key.clone(),
                holder: 9,
                fence: grant.fence,
                sequence: grant.sequence,
                lease: grant.lease,
                asked: vec![asked as f64],
                requests: vec![asked],
                used: asked as f64 / 2.0,
                refused: 0,
                saved: 0.0,
            };
            v1::PoolReport { policy: policy.into(), pool: books.into(), quotas: vec![quota], ..Default::default() }
        };
        let pools = vec![report(&quotas, "demo", "llm", 140), report(&quotas, "next", "llm~candidate", 60)];
        let worker = v1::WorkerReport { slot: 0, vm_epoch: 1, at_ns: now.as_nanos(), pools, counters: None };
        quotas.record(now, &v1::LoadReport { node_id: "n".into(), workers: vec![worker], ..Default::default() });
        quotas.step(now);
        let views = quotas.views(now);
        assert_eq!(views.len(), 1, "it is one quota");
        assert!(views[0].quota.committed <= 100.0 + 1e-9, "{:?}", views[0]);
    }
    let rate = |books: &str| held(&quotas, books).lease.map_or(0.0, |lease| lease.rates.iter().sum());
    let (own, candidate): (f64, f64) = (rate("llm"), rate("llm~candidate"));
    assert!(own + candidate > 95.0 && own + candidate <= 100.0, "{own} {candidate}");
    assert!(own > 40.0 && candidate > 25.0, "{own} {candidate}");
    quotas.set_policies(began, &set_of(&base));
    assert_eq!(held(&quotas, "llm~candidate"), v1::QuotaGrant::default(), "a candidate that is gone is told nothing");
}

#[test]
fn tokens_are_settled_by_what_responses_were_without_overload_control_too() {
    let amount = 3560.0 * 10.0;
    let mut fleet = Fleet::new(2, &wire(vec![quota(amount, v1::QuotaUnit::Tokens)]));
    // 100 tokens of prompt and 6 of output, where 256 are presumed.
    fleet.response_bytes = 24;
    fleet.rounds(30, &|_| (60, NOBODY));
    let used_before = fleet.view().used_total;
    let passed = fleet.rounds(20, &|_| (60, NOBODY));
    let used = fleet.view().used_total - used_before;
    assert!((f64::from(u32::try_from(passed).unwrap()) * 106.0 - used).abs() < 0.1 * used, "{passed} passed, {used} tokens used");
    assert!(used <= 2.0 * amount * 1.02 && passed > 500, "{passed} passed in 2 s, where 200 would as presumed; {used} tokens");
}

#[test]
fn a_proxy_has_a_lease_before_its_first_request() {
    let mut fleet = Fleet::new(4, &wire(vec![quota(1000.0, v1::QuotaUnit::Requests)]));
    fleet.rounds(10, &|_| (0, NOBODY));
    let view = fleet.view();
    assert!(view.quota.holders.len() == 4 && view.quota.holders.iter().all(|holder| holder.granted > 100.0), "{view:?}");
    // What nobody has asked for yet is in the first class.
    let asked = |node| (if node == 0 { 2 } else { 0 }, SPIFFE);
    assert_eq!(fleet.rounds(1, &asked), 0, "nothing is saved without a part");
    assert_eq!(fleet.rounds(1, &asked), 2, "100 ms later there is");
}

#[test]
fn who_uses_a_lease_decides_what_is_acknowledged_and_not_who_idles() {
    let mark = |fence, sequence| Mark { fence, sequence };
    let report = |sequence, requests: Vec<u64>| v1::QuotaReport { fence: 1, sequence, requests, ..Default::default() };
    let heard = |reports: &[v1::QuotaReport]| {
        let heard = reports.iter().map(|report| (Use::of(report), since(None, report, 0)));
        heard.reduce(|mut merged, other| {
            merge(&mut merged, &other);
            merged
        })
    };
    let (idle, active) = (report(7, Vec::new()), report(3, vec![1]));
    for reports in [[idle.clone(), active.clone()], [active, idle.clone()]] {
        assert_eq!(heard(&reports).unwrap().1.mark, mark(1, 3));
    }
    assert_eq!(heard(&[report(9, Vec::new()), idle]).unwrap().1.mark, mark(1, 7));
}
