//! What happens to a request after its decision.

use core::time::Duration;

use super::effect::without_dependency_header;
use super::flight::Body;
use super::{Event, Outcome, Phase, Stream, StreamEnd};
use crate::time::Timestamp;
use crate::worker::Worker;

impl Stream {
    /// Takes one event and says what to do. Once the request is over, every later event changes nothing.
    #[inline(always)]
    pub fn handle(&mut self, worker: &mut Worker, now: Timestamp, event: Event<'_>) -> Outcome {
        match event {
            Event::RequestHeaders(request) if matches!(self.phase, Phase::Fresh) => return self.decide(worker, now, request),
            Event::ResponseHeaders { failed_dependency, .. } => {
                self.observe(worker, now, event);
                return without_dependency_header(failed_dependency);
            }
            Event::RequestHeaders(_) | Event::ResponseBody { .. } | Event::Log { .. } => self.observe(worker, now, event),
        }
        Outcome::Continue
    }

    /// Takes one event after the decision where nothing can be done any more: [`Stream::handle`] without an outcome to be dropped.
    #[inline(always)]
    pub fn observe(&mut self, worker: &mut Worker, now: Timestamp, event: Event<'_>) {
        if let Some(shadow) = &mut self.shadow {
            shadow.observe(worker, now, event);
        }
        // The adapter knows at compile time which event it is.
        match event {
            Event::RequestHeaders(_) => {}
            Event::ResponseHeaders { status, failed_dependency } => self.on_status(worker, now, status, failed_dependency),
            Event::ResponseBody { len, end_of_stream } => self.on_piece(worker, now, len, end_of_stream),
            Event::Log { endpoint, end } => self.on_log(worker, now, endpoint, end),
        }
    }

    /// Takes a whole response that is presumed to be good and came in one piece, with the end of the request: the same as
    /// [`Event::ResponseBody`], [`Event::ResponseHeaders`] and [`Event::Log`], in the few steps that an ordinary request needs. False, and
    /// nothing is done, if this is none.
    #[inline]
    pub fn end_whole(&mut self, worker: &mut Worker, now: Timestamp) -> bool {
        let Phase::InFlight(flight) = &self.phase else { return false };
        let ttft = if self.shadow.is_none() { flight.on_whole(worker, now) } else { None };
        if ttft.is_some() {
            self.note_ttft(ttft);
            self.phase = Phase::Done;
        }
        ttft.is_some()
    }

    #[inline]
    fn on_status(&mut self, worker: &mut Worker, now: Timestamp, status: u16, failed_dependency: Option<&[u8]>) {
        if let Phase::InFlight(flight) = &mut self.phase {
            let ttft = flight.on_headers(worker, now, status, failed_dependency);
            self.note_ttft(ttft);
        }
    }

    #[inline]
    fn on_piece(&mut self, worker: &mut Worker, now: Timestamp, len: usize, end_of_stream: bool) {
        if let Phase::InFlight(flight) = &mut self.phase {
            let body = if end_of_stream { Body::Ends } else { Body::GoesOn };
            flight.count_pieces(u32::from(len > 0), len as u64);
            let ttft = if len > 0 || end_of_stream { flight.on_first_byte(worker, now, body) } else { None };
            self.note_ttft(ttft);
        }
    }

    #[inline]
    fn on_log(&mut self, worker: &mut Worker, now: Timestamp, endpoint: Option<&[u8]>, end: StreamEnd) {
        match &mut self.phase {
            Phase::InFlight(flight) => {
                let ttft = flight.on_end(worker, now, endpoint, end);
                self.note_ttft(ttft);
            }
            Phase::Waiting(wait) => worker.abandon(wait.pool, wait.ticket, now),
            Phase::Fresh | Phase::Done => {}
        }
        self.phase = Phase::Done;
    }

    /// Counts `pieces` more of the response's body, with `bytes` in all; the first came with [`Event::ResponseBody`]. From them and the end
    /// of the response follow the length of the output and the time between tokens, under overload control.
    #[inline]
    pub fn count_pieces(&mut self, pieces: u32, bytes: u64) {
        if let Phase::InFlight(flight) = &mut self.phase {
            flight.count_pieces(pieces, bytes);
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.count_pieces(pieces, bytes);
        }
    }

    #[inline]
    fn note_ttft(&mut self, ttft: Option<Duration>) {
        if let Some(record) = &mut self.record {
            record.ttft = record.ttft.or(ttft);
        }
    }
}
