//! What a policy that only watches would have done with a request, followed to the request's end as if it had done it.
//!
//! It holds permits, budgets and places in its own queue of its own pool, for requests that it would have served and that are in
//! fact served. So its books fill and empty as they would, as far as that can be known: a request that it would have refused goes on and
//! loads the pool all the same, and how long one would have taken that the policy in force refuses nobody knows.

use super::flight::{Body, Flight};
use super::{Event, Record, StreamEnd, Verdict};
use crate::admission::Admission;
use crate::latency::Arrival;
use crate::queue::Ticket;
use crate::request::RequestInfo;
use crate::time::Timestamp;
use crate::worker::{Collected, Decided, PoolRef, Worker};

/// A decision that is not acted on.
#[derive(Debug)]
pub(super) struct Shadow {
    pool: PoolRef,
    arrival: Arrival,
    phase: Phase,
    pub(super) record: Record,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a shadow is in a box as a whole; another one would be a second allocation for each request")]
enum Phase {
    /// It would wait.
    Waiting(Ticket),
    /// It would be on its way.
    InFlight(Flight),
    /// Nothing that still comes matters to it.
    Over,
}

impl Shadow {
    /// Follows `decided`, the decision of a policy that only watches.
    #[inline(never)]
    pub(super) fn of(decided: Decided, now: Timestamp) -> Self {
        let Decided { pool, policy, state, classified, admission, place, has_candidate: _ } = decided;
        let arrival = Arrival { at: now, place };
        let (phase, decision) = begin(pool, state, arrival, now, admission);
        Self { pool, arrival, phase, record: Record { policy, classified, decision, ttft: None } }
    }

    /// The decision of the candidate that watches beside `pool`, if there is one. `serves`: whether the policy in force serves the request.
    #[inline(never)]
    pub(super) fn beside(
        worker: &mut Worker,
        now: Timestamp,
        stream: u32,
        pool: PoolRef,
        request: &RequestInfo<'_>,
        serves: bool,
    ) -> Option<Self> {
        let decided = worker.decide_beside(now, stream, pool, request)?;
        let (candidate, state) = (decided.pool, decided.state);
        let mut shadow = Self::of(decided, now);
        worker.count_disagreement(candidate, state, shadow.record.decision.serves(), serves);
        if !serves {
            shadow.end_unserved(worker, now);
        }
        Some(shadow)
    }

    /// The policy in force does not serve the request after all, so nothing more is learned of it.
    pub(super) fn end_unserved(&mut self, worker: &mut Worker, now: Timestamp) {
        self.observe(worker, now, Event::Log { endpoint: None, end: StreamEnd::ByClient });
    }

    /// Takes what happened to the request.
    #[inline(never)]
    pub(super) fn observe(&mut self, worker: &mut Worker, now: Timestamp, event: Event<'_>) {
        self.collect(worker, now);
        let is_last = matches!(event, Event::Log { .. });
        let ttft = match (&mut self.phase, event) {
            (Phase::InFlight(flight), Event::ResponseHeaders { status, failed_dependency }) => {
                flight.on_headers(worker, now, status, failed_dependency)
            }
            (Phase::InFlight(flight), Event::ResponseBody { len, end_of_stream }) => {
                flight.count_pieces(u32::from(len > 0), len as u64);
                let body = if end_of_stream { Body::Ends } else { Body::GoesOn };
                if len > 0 || end_of_stream { flight.on_first_byte(worker, now, body) } else { None }
            }
            (Phase::InFlight(flight), Event::Log { endpoint, end }) => flight.on_end(worker, now, endpoint, end),
            (Phase::Waiting(ticket), Event::Log { .. }) => {
                worker.abandon(self.pool, *ticket, now);
                None
            }
            (Phase::Waiting(_) | Phase::Over, _) | (Phase::InFlight(_), Event::RequestHeaders(_)) => None,
        };
        self.record.ttft = self.record.ttft.or(ttft);
        if is_last {
            self.phase = Phase::Over;
        }
    }

    #[inline(never)]
    pub(super) fn count_pieces(&mut self, pieces: u32, bytes: u64) {
        if let Phase::InFlight(flight) = &mut self.phase {
            flight.count_pieces(pieces, bytes);
        }
    }

    pub(super) const fn awaits_first_byte(&self) -> bool {
        match &self.phase {
            Phase::Waiting(_) => true,
            Phase::InFlight(flight) => flight.awaits_first_byte(),
            Phase::Over => false,
        }
    }

    pub(super) const fn has_status(&self) -> bool {
        !matches!(&self.phase, Phase::InFlight(flight) if !flight.has_status())
    }

    pub(super) const fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Over)
    }

    /// Takes the answer of its own queue. Nobody waits for it, so it is looked at when something happens to the request.
    fn collect(&mut self, worker: &mut Worker, now: Timestamp) {
        let Phase::Waiting(ticket) = self.phase else { return };
        match worker.collect(self.pool, ticket, now) {
            Collected::Nothing => {}
            Collected::Orphaned => self.phase = Phase::Over,
            Collected::Decided { state, admission } => {
                let (phase, decision) = begin(self.pool, state, self.arrival, now, admission);
                (self.phase, self.record.decision) = (phase, decision);
            }
        }
    }
}

fn begin(pool: PoolRef, state: usize, arrival: Arrival, now: Timestamp, admission: Admission) -> (Phase, Verdict) {
    match admission {
        Admission::Admitted(passes, dues) => {
            let flight = Flight::new(pool, state, arrival, now, passes, dues);
            (Phase::InFlight(flight), Verdict::Admitted)
        }
        Admission::Waiting(ticket) => (Phase::Waiting(ticket), Verdict::Waiting),
        Admission::Refused { cause, retry_after } => (Phase::Over, Verdict::Refused { cause, retry_after }),
        Admission::Diverted { cause } | Admission::Degraded { cause, rung: _ } => (Phase::Over, Verdict::Diverted { cause }),
    }
}

#[cfg(test)]
mod tests;
