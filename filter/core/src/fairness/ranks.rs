//! The order of a class's tenants by what they were served.

use alloc::vec::Vec;
use core::cmp::Ordering;

/// Tenants of one class, the least served first.
#[derive(Debug, Clone)]
pub(super) struct Ranks {
    /// Those with a counter above 0.
    order: Vec<Ranked>,
    /// By tenant: the counter by which it stands in the order; 0: it does not stand there.
    placed: Vec<f64>,
}

/// A tenant in the order of its class.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ranked {
    counter: f64,
    tenant: u16,
}

impl PartialOrd for Ranked {
    /// By the bits of the counter, which is above 0: they are in the order of the numbers, and a thousand tenants are sorted sooner so.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let key = |ranked: &Self| u128::from(ranked.counter.to_bits()) << 16 | u128::from(ranked.tenant);
        key(self).partial_cmp(&key(other))
    }
}

impl Ranks {
    pub(super) fn new(tenants: usize) -> Self {
        Self { order: Vec::new(), placed: alloc::vec![0.0; tenants] }
    }

    /// Tenants in the order.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many tenants were served less than `counter`, and how many just as much; at least 1, since mostly one asks who is among them.
    pub(super) fn find(&self, counter: f64) -> (usize, usize) {
        let below = self.order.partition_point(|other| other.counter < counter);
        // Counters are sums of many requests: two alike are the exception.
        let is_alone = self.order.get(below + 1).is_none_or(|next| next.counter > counter);
        let alike = if is_alone { 1 } else { self.order.partition_point(|other| other.counter <= counter).saturating_sub(below) };
        (below, alike)
    }

    /// Puts one tenant where its counter belongs, if it stood in the order before and does now; whether that is so.
    pub(super) fn place(&mut self, tenant: u16, counter: f64) -> bool {
        let Some(before) = self.placed.get_mut(usize::from(tenant)).filter(|before| **before > 0.0 && counter > 0.0) else { return false };
        let former = Ranked { counter: core::mem::replace(before, counter), tenant };
        let moved = Ranked { counter, tenant };
        let mut at = self.order.partition_point(|other| *other < former);
        let has_grown = former < moved;
        let step = if has_grown { 1 } else { usize::MAX };
        while let Some(neighbour) = self.order.get(at.wrapping_add(step)).copied().filter(|next| (*next < moved) == has_grown)
            && let Some(slot) = self.order.get_mut(at)
        {
            *slot = neighbour;
            at = at.wrapping_add(step);
        }
        if let Some(slot) = self.order.get_mut(at) {
            *slot = moved;
        }
        true
    }

    /// Puts all tenants where their counters belong, which may be quite others.
    pub(super) fn place_all(&mut self, counters: &[f64]) {
        self.order.retain_mut(|ranked| {
            ranked.counter = counters.get(usize::from(ranked.tenant)).copied().unwrap_or(0.0);
            ranked.counter > 0.0
        });
        for (tenant, (counter, placed)) in counters.iter().zip(&mut self.placed).enumerate() {
            if core::mem::replace(placed, *counter) <= 0.0 && *counter > 0.0 {
                self.order.push(Ranked { counter: *counter, tenant: tenant as u16 });
            }
        }
        // Most stand where they stood before.
        crate::shellsort::ascending(&mut self.order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn tenants_placed_one_by_one_stand_as_if_all_were_placed() {
        const TENANTS: usize = 40;
        let mut rng = Rng::new(7);
        let (mut one_by_one, mut counters) = (Ranks::new(TENANTS), [0.0; TENANTS]);
        let mut together = one_by_one.clone();
        for _ in 0..500 {
            let tenant = (rng.next_f64() * TENANTS as f64) as usize;
            // Few values, so that some are alike and some go back to none.
            counters[tenant] = (rng.next_f64() * 12.0).floor();
            if !one_by_one.place(tenant as u16, counters[tenant]) {
                one_by_one.place_all(&counters);
            }
            together.place_all(&counters);
            assert_eq!(one_by_one.order, together.order);
            assert!(together.order.is_sorted());
            assert_eq!(together.order.iter().map(|ranked| ranked.counter).sum::<f64>(), counters.iter().sum::<f64>());
        }
        // Placed again where they stand.
        one_by_one.place(3, counters[3]);
        assert_eq!(one_by_one.order, together.order);
    }

    #[test]
    fn tenants_served_alike_are_counted_together() {
        let mut ranks = Ranks::new(6);
        ranks.place_all(&[5.0, 2.0, 0.0, 5.0, 9.0, 5.0]);
        assert_eq!(ranks.len(), 5);
        assert_eq!([1.0, 2.0, 5.0, 9.0, 10.0].map(|counter| ranks.find(counter)), [(0, 1), (0, 1), (1, 3), (4, 1), (5, 1)]);
    }
}
