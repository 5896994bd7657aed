//! The incremental variant: the client is told of each resource what changed.

mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_protos::discovery::DeltaDiscoveryRequest;
use headgate_protos::envoy_core::Node;

use self::state::TypeState;
use crate::order;
use crate::resource::ResourceType;
use crate::snapshot::Snapshot;
use crate::stream::{Scope, Session, Step, StreamError};
use crate::wire::DeltaResponse;

/// Server side of one delta stream. Memory: per type at most what the client subscribed to plus what it was sent.
#[derive(Clone, Debug)]
pub struct DeltaStream {
    session: Session,
    types: BTreeMap<ResourceType, TypeState>,
}

// === impl DeltaStream ===

impl DeltaStream {
    /// A stream on which nothing has been said.
    pub fn new(scope: Scope) -> Self {
        Self { session: Session::new(scope), types: BTreeMap::new() }
    }

    /// Who the client is, once a request has said it.
    pub fn node(&self) -> Option<&Node> {
        self.session.node()
    }

    /// Takes a request. `snapshot` is what the client may be told now. Errs when the stream must end.
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest, snapshot: &Snapshot) -> Result<Step<DeltaResponse>, StreamError> {
        self.session.note_node(request.node.as_ref());
        let kind = match self.session.kind(&request.type_url)? {
            Ok(kind) => kind,
            Err(unknown) => return Ok(Step::only(unknown)),
        };
        let mut events = Vec::new();
        match self.types.get_mut(&kind) {
            Some(state) => {
                // The answer comes before the changes: a client that answers and unsubscribes at once had the resource.
                events.extend(state.on_answer(kind, request));
                state.on_changes(kind, request)?;
            }
            None => {
                let mut state = TypeState::open(kind, request)?;
                if self.session.knows_ttl() {
                    // Its time has run on while it was away: what it has may be gone before it hears that it should stay.
                    state.tell_expiring_again(snapshot.set(kind));
                }
                self.types.insert(kind, state);
            }
        }
        Ok(Step { responses: self.on_snapshot(snapshot), events })
    }

    /// Takes the newest snapshot and tells the client what it may be told now. A type whose last response awaits its ACK is told
    /// afterwards, of whatever is newest then.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<DeltaResponse> {
        for (kind, state) in &mut self.types {
            state.forget_refusals(snapshot.set(*kind));
        }
        ResourceType::ALL.into_iter().filter_map(|kind| self.respond(kind, snapshot)).collect()
    }

    /// Time until [`Self::on_heartbeat`] is due; `None` while nothing that the client asks for expires.
    pub fn heartbeat_after(&self, snapshot: &Snapshot) -> Option<Duration> {
        self.session.heartbeat_after(self.types.keys(), snapshot)
    }

    /// Renews what expires. A type whose last response awaits its ACK is renewed after it, with the resources themselves: the client may
    /// have dropped them meanwhile.
    pub fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<DeltaResponse> {
        if !self.session.knows_ttl() {
            return Vec::new();
        }
        let mut responses = Vec::new();
        for (kind, state) in &mut self.types {
            responses.extend(state.heartbeat(*kind, snapshot.set(*kind), &mut self.session));
        }
        responses
    }

    fn respond(&mut self, kind: ResourceType, snapshot: &Snapshot) -> Option<DeltaResponse> {
        let state = self.types.get_mut(&kind)?;
        if state.has_nothing_to_say(snapshot.set(kind)) {
            return None;
        }
        let may_add = order::sent_before(kind).iter().all(|earlier| !self.has_additions(*earlier, snapshot));
        let may_remove = order::referring_to(kind).iter().all(|by| self.is_settled(*by, snapshot));
        let state = self.types.get_mut(&kind)?;
        let set = snapshot.set(kind);
        let mut pending = state.pending(set);
        if pending.is_empty() {
            state.note_quiet(set);
        }
        if !may_add {
            pending.additions.clear();
        }
        if !may_remove {
            pending.removals.clear();
        }
        if pending.is_empty() && !(state.owes_first() && may_add) {
            return None;
        }
        let (response, followers) = state.send(kind, set, &pending, &mut self.session);
        for (kind, name) in followers {
            if let Some(state) = self.types.get_mut(&kind) {
                state.tell_again(name);
            }
        }
        Some(response)
    }

    fn has_additions(&self, kind: ResourceType, snapshot: &Snapshot) -> bool {
        self.types.get(&kind).is_some_and(|state| !state.pending(snapshot.set(kind)).additions.is_empty())
    }

    /// Whether the client has the newest of a type and refused none of it. True for a type that it does not ask for.
    fn is_settled(&self, kind: ResourceType, snapshot: &Snapshot) -> bool {
        self.types.get(&kind).is_none_or(|state| state.is_settled(snapshot.set(kind)))
    }
}
