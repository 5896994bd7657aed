//! The incremental variant: the client is told of each resource what changed.

use std::collections::{BTreeMap, BTreeSet};

use headgate_protos::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use headgate_protos::envoy_core::Node;

use crate::order;
use crate::resource::{Resource, ResourceName, ResourceType, Version};
use crate::snapshot::{ResourceSet, Snapshot};
use crate::stream::{Change, Scope, Session, Step, StreamError, StreamEvent, listed};
use crate::subscription::{AlreadyNamed, Interest, Subscription};

/// Resource bytes after which a response is full; what is left follows after its ACK. One resource always fits.
const FULL_RESPONSE_BYTES: usize = 1 << 20;

/// Server side of one delta stream. Memory: per type at most what the client subscribed to plus what it was sent.
#[derive(Clone, Debug)]
pub struct DeltaStream {
    session: Session,
    types: BTreeMap<ResourceType, TypeState>,
}

/// One type on one stream.
#[derive(Clone, Debug, Default)]
struct TypeState {
    subscription: Subscription,
    /// What the client has accepted, or said that it has.
    known: BTreeMap<ResourceName, Known>,
    /// Names that must be answered even though the client may have them: it asked again.
    asked: BTreeSet<ResourceName>,
    /// Responses that the client refused and whose content is still the newest.
    refused: Vec<Changes>,
    in_flight: Option<InFlight>,
    /// Whether a response was ever sent: a wildcard client waits for the first, even when it is empty.
    answered: bool,
}

/// A client's knowledge of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It has this version.
    Has(Version),
    /// It has been told that there is none.
    Absent,
}

/// What a response says: of each name the version that was sent, or `None` for a removal.
type Changes = BTreeMap<ResourceName, Option<Version>>;

/// A response that awaits its ACK.
#[derive(Clone, Debug)]
struct InFlight {
    nonce: String,
    changes: Changes,
}

/// What is to be sent.
#[derive(Debug, Default)]
struct Pending<'a> {
    additions: Vec<&'a Resource>,
    /// Names that the client has and that are gone.
    removals: Vec<ResourceName>,
    /// Names that the client asked for and that do not exist.
    unknown: Vec<ResourceName>,
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
    pub fn on_request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Step<DeltaDiscoveryResponse>, StreamError> {
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
                let state = TypeState::open(kind, request)?;
                self.types.insert(kind, state);
            }
        }
        Ok(Step { responses: self.on_snapshot(snapshot), events })
    }

    /// Takes the newest snapshot and tells the client what it may be told now. A type whose last response awaits its ACK is told
    /// afterwards, of whatever is newest then.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        for (kind, state) in &mut self.types {
            state.forget_refusals(snapshot.set(*kind));
        }
        ResourceType::ALL.into_iter().filter_map(|kind| self.respond(kind, snapshot)).collect()
    }

    fn respond(&mut self, kind: ResourceType, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let may_add = order::sent_before(kind).iter().all(|earlier| self.pending(*earlier, snapshot).additions.is_empty());
        let may_remove = order::referring_to(kind).iter().all(|by| self.is_settled(*by, snapshot));
        let state = self.types.get_mut(&kind)?;
        let set = snapshot.set(kind);
        if state.in_flight.is_some() {
            return None;
        }
        let mut pending = state.pending(set);
        if !may_add {
            pending.additions.clear();
        }
        if !may_remove {
            pending.removals.clear();
        }
        let owes_first = state.subscription.is_wildcard() && !state.answered && may_add;
        if pending.is_empty() && !owes_first {
            return None;
        }
        Some(state.send(kind, set, &pending, self.session.next_nonce()))
    }

    fn pending<'a>(&self, kind: ResourceType, snapshot: &'a Snapshot) -> Pending<'a> {
        self.types.get(&kind).map_or_else(Pending::default, |state| state.pending(snapshot.set(kind)))
    }

    /// Whether the client has the newest of a type and refused none of it. True for a type that it does not ask for.
    fn is_settled(&self, kind: ResourceType, snapshot: &Snapshot) -> bool {
        self.types
            .get(&kind)
            .is_none_or(|state| state.in_flight.is_none() && state.refused.is_empty() && state.pending(snapshot.set(kind)).is_empty())
    }
}

// === impl TypeState ===

impl TypeState {
    /// The first request of a type on a stream.
    fn open(kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<Self, StreamError> {
        let mut state = Self::default();
        if request.resource_names_subscribe.is_empty() && kind.has_legacy_wildcard() {
            state.subscription = Subscription::legacy_wildcard();
        }
        state.on_changes(kind, request)?;
        // Nothing has been answered on this stream, so no name was asked for twice.
        state.asked.clear();
        let claimed = listed(kind, request.initial_resource_versions.keys())?;
        for name in claimed.names.into_iter().filter(|name| state.subscription.wants(name)) {
            // A version that is none of ours differs from every one of ours, but still says that the client has something.
            let text = request.initial_resource_versions.get(name.as_str()).map_or("", String::as_str);
            let version = Version::parse(text).unwrap_or_else(|| Version::of(text.as_bytes()));
            state.known.insert(name, Known::Has(version));
        }
        Ok(state)
    }

    fn on_answer(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Option<StreamEvent> {
        if request.response_nonce.is_empty() {
            return None;
        }
        let Some(answered) = self.in_flight.take_if(|in_flight| in_flight.nonce == request.response_nonce) else {
            return Some(StreamEvent::StaleNonce { kind });
        };
        let changes = answered.changes.iter().map(|(name, version)| Change { name: name.clone(), version: *version }).collect();
        match &request.error_detail {
            Some(status) => {
                self.refused.push(answered.changes);
                Some(StreamEvent::rejected(kind, changes, status))
            }
            None => {
                for (name, version) in answered.changes {
                    self.allow_again(&name);
                    match version {
                        // What was unsubscribed meanwhile is the client's own business.
                        _ if !self.subscription.wants(&name) => None,
                        Some(version) => self.known.insert(name, Known::Has(version)),
                        None if self.subscription.is_named(&name) => self.known.insert(name, Known::Absent),
                        None => self.known.remove(&name),
                    };
                }
                Some(StreamEvent::Accepted { kind, changes })
            }
        }
    }

    fn on_changes(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<(), StreamError> {
        let gone = listed(kind, request.resource_names_unsubscribe.iter())?;
        let new = listed(kind, request.resource_names_subscribe.iter())?;
        if gone.interest == Interest::Wildcard {
            self.subscription.narrow();
            let subscription = &self.subscription;
            self.known.retain(|name, _| subscription.is_named(name));
            self.asked.retain(|name| subscription.is_named(name));
        }
        for name in gone.names {
            self.unsubscribe(name);
        }
        if new.interest == Interest::Wildcard {
            self.subscription.widen();
        }
        for name in new.names {
            self.allow_again(&name);
            let is_in_flight = self.in_flight.as_ref().is_some_and(|in_flight| in_flight.changes.contains_key(&name));
            match self.subscription.add(name.clone()) {
                // What is in flight may reach the client before or after it dropped the name for a while.
                Ok(AlreadyNamed::No) if !is_in_flight => {}
                // "the server must still provide those resources in the response."
                Ok(_) => drop(self.asked.insert(name)),
                Err(problem) => return Err(StreamError::TooManyNames { kind, problem }),
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, name: ResourceName) {
        self.subscription.remove(&name);
        self.allow_again(&name);
        if self.subscription.is_wildcard() {
            // The client forgets the resource although the wildcard still covers it, so it must hear of it again.
            self.asked.insert(name);
        } else {
            self.known.remove(&name);
            self.asked.remove(&name);
        }
    }

    /// The content of a refused response may be sent again once any of it has changed or is no longer wanted: the client does not say
    /// which part it minds.
    fn forget_refusals(&mut self, set: &ResourceSet) {
        let subscription = &self.subscription;
        self.refused.retain(|refused| {
            let is_newest = |(name, version): (&ResourceName, &Option<Version>)| set.get(name).map(Resource::version) == *version;
            refused.keys().all(|name| subscription.wants(name)) && refused.iter().all(is_newest)
        });
    }

    /// Lets refused content with this name be sent again.
    fn allow_again(&mut self, name: &ResourceName) {
        self.refused.retain(|refused| !refused.contains_key(name));
    }

    /// What the client is not up to date with, apart from what awaits its ACK and what it refused.
    fn pending<'a>(&self, set: &'a ResourceSet) -> Pending<'a> {
        let mut pending = Pending::default();
        let all = if self.subscription.is_wildcard() { Some(set) } else { None };
        let wildcard = all.into_iter().flat_map(ResourceSet::iter).map(Resource::name);
        let names: BTreeSet<&ResourceName> =
            self.subscription.names().chain(self.known.keys()).chain(&self.asked).chain(wildcard).collect();
        for name in names {
            let asked = self.asked.contains(name);
            let newest = set.get(name);
            let refused = self.refused.iter().any(|refused| refused.get(name) == Some(&newest.map(Resource::version)));
            match (newest, self.told(name)) {
                (Some(resource), Some(Known::Has(version))) if version == resource.version() && !asked => {}
                (Some(resource), _) if asked || !refused => pending.additions.push(resource),
                (None, Some(Known::Has(_))) if asked || !refused => pending.removals.push(name.clone()),
                (None, None) if (asked || self.subscription.is_named(name)) && !refused => pending.unknown.push(name.clone()),
                (None, Some(Known::Absent)) if asked => pending.unknown.push(name.clone()),
                _ => {}
            }
        }
        pending
    }

    /// What the client knows of a resource once it has accepted what is in flight.
    fn told(&self, name: &ResourceName) -> Option<Known> {
        match self.in_flight.as_ref().and_then(|in_flight| in_flight.changes.get(name)) {
            Some(Some(version)) => Some(Known::Has(*version)),
            Some(None) => Some(Known::Absent),
            None => self.known.get(name).copied(),
        }
    }

    fn send(&mut self, kind: ResourceType, set: &ResourceSet, pending: &Pending<'_>, nonce: String) -> DeltaDiscoveryResponse {
        let mut changes = BTreeMap::new();
        let mut resources = Vec::new();
        let mut bytes = 0;
        for resource in pending.additions.iter().take(kind.resources_per_response()) {
            if bytes >= FULL_RESPONSE_BYTES {
                break;
            }
            bytes += resource.body().value.len();
            changes.insert(resource.name().clone(), Some(resource.version()));
            resources.push(discovery::Resource {
                version: resource.version().to_string(),
                resource: Some(resource.body().clone()),
                name: resource.name().to_string(),
                ttl: None,
            });
        }
        let mut removed_resources = Vec::new();
        // What travels alone shares its fate with no removal either.
        if resources.len() < kind.resources_per_response() {
            for name in pending.removals.iter().chain(&pending.unknown) {
                changes.insert(name.clone(), None);
                removed_resources.push(name.to_string());
            }
        }
        for name in changes.keys() {
            self.asked.remove(name);
        }
        self.answered = true;
        self.in_flight = Some(InFlight { nonce: nonce.clone(), changes });
        DeltaDiscoveryResponse {
            system_version_info: set.version().to_string(),
            resources,
            type_url: kind.type_url().into(),
            nonce,
            removed_resources,
        }
    }
}

// === impl Pending ===

impl Pending<'_> {
    fn is_empty(&self) -> bool {
        self.additions.is_empty() && self.removals.is_empty() && self.unknown.is_empty()
    }
}
