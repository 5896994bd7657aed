//! What telemetry makes of endpoints: which of them are out of the balancing and why, and what the others weigh.
//!
//! `weight = max(10, w * (1 - min(u, 0.7)) * (1 - min(l, 2000 ms) / 2000 ms)) * c * r`: `w` the weight in the document, `u` the kernel-active
//! time of the busiest of the endpoint's GPUs, `l` its time to the first byte, `c` the part of their clocks that heat has left the GPUs, `r`
//! the ramp of an endpoint that has come back, from a tenth to 1. Source: requirement B6; `c` and `r` are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::config::{Balancing, Endpoint, Pool, Weights};
use super::set::GatewaySet;
use crate::device::{DeviceView, EndpointDevices};

#[cfg(test)]
mod tests;

/// Utilisation beyond which an endpoint loses no more weight.
const MOST_UTILISATION: f64 = 0.7;
/// Latency at which only the least weight is left, in milliseconds.
const LATENCY_SPAN_MS: f64 = 2000.0;
/// Least weight of an endpoint that is in, as the formula has it.
const LEAST_WEIGHT: f64 = 10.0;
/// Part of its weight with which an endpoint comes back.
const RAMP_FROM: f64 = 0.1;
/// Changes of a weight below this part of it are not told: every telling moves traffic.
const TOLD_PART: f64 = 0.1;

/// The state of one endpoint in the balancing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// Its part against the others of its tier, at least 1.
    pub weight: u32,
    /// Why it is out; empty: it is in.
    pub out_because: String,
}

/// An endpoint with its state, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its pool.
    pub pool: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its part against the others of its tier.
    pub weight: u32,
    /// Why it is out; empty: it is in.
    pub out_because: String,
}

/// The states that differ from what the documents say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStates(BTreeMap<(String, SocketAddr), EndpointState>);

/// What is remembered of endpoints from one look at telemetry to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct TelemetryMemory {
    told: EndpointStates,
    /// When endpoints that were out came back.
    back_since: BTreeMap<(String, SocketAddr), Timestamp>,
}

// === impl EndpointStates ===

impl EndpointStates {
    /// The state of an endpoint of a pool.
    pub fn of(&self, pool: &Pool, endpoint: &Endpoint) -> EndpointState {
        let known = self.0.get(&(pool.name.clone(), endpoint.address)).cloned();
        known.unwrap_or_else(|| EndpointState { weight: endpoint.weight, out_because: String::new() })
    }
}

impl EndpointView {
    /// All endpoints of a set.
    pub(super) fn all(set: &GatewaySet, states: &EndpointStates) -> Vec<Self> {
        let view = |pool: &Pool, endpoint: &Endpoint| {
            let EndpointState { weight, out_because } = states.of(pool, endpoint);
            Self { pool: pool.name.clone(), address: endpoint.address, weight, out_because }
        };
        set.pools().flat_map(|pool| pool.endpoints.iter().map(move |endpoint| view(pool, endpoint))).collect()
    }
}

// === impl TelemetryMemory ===

impl TelemetryMemory {
    /// Looks at the devices: the states as they are to be told. Weights that have changed by less than a tenth stay as they were, so that
    /// equal states mean that nobody needs to be told anything. `latency` gives the time to the first byte of an endpoint.
    pub(super) fn look(
        &mut self,
        now: Timestamp,
        set: &GatewaySet,
        devices: &DeviceView,
        latency: &dyn Fn(SocketAddr) -> Option<Duration>,
    ) -> EndpointStates {
        let mut states = BTreeMap::new();
        let mut known = BTreeSet::new();
        for pool in set.pools() {
            for endpoint in &pool.endpoints {
                let key = (pool.name.clone(), endpoint.address);
                let seen = devices.of_endpoint(&endpoint.gpus, endpoint.node.as_deref());
                let state = self.state(now, pool, endpoint, &seen, latency(endpoint.address));
                known.insert(key.clone());
                if state != (EndpointState { weight: endpoint.weight, out_because: String::new() }) {
                    states.insert(key, state);
                }
            }
        }
        self.back_since.retain(|key, _| known.contains(key));
        self.told = EndpointStates(states);
        self.told.clone()
    }

    fn state(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        endpoint: &Endpoint,
        seen: &EndpointDevices,
        latency: Option<Duration>,
    ) -> EndpointState {
        let key = (pool.name.clone(), endpoint.address);
        let told = self.told.of(pool, endpoint);
        if let Some(because) = &seen.ejected {
            if told.out_because.is_empty() {
                tracing::warn!(pool = pool.name, endpoint = %endpoint.address, because, "an endpoint leaves the balancing");
            }
            return EndpointState { weight: told.weight, out_because: because.clone() };
        }
        if !told.out_because.is_empty() {
            tracing::info!(pool = pool.name, endpoint = %endpoint.address, "an endpoint comes back into the balancing");
            self.back_since.insert(key.clone(), now);
        }
        let weighs = if pool.balancing.weights() == Some(Weights::Telemetry) {
            formula(endpoint.weight.into(), seen.utilisation, latency) * seen.capacity
        } else {
            endpoint.weight.into()
        };
        let ramp = self.ramp(now, &key, &pool.balancing);
        let weight = (weighs * ramp).round().max(1.0);
        // A ramp moves on, and ends where it should.
        let is_news = ramp < 1.0 || told.weight == 0 || (weight - f64::from(told.weight)).abs() > TOLD_PART * f64::from(told.weight);
        let is_back = self.back_since.contains_key(&key);
        if ramp >= 1.0 {
            self.back_since.remove(&key);
        }
        EndpointState { weight: if is_news || is_back { weight as u32 } else { told.weight }, out_because: String::new() }
    }

    /// Part of its weight that an endpoint has which came back, in steps of a tenth.
    fn ramp(&self, now: Timestamp, key: &(String, SocketAddr), balancing: &Balancing) -> f64 {
        let (Some(since), Some(window)) = (self.back_since.get(key), balancing.ramp()) else { return 1.0 };
        let passed = now.since(*since).as_secs_f64() / window.as_secs_f64();
        ((passed * 10.0).floor() / 10.0).clamp(RAMP_FROM, 1.0)
    }
}

/// Weight by utilisation, 0 to 1, and time to the first byte; what is not known takes nothing away.
fn formula(weight: f64, utilisation: Option<f64>, latency: Option<Duration>) -> f64 {
    let used = utilisation.unwrap_or(0.0).min(MOST_UTILISATION);
    let late = latency.map_or(0.0, |latency| (latency.as_secs_f64() * 1e3 / LATENCY_SPAN_MS).min(1.0));
    // A document may want less than the least.
    (weight * (1.0 - used) * (1.0 - late)).max(LEAST_WEIGHT.min(weight))
}
