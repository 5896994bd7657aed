//! One request from its headers to its access log.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::admission::Admission;
use crate::classify::Classified;
use crate::latency::Arrival;
use crate::policy::Policy;
use crate::queue::Ticket;
use crate::reason::Cause;
use crate::refusal;
use crate::request::{ApiFormat, RequestInfo};
use crate::time::Timestamp;
use crate::worker::{Collected, Decided, PoolRef, Worker};

mod effect;
mod events;
mod flight;
mod headers;
mod in_band;
mod load;
mod shadow;
mod summary;
#[cfg(test)]
mod tests;

use effect::{continue_with, degrade, divert, forged_destination, forged_headers, note_admission};
use flight::Flight;
pub use headers::{HeaderOp, HeaderOps};
use shadow::Shadow;
pub use summary::{Decision, Summary};

/// Header in which a response names the dependency that failed it.
pub const FAILED_DEPENDENCY_HEADER: &str = "x-headgate-failed-dependency";
/// The property in which Envoy's `header_to_metadata` filter keeps it, under the namespace `headgate`; its parts are separated by NUL.
pub const FAILED_DEPENDENCY_METADATA: &str = "metadata\0filter_metadata\0headgate\0x-headgate-failed-dependency";

/// What happened to a request.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The request's headers are there.
    RequestHeaders(&'a RequestInfo<'a>),
    /// The response's headers are there, from the upstream or from Envoy itself.
    ResponseHeaders {
        /// HTTP status.
        status: u16,
        /// Value of [`FAILED_DEPENDENCY_HEADER`].
        failed_dependency: Option<&'a [u8]>,
    },
    /// A piece of the response's body.
    ResponseBody {
        /// Its length, in bytes.
        len: usize,
        /// Whether it is the last.
        end_of_stream: bool,
    },
    /// The request is over.
    Log {
        /// Address of the upstream endpoint, when one was chosen.
        endpoint: Option<&'a [u8]>,
        /// How it ended.
        end: StreamEnd,
    },
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The response was sent to its end, or none came.
    Complete,
    /// The client went away first (response flag `DC`).
    ByClient,
    /// The upstream broke off (response flags `UF`, `UC`, `UR`, `LR`, `UT`, `UPE`).
    ByUpstream,
}

/// What the adapter does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Let the request or response go on as it is.
    Continue,
    /// Change its headers, then let it go on.
    ContinueWith(HeaderOps),
    /// Answer it.
    Reply(Reply),
    /// Change its headers, then hold it until [`Worker::next_released`] names it.
    Wait(HeaderOps),
}

/// An answer in place of the upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers besides those that Envoy adds.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Response code details for the access log.
    pub details: &'static str,
}

/// What was decided, for the access log.
#[derive(Debug, Clone)]
struct Record {
    policy: Arc<Policy>,
    classified: Classified,
    decision: Verdict,
    ttft: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
enum Verdict {
    Admitted,
    Refused { cause: Cause, retry_after: Duration },
    Diverted { cause: Cause },
    Waiting,
}

impl Verdict {
    /// Whether the pool serves the request, at once or later.
    const fn serves(self) -> bool {
        matches!(self, Self::Admitted | Self::Waiting)
    }
}

/// A request that waits.
#[derive(Debug, Clone, Copy)]
struct Wait {
    pool: PoolRef,
    ticket: Ticket,
    arrival: Arrival,
    /// In which an answer that refuses it is written.
    format: ApiFormat,
}

/// What a decision is about.
struct Asked<'a> {
    pool: PoolRef,
    /// Position of the class's state in its pool.
    state: usize,
    arrival: Arrival,
    policy: &'a Policy,
}

// A decision allocates nothing, so what is in flight is in no box.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Default)]
enum Phase {
    /// Nothing has happened.
    #[default]
    Fresh,
    /// The request is held in the queue.
    Waiting(Wait),
    /// The request is on its way to the pool and back; it holds a permit.
    InFlight(Flight),
    /// Nothing that still comes is counted: no policy governs the request, it was answered here or went elsewhere, or it is over.
    Done,
}

/// One request.
#[derive(Debug, Default)]
pub struct Stream {
    /// The adapter's name for it.
    id: u32,
    phase: Phase,
    record: Option<Record>,
    /// What a policy that only watches makes of it.
    shadow: Option<Box<Shadow>>,
}

impl Stream {
    /// A request of which nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request that the adapter calls `id`: [`Worker::next_released`] names it so when it has waited.
    #[must_use]
    pub fn identified(id: u32) -> Self {
        Self { id, ..Self::default() }
    }

    /// The adapter's name for it.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Makes it a request of which nothing is known yet, which the adapter calls `id`, in the place where it is.
    #[inline]
    pub fn restart(&mut self, id: u32) {
        self.id = id;
        self.clear();
    }

    /// Forgets the request and keeps its name.
    #[inline]
    pub fn clear(&mut self) {
        // Each by itself: a new value would be made elsewhere and moved here, by a call.
        self.phase = Phase::Fresh;
        self.record = None;
        self.shadow = None;
    }

    /// Whether the request is held: it waits for [`Stream::release`].
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Waiting(_))
    }

    /// Asks for the answer to a request that waits, and says what to do with it; [`Outcome::Wait`] when there is none yet. A request that
    /// does not wait changes nothing.
    pub fn release(&mut self, worker: &mut Worker, now: Timestamp) -> Outcome {
        let Phase::Waiting(wait) = self.phase else { return Outcome::Continue };
        let (decision, outcome) = match worker.collect(wait.pool, wait.ticket, now) {
            Collected::Nothing => return Outcome::Wait(HeaderOps::default()),
            Collected::Orphaned => {
                self.phase = Phase::Done;
                return Outcome::Continue;
            }
            Collected::Decided { state, admission } => {
                self.phase = Phase::Done;
                let Some(policy) = self.record.as_ref().map(|record| Arc::clone(&record.policy)) else { return Outcome::Continue };
                let asked = Asked { pool: wait.pool, state, arrival: wait.arrival, policy: &policy };
                self.carry_out(now, &asked, admission, HeaderOps::default(), || wait.format)
            }
        };
        if !matches!(decision, Verdict::Admitted) {
            worker.answer_waiting(wait.pool, now);
            self.end_shadow(worker, now);
        }
        if let Some(record) = &mut self.record {
            record.decision = decision;
        }
        outcome
    }

    /// Whether there is more to see of the request: it waits, or it was admitted and is not over.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::InFlight(_) | Phase::Waiting(_)) || self.shadow.as_ref().is_some_and(|shadow| shadow.is_open())
    }

    /// Whether the first byte of its response's body would say something.
    #[must_use]
    #[inline]
    pub fn awaits_first_byte(&self) -> bool {
        matches!(&self.phase, Phase::InFlight(flight) if flight.awaits_first_byte())
            || self.shadow.as_ref().is_some_and(|shadow| shadow.awaits_first_byte())
    }

    /// Whether the status of its response is known, or of no interest.
    #[must_use]
    #[inline]
    pub fn has_status(&self) -> bool {
        !matches!(&self.phase, Phase::InFlight(flight) if !flight.has_status())
            && self.shadow.as_ref().is_none_or(|shadow| shadow.has_status())
    }

    /// The decision for the access log; `None` when no policy governs the request.
    #[must_use]
    pub fn summary(&self) -> Option<Summary<'_>> {
        self.record.as_ref().map(Record::summary)
    }

    /// What a policy that only watches would have done; `None` when none does.
    #[must_use]
    pub fn shadow_summary(&self) -> Option<Summary<'_>> {
        self.shadow.as_ref().map(|shadow| shadow.record.summary())
    }

    /// Writes the decisions about the request into `line`, in place of what is there; false: nothing is to be said of it.
    pub fn write_line(&self, line: &mut String) -> bool {
        line.clear();
        if let Some(summary) = self.summary() {
            summary.write_to(line);
        }
        if let Some(would) = self.shadow_summary() {
            would.write_would_to(line);
        }
        !line.is_empty()
    }

    fn end_shadow(&mut self, worker: &mut Worker, now: Timestamp) {
        if let Some(shadow) = &mut self.shadow {
            shadow.end_unserved(worker, now);
        }
    }

    #[inline]
    fn decide(&mut self, worker: &mut Worker, now: Timestamp, request: &RequestInfo<'_>) -> Outcome {
        self.phase = Phase::Done;
        let mut headers = forged_headers(request);
        let Some(decided) = worker.decide(now, self.id, request) else { return continue_with(headers) };
        if decided.policy.stage().is_shadow() {
            self.shadow = Some(Box::new(Shadow::of(decided, now)));
            return continue_with(headers);
        }
        let has_candidate = decided.has_candidate;
        let Decided { pool, policy, state, classified, admission, place, has_candidate: _ } = decided;
        if policy.orca() {
            headers.extend(in_band::load_request(request));
        }
        if policy.overload().is_some_and(|config| config.picks_endpoint) {
            headers.extend(forged_destination(request));
        }
        let asked = Asked { pool, state, arrival: Arrival { at: now, place }, policy: &policy };
        let (decision, outcome) = self.carry_out(now, &asked, admission, headers, || ApiFormat::of_path(request.path));
        self.record = Some(Record { policy, classified, decision, ttft: None });
        if has_candidate {
            self.shadow = Shadow::beside(worker, now, self.id, pool, request, decision.serves()).map(Box::new);
        }
        outcome
    }

    /// Puts a decision into effect. `format` is that of an answer which refuses the request.
    #[inline]
    fn carry_out(
        &mut self,
        now: Timestamp,
        asked: &Asked<'_>,
        admission: Admission,
        mut headers: HeaderOps,
        format: impl FnOnce() -> ApiFormat,
    ) -> (Verdict, Outcome) {
        let Asked { pool, state, arrival, policy } = *asked;
        match admission {
            Admission::Admitted(passes, dues) => {
                note_admission(&mut headers, passes, &dues);
                self.phase = Phase::InFlight(Flight::new(pool, state, arrival, now, passes, dues));
                (Verdict::Admitted, continue_with(headers))
            }
            Admission::Waiting(ticket) => {
                self.phase = Phase::Waiting(Wait { pool, ticket, arrival, format: format() });
                (Verdict::Waiting, Outcome::Wait(headers))
            }
            Admission::Refused { cause, retry_after } => {
                let reply = refusal::refuse(policy, &cause, retry_after, format());
                (Verdict::Refused { cause, retry_after }, Outcome::Reply(reply))
            }
            Admission::Diverted { cause } => (Verdict::Diverted { cause }, divert(policy, &cause, headers)),
            Admission::Degraded { cause, rung } => (Verdict::Diverted { cause }, degrade(policy, rung, headers)),
        }
    }
}
