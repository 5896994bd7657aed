use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::fixture;
use crate::request::{HeaderView, VerifiedIdentity};
use crate::stream::{Event, Outcome, Stream, StreamEnd};

const VIP: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: Some(b"spiffe://cluster.local/ns/a/sa/vip"), jwt_claims: &[] };
const NOBODY: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: None, jwt_claims: &[] };

fn send(worker: &mut Worker, now: Timestamp, identity: VerifiedIdentity<'_>) -> (Stream, bool) {
    let request = RequestInfo::new(HeaderView::from_pairs(&[(b":path", b"/v1/chat")]), identity);
    let mut stream = Stream::new();
    let outcome = stream.handle(worker, now, Event::RequestHeaders(&request));
    (stream, outcome == Outcome::Continue)
}

fn log(worker: &mut Worker, now: Timestamp, stream: &mut Stream, end: StreamEnd) {
    stream.handle(worker, now, Event::Log { endpoint: None, end });
}

fn named(name: &str, change: impl FnOnce(&mut v1::PolicySpec)) -> Arc<Policy> {
    let mut wire = fixture::wire();
    wire.name = name.into();
    change(wire.spec.as_mut().unwrap());
    Arc::new(Policy::try_from_wire(&wire).unwrap())
}

#[test]
fn the_longest_prefix_over_all_policies_governs() {
    let now = Timestamp::from_millis(1);
    let mut worker = Worker::new(1);
    let route = |path: &str, host: &str| v1::RouteMatch { path_prefix: path.into(), host: host.into() };
    worker.set_policies(
        now,
        vec![
            named("all", |_| {}),
            named("chat", |spec| spec.routes = vec![route("/v1/chat", "")]),
            named("host", |spec| spec.routes = vec![route("/v1/chat", "a.example")]),
            named("v1", |spec| spec.routes = vec![route("/v1/", "")]),
        ],
    );
    let mut governing = |path: &str, host: &str| {
        let headers = [(&b":path"[..], path.as_bytes()), (&b":authority"[..], host.as_bytes())];
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), NOBODY);
        worker.decide(now, 0, &request).unwrap().policy.name().to_owned()
    };
    assert_eq!(governing("/v1/chat/completions", "b.example"), "chat");
    assert_eq!(governing("/v1/chat/completions", "a.example:80"), "host");
    assert_eq!(governing("/v1/models", "a.example"), "v1");
    assert_eq!(governing("/health", ""), "all");
}

#[test]
fn without_a_breaker_one_whole_response_in_16_is_looked_at_until_one_fails() {
    let start = Timestamp::from_millis(1);
    let looked = |worker: &mut Worker, now: Timestamp| (0..32).filter(|_| worker.looks_at_status(now)).count();
    let mut worker = Worker::new(1);
    worker.set_policies(start, vec![named("none", |spec| spec.breaker = None)]);
    assert_eq!(looked(&mut worker, start), 2);
    let (mut stream, _) = send(&mut worker, start, VIP);
    stream.handle(&mut worker, start, Event::ResponseHeaders { status: 503, failed_dependency: None });
    log(&mut worker, start, &mut stream, StreamEnd::Complete);
    assert_eq!(looked(&mut worker, start + Duration::from_secs(9)), 32, "a failure is followed by others");
    assert_eq!(looked(&mut worker, start + Duration::from_secs(10)), 2);
    worker.set_policies(start, vec![named("one", |spec| spec.breaker = Some(v1::CircuitBreaker::default()))]);
    assert_eq!(looked(&mut worker, start + Duration::from_secs(10)), 32, "a breaker counts every failure");
}

#[test]
fn a_new_version_keeps_counters_permits_limits_and_streams() {
    let now = Timestamp::from_millis(1);
    let other = named("other", |spec| {
        spec.pool = "other".into();
        spec.routes = vec![v1::RouteMatch { path_prefix: "/other".into(), host: String::new() }];
    });
    let mut worker = Worker::new(1);
    worker.set_policies(now, vec![other, named("demo", |_| {})]);
    worker.set_permits(1, 42, 0.5);
    assert!(worker.set_limits(now, &v1::Limits { pool: "llm".into(), epoch: 9, ttl_ms: 60_000, ..Default::default() }));
    let (mut stream, admitted) = send(&mut worker, now, NOBODY);
    assert!(admitted);
    // `demo` moves to the front, and a class comes before `low`.
    let changed = named("demo", |spec| {
        let batch = v1::PriorityClass { name: "batch".into(), when_tripped: v1::WhenTripped::Refuse.into(), ..Default::default() };
        spec.classes.insert(1, batch);
    });
    worker.set_policies(now, vec![Arc::clone(&changed)]);
    assert_eq!(worker.limits_epoch(0), 9);
    let class = |worker: &mut Worker, name: &str| {
        let pool = worker.report(now, 0).pools.remove(0);
        assert_eq!((pool.permits, pool.policy_version.as_str()), (42, changed.version()));
        let class = pool.classes.into_iter().find(|class| class.class == name).unwrap();
        (class.offered, class.in_flight, class.cancelled)
    };
    assert_eq!((class(&mut worker, "low"), class(&mut worker, "batch")), ((1, 1, 0), (0, 0, 0)));
    log(&mut worker, now, &mut stream, StreamEnd::ByClient);
    assert_eq!((class(&mut worker, "low"), class(&mut worker, "batch")), ((1, 0, 1), (0, 0, 0)));
}

#[test]
fn a_stream_whose_policy_has_gone_ends_without_a_trace() {
    let now = Timestamp::from_millis(1);
    let mut worker = Worker::new(1);
    worker.set_policies(now, vec![named("demo", |_| {})]);
    let (mut stream, _) = send(&mut worker, now, NOBODY);
    worker.set_policies(now, vec![]);
    worker.set_policies(now, vec![named("demo", |_| {})]);
    log(&mut worker, now, &mut stream, StreamEnd::Complete);
    let report = worker.report(now, 0);
    let low = report.pools[0].classes.iter().find(|class| class.class == "low").unwrap();
    assert_eq!((low.failed, low.in_flight), (0, 0), "the new policy of the same name has never seen it");
}

#[test]
fn needs_name_each_claim_once_and_nothing_that_no_policy_uses() {
    let now = Timestamp::from_millis(1);
    let mut worker = Worker::new(1);
    assert_eq!(worker.needs(), Needs::default());
    let claim = |name: &str, value: &str| v1::Identity {
        jwt_claim: Some(v1::JwtClaim { payload: "p".into(), claim: name.into(), value: value.into() }),
        ..Default::default()
    };
    let with_claims = |name: &'static str, claims: Vec<v1::Identity>| {
        named(name, move |spec| {
            spec.routes = vec![v1::RouteMatch { path_prefix: alloc::format!("/{name}"), host: String::new() }];
            let tenants = &mut spec.classification.as_mut().unwrap().tenants;
            tenants.truncate(1);
            tenants[0].identities = claims;
        })
    };
    worker.set_policies(
        now,
        vec![with_claims("one", vec![claim("sub", "a")]), with_claims("two", vec![claim("org", "x"), claim("sub", "b")])],
    );
    let names: Vec<String> = worker.needs().claim_paths.iter().filter_map(|path| path.rsplit('\0').next()).map(String::from).collect();
    assert_eq!(names, ["org", "sub"]);
    // Each policy finds its own claim in the common list.
    for (path, claims, expected) in
        [("/one", [None, Some("a")], true), ("/two", [Some("x"), None], true), ("/two", [None, Some("a")], false)]
    {
        let claims = claims.map(|claim: Option<&str>| claim.map(str::as_bytes));
        let headers = [(&b":path"[..], path.as_bytes())];
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity { spiffe: None, jwt_claims: &claims });
        assert_eq!(worker.decide(now, 0, &request).unwrap().classified.tenant.is_some(), expected, "{path} {claims:?}");
    }
}

#[test]
fn a_worker_alone_throttles_by_its_own_request_rate() {
    let mut worker = Worker::new(1);
    let mut now = Timestamp::from_millis(1);
    let qps = v1::QpsLevel { min_samples: Some(5), sample_ms: Some(1000), ..Default::default() };
    worker.set_policies(now, vec![named("demo", |spec| spec.levels = Some(v1::Levels { qps: Some(qps), ..Default::default() }))]);
    let mut refused_at_base = 0;
    let mut refused_at_peak = 0;
    for tick in 0..4000_u32 {
        now = now + Duration::from_millis(10);
        // 20 requests a second for 20 s, then 500 a second.
        let count = if tick < 2000 { u32::from(tick % 5 == 0) } else { 5 };
        for _ in 0..count {
            let (mut stream, admitted) = send(&mut worker, now, NOBODY);
            if admitted {
                stream.handle(&mut worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
                stream.handle(&mut worker, now, Event::ResponseBody { len: 1, end_of_stream: true });
                log(&mut worker, now, &mut stream, StreamEnd::Complete);
            } else if tick < 2000 {
                refused_at_base += 1;
            } else {
                refused_at_peak += 1;
            }
        }
        worker.on_tick(now);
    }
    assert_eq!(refused_at_base, 0);
    assert!(refused_at_peak > 1000, "{refused_at_peak}");
    let report = worker.report(now, 0);
    let low = report.pools[0].classes.iter().find(|class| class.class == "low").unwrap();
    assert_eq!(low.refused[0].reason, "qps");
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Send { vip: bool },
    Headers { pick: usize, status: u16 },
    Body { pick: usize },
    End { pick: usize, end: StreamEnd },
    Permits(u32),
    Limits { action: v1::ClassAction, rate_rps: f64 },
    Policies { classes: usize },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![Just(StreamEnd::Complete), Just(StreamEnd::ByClient), Just(StreamEnd::ByUpstream)];
    let action = prop_oneof![Just(v1::ClassAction::Admit), Just(v1::ClassAction::Throttle), Just(v1::ClassAction::Refuse)];
    prop_oneof![
        8 => any::<bool>().prop_map(|vip| Step::Send { vip }),
        4 => (any::<usize>(), prop_oneof![Just(200_u16), Just(404), Just(503)]).prop_map(|(pick, status)| Step::Headers { pick, status }),
        2 => any::<usize>().prop_map(|pick| Step::Body { pick }),
        6 => (any::<usize>(), end).prop_map(|(pick, end)| Step::End { pick, end }),
        1 => (0_u32..12).prop_map(Step::Permits),
        1 => (action, 0.0..50.0_f64).prop_map(|(action, rate_rps)| Step::Limits { action, rate_rps }),
        1 => (1_usize..4).prop_map(|classes| Step::Policies { classes }),
        2 => (0_u64..3000).prop_map(Step::Wait),
    ]
}

fn policy_of(classes: usize) -> Arc<Policy> {
    fixture::policy(|spec| {
        spec.concurrency = Some(v1::Concurrency { max_in_flight: 12 });
        spec.breaker = Some(v1::CircuitBreaker { open_ms: Some(500), ramp_ms: Some(500), ..Default::default() });
        if classes < 3 {
            // Fewer classes, and tenants and defaults that fit them.
            let spec_classes = spec.classes.split_off(3 - classes);
            spec.classes = spec_classes;
            spec.classification.as_mut().unwrap().tenants.clear();
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_requests_are_conserved_and_permits_kept(steps in prop::collection::vec(step(), 1..300)) {
        let mut worker = Worker::new(5);
        let mut now = Timestamp::from_millis(1);
        let mut epoch = 0;
        let mut permits = 6;
        worker.set_policies(now, vec![policy_of(3)]);
        worker.set_permits(0, permits, 1.0);
        let mut flying: Vec<Stream> = Vec::new();
        let (mut offered, mut ended) = (0_u64, 0_u64);
        for step in steps {
            let len = flying.len().max(1);
            match step {
                Step::Send { vip } => {
                    let (stream, admitted) = send(&mut worker, now, if vip { VIP } else { NOBODY });
                    offered += 1;
                    if admitted {
                        prop_assert!(flying.len() < permits as usize, "{} in flight with {permits} permits", flying.len() + 1);
                        flying.push(stream);
                    }
                }
                Step::Headers { pick, status } => {
                    if let Some(stream) = flying.get_mut(pick % len) {
                        stream.handle(&mut worker, now, Event::ResponseHeaders { status, failed_dependency: None });
                    }
                }
                Step::Body { pick } => {
                    if let Some(stream) = flying.get_mut(pick % len) {
                        stream.handle(&mut worker, now, Event::ResponseBody { len: 9, end_of_stream: false });
                    }
                }
                Step::End { pick, end } => {
                    if !flying.is_empty() {
                        let mut stream = flying.swap_remove(pick % len);
                        log(&mut worker, now, &mut stream, end);
                        log(&mut worker, now, &mut stream, end);
                        ended += 1;
                    }
                }
                Step::Permits(count) => {
                    permits = count;
                    worker.set_permits(0, count, 0.5);
                }
                Step::Limits { action, rate_rps } => {
                    epoch += 1;
                    let limit = |class: &str| v1::ClassLimit { class: class.into(), action: action.into(), rate_rps, burst: 2.0, ..Default::default() };
                    let limits = v1::Limits { pool: "llm".into(), epoch, ttl_ms: 1000, decay_ms: 1000, classes: vec![limit("low"), limit("medium")], ..Default::default() };
                    prop_assert!(worker.set_limits(now, &limits));
                }
                Step::Policies { classes } => worker.set_policies(now, vec![policy_of(classes)]),
                Step::Wait(millis) => {
                    now = now + Duration::from_millis(millis);
                    worker.on_tick(now);
                }
            }
            let pool = &worker.pools[0];
            let sum = |count: fn(&crate::pool::ClassState) -> u64| pool.states.iter().map(count).sum::<u64>();
            let in_flight = sum(|state| u64::from(state.in_flight));
            prop_assert_eq!(in_flight, flying.len() as u64);
            for state in &pool.states {
                prop_assert_eq!(state.offered, state.admitted + state.refused.iter().sum::<u64>());
                prop_assert_eq!(state.admitted, state.completed + state.failed + state.cancelled + u64::from(state.in_flight));
                prop_assert!(state.waiting <= state.in_flight);
            }
            prop_assert!(sum(|state| state.offered) <= offered);
            prop_assert!(sum(|state| state.completed + state.failed + state.cancelled) <= ended);
        }
    }

    #[test]
    fn the_same_events_give_the_same_decisions(sends in prop::collection::vec((any::<bool>(), 0_u64..50), 1..200)) {
        let run = || {
            let mut worker = Worker::new(77);
            let mut now = Timestamp::from_millis(1);
            worker.set_policies(now, vec![policy_of(3)]);
            worker.set_permits(0, 4, 1.0);
            let mut streams = Vec::new();
            let mut lines = Vec::new();
            for (vip, wait) in &sends {
                now = now + Duration::from_millis(*wait);
                worker.on_tick(now);
                let (stream, _) = send(&mut worker, now, if *vip { VIP } else { NOBODY });
                lines.push(alloc::string::ToString::to_string(&stream.summary().unwrap()));
                streams.push(stream);
                if streams.len() > 3 {
                    log(&mut worker, now, &mut streams.remove(0), StreamEnd::Complete);
                }
            }
            lines
        };
        prop_assert_eq!(run(), run());
    }
}
