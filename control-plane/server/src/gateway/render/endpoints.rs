//! The endpoints of a pool, as EDS tells them.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::super::config::{Endpoint, Pool};
use super::super::telemetry::{EndpointState, EndpointStates};
use super::wrap::{tcp, whole};

/// The endpoints of `pool`, by tier and zone, with what telemetry says of them.
pub(super) fn assignment(pool: &Pool, states: &EndpointStates) -> ClusterLoadAssignment {
    let mut groups: BTreeMap<(u32, &str), Vec<endpoint::LbEndpoint>> = BTreeMap::new();
    for endpoint in &pool.endpoints {
        // A tier stays, whoever is left in it: Envoy wants tiers without gaps.
        let group = groups.entry((endpoint.tier, &endpoint.zone)).or_default();
        let mut state = states.of(pool, endpoint);
        // Envoy does not look at the health of an endpoint that a request names (`findHost` in `override_host/load_balancer.cc`); one that
        // is not there it cannot find.
        if pool.follows_picks && !state.out_because.is_empty() {
            continue;
        }
        if pool.balancing.weights().is_none() {
            state.weight = 1;
        }
        group.push(lb_endpoint(endpoint, &state));
    }
    let endpoints = groups.into_iter().map(|((tier, zone), lb_endpoints)| endpoint::LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
        lb_endpoints,
        priority: tier,
        ..endpoint::LocalityLbEndpoints::default()
    });
    ClusterLoadAssignment {
        cluster_name: pool.name.clone(),
        endpoints: endpoints.collect(),
        policy: Some(endpoint::cluster_load_assignment::Policy {
            overprovisioning_factor: whole(pool.overprovisioning_percent),
            ..endpoint::cluster_load_assignment::Policy::default()
        }),
        ..ClusterLoadAssignment::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint, state: &EndpointState) -> endpoint::LbEndpoint {
    let health = if state.out_because.is_empty() { HealthStatus::Unknown } else { HealthStatus::Unhealthy };
    let address = endpoint::Endpoint {
        address: Some(tcp(&endpoint.address.ip().to_string(), endpoint.address.port())),
        ..endpoint::Endpoint::default()
    };
    endpoint::LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: whole(state.weight),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(address)),
        ..endpoint::LbEndpoint::default()
    }
}
