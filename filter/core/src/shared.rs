//! What the VMs of one proxy share, and how each entry changes: pure functions over bytes.
//!
//! In shared data a key can be created but never removed, and a compare-and-set creates nothing, so keys exist before anybody competes
//! for them and there are few. Readers poll [`Keys::revisions`], which the leader raises after it has written the blobs: 16 bytes a
//! tick instead of the blobs.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::lease::{Grant, Holding, LeaseRecord, Want};
use crate::record::{FNV_OFFSET, fnv1a};
use crate::time::Timestamp;

/// The keys of one instance, `hg/<instance>/…`.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
    /// [`crate::leader::LeaderLease`]: who leads.
    pub lead: String,
    /// [`next_generation`]: number of the newest configuration.
    pub generation: String,
    /// [`Revisions`].
    pub revisions: String,
    /// [`crate::discovery::PolicySnapshot`].
    pub policies: String,
    /// [`SharedLimits`].
    pub limits: String,
    /// [`LeaseRecord`]: which VM has which report slot.
    pub roster: String,
}

impl Keys {
    /// The keys of `instance`.
    #[must_use]
    pub fn new(instance: &str) -> Self {
        let key = |name| format!("hg/{instance}/{name}");
        Self {
            prefix: key(""),
            lead: key("lead"),
            generation: key("gen"),
            revisions: key("version"),
            policies: key("policies"),
            limits: key("limits"),
            roster: key("roster"),
        }
    }

    /// Report of the VM in a slot, an encoded [`v1::WorkerReport`].
    #[must_use]
    pub fn report(&self, slot: usize) -> String {
        format!("{}slot/{slot}", self.prefix)
    }

    /// [`LeaseRecord`]: the sub-leases of a policy.
    #[must_use]
    pub fn lease(&self, policy: &str) -> String {
        format!("{}lease/{policy}", self.prefix)
    }

    /// [`LeaseRecord`]: the sub-leases of a quota of a policy.
    #[must_use]
    pub fn quota_lease(&self, policy: &str, quota: &str) -> String {
        format!("{}quota/{policy}/{quota}", self.prefix)
    }

    /// The records that the workers share of a policy, which one VM has to create: two could each hold what the other holds.
    #[must_use]
    pub fn leases_of(&self, policy: &v1::Policy) -> Vec<String> {
        let quotas = policy.spec.iter().flat_map(|spec| &spec.quotas);
        core::iter::once(self.lease(&policy.name)).chain(quotas.map(|quota| self.quota_lease(&policy.name, &quota.name))).collect()
    }
}

/// How often the shared policies and limits have changed; 0: there are none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Revisions {
    /// Of the policies.
    pub policies: u64,
    /// Of the limits.
    pub limits: u64,
}

impl Revisions {
    /// From the bytes of [`Revisions::encode`]; anything else is nothing yet.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let (policies, limits) = decode_pair(bytes);
        Self { policies, limits }
    }

    /// The bytes for shared data.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        encode_pair(self.policies, self.limits)
    }

    /// The bytes that follow `bytes` after a change.
    #[must_use]
    pub fn raise(bytes: &[u8], has_policies: bool, has_limits: bool) -> Vec<u8> {
        let Self { policies, limits } = Self::decode(bytes);
        encode_pair(policies.wrapping_add(u64::from(has_policies)), limits.wrapping_add(u64::from(has_limits)))
    }
}

/// Number of `configuration`: the newest one's if that has the same text, one more otherwise. The leader of a newer configuration takes
/// over from that of an older. With it the random number of the proxy's process, which is that of the first VM that asks, and before both
/// the bytes that follow `bytes`.
#[must_use]
pub fn next_generation(bytes: &[u8], configuration: &[u8], owner: u64) -> (Vec<u8>, (u64, u64)) {
    let hash = fnv1a(configuration, FNV_OFFSET);
    // Without the process it is an earlier version's.
    let (known, process) = match bytes.split_at_checked(16) {
        Some((known, process)) => (known, process.try_into().map_or(owner, u64::from_le_bytes)),
        None => (bytes, owner),
    };
    let (newest, newest_hash) = decode_pair(known);
    let generation = if newest > 0 && newest_hash == hash { newest } else { newest.wrapping_add(1).max(1) };
    ([encode_pair(generation, hash).as_slice(), &process.to_le_bytes()].concat(), (generation, process))
}

/// One refresh of `owner`'s place in a [`LeaseRecord`]: the bytes that follow `bytes`, its slot and what it holds. `None` when there is
/// no place for it.
#[must_use]
pub fn refresh_lease(bytes: &[u8], now: Timestamp, owner: u64, want: Want, grant: Grant) -> Option<(Vec<u8>, (usize, Holding))> {
    let unreadable = || if bytes.is_empty() { LeaseRecord::new() } else { LeaseRecord::recovered(now) };
    let mut record = LeaseRecord::decode(bytes).unwrap_or_else(unreadable);
    let held = record.refresh(now, owner, want, grant)?;
    Some((record.encode(), held))
}

/// The newest limits of every pool.
#[derive(Clone, PartialEq, Message)]
pub struct SharedLimits {
    /// One entry a pool.
    #[prost(message, repeated, tag = "1")]
    pub pools: Vec<ReceivedLimits>,
}

impl SharedLimits {
    /// Reads them; none of what cannot be read.
    #[must_use]
    #[inline(never)]
    pub fn read(bytes: &[u8]) -> Self {
        Self::decode(bytes).unwrap_or_default()
    }
}

/// Number of `WorkerReport.pools`, and room for one of them in bytes.
const POOLS_FIELD: u32 = 4;
const POOL_LEN: usize = 4096;

/// A worker's report as it stands in its slot.
///
/// A message is measured before it is written, and again for each message that it is in. The lists of a pool are long and deep inside, so
/// each pool is written first and measured by what came of it.
#[must_use]
#[inline(never)]
pub fn encode_report(report: &v1::WorkerReport) -> Vec<u8> {
    let v1::WorkerReport { slot, vm_epoch, at_ns, pools, counters } = report;
    let rest = v1::WorkerReport { slot: *slot, vm_epoch: *vm_epoch, at_ns: *at_ns, pools: Vec::new(), counters: *counters };
    let mut bytes = Vec::with_capacity(POOL_LEN);
    // Into memory that grows it cannot fail.
    let _ = rest.encode(&mut bytes);
    let mut written = Vec::with_capacity(POOL_LEN);
    for pool in pools {
        written.clear();
        pool.encode_raw(&mut written);
        // Fields of a message may stand in any order (protobuf encoding), so the pools can follow the rest.
        encode_key(POOLS_FIELD, WireType::LengthDelimited, &mut bytes);
        encode_varint(written.len() as u64, &mut bytes);
        bytes.extend_from_slice(&written);
    }
    bytes
}

/// Limits and when they came: a VM that reads them late must not take them for fresh.
#[derive(Clone, PartialEq, Message)]
pub struct ReceivedLimits {
    /// Monotonic time of receipt, in nanoseconds.
    #[prost(uint64, tag = "1")]
    pub at_ns: u64,
    /// The limits.
    #[prost(message, optional, tag = "2")]
    pub limits: Option<v1::Limits>,
}

fn decode_pair(bytes: &[u8]) -> (u64, u64) {
    match bytes.as_chunks::<8>() {
        ([first, second], []) => (u64::from_le_bytes(*first), u64::from_le_bytes(*second)),
        _ => (0, 0),
    }
}

fn encode_pair(first: u64, second: u64) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_its_generation_until_another_comes() {
        let (bytes, first) = next_generation(&[], b"a", 71);
        let (bytes, again) = next_generation(&bytes, b"a", 72);
        let (bytes, second) = next_generation(&bytes, b"b", 73);
        let (_, third) = next_generation(&bytes, b"a", 74);
        assert_eq!((first, again, second, third), ((1, 71), (1, 71), (2, 71), (3, 71)));
        assert_eq!(next_generation(&bytes[..16], b"b", 75).1, (2, 75), "an earlier version's has no process");
    }

    #[test]
    fn revisions_grow_one_by_one_and_damage_is_nothing_yet() {
        let bytes = Revisions::raise(&Revisions::raise(&[], true, true), false, true);
        assert_eq!(Revisions::decode(&bytes), Revisions { policies: 1, limits: 2 });
        assert_eq!(Revisions::decode(&bytes[1..]), Revisions::default());
        assert_eq!(Revisions::decode(&Revisions { policies: 3, limits: 4 }.encode()), Revisions { policies: 3, limits: 4 });
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let pool = |name: &str| v1::PoolReport {
            pool: name.into(),
            classes: alloc::vec![v1::ClassReport { class: "low".into(), offered: 300, ..Default::default() }],
            ..Default::default()
        };
        let counters = Some(v1::WorkerCounters { unmatched: 1, ..Default::default() });
        let report = v1::WorkerReport { slot: 3, vm_epoch: u64::MAX, at_ns: 5, pools: alloc::vec![pool("a"), pool("b")], counters };
        for report in [report, v1::WorkerReport::default()] {
            assert_eq!(v1::WorkerReport::decode(encode_report(&report).as_slice()), Ok(report));
        }
    }

    #[test]
    fn a_lease_begins_with_an_empty_key_and_survives_damage() {
        let grant = Grant { permits_total: Some(10) };
        let want = Want { permits_wanted: 10, ..Want::default() };
        let (bytes, (slot, holding)) = refresh_lease(&[], Timestamp::ZERO, 7, want, grant).unwrap();
        assert_eq!((slot, holding.permits), (0, Some(10)));
        let (_, (_, holding)) = refresh_lease(&bytes[1..], Timestamp::ZERO, 7, want, grant).unwrap();
        assert_eq!(holding.permits, Some(0), "others may hold what the damaged record knew of");
    }
}
