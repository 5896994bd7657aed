//! What discovery would tell, in one file: for checking, and for running without a control plane.

use envoy_types::pb::envoy::config::bootstrap::v3 as bootstrap;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as NetworkConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::wrap::any;
use super::{Rendered, RenderedGateway};

/// Everything inline: endpoints in their clusters, routes and the filter in their listeners.
pub(super) fn of(rendered: &Rendered, filter: Option<&Any>) -> Bootstrap {
    let mut clusters: Vec<Cluster> = rendered.clusters.iter().map(|cluster| with_endpoints(rendered, cluster)).collect();
    for gateway in &rendered.gateways {
        for cluster in &gateway.clusters {
            if !clusters.iter().any(|known| known.name == cluster.name) {
                clusters.push(cluster.clone());
            }
        }
    }
    let listeners = rendered.gateways.iter().flat_map(|gateway| {
        let RenderedGateway { routes, listeners, .. } = gateway;
        listeners.iter().map(|listener| inline(listener, routes, filter))
    });
    let resources = bootstrap::bootstrap::StaticResources { listeners: listeners.collect(), clusters, secrets: Vec::new() };
    let node = core::Node { id: "static".to_owned(), cluster: "static".to_owned(), ..core::Node::default() };
    Bootstrap { node: Some(node), static_resources: Some(resources), ..Bootstrap::default() }
}

fn with_endpoints(rendered: &Rendered, cluster: &Cluster) -> Cluster {
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        eds_cluster_config: None,
        load_assignment: rendered.assignments.iter().find(|assignment| assignment.cluster_name == cluster.name).cloned(),
        ..cluster.clone()
    }
}

fn inline(listener: &Listener, routes: &RouteConfiguration, filter: Option<&Any>) -> Listener {
    let chain = |chain: &FilterChain| FilterChain {
        filters: chain.filters.iter().map(|network| manager(network, routes, filter)).collect(),
        ..chain.clone()
    };
    Listener { filter_chains: listener.filter_chains.iter().map(chain).collect(), ..listener.clone() }
}

/// What we have encoded ourselves can be decoded; anything else stays as it is.
fn manager(network: &Filter, routes: &RouteConfiguration, filter: Option<&Any>) -> Filter {
    let Some(NetworkConfig::TypedConfig(encoded)) = &network.config_type else { return network.clone() };
    let Ok(mut manager) = HttpConnectionManager::decode(encoded.value.as_slice()) else { return network.clone() };
    manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes.clone()));
    // There is nobody to log to.
    manager.access_log.clear();
    manager.http_filters.retain_mut(|http| match (&http.config_type, filter) {
        (Some(ConfigType::ConfigDiscovery(_)), Some(filter)) => {
            http.config_type = Some(ConfigType::TypedConfig(filter.clone()));
            true
        }
        (Some(ConfigType::ConfigDiscovery(_)), None) => false,
        _ => true,
    });
    Filter { config_type: Some(NetworkConfig::TypedConfig(any(&manager))), ..network.clone() }
}
