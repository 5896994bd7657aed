//! Everything that one worker VM knows.

use alloc::sync::Arc;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::policy::{ClaimName, Policy};
use crate::time::Timestamp;

/// What the adapter must read of a request besides its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs<'a> {
    /// Whether the peer certificate's URI SAN is needed.
    pub spiffe: bool,
    /// Claims of verified JWTs, in the order of [`crate::request::VerifiedIdentity::jwt_claims`].
    pub jwt_claims: &'a [ClaimName],
}

/// What a worker would like to hold of its proxy's grant for one policy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Want {
    /// Permits in use now.
    pub permits_in_use: u32,
    /// Permits that the demand seen lately needs; at least those in use.
    pub permits_wanted: u32,
    /// Requests per second offered lately; the proxy's rates are divided in proportion to it.
    pub rate_wanted: f64,
}

/// State of one worker VM.
#[derive(Debug)]
pub struct Worker {}

impl Worker {
    /// A worker without policies. `seed` is the identity of the VM: it names the worker's counters in reports and seeds its
    /// randomness.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let _ = seed;
        Self {}
    }

    /// Puts `policies` in force. Counters, breakers, buckets, limits and permits of a policy whose name persists are kept. A new
    /// policy with `concurrency` admits nothing before [`Worker::set_permits`].
    pub fn set_policies(&mut self, now: Timestamp, policies: Vec<Arc<Policy>>) {
        let _ = (now, policies);
    }

    /// The policies in force; their positions are the `policy_index` of the other methods.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        core::iter::empty()
    }

    /// Takes limits of a pool; an older epoch than the one held is ignored. False when no policy protects that pool: the caller
    /// offers them again after [`Worker::set_policies`].
    pub fn set_limits(&mut self, now: Timestamp, wire: &v1::Limits) -> bool {
        let _ = (now, wire);
        false
    }

    /// Epoch of the newest limits of a policy; 0 for none.
    #[must_use]
    pub fn limits_epoch(&self, policy_index: usize) -> u64 {
        let _ = policy_index;
        0
    }

    /// Gives the worker its part of the proxy's grant: `permits` of `maxInFlight`, and the part (0 to 1) of the proxy's rates.
    pub fn set_permits(&mut self, policy_index: usize, permits: u32, rate_share: f64) {
        let _ = (policy_index, permits, rate_share);
    }

    /// What the worker would like to hold.
    #[must_use]
    pub fn wants(&self, policy_index: usize) -> Want {
        let _ = policy_index;
        Want::default()
    }

    /// What the adapter must read of each request besides its headers.
    #[must_use]
    pub fn needs(&self) -> Needs<'_> {
        Needs { spiffe: false, jwt_claims: &[] }
    }

    /// Counts a host call that returned an unexpected status.
    pub fn count_host_error(&mut self) {}

    /// Moves everything on that moves with time: breakers, the worker's own levels, expiry of limits. Every 10 to 100 ms.
    pub fn on_tick(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// Cumulative state for the control plane, as slot `slot` of the proxy.
    #[must_use]
    pub fn report(&self, now: Timestamp, slot: u32) -> v1::WorkerReport {
        let _ = (now, slot);
        v1::WorkerReport::default()
    }
}
