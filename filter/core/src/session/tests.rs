//! The session against scripted messages of a control plane.

use alloc::vec;

use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use headgate_protos::{Any, LIMITS_TYPE_URL};

use super::*;

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn session() -> Session {
    Session::begin(NodeIdentity { id: "proxy".into(), ..NodeIdentity::default() }, 1, &[], &[])
}

fn limits(pool: &str, epoch: u64) -> Vec<u8> {
    let body = v1::Limits { pool: pool.into(), epoch, ..v1::Limits::default() };
    let resource = Any { type_url: LIMITS_TYPE_URL.into(), value: body.encode_to_vec().into() };
    let resource = Resource { name: pool.into(), version: "1".into(), resource: Some(resource), ttl: None };
    DeltaDiscoveryResponse { type_url: LIMITS_TYPE_URL.into(), nonce: "n".into(), resources: vec![resource], ..Default::default() }
        .encode_to_vec()
}

fn shared_limits(effects: &[Effect]) -> SharedLimits {
    let Some(Effect::Share { policies: None, limits: Some(blob) }) = effects.last() else { panic!("{effects:?}") };
    SharedLimits::decode(blob.as_slice()).unwrap()
}

#[test]
fn reports_begin_when_discovery_stands_and_not_before() {
    let mut session = session();
    assert_eq!(session.on_tick(ms(1000)), Some(Effect::Open(Link::Discovery)));
    assert!(!session.is_report_due(ms(1000)));
    assert_eq!(session.on_open(ms(1000), Link::Discovery, true).len(), 2, "a subscription to each type");
    assert_eq!(session.on_tick(ms(1000)), Some(Effect::Open(Link::Reports)));
    session.on_open(ms(1000), Link::Reports, true);
    assert_eq!(session.on_tick(ms(1000)), None);
    assert!(session.is_report_due(ms(1000)));
}

#[test]
fn a_failed_attempt_waits_for_its_backoff() {
    let mut session = session();
    session.on_open(ms(1000), Link::Discovery, false);
    session.on_open(ms(1000), Link::Discovery, false);
    assert_eq!(session.on_tick(ms(1000)), None);
    assert_eq!(session.on_tick(ms(3000)), Some(Effect::Open(Link::Discovery)));
}

#[test]
fn limits_keep_the_time_at_which_each_pool_got_them() {
    let mut session = session();
    session.on_open(ms(0), Link::Discovery, true);
    session.on_message(ms(1000), Link::Discovery, &limits("a", 1));
    let effects = session.on_message(ms(2000), Link::Discovery, &limits("b", 1));
    let Some(Effect::Send(Link::Discovery, ack)) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(DeltaDiscoveryRequest::decode(ack.as_slice()).unwrap().error_detail, None);
    let shared = shared_limits(&effects);
    assert_eq!(shared.pools.iter().map(|pool| pool.at_ns).collect::<Vec<_>>(), [1_000_000_000, 2_000_000_000]);
    assert_eq!(session.limits_age(ms(2500), "a"), Some(Duration::from_millis(1500)));
    assert_eq!(session.limits_age(ms(2500), "c"), None);

    let heir = Session::begin(NodeIdentity::default(), 2, &[], &shared.encode_to_vec());
    assert_eq!(heir.limits_age(ms(2500), "b"), Some(Duration::from_millis(500)), "the next leader knows it too");
}

#[test]
fn a_message_that_cannot_be_read_resets_the_stream() {
    let mut session = session();
    session.on_open(ms(0), Link::Discovery, true);
    assert_eq!(session.on_message(ms(0), Link::Discovery, b"\xff"), [Effect::Reset(Link::Discovery)]);
    assert!(!session.is_connected());
}

#[test]
fn a_report_gathers_live_vms_and_follows_the_interval() {
    let mut session = session();
    session.on_open(ms(0), Link::Discovery, true);
    session.on_open(ms(0), Link::Reports, true);
    session.on_message(ms(0), Link::Reports, &v1::LoadReportResponse { report_interval_ms: 5 }.encode_to_vec());
    let worker = |slot, at: Timestamp| v1::WorkerReport { slot, at_ns: at.as_nanos(), ..Default::default() }.encode_to_vec();
    let reports = [worker(0, ms(4950)), worker(1, ms(3000)), vec![0xff]];
    let Effect::Send(Link::Reports, bytes) = session.report(ms(5000), reports.into_iter(), Vec::new()) else { panic!("a message") };
    let report = v1::LoadReport::decode(bytes.as_slice()).unwrap();
    assert_eq!((report.node_id.as_str(), report.sequence), ("proxy", 1));
    assert_eq!(report.workers.iter().map(|worker| worker.slot).collect::<Vec<_>>(), [0]);
    assert!(!session.is_report_due(ms(5019)), "20 ms is the least");
    assert!(session.is_report_due(ms(5020)));
}
