//! What the VMs of one proxy share: keys `hg/<instance>/…` in shared data.
//!
//! A key can be created but never removed, and a compare-and-set creates nothing, so keys exist before anybody competes for them.
//! Readers poll `version`, which the leader raises after it has written the blobs: 16 bytes a tick instead of the blobs.

use crate::host::{self, HostError};
use headgate_protos::v1;
use prost::Message;

/// The keys of one instance.
pub(crate) struct Keys {
    prefix: String,
    /// Who leads.
    pub(crate) lead: String,
    /// Number of the newest configuration and the hash of it, a pair.
    pub(crate) generation: String,
    /// Numbers of the newest policies and of the newest limits, a pair; 0: none yet.
    pub(crate) version: String,
    /// A `PolicySnapshot`.
    pub(crate) policies: String,
    /// [`LimitsSet`].
    pub(crate) limits: String,
    /// Which VM has which report slot.
    pub(crate) roster: String,
}

impl Keys {
    /// The keys of `instance`.
    pub(crate) fn new(instance: &str) -> Self {
        let key = |name| format!("hg/{instance}/{name}");
        Self {
            prefix: key(""),
            lead: key("lead"),
            generation: key("gen"),
            version: key("version"),
            policies: key("policies"),
            limits: key("limits"),
            roster: key("roster"),
        }
    }

    /// Report of the VM in a slot.
    pub(crate) fn slot(&self, slot: usize) -> String {
        format!("{}slot/{slot}", self.prefix)
    }

    /// Sub-leases of a policy.
    pub(crate) fn lease(&self, policy: &str) -> String {
        format!("{}lease/{policy}", self.prefix)
    }
}

/// The value of `key` and its CAS number; creates it with `initial` if it does not exist.
pub(crate) fn read_or_create(key: &str, initial: &[u8]) -> Result<(Vec<u8>, u32), HostError> {
    match host::shared(key) {
        Err(HostError::NOT_FOUND) => {
            host::set_shared(key, initial, 0)?;
            host::shared(key)
        }
        result => result,
    }
}

/// Reads `key`, changes it and writes it back, again if somebody else was faster. `change` returns the new bytes and what is to be
/// returned once they are written; `None` leaves the value alone.
pub(crate) fn update<T>(key: &str, mut change: impl FnMut(&[u8]) -> Option<(Vec<u8>, T)>) -> Option<T> {
    // Somebody else's success is what makes ours fail, so more failures than this mean a broken host.
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        let (bytes, cas) = read_or_create(key, &[]).ok()?;
        let (changed, result) = change(&bytes)?;
        match host::set_shared(key, &changed, cas) {
            Ok(()) => return Some(result),
            Err(HostError::CAS_MISMATCH) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Two numbers from 16 bytes, as [`encode_pair`] writes them; anything else is (0, 0), nothing yet.
pub(crate) fn decode_pair(bytes: &[u8]) -> (u64, u64) {
    match bytes.as_chunks::<8>().0 {
        [first, second] => (u64::from_le_bytes(*first), u64::from_le_bytes(*second)),
        _ => (0, 0),
    }
}

/// Two little-endian numbers.
pub(crate) fn encode_pair(first: u64, second: u64) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

/// The newest limits of every pool.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LimitsSet {
    #[prost(message, repeated, tag = "1")]
    pub(crate) pools: Vec<ReceivedLimits>,
}

impl LimitsSet {
    /// What stands under `key`; empty if that is nothing or cannot be read.
    pub(crate) fn read(key: &str) -> Self {
        host::shared(key).ok().and_then(|(bytes, _)| Self::decode(bytes.as_slice()).ok()).unwrap_or_default()
    }
}

/// Limits and when they came: a VM that reads them late must not take them for fresh.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReceivedLimits {
    /// Monotonic time, in nanoseconds.
    #[prost(uint64, tag = "1")]
    pub(crate) at_ns: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) limits: Option<v1::Limits>,
}
