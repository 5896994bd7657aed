//! The state-of-the-world variant: every response holds all that the client wants of a type.
//!
//! Removals here are by absence, so they travel with the additions of their type; only delta streams can hold them back until
//! nothing refers to what is removed.

use std::collections::{BTreeMap, BTreeSet};

use headgate_protos::discovery::{DiscoveryRequest, DiscoveryResponse};
use headgate_protos::envoy_core::Node;

use crate::order;
use crate::resource::{Resource, ResourceName, ResourceType, Version};
use crate::snapshot::{ResourceSet, Snapshot};
use crate::stream::{Change, Listed, Scope, Session, Step, StreamError, StreamEvent, listed};
use crate::subscription::{Interest, Subscription};

/// Server side of one state-of-the-world stream. Memory: per type what the client subscribed to and was sent.
#[derive(Clone, Debug)]
pub struct SotwStream {
    session: Session,
    types: BTreeMap<ResourceType, TypeState>,
}

/// Names and versions of everything in a response.
type Content = BTreeMap<ResourceName, Version>;

/// One type on one stream.
#[derive(Clone, Debug, Default)]
struct TypeState {
    subscription: Subscription,
    /// What the client accepted last, of what it still wants.
    accepted: Option<Content>,
    /// Content that the client refused last.
    refused: Option<Content>,
    /// Nonce of the newest response; the only one that an answer may carry.
    nonce: Option<String>,
    /// What that response holds while it awaits its ACK.
    in_flight: Option<Content>,
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
    pub fn on_request(&mut self, request: &DiscoveryRequest, snapshot: &Snapshot) -> Result<Step<DiscoveryResponse>, StreamError> {
        self.session.note_node(request.node.as_ref());
        let kind = match self.session.kind(&request.type_url)? {
            Ok(kind) => kind,
            Err(unknown) => return Ok(Step::only(unknown)),
        };
        let wanted = listed(kind, request.resource_names.iter())?;
        let mut events = Vec::new();
        match self.types.get_mut(&kind) {
            // An answer to an older response was written before the client saw the newest, which it has yet to answer.
            Some(state) if !request.response_nonce.is_empty() && state.nonce.as_ref() != Some(&request.response_nonce) => {
                return Ok(Step::only(StreamEvent::StaleNonce { kind }));
            }
            Some(state) if !request.response_nonce.is_empty() => {
                events.extend(state.on_answer(kind, request));
                state.resubscribe(kind, wanted)?;
            }
            _ => {
                let state = TypeState::open(kind, wanted)?;
                self.types.insert(kind, state);
            }
        }
        Ok(Step { responses: self.on_snapshot(snapshot), events })
    }

    /// Takes the newest snapshot and tells the client what it may be told now. A type whose last response awaits its ACK is told
    /// afterwards, of whatever is newest then.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<DiscoveryResponse> {
        ResourceType::ALL.into_iter().filter_map(|kind| self.respond(kind, snapshot)).collect()
    }

    fn respond(&mut self, kind: ResourceType, snapshot: &Snapshot) -> Option<DiscoveryResponse> {
        let held_back = order::sent_before(kind)
            .iter()
            .any(|earlier| self.types.get(earlier).is_some_and(|state| state.newer_content(*earlier, snapshot.set(*earlier)).is_some()));
        let state = self.types.get_mut(&kind)?;
        let set = snapshot.set(kind);
        if held_back || state.in_flight.is_some() {
            return None;
        }
        let content = state.newer_content(kind, set)?;
        Some(state.send(kind, set, content, self.session.next_nonce()))
    }
}

// === impl TypeState ===

impl TypeState {
    /// The first request of a type on a stream, or one that starts the type anew.
    ///
    /// The version that a reconnecting client names is that of the last response that it accepted. It may have dropped a part of that
    /// since and want it again, so nothing follows from it, and the client is answered.
    fn open(kind: ResourceType, wanted: Listed) -> Result<Self, StreamError> {
        let mut state = Self::default();
        let unnamed = wanted.names.is_empty() && wanted.interest == Interest::Named;
        if unnamed && kind.has_legacy_wildcard() {
            state.subscription = Subscription::legacy_wildcard();
        } else {
            state.resubscribe(kind, wanted)?;
        }
        Ok(state)
    }

    fn on_answer(&mut self, kind: ResourceType, request: &DiscoveryRequest) -> Option<StreamEvent> {
        let content = self.in_flight.take()?;
        let changes = content.iter().map(|(name, version)| Change { name: name.clone(), version: Some(*version) }).collect();
        match &request.error_detail {
            Some(status) => {
                self.refused = Some(content);
                Some(StreamEvent::rejected(kind, changes, status))
            }
            None => {
                self.refused = None;
                self.accepted = Some(content);
                Some(StreamEvent::Accepted { kind, changes })
            }
        }
    }

    /// The list of names in a request is the whole subscription.
    fn resubscribe(&mut self, kind: ResourceType, wanted: Listed) -> Result<(), StreamError> {
        let Listed { interest, names } = wanted;
        let still_legacy = self.subscription.interest() == Interest::LegacyWildcard && interest == Interest::Named && names.is_empty();
        let subscription = if still_legacy {
            Subscription::legacy_wildcard()
        } else {
            let names: BTreeSet<ResourceName> = names.into_iter().collect();
            Subscription::to(interest, names).map_err(|problem| StreamError::TooManyNames { kind, problem })?
        };
        if subscription != self.subscription {
            // A client drops what it unsubscribes from, and asks anew for what it names anew, refused or not.
            if let Some(accepted) = &mut self.accepted {
                accepted.retain(|name, _| subscription.wants(name));
            }
            self.refused = None;
            self.subscription = subscription;
        }
        Ok(())
    }

    /// Everything that the client wants and that exists.
    fn content(&self, set: &ResourceSet) -> Content {
        set.iter()
            .filter(|resource| self.subscription.wants(resource.name()))
            .map(|resource| (resource.name().clone(), resource.version()))
            .collect()
    }

    /// What a response must hold now, unless the client has it, is about to get it, or refused just that.
    fn newer_content(&self, kind: ResourceType, set: &ResourceSet) -> Option<Content> {
        let content = self.content(set);
        if self.refused.as_ref() == Some(&content) {
            return None;
        }
        let told = self.in_flight.as_ref().or(self.accepted.as_ref());
        let is_news = if kind.absence_deletes() {
            told != Some(&content)
        } else {
            content.iter().any(|(name, version)| told.and_then(|told| told.get(name)) != Some(version))
        };
        is_news.then_some(content)
    }

    fn send(&mut self, kind: ResourceType, set: &ResourceSet, content: Content, nonce: String) -> DiscoveryResponse {
        let version_info = version_of(&content).to_string();
        let resources = content.keys().filter_map(|name| set.get(name)).map(Resource::body).cloned().collect();
        self.nonce = Some(nonce.clone());
        self.in_flight = Some(content);
        DiscoveryResponse { version_info, resources, type_url: kind.type_url().into(), nonce }
    }
}

fn version_of(content: &Content) -> Version {
    Version::of_set(content.iter().map(|(name, version)| (name, *version)))
}
