use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use std::format;
use std::string::ToString;

use headgate_protos::v1;

use crate::policy::Policy;
use crate::policy::fixture;
use crate::request::{HeaderView, RequestInfo, VerifiedIdentity};
use crate::stream::{Event, Outcome, Stream, StreamEnd};
use crate::time::Timestamp;
use crate::worker::Worker;

const NOBODY: VerifiedIdentity<'static> = VerifiedIdentity { spiffe: None, jwt_claims: &[] };

struct Bench {
    worker: Worker,
    now: Timestamp,
}

fn policy(name: &str, change: impl FnOnce(&mut v1::PolicySpec)) -> Arc<Policy> {
    let mut wire = fixture::wire();
    wire.name = name.to_string();
    wire.version.clear();
    change(wire.spec.as_mut().unwrap());
    Arc::new(Policy::try_from_wire(&wire).unwrap())
}

fn watching(spec: &mut v1::PolicySpec) {
    spec.enforcement = v1::Enforcement::Shadow.into();
}

fn beside(spec: &mut v1::PolicySpec) {
    watching(spec);
    spec.candidate = Some(v1::Candidate { of: "demo".into(), ..Default::default() });
}

fn bound(max_in_flight: u32) -> impl FnOnce(&mut v1::PolicySpec) {
    move |spec| spec.concurrency = Some(v1::Concurrency { max_in_flight })
}

impl Bench {
    fn new(policies: Vec<Arc<Policy>>) -> Self {
        let (mut worker, now) = (Worker::new(11), Timestamp::from_millis(1_000));
        worker.set_policies(now, policies);
        for index in 0..worker.policies().count() {
            worker.set_permits(index, worker.permits_total(index).unwrap_or(u32::MAX), 1.0);
        }
        Self { worker, now }
    }

    fn send(&mut self, id: &str) -> (Stream, Outcome) {
        let headers: [(&[u8], &[u8]); 3] = [(b":path", b"/v1/chat"), (b"content-length", b"400"), (b"x-request-id", id.as_bytes())];
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), NOBODY);
        let mut stream = Stream::new();
        let outcome = stream.handle(&mut self.worker, self.now, Event::RequestHeaders(&request));
        (stream, outcome)
    }

    fn finish(&mut self, stream: &mut Stream, status: u16) {
        stream.handle(&mut self.worker, self.now, Event::ResponseHeaders { status, failed_dependency: None });
        stream.handle(&mut self.worker, self.now, Event::ResponseBody { len: 9, end_of_stream: false });
        stream.handle(&mut self.worker, self.now, Event::Log { endpoint: None, end: StreamEnd::Complete });
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.worker.on_tick(self.now);
    }

    fn low(&mut self, policy: &str) -> v1::ClassReport {
        let report = self.worker.report(self.now, 0);
        let pool = report.pools.iter().find(|pool| pool.policy == policy).unwrap();
        pool.classes.iter().find(|class| class.class == "low").unwrap().clone()
    }
}

fn line(stream: &Stream) -> String {
    let mut line = String::new();
    stream.write_line(&mut line);
    line
}

#[test]
fn a_policy_that_watches_refuses_nobody_and_says_whom_it_would_have_refused() {
    let mut bench = Bench::new(vec![policy("demo", |spec| {
        watching(spec);
        bound(10)(spec);
    })]);
    // 20 % of 10 are reserved for high, so 8 are what low may use.
    let mut streams: Vec<Stream> = (0..12)
        .map(|n| {
            let (stream, outcome) = bench.send(&format!("{n}"));
            assert_eq!(outcome, Outcome::Continue, "request {n} is not touched");
            stream
        })
        .collect();
    assert!(line(&streams[7]).starts_with("would=admit class=low tenant=- policy=demo@"), "{}", line(&streams[7]));
    let refused = line(&streams[8]);
    assert!(
        refused.starts_with(
            "would=refuse class=low tenant=- reason=concurrency value=8 threshold=8 level=concurrency source=policy retry_after_ms="
        ),
        "{refused}"
    );
    assert!(streams[7].is_open() && !streams[8].is_open(), "of a request that it would have refused it sees nothing more");
    let low = bench.low("demo");
    assert_eq!((low.offered, low.admitted, low.in_flight, low.refused[0].count), (12, 8, 8, 4));
    assert!(bench.worker.report(bench.now, 0).pools[0].is_shadow);
    for stream in &mut streams {
        bench.finish(stream, 200);
    }
    let low = bench.low("demo");
    assert_eq!((low.completed, low.in_flight, low.waiting), (8, 0, 0), "what it would have held comes back");
}

#[test]
fn a_candidate_that_watches_is_compared_with_the_policy_in_force() {
    let mut bench = Bench::new(vec![
        policy("demo", bound(10)),
        policy("next", |spec| {
            beside(spec);
            bound(5)(spec);
        }),
    ]);
    let mut streams = Vec::new();
    for n in 0..10 {
        let (stream, outcome) = bench.send(&format!("{n}"));
        assert_eq!(outcome == Outcome::Continue, n < 8, "the policy in force alone decides");
        streams.push(stream);
    }
    assert!(line(&streams[0]).contains(" cost_tokens=356 | would=admit class=low"), "{}", line(&streams[0]));
    let log = line(&streams[6]);
    assert!(
        log.starts_with("decision=admit ") && log.contains(" | would=refuse class=low tenant=- reason=concurrency value=4 threshold=4"),
        "{log}"
    );
    let (demo, next) = (bench.low("demo"), bench.low("next"));
    assert_eq!((demo.admitted, next.admitted), (8, 4), "80 % of 10 and of 5");
    assert_eq!((next.only_here, next.only_there), (0, 4));
    for stream in &mut streams {
        bench.finish(stream, 200);
    }
    assert_eq!((bench.low("demo").in_flight, bench.low("next").in_flight, bench.low("next").completed), (0, 0, 4));
}

#[test]
fn what_the_policy_in_force_refuses_is_held_by_no_candidate() {
    let mut bench = Bench::new(vec![
        policy("demo", bound(5)),
        policy("next", |spec| {
            beside(spec);
            bound(10)(spec);
        }),
    ]);
    let mut streams: Vec<Stream> = (0..20).map(|n| bench.send(&format!("{n}")).0).collect();
    let next = bench.low("next");
    assert_eq!((next.only_here, next.only_there), (16, 0), "all but the 4 that demo serves");
    assert_eq!((next.in_flight, next.cancelled), (4, 16));
    for stream in &mut streams {
        bench.finish(stream, 200);
    }
    assert_eq!(bench.low("next").in_flight, 0);
}

#[test]
fn a_place_in_a_shadows_queue_is_nobodys_wait() {
    let overload = v1::Overload { queue: Some(v1::AdmissionQueue::default()), ttft_slo_ms: Some(60_000), ..Default::default() };
    let mut bench = Bench::new(vec![policy("demo", |spec| {
        watching(spec);
        bound(10)(spec);
        spec.overload = Some(overload);
    })]);
    bench.wait(20);
    let mut streams: Vec<Stream> = (0..9).map(|n| bench.send(&format!("{n}")).0).collect();
    assert!(streams.iter().all(|stream| !stream.is_waiting()), "nobody is held");
    assert!(line(&streams[8]).starts_with("would=wait class=low"), "{}", line(&streams[8]));
    let mut last = streams.pop().unwrap();
    for stream in &mut streams {
        bench.finish(stream, 200);
    }
    bench.wait(20);
    assert_eq!(bench.worker.next_released(), None, "and nobody is continued");
    bench.finish(&mut last, 200);
    assert!(line(&last).starts_with("would=admit class=low"), "{}", line(&last));
    let low = bench.low("demo");
    assert_eq!((low.offered, low.admitted, low.completed, low.in_flight), (9, 9, 9, 0));
}

#[test]
fn a_canary_governs_its_part_of_the_requests_always_the_same() {
    let canary = |percent| {
        policy("next", move |spec| {
            spec.candidate = Some(v1::Candidate { of: "demo".into(), requests_percent: Some(percent), ..Default::default() })
        })
    };
    let mut bench = Bench::new(vec![policy("demo", |_| {}), canary(20)]);
    let arms = |bench: &mut Bench| -> Vec<bool> {
        let mut arm = |n: usize| {
            let (mut stream, _) = bench.send(&format!("8d5a0d2e-{n}"));
            bench.finish(&mut stream, 200);
            stream.summary().unwrap().policy == "next"
        };
        (0..5_000).map(&mut arm).collect()
    };
    let first = arms(&mut bench);
    let share = first.iter().filter(|is_canary| **is_canary).count();
    // 1000 are expected with a standard deviation of 28.
    assert!((880..=1120).contains(&share), "{share} of 5000");
    assert_eq!((bench.low("demo").completed, bench.low("next").completed), (5_000 - share as u64, share as u64), "each has its own books");
    assert_eq!(arms(&mut bench), first, "a request that comes again is governed by the same policy");
    bench.worker.set_policies(bench.now, vec![policy("demo", |_| {}), canary(40)]);
    let more = arms(&mut bench);
    assert!(first.iter().zip(&more).all(|(before, after)| !before || *after), "a step takes nobody out of it");
    bench.worker.set_policies(bench.now, vec![policy("demo", |_| {})]);
    assert!(arms(&mut bench).iter().all(|is_canary| !is_canary), "nothing is left of it");
}

#[test]
fn a_canary_and_its_policy_share_the_bound() {
    let both = |percent| {
        let canary = policy("next", move |spec| {
            spec.candidate = Some(v1::Candidate { of: "demo".into(), requests_percent: Some(percent), ..Default::default() });
            bound(10)(spec);
        });
        let bench = Bench::new(vec![policy("demo", bound(10)), canary]);
        (bench.worker.permits_total(0), bench.worker.permits_total(1))
    };
    assert_eq!(both(30), (Some(7), Some(3)));
    assert_eq!(both(1), (Some(9), Some(1)));
    assert_eq!(both(100), (Some(0), Some(10)), "in a proxy that was chosen as a whole");
    let bench = Bench::new(vec![
        policy("demo", bound(10)),
        policy("next", |spec| {
            beside(spec);
            bound(10)(spec);
        }),
    ]);
    assert_eq!((bench.worker.permits_total(0), bench.worker.permits_total(1)), (Some(10), Some(10)), "one that watches takes nothing away");
}

#[test]
fn a_policy_that_begins_to_act_begins_with_nobody_waiting() {
    let spec = |is_shadow: bool| {
        policy("demo", move |spec| {
            if is_shadow {
                watching(spec);
            }
            bound(10)(spec);
            spec.overload =
                Some(v1::Overload { queue: Some(v1::AdmissionQueue::default()), ttft_slo_ms: Some(60_000), ..Default::default() });
        })
    };
    let mut bench = Bench::new(vec![spec(true)]);
    bench.wait(20);
    let mut streams: Vec<Stream> = (0..9).map(|n| bench.send(&format!("{n}")).0).collect();
    bench.worker.set_policies(bench.now, vec![spec(false)]);
    bench.worker.set_permits(0, 10, 1.0);
    bench.wait(20);
    assert_eq!(bench.worker.next_released(), None, "no request that was never held is continued");
    for stream in &mut streams {
        bench.finish(stream, 200);
    }
    let low = bench.low("demo");
    assert_eq!((low.offered, low.in_flight), (0, 0), "nothing of the time before counts");
}
