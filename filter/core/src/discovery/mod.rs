//! The filter's side of delta discovery for `headgate.v1.Policy` and `headgate.v1.Limits`, without I/O.
//!
//! The caller opens the stream when [`DiscoveryClient::is_due`] says so, sends what [`DiscoveryClient::open`] returns, hands every
//! message to [`DiscoveryClient::on_message`] and the end of the stream to [`DiscoveryClient::on_close`].
//!
//! Source: xDS protocol, <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>, section "Incremental xDS".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use headgate_protos::{Any, LIMITS_TYPE_URL, POLICY_TYPE_URL, envoy_core, rpc, v1};
use prost::Message;
use thiserror::Error;

use crate::policy::Policy;
use crate::rng::Rng;
use crate::time::Timestamp;

mod shared;
#[cfg(test)]
mod tests;

pub use shared::{LimitsSnapshot, PolicySnapshot};

/// Policies, and pools with limits, that a client holds.
pub const MAX_RESOURCES: usize = 64;
/// Longest message that is read.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// First upper bound of the time before a new attempt.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Largest upper bound. Filters must be back within 2 s of a restart of the control plane, whenever it comes.
pub const BACKOFF_MAX: Duration = Duration::from_millis(1500);
/// Longest text of a NACK.
const MAX_ERROR_BYTES: usize = 4096;
/// gRPC code of a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// Who the client says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeIdentity {
    /// `node.id` of the proxy.
    pub id: String,
    /// `node.cluster` of the proxy.
    pub cluster: String,
    /// Version of the filter.
    pub version: String,
}

/// What a message changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DiscoveryOutput {
    /// New and changed policies; each has passed the validator.
    pub policies: Vec<v1::Policy>,
    /// Names of policies that are gone.
    pub removed_policies: Vec<String>,
    /// New and changed limits.
    pub limits: Vec<v1::Limits>,
    /// Pools whose limits are gone.
    pub removed_limits: Vec<String>,
    /// What to send: an ACK or a NACK.
    pub replies: Vec<DeltaDiscoveryRequest>,
}

/// A message after which the stream cannot go on: close it and report it to [`DiscoveryClient::on_close`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StreamFault {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("discovery: a message of {got} bytes exceeds {MAX_MESSAGE_BYTES}")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// Not a `DeltaDiscoveryResponse`.
    #[error("discovery: the message cannot be decoded: {problem}")]
    Undecodable {
        /// What the decoder says.
        problem: String,
    },
}

/// A resource in force.
#[derive(Debug, Clone)]
struct Held<T> {
    version: String,
    resource: T,
}

/// The client.
#[derive(Debug, Clone)]
pub struct DiscoveryClient {
    node: NodeIdentity,
    policies: BTreeMap<String, Held<v1::Policy>>,
    limits: BTreeMap<String, Held<v1::Limits>>,
    /// Refused policies by name.
    rejected: BTreeMap<String, v1::RejectedPolicy>,
    rng: Rng,
    /// Attempts since the last message from a server.
    attempts: u32,
    stream: Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Open,
    ClosedUntil(Timestamp),
}

impl DiscoveryClient {
    /// A client that holds nothing. `seed` decides the jitter and should differ between proxies.
    #[must_use]
    pub fn new(node: NodeIdentity, seed: u64) -> Self {
        Self {
            node,
            policies: BTreeMap::new(),
            limits: BTreeMap::new(),
            rejected: BTreeMap::new(),
            rng: Rng::new(seed),
            attempts: 0,
            stream: Stream::ClosedUntil(Timestamp::ZERO),
        }
    }

    /// Takes over what an earlier leader had published, so that a new leader asks only for what has changed.
    ///
    /// Policies that do not pass the validator and entries beyond [`MAX_RESOURCES`] are left out.
    pub fn adopt(&mut self, policies: &PolicySnapshot, limits: &LimitsSnapshot) {
        for policy in policies.policies.iter().filter(|policy| Policy::try_from_wire(policy).is_ok()) {
            let held = Held { version: policy.version.clone(), resource: policy.clone() };
            // A bound that is reached leaves the rest to the server, which sends what the client does not name.
            let _ = hold(&mut self.policies, &policy.name, held);
        }
        for limits in &limits.limits {
            // Their version is not part of the message, so the server sends them again.
            let _ = hold(&mut self.limits, &limits.pool, Held { version: String::new(), resource: limits.clone() });
        }
    }

    /// Whether it is time to open the stream.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        matches!(self.stream, Stream::ClosedUntil(at) if now >= at)
    }

    /// The first messages of a new stream: a wildcard subscription to each type, with the versions that the client has.
    pub fn open(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.stream = Stream::Open;
        let policies = versions(&self.policies);
        let limits = versions(&self.limits);
        [(POLICY_TYPE_URL, policies), (LIMITS_TYPE_URL, limits)]
            .into_iter()
            .map(|(type_url, initial_resource_versions)| DeltaDiscoveryRequest {
                node: Some(self.wire_node()),
                type_url: type_url.into(),
                resource_names_subscribe: alloc::vec!["*".into()],
                initial_resource_versions,
                ..DeltaDiscoveryRequest::default()
            })
            .collect()
    }

    /// Takes a message in.
    ///
    /// Good resources are taken over even when others of the same message are refused; the message as a whole is then a NACK that
    /// names each refused one and what is wrong with it, and the last good version of that one stays in force.
    ///
    /// # Errors
    /// [`StreamFault`] when the message is too long or no discovery response.
    pub fn on_message(&mut self, bytes: &[u8]) -> Result<DiscoveryOutput, StreamFault> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(StreamFault::TooLong { got: bytes.len() });
        }
        let response =
            DeltaDiscoveryResponse::decode(bytes).map_err(|problem| StreamFault::Undecodable { problem: problem.to_string() })?;
        self.attempts = 0;
        let DeltaDiscoveryResponse { system_version_info: _, resources, type_url, nonce, removed_resources } = response;
        let mut output = DiscoveryOutput::default();
        let errors = match type_url.as_str() {
            POLICY_TYPE_URL => self.on_policies(resources, removed_resources, &mut output),
            LIMITS_TYPE_URL => self.on_all_limits(resources, removed_resources, &mut output),
            other => alloc::vec![format!("type `{}` was not asked for", clip(other, 256))],
        };
        output.replies.push(DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail: (!errors.is_empty()).then(|| nack(&errors)),
            ..DeltaDiscoveryRequest::default()
        });
        Ok(output)
    }

    /// The stream has ended, or could not be opened. Returns the time to wait before the next attempt: uniform between 0 and a bound
    /// that doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`] (full jitter) and falls back with the first message of a stream.
    pub fn on_close(&mut self, now: Timestamp) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(BACKOFF_MAX);
        self.attempts = self.attempts.saturating_add(1).min(31);
        let wait = bound.mul_f64(self.rng.next_f64());
        self.stream = Stream::ClosedUntil(now + wait);
        wait
    }

    /// Policies in force, by name.
    pub fn policies(&self) -> impl Iterator<Item = &v1::Policy> {
        self.policies.values().map(|held| &held.resource)
    }

    /// Limits in force, by pool.
    pub fn limits(&self) -> impl Iterator<Item = &v1::Limits> {
        self.limits.values().map(|held| &held.resource)
    }

    /// Policies that were refused and not replaced since, by name.
    pub fn rejected(&self) -> impl Iterator<Item = &v1::RejectedPolicy> {
        self.rejected.values()
    }

    fn on_policies(&mut self, resources: Vec<Resource>, removed: Vec<String>, output: &mut DiscoveryOutput) -> Vec<String> {
        // Removals first: they may make room.
        for name in removed {
            self.rejected.remove(&name);
            if self.policies.remove(&name).is_some() {
                output.removed_policies.push(name);
            }
        }
        resources.into_iter().filter_map(|resource| self.on_policy(resource, output).err()).collect()
    }

    fn on_all_limits(&mut self, resources: Vec<Resource>, removed: Vec<String>, output: &mut DiscoveryOutput) -> Vec<String> {
        for pool in removed {
            if self.limits.remove(&pool).is_some() {
                output.removed_limits.push(pool);
            }
        }
        resources.into_iter().filter_map(|resource| self.on_limits(resource, output).err()).collect()
    }

    fn on_policy(&mut self, resource: Resource, output: &mut DiscoveryOutput) -> Result<(), String> {
        let Resource { version, resource, name, ttl: _ } = resource;
        let Some(body) = resource else { return Ok(()) };
        match checked_policy(&name, &version, &body).and_then(|policy| self.hold_policy(version.clone(), policy)) {
            Ok(policy) => {
                self.rejected.remove(&name);
                output.policies.push(policy);
                Ok(())
            }
            Err(error) => {
                let error = clip(&error, MAX_ERROR_BYTES).to_string();
                let text = format!("{}: {error}", clip(&name, 64));
                if self.rejected.len() < MAX_RESOURCES || self.rejected.contains_key(&name) {
                    self.rejected.insert(name.clone(), v1::RejectedPolicy { name, version, error });
                }
                Err(text)
            }
        }
    }

    fn on_limits(&mut self, resource: Resource, output: &mut DiscoveryOutput) -> Result<(), String> {
        let Resource { version, resource, name, ttl: _ } = resource;
        let Some(body) = resource else { return Ok(()) };
        let named = |error: String| format!("{}: {error}", clip(&name, 64));
        let limits = decode::<v1::Limits>(LIMITS_TYPE_URL, &body).map_err(named)?;
        if limits.pool != name {
            return Err(named(format!("pool: `{}` is not the resource's name", clip(&limits.pool, 64))));
        }
        output.limits.push(self.hold_limits(version, limits).map_err(named)?);
        Ok(())
    }

    fn hold_policy(&mut self, version: String, policy: v1::Policy) -> Result<v1::Policy, String> {
        hold(&mut self.policies, &policy.name, Held { version, resource: policy.clone() })?;
        Ok(policy)
    }

    fn hold_limits(&mut self, version: String, limits: v1::Limits) -> Result<v1::Limits, String> {
        hold(&mut self.limits, &limits.pool, Held { version, resource: limits.clone() })?;
        Ok(limits)
    }

    fn wire_node(&self) -> envoy_core::Node {
        let NodeIdentity { id, cluster, version } = &self.node;
        envoy_core::Node {
            id: id.clone(),
            cluster: cluster.clone(),
            user_agent_name: "headgate-filter".into(),
            user_agent_version: version.clone(),
            ..envoy_core::Node::default()
        }
    }
}

/// A policy that may come into force, or what is wrong with it.
fn checked_policy(name: &str, version: &str, body: &Any) -> Result<v1::Policy, String> {
    let mut policy = decode::<v1::Policy>(POLICY_TYPE_URL, body)?;
    if policy.version.is_empty() {
        policy.version = version.to_string();
    }
    if policy.name != name {
        return Err(format!("name: `{}` is not the resource's name", clip(&policy.name, 64)));
    }
    Policy::try_from_wire(&policy).map_err(|errors| one_line(&errors.to_string()))?;
    Ok(policy)
}

/// Puts a resource in force, unless there are too many.
fn hold<T>(held: &mut BTreeMap<String, Held<T>>, name: &str, resource: Held<T>) -> Result<(), String> {
    if held.len() >= MAX_RESOURCES && !held.contains_key(name) {
        return Err(format!("there are {MAX_RESOURCES} of them already"));
    }
    held.insert(name.to_string(), resource);
    Ok(())
}

fn versions<T>(held: &BTreeMap<String, Held<T>>) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    versions.extend(held.iter().map(|(name, held)| (name.clone(), held.version.clone())));
    versions
}

fn decode<T: Message + Default>(type_url: &str, body: &Any) -> Result<T, String> {
    if body.type_url != type_url {
        return Err(format!("type `{}` is not `{type_url}`", clip(&body.type_url, 256)));
    }
    T::decode(body.value.as_ref()).map_err(|problem| format!("cannot be decoded: {problem}"))
}

fn nack(errors: &[String]) -> rpc::Status {
    let text = errors.join("; ");
    rpc::Status { code: INVALID_ARGUMENT, message: clip(&text, MAX_ERROR_BYTES).to_string(), details: Vec::new() }
}

/// Several errors, one a line, as one line.
fn one_line(errors: &str) -> String {
    errors.trim_end().replace('\n', "; ")
}

/// The front of a text that comes from a peer, at most `max` bytes.
fn clip(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}
