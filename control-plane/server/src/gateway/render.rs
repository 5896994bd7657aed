//! A set of resources as Envoy's configuration: a pure function, the same bytes in every process.

mod bootstrap;
mod cluster;
mod endpoints;
mod filters;
mod listener;
mod routes;
mod tls;
mod wrap;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use headgate_xds::{InvalidName, Resource, ResourceName, ResourceType};
use prost::Message;

use super::config::{Entry, RemoteFile, Weights};
use super::set::GatewaySet;
use super::telemetry::EndpointStates;
use crate::config::FilterDelivery;
use crate::fleet::{RenderedError, RenderedResources};

/// Names the model, for routes and policies.
const MODEL_HEADER: &str = "x-model";
/// Set by the filter's fallback: the pool that the request goes to instead.
const POOL_HEADER: &str = "x-headgate-pool";

/// Envoy's configuration: what all gateways share, and each gateway's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The pools.
    pub clusters: Vec<Cluster>,
    /// Their endpoints.
    pub assignments: Vec<ClusterLoadAssignment>,
    /// The gateways.
    pub gateways: Vec<RenderedGateway>,
}

/// What one gateway's proxies get beside the pools.
#[derive(Clone, Debug, PartialEq)]
pub struct RenderedGateway {
    /// `node.cluster` of its proxies; `None`: all.
    pub node_cluster: Option<String>,
    /// What its filters ask.
    pub clusters: Vec<Cluster>,
    /// Its routes.
    pub routes: RouteConfiguration,
    /// Pools that the routes name.
    pub pools: Vec<String>,
    /// Its listeners.
    pub listeners: Vec<Listener>,
}

/// Resources that do not fit together, which is a bug: a valid set renders.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A name that is no resource name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Resources that refer to what is not there.
    #[error(transparent)]
    Inconsistent(#[from] RenderedError),
}

/// Renders a set, with endpoints as telemetry has them, for proxies that reach the control plane as `filter` says.
pub fn render(set: &GatewaySet, states: &EndpointStates, filter: &FilterDelivery) -> Rendered {
    let is_measured = set.pools().any(|pool| pool.balancing.weights() == Some(Weights::Telemetry));
    let log = is_measured.then(|| listener::latency_log(filter));
    Rendered {
        clusters: set.pools().map(cluster::of_pool).collect(),
        assignments: set.pools().map(|pool| endpoints::assignment(pool, states)).collect(),
        gateways: set.entries().map(|entry| gateway(entry, set, log.as_ref())).collect(),
    }
}

fn gateway(entry: &Entry, set: &GatewaySet, log: Option<&AccessLog>) -> RenderedGateway {
    let remotes = filters::remotes(entry);
    let all = set.pools().map(|pool| pool.name.clone()).filter(|_| entry.admission);
    let named = set.routes_of(entry).flat_map(|route| &route.rules).flat_map(|rule| &rule.backends).map(|backend| backend.pool.clone());
    let mut pools: Vec<String> = all.chain(named).collect();
    pools.sort();
    pools.dedup();
    RenderedGateway {
        node_cluster: entry.node_cluster.clone(),
        clusters: remotes.into_iter().map(|(name, remote)| cluster::of_remote(&name, remote, &entry.remote_ca_file)).collect(),
        routes: routes::configuration(entry, set),
        pools,
        listeners: listener::of_entry(entry, log),
    }
}

// === impl Rendered ===

impl Rendered {
    /// As resources of discovery, each after what it refers to.
    ///
    /// # Errors
    /// [`RenderError`], which is a bug.
    pub fn resources(&self) -> Result<RenderedResources, RenderError> {
        let mut common = Vec::new();
        for cluster in &self.clusters {
            common.push(resource(ResourceType::Cluster, &cluster.name, cluster)?);
        }
        for assignment in &self.assignments {
            let name = ResourceName::new(&assignment.cluster_name)?;
            let resource = resource(ResourceType::Endpoint, &assignment.cluster_name, assignment)?;
            common.push(resource.needing(ResourceType::Cluster, name));
        }
        let mut by_cluster: BTreeMap<String, Vec<Resource>> = BTreeMap::new();
        for gateway in &self.gateways {
            let own = gateway.resources()?;
            match &gateway.node_cluster {
                Some(cluster) => by_cluster.entry(cluster.clone()).or_default().extend(own),
                None => common.extend(own),
            }
        }
        // Two gateways may ask the same address.
        let common = distinct(common);
        let by_cluster = by_cluster.into_iter().map(|(cluster, own)| {
            let own = distinct(own).into_iter().filter(|resource| !common.iter().any(|other| same(resource, other))).collect();
            (cluster, own)
        });
        Ok(RenderedResources::try_new(common.clone(), by_cluster.collect::<Vec<_>>())?)
    }

    /// Whether these are told to any proxy. Of types that are not rendered here nothing is known: they count as told.
    pub fn tells(&self, kind: ResourceType, name: &str) -> bool {
        let own = |cluster: &Cluster| cluster.name == name;
        match kind {
            ResourceType::Cluster => self.clusters.iter().chain(self.gateways.iter().flat_map(|gateway| &gateway.clusters)).any(own),
            ResourceType::Endpoint => self.assignments.iter().any(|assignment| assignment.cluster_name == name),
            ResourceType::Route => self.gateways.iter().any(|gateway| gateway.routes.name == name),
            ResourceType::Listener => self.gateways.iter().flat_map(|gateway| &gateway.listeners).any(|listener| listener.name == name),
            _ => true,
        }
    }

    /// As a bootstrap that needs no control plane, protobuf-encoded: `envoy --mode validate -c FILE.pb` checks it. The filter is
    /// `filter`, the `Wasm` message of ECDS; without one there is none.
    pub fn bootstrap(&self, filter: Option<&envoy_types::pb::google::protobuf::Any>) -> Vec<u8> {
        bootstrap::of(self, filter).encode_to_vec()
    }
}

// === impl RenderedGateway ===

impl RenderedGateway {
    fn resources(&self) -> Result<Vec<Resource>, InvalidName> {
        let mut resources = Vec::new();
        for cluster in &self.clusters {
            resources.push(resource(ResourceType::Cluster, &cluster.name, cluster)?);
        }
        let mut routes = resource(ResourceType::Route, &self.routes.name, &self.routes)?;
        for pool in &self.pools {
            routes = routes.needing(ResourceType::Cluster, ResourceName::new(pool)?);
        }
        resources.push(routes);
        for listener in &self.listeners {
            let mut listening = resource(ResourceType::Listener, &listener.name, listener)?;
            listening = listening.needing(ResourceType::Route, ResourceName::new(&self.routes.name)?);
            for cluster in &self.clusters {
                listening = listening.needing(ResourceType::Cluster, ResourceName::new(&cluster.name)?);
            }
            resources.push(listening);
        }
        Ok(resources)
    }
}

fn resource(kind: ResourceType, name: &str, message: &impl Message) -> Result<Resource, InvalidName> {
    Ok(Resource::new(kind, ResourceName::new(name)?, Bytes::from(message.encode_to_vec())))
}

fn same(one: &Resource, other: &Resource) -> bool {
    (one.kind(), one.name()) == (other.kind(), other.name())
}

fn distinct(resources: Vec<Resource>) -> Vec<Resource> {
    let mut kept: Vec<Resource> = Vec::with_capacity(resources.len());
    let mut seen = BTreeSet::new();
    for resource in resources {
        if seen.insert((resource.kind(), resource.name().clone())) {
            kept.push(resource);
        }
    }
    kept
}

/// Name of the cluster of an address that Envoy itself asks; no pool has a colon in its name.
fn remote_name(remote: &RemoteFile) -> String {
    let scheme = if remote.is_tls { "https" } else { "http" };
    format!("{scheme}:{}:{}", remote.host, remote.port)
}
