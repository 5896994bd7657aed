//! What a response itself says of the engine.

use core::ops::Deref;

use super::{HeaderOp, Phase, Stream};
use crate::in_band::{EngineLoad, FORMAT_HEADER, LoadHeader, LoadSeen, TAIL_BYTES};
use crate::request::RequestInfo;
use crate::time::Timestamp;
use crate::worker::Worker;

impl Stream {
    /// Whether [`Stream::note_tail`] is to be called with each piece of the response's body.
    #[must_use]
    #[inline]
    pub fn looks_at_pieces(&self) -> bool {
        matches!(&self.phase, Phase::InFlight(flight) if flight.looks_at_pieces())
    }

    /// Takes the end of a piece of the response's body: its last [`crate::in_band::TAIL_BYTES`], which may hold `usage`.
    pub fn note_tail(&mut self, tail: &[u8]) {
        if let Phase::InFlight(flight) = &mut self.phase {
            flight.note_tail(tail);
        }
    }

    /// Whether the load that the response's headers may tell would say something now: to be asked after the first byte of the body, and
    /// before [`super::Event::Log`].
    #[must_use]
    #[inline]
    pub fn wants_load(&self, worker: &mut Worker, now: Timestamp, seen: LoadSeen) -> bool {
        matches!(&self.phase, Phase::InFlight(flight) if flight.load_book(worker, now, seen).is_some())
    }

    /// Looks at the end of a piece of the response's body, which `read` gives, at most so many bytes of it, if anybody asks for it.
    #[inline]
    pub fn look_at_piece<T: Deref<Target = [u8]>>(&mut self, read: impl FnOnce(usize) -> T) {
        if self.looks_at_pieces() {
            self.note_tail(&read(TAIL_BYTES));
        }
    }

    /// Takes the load that the engine tells in the response's headers, if it is asked for; `read` finds endpoint, header and value.
    #[inline]
    pub fn learn_load<T: Deref<Target = [u8]>>(
        &self,
        worker: &mut Worker,
        now: Timestamp,
        seen: LoadSeen,
        read: impl FnOnce(LoadSeen) -> Option<(T, LoadHeader, T)>,
    ) {
        if self.wants_load(worker, now, seen)
            && let Some((endpoint, header, value)) = read(seen)
        {
            self.note_load(worker, now, seen, &endpoint, (header, &value));
        }
    }

    /// Takes the value of a header in which the engine at `endpoint` tells its load.
    pub fn note_load(&self, worker: &mut Worker, now: Timestamp, seen: LoadSeen, endpoint: &[u8], (header, value): (LoadHeader, &[u8])) {
        let Phase::InFlight(flight) = &self.phase else { return };
        if let Some((loads, made_after)) = flight.load_book(worker, now, seen) {
            loads.note(now, endpoint, made_after, EngineLoad::read(header, value));
        }
    }
}

/// Asks the engine for its load, unless the client does so itself, in a form of its own choice.
pub(super) fn load_request(request: &RequestInfo<'_>) -> Option<HeaderOp> {
    let is_asked = request.headers.first(FORMAT_HEADER.as_bytes()).is_some();
    (!is_asked).then(|| HeaderOp::Set { name: FORMAT_HEADER, value: "text".into() })
}
