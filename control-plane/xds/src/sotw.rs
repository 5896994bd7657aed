//! The state-of-the-world variant: every response holds all that the client wants of a type.
//!
//! Removals here are by absence. What is gone stays in the responses, though, as long as something that the client has may refer to it.

mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_protos::discovery::DiscoveryRequest;
use headgate_protos::envoy_core::Node;

use self::state::{Removals, TypeState};
use crate::order;
use crate::resource::ResourceType;
use crate::snapshot::Snapshot;
use crate::stream::{Scope, Session, Step, StreamError, StreamEvent, listed};
use crate::wire::SotwResponse;

/// Server side of one state-of-the-world stream. Memory: per type what the client subscribed to and was sent.
#[derive(Clone, Debug)]
pub struct SotwStream {
    session: Session,
    types: BTreeMap<ResourceType, TypeState>,
}

// === impl SotwStream ===

impl SotwStream {
    /// A stream on which nothing has been said.
    pub fn new(scope: Scope) -> Self {
        Self { session: Session::new(scope), types: BTreeMap::new() }
    }

    /// Who the client is, once a request has said it.
    pub fn node(&self) -> Option<&Node> {
        self.session.node()
    }

    /// Takes a request. `snapshot` is what the client may be told now. Errs when the stream must end.
    pub fn on_request(&mut self, request: &DiscoveryRequest, snapshot: &Snapshot) -> Result<Step<SotwResponse>, StreamError> {
        self.session.note_node(request.node.as_ref());
        let kind = match self.session.kind(&request.type_url)? {
            Ok(kind) => kind,
            Err(unknown) => return Ok(Step::only(unknown)),
        };
        let wanted = listed(kind, request.resource_names.iter())?;
        let mut events = Vec::new();
        match self.types.get_mut(&kind) {
            // An answer to an older response was written before the client saw the newest, which it has yet to answer.
            Some(state) if !request.response_nonce.is_empty() && !state.is_newest(&request.response_nonce) => {
                return Ok(Step::only(StreamEvent::StaleNonce { kind }));
            }
            Some(state) if !request.response_nonce.is_empty() => {
                events.extend(state.on_answer(kind, request));
                state.resubscribe(kind, wanted)?;
            }
            Some(state) => *state = state.begun_anew(kind, wanted)?,
            None => drop(self.types.insert(kind, TypeState::open(kind, wanted)?)),
        }
        Ok(Step { responses: self.on_snapshot(snapshot), events })
    }

    /// Takes the newest snapshot and tells the client what it may be told now. A type whose last response awaits its ACK is told
    /// afterwards, of whatever is newest then.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<SotwResponse> {
        ResourceType::ALL.into_iter().filter_map(|kind| self.respond(kind, snapshot)).collect()
    }

    /// Time until [`Self::on_heartbeat`] is due; `None` while nothing that the client asks for expires.
    pub fn heartbeat_after(&self, snapshot: &Snapshot) -> Option<Duration> {
        self.session.heartbeat_after(self.types.keys(), snapshot)
    }

    /// Renews what expires, with the resources themselves: Envoy renews nothing for a heartbeat in this variant (1.36 to 1.40,
    /// `GrpcMuxImpl::onDiscoveryResponse` passes them over), and for a type whose absence deletes would delete what it leaves out.
    pub fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<SotwResponse> {
        if !self.session.knows_ttl() {
            return Vec::new();
        }
        for (kind, state) in &mut self.types {
            state.renew(snapshot.set(*kind));
        }
        self.on_snapshot(snapshot)
    }

    fn respond(&mut self, kind: ResourceType, snapshot: &Snapshot) -> Option<SotwResponse> {
        let state = self.types.get_mut(&kind)?;
        let set = snapshot.set(kind);
        if state.has_nothing_to_say(set) {
            return None;
        }
        let may_add = order::sent_before(kind).iter().all(|earlier| !self.has_additions(*earlier, snapshot));
        let may_remove = order::referring_to(kind).iter().all(|by| self.is_settled(*by, snapshot));
        if !may_add {
            return None;
        }
        let removals = if may_remove { Removals::Told } else { Removals::HeldBack };
        let state = self.types.get_mut(&kind)?;
        let Some(content) = state.newer_content(kind, set, removals) else {
            state.note_quiet(set, removals);
            return None;
        };
        let followers: Vec<ResourceType> = state.changed(&content).flat_map(order::told_again_after).map(|(kind, _)| *kind).collect();
        let response = state.send(kind, content, &mut self.session);
        for kind in followers {
            if let Some(state) = self.types.get_mut(&kind) {
                state.tell_again();
            }
        }
        Some(response)
    }

    fn has_additions(&self, kind: ResourceType, snapshot: &Snapshot) -> bool {
        self.types.get(&kind).is_some_and(|state| state.newer_content(kind, snapshot.set(kind), Removals::HeldBack).is_some())
    }

    /// Whether the client has the newest of a type and refused none of it. True for a type that it does not ask for.
    fn is_settled(&self, kind: ResourceType, snapshot: &Snapshot) -> bool {
        self.types.get(&kind).is_none_or(|state| state.is_settled(kind, snapshot.set(kind)))
    }
}
