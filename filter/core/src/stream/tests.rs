use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use std::string::{String, ToString};

use headgate_protos::v1;

use super::*;
use crate::policy::fixture;
use crate::request::{HeaderView, VerifiedIdentity};

mod in_band;
mod picks;
mod whole;

/// A worker with one policy and its time.
struct Bench {
    worker: Worker,
    now: Timestamp,
}

const VIP: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: Some(b"spiffe://cluster.local/ns/a/sa/vip"), jwt_claims: &[] };
const NOBODY: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: None, jwt_claims: &[] };

impl Bench {
    fn new(change: impl FnOnce(&mut v1::PolicySpec)) -> Self {
        let mut worker = Worker::new(11);
        let now = Timestamp::from_millis(1_000);
        worker.set_policies(now, vec![fixture::policy(change)]);
        Self { worker, now }
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.worker.on_tick(self.now);
    }

    fn send_with(&mut self, identity: VerifiedIdentity<'_>, headers: &[(&[u8], &[u8])]) -> (Stream, Outcome) {
        let request = RequestInfo::new(HeaderView::from_pairs(headers), identity);
        let mut stream = Stream::new();
        let outcome = stream.handle(&mut self.worker, self.now, Event::RequestHeaders(&request));
        (stream, outcome)
    }

    fn send(&mut self, identity: VerifiedIdentity<'_>) -> (Stream, Outcome) {
        self.send_with(identity, &[(b":path", b"/v1/chat/completions"), (b"content-length", b"400")])
    }

    fn respond(&mut self, stream: &mut Stream, status: u16, culprit: Option<&[u8]>) -> Outcome {
        stream.handle(&mut self.worker, self.now, Event::ResponseHeaders { status, failed_dependency: culprit })
    }

    fn body(&mut self, stream: &mut Stream, len: usize) {
        stream.handle(&mut self.worker, self.now, Event::ResponseBody { len, end_of_stream: false });
    }

    fn log(&mut self, stream: &mut Stream, end: StreamEnd) {
        stream.handle(&mut self.worker, self.now, Event::Log { endpoint: Some(b"10.0.0.1:80"), end });
    }

    /// A request that is admitted and answered with `status`.
    fn request(&mut self, status: u16) {
        let (mut stream, outcome) = self.send(NOBODY);
        assert_eq!(outcome, Outcome::Continue);
        self.respond(&mut stream, status, None);
        self.body(&mut stream, 10);
        self.log(&mut stream, StreamEnd::Complete);
    }

    fn class(&mut self, name: &str) -> v1::ClassReport {
        let report = self.worker.report(self.now, 0);
        report.pools[0].classes.iter().find(|class| class.class == name).unwrap().clone()
    }

    /// Whole durations of a class whose requests have no model, a second later: that often they are reported.
    fn total_us(&mut self, class: &str) -> Option<v1::Histogram> {
        self.wait(1_000);
        let latency = self.worker.report(self.now, 0).pools[0].latency.clone()?;
        latency.streams.into_iter().find(|stream| stream.class == class)?.total_us
    }

    fn breaker(&mut self) -> v1::BreakerState {
        self.worker.report(self.now, 0).pools[0].breaker()
    }

    fn limit(&mut self, class: &str, action: v1::ClassAction, rate_rps: f64) {
        let limits = v1::Limits {
            pool: "llm".into(),
            epoch: self.now.as_nanos(),
            ttl_ms: 1_000,
            decay_ms: 1_000,
            levels: vec![v1::LevelStatus { kind: v1::LevelKind::GpuMemory.into(), value: 81.23, threshold: 75.0, ..Default::default() }],
            classes: vec![v1::ClassLimit {
                class: class.into(),
                action: action.into(),
                rate_rps,
                burst: rate_rps.max(1.0),
                drain_rps: 10.0,
                safe_rps: 1.0,
                because: v1::LevelKind::GpuMemory.into(),
            }],
            ..Default::default()
        };
        assert!(self.worker.set_limits(self.now, &limits));
    }
}

fn reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Reply(reply) => reply,
        other => panic!("not answered: {other:?}"),
    }
}

#[test]
fn a_request_is_counted_once_from_headers_to_log() {
    let mut bench = Bench::new(|_| {});
    let (mut stream, outcome) = bench.send(NOBODY);
    assert_eq!(outcome, Outcome::Continue);
    let class = bench.class("low");
    assert_eq!((class.offered, class.admitted, class.in_flight, class.waiting), (1, 1, 1, 1));
    bench.wait(250);
    assert_eq!(bench.respond(&mut stream, 200, None), Outcome::Continue);
    bench.body(&mut stream, 0);
    assert_eq!(bench.class("low").waiting, 1, "an empty piece is no token");
    bench.body(&mut stream, 17);
    assert_eq!(bench.class("low").waiting, 0);
    bench.wait(750);
    bench.body(&mut stream, 17);
    for _ in 0..3 {
        bench.log(&mut stream, StreamEnd::Complete);
    }
    let class = bench.class("low");
    assert_eq!((class.completed, class.in_flight), (1, 0));
    // 250 ms to the first token, 1 s in all; the sums are exact.
    assert_eq!((class.ttft_us.unwrap().sum(), bench.total_us("low").unwrap().sum()), (250_000, 1_000_000));
}

#[test]
fn every_way_to_end_is_counted_apart() {
    // (status of the response, how it ended) → (completed, failed, cancelled)
    let cases = [
        (Some(200), StreamEnd::Complete, (1, 0, 0)),
        (Some(404), StreamEnd::Complete, (1, 0, 0)),
        (Some(501), StreamEnd::Complete, (1, 0, 0)),
        (Some(503), StreamEnd::Complete, (0, 1, 0)),
        (Some(503), StreamEnd::ByClient, (0, 1, 0)),
        (Some(200), StreamEnd::ByClient, (0, 0, 1)),
        (Some(200), StreamEnd::ByUpstream, (0, 1, 0)),
        (None, StreamEnd::ByClient, (0, 0, 1)),
        (None, StreamEnd::ByUpstream, (0, 1, 0)),
        (None, StreamEnd::Complete, (0, 1, 0)),
    ];
    for (status, end, expected) in cases {
        let mut bench = Bench::new(|_| {});
        let (mut stream, _) = bench.send(NOBODY);
        if let Some(status) = status {
            bench.respond(&mut stream, status, None);
        }
        bench.log(&mut stream, end);
        let class = bench.class("low");
        assert_eq!((class.completed, class.failed, class.cancelled), expected, "{status:?} {end:?}");
        assert_eq!((class.in_flight, class.waiting), (0, 0), "{status:?} {end:?}");
    }
}

#[test]
fn a_quick_error_is_no_time_to_first_token() {
    let mut bench = Bench::new(|_| {});
    bench.request(400);
    bench.request(500);
    assert_eq!(bench.class("low").ttft_us, None);
    bench.request(200);
    assert_eq!(bench.class("low").ttft_us.unwrap().buckets().map(|(_, count)| count).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_status_that_is_learned_late_neither_loses_nor_delays_the_first_token() {
    let mut bench = Bench::new(|_| {});
    let piece = |bench: &mut Bench, stream: &mut Stream, end_of_stream: bool| {
        stream.handle(&mut bench.worker, bench.now, Event::ResponseBody { len: 17, end_of_stream });
    };
    // A stream that goes on is counted at its first piece.
    let (mut stream, _) = bench.send(NOBODY);
    bench.wait(100);
    piece(&mut bench, &mut stream, false);
    assert_eq!(bench.class("low").ttft_us.unwrap().sum(), 100_000);
    // A body in one piece may be an error: it is counted when the status is known, with the time at which it came.
    for (status, expected) in [(503, 100_000), (200, 300_000)] {
        let (mut stream, _) = bench.send(NOBODY);
        bench.wait(200);
        piece(&mut bench, &mut stream, true);
        assert_eq!(bench.class("low").ttft_us.unwrap().sum(), 100_000);
        bench.wait(50);
        bench.respond(&mut stream, status, None);
        bench.log(&mut stream, StreamEnd::Complete);
        assert_eq!(bench.class("low").ttft_us.unwrap().sum(), expected, "{status}");
    }
}

#[test]
fn a_refusal_names_level_value_threshold_and_policy() {
    let mut bench = Bench::new(|_| {});
    bench.limit("low", v1::ClassAction::Refuse, 0.0);
    let (mut stream, outcome) = bench.send(NOBODY);
    let reply = reply(outcome);
    let version = bench.worker.policies().next().unwrap().version().to_string();
    let reason = reply.headers.iter().find(|(name, _)| *name == "x-headgate-reason").unwrap();
    assert_eq!(reason.1, format!("gpu_memory; value=81.2; threshold=75; level=gpu_memory; policy=demo@{version}"));
    bench.log(&mut stream, StreamEnd::Complete);
    let class = bench.class("low");
    assert_eq!((class.offered, class.admitted, class.in_flight), (1, 0, 0));
    assert_eq!(class.refused, [v1::ReasonCount { reason: "gpu_memory".into(), count: 1 }]);
    let line = stream.summary().unwrap().to_string();
    let start = "decision=refuse class=low tenant=- reason=gpu_memory value=81.2 threshold=75 level=gpu_memory source=control_plane retry_after_ms=";
    assert!(line.starts_with(start), "{line}");
    assert!(line.ends_with(&format!(" policy=demo@{version} cost_tokens=356")), "{line}");
}

#[test]
fn an_important_class_passes_while_another_is_refused() {
    let mut bench = Bench::new(|_| {});
    bench.limit("low", v1::ClassAction::Refuse, 0.0);
    assert!(matches!(bench.send(NOBODY).1, Outcome::Reply(_)));
    let (stream, outcome) = bench.send(VIP);
    assert_eq!(outcome, Outcome::Continue);
    assert_eq!(stream.summary().unwrap().tenant, Some("vip"));
}

#[test]
fn a_throttled_class_gets_its_rate_and_this_workers_part_of_it() {
    let mut bench = Bench::new(|_| {});
    bench.worker.set_permits(0, 0, 0.5);
    let mut admitted = 0;
    for _ in 0..100 {
        bench.limit("low", v1::ClassAction::Throttle, 20.0);
        for _ in 0..10 {
            let (mut stream, outcome) = bench.send(NOBODY);
            admitted += u32::from(outcome == Outcome::Continue);
            bench.log(&mut stream, StreamEnd::ByClient);
            bench.wait(10);
        }
    }
    // Half of 20 a second over 10 s.
    assert!((99..=101).contains(&admitted), "{admitted}");
}

#[test]
fn a_tripped_level_whose_control_plane_is_gone_does_not_refuse_for_ever() {
    let mut bench = Bench::new(|_| {});
    bench.limit("low", v1::ClassAction::Refuse, 0.0);
    bench.wait(999);
    assert!(matches!(bench.send(NOBODY).1, Outcome::Reply(_)));
    bench.wait(1_001);
    assert_eq!(bench.send(NOBODY).1, Outcome::Continue);
}

#[test]
fn an_older_epoch_is_ignored_while_the_newer_one_holds() {
    let mut bench = Bench::new(|_| {});
    bench.limit("low", v1::ClassAction::Refuse, 0.0);
    let stale = v1::Limits { pool: "llm".into(), epoch: 3, ttl_ms: 1000, ..Default::default() };
    assert!(bench.worker.set_limits(bench.now, &stale));
    assert!(matches!(bench.send(NOBODY).1, Outcome::Reply(_)));
    bench.wait(1_000);
    assert!(bench.worker.set_limits(bench.now, &stale));
    assert_eq!(bench.worker.limits_epoch(0), 3, "a control plane that lost its count is believed in the end");
    assert!(!bench.worker.set_limits(bench.now, &v1::Limits { pool: "other".into(), ..Default::default() }));
}

#[test]
fn a_leader_of_an_older_term_is_ignored_until_the_limits_of_the_newer_one_have_ended() {
    let mut bench = Bench::new(|_| {});
    let limits = |term, count| v1::Limits {
        pool: "llm".into(),
        epoch: crate::fleet::first_epoch(term, 0) + count,
        ttl_ms: 1000,
        decay_ms: 2000,
        ..Default::default()
    };
    let (older, newer) = (limits(2, 900), limits(3, 1));
    let mut held = |wait_ms, limits: &v1::Limits| {
        bench.wait(wait_ms);
        assert!(bench.worker.set_limits(bench.now, limits));
        bench.worker.limits_epoch(0)
    };
    assert_eq!(held(0, &older), older.epoch);
    assert_eq!(held(0, &newer), newer.epoch, "though it has counted less");
    assert_eq!(held(999, &older), newer.epoch);
    assert_eq!(held(2000, &older), newer.epoch, "they decay, but are still in force");
    assert_eq!(held(1, &older), older.epoch, "a cluster that was set up anew counts its terms from the beginning");
}

#[test]
fn permits_are_never_exceeded_and_the_reserve_is_the_important_classs_own() {
    let mut bench = Bench::new(|spec| spec.concurrency = Some(v1::Concurrency { max_in_flight: 10 }));
    let early = reply(bench.send(VIP).1);
    let retry_after_ms: u64 = early.headers[2].1.parse().unwrap();
    assert!((1000..=1250).contains(&retry_after_ms), "nothing is admitted without permits, but they come soon: {retry_after_ms}");
    bench.worker.set_permits(0, 10, 1.0);
    let mut low: Vec<Stream> = Vec::new();
    for _ in 0..20 {
        let (stream, outcome) = bench.send(NOBODY);
        if outcome == Outcome::Continue {
            low.push(stream);
        }
    }
    assert_eq!(low.len(), 8, "20 % of 10 are reserved for high");
    let refused = reply(bench.send(NOBODY).1);
    assert!(refused.headers[3].1.starts_with("concurrency; value=8; threshold=8; "), "{:?}", refused.headers);
    let high = (0..5).filter(|_| bench.send(VIP).1 == Outcome::Continue).count();
    assert_eq!(high, 2);
    let mut done = low.pop().unwrap();
    bench.log(&mut done, StreamEnd::ByClient);
    assert_eq!(bench.send(VIP).1, Outcome::Continue, "beyond its reserve it shares with the others");
    assert!(matches!(bench.send(NOBODY).1, Outcome::Reply(_)));
}

#[test]
fn wants_follow_the_demand_and_fall_with_it() {
    let mut bench = Bench::new(|spec| spec.concurrency = Some(v1::Concurrency { max_in_flight: 1000 }));
    bench.worker.set_permits(0, 10, 1.0);
    let mut streams: Vec<Stream> = (0..30).map(|_| bench.send(NOBODY).0).collect();
    let want = bench.worker.wants(0);
    assert_eq!(want.permits_in_use, 8);
    assert!(want.permits_wanted >= 30, "8 in flight and 22 refused for lack of permits: {want:?}");
    for stream in &mut streams {
        bench.log(stream, StreamEnd::Complete);
    }
    for _ in 0..3 {
        bench.wait(100);
    }
    let want = bench.worker.wants(0);
    assert_eq!((want.permits_in_use, want.permits_wanted), (0, 4));
    assert!(want.rate_wanted > 0.0);
}

fn with_breaker(change: impl FnOnce(&mut v1::CircuitBreaker)) -> Bench {
    Bench::new(|spec| change(spec.breaker.get_or_insert_default()))
}

#[test]
fn an_open_breaker_answers_503_with_its_countdown() {
    let mut bench = with_breaker(|_| {});
    for _ in 0..5 {
        bench.request(502);
    }
    assert_eq!(bench.breaker(), v1::BreakerState::Open);
    bench.wait(10_000);
    let reply = reply(bench.send(VIP).1);
    assert_eq!(reply.status, 503);
    assert!(reply.headers[3].1.starts_with("breaker_open; value=5; threshold=5; "), "{:?}", reply.headers);
    let retry_after_ms: u64 = reply.headers[2].1.parse().unwrap();
    assert!((20_000..=25_000).contains(&retry_after_ms), "20 s are left, and up to a quarter more: {retry_after_ms}");
}

#[test]
fn a_response_that_never_comes_is_a_failure_and_a_client_that_leaves_is_none() {
    let mut bench = with_breaker(|_| {});
    for _ in 0..10 {
        let (mut stream, _) = bench.send(NOBODY);
        bench.log(&mut stream, StreamEnd::ByClient);
    }
    assert_eq!(bench.breaker(), v1::BreakerState::Closed);
    for _ in 0..5 {
        let (mut stream, _) = bench.send(NOBODY);
        bench.log(&mut stream, StreamEnd::ByUpstream);
    }
    assert_eq!(bench.breaker(), v1::BreakerState::Open);
}

#[test]
fn the_breaker_hears_of_a_failure_before_the_response_is_out() {
    let mut bench = with_breaker(|_| {});
    let mut streams: Vec<Stream> = (0..5).map(|_| bench.send(NOBODY).0).collect();
    for stream in &mut streams {
        bench.respond(stream, 503, None);
    }
    assert_eq!(bench.breaker(), v1::BreakerState::Open);
}

#[test]
fn a_probe_that_is_refused_for_another_reason_is_given_back() {
    let mut bench = with_breaker(|breaker| breaker.half_open_probes = Some(1));
    for _ in 0..5 {
        bench.request(502);
    }
    bench.wait(30_000);
    bench.limit("low", v1::ClassAction::Refuse, 0.0);
    for _ in 0..10 {
        assert_eq!(reply(bench.send(NOBODY).1).status, 429, "half-open, and the level refuses");
    }
    let (mut probe, outcome) = bench.send(VIP);
    assert_eq!(outcome, Outcome::Continue, "the only probe is still free");
    assert_eq!(reply(bench.send(VIP).1).status, 503);
    bench.log(&mut probe, StreamEnd::ByClient);
    assert_eq!(bench.send(VIP).1, Outcome::Continue, "a cancelled probe is given back");
}

fn opened(fallback: v1::Fallback) -> Bench {
    let mut bench = with_breaker(|breaker| breaker.fallback = Some(fallback));
    for _ in 0..5 {
        bench.request(500);
    }
    bench
}

#[test]
fn fallbacks_take_the_request_of_an_open_breaker() {
    let mut bench = opened(v1::Fallback { cache_only: true, ..Default::default() });
    let (stream, outcome) = bench.send(NOBODY);
    assert_eq!(outcome, Outcome::ContinueWith(vec![HeaderOp::Set { name: "cache-control", value: "only-if-cached".into() }].into()));
    assert!(stream.summary().unwrap().to_string().starts_with("decision=fallback class=low tenant=- reason=breaker_open value=5"));
    assert_eq!(bench.class("low").in_flight, 0, "it does not reach the pool");

    let mut bench = opened(v1::Fallback { other_pool: "small".into(), ..Default::default() });
    assert_eq!(bench.send(NOBODY).1, Outcome::ContinueWith(vec![HeaderOp::Set { name: "x-headgate-pool", value: "small".into() }].into()));

    let fixed = v1::StaticReply { status: Some(200), body: "{\"busy\":true}".into(), content_type: String::new() };
    let mut bench = opened(v1::Fallback { static_reply: Some(fixed), ..Default::default() });
    let reply = reply(bench.send(NOBODY).1);
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"{\"busy\":true}"[..]));
}

#[test]
fn a_failed_dependency_is_gone_without_and_does_not_blame_the_pool() {
    let mut bench = with_breaker(|breaker| {
        breaker.scopes = vec![v1::BreakerScope::Dependency.into()];
        breaker.fallback = Some(v1::Fallback { direct: true, ..Default::default() });
        breaker.ramp_ms = Some(0);
    });
    for _ in 0..5 {
        let (mut stream, _) = bench.send(NOBODY);
        let outcome = bench.respond(&mut stream, 503, Some(b"search"));
        assert_eq!(outcome, Outcome::ContinueWith(vec![HeaderOp::Remove { name: b"x-headgate-failed-dependency".to_vec() }].into()));
        bench.log(&mut stream, StreamEnd::Complete);
    }
    assert_eq!(bench.breaker(), v1::BreakerState::Closed, "the pool did nothing wrong");
    let report = bench.worker.report(bench.now, 0);
    let open = &report.pools[0].open_breakers;
    assert_eq!(open.iter().map(|open| (open.scope.as_str(), open.key.as_str())).collect::<Vec<_>>(), [("dependency", "search")]);
    let direct = Outcome::ContinueWith(vec![HeaderOp::Set { name: "x-headgate-fallback", value: "direct".into() }].into());
    let (mut stream, outcome) = bench.send(NOBODY);
    assert_eq!(outcome, direct);
    bench.respond(&mut stream, 200, None);
    bench.log(&mut stream, StreamEnd::Complete);
    bench.wait(30_000);
    for _ in 0..3 {
        bench.request(200);
    }
    assert!(bench.worker.report(bench.now, 0).pools[0].open_breakers.is_empty());
}

#[test]
fn an_open_endpoint_is_reported_and_refuses_nothing() {
    let mut bench = with_breaker(|breaker| {
        breaker.scopes = vec![v1::BreakerScope::Endpoint.into()];
        breaker.consecutive_failures = Some(3);
    });
    for _ in 0..2 {
        bench.request(500);
    }
    // A success on another endpoint keeps the pool's row short.
    let (mut stream, _) = bench.send(NOBODY);
    bench.respond(&mut stream, 200, None);
    stream.handle(&mut bench.worker, bench.now, Event::Log { endpoint: Some(b"10.0.0.2:80"), end: StreamEnd::Complete });
    bench.request(500);
    let report = bench.worker.report(bench.now, 0);
    let open = &report.pools[0].open_breakers;
    assert_eq!(open.iter().map(|open| (open.scope.as_str(), open.key.as_str())).collect::<Vec<_>>(), [("endpoint", "10.0.0.1:80")]);
    assert_eq!(bench.send(NOBODY).1, Outcome::Continue);
}

#[test]
fn forged_headers_are_removed_once_each_and_believed_never() {
    let mut bench = Bench::new(|_| {});
    let headers: [(&[u8], &[u8]); 4] =
        [(b":path", b"/"), (b"x-headgate-pool", b"vip"), (b"x-headgate-fallback", b"direct"), (b"x-headgate-pool", b"again")];
    let (stream, outcome) = bench.send_with(NOBODY, &headers);
    let removed = [b"x-headgate-fallback".to_vec(), b"x-headgate-pool".to_vec()];
    assert_eq!(outcome, Outcome::ContinueWith(removed.into_iter().map(|name| HeaderOp::Remove { name }).collect()));
    assert_eq!(stream.summary().unwrap().class, "low");
}

#[test]
fn a_request_that_no_policy_governs_passes_uncounted_but_for_one_counter() {
    let mut bench = Bench::new(|spec| spec.routes = vec![v1::RouteMatch { path_prefix: "/v1/".into(), host: "api.example".into() }]);
    let (mut stream, outcome) = bench.send_with(NOBODY, &[(b":path", b"/v1/chat"), (b":authority", b"other")]);
    assert_eq!((outcome, stream.summary()), (Outcome::Continue, None));
    bench.respond(&mut stream, 500, None);
    bench.log(&mut stream, StreamEnd::Complete);
    let (_, outcome) = bench.send_with(NOBODY, &[(b":path", b"/v1/chat"), (b":authority", b"API.example:8080")]);
    assert_eq!(outcome, Outcome::Continue);
    let report = bench.worker.report(bench.now, 0);
    assert_eq!(report.counters.unwrap().unmatched, 1);
    assert_eq!(bench.class("low").offered, 1);
}

#[test]
fn headers_that_cannot_be_read_make_an_unknown_client() {
    let mut bench = Bench::new(|_| {});
    let mut stream = Stream::new();
    stream.handle(&mut bench.worker, bench.now, Event::RequestHeaders(&RequestInfo::unreadable()));
    assert_eq!(stream.summary().unwrap().class, "low");
    assert_eq!(bench.worker.report(bench.now, 0).counters.unwrap().unreadable, 1);
}
