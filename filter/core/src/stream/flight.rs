//! A request that was admitted, until it is over. It gives back exactly once what it holds: its permit and its passes.

use core::time::Duration;

use crate::admission::{Dues, Passes};
use crate::breaker::Verdict;
use crate::in_band::{EndpointLoads, LoadSeen, Tally};
use crate::latency::{Arrival, Metric};
use crate::pool::journal::{Milestone, Sample};
use crate::pool::quotas::{Charged, Pieces};
use crate::pool::{ClassState, Ending, Pool};
use crate::stream::StreamEnd;
use crate::stream::load::{self, Load};
use crate::time::Timestamp;
use crate::worker::{PoolRef, Worker};

/// A body that ends so soon after its first byte was no stream of tokens.
const WHOLE_WITHIN: Duration = Duration::from_millis(5);
/// Age up to which a load says something of an engine.
const LOAD_TELLS_FOR: Duration = Duration::from_secs(1);

/// How the response went so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    None,
    /// Its status is below 400: its first byte is the first token.
    Good,
    /// Its status is 4xx or a 5xx that is no failure; it took no inference, so its time is not one to first token.
    Other,
    /// 500, 502, 503 or 504.
    Failure,
}

/// An admitted request.
#[derive(Debug)]
pub(super) struct Flight {
    pool: PoolRef,
    /// Position of the class's state in the pool.
    state: usize,
    arrival: Arrival,
    admitted_at: Timestamp,
    /// When the first byte of the body came.
    first_byte_at: Option<Timestamp>,
    /// What it holds of the breakers; nothing after its verdict.
    passes: Option<Passes>,
    response: Response,
    /// Whether the failure is a dependency's, so that it says nothing about pool and endpoint.
    is_dependency_failure: bool,
    first_byte: FirstByte,
    /// What it holds under overload control; nothing after its end.
    load: Option<Load>,
    /// What it has been charged of quotas and is settled without overload control; nothing after its end.
    bill: Option<Bill>,
}

/// What a request has been charged, and what is counted of its response to settle it.
#[derive(Debug)]
struct Bill {
    charged: Charged,
    tally: Tally,
}

/// What is known of the first byte of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstByte {
    /// It has not come.
    Awaited,
    /// It came then, and whether it is a token is not known before the status.
    Seen(Timestamp),
    /// It has been counted, or it was no token.
    Settled,
}

/// Whether the body ends with the piece at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// It does: an error looks like that, too.
    Ends,
    /// It goes on.
    GoesOn,
}

impl Flight {
    #[inline]
    pub(super) fn new(pool: PoolRef, state: usize, arrival: Arrival, now: Timestamp, passes: Passes, dues: Dues) -> Self {
        let (load, bill) = match dues {
            Dues::Work(held) => (Some(Load::new(now, held)), None),
            Dues::Charged(charged) => (None, charged.settles.map(|_| Bill { charged, tally: Tally::default() })),
        };
        Self {
            pool,
            state,
            arrival,
            admitted_at: now,
            first_byte_at: None,
            passes: Some(passes),
            response: Response::None,
            is_dependency_failure: false,
            first_byte: FirstByte::Awaited,
            load,
            bill,
        }
    }

    #[inline]
    pub(super) fn count_pieces(&mut self, pieces: u32, bytes: u64) {
        if let Some(tally) = self.tally() {
            tally.count_pieces(pieces, bytes);
        }
    }

    #[inline]
    fn tally(&mut self) -> Option<&mut Tally> {
        let of_load = self.load.as_mut().map(|load| &mut load.tally);
        of_load.or_else(|| self.bill.as_mut().map(|bill| &mut bill.tally))
    }

    /// Whether the ends of the body's pieces are to be handed over.
    #[inline]
    pub(super) fn looks_at_pieces(&self) -> bool {
        self.load.as_ref().is_some_and(Load::looks_at_pieces)
            || self.bill.as_ref().is_some_and(|bill| bill.charged.settles == Some(Pieces::AreRead))
    }

    pub(super) fn note_tail(&mut self, tail: &[u8]) {
        if let Some(tally) = self.tally() {
            tally.note_tail(tail);
        }
    }

    /// The latest time after which the response's headers were surely written; `None` when that is too long ago to say anything of the
    /// engine's load. Headers may leave at any time between the request and the first byte of the body, but where the whole body comes at
    /// once they come with it.
    #[inline(never)]
    fn headers_made_after(&self, now: Timestamp, seen: LoadSeen) -> Option<Timestamp> {
        let came_whole = self.first_byte_at.filter(|at| seen == LoadSeen::AtEnd && now.since(*at) <= WHOLE_WITHIN);
        let at = came_whole.unwrap_or(self.admitted_at);
        (now.since(at) <= LOAD_TELLS_FOR).then_some(at)
    }

    /// Where a load that the response's headers tell is booked, and after what time it was made; `None` when nobody asks for it.
    #[inline]
    pub(super) fn load_book<'a>(
        &self,
        worker: &'a mut Worker,
        now: Timestamp,
        seen: LoadSeen,
    ) -> Option<(&'a mut EndpointLoads, Timestamp)> {
        let pool = worker.pool_mut(self.pool).filter(|pool| pool.policy.orca())?;
        Some((&mut pool.engine_loads, self.headers_made_after(now, seen)?))
    }

    /// Whether nothing of the body has come.
    pub(super) const fn awaits_first_byte(&self) -> bool {
        matches!(self.first_byte, FirstByte::Awaited)
    }

    /// Whether the status is known.
    pub(super) const fn has_status(&self) -> bool {
        !matches!(self.response, Response::None)
    }

    /// Takes the response's status; a breaker hears of it at once, not when the last token is out. The time to first token, if that
    /// had come and only its status was missing.
    #[inline]
    pub(super) fn on_headers(
        &mut self,
        worker: &mut Worker,
        now: Timestamp,
        status: u16,
        failed_dependency: Option<&[u8]>,
    ) -> Option<Duration> {
        if status < 200 || self.response != Response::None {
            return None;
        }
        self.response = match status {
            500 | 502..=504 => Response::Failure,
            200..400 => Response::Good,
            _ => Response::Other,
        };
        let pool = worker.pool_mut(self.pool)?;
        if let (429 | 503, Some(overload)) = (status, &mut pool.overload) {
            overload.flow.engine_refusals += 1;
        }
        let has_dependencies = pool.policy.breaker().is_some_and(|config| config.per_dependency);
        let culprit = failed_dependency.filter(|_| has_dependencies && self.response == Response::Failure);
        self.is_dependency_failure = culprit.is_some();
        let verdict = if self.response == Response::Failure { Verdict::Failure } else { Verdict::Success };
        self.settle(pool, now, verdict, culprit);
        match self.first_byte {
            FirstByte::Seen(at) => self.count_first_byte(worker, at),
            FirstByte::Awaited | FirstByte::Settled => None,
        }
    }

    /// Takes the first byte of the body; the time to first token when this is it. An adapter that learns the status only at the end
    /// must not hold a stream's first token back until then: a body that goes on is taken for a good one.
    #[inline]
    pub(super) fn on_first_byte(&mut self, worker: &mut Worker, now: Timestamp, body: Body) -> Option<Duration> {
        if self.first_byte != FirstByte::Awaited {
            return None;
        }
        self.first_byte = FirstByte::Seen(now);
        self.first_byte_at = Some(now);
        let pool = worker.pool_mut(self.pool)?;
        let state = pool.states.get_mut(self.state)?;
        state.waiting = state.waiting.saturating_sub(1);
        if let Some(load) = &mut self.load
            && load.on_first_byte(pool)
        {
            worker.answer_waiting(self.pool, now);
        }
        let is_known = self.response != Response::None || body == Body::GoesOn;
        if is_known { self.count_first_byte(worker, now) } else { None }
    }

    /// Counts the first byte that came at `at`, unless the response is known to hold no tokens.
    #[inline]
    fn count_first_byte(&mut self, worker: &mut Worker, at: Timestamp) -> Option<Duration> {
        self.first_byte = FirstByte::Settled;
        if !matches!(self.response, Response::Good | Response::None) {
            return None;
        }
        let pool = worker.pool_mut(self.pool)?;
        pool.note(self.first_token(at));
        if let Some(load) = &mut self.load {
            load.on_first_token(pool, at);
        }
        Some(at.since(self.arrival.at))
    }

    /// Takes a whole good response of one piece, and its end, where nobody but its class is to hear of it: what [`Self::on_first_byte`],
    /// [`Self::on_headers`] and [`Self::on_end`] would do, without what they would look for. `None`, and nothing is done, if somebody is.
    #[inline]
    pub(super) fn on_whole(&self, worker: &mut Worker, now: Timestamp) -> Option<Duration> {
        let is_untouched = !self.has_status() && self.awaits_first_byte();
        if !is_untouched || self.load.is_some() || self.bill.is_some() {
            return None;
        }
        let pool = worker.pool_mut(self.pool).filter(|pool| pool.hears_of_no_response())?;
        let state = pool.states.get_mut(self.state)?;
        state.waiting = state.waiting.saturating_sub(1);
        state.in_flight = state.in_flight.saturating_sub(1);
        state.completed += 1;
        pool.note(self.first_token(now));
        pool.note(self.ended(now));
        Some(now.since(self.arrival.at))
    }

    /// Takes the end; the time to first token when no body came.
    #[inline]
    pub(super) fn on_end(&mut self, worker: &mut Worker, now: Timestamp, endpoint: Option<&[u8]>, end: StreamEnd) -> Option<Duration> {
        let ending = self.ending(end);
        let ttft = if ending == Ending::Completed { self.on_first_byte(worker, now, Body::GoesOn) } else { None };
        if ending == Ending::Failed {
            worker.note_failure(now);
        }
        let pool = worker.pool_mut(self.pool)?;
        let verdict = match (self.response, ending) {
            (Response::None, Ending::Cancelled) => Verdict::Unknown,
            (Response::None | Response::Failure, _) => Verdict::Failure,
            (Response::Good | Response::Other, _) => Verdict::Success,
        };
        // Without a response nothing was settled yet.
        self.settle(pool, now, verdict, None);
        self.settle_endpoint(pool, now, endpoint, verdict);
        if let Some(state) = pool.states.get_mut(self.state) {
            self.count(state, ending);
        }
        if ending == Ending::Completed && self.response == Response::Good {
            pool.note(self.ended(now));
        }
        if self.load.is_some() || self.bill.is_some() {
            self.give_work_back(worker, now, ending);
        }
        ttft
    }

    #[inline]
    fn first_token(&self, at: Timestamp) -> Sample {
        self.sample(at, Milestone::FirstToken, self.admitted_at.nanos_since(self.arrival.at))
    }

    #[inline]
    fn ended(&self, at: Timestamp) -> Sample {
        self.sample(at, Milestone::Served, at.nanos_since(self.admitted_at))
    }

    #[inline]
    fn sample(&self, at: Timestamp, milestone: Milestone, second_ns: u64) -> Sample {
        let Self { state, arrival, .. } = *self;
        Sample { state, place: arrival.place, milestone, since_arrival_ns: at.nanos_since(arrival.at), second_ns }
    }

    /// Gives the work back, and to those who wait, and counts the time between tokens, if the response came token by token.
    #[inline(never)]
    fn give_work_back(&mut self, worker: &mut Worker, now: Timestamp, ending: Ending) {
        let tpot = self.settle_work(worker, now, ending);
        if let (Some(tpot), Some(pool)) = (tpot, worker.pool_mut(self.pool)) {
            pool.record_latencies(self.state, self.arrival.place, &[(Metric::Tpot, load::micros(tpot))]);
        }
    }

    fn settle_work(&mut self, worker: &mut Worker, now: Timestamp, ending: Ending) -> Option<Duration> {
        let pool = worker.pool_mut(self.pool)?;
        if let Some(Bill { charged, tally }) = self.bill.take() {
            pool.settle(charged, &tally, ending == Ending::Completed);
        }
        let load = self.load.take()?;
        let mut tpot = None;
        let outcome = match (ending, self.response) {
            (Ending::Completed, Response::Good) => load::Outcome::Served,
            (Ending::Failed, _) => load::Outcome::Failed,
            (Ending::Completed | Ending::Cancelled, _) => load::Outcome::Other,
        };
        if let (Some(overload), Some(config)) = (&mut pool.overload, pool.policy.overload())
            && load.is_of(overload)
        {
            let (charges, expected, size) = load.charges(overload, config);
            pool.quotas.settle(&pool.policy, charges, expected, size);
            tpot = load.on_end(overload, config, now, self.arrival.at, outcome);
        }
        worker.answer_waiting(self.pool, now);
        tpot
    }

    #[inline]
    fn ending(&self, end: StreamEnd) -> Ending {
        match (self.response, end) {
            (Response::Failure, _) | (_, StreamEnd::ByUpstream) | (Response::None, StreamEnd::Complete) => Ending::Failed,
            (_, StreamEnd::ByClient) => Ending::Cancelled,
            (Response::Good | Response::Other, StreamEnd::Complete) => Ending::Completed,
        }
    }

    #[inline]
    fn count(&self, state: &mut ClassState, ending: Ending) {
        state.in_flight = state.in_flight.saturating_sub(1);
        if self.first_byte == FirstByte::Awaited {
            state.waiting = state.waiting.saturating_sub(1);
        }
        match ending {
            Ending::Completed => state.completed += 1,
            Ending::Failed => state.failed += 1,
            Ending::Cancelled => state.cancelled += 1,
        }
    }

    /// Gives the passes back with the verdict, once.
    #[inline]
    fn settle(&mut self, pool: &mut Pool, now: Timestamp, verdict: Verdict, culprit: Option<&[u8]>) {
        if let Some(passes) = self.passes.take()
            && pool.breakers.is_some()
        {
            Self::settle_passes(passes, pool, now, verdict, culprit);
        }
    }

    /// Gives passes back with the verdict. A failure that a dependency caused is that dependency's alone.
    #[inline(never)]
    fn settle_passes(passes: Passes, pool: &mut Pool, now: Timestamp, verdict: Verdict, culprit: Option<&[u8]>) {
        let Passes { pool: pass, dependency, is_direct } = passes;
        let (Some(breakers), Some(config)) = (&mut pool.breakers, pool.policy.breaker()) else { return };
        let pool_verdict = if culprit.is_some() { Verdict::Unknown } else { verdict };
        if let Some(pass) = pass {
            breakers.pool.settle(config, now, pass, pool_verdict);
        }
        if let Some(probe) = dependency {
            let is_culprit = culprit.is_some_and(|key| breakers.dependencies.is_for(probe, key));
            let probe_verdict = match verdict {
                Verdict::Failure if !is_culprit => Verdict::Unknown,
                verdict => verdict,
            };
            breakers.dependencies.settle(config, now, probe, probe_verdict);
            if is_culprit {
                return;
            }
        }
        match (culprit, verdict) {
            (Some(key), Verdict::Failure) => breakers.dependencies.observe(config, now, key, Verdict::Failure),
            (None, Verdict::Success) if !is_direct => breakers.dependencies.observe_success_of_all(config, now),
            _ => {}
        }
    }

    #[inline]
    fn settle_endpoint(&self, pool: &mut Pool, now: Timestamp, endpoint: Option<&[u8]>, verdict: Verdict) {
        let (Some(breakers), Some(config)) = (&mut pool.breakers, pool.policy.breaker()) else { return };
        if let Some(endpoint) = endpoint
            && config.per_endpoint
            && !self.is_dependency_failure
        {
            breakers.endpoints.observe(config, now, endpoint, verdict);
        }
    }
}
