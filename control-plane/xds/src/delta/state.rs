//! One type on one delta stream.

use std::collections::{BTreeMap, BTreeSet};

use headgate_protos::discovery::DeltaDiscoveryRequest;

use crate::order;
use crate::resource::{Resource, ResourceName, ResourceType, Version};
use crate::snapshot::ResourceSet;
use crate::stream::{Change, Session, StreamError, StreamEvent, listed};
use crate::subscription::{AlreadyNamed, Interest, Subscription};
use crate::wire::{self, DeltaResponse};

/// Resource bytes after which a response is full; what is left follows after its ACK. One resource always fits.
const FULL_RESPONSE_BYTES: usize = 1 << 20;

/// One type on one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct TypeState {
    subscription: Subscription,
    /// What the client has accepted, or said that it has.
    known: BTreeMap<ResourceName, Known>,
    /// Names that must be answered even though the client may have them: it asked again, or it must hear of them again.
    asked: BTreeSet<ResourceName>,
    /// Responses that the client refused and whose content is still the newest.
    refused: Vec<Changes>,
    /// Names of which the client has something that was not the newest when renewals were due, and so may be gone there.
    lapsed: BTreeSet<ResourceName>,
    /// Versions that the client refused and that would not be applied if it now accepted them.
    doubted: BTreeMap<ResourceName, Version>,
    in_flight: Option<InFlight>,
    /// Whether a response was ever sent: a wildcard client waits for the first, even when it is empty.
    answered: bool,
    /// Version of the set of which nothing was left to be said.
    quiet_at: Option<Version>,
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
pub(super) struct Pending<'a> {
    pub(super) additions: Vec<&'a Resource>,
    /// Names that the client has and that are gone.
    pub(super) removals: Vec<ResourceName>,
    /// Names that the client asked for and that do not exist.
    unknown: Vec<ResourceName>,
}

/// Whether the client had accepted before what it was told.
fn is_known(known: &BTreeMap<ResourceName, Known>, (name, version): (&ResourceName, &Option<Version>)) -> bool {
    version.is_some_and(|version| known.get(name) == Some(&Known::Has(version)))
}

// === impl TypeState ===

impl TypeState {
    /// The first request of a type on a stream.
    pub(super) fn open(kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<Self, StreamError> {
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
        // Who comes back with something has had its first response.
        state.answered = !state.known.is_empty();
        Ok(state)
    }

    pub(super) fn on_answer(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Option<StreamEvent> {
        if request.response_nonce.is_empty() {
            return None;
        }
        let Some(answered) = self.in_flight.take_if(|in_flight| in_flight.nonce == request.response_nonce) else {
            return Some(StreamEvent::StaleNonce { kind });
        };
        self.quiet_at = None;
        let changes = answered.changes.iter().map(|(name, version)| Change { name: name.clone(), version: *version }).collect();
        match &request.error_detail {
            Some(status) => {
                if kind.is_applied_once() {
                    let sent = answered.changes.iter().filter_map(|(name, version)| Some((name.clone(), (*version)?)));
                    self.doubted.extend(sent);
                }
                self.tell_bystanders_again(&answered.changes);
                // What said nothing can be refused without consequence.
                self.refused.extend(Some(answered.changes).filter(|changes| !changes.is_empty()));
                Some(StreamEvent::rejected(kind, changes, status))
            }
            None => Some(self.accept(kind, answered.changes, changes)),
        }
    }

    fn accept(&mut self, kind: ResourceType, accepted: Changes, changes: Vec<Change>) -> StreamEvent {
        let mut doubtful = Vec::new();
        self.forget_refused(|refused| refused.keys().any(|name| accepted.contains_key(name)), |name| accepted.contains_key(name));
        for (name, version) in accepted {
            match self.doubted.get(&name) {
                Some(refused) if Some(*refused) == version => doubtful.push(Change { name: name.clone(), version }),
                _ => drop(self.doubted.remove(&name)),
            }
            match version {
                // What was unsubscribed meanwhile is the client's own business.
                _ if !self.subscription.wants(&name) => None,
                Some(version) => self.known.insert(name, Known::Has(version)),
                None if self.subscription.is_named(&name) => self.known.insert(name, Known::Absent),
                None => self.known.remove(&name),
            };
        }
        match doubtful.is_empty() {
            true => StreamEvent::Accepted { kind, changes },
            false => StreamEvent::AcceptedAfterRefusal { kind, changes: doubtful },
        }
    }

    pub(super) fn on_changes(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<(), StreamError> {
        let gone = listed(kind, request.resource_names_unsubscribe.iter())?;
        let new = listed(kind, request.resource_names_subscribe.iter())?;
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        self.quiet_at = None;
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
        self.doubted.remove(&name);
        if self.subscription.is_wildcard() {
            // The client forgets the resource although the wildcard still covers it, so it must hear of it again.
            self.asked.insert(name);
        } else {
            self.known.remove(&name);
            self.asked.remove(&name);
        }
    }

    /// Has a resource told again that the client may have, if it wants it and did not refuse it.
    pub(super) fn tell_again(&mut self, name: ResourceName) {
        if self.subscription.wants(&name) && !self.refused.iter().any(|refused| refused.contains_key(&name)) {
            self.asked.insert(name);
            self.quiet_at = None;
        }
    }

    /// The content of a refused response may be sent again once any of it has changed or is no longer wanted: the client does not say
    /// which part it minds.
    pub(super) fn forget_refusals(&mut self, set: &ResourceSet) {
        if self.refused.is_empty() {
            return;
        }
        let subscription = self.subscription.clone();
        let is_newest = |(name, version): (&ResourceName, &Option<Version>)| set.get(name).map(Resource::version) == *version;
        let is_over = |refused: &Changes| !(refused.keys().all(|name| subscription.wants(name)) && refused.iter().all(is_newest));
        self.forget_refused(is_over, |_| false);
    }

    /// Forgets the refused responses that are `over`. What they told again, and the client so did not take, is told once more, but for
    /// what `settled` names.
    fn forget_refused(&mut self, over: impl Fn(&Changes) -> bool, settled: impl Fn(&ResourceName) -> bool) {
        for refused in self.refused.extract_if(.., |refused| over(refused)) {
            self.quiet_at = None;
            let again = refused.iter().filter(|told| is_known(&self.known, *told)).map(|(name, _)| name);
            self.asked.extend(again.filter(|name| self.subscription.wants(name) && !settled(name)).cloned());
        }
    }

    /// Of a refused response, what the client had accepted before cannot be what it minds: it is told again without the others, since
    /// the client may drop it otherwise. A response of nothing else is not repeated.
    fn tell_bystanders_again(&mut self, refused: &Changes) {
        let (bystanders, suspects): (Vec<_>, Vec<_>) = refused.iter().partition(|told| is_known(&self.known, *told));
        if !suspects.is_empty() {
            self.asked.extend(bystanders.into_iter().map(|(name, _)| name).filter(|name| self.subscription.wants(name)).cloned());
        }
    }

    /// Lets refused content with this name be sent again.
    fn allow_again(&mut self, name: &ResourceName) {
        self.forget_refused(|refused| refused.contains_key(name), |other| other == name);
    }

    pub(super) fn note_quiet(&mut self, set: &ResourceSet) {
        self.quiet_at = Some(set.version());
    }

    /// Whether it is plain, without a look at the resources, that nothing is to be sent now.
    pub(super) fn has_nothing_to_say(&self, set: &ResourceSet) -> bool {
        self.in_flight.is_some() || (self.quiet_at == Some(set.version()) && !self.owes_first())
    }

    /// Whether the client waits for its first response, which may be empty.
    pub(super) fn owes_first(&self) -> bool {
        self.subscription.is_wildcard() && !self.answered
    }

    /// Whether the client has the newest and refused none of it.
    pub(super) fn is_settled(&self, set: &ResourceSet) -> bool {
        self.in_flight.is_none() && self.refused.is_empty() && self.pending(set).is_empty()
    }

    /// What the client is not up to date with, apart from what awaits its ACK and what it refused.
    pub(super) fn pending<'a>(&self, set: &'a ResourceSet) -> Pending<'a> {
        let mut pending = Pending::default();
        if self.quiet_at == Some(set.version()) {
            return pending;
        }
        let all = if self.subscription.is_wildcard() { Some(set) } else { None };
        let wildcard = all.into_iter().flat_map(ResourceSet::iter).map(Resource::name);
        let names: BTreeSet<&ResourceName> =
            self.subscription.names().chain(self.known.keys()).chain(&self.asked).chain(wildcard).collect();
        for name in names {
            let asked = self.asked.contains(name);
            let newest = set.get(name);
            let refused = self.refused.iter().any(|refused| refused.get(name) == Some(&newest.map(Resource::version)));
            match (newest, self.told(name)) {
                (Some(resource), Some(Known::Has(version))) if version == resource.version() && !asked && !self.has_lapsed(resource) => {}
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

    /// Makes the response, and says what must be told again after it.
    pub(super) fn send(
        &mut self,
        kind: ResourceType,
        set: &ResourceSet,
        pending: &Pending<'_>,
        session: &mut Session,
    ) -> (DeltaResponse, Vec<(ResourceType, ResourceName)>) {
        let (mut changes, mut followers, mut resources) = (Changes::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        for resource in pending.additions.iter().take(kind.resources_per_response()) {
            if bytes >= FULL_RESPONSE_BYTES {
                break;
            }
            let encoded = resource.encoded().resource(session.knows_ttl());
            bytes += encoded.len();
            resources.push(encoded);
            changes.insert(resource.name().clone(), Some(resource.version()));
            followers.extend(order::told_again_after(resource).cloned());
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
            self.lapsed.remove(name);
        }
        self.answered = true;
        (self.respond(kind, set, (resources, removed_resources), changes, session), followers)
    }

    /// What the client has and will drop.
    fn expiring<'a>(&self, set: &'a ResourceSet) -> Vec<&'a Resource> {
        if set.least_ttl().is_none() {
            return Vec::new();
        }
        let has = |resource: &&Resource| self.told(resource.name()) == Some(Known::Has(resource.version()));
        set.iter().filter(|resource| resource.ttl().is_some()).filter(has).collect()
    }

    /// Has the client told again what it will drop, or has dropped.
    pub(super) fn tell_expiring_again(&mut self, set: &ResourceSet) {
        self.asked.extend(self.expiring(set).into_iter().map(Resource::name).cloned());
    }

    /// Whether the client may have dropped a resource that has become the newest again.
    fn has_lapsed(&self, resource: &Resource) -> bool {
        resource.ttl().is_some() && self.lapsed.contains(resource.name())
    }

    /// Notes what the client has and is not renewed, because something else is the newest.
    fn note_lapses(&mut self, set: &ResourceSet) {
        let Self { known, lapsed, .. } = self;
        lapsed.retain(|name| known.contains_key(name));
        let newest = |name| set.get(name).map(Resource::version);
        let stale = known.iter().filter(|(name, known)| matches!(known, Known::Has(version) if newest(name) != Some(*version)));
        lapsed.extend(stale.map(|(name, _)| name.clone()));
    }

    /// The response that renews what the client has.
    pub(super) fn heartbeat(&mut self, kind: ResourceType, set: &ResourceSet, session: &mut Session) -> Option<DeltaResponse> {
        self.note_lapses(set);
        if self.in_flight.is_some() {
            // Until the client answers it may have dropped them, and a heartbeat brings nothing back.
            self.tell_expiring_again(set);
            return None;
        }
        let expiring = self.expiring(set);
        if expiring.is_empty() {
            return None;
        }
        let beat = |resource: &&Resource| Some(wire::heartbeat(resource.name(), &resource.version().to_string(), resource.ttl()?));
        let resources = expiring.iter().filter_map(beat).collect();
        Some(self.respond(kind, set, (resources, Vec::new()), Changes::new(), session))
    }

    fn respond(
        &mut self,
        kind: ResourceType,
        set: &ResourceSet,
        (resources, removed_resources): (Vec<bytes::Bytes>, Vec<String>),
        changes: Changes,
        session: &mut Session,
    ) -> DeltaResponse {
        let nonce = session.next_nonce();
        self.quiet_at = None;
        self.in_flight = Some(InFlight { nonce: nonce.clone(), changes });
        let system_version_info = set.version().to_string();
        DeltaResponse { system_version_info, resources, type_url: kind.type_url().into(), nonce, removed_resources }
    }
}

// === impl Pending ===

impl Pending<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.additions.is_empty() && self.removals.is_empty() && self.unknown.is_empty()
    }
}
