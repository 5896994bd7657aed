//! A worker and its streams: whatever happens in whatever order, when every request is over nothing is in flight, nothing waits and no
//! work is reserved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use headgate::document::CheckedPolicy;
use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;
use prost::Message;

use crate::input::{Input, fingerprint, push_frame};

const MAX_OPEN: usize = 64;
const MAX_STEPS: usize = 512;
const STATUSES: [u16; 6] = [200, 404, 429, 500, 503, 0];
const PATHS: [&[u8]; 4] = [b"/v1/chat/completions", b"/v1/messages", b"/other", b"\xff"];

/// The policies between which a script changes: none, overload control with a queue, the same without, the three levels.
/// Random number of the proxy's process.
const PROCESS: u64 = 9;

const SPECS: [&str; 3] = [
    "overload: {ttftSloMs: 500, queue: {maxRequests: 8, maxBytes: 65536}, ladder: [{kind: delay, engageAt: 1, delayMs: 200}]}\n  \
     concurrency: {maxInFlight: 6}\n",
    "overload: {}\n",
    "concurrency: {maxInFlight: 4}\n  breaker: {scopes: [endpoint, dependency]}\n  levels: {qps: {minSamples: 2, floorRps: 1}}\n  \
     quotas: [{name: all, unit: tokens, amount: 1000}]\n",
];

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let limits = v1::Limits {
        pool: "llm".to_owned(),
        epoch: 9,
        ttl_ms: 1000,
        overload: Some(v1::OverloadLimits {
            budgets: Some(v1::Work { prefill_tokens: 300, kv_tokens: 600, streams: 2 }),
            safe_budgets: Some(v1::Work { prefill_tokens: 200, kv_tokens: 400, streams: 1 }),
            cut_level: 200,
            cut_fraction: 0.5,
            expected_ttft_ms: 50.0,
            retry_ratio: 0.1,
            ..Default::default()
        }),
        quotas: vec![v1::QuotaGrant {
            quota: "all/tokens".to_owned(),
            holder: PROCESS,
            fence: 1,
            sequence: 1,
            reported_at_ns: 1,
            lease: Some(v1::QuotaLease { rates: vec![500.0, 500.0], safe: 10.0, burst: 1000.0 }),
        }],
        ..Default::default()
    };
    let mut script = vec![7, 1, 6, 20, 0, 255, 255];
    script.push(5);
    push_frame(&mut script, &limits.encode_to_vec());
    for request in 0..6_u8 {
        script.extend([0, 0, request, 4, 100, 0, 0, 4, 10, 0]);
    }
    script.extend([1, 0, 0, 2, 0, 9, 1, 8, 3, 0, 0, 8, 4, 50, 0, 8, 3, 1, 1, 8, 3, 0, 2, 8]);
    let mut tokens = vec![7, 3, 6, 20, 0, 255, 255, 5];
    push_frame(&mut tokens, &limits.encode_to_vec());
    for request in 0..6_u8 {
        tokens.extend([0, 0, request, 4, 100, 0, 0, 2, 0, 9, 1, 4, 10, 0]);
    }
    let calm = vec![7, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 2, 0, 5, 1, 3, 0, 0];
    vec![script, tokens, calm]
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut scene = Scene::new();
    let mut input = Input::new(input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        scene.step(&mut input);
    }
    scene.end();
    fingerprint(scene.seen.iter().map(|(step, what)| [*step, *what]))
}

struct Scene {
    worker: Worker,
    now: Timestamp,
    streams: BTreeMap<u32, Stream>,
    next_id: u32,
    policies: Vec<Arc<Policy>>,
    seen: BTreeSet<(u8, u8)>,
}

impl Scene {
    fn new() -> Self {
        Self {
            worker: {
                let mut worker = Worker::new(7);
                worker.set_process(PROCESS);
                worker
            },
            now: Timestamp::from_millis(1000),
            streams: BTreeMap::new(),
            next_id: 1,
            policies: SPECS.iter().map(|extra| policy(extra)).collect(),
            seen: BTreeSet::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let step = input.choice(9) as u8;
        let what = match step {
            0 => self.request(input),
            1 => self.on_stream(input, |input| {
                let status = STATUSES[input.choice(STATUSES.len())];
                let failed_dependency = (input.byte() % 4 == 0).then_some(b"tokenizer".as_slice());
                Event::ResponseHeaders { status, failed_dependency }
            }),
            2 => {
                self.on_stream(input, |input| Event::ResponseBody { len: usize::from(input.short()), end_of_stream: input.byte() % 4 == 0 })
            }
            3 => self.log(input),
            4 => self.pass_time(input),
            5 => u8::from(v1::Limits::decode(input.frame()).is_ok_and(|limits| self.worker.set_limits(self.now, &limits))),
            6 => {
                self.worker.set_permits(0, u32::from(input.short()), f64::from(input.byte()) / 255.0);
                self.worker.set_quota_part(0, 0, f64::from(input.byte()) / 255.0);
                0
            }
            7 => {
                let chosen = input.choice(SPECS.len() + 1);
                let policies = chosen.checked_sub(1).map(|index| Arc::clone(&self.policies[index]));
                self.worker.set_policies(self.now, policies.into_iter().collect());
                chosen as u8
            }
            _ => self.release(),
        };
        self.seen.insert((step, what));
    }

    fn request(&mut self, input: &mut Input<'_>) -> u8 {
        if self.streams.len() >= MAX_OPEN {
            return 255;
        }
        let path = PATHS[input.choice(PATHS.len())];
        let (key, length) = (format!("Bearer key-{}", input.byte() % 3), input.number().to_string());
        let (priority, retries) = ([b"high".as_slice(), b"low", b"\xff"][input.choice(3)], [b"0".as_slice(), b"1", b"x"][input.choice(3)]);
        let pairs: [(&[u8], &[u8]); 7] = [
            (b":method", b"POST"),
            (b":path", path),
            (b":authority", b"host"),
            (b"authorization", key.as_bytes()),
            (b"content-length", length.as_bytes()),
            (b"x-priority", priority),
            (b"x-stainless-retry-count", retries),
        ];
        let info = RequestInfo::new(HeaderView::from_pairs(&pairs), VerifiedIdentity::default());
        let id = self.next_id;
        self.next_id += 1;
        let mut stream = Stream::identified(id);
        let outcome = stream.handle(&mut self.worker, self.now, Event::RequestHeaders(&info));
        assert_eq!(matches!(outcome, Outcome::Wait(_)), stream.is_waiting());
        self.streams.insert(id, stream);
        kind(&outcome)
    }

    fn on_stream(&mut self, input: &mut Input<'_>, event: impl FnOnce(&mut Input<'_>) -> Event<'static>) -> u8 {
        let Some(id) = self.pick(input) else { return 254 };
        let event = event(input);
        let Some(stream) = self.streams.get_mut(&id) else { return 254 };
        let outcome = stream.handle(&mut self.worker, self.now, event);
        assert!(!matches!(outcome, Outcome::Reply(_) | Outcome::Wait(_)), "a response cannot be refused");
        stream.count_pieces(u32::from(input.byte() % 4), 10);
        kind(&outcome)
    }

    fn log(&mut self, input: &mut Input<'_>) -> u8 {
        let Some(id) = self.pick(input) else { return 254 };
        let end = [StreamEnd::Complete, StreamEnd::ByClient, StreamEnd::ByUpstream][input.choice(3)];
        let Some(mut stream) = self.streams.remove(&id) else { return 254 };
        stream.handle(&mut self.worker, self.now, Event::Log { endpoint: Some(b"10.0.0.1:80"), end });
        u8::from(stream.summary().is_some())
    }

    fn pass_time(&mut self, input: &mut Input<'_>) -> u8 {
        self.now = self.now + core::time::Duration::from_millis(input.number().min(1 << 32));
        self.worker.on_tick(self.now);
        0
    }

    fn release(&mut self) -> u8 {
        let mut seen = 253;
        while let Some(id) = self.worker.next_released() {
            // A stream whose client has left is known no more.
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let outcome = stream.release(&mut self.worker, self.now);
            seen = kind(&outcome);
        }
        seen
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<u32> {
        let at = input.choice(self.streams.len());
        self.streams.keys().nth(at).copied()
    }

    /// Every request ends; what is left must be nothing.
    fn end(&mut self) {
        self.release();
        for (_, mut stream) in std::mem::take(&mut self.streams) {
            stream.handle(&mut self.worker, self.now, Event::Log { endpoint: None, end: StreamEnd::ByClient });
        }
        while self.worker.next_released().is_some() {}
        self.worker.on_tick(self.now + core::time::Duration::from_millis(20));
        for pool in self.worker.report(self.now, 0).pools {
            for class in &pool.classes {
                assert_eq!((class.in_flight, class.waiting), (0, 0), "class {} of {}", class.class, pool.policy);
                assert_eq!(class.admitted, class.completed + class.failed + class.cancelled, "every admitted request has ended once");
            }
            if let Some(overload) = pool.overload {
                assert_eq!(overload.in_flight.unwrap_or_default(), v1::Work::default(), "no work is reserved");
                let queue = overload.queue.unwrap_or_default();
                assert_eq!((queue.requests, queue.bytes, queue.work), (0, 0, 0), "nothing waits");
            }
        }
    }
}

fn policy(extra: &str) -> Arc<Policy> {
    // SHA-256 of `key-1`.
    let key = "be2974546978e3739e6d6da85c4be9f334ce32df2b9fd4b6ff1b55c0d57e9d44";
    let text = format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{name: demo}}\nspec:\n  pool: llm\n  routes: [{{pathPrefix: /v1/}}]\n  \
         classes:\n  - {{name: high, whenTripped: reserved_lane}}\n  - {{name: low, whenTripped: refuse}}\n  \
         classification: {{defaultClass: low, tenants: [{{name: a, class: high, identities: [{{apiKeySha256: {key}}}]}}]}}\n  {extra}"
    );
    Arc::new(CheckedPolicy::from_document(&text).expect("the policy is valid").policy().clone())
}

fn kind(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Continue => 0,
        Outcome::ContinueWith(_) => 1,
        Outcome::Wait(_) => 2,
        Outcome::Reply(reply) => {
            assert!(reply.headers.iter().any(|(name, _)| *name == "x-headgate-reason"), "a refusal says why");
            let reason = reply.headers.iter().find(|(name, _)| *name == "x-headgate-reason").map_or("", |(_, value)| value);
            3 + (fingerprint([reason.split(';').next().unwrap_or("")]) % 64) as u8
        }
    }
}
