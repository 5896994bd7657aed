//! The invariants of the design that a worker keeps whatever comes, as properties: the decision reads its memory alone (2), the loss of
//! the control plane fails no request (4), every refusal says why in numbers (7), work that waits before room raises the budget (8).

use alloc::boxed::Box;
use alloc::sync::Arc;
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use headgate_protos::v1;
use proptest::prelude::*;

use crate::overload::{EngineSample, Flow, OverloadController, OverloadSignals, Work};
use crate::policy::{Policy, fixture};
use crate::reason::Reason;
use crate::request::{HeaderView, RequestInfo, VerifiedIdentity};
use crate::stream::{Decision, Event, Outcome, Reply, Stream, StreamEnd};
use crate::time::Timestamp;
use crate::worker::Worker;

const CLASSES: [&str; 3] = ["high", "medium", "low"];
/// Longest `Retry-After` of the fixture's classes, in milliseconds; the default of a policy.
const LONGEST_RETRY_AFTER_MS: u64 = 30_000;
const TTL_MS: u64 = 1000;
const DECAY_MS: u64 = 2000;

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn policy() -> Arc<Policy> {
    fixture::policy(|spec| {
        spec.classification.as_mut().unwrap().default_class = "high".into();
        spec.overload = Some(v1::Overload { queue: Some(v1::AdmissionQueue::default()), ..Default::default() });
    })
}

/// What a worker meets.
#[derive(Clone, Debug)]
enum Step {
    Request { class: usize, bytes: u32, is_retry: bool },
    Limits(Box<v1::OverloadLimits>),
    FirstToken(usize),
    End(usize, StreamEnd),
    Pass(u64),
}

fn any_work() -> impl Strategy<Value = Option<v1::Work>> {
    let bound = || prop_oneof![Just(0_u64), 1..5000_u64];
    let work = |(prefill_tokens, kv_tokens, streams)| Some(v1::Work { prefill_tokens, kv_tokens, streams });
    prop_oneof![Just(None), (bound(), bound(), prop_oneof![Just(0_u64), 1..5_u64]).prop_map(work)]
}

prop_compose! {
    fn any_limits()(
        (budgets, safe_budgets) in (any_work(), any_work()),
        (cut_level, cut_fraction) in (0..1100_u32, prop_oneof![0.0..1.0_f64, Just(f64::NAN)]),
        (saturation, drain_work_per_s) in (0.0..20.0_f64, prop_oneof![Just(0.0), 1.0..1e6_f64]),
        (expected_ttft_ms, retry_ratio) in (0.0..5000.0_f64, 0.0..1.0_f64),
    ) -> v1::OverloadLimits {
        v1::OverloadLimits {
            budgets, safe_budgets, cut_level, cut_fraction, saturation, drain_work_per_s, expected_ttft_ms, retry_ratio,
            ..Default::default()
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let request = (0..3_usize, 0..20_000_u32, any::<bool>()).prop_map(|(class, bytes, is_retry)| Step::Request { class, bytes, is_retry });
    prop_oneof![
        6 => request,
        1 => any_limits().prop_map(|limits| Step::Limits(Box::new(limits))),
        2 => any::<usize>().prop_map(Step::FirstToken),
        2 => (any::<usize>(), prop_oneof![Just(StreamEnd::Complete), Just(StreamEnd::ByClient), Just(StreamEnd::ByUpstream)])
            .prop_map(|(which, end)| Step::End(which, end)),
        3 => (1..400_u64).prop_map(Step::Pass),
    ]
}

/// A worker alone with its streams.
struct Site {
    worker: Worker,
    streams: BTreeMap<u32, Stream>,
    now_ms: u64,
    next: u32,
    epoch: u64,
    /// All that was decided, in order.
    outcomes: Vec<String>,
    replies: Vec<Reply>,
}

impl Site {
    fn new() -> Self {
        let mut worker = Worker::new(1);
        worker.set_policies(ms(0), vec![policy()]);
        Self { worker, streams: BTreeMap::new(), now_ms: 1, next: 0, epoch: 0, outcomes: vec![], replies: vec![] }
    }

    fn take(&mut self, step: &Step) {
        let now = ms(self.now_ms);
        let pick = |which: usize| self.streams.keys().nth(which % self.streams.len().max(1)).copied();
        match step {
            Step::Request { class, bytes, is_retry } => self.request(*class, *bytes, *is_retry),
            Step::Limits(limits) => self.limit((**limits).clone()),
            Step::FirstToken(which) => {
                let Some(stream) = pick(*which).and_then(|id| self.streams.get_mut(&id)) else { return };
                if !stream.is_waiting() {
                    stream.handle(&mut self.worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
                    stream.handle(&mut self.worker, now, Event::ResponseBody { len: 100, end_of_stream: false });
                }
            }
            Step::End(which, end) => {
                let Some(mut stream) = pick(*which).and_then(|id| self.streams.remove(&id)) else { return };
                stream.handle(&mut self.worker, now, Event::Log { endpoint: None, end: *end });
            }
            Step::Pass(for_ms) => {
                let until = self.now_ms + for_ms;
                while self.now_ms < until {
                    self.now_ms = (self.now_ms + 20).min(until);
                    self.worker.on_tick(ms(self.now_ms));
                }
            }
        }
        self.collect();
    }

    fn limit(&mut self, overload: v1::OverloadLimits) {
        self.epoch += 1;
        let (ttl_ms, decay_ms) = (TTL_MS as u32, DECAY_MS as u32);
        let wire = v1::Limits { pool: "llm".into(), epoch: self.epoch, ttl_ms, decay_ms, overload: Some(overload), ..Default::default() };
        self.worker.set_limits(ms(self.now_ms), &wire);
    }

    fn request(&mut self, class: usize, bytes: u32, is_retry: bool) {
        let length = format!("{bytes}");
        let mut headers: Vec<(&[u8], &[u8])> =
            vec![(b":path", b"/v1/chat"), (b"x-priority", CLASSES[class].as_bytes()), (b"content-length", length.as_bytes())];
        if is_retry {
            headers.push((b"x-envoy-attempt-count", b"2"));
        }
        let info = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity { spiffe: None, jwt_claims: &[] });
        self.next += 1;
        let mut stream = Stream::identified(self.next);
        let outcome = stream.handle(&mut self.worker, ms(self.now_ms), Event::RequestHeaders(&info));
        self.note(self.next, stream, outcome);
    }

    fn collect(&mut self) {
        while let Some(id) = self.worker.next_released() {
            let Some(mut stream) = self.streams.remove(&id) else { continue };
            let outcome = stream.release(&mut self.worker, ms(self.now_ms));
            self.note(id, stream, outcome);
        }
    }

    fn note(&mut self, id: u32, stream: Stream, outcome: Outcome) {
        self.outcomes.push(format!("{id} {outcome:?}"));
        match outcome {
            Outcome::Reply(reply) => {
                let Some(Decision::Refuse { cause, .. }) = stream.summary().map(|summary| summary.decision) else { panic!("{reply:?}") };
                assert_eq!(format!("headgate_{}", cause.reason.as_str()), reply.details, "the access log says why");
                self.replies.push(reply);
            }
            _ => _ = self.streams.insert(id, stream),
        }
    }

    /// Refusals in the worker's report, by reason.
    fn counted(&mut self) -> BTreeMap<String, u64> {
        let mut counted = BTreeMap::new();
        for class in &self.worker.report(ms(self.now_ms), 0).pools[0].classes {
            for entry in &class.refused {
                *counted.entry(entry.reason.clone()).or_default() += entry.count;
            }
        }
        counted
    }
}

/// The reason of a refusal, after everything that it owes the client was found in it.
fn reason(reply: &Reply) -> String {
    let header = |name: &str| reply.headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.clone()).unwrap();
    let (seconds, millis): (u64, u64) = (header("retry-after").parse().unwrap(), header("retry-after-ms").parse().unwrap());
    assert!((1..=LONGEST_RETRY_AFTER_MS).contains(&millis) && seconds == millis.div_ceil(1000), "{seconds} s, {millis} ms");
    assert!(matches!(reply.status, 429 | 503), "{}", reply.status);
    let text = header("x-headgate-reason");
    let parts: Vec<&str> = text.split("; ").collect();
    let [reason, value, threshold, level, policy] = parts[..] else { panic!("{text}") };
    for number in [value.strip_prefix("value=").unwrap(), threshold.strip_prefix("threshold=").unwrap()] {
        assert!(number.parse::<f64>().unwrap().is_finite(), "{text}");
    }
    assert!(level.starts_with("level=") && policy.starts_with("policy=demo@"), "{text}");
    assert!(Reason::ALL.iter().any(|known| known.as_str() == reason), "{text}");
    assert_eq!(reply.details, format!("headgate_{reason}"));
    reason.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Invariant 2. A worker has no host to ask; that it asks nobody else either shows in that the same history decides alike.
    #[test]
    fn a_decision_follows_from_the_workers_memory_alone(steps in prop::collection::vec(any_step(), 1..150)) {
        let (mut one, mut other) = (Site::new(), Site::new());
        steps.iter().for_each(|step| one.take(step));
        steps.iter().for_each(|step| other.take(step));
        prop_assert_eq!(one.outcomes, other.outcomes);
    }

    /// Invariant 4. Whatever was said last, and whatever went on then: when nothing more is said, limits end with their time to live and
    /// decay, and a pool that has room serves everybody.
    #[test]
    fn without_a_control_plane_a_pool_with_room_serves_every_request(
        steps in prop::collection::vec(any_step(), 1..80),
        last in any_limits(),
        requests in prop::collection::vec((0..3_usize, 0..20_000_u32), 1..20),
    ) {
        let mut site = Site::new();
        steps.iter().for_each(|step| site.take(step));
        site.limit(last);
        while !site.streams.is_empty() {
            site.take(&Step::End(0, StreamEnd::Complete));
        }
        // The worker's own controller may have cut off as well; a minute of rest is enough for it to see that nothing comes.
        site.take(&Step::Pass(TTL_MS + DECAY_MS + 60_000));
        let before = site.replies.len();
        for (class, bytes) in requests {
            site.take(&Step::Request { class, bytes, is_retry: false });
            site.take(&Step::Pass(500));
            prop_assert_eq!(site.replies.len(), before, "{:?}", site.replies.last());
            prop_assert!(site.streams.values().all(|stream| !stream.is_waiting()));
            site.take(&Step::End(0, StreamEnd::Complete));
            site.take(&Step::Pass(500));
        }
    }

    /// Invariant 7. To the client, in the access log and in the report.
    #[test]
    fn every_refusal_says_why_in_numbers_and_is_counted(steps in prop::collection::vec(any_step(), 1..200)) {
        let mut site = Site::new();
        steps.iter().for_each(|step| site.take(step));
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        for reply in &site.replies {
            *told.entry(reason(reply)).or_default() += 1;
        }
        prop_assert_eq!(told, site.counted());
    }

    /// Invariant 8. Work waits, latency is in its objective, the cache is below nine tenths of its target and does not grow: after two
    /// ticks the budget of KV tokens rises.
    #[test]
    fn work_that_waits_while_the_cache_has_room_raises_the_budget(
        total in 20_000..10_000_000_u64,
        used in 0.25..0.75_f64,
        waiting in 1..1000_u64,
    ) {
        let policy = policy();
        let mut controller = OverloadController::new(ms(0), &policy);
        let used = (used * total as f64) as u64;
        let mut bounds = vec![];
        for tick in 0..12_u64 {
            let bound = controller.state().budgets.kv_tokens.unwrap_or(total / 2);
            let in_flight = Work { prefill_tokens: 0, kv_tokens: bound, streams: (bound / 500).max(1) };
            let flow = Flow { in_flight, admitted: in_flight, queued_requests: waiting, queued_work: 700 * waiting, ..Flow::default() };
            let engine = EngineSample {
                at: ms(100 * tick),
                epoch: tick + 1,
                kv_used_tokens: used,
                kv_total_tokens: total,
                kv_fullest: used as f64 / total as f64,
                running: in_flight.streams,
                engines: 1,
                ..EngineSample::default()
            };
            let signals = OverloadSignals { series: 1, flow: &flow, engine: Some(engine), level_pressure: 0.0 };
            bounds.push(controller.step(ms(100 * tick), &signals).budgets.kv_tokens.unwrap());
        }
        for ticks in bounds[2..].windows(4) {
            prop_assert!(ticks[3] > ticks[0] || ticks[3] >= 5 * total / 2, "{:?}", bounds);
        }
    }
}
