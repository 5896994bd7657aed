//! Where streams get their snapshots: one encoding of policies and rendered resources for all of them, limits for each.

use std::collections::BTreeMap;
use std::future;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use headgate_protos::envoy_core::Node;
use headgate_protos::v1;
use headgate_xds::{Change, ResourceType, Snapshot, StreamEvent};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tonic::Status;

use super::conversation::shutting_down;
use super::retry::Retries;
use crate::config::FilterDelivery;
use crate::fleet::{Fleet, LimitsTable, PolicySet, RenderedResources};
use crate::resources::{ResourceError, SharedResources};

/// Makes snapshots. Cheap to clone; clones share what is encoded.
#[derive(Clone)]
pub(super) struct Source {
    fleet: Fleet,
    filter: Arc<FilterDelivery>,
    cache: Arc<Mutex<Cache>>,
}

/// What is encoded of the newest policies and rendered resources, by audience.
#[derive(Default)]
struct Cache {
    policies: Arc<PolicySet>,
    rendered: Arc<RenderedResources>,
    shared: BTreeMap<Option<String>, Arc<SharedResources>>,
}

/// The view of one client, which always holds a snapshot.
pub(super) struct Observer {
    source: Source,
    node_id: String,
    cluster: String,
    policies: watch::Receiver<Arc<PolicySet>>,
    rendered: watch::Receiver<Arc<RenderedResources>>,
    shared_changes: watch::Receiver<()>,
    /// Only for a client that asks for limits: they change ten times a second.
    limits: Option<watch::Receiver<Arc<LimitsTable>>>,
    /// What the client is told in other bytes than everybody.
    retries: Retries,
    /// Without those.
    shared: Snapshot,
    snapshot: Snapshot,
}

// === impl Source ===

impl Source {
    pub(super) fn new(fleet: Fleet, filter: FilterDelivery) -> Self {
        Self { fleet, filter: Arc::new(filter), cache: Arc::default() }
    }

    /// A view for the client that says to be `node`. One that does not say gets a newcomer's limits.
    pub(super) fn observe(&self, node: Option<&Node>) -> Observer {
        let (node_id, cluster) = node.map_or_else(Default::default, |node| (node.id.clone(), node.cluster.clone()));
        let mut observer = Observer {
            policies: self.fleet.policies(),
            rendered: self.fleet.rendered(),
            shared_changes: self.fleet.shared_changes(),
            limits: None,
            source: self.clone(),
            node_id,
            cluster,
            retries: Retries::new(RandomState::new().hash_one(0)),
            shared: Snapshot::default(),
            snapshot: Snapshot::default(),
        };
        observer.refresh();
        observer
    }

    /// The resources that every client of a service cluster gets, encoded by whoever asks first after a change.
    fn shared(
        &self,
        policies: &Arc<PolicySet>,
        rendered: &Arc<RenderedResources>,
        cluster: &str,
    ) -> Result<Arc<SharedResources>, ResourceError> {
        // A poisoned cache is still a cache: what it holds was made whole.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&cache.policies, policies) || !Arc::ptr_eq(&cache.rendered, rendered) {
            *cache = Cache { policies: policies.clone(), rendered: rendered.clone(), shared: BTreeMap::new() };
        }
        let (audience, snapshot) = rendered.for_cluster(cluster);
        let audience = audience.map(str::to_owned);
        if let Some(shared) = cache.shared.get(&audience) {
            return Ok(shared.clone());
        }
        let shared = Arc::new(SharedResources::new(policies.clone(), snapshot, &self.filter)?);
        cache.shared.insert(audience, shared.clone());
        Ok(shared)
    }
}

// === impl Observer ===

impl Observer {
    /// What the client may be told now.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Takes note of what the client let us know: its refusals are shown with the policy.
    pub(super) fn note(&mut self, event: &StreamEvent) {
        let node = &self.node_id;
        self.retries.note(tokio::time::Instant::now(), event, &self.shared, &self.snapshot);
        match event {
            StreamEvent::Accepted { kind, changes } => {
                tracing::trace!(node, %kind, resources = changes.len(), "discovery: accepted");
                self.source.fleet.refusals().accept(node, *kind, changes);
            }
            StreamEvent::Rejected { kind, changes, error } => {
                tracing::warn!(node, %kind, resources = ?names(changes), error, "discovery: refused by the client");
                match kind {
                    ResourceType::HeadgatePolicy => self.record_refusal(changes, error),
                    ResourceType::HeadgateLimits => {}
                    _ => self.source.fleet.refusals().refuse(node, *kind, changes, error),
                }
            }
            StreamEvent::AcceptedAfterRefusal { kind, changes } => {
                tracing::warn!(node, %kind, resources = ?names(changes), "discovery: accepted what was refused before, so not applied");
            }
            StreamEvent::StaleNonce { kind } => tracing::debug!(node, %kind, "discovery: stale nonce ignored"),
            StreamEvent::UnknownType { type_url } => tracing::debug!(node, type_url, "discovery: type not served"),
        }
    }

    fn record_refusal(&self, changes: &[Change], error: &str) {
        for Change { name, version } in changes {
            let version = version.map(|version| version.to_string()).unwrap_or_default();
            // A filter puts the policy's name before the field.
            let error = error.strip_prefix(name.as_str()).and_then(|error| error.strip_prefix(": ")).unwrap_or(error);
            let rejection = v1::RejectedPolicy { name: name.to_string(), version, error: error.to_owned() };
            self.source.fleet.proxies().record_nack(Instant::now(), &self.node_id, rejection);
        }
    }

    /// Has the client's limits in the snapshot from now on.
    pub(super) fn see_limits(&mut self) {
        if self.limits.is_none() {
            self.limits = Some(self.source.fleet.limits());
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        // Seen before they are read: what changes in between wakes again.
        self.shared_changes.mark_unchanged();
        let policies = self.policies.borrow().clone();
        let rendered = self.rendered.borrow().clone();
        let limits = self.limits.as_mut().map(|limits| limits.borrow_and_update().clone());
        let snapshot = self.source.shared(&policies, &rendered, &self.cluster).and_then(|shared| match &limits {
            Some(limits) => shared.snapshot_for(&self.node_id, limits),
            None => Ok(shared.snapshot().clone()),
        });
        match snapshot {
            Ok(snapshot) => self.tell(snapshot),
            // The validator lets no policy through that has no resource name, so this is a bug; what is served stays in force.
            Err(error) => tracing::error!(node = self.node_id, %error, "discovery: no snapshot"),
        }
    }

    fn tell(&mut self, shared: Snapshot) {
        self.snapshot = self.retries.apply(tokio::time::Instant::now(), &shared);
        self.shared = shared;
    }

    async fn changed(&mut self) -> Result<&Snapshot, Status> {
        let (retries, limits) = (self.retries.due(), &mut self.limits);
        let limits = async move {
            match limits {
                Some(limits) => limits.changed().await,
                None => future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = self.shared_changes.changed() => changed,
            changed = limits => changed,
            () = sleep_until(retries.unwrap_or_else(tokio::time::Instant::now)), if retries.is_some() => Ok(()),
        };
        changed.map_err(|_| shutting_down())?;
        self.refresh();
        Ok(&self.snapshot)
    }
}

/// Waits until a client that has said something may be told something new.
pub(super) async fn changed(observer: &mut Option<Observer>) -> Result<&Snapshot, Status> {
    match observer {
        Some(observer) => observer.changed().await,
        None => future::pending().await,
    }
}

fn names(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.name.as_str()).collect()
}
