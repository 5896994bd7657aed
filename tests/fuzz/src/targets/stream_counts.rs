//! One worker and its streams: requests, responses, limits, policies and time in any order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;

use super::build;
use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 250;
/// Longer than anybody may wait, whatever the policy.
const FOR_EVER: Duration = Duration::from_secs(7200);
const ENDS: [StreamEnd; 3] = [StreamEnd::Complete, StreamEnd::ByClient, StreamEnd::ByUpstream];

/// A request that is not over.
struct Live {
    stream: Stream,
    /// Whether it goes to the pool and holds something of it.
    is_flying: bool,
    /// Number of the policies in force when it was admitted.
    era: u32,
}

struct World {
    worker: Worker,
    now: Timestamp,
    live: BTreeMap<u32, Live>,
    next_id: u32,
    epoch: u64,
    /// Counts changes of the policies.
    era: u32,
    /// Since when the policy has had overload control, as an era; `None` while it has none.
    controlled_since: Option<u32>,
    /// Requests that a policy governed.
    governed: u64,
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let mut world = World {
        worker: Worker::new(5),
        now: Timestamp::from_millis(1),
        live: BTreeMap::new(),
        next_id: 0,
        epoch: 0,
        era: 0,
        controlled_since: None,
        governed: 0,
    };
    world.set_policy(&mut source);
    let permits = source.number32() % 100;
    world.worker.set_permits(0, permits, 1.0);
    world.worker.on_tick(world.now);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        world.step(&mut source, marks);
        world.check(marks);
    }
    world.end(&mut source);
}

impl World {
    fn set_policy(&mut self, source: &mut Source<'_>) {
        let wire = build::policy(source, "demo", "llm");
        let Ok(policy) = Policy::try_from_wire(&wire) else { return };
        self.era += 1;
        self.controlled_since = policy.overload().map(|_| self.controlled_since.unwrap_or(self.era));
        self.worker.set_policies(self.now, vec![Arc::new(policy)]);
    }

    fn step(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        match source.byte() {
            0..80 => self.request(source, marks),
            80..100 => self.with_one(source, |live, worker, now, source| {
                let status = *source.pick(&[200, 200, 200, 429, 500, 503, 404, 100, 0, 999]);
                let failed_dependency: Option<&[u8]> = if source.is_so(20) { Some(b"retriever") } else { None };
                live.stream.handle(worker, now, Event::ResponseHeaders { status, failed_dependency });
            }),
            100..125 => self.with_one(source, |live, worker, now, source| {
                let (len, end_of_stream) = (source.number() as usize, source.is_so(60));
                live.stream.handle(worker, now, Event::ResponseBody { len, end_of_stream });
            }),
            125..132 => self.with_one(source, |live, _, _, source| live.stream.count_pieces(source.number32(), source.number())),
            132..165 => self.log(source),
            165..200 => {
                self.now = self.now + if source.is_so(180) { Duration::from_millis(20) } else { source.span() };
                self.worker.on_tick(self.now);
            }
            200..218 => {
                let permits = source.number32() % 200;
                let share = if source.is_so(40) { source.float() } else { 1.0 };
                self.worker.set_permits(source.below(2), permits, share);
            }
            218..230 => {
                self.epoch = if source.is_so(20) { source.number() } else { self.epoch.saturating_add(1) };
                let limits = build::limits(source, "llm", self.epoch);
                self.worker.set_limits(self.now, &limits);
            }
            230..234 => self.set_policy(source),
            234 => {
                self.worker.set_policies(self.now, Vec::new());
                self.controlled_since = None;
                self.governed = 0;
                self.era += 1;
                // Whoever was admitted is nobody's any more.
                self.live.values_mut().for_each(|live| live.is_flying = false);
                marks.note("no policy");
            }
            235..240 => {
                let needs_status = self.worker.looks_at_status(self.now);
                marks.note(("looks", needs_status));
            }
            _ => {
                let most = 1 + source.below(4);
                self.release(most, marks);
            }
        }
    }

    fn request(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        let length = source.number().to_string();
        let key = source.text(&build::KEYS);
        let attempt = if source.is_so(50) { "2" } else { "1" };
        let path = *source.pick(&["/v1/chat/completions", "/v1/messages", "/v1/batch", "/other"]);
        let mut headers: Vec<(&[u8], &[u8])> = vec![
            (b":path", path.as_bytes()),
            (b":authority", b"api.example.com"),
            (b"x-api-key", key.as_bytes()),
            (b"x-envoy-attempt-count", attempt.as_bytes()),
        ];
        if source.is_so(200) {
            headers.push((b"content-length", length.as_bytes()));
        }
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity::default());
        self.next_id += 1;
        let mut stream = Stream::identified(self.next_id);
        let outcome = stream.handle(&mut self.worker, self.now, Event::RequestHeaders(&request));
        self.governed += u64::from(stream.summary().is_some());
        let decision = stream.summary().map(|summary| summary.to_string().chars().take_while(|c| *c != '@').collect::<String>());
        let words = decision.unwrap_or_default().chars().filter(|c| c.is_alphabetic() || *c == '_').collect::<String>();
        marks.note((std::mem::discriminant(&outcome), words));
        if let Outcome::Reply(reply) = &outcome {
            assert!((200..600).contains(&reply.status), "{reply:?}");
        }
        let is_flying = stream.summary().is_some_and(|summary| is_admitted(&summary)) && !matches!(outcome, Outcome::Wait(_));
        assert_eq!(matches!(outcome, Outcome::Wait(_)), stream.is_waiting());
        self.live.insert(self.next_id, Live { stream, is_flying, era: self.era });
    }

    fn with_one(&mut self, source: &mut Source<'_>, act: impl Fn(&mut Live, &mut Worker, Timestamp, &mut Source<'_>)) {
        if self.live.is_empty() {
            return;
        }
        let nth = source.below(self.live.len());
        if let Some(live) = self.live.values_mut().nth(nth) {
            act(live, &mut self.worker, self.now, source);
        }
    }

    /// A request is over; its log may come twice.
    fn log(&mut self, source: &mut Source<'_>) {
        if self.live.is_empty() {
            return;
        }
        let nth = source.below(self.live.len());
        let Some(id) = self.live.keys().nth(nth).copied() else { return };
        let endpoint: Option<&[u8]> = if source.is_so(100) { Some(b"10.0.0.1:80") } else { None };
        let end = *source.pick(&ENDS);
        let Some(mut live) = self.live.remove(&id) else { return };
        live.stream.handle(&mut self.worker, self.now, Event::Log { endpoint, end });
        if source.is_so(60) {
            live.stream.handle(&mut self.worker, self.now, Event::Log { endpoint, end });
        }
        assert!(!live.stream.is_waiting());
    }

    /// Continues streams that have an answer, as an adapter does.
    fn release(&mut self, most: usize, marks: &mut Marks) {
        for _ in 0..most {
            let Some(id) = self.worker.next_released() else { return };
            let Some(live) = self.live.get_mut(&id).filter(|live| live.stream.is_waiting()) else {
                marks.note("released to nobody");
                continue;
            };
            let outcome = live.stream.release(&mut self.worker, self.now);
            assert!(!matches!(outcome, Outcome::Wait(_)), "a stream is released without an answer");
            assert!(!live.stream.is_waiting());
            live.is_flying = matches!(outcome, Outcome::Continue | Outcome::ContinueWith(_))
                && live.stream.summary().is_some_and(|summary| is_admitted(&summary));
            live.era = self.era;
            marks.note(("released", std::mem::discriminant(&outcome)));
        }
    }

    fn report(&mut self) -> Option<v1::PoolReport> {
        self.worker.report(self.now, 0).pools.into_iter().next()
    }

    fn waiting(&self) -> u64 {
        self.live.values().filter(|live| live.stream.is_waiting()).count() as u64
    }

    fn check(&mut self, marks: &mut Marks) {
        let Some(pool) = self.report() else { return };
        let wants = self.worker.wants(0);
        assert!(wants.rate_wanted.is_finite() && wants.rate_wanted >= 0.0, "{wants:?}");
        let flying = self.live.values().filter(|live| live.is_flying).count() as u64;
        let in_flight: u64 = pool.classes.iter().map(|class| u64::from(class.in_flight)).sum();
        assert!(in_flight <= flying + self.waiting(), "{in_flight} in flight, but {flying} fly and {} wait", self.waiting());
        for class in &pool.classes {
            assert!(class.waiting <= class.in_flight, "{class:?}");
        }
        let queued = pool.overload.as_ref().and_then(|load| load.queue.as_ref()).map_or(0, |queue| u64::from(queue.requests));
        assert!(queued <= self.waiting(), "{queued} in the queue, {} wait", self.waiting());
        marks.note((pool.breaker, flying.checked_ilog2(), queued.checked_ilog2()));
        if let Some(load) = &pool.overload {
            self.check_work(load, flying, marks);
        }
        if self.era == 1 {
            self.check_counts(&pool, queued, flying);
        }
    }

    /// Work in flight is that of the requests that hold some.
    fn check_work(&self, load: &v1::OverloadReport, flying: u64, marks: &mut Marks) {
        let work = load.in_flight.unwrap_or_default();
        assert!(work.streams <= flying + self.waiting(), "{} streams hold work, {flying} fly", work.streams);
        let since = self.controlled_since.unwrap_or(self.era);
        let holders = self.live.values().filter(|live| live.is_flying && live.era >= since).count() as u64;
        assert!(work.streams >= holders, "{} streams hold work of {holders} that were admitted under overload control", work.streams);
        assert!(work.streams > 0 || work == v1::Work::default(), "work that nobody holds: {work:?}");
        if let Some(queue) = &load.queue {
            assert!(queue.requests > 0 || (queue.bytes, queue.work) == (0, 0), "{queue:?}");
            marks.note((queue.expired.checked_ilog2(), queue.overflowed.checked_ilog2(), queue.abandoned.checked_ilog2()));
        }
    }

    /// While the policy stays, every request is counted once, and every admitted one until it is over.
    fn check_counts(&self, pool: &v1::PoolReport, queued: u64, flying: u64) {
        let sum = |count: fn(&v1::ClassReport) -> u64| pool.classes.iter().map(count).sum::<u64>();
        let (offered, admitted) = (sum(|class| class.offered), sum(|class| class.admitted));
        let refused = sum(|class| class.refused.iter().map(|reason| reason.count).sum());
        let queue = pool.overload.as_ref().and_then(|load| load.queue.as_ref());
        let abandoned = queue.map_or(0, |queue| queue.abandoned);
        assert_eq!(offered, self.governed);
        assert_eq!(offered, admitted + refused + queued + abandoned, "{pool:?}");
        let over = sum(|class| class.completed + class.failed + class.cancelled);
        let in_flight = sum(|class| u64::from(class.in_flight));
        assert_eq!(admitted, over + in_flight, "{pool:?}");
        let answered = self.waiting() - queued;
        assert!(in_flight >= flying && in_flight <= flying + answered, "{in_flight} in flight, {flying} fly, {answered} are answered");
        if let (Some(load), Some(queue)) = (&pool.overload, queue) {
            let [taken, given, held] = [load.admitted, load.finished, load.in_flight].map(Option::unwrap_or_default);
            assert_eq!(taken.kv_tokens, given.kv_tokens + held.kv_tokens, "{load:?}");
            assert_eq!((taken.streams, held.streams), (given.streams + held.streams, in_flight), "{load:?}");
            assert!(queue.requests <= 100_000 && queue.bytes <= 4 << 30, "{queue:?}");
        }
    }

    /// Everything comes to its end, and nothing is left.
    fn end(&mut self, source: &mut Source<'_>) {
        let mut marks = Marks::default();
        self.now = self.now + FOR_EVER;
        self.worker.on_tick(self.now);
        self.release(usize::MAX, &mut marks);
        assert_eq!(self.waiting(), 0, "somebody waits for ever");
        while !self.live.is_empty() {
            self.log(source);
            self.release(usize::MAX, &mut marks);
        }
        self.worker.on_tick(self.now);
        assert_eq!(self.worker.next_released(), None);
        let Some(pool) = self.report() else { return };
        for class in &pool.classes {
            assert_eq!((class.in_flight, class.waiting), (0, 0), "{} is left with requests that are over", class.class);
        }
        let Some(load) = pool.overload else { return };
        assert_eq!(load.in_flight, Some(v1::Work::default()), "work is left behind");
        let queue = load.queue.unwrap_or_default();
        assert_eq!((queue.requests, queue.bytes, queue.work), (0, 0, 0), "somebody is left in the queue");
    }
}

fn is_admitted(summary: &headgate_core::stream::Summary<'_>) -> bool {
    matches!(summary.decision, headgate_core::stream::Decision::Admit)
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(1200)
}
