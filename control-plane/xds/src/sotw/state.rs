//! One type on one state-of-the-world stream.

use std::collections::{BTreeMap, BTreeSet};

use headgate_protos::discovery::DiscoveryRequest;

use crate::resource::{Resource, ResourceName, ResourceType, Version};
use crate::snapshot::ResourceSet;
use crate::stream::{Change, Listed, Session, StreamError, StreamEvent};
use crate::subscription::{Interest, Subscription};
use crate::wire::{self, SotwResponse};

/// Everything in a response.
type Content = BTreeMap<ResourceName, Resource>;

/// One type on one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct TypeState {
    subscription: Subscription,
    /// What the client accepted last, of what it still wants.
    accepted: Option<Content>,
    /// Content that the client refused last.
    refused: Option<Content>,
    /// Versions that the client refused and that would not be applied if it now accepted them.
    doubted: BTreeMap<ResourceName, Version>,
    /// Nonce of the newest response; the only one that an answer may carry.
    nonce: Option<String>,
    /// What the newest response holds while it awaits its ACK.
    in_flight: Option<Content>,
    /// Whether the client must be told again what it has.
    owes_all: bool,
    /// Version of the set of which nothing was left to be said.
    quiet_at: Option<Version>,
}

/// Whether what is gone is left out of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removals {
    /// It is, so the client deletes it.
    Told,
    /// It stays in: something may refer to it.
    HeldBack,
}

// === impl TypeState ===

impl TypeState {
    /// The first request of a type on a stream, or one that starts the type anew.
    ///
    /// The version that a reconnecting client names is that of the last response that it accepted. It may have dropped a part of that
    /// since and want it again, so nothing follows from it, and the client is answered.
    pub(super) fn open(kind: ResourceType, wanted: Listed) -> Result<Self, StreamError> {
        let mut state = Self::default();
        if wanted.is_empty() && kind.has_legacy_wildcard() {
            state.subscription = Subscription::legacy_wildcard();
        } else {
            state.resubscribe(kind, wanted)?;
        }
        Ok(state)
    }

    /// The state after a request that names no response: written before the client saw one, or to start the type anew. What it has is
    /// not known, but its answer to the newest response may still come, and its later requests will name that one until there is another.
    pub(super) fn begun_anew(&self, kind: ResourceType, wanted: Listed) -> Result<Self, StreamError> {
        Ok(Self { nonce: self.nonce.clone(), ..Self::open(kind, wanted)? })
    }

    /// Whether an answer with this nonce is one to the newest response.
    pub(super) fn is_newest(&self, nonce: &str) -> bool {
        self.nonce.as_deref() == Some(nonce)
    }

    pub(super) fn on_answer(&mut self, kind: ResourceType, request: &DiscoveryRequest) -> Option<StreamEvent> {
        let content = self.in_flight.take()?;
        self.quiet_at = None;
        let change = |(name, resource): (&ResourceName, &Resource)| Change { name: name.clone(), version: Some(resource.version()) };
        let changes: Vec<Change> = content.iter().map(change).collect();
        match &request.error_detail {
            Some(status) => {
                if kind.is_applied_once() {
                    self.doubted.extend(content.iter().map(|(name, resource)| (name.clone(), resource.version())));
                }
                self.refused = Some(content);
                Some(StreamEvent::rejected(kind, changes, status))
            }
            None => {
                self.refused = None;
                self.accepted = Some(content);
                Some(self.accept(kind, changes))
            }
        }
    }

    fn accept(&mut self, kind: ResourceType, changes: Vec<Change>) -> StreamEvent {
        let is_doubtful = |change: &&Change| self.doubted.get(&change.name).copied() == change.version;
        let doubtful: Vec<Change> = changes.iter().filter(is_doubtful).cloned().collect();
        self.doubted.retain(|name, _| doubtful.iter().any(|change| change.name == *name));
        match doubtful.is_empty() {
            true => StreamEvent::Accepted { kind, changes },
            false => StreamEvent::AcceptedAfterRefusal { kind, changes: doubtful },
        }
    }

    /// The list of names in a request is the whole subscription.
    pub(super) fn resubscribe(&mut self, kind: ResourceType, wanted: Listed) -> Result<(), StreamError> {
        let still_legacy = self.subscription.interest() == Interest::LegacyWildcard && wanted.is_empty();
        let subscription = if still_legacy {
            Subscription::legacy_wildcard()
        } else {
            let names: BTreeSet<ResourceName> = wanted.names.into_iter().collect();
            Subscription::to(wanted.interest, names).map_err(|problem| StreamError::TooManyNames { kind, problem })?
        };
        if subscription != self.subscription {
            // A client drops what it unsubscribes from, and asks anew for what it names anew, refused or not.
            if let Some(accepted) = &mut self.accepted {
                accepted.retain(|name, _| subscription.wants(name));
            }
            self.refused = None;
            self.quiet_at = None;
            self.subscription = subscription;
        }
        Ok(())
    }

    /// Has the client told again what it has, unless it refused just that.
    pub(super) fn tell_again(&mut self) {
        self.owes_all = true;
        self.quiet_at = None;
    }

    pub(super) fn note_quiet(&mut self, set: &ResourceSet, removals: Removals) {
        if removals == Removals::Told {
            self.quiet_at = Some(set.version());
        }
    }

    /// Whether it is plain, without a look at the resources, that nothing is to be sent now.
    pub(super) fn has_nothing_to_say(&self, set: &ResourceSet) -> bool {
        self.in_flight.is_some() || self.quiet_at == Some(set.version())
    }

    /// Whether the client has the newest and refused none of it.
    pub(super) fn is_settled(&self, kind: ResourceType, set: &ResourceSet) -> bool {
        self.in_flight.is_none() && self.refused.is_none() && self.newer_content(kind, set, Removals::Told).is_none()
    }

    /// What the client has, once it has accepted what is in flight.
    fn told(&self) -> Option<&Content> {
        self.in_flight.as_ref().or(self.accepted.as_ref())
    }

    /// Everything that the client wants and that exists, and what is gone and must stay.
    fn content(&self, kind: ResourceType, set: &ResourceSet, removals: Removals) -> Content {
        let kept = self.told().filter(|_| removals == Removals::HeldBack && kind.absence_deletes());
        let newest = set.iter().map(|resource| (resource.name(), resource));
        kept.into_iter()
            .flatten()
            .chain(newest)
            .filter(|(name, _)| self.subscription.wants(name))
            .map(|(name, resource)| (name.clone(), resource.clone()))
            .collect()
    }

    /// What a response must hold now, unless the client has it, is about to get it, or refused just that.
    pub(super) fn newer_content(&self, kind: ResourceType, set: &ResourceSet, removals: Removals) -> Option<Content> {
        if self.quiet_at == Some(set.version()) {
            return None;
        }
        let content = self.content(kind, set, removals);
        if self.refused.as_ref() == Some(&content) {
            return None;
        }
        let is_news = match self.told() {
            // What awaits its ACK is told again after it.
            _ if self.owes_all && self.in_flight.is_none() => kind.absence_deletes() || !content.is_empty(),
            None => kind.absence_deletes() || !content.is_empty(),
            Some(told) => {
                let gone = kind.absence_deletes() && told.keys().any(|name| !content.contains_key(name));
                gone || self.changed(&content).next().is_some()
            }
        };
        is_news.then_some(content)
    }

    /// What of `content` the client does not have.
    pub(super) fn changed<'a>(&'a self, content: &'a Content) -> impl Iterator<Item = &'a Resource> {
        let told = self.told();
        content
            .values()
            .filter(move |resource| told.and_then(|told| told.get(resource.name())).map(Resource::version) != Some(resource.version()))
    }

    pub(super) fn send(&mut self, kind: ResourceType, content: Content, session: &mut Session) -> SotwResponse {
        let version = version_of(&content).to_string();
        let encoded = |resource: &Resource| match resource.ttl().filter(|_| session.knows_ttl()) {
            Some(ttl) => wire::wrapped_resource(kind, resource.name(), &version, ttl, resource.encoded().body()),
            None => resource.encoded().any(),
        };
        let resources = content.values().map(encoded).collect();
        let (version_info, nonce) = (version, session.next_nonce());
        self.owes_all = false;
        self.quiet_at = None;
        self.nonce = Some(nonce.clone());
        self.in_flight = Some(content);
        SotwResponse { version_info, resources, type_url: kind.type_url().into(), nonce }
    }

    /// Has the client told again what it has and will drop.
    pub(super) fn renew(&mut self, set: &ResourceSet) {
        let has =
            |resource: &Resource| self.told().and_then(|told| told.get(resource.name())).map(Resource::version) == Some(resource.version());
        if set.least_ttl().is_some() && set.iter().any(|resource| resource.ttl().is_some() && has(resource)) {
            self.tell_again();
        }
    }
}

fn version_of(content: &Content) -> Version {
    Version::of_set(content.iter().map(|(name, resource)| (name, resource.version())))
}
