//! What telemetry makes of endpoints: which of them are out of the balancing and why, and what the others weigh.
//!
//! `weight = max(10, w * (1 - min(u, 0.7)) * (1 - min(l, 2000 ms) / 2000 ms)) * c * r`: `w` the weight in the document, `u` the kernel-active
//! time of the busiest of the endpoint's GPUs, `l` its time to the first byte, `c` the part of their clocks that heat has left the GPUs, `r`
//! the ramp of an endpoint that has come back, from a tenth to 1. Source: requirement B6; `c` and `r` are ours.
//!
//! By saturation: `weight = w * max(0.1, 1 - s) * c * r`, `s` the moving mean over a second of `max(waiting / 5, kv / 0.8)` of the endpoint's
//! engine. Source of the two references: the utilisation detector of the Gateway API inference extension, which refuses by them; the
//! mean is ours, since every proxy follows a weight at once and would otherwise overshoot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::config::{Balancing, Endpoint, Pool, Weights};
use super::set::GatewaySet;
use crate::device::{DeviceView, EndpointDevices};
use crate::engine::page::Reading;

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
/// Requests that wait in an engine which is saturated.
const SATURATED_WAITING: f64 = 5.0;
/// Part of its KV cache that a saturated engine uses.
const SATURATED_KV: f64 = 0.8;
/// Least part of its weight that a saturated endpoint keeps: who gets nothing is never seen to be better.
const LEAST_PART: f64 = 0.1;
/// Time constant of the moving mean of saturation.
const SATURATION_MEMORY: Duration = Duration::from_secs(1);
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

/// What is measured of endpoints.
pub(super) struct Measured<'a> {
    /// The GPUs.
    pub(super) devices: &'a DeviceView,
    /// Time to the first byte of an endpoint.
    pub(super) latency: &'a dyn Fn(SocketAddr) -> Option<Duration>,
    /// What the engine of an endpoint says of itself.
    pub(super) engine: &'a dyn Fn(SocketAddr) -> Option<Reading>,
}

/// What is remembered of endpoints from one look at telemetry to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct TelemetryMemory {
    told: EndpointStates,
    /// When endpoints that were out came back.
    back_since: BTreeMap<(String, SocketAddr), Timestamp>,
    /// Moving means of saturation, with the time of the last figure in them.
    saturation: BTreeMap<(String, SocketAddr), (f64, Timestamp)>,
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
    /// Looks at what is measured: the states as they are to be told. Weights that have changed by less than a tenth stay as they were, so
    /// that equal states mean that nobody needs to be told anything.
    pub(super) fn look(&mut self, now: Timestamp, set: &GatewaySet, measured: &Measured<'_>) -> EndpointStates {
        let mut states = BTreeMap::new();
        let mut known = BTreeSet::new();
        for pool in set.pools() {
            for endpoint in &pool.endpoints {
                let key = (pool.name.clone(), endpoint.address);
                let seen = measured.devices.of_endpoint(&endpoint.gpus, endpoint.node.as_deref());
                let state = self.state(now, pool, endpoint, &seen, measured);
                known.insert(key.clone());
                if state != (EndpointState { weight: endpoint.weight, out_because: String::new() }) {
                    states.insert(key, state);
                }
            }
        }
        self.back_since.retain(|key, _| known.contains(key));
        self.saturation.retain(|key, _| known.contains(key));
        self.told = EndpointStates(states);
        self.told.clone()
    }

    fn state(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        endpoint: &Endpoint,
        seen: &EndpointDevices,
        measured: &Measured<'_>,
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
        let given = f64::from(endpoint.weight);
        let weighs = match pool.balancing.weights() {
            Some(Weights::Telemetry) => formula(given, seen.utilisation, (measured.latency)(endpoint.address)) * seen.capacity,
            Some(Weights::Saturation) => {
                let saturation = self.saturation(now, &key, (measured.engine)(endpoint.address).as_ref());
                given * (1.0 - saturation).max(LEAST_PART) * seen.capacity
            }
            Some(Weights::Given) | None => given,
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

    /// The moving mean of an endpoint's saturation; what nobody reads is not saturated.
    fn saturation(&mut self, now: Timestamp, key: &(String, SocketAddr), reading: Option<&Reading>) -> f64 {
        let Some(new) = reading.and_then(saturation) else {
            self.saturation.remove(key);
            return 0.0;
        };
        let mean = match self.saturation.get(key) {
            Some((mean, at)) => {
                let kept = (-now.since(*at).as_secs_f64() / SATURATION_MEMORY.as_secs_f64()).exp();
                kept * mean + (1.0 - kept) * new
            }
            None => new,
        };
        self.saturation.insert(key.clone(), (mean, now));
        mean
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

/// How saturated an engine is, 0 to 1; `None` when it tells neither its queue nor its KV cache.
fn saturation(reading: &Reading) -> Option<f64> {
    let queue = reading.waiting.map(|waiting| waiting as f64 / SATURATED_WAITING);
    let kv = reading.kv_fullest.or(reading.kv_use).map(|part| part / SATURATED_KV);
    let most = queue.into_iter().chain(kv).reduce(f64::max)?;
    Some(most.clamp(0.0, 1.0))
}
