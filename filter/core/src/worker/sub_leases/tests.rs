use alloc::sync::Arc;
use std::collections::BTreeMap;
use std::vec;

use headgate_protos::v1;

use super::*;
use crate::policy::{Policy, fixture};
use crate::request::{HeaderView, RequestInfo, VerifiedIdentity};
use crate::shared::refresh_lease;
use crate::stream::{Event, Stream};
use crate::time::Timestamp;

const VIP: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: Some(b"spiffe://cluster.local/ns/a/sa/vip"), jwt_claims: &[] };
const NOBODY: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: None, jwt_claims: &[] };
const HEADERS: &[(&[u8], &[u8])] = &[(b":path", b"/v1/chat/completions"), (b"content-length", b"400")];

/// One quota for everybody and one for a tenant.
fn policy() -> v1::Policy {
    let quota = |name: &str, tenants: Vec<String>| v1::Quota {
        name: name.into(),
        tenants,
        unit: v1::QuotaUnit::Requests.into(),
        amount: 1000.0,
        ..Default::default()
    };
    let mut wire = fixture::wire();
    wire.spec.as_mut().unwrap().quotas = vec![quota("all", Vec::new()), quota("vip", vec!["vip".into()])];
    wire
}

#[test]
fn each_quota_is_divided_by_what_is_asked_of_it_and_not_of_the_policy() {
    let (keys, wire) = (Keys::new("test"), policy());
    let mut now = Timestamp::from_millis(1_000);
    let mut workers = [1, 2].map(|seed| {
        let mut worker = Worker::new(seed);
        worker.set_process(9);
        worker.set_policies(now, vec![Arc::new(Policy::try_from_wire(&wire).unwrap())]);
        worker
    });
    let mut records: BTreeMap<String, Vec<u8>> = keys.leases_of(&wire).into_iter().map(|key| (key, Vec::new())).collect();
    assert_eq!(records.len(), 3);
    let mut shares = BTreeMap::new();
    for _ in 0..100 {
        now = now + core::time::Duration::from_millis(100);
        for (index, worker) in workers.iter_mut().enumerate() {
            // The first worker is asked by the tenant, the second by three times as many others.
            let (requests, identity) = if index == 0 { (2, VIP) } else { (6, NOBODY) };
            for _ in 0..requests {
                let request = RequestInfo::new(HeaderView::from_pairs(HEADERS), identity);
                Stream::new().handle(worker, now, Event::RequestHeaders(&request));
            }
            worker.on_tick(now);
            for lease in worker.sub_leases(&keys) {
                let record = records.get_mut(&lease.key).expect("every record was created");
                let (bytes, (_, holding)) = refresh_lease(record, now, index as u64 + 1, lease.want, lease.grant).unwrap();
                *record = bytes;
                worker.take_holding(&lease, holding);
                shares.insert((lease.key, index), holding.rate_share);
            }
        }
    }
    let share = |key: String, index: usize| shares[&(key, index)];
    // An eighth is even, the rest by demand.
    let by_demand = |part: f64| 0.125 / 2.0 + 0.875 * part;
    let name = wire.name.as_str();
    for (key, first) in [(keys.quota_lease(name, "all"), by_demand(0.25)), (keys.quota_lease(name, "vip"), by_demand(1.0))] {
        assert!((share(key.clone(), 0) - first).abs() < 0.02, "{key}: {}", share(key.clone(), 0));
        assert!(share(key.clone(), 0) + share(key, 1) <= 1.0 + 1e-9);
    }
}

#[test]
fn a_quota_of_which_nobody_gave_the_worker_a_part_serves_nothing() {
    let mut worker = Worker::new(1);
    worker.set_process(9);
    worker.set_policies(Timestamp::from_millis(1), vec![Arc::new(Policy::try_from_wire(&policy()).unwrap())]);
    worker.set_permits(0, u32::MAX, 1.0);
    let request = RequestInfo::new(HeaderView::from_pairs(HEADERS), NOBODY);
    let outcome = Stream::new().handle(&mut worker, Timestamp::from_millis(500), Event::RequestHeaders(&request));
    assert!(matches!(outcome, crate::stream::Outcome::Reply(_)), "{outcome:?}");
}
