//! The requests that live: a slab, whose indices are the request ids.

use headgate_core::time::Timestamp;

use crate::controller::{Arrival, RequestId};
use crate::engine::Slot;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    /// On its way to a verdict.
    Deciding,
    /// It waits for a release.
    Waiting,
    /// With an engine.
    Engine {
        engine: u16,
        slot: Slot,
    },
    /// Its client waits before it tries again.
    Backoff,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) arrival: Arrival,
    pub(super) place: Place,
    /// Source of the client; the trace comes after the sources.
    pub(super) source: u32,
    pub(super) sent_at: Timestamp,
    pub(super) admitted_at: Option<Timestamp>,
    pub(super) first_token_at: Option<Timestamp>,
}

/// The requests that live.
#[derive(Debug)]
pub(crate) struct Requests {
    slab: Vec<Request>,
    free: Vec<u32>,
}

// === impl Requests ===

impl Requests {
    /// No request at all.
    pub(crate) const NONE: &Self = &Self { slab: Vec::new(), free: Vec::new() };

    pub(super) fn new() -> Self {
        Self { slab: Vec::new(), free: Vec::new() }
    }

    /// Takes a request in; its id is set.
    pub(super) fn insert(&mut self, mut request: Request) -> RequestId {
        let id = RequestId(self.free.last().copied().unwrap_or(self.slab.len() as u32));
        request.arrival.id = id;
        match self.free.pop() {
            Some(_) => self.slab[id.index()] = request,
            None => self.slab.push(request),
        }
        id
    }

    pub(super) fn get(&self, id: RequestId) -> &Request {
        &self.slab[id.index()]
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> &mut Request {
        &mut self.slab[id.index()]
    }

    pub(super) fn remove(&mut self, id: RequestId) {
        self.slab[id.index()].place = Place::Free;
        self.free.push(id.0);
    }

    /// Engine and slot of an admitted request.
    pub(crate) fn place(&self, id: RequestId) -> Option<(u16, Slot)> {
        match self.slab.get(id.index())?.place {
            Place::Engine { engine, slot } => Some((engine, slot)),
            _ => None,
        }
    }

    /// Ids of the requests for which `wanted` holds, in order.
    pub(super) fn find(&self, wanted: impl Fn(&Request) -> bool) -> Vec<RequestId> {
        let ids = (0..self.slab.len()).map(|index| RequestId(index as u32));
        ids.filter(|id| self.get(*id).place != Place::Free && wanted(self.get(*id))).collect()
    }

    /// Requests that live.
    pub(super) fn len(&self) -> usize {
        self.slab.len() - self.free.len()
    }
}
