//! Pools as clusters, and the clusters of addresses that Envoy itself asks.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::extensions::load_balancing_policies as lb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::google::protobuf as google;
use headgate_core::envoy::DESTINATION_ENDPOINT;
use prost::Name;

use super::super::config::{Balancing, HealthCheck, Outliers, Pool, RemoteFile, Retries};
use super::tls;
use super::wrap::{any, duration, extension, from_ads, percent, tcp, whole};

/// Time to connect to an address that Envoy itself asks.
const REMOTE_CONNECT: Duration = Duration::from_secs(5);
/// Least size of the ring: the parts of 256 endpoints differ by a few percent.
const MIN_RING: u64 = 4096;

/// A pool, whose endpoints come by EDS.
pub(super) fn of_pool(pool: &Pool) -> Cluster {
    let discovery = cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Eds.into());
    Cluster {
        name: pool.name.clone(),
        cluster_discovery_type: Some(discovery),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig { eds_config: Some(from_ads()), service_name: String::new() }),
        connect_timeout: duration(pool.connect_timeout),
        load_balancing_policy: Some(balancing(pool)),
        // Without it Envoy would send to endpoints that are out once too many are: a GPU that computes wrong is no way out.
        common_lb_config: Some(cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: percent(0),
            // Envoy would hold changes of weight and health back for up to a second after the last one; the control plane spaces them itself.
            update_merge_window: duration(Duration::ZERO),
            ..cluster::cluster::CommonLbConfig::default()
        }),
        health_checks: pool.health_check.iter().map(|check| health_check(check, pool.is_http2)).collect(),
        outlier_detection: pool.outliers.as_ref().map(outliers),
        circuit_breakers: Some(fuse(pool.max_requests, pool.retries.as_ref())),
        typed_extension_protocol_options: protocol(pool.is_http2),
        transport_socket: pool.tls.as_ref().map(tls::upstream),
        ignore_health_on_host_removal: true,
        ..Cluster::default()
    }
}

/// An address that Envoy itself asks, for keys or tokens.
pub(super) fn of_remote(name: &str, remote: &RemoteFile, ca_file: &str) -> Cluster {
    let discovery = cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::StrictDns.into());
    let address = endpoint::Endpoint { address: Some(tcp(&remote.host, remote.port)), ..endpoint::Endpoint::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(address)),
        ..endpoint::LbEndpoint::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(discovery),
        connect_timeout: duration(REMOTE_CONNECT),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..endpoint::LocalityLbEndpoints::default() }],
            ..endpoint::ClusterLoadAssignment::default()
        }),
        transport_socket: remote.is_tls.then(|| tls::to_server(&remote.host, ca_file, Vec::new())),
        ..Cluster::default()
    }
}

fn balancing(pool: &Pool) -> cluster::LoadBalancingPolicy {
    let algorithm = only(algorithm(&pool.balancing));
    if !pool.follows_picks {
        return algorithm;
    }
    let header = DESTINATION_ENDPOINT.to_owned();
    let policy = lb::override_host::v3::OverrideHost {
        override_host_sources: vec![lb::override_host::v3::override_host::OverrideHostSource { header, metadata: None }],
        selected_host_key: None,
        fallback_policy: Some(algorithm),
    };
    only(extension("envoy.load_balancing_policies.override_host", &policy))
}

fn only(policy: core::TypedExtensionConfig) -> cluster::LoadBalancingPolicy {
    cluster::LoadBalancingPolicy { policies: vec![cluster::load_balancing_policy::Policy { typed_extension_config: Some(policy) }] }
}

fn algorithm(balancing: &Balancing) -> core::TypedExtensionConfig {
    match balancing {
        Balancing::RoundRobin { slow_start } | Balancing::Weighted { slow_start, .. } => {
            let policy = lb::round_robin::v3::RoundRobin { slow_start_config: slow_start.and_then(self::slow_start), ..Default::default() };
            extension("envoy.load_balancing_policies.round_robin", &policy)
        }
        Balancing::LeastRequest { slow_start, .. } => {
            let policy =
                lb::least_request::v3::LeastRequest { slow_start_config: slow_start.and_then(self::slow_start), ..Default::default() };
            extension("envoy.load_balancing_policies.least_request", &policy)
        }
        Balancing::LatencyAware { .. } => {
            // An endpoint that has just come gets the others' mean until it has told its load for ten seconds.
            let policy = lb::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin {
                blackout_period: duration(Duration::from_secs(10)),
                weight_update_period: duration(Duration::from_secs(1)),
                weight_expiration_period: duration(Duration::from_secs(180)),
                ..Default::default()
            };
            extension("envoy.load_balancing_policies.client_side_weighted_round_robin", &policy)
        }
        Balancing::ConsistentHash { .. } => {
            let minimum_ring_size = Some(google::UInt64Value { value: MIN_RING });
            let policy = lb::ring_hash::v3::RingHash { minimum_ring_size, ..Default::default() };
            extension("envoy.load_balancing_policies.ring_hash", &policy)
        }
    }
}

fn slow_start(window: Duration) -> Option<lb::common::v3::SlowStartConfig> {
    Some(lb::common::v3::SlowStartConfig { slow_start_window: duration(window), ..Default::default() })
}

fn health_check(check: &HealthCheck, is_http2: bool) -> core::HealthCheck {
    use envoy_types::pb::envoy::r#type::v3::CodecClientType;
    let codec = if is_http2 { CodecClientType::Http2 } else { CodecClientType::Http1 };
    let http = core::health_check::HttpHealthCheck {
        path: check.path.clone(),
        codec_client_type: codec.into(),
        ..core::health_check::HttpHealthCheck::default()
    };
    core::HealthCheck {
        timeout: duration(check.timeout),
        interval: duration(check.interval),
        // Ten percent apart, so that the checks of many proxies do not fall together.
        interval_jitter_percent: 10,
        // As often while nobody asks, so that not the next request finds out.
        no_traffic_interval: duration(check.interval),
        unhealthy_interval: duration(check.probe),
        unhealthy_edge_interval: duration(check.interval),
        unhealthy_threshold: whole(check.failures),
        healthy_threshold: whole(1),
        health_checker: Some(core::health_check::HealthChecker::HttpHealthCheck(http)),
        ..core::HealthCheck::default()
    }
}

/// Envoy judges the part of errors at the end of each interval, over that interval.
fn outliers(outliers: &Outliers) -> cluster::OutlierDetection {
    cluster::OutlierDetection {
        interval: duration(outliers.window),
        base_ejection_time: duration(outliers.ejection),
        // Not longer each time: a probe every so often, then the ramp.
        max_ejection_time: duration(outliers.ejection),
        max_ejection_percent: whole(outliers.max_ejected_percent),
        consecutive_5xx: whole(outliers.consecutive_errors),
        enforcing_consecutive_5xx: whole(100),
        enforcing_success_rate: whole(0),
        failure_percentage_threshold: whole(outliers.error_percent),
        enforcing_failure_percentage: whole(100),
        failure_percentage_minimum_hosts: whole(1),
        failure_percentage_request_volume: whole(outliers.min_requests),
        ..cluster::OutlierDetection::default()
    }
}

/// Far above what the policy admits; a pool that wants no retries gets none, whatever the route says.
fn fuse(max_requests: u32, retries: Option<&Retries>) -> cluster::CircuitBreakers {
    let budget = retries.map(|retries| cluster::circuit_breakers::thresholds::RetryBudget {
        budget_percent: percent(retries.budget_percent),
        min_retry_concurrency: whole(retries.min_concurrency),
        ..Default::default()
    });
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: whole(max_requests),
        max_pending_requests: whole(max_requests),
        max_requests: whole(max_requests),
        max_retries: if retries.is_none() { whole(0) } else { None },
        retry_budget: budget,
        ..cluster::circuit_breakers::Thresholds::default()
    };
    cluster::CircuitBreakers { thresholds: vec![thresholds], per_host_thresholds: Vec::new() }
}

fn protocol(is_http2: bool) -> HashMap<String, google::Any> {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let config = if is_http2 {
        ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions {
            connection_keepalive: Some(core::KeepaliveSettings {
                interval: duration(Duration::from_secs(10)),
                timeout: duration(Duration::from_secs(5)),
                ..core::KeepaliveSettings::default()
            }),
            ..core::Http2ProtocolOptions::default()
        })
    } else {
        ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default())
    };
    let options = http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) })),
        ..http::HttpProtocolOptions::default()
    };
    // Its key is the name of the message.
    [(http::HttpProtocolOptions::full_name(), any(&options))].into()
}
