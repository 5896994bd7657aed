//! The gateway as metrics. Labels: pools and endpoints, bounded by the documents.

use std::fmt;

use super::Out;
use crate::gateway::EndpointView;

pub(super) fn encode(endpoints: &[EndpointView], refusals: usize, out: &mut Out<'_>) -> fmt::Result {
    let weights = endpoints.iter().map(|endpoint| {
        let weight = if endpoint.out_because.is_empty() { f64::from(endpoint.weight) } else { 0.0 };
        (vec![("pool", endpoint.pool.clone()), ("endpoint", endpoint.address.to_string())], weight)
    });
    out.gauges("headgate_gateway_endpoint_weight", "Weight of an endpoint in the balancing; 0: it is out", weights)?;
    out.gauge("headgate_gateway_refusals", "Resources of the gateway that proxies refuse, at most 256", refusals as f64)
}
