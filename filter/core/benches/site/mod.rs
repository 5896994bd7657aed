//! A worker under overload control with 3 classes and 1,000 tenants, and requests of all of them, for the allocation test and the
//! benchmark.

use std::sync::Arc;

use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;

/// Tenants of the policy.
pub(crate) const TENANTS: usize = 1000;
/// More requests than will ever be in flight.
pub(crate) const PLENTY: u64 = 1 << 40;
const CLASSES: [&str; 3] = ["high", "medium", "low"];

/// What decides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// The three levels.
    Levels,
    /// Overload control, with a queue.
    Work,
    /// The same, where the filter names one of four engines.
    Picks,
}

/// The policy.
pub(crate) fn policy(control: Control) -> Arc<Policy> {
    let when_tripped = v1::WhenTripped::GradientThrottle.into();
    let class = |name: &str| v1::PriorityClass { name: name.into(), when_tripped, ..Default::default() };
    let tenant = |number: usize| v1::Tenant {
        name: format!("tenant-{number}"),
        class: CLASSES[number % 3].into(),
        may_claim: Vec::new(),
        identities: vec![v1::Identity { spiffe_id: spiffe_id(number), ..Default::default() }],
    };
    let picks = control == Control::Picks;
    let overload = v1::Overload { queue: Some(v1::AdmissionQueue::default()), picks_endpoint: Some(picks), ..Default::default() };
    let spec = v1::PolicySpec {
        pool: "llm".into(),
        classes: CLASSES.map(class).to_vec(),
        classification: Some(v1::Classification { tenants: (0..TENANTS).map(tenant).collect(), ..Default::default() }),
        overload: (control != Control::Levels).then_some(overload),
        engines: (0..u32::from(picks)).map(|_| v1::Engine { metrics_url: "http://engines/metrics".into() }).collect(),
        ..Default::default()
    };
    Arc::new(Policy::try_from_wire(&v1::Policy { name: "bench".into(), version: String::new(), spec: Some(spec) }).expect("a valid policy"))
}

fn spiffe_id(number: usize) -> String {
    format!("spiffe://cluster.local/ns/prod/sa/tenant-{number}")
}

const HEADERS: &[(&[u8], &[u8])] = &[
    (b":method", b"POST"),
    (b":path", b"/v1/chat/completions"),
    (b":authority", b"llm.example:443"),
    (b"content-length", b"4000"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 1.54.0"),
    (b"x-request-id", b"4f2c6f1e-5e7c-4f2c-9d0d-0c0f1e2d3c4b"),
    (b"x-stainless-retry-count", b"0"),
];

/// A request of a tenant, as the adapter hands it over.
fn request(headers: &'static [u8], number: usize) -> RequestInfo<'static> {
    let id: &'static str = spiffe_id(number).leak();
    read(headers, id.as_bytes())
}

pub(crate) fn read<'a>(headers: &'a [u8], spiffe: &'a [u8]) -> RequestInfo<'a> {
    let identity = VerifiedIdentity { spiffe: Some(spiffe), jwt_claims: &[] };
    RequestInfo::new(HeaderView::from_serialized(headers).expect("a map of headers"), identity)
}

/// The headers as the host writes them: their number, the lengths of each name and value, then these, each with a zero byte behind it.
pub(crate) fn serialized() -> Vec<u8> {
    let number = |number: usize| (number as u32).to_le_bytes();
    let texts = || HEADERS.iter().flat_map(|(name, value)| [*name, *value]);
    let lengths = texts().flat_map(|text| number(text.len()));
    number(HEADERS.len()).into_iter().chain(lengths).chain(texts().flat_map(|text| text.iter().copied().chain([0]))).collect()
}

/// A worker and the time at which it is.
pub(crate) struct Site {
    /// The worker.
    pub(crate) worker: Worker,
    requests: Vec<RequestInfo<'static>>,
    now_ns: u64,
    tick_every_ns: Option<u64>,
    next: usize,
    sent: u32,
}

impl Site {
    /// A worker with room for `streams` requests.
    pub(crate) fn new(control: Control, streams: u64, tick_every_ns: Option<u64>) -> Self {
        let mut worker = Worker::new(7);
        worker.set_policies(Timestamp::ZERO, vec![policy(control)]);
        let budgets = Some(v1::Work { streams, ..Default::default() });
        let engines: Vec<String> = (0..4).filter(|_| control == Control::Picks).map(|index| format!("10.0.0.{index}:8000")).collect();
        let overload = v1::OverloadLimits {
            budgets,
            cut_level: 1000,
            cut_fraction: 0.5,
            retry_ratio: 0.1,
            engines,
            engine_bounds: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            ..Default::default()
        };
        let limits = v1::Limits { pool: "llm".into(), epoch: 1, ttl_ms: u32::MAX, overload: Some(overload), ..Default::default() };
        worker.set_limits(Timestamp::ZERO, &limits);
        worker.on_tick(Timestamp::ZERO);
        let headers: &'static [u8] = serialized().leak();
        Self { worker, requests: (0..TENANTS).map(|number| request(headers, number)).collect(), now_ns: 0, tick_every_ns, next: 0, sent: 0 }
    }

    /// The time, 10 µs later than before, and the worker's tick if it is time for one.
    pub(crate) fn now(&mut self) -> Timestamp {
        self.now_ns += 10_000;
        let now = Timestamp::from_nanos(self.now_ns);
        if self.tick_every_ns.is_some_and(|every_ns| self.now_ns.is_multiple_of(every_ns)) {
            self.worker.on_tick(now);
        }
        now
    }

    /// Lets a request of the next tenant decide.
    pub(crate) fn send(&mut self) -> (Stream, Outcome) {
        let mut stream = Stream::new();
        let outcome = self.send_as(&mut stream);
        (stream, outcome)
    }

    /// The same in a place that another request had, as the adapter does it.
    pub(crate) fn send_as(&mut self, stream: &mut Stream) -> Outcome {
        let now = self.now();
        self.next = (self.next + 389) % TENANTS;
        self.sent += 1;
        *stream = Stream::identified(self.sent);
        stream.handle(&mut self.worker, now, Event::RequestHeaders(&self.requests[self.next]))
    }

    /// The request is over.
    pub(crate) fn end(&mut self, stream: &mut Stream, end: StreamEnd) {
        let now = self.now();
        stream.handle(&mut self.worker, now, Event::Log { endpoint: None, end });
    }

    /// The response's headers and its first token.
    pub(crate) fn first_token(&mut self, stream: &mut Stream) {
        let now = self.now();
        stream.handle(&mut self.worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
        stream.handle(&mut self.worker, now, Event::ResponseBody { len: 200, end_of_stream: false });
    }
}
