//! What the replicas tell, in Envoy's own messages: a listener, its routes and filter, a pool and its endpoint, a runtime layer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, DataSource, ExtensionConfigSource, GrpcService,
    SocketAddress, TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as NetworkConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::lua::v3::Lua;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfig;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter, Rds};
use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{self, Any, Struct, Value};
use headgate_test_support::envoy::{CONTROL_AUTHORITY, CONTROL_CLUSTER};
use headgate_xds::{Resource, ResourceName, ResourceType};
use prost::{Message, Name};

use crate::bootstrap::Mode;

/// The runtime layer that expires.
pub(crate) const RUNTIME_LAYER: &str = "faults";
/// Its key.
pub(crate) const RUNTIME_KEY: &str = "headgate.fault";
/// Its time to live.
pub(crate) const RUNTIME_TTL: Duration = Duration::from_millis(600);
/// Header of responses that says which filter they went through.
pub(crate) const FILTER_HEADER: &str = "x-filter";
/// Name of the filter and of its configuration.
pub(crate) const FILTER: &str = "marker";

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) mode: Mode,
    pub(crate) endpoint: SocketAddr,
    /// 0 is one that Envoy refuses.
    pub(crate) connect_timeout_s: i64,
    /// `None` is a filter that Envoy refuses.
    pub(crate) filter: Option<&'static str>,
    /// A second listener with a cluster of its own.
    pub(crate) has_extra: bool,
    pub(crate) runtime_value: u32,
}

impl World {
    pub(crate) fn resources(&self) -> Result<Vec<Resource>> {
        let mut all =
            vec![self.filter_configuration()?, encoded(ResourceType::Runtime, RUNTIME_LAYER, &self.runtime())?.expiring(RUNTIME_TTL)];
        for pool in if self.has_extra { &["pool", "extra"][..] } else { &["pool"][..] } {
            let cluster = encoded(ResourceType::Cluster, pool, &self.cluster(pool))?;
            all.push(cluster.needing(ResourceType::Endpoint, ResourceName::new(pool)?));
            all.push(encoded(ResourceType::Endpoint, pool, &self.endpoints(pool))?);
            all.push(encoded(ResourceType::Route, pool, &routes(pool))?.needing(ResourceType::Cluster, ResourceName::new(pool)?));
            let listener = encoded(ResourceType::Listener, pool, &self.listener(pool))?;
            all.push(listener.needing(ResourceType::Route, ResourceName::new(pool)?));
        }
        Ok(all)
    }

    fn source(&self, kind: ResourceType) -> ConfigSource {
        let target = EnvoyGrpc { cluster_name: CONTROL_CLUSTER.into(), authority: CONTROL_AUTHORITY.into(), ..EnvoyGrpc::default() };
        let service = GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)), ..GrpcService::default() };
        let api_type = if self.mode.is_delta(kind) { ApiType::DeltaGrpc } else { ApiType::Grpc };
        let specifier = match self.mode {
            Mode::AggregatedSotw | Mode::AggregatedDelta => ConfigSourceSpecifier::Ads(AggregatedConfigSource {}),
            Mode::Split => ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
                api_type: api_type.into(),
                transport_api_version: ApiVersion::V3.into(),
                grpc_services: vec![service],
                ..ApiConfigSource::default()
            }),
        };
        ConfigSource { resource_api_version: ApiVersion::V3.into(), config_source_specifier: Some(specifier), ..ConfigSource::default() }
    }

    fn cluster(&self, name: &str) -> Cluster {
        let eds = EdsClusterConfig { eds_config: Some(self.source(ResourceType::Endpoint)), ..EdsClusterConfig::default() };
        Cluster {
            name: name.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(eds),
            connect_timeout: Some(protobuf::Duration { seconds: self.connect_timeout_s, nanos: 0 }),
            ..Cluster::default()
        }
    }

    fn endpoints(&self, name: &str) -> ClusterLoadAssignment {
        let endpoint = Endpoint { address: Some(socket(self.endpoint)), ..Endpoint::default() };
        let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
        let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
        ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..ClusterLoadAssignment::default() }
    }

    fn listener(&self, name: &str) -> Listener {
        let discovered = ExtensionConfigSource {
            config_source: Some(self.source(ResourceType::ExtensionConfig)),
            type_urls: vec![Lua::type_url()],
            ..ExtensionConfigSource::default()
        };
        let filter = |name: &str, config| HttpFilter { name: name.into(), config_type: Some(config), ..HttpFilter::default() };
        let manager = HttpConnectionManager {
            stat_prefix: name.into(),
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                config_source: Some(self.source(ResourceType::Route)),
                route_config_name: name.into(),
            })),
            http_filters: vec![
                filter(FILTER, HttpConfig::ConfigDiscovery(discovered)),
                filter("envoy.filters.http.router", HttpConfig::TypedConfig(any(&Router::default()))),
            ],
            ..HttpConnectionManager::default()
        };
        let filter = Filter {
            name: "envoy.filters.network.http_connection_manager".into(),
            config_type: Some(NetworkConfig::TypedConfig(any(&manager))),
        };
        Listener {
            name: name.into(),
            address: Some(socket(SocketAddr::from(([127, 0, 0, 1], 0)))),
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        }
    }

    fn filter_configuration(&self) -> Result<Resource> {
        let code = match self.filter {
            Some(version) => {
                format!("function envoy_on_response(handle) handle:headers():add(\"{FILTER_HEADER}\", \"{version}\") end")
            }
            None => "function function".to_owned(),
        };
        let code = DataSource { specifier: Some(Specifier::InlineString(code)), ..DataSource::default() };
        let lua = Lua { default_source_code: Some(code), ..Lua::default() };
        encoded(ResourceType::ExtensionConfig, FILTER, &TypedExtensionConfig { name: FILTER.into(), typed_config: Some(any(&lua)) })
    }

    fn runtime(&self) -> Runtime {
        let value = Value { kind: Some(Kind::NumberValue(f64::from(self.runtime_value))) };
        Runtime { name: RUNTIME_LAYER.into(), layer: Some(Struct { fields: [(RUNTIME_KEY.to_owned(), value)].into() }) }
    }
}

fn routes(name: &str) -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(name.into())),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

fn encoded(kind: ResourceType, name: &str, message: &impl Message) -> Result<Resource> {
    Ok(Resource::new(kind, ResourceName::new(name)?, message.encode_to_vec().into()))
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn socket(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}
