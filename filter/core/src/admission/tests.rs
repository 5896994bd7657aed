use alloc::sync::Arc;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use headgate_protos::v1;
use proptest::prelude::*;

use crate::policy::{Policy, fixture};
use crate::request::{HeaderView, RequestInfo, VerifiedIdentity};
use crate::stream::{Decision, Event, HeaderOp, Outcome, Stream, StreamEnd};
use crate::time::Timestamp;
use crate::worker::Worker;

/// One request: 1,000 tokens of prompt and 256 of output; 1,512 work tokens.
const BODY: &[u8] = b"4000";
const KV: u64 = 1256;
const CLASSES: [&str; 3] = ["high", "medium", "low"];

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn policy(change: impl FnOnce(&mut v1::Overload, &mut v1::PolicySpec)) -> Arc<Policy> {
    fixture::policy(|spec| {
        // Whoever it is may claim any class by naming it.
        spec.classification.as_mut().unwrap().default_class = "high".into();
        let mut overload = v1::Overload { queue: Some(v1::AdmissionQueue::default()), ..Default::default() };
        change(&mut overload, spec);
        spec.overload = Some(overload);
    })
}

/// A worker and the streams that it knows.
struct Site {
    worker: Worker,
    streams: BTreeMap<u32, Stream>,
    next: u32,
    epoch: u64,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Admitted,
    Waits,
    Refused(String),
    Redirected(String),
}

fn got(outcome: Outcome) -> Got {
    match outcome {
        Outcome::Continue => Got::Admitted,
        Outcome::Wait(_) => Got::Waits,
        Outcome::Reply(reply) => Got::Refused(reply.details.trim_start_matches("headgate_").to_string()),
        Outcome::ContinueWith(ops) => match &ops[..] {
            [HeaderOp::Set { name, value }] => Got::Redirected(format!("{name}: {value}")),
            other => panic!("{other:?}"),
        },
    }
}

impl Site {
    fn new(policy: Arc<Policy>) -> Self {
        let mut worker = Worker::new(1);
        worker.set_policies(ms(0), vec![policy]);
        Self { worker, streams: BTreeMap::new(), next: 0, epoch: 0 }
    }

    fn limit(&mut self, now: Timestamp, change: impl FnOnce(&mut v1::OverloadLimits)) {
        let mut overload = v1::OverloadLimits { cut_level: 1024, cut_fraction: 1.0, retry_ratio: 0.1, ..Default::default() };
        change(&mut overload);
        self.epoch += 1;
        let wire = v1::Limits { pool: "llm".into(), epoch: self.epoch, ttl_ms: 600_000, overload: Some(overload), ..Default::default() };
        assert!(self.worker.set_limits(now, &wire));
    }

    fn kv(&mut self, requests: u64) {
        self.limit(ms(0), |limits| limits.budgets = Some(v1::Work { kv_tokens: requests * KV, ..Default::default() }));
    }

    fn send_with(&mut self, now: Timestamp, class: &str, more: &[(&[u8], &[u8])]) -> (u32, Got) {
        let mut headers: Vec<(&[u8], &[u8])> = vec![(b":path", b"/v1/chat"), (b"x-priority", class.as_bytes()), (b"content-length", BODY)];
        headers.extend_from_slice(more);
        let identity = VerifiedIdentity { spiffe: None, jwt_claims: &[] };
        let info = RequestInfo::new(HeaderView::from_pairs(&headers), identity);
        self.next += 1;
        let mut stream = Stream::identified(self.next);
        let got = got(stream.handle(&mut self.worker, now, Event::RequestHeaders(&info)));
        self.streams.insert(self.next, stream);
        (self.next, got)
    }

    fn send(&mut self, now: Timestamp, class: &str) -> (u32, Got) {
        self.send_with(now, class, &[])
    }

    fn log(&mut self, now: Timestamp, id: u32, end: StreamEnd) {
        self.streams.remove(&id).unwrap().handle(&mut self.worker, now, Event::Log { endpoint: None, end });
    }

    fn token(&mut self, now: Timestamp, id: u32) {
        let stream = self.streams.get_mut(&id).unwrap();
        stream.handle(&mut self.worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
        stream.handle(&mut self.worker, now, Event::ResponseBody { len: 100, end_of_stream: false });
    }

    /// Every stream that has an answer, with it.
    fn released(&mut self, now: Timestamp) -> Vec<(u32, Got)> {
        let mut answers = vec![];
        while let Some(id) = self.worker.next_released() {
            if let Some(stream) = self.streams.get_mut(&id) {
                answers.push((id, got(stream.release(&mut self.worker, now))));
            }
        }
        answers
    }

    fn report(&mut self) -> v1::OverloadReport {
        self.worker.report(ms(0), 0).pools[0].overload.clone().unwrap()
    }

    fn queue(&mut self) -> v1::QueueReport {
        self.report().queue.unwrap()
    }
}

#[test]
fn what_finds_no_budget_waits_and_starts_when_another_ends_the_most_important_first() {
    let mut site = Site::new(policy(|_, _| {}));
    site.kv(2);
    let admitted: Vec<_> = (0..2).map(|_| site.send(ms(1), "low")).collect();
    assert!(admitted.iter().all(|(_, got)| *got == Got::Admitted));
    let (low, medium, high) = (site.send(ms(2), "low"), site.send(ms(3), "medium"), site.send(ms(4), "high"));
    assert!([&low, &medium, &high].iter().all(|(_, got)| *got == Got::Waits));
    assert_eq!(site.released(ms(5)), []);
    site.log(ms(6), admitted[0].0, StreamEnd::Complete);
    assert_eq!(site.released(ms(6)), [(high.0, Got::Admitted)]);
    site.log(ms(7), admitted[1].0, StreamEnd::ByClient);
    assert_eq!(site.released(ms(7)), [(medium.0, Got::Admitted)]);
    site.log(ms(8), high.0, StreamEnd::ByUpstream);
    assert_eq!(site.released(ms(8)), [(low.0, Got::Admitted)]);
    let summary = site.streams[&low.0].summary().unwrap();
    assert_eq!(summary.decision, Decision::Admit);
}

#[test]
fn a_newcomer_overtakes_nobody_who_is_as_important() {
    let mut site = Site::new(policy(|_, _| {}));
    site.kv(2);
    let first = site.send(ms(1), "medium").0;
    let huge = site.send_with(ms(1), "medium", &[(b"content-length", b"8000")]);
    assert_eq!(huge.1, Got::Waits);
    assert_eq!(site.send_with(ms(2), "medium", &[(b"content-length", b"8004")]).1, Got::Waits);
    assert_eq!(site.send(ms(2), "low").1, Got::Waits, "it would fit");
    let high = site.send(ms(2), "high");
    assert_eq!(high.1, Got::Admitted);
    site.log(ms(3), first, StreamEnd::Complete);
    assert_eq!(site.released(ms(3)), [], "the one that is next needs more than is free, and nobody passes it");
    let (short, got) = site.send(ms(4), "medium");
    assert_eq!(got, Got::Waits);
    site.log(ms(5), high.0, StreamEnd::Complete);
    assert_eq!(site.released(ms(5)), [(short, Got::Admitted)], "but one that is shorter and came little later");
}

#[test]
fn the_prefill_of_a_request_is_free_again_at_its_first_token() {
    let mut site = Site::new(policy(|_, _| {}));
    site.limit(ms(0), |limits| limits.budgets = Some(v1::Work { prefill_tokens: 1000, ..Default::default() }));
    let first = site.send(ms(1), "low").0;
    let second = site.send(ms(1), "low").0;
    site.token(ms(50), first);
    assert_eq!(site.released(ms(50)), [(second, Got::Admitted)]);
    let report = site.report();
    assert_eq!(report.in_flight, Some(v1::Work { prefill_tokens: 1000, kv_tokens: 2 * KV, streams: 2 }));
    assert_eq!((report.queue.unwrap().wait_us.unwrap().sum(), report.service_ttft_us.unwrap().sum()), (49_000, 49_000));
}

/// The least cut-off that lets a request of `length` bytes through, of a tenant that is cut off in part.
fn least_cut(length: &[u8], has_kv_cache: bool) -> Option<u32> {
    (256..=384).find(|cut| {
        let mut site = Site::new(policy(|_, _| {}));
        for now in 1..=20 {
            let sent = site.send(ms(now), "low").0;
            site.log(ms(now), sent, StreamEnd::Complete);
        }
        site.worker.on_tick(ms(200));
        site.limit(ms(200), |limits| {
            (limits.cut_level, limits.cut_fraction) = (*cut, 0.0);
            limits.budgets = has_kv_cache.then(|| v1::Work { kv_tokens: 1_000_000, ..Default::default() });
        });
        site.worker.on_tick(ms(220));
        site.send_with(ms(221), "low", &[(b"content-length", length)]).1 == Got::Admitted
    })
}

#[test]
fn of_a_tenant_that_is_cut_off_in_part_short_requests_pass_first() {
    let [short, usual, long] = [&b"400"[..], b"4000", b"40000"].map(|length| least_cut(length, true));
    assert!(short <= usual && usual < long && long.is_some(), "{short:?} {usual:?} {long:?}");
}

#[test]
fn where_no_prompts_are_kept_in_a_cache_size_says_nothing_of_the_order() {
    let [short, long] = [&b"400"[..], b"40000"].map(|length| least_cut(length, false));
    assert!(short == long && short.is_some(), "{short:?} {long:?}");
    let mut site = Site::new(policy(|_, _| {}));
    site.limit(ms(0), |limits| limits.budgets = Some(v1::Work { streams: 1, ..Default::default() }));
    let first = site.send(ms(1), "low").0;
    let long = site.send_with(ms(1), "low", &[(b"content-length", b"8000")]).0;
    let short = site.send(ms(2), "low").0;
    site.log(ms(3), first, StreamEnd::Complete);
    assert_eq!(site.released(ms(3)), [(long, Got::Admitted)], "it came first");
    site.log(ms(4), long, StreamEnd::Complete);
    assert_eq!(site.released(ms(4)), [(short, Got::Admitted)]);
}

#[test]
fn in_the_first_class_short_ones_start_first_only_while_it_is_cut_off() {
    let first_to_start = |cut_level| {
        let mut site = Site::new(policy(|_, _| {}));
        site.limit(ms(0), |limits| {
            limits.budgets = Some(v1::Work { streams: 1, kv_tokens: 1 << 30, ..Default::default() });
            (limits.cut_level, limits.cut_fraction) = (cut_level, 1.0);
        });
        let running = site.send(ms(1), "high").0;
        let long = site.send_with(ms(2), "high", &[(b"content-length", b"8000")]).0;
        site.send(ms(3), "high");
        site.log(ms(4), running, StreamEnd::Complete);
        site.released(ms(4))[0].0 == long
    };
    assert!(first_to_start(1024) && first_to_start(128));
    assert!(!first_to_start(127));
}

#[test]
fn what_cannot_make_its_deadline_is_refused_at_once() {
    let mut site = Site::new(policy(|overload, _| overload.ttft_slo_ms = Some(1000)));
    site.limit(ms(0), |limits| {
        limits.budgets = Some(v1::Work { streams: 2, ..Default::default() });
        (limits.drain_work_per_s, limits.expected_ttft_ms) = (15_120.0, 300.0);
    });
    let outcomes: Vec<_> = (0..11).map(|_| site.send(ms(1), "high").1).collect();
    // Ten a second drain and 700 ms are left, so seven can wait, each behind those before it.
    assert_eq!(outcomes.iter().filter(|got| **got == Got::Waits).count(), 7, "{outcomes:?}");
    assert_eq!(outcomes[9..], [Got::Refused("deadline".into()), Got::Refused("deadline".into())]);
}

#[test]
fn what_others_may_overtake_may_wait() {
    let mut site = Site::new(policy(|overload, _| overload.ttft_slo_ms = Some(1000)));
    let limit = |site: &mut Site, now, streams| {
        site.limit(now, |limits| {
            limits.budgets = Some(v1::Work { streams, ..Default::default() });
            (limits.drain_work_per_s, limits.expected_ttft_ms) = (15_120.0, 300.0);
        });
    };
    limit(&mut site, ms(0), 1000);
    for tenth in 0..40 {
        assert_eq!(site.send(ms(100 * tenth), "high").1, Got::Admitted, "as many as are drained");
        site.worker.on_tick(ms(100 * tenth + 50));
    }
    limit(&mut site, ms(4001), 1);
    let outcomes: Vec<Got> = (0..5).map(|_| site.send(ms(4001), "low").1).collect();
    assert!(outcomes.iter().all(|got| *got == Got::Waits), "{outcomes:?}: they start in time if nobody more important comes");
}

#[test]
fn who_would_wait_in_vain_is_refused_as_soon_as_that_is_known() {
    let deep = v1::AdmissionQueue { max_depth_factor: Some(5.0), ..Default::default() };
    let mut site = Site::new(policy(|overload, _| (overload.ttft_slo_ms, overload.queue) = (Some(1000), Some(deep))));
    // Ten requests a second leave the queue.
    site.limit(ms(0), |limits| {
        limits.budgets = Some(v1::Work { streams: 2, ..Default::default() });
        (limits.drain_work_per_s, limits.expected_ttft_ms) = (15_120.0, 300.0);
    });
    for _ in 0..2 {
        site.send(ms(1), "high");
    }
    let overtaken: Vec<u32> = (0..7).map(|_| site.send(ms(1), "low").0).collect();
    site.worker.on_tick(ms(50));
    assert_eq!(site.released(ms(50)), [], "the last of them would begin after 600 of the 700 ms that each has");
    for _ in 0..3 {
        assert_eq!(site.send(ms(100), "high").1, Got::Waits);
    }
    site.worker.on_tick(ms(150));
    let refused: Vec<(u32, Got)> = site.released(ms(150));
    // Three are before them and 551 ms left: three more can begin. With those who cannot gone, each of these would be the fourth.
    assert_eq!(refused, [6, 5, 4, 3].map(|index| (overtaken[index], Got::Refused("deadline".into()))));
    let line = site.streams[&overtaken[3]].summary().unwrap().to_string();
    assert!(line.contains("decision=refuse class=low tenant=- reason=deadline value=1049 threshold=1000"), "{line}");
}

#[test]
fn one_that_has_waited_as_long_as_it_could_is_refused_on_the_tick() {
    let mut site = Site::new(policy(|_, spec| spec.classes[1].max_queue_ms = Some(300)));
    site.kv(1);
    site.send(ms(1), "high");
    let waits = site.send(ms(2), "medium").0;
    site.worker.on_tick(ms(301));
    assert_eq!(site.released(ms(301)), []);
    site.worker.on_tick(ms(302));
    assert_eq!(site.released(ms(302)), [(waits, Got::Refused("expired".into()))]);
    let line = site.streams[&waits].summary().unwrap().to_string();
    assert!(line.contains("decision=refuse class=medium tenant=- reason=expired value=300 threshold=300"), "{line}");
    assert_eq!((site.queue().requests, site.queue().expired), (0, 1));
}

#[test]
fn an_important_request_may_pass_a_full_part_a_little_and_the_last_class_not() {
    let mut site = Site::new(policy(|_, _| {}));
    site.limit(ms(0), |limits| limits.budgets = Some(v1::Work { kv_tokens: 10 * KV, streams: 1000, ..Default::default() }));
    for _ in 0..10 {
        assert_eq!(site.send(ms(1), "low").1, Got::Admitted);
    }
    assert_eq!(site.send(ms(2), "low").1, Got::Waits);
    let outcomes: Vec<Got> = (0..3).map(|_| site.send(ms(3), "high").1).collect();
    assert_eq!(outcomes, [Got::Admitted, Got::Admitted, Got::Waits], "a fifth more, and no further");
}

#[test]
fn one_of_the_first_class_passes_a_full_part_the_further_the_nearer_its_deadline_is() {
    // A second to start in, and a part that is as far exceeded as the first class may.
    let starts_and_refusals = |budget: v1::Work, (running, waiting), class: &str, cut_level: u32| {
        let mut site = Site::new(policy(|overload, _| overload.ttft_slo_ms = Some(1000)));
        site.limit(ms(0), |limits| limits.budgets = Some(budget));
        for _ in 0..running {
            assert_eq!(site.send(ms(1), "high").1, Got::Admitted);
        }
        for _ in 0..waiting {
            assert_eq!(site.send(ms(2), class).1, Got::Waits);
        }
        site.limit(ms(3), |limits| (limits.budgets, limits.cut_level) = (Some(budget), cut_level));
        [502, 702, 902, 1002].map(|now| {
            site.worker.on_tick(ms(now));
            let answers = site.released(ms(now));
            let admitted = answers.iter().filter(|(_, got)| *got == Got::Admitted).count();
            (admitted, answers.len() - admitted)
        })
    };
    let streams = |class, cut_level| starts_and_refusals(v1::Work { streams: 50, ..Default::default() }, (60, 8), class, cut_level);
    assert_eq!(streams("high", 1024), [(0, 0), (4, 0), (4, 0), (0, 0)], "a twelfth of the part more each 200 ms");
    assert_eq!(streams("high", 127), [(0, 0), (0, 0), (0, 0), (0, 8)], "not where some of it is refused");
    assert_eq!(streams("medium", 1024), [(0, 0), (0, 0), (0, 0), (0, 8)]);
    let prefill = v1::Work { prefill_tokens: 10_000, ..Default::default() };
    let starts = starts_and_refusals(prefill, (14, 16), "high", 1024);
    assert_eq!(starts, [(0, 0), (8, 0), (8, 0), (0, 0)], "four fifths of the part more each 200 ms");
}

#[test]
fn a_worker_wants_the_more_the_more_waits_in_it() {
    let wanted = |room| {
        let mut site = Site::new(policy(|_, _| {}));
        site.kv(room);
        for _ in 0..10 {
            site.send(ms(1), "low");
        }
        site.worker.on_tick(ms(100));
        site.worker.wants(0).rate_wanted
    };
    assert!((wanted(1) - wanted(100) - 9.0 * 1512.0).abs() < 1e-6, "{} {}", wanted(1), wanted(100));
}

#[test]
fn a_class_that_does_not_wait_is_refused_with_the_numbers_of_the_budget() {
    let mut site = Site::new(policy(|_, spec| spec.classes[2].max_queue_ms = Some(0)));
    site.kv(1);
    site.send(ms(1), "high");
    let (id, got) = site.send(ms(2), "low");
    assert_eq!(got, Got::Refused("budget".into()));
    let line = site.streams[&id].summary().unwrap().to_string();
    assert!(line.contains("reason=budget value=2512 threshold=1256 level=kv source=control_plane"), "{line}");
}

#[test]
fn a_storm_of_clients_that_leave_leaves_nothing() {
    let mut site = Site::new(policy(|_, _| {}));
    site.limit(ms(0), |limits| limits.budgets = Some(v1::Work { streams: 1000, ..Default::default() }));
    let ids: Vec<u32> = (0..6100).map(|_| site.send(ms(1), "low").0).collect();
    assert_eq!((site.queue().requests, site.queue().overflowed), (5000, 100));
    for id in &ids[1000..] {
        site.log(ms(2), *id, StreamEnd::ByClient);
    }
    let queue = site.queue();
    assert_eq!((queue.requests, queue.bytes, queue.work, queue.abandoned), (0, 0, 0, 5000));
    assert_eq!(site.released(ms(2)), []);
    for id in &ids[..1000] {
        site.log(ms(3), *id, StreamEnd::Complete);
    }
    assert_eq!((site.report().in_flight, site.report().finished), (Some(v1::Work::default()), site.report().admitted));
}

#[test]
fn a_client_that_leaves_between_answer_and_start_gives_its_work_to_the_next() {
    let mut site = Site::new(policy(|_, _| {}));
    site.kv(1);
    let ids: Vec<u32> = (0..3).map(|_| site.send(ms(1), "high").0).collect();
    site.log(ms(2), ids[0], StreamEnd::Complete);
    site.log(ms(2), ids[1], StreamEnd::ByClient);
    assert_eq!(site.released(ms(2)), [(ids[2], Got::Admitted)]);
    site.log(ms(3), ids[2], StreamEnd::Complete);
    assert_eq!(site.report().in_flight, Some(v1::Work::default()));
}

/// Five storms of 800 clients a second, who all leave without an answer; what a client gets that comes at once after each.
fn after_storms(change: impl FnOnce(&mut v1::Overload, &mut v1::PolicySpec)) -> Vec<Got> {
    let mut site = Site::new(policy(change));
    site.worker.set_permits(0, 4, 1.0);
    let mut now = 0;
    let mut tick = |site: &mut Site, count: u32| {
        for _ in 0..count {
            now += 20;
            site.worker.on_tick(ms(now));
        }
        now
    };
    let mut after = Vec::new();
    for _ in 0..5 {
        // What it is when nothing is wrong, so that it knows its pool.
        let mut now = tick(&mut site, 5);
        for _ in 0..8 {
            let (id, _) = site.send(ms(now), "high");
            site.token(ms(now), id);
            now = tick(&mut site, 1);
            site.log(ms(now), id, StreamEnd::Complete);
        }
        let storm: Vec<u32> = (0..800).map(|_| site.send(ms(now), "medium").0).collect();
        now = tick(&mut site, 50);
        storm.into_iter().for_each(|id| site.log(ms(now), id, StreamEnd::ByClient));
        site.released(ms(now));
        let (id, got) = site.send(ms(now), "low");
        after.push(got);
        site.log(ms(now), id, StreamEnd::ByClient);
    }
    after
}

#[test]
fn a_lone_worker_refuses_nobody_for_a_storm_that_has_left() {
    let bounded = |_: &mut v1::Overload, spec: &mut v1::PolicySpec| spec.concurrency = Some(v1::Concurrency { max_in_flight: 4 });
    assert_eq!(after_storms(bounded), [const { Got::Admitted }; 5]);
}

#[test]
fn what_is_cut_off_is_refused_and_a_class_still_gets_its_floor() {
    let mut site = Site::new(policy(|_, _| {}));
    site.limit(ms(0), |limits| {
        (limits.cut_level, limits.cut_fraction, limits.saturation) = (128, 0.0, 1.7);
        limits.binding = v1::SaturationTerm::Prefill.into();
        limits.floor_work_per_s = vec![0.0, 0.0, 15_120.0];
    });
    assert_eq!(site.send(ms(1), "high").1, Got::Admitted);
    let (id, refused) = site.send(ms(1), "medium");
    assert_eq!(refused, Got::Refused("cut_off".into()));
    let line = site.streams[&id].summary().unwrap().to_string();
    assert!(line.contains("reason=cut_off value=1.7 threshold=1 level=prefill source=control_plane"), "{line}");
    let admitted = (0..1000).filter(|step| site.send(ms(1 + step * 10), "low").1 == Got::Admitted).count();
    // Ten a second for 10 s.
    assert!((98..=102).contains(&admitted), "{admitted}");
}

#[test]
fn retries_beyond_their_part_are_refused_first_while_the_pool_is_short() {
    let mut site = Site::new(policy(|overload, _| overload.retries = Some(v1::RetryBudget { percent: Some(10), min_rps: Some(0.0) })));
    let retry: (&[u8], &[u8]) = (b"x-envoy-attempt-count", b"2");
    let sdk_retry: (&[u8], &[u8]) = (b"x-stainless-retry-count", b"1");
    assert_eq!(site.send_with(ms(1), "high", &[retry]).1, Got::Admitted, "there is plenty of room");
    site.limit(ms(2), |limits| limits.saturation = 1.1);
    for _ in 0..100 {
        site.send_with(ms(3), "high", &[(b"x-envoy-attempt-count", b"1"), (b"x-stainless-retry-count", b"0")]);
    }
    let passed = (0..100).filter(|n| site.send_with(ms(4), "high", &[[retry, sdk_retry][n % 2]]).1 == Got::Admitted).count();
    assert_eq!(passed, 10);
    assert_eq!(site.send_with(ms(4), "high", &[retry]).1, Got::Refused("retry_budget".into()));
    assert_eq!(site.report().retries, 102);
}

#[test]
fn an_engaged_rung_makes_its_classes_wait_or_sends_them_elsewhere() {
    let rung = |kind: v1::RungKind| v1::Rung { kind: kind.into(), engage_at: 1.0, classes: vec!["low".into()], ..Default::default() };
    let mut site = Site::new(policy(|overload, _| {
        let delay = v1::Rung { delay_ms: Some(500), ..rung(v1::RungKind::Delay) };
        let switch = v1::Rung { pool: "small".into(), engage_at: 1.2, ..rung(v1::RungKind::SwitchModel) };
        overload.ladder = vec![delay, switch, v1::Rung { engage_at: 1.5, ..rung(v1::RungKind::CacheFirst) }];
    }));
    let engage = |site: &mut Site, rungs: &[u32]| {
        let rungs = rungs.to_vec();
        let budgets = Some(v1::Work { streams: 10, ..Default::default() });
        site.limit(ms(0), |limits| *limits = v1::OverloadLimits { rungs, budgets, ..limits.clone() });
    };
    engage(&mut site, &[0]);
    let ids: Vec<u32> = (0..8).map(|_| site.send(ms(1), "high").0).collect();
    let waits = site.send(ms(1), "low");
    assert_eq!(waits.1, Got::Waits, "what is left is for the others");
    assert_eq!(site.send(ms(1), "medium").1, Got::Admitted);
    site.worker.on_tick(ms(400));
    assert_eq!(site.released(ms(400)), []);
    site.worker.on_tick(ms(501));
    assert_eq!(site.released(ms(501)), [(waits.0, Got::Admitted)], "it has waited as long as it may be made to");
    ids.into_iter().for_each(|id| site.log(ms(502), id, StreamEnd::Complete));
    engage(&mut site, &[1]);
    assert_eq!(site.send(ms(503), "low").1, Got::Redirected("x-headgate-pool: small".into()));
    assert_eq!(site.send(ms(503), "medium").1, Got::Admitted);
    engage(&mut site, &[2]);
    assert_eq!(site.send(ms(503), "low").1, Got::Redirected("cache-control: only-if-cached".into()));
}

#[test]
fn who_waits_when_its_queue_goes_is_let_through() {
    for next in [vec![], vec![fixture::policy(|_| {})], vec![policy(|overload, _| overload.queue = None)]] {
        let mut site = Site::new(policy(|_, _| {}));
        site.kv(1);
        let (first, second, third) = (site.send(ms(1), "high").0, site.send(ms(1), "high").0, site.send(ms(1), "low").0);
        site.worker.set_policies(ms(2), next);
        assert_eq!(site.released(ms(2)), [(second, Got::Admitted), (third, Got::Admitted)]);
        [first, second, third].into_iter().for_each(|id| site.log(ms(3), id, StreamEnd::Complete));
    }
}

#[test]
fn who_waits_keeps_its_place_when_the_classes_change() {
    let mut site = Site::new(policy(|_, _| {}));
    site.kv(1);
    let (first, low, high) = (site.send(ms(1), "high").0, site.send(ms(1), "low").0, site.send(ms(1), "high").0);
    let batch = || v1::PriorityClass { name: "batch".into(), when_tripped: v1::WhenTripped::Refuse.into(), ..Default::default() };
    site.worker.set_policies(ms(2), vec![policy(|_, spec| spec.classes.insert(0, batch()))]);
    site.log(ms(3), first, StreamEnd::Complete);
    assert_eq!(site.released(ms(3)), [(high, Got::Admitted)]);
    site.log(ms(3), high, StreamEnd::Complete);
    assert_eq!(site.released(ms(3)), [(low, Got::Admitted)]);
}

#[test]
fn a_breaker_that_opens_meanwhile_stops_who_waited() {
    let mut site =
        Site::new(policy(|_, spec| spec.breaker = Some(v1::CircuitBreaker { consecutive_failures: Some(1), ..Default::default() })));
    site.kv(1);
    let (first, second, third) = (site.send(ms(1), "high").0, site.send(ms(1), "high").0, site.send(ms(1), "high").0);
    site.log(ms(2), first, StreamEnd::ByUpstream);
    let refused = || Got::Refused("breaker_open".into());
    assert_eq!(site.released(ms(2)), [(second, refused()), (third, refused())]);
    assert_eq!(site.report().in_flight, Some(v1::Work::default()));
}

#[test]
fn the_levels_act_on_no_class_under_overload_control() {
    let mut site = Site::new(policy(|_, _| {}));
    let refuse = |class: &str| v1::ClassLimit { class: class.into(), action: v1::ClassAction::Refuse.into(), ..Default::default() };
    let wire = v1::Limits { pool: "llm".into(), epoch: 1, ttl_ms: 60_000, classes: vec![refuse("low")], ..Default::default() };
    site.worker.set_limits(ms(0), &wire);
    assert_eq!(site.send(ms(1), "low").1, Got::Admitted);
}

#[test]
fn output_and_its_pace_are_learned_from_the_pieces() {
    let mut site = Site::new(policy(|overload, _| overload.tpot_slo_ms = Some(20)));
    for round in 0..20 {
        let start = 10_000 * round;
        let id = site.send(ms(start), "high").0;
        site.token(ms(start + 100), id);
        site.streams.get_mut(&id).unwrap().count_pieces(100, 10_000);
        // Every other one is slower than the objective.
        site.log(ms(start + 100 + 1000 * (1 + 2 * (round % 2))), id, StreamEnd::Complete);
    }
    let report = site.report();
    assert_eq!((report.output_tokens, report.responses, report.good_work), (2020, 20, 10 * (1000 + 202)));
    let tpot = crate::histogram::Histogram::from_wire(&report.tpot_us.unwrap()).unwrap();
    assert_eq!((tpot.count(), tpot.sum()), (20, 10 * 10_000 + 10 * 30_000));
    site.send(ms(300_000), "high");
    assert_eq!(site.report().in_flight.unwrap().kv_tokens, 1101);
}

#[test]
fn a_response_in_one_piece_is_measured_by_its_bytes() {
    let mut site = Site::new(policy(|_, _| {}));
    let id = site.send(ms(0), "high").0;
    let stream = site.streams.get_mut(&id).unwrap();
    stream.handle(&mut site.worker, ms(1), Event::ResponseHeaders { status: 200, failed_dependency: None });
    stream.handle(&mut site.worker, ms(900), Event::ResponseBody { len: 2000, end_of_stream: true });
    site.log(ms(900), id, StreamEnd::Complete);
    assert_eq!((site.report().output_tokens, site.report().tpot_us), (500, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn work_is_conserved_and_budgets_hold_whatever_happens(
        ops in prop::collection::vec((0..10_u8, any::<prop::sample::Index>(), 0..200_u64), 1..400),
        budget in 1..6_u64,
    ) {
        let mut site = Site::new(policy(|overload, _| overload.ttft_slo_ms = Some(500)));
        site.kv(budget);
        let mut now = 1;
        for (op, index, wait_ms) in ops {
            let ids: Vec<u32> = site.streams.keys().copied().collect();
            let pick = (!ids.is_empty()).then(|| ids[index.index(ids.len())]);
            match (op, pick) {
                (0..=3, _) | (_, None) => { site.send(ms(now), CLASSES[index.index(3)]); }
                (4, _) => now += wait_ms,
                (5, _) => site.worker.on_tick(ms(now)),
                (6, Some(id)) => site.token(ms(now), id),
                (7, Some(id)) => site.log(ms(now), id, StreamEnd::Complete),
                (8, Some(id)) => site.log(ms(now), id, StreamEnd::ByClient),
                (_, Some(_)) => { site.released(ms(now)); }
            }
            let report = site.report();
            // The most important class may pass the budget by a fifth, and by another when its time is nearly over.
            prop_assert!(report.in_flight.unwrap().kv_tokens <= budget * KV * 7 / 5, "{:?}", report.in_flight);
            let (admitted, finished, in_flight) = (report.admitted.unwrap(), report.finished.unwrap(), report.in_flight.unwrap());
            prop_assert_eq!(admitted.kv_tokens, finished.kv_tokens + in_flight.kv_tokens);
            prop_assert_eq!(admitted.prefill_tokens, finished.prefill_tokens + in_flight.prefill_tokens);
            let waiting = site.streams.values().filter(|stream| stream.is_waiting()).count();
            prop_assert!(report.queue.unwrap().requests as usize <= waiting);
        }
        let ids: Vec<u32> = site.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| site.log(ms(now), id, StreamEnd::ByClient));
        prop_assert_eq!((site.report().in_flight, site.queue().requests, site.queue().work), (Some(v1::Work::default()), 0, 0));
        prop_assert_eq!(site.worker.next_released(), None);
    }
}
