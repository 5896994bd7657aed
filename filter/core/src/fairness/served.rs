//! Whom work was served, as reports and limits tell it: sparse lists of slots, each a tenant of a class.
//!
//! A class that is asked by many tenants serves each of them in each worker but now and then, so that a worker's own counters are mostly
//! chance. There the whole fleet's count, which comes back with the limits.

use alloc::vec::Vec;
use core::time::Duration;

use crate::permits::MAX_CLASSES;
use crate::policy::MAX_TENANTS;

/// Slots of a class: the tenants that a policy can name, and last everybody whom it does not.
const TENANT_SLOTS: usize = MAX_TENANTS + 1;
/// Slots of all classes.
pub(crate) const SLOTS: usize = MAX_CLASSES * TENANT_SLOTS;
/// Tenants from which on workers tell whom they serve, and hear of it for a class. With fewer each worker serves each of them often enough
/// to be fair by itself; and workers that agree would all cut off the same few at once, in steps as coarse as those are few.
pub(crate) const MANY: usize = 64;

/// Time between two tellings, of a worker and of the fleet.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(1);

/// A tenant of a class, as lists name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) class: usize,
    /// `None`: everybody whom the policy does not name.
    pub(crate) tenant: Option<usize>,
}

impl Slot {
    /// Its number, below [`SLOTS`].
    pub(crate) fn number(self) -> usize {
        let tenant = self.tenant.filter(|tenant| *tenant < MAX_TENANTS).unwrap_or(MAX_TENANTS);
        self.class.min(MAX_CLASSES - 1) * TENANT_SLOTS + tenant
    }

    /// The slot of a number below [`SLOTS`].
    pub(crate) fn numbered(number: usize) -> Self {
        let tenant = number % TENANT_SLOTS;
        Self { class: number / TENANT_SLOTS, tenant: (tenant < MAX_TENANTS).then_some(tenant) }
    }
}

/// Work tokens by slot, ascending, as it is on the wire.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Served {
    /// Numbers of slots, each as the difference from the one before.
    pub(crate) slot_deltas: Vec<u32>,
    /// Work tokens of each.
    pub(crate) work: Vec<u64>,
}

impl Served {
    /// Appends a slot whose number is above all there are, unless it has less than a token. Returns the tokens that were appended.
    pub(crate) fn push(&mut self, last: &mut usize, number: usize, work: f64) -> f64 {
        if work < 1.0 {
            return 0.0;
        }
        self.slot_deltas.push(number.saturating_sub(*last) as u32);
        self.work.push(work as u64);
        *last = number;
        work as u64 as f64
    }
}

/// Numbers of slots and the work of each, from lists that may be anything: what lies beyond [`SLOTS`] is left out.
pub(crate) fn read<'a>(slot_deltas: &'a [u32], work: &'a [u64]) -> impl Iterator<Item = (usize, f64)> + 'a {
    let mut at = 0_usize;
    slot_deltas.iter().zip(work).map_while(move |(delta, work)| {
        at = at.saturating_add(*delta as usize);
        (at < SLOTS).then_some((at, *work as f64))
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_numbered_one_by_one() {
        let numbers = (0..SLOTS).map(|number| Slot::numbered(number).number());
        assert!(numbers.eq(0..SLOTS));
        assert_eq!(Slot::numbered(SLOTS - 1), Slot { class: MAX_CLASSES - 1, tenant: None });
        assert_eq!(Slot { class: 99, tenant: Some(9999) }.number(), SLOTS - 1, "what cannot be is the last");
    }

    proptest! {
        #[test]
        fn lists_survive_the_wire(entries in proptest::collection::btree_map(0..SLOTS, 1_u32..1_000_000, 0..60)) {
            let (mut served, mut last) = (Served::default(), 0);
            for (slot, work) in &entries {
                served.push(&mut last, *slot, f64::from(*work));
            }
            let back: Vec<(usize, f64)> = read(&served.slot_deltas, &served.work).collect();
            prop_assert_eq!(back, entries.into_iter().map(|(slot, work)| (slot, f64::from(work))).collect::<Vec<_>>());
        }

        #[test]
        fn any_lists_can_be_read(deltas in proptest::collection::vec(any::<u32>(), 0..20), work in proptest::collection::vec(any::<u64>(), 0..20)) {
            prop_assert!(read(&deltas, &work).all(|(slot, work)| slot < SLOTS && work >= 0.0));
        }
    }
}
