//! Which VM of a proxy holds the control stream: a heartbeat lease in shared data.
//!
//! The functions here are pure. The caller reads the record with its compare-and-swap token, calls [`step`], and writes what it
//! returns with that token; a write that fails means that somebody else was faster, so the VM does not lead.

use alloc::vec::Vec;
use core::time::Duration;

use crate::record::{self, Reader};
use crate::time::Timestamp;

/// Time without a heartbeat after which the lease is free.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(400);

const MAGIC: u32 = u32::from_le_bytes(*b"HGL1");

/// The lease as it stands in shared data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderLease {
    /// Identity of the VM that leads; random for every VM.
    pub owner: u64,
    /// Generation of the configuration that the VM runs.
    pub generation: u64,
    /// Last sign of life.
    pub heartbeat: Timestamp,
}

/// What a VM does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderStep {
    /// It leads: write the record; when that fails it has lost the lease and closes the stream.
    Hold(LeaderLease),
    /// The lease is free: write the record; when that succeeds the VM leads.
    TakeOver(LeaderLease),
    /// Another VM leads.
    Follow,
}

/// Decides what `me`, which runs `generation`, does about the record `current`; `None` when there is none or it cannot be read.
///
/// A lease is free when its heartbeat is older than [`HEARTBEAT_TIMEOUT`] or lies as far in the future (a broken record), and a newer
/// generation may take a live lease of an older one, so that two configurations never both lead. At any time at most one VM of a
/// generation has written a heartbeat that is still valid; whoever has not renewed for the timeout must not count itself leader.
#[must_use]
pub fn step(now: Timestamp, me: u64, generation: u64, current: Option<&LeaderLease>) -> LeaderStep {
    let renewed = LeaderLease { owner: me, generation, heartbeat: now };
    match current {
        Some(lease) if !lease.is_alive(now) => LeaderStep::TakeOver(renewed),
        Some(lease) if lease.owner == me && lease.generation <= generation => LeaderStep::Hold(renewed),
        Some(lease) if lease.generation < generation => LeaderStep::TakeOver(renewed),
        Some(_) => LeaderStep::Follow,
        None => LeaderStep::TakeOver(renewed),
    }
}

impl LeaderLease {
    /// Whether the leader's last sign of life is recent.
    #[must_use]
    pub fn is_alive(&self, now: Timestamp) -> bool {
        now.since(self.heartbeat) <= HEARTBEAT_TIMEOUT && self.heartbeat.since(now) <= HEARTBEAT_TIMEOUT
    }

    /// The bytes for shared data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { owner, generation, heartbeat } = self;
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&owner.to_le_bytes());
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&heartbeat.as_nanos().to_le_bytes());
        record::seal(MAGIC, &bytes)
    }

    /// Reads the bytes; `None` when they are not a lease.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(record::open(MAGIC, bytes)?);
        let lease = Self { owner: reader.u64()?, generation: reader.u64()?, heartbeat: Timestamp::from_nanos(reader.u64()?) };
        reader.is_empty().then_some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn the_first_vm_takes_the_lease_and_the_others_follow() {
        let LeaderStep::TakeOver(lease) = step(ms(0), 1, 5, None) else { panic!("the lease is free") };
        assert_eq!(step(ms(20), 2, 5, Some(&lease)), LeaderStep::Follow);
        assert_eq!(step(ms(20), 1, 5, Some(&lease)), LeaderStep::Hold(LeaderLease { heartbeat: ms(20), ..lease }));
    }

    #[test]
    fn a_lease_without_heartbeat_is_taken_over_after_the_timeout() {
        let lease = LeaderLease { owner: 1, generation: 5, heartbeat: ms(1000) };
        assert_eq!(step(ms(1400), 2, 5, Some(&lease)), LeaderStep::Follow);
        assert!(matches!(step(ms(1401), 2, 5, Some(&lease)), LeaderStep::TakeOver(_)));
        assert!(matches!(step(ms(1401), 2, 4, Some(&lease)), LeaderStep::TakeOver(_)), "an older generation serves when the newer is gone");
    }

    #[test]
    fn a_newer_generation_pre_empts_an_older_one_and_not_the_reverse() {
        let old = LeaderLease { owner: 1, generation: 5, heartbeat: ms(1000) };
        let LeaderStep::TakeOver(new) = step(ms(1000), 2, 6, Some(&old)) else { panic!("6 is newer than 5") };
        assert_eq!(step(ms(1020), 1, 5, Some(&new)), LeaderStep::Follow);
    }

    #[test]
    fn a_heartbeat_from_the_far_future_does_not_block_for_ever() {
        let broken = LeaderLease { owner: 1, generation: 5, heartbeat: ms(1_000_000) };
        assert!(matches!(step(ms(0), 2, 5, Some(&broken)), LeaderStep::TakeOver(_)));
    }

    #[test]
    fn bytes_that_were_damaged_are_no_lease() {
        let bytes = LeaderLease { owner: 1, generation: 5, heartbeat: ms(7) }.encode();
        assert!(LeaderLease::decode(&bytes).is_some());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(LeaderLease::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(LeaderLease::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(LeaderLease::decode(&[]), None);
    }

    /// One VM of the model: what it read, and when it last led.
    #[derive(Clone, Default)]
    struct Vm {
        read: Option<(Option<LeaderLease>, u64)>,
        led_at: Option<Timestamp>,
    }

    proptest! {
        /// Reads, writes and time interleave in any order; the shared data offers nothing but compare-and-swap.
        #[test]
        fn at_most_one_vm_of_a_generation_leads(ops in prop::collection::vec((0..6_usize, 0..4_u8, 0..150_u64), 1..300)) {
            let mut vms = vec![Vm::default(); 6];
            let (mut record, mut cas, mut now_ms) = (None::<LeaderLease>, 1_u64, 1000_u64);
            for (who, op, wait) in ops {
                let generation = 1 + (who as u64 / 3);
                match op {
                    0 => now_ms += wait,
                    1 => vms[who].read = Some((record, cas)),
                    _ => {
                        let Some((seen, token)) = vms[who].read.take() else { continue };
                        match step(ms(now_ms), who as u64, generation, seen.as_ref()) {
                            LeaderStep::Hold(lease) | LeaderStep::TakeOver(lease) if token == cas => {
                                record = Some(lease);
                                cas += 1;
                                vms[who].led_at = Some(ms(now_ms));
                            }
                            _ => vms[who].led_at = None,
                        }
                    }
                }
                for generation in 0..2 {
                    let valid = |vm: &Vm| vm.led_at.is_some_and(|at| ms(now_ms).since(at) <= HEARTBEAT_TIMEOUT);
                    let leaders = vms[generation * 3..generation * 3 + 3].iter().filter(|vm| valid(vm)).count();
                    prop_assert!(leaders <= 1, "{leaders} leaders of generation {generation}");
                }
            }
        }
    }
}
