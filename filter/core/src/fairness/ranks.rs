//! The order of a class's tenants by what they were served.

use alloc::vec::Vec;

/// Bits of a key that name the tenant.
const TENANT: u64 = 0xffff;

/// Tenants of one class, the least served first.
///
/// Each is a number, its key: the bits of its counter, which is above 0, so that they are in the order of the counters, with the tenant in
/// place of the lowest 16. 36 binary digits of a counter are left, and a search looks at no more memory than it must.
#[derive(Debug, Clone)]
pub(super) struct Ranks {
    /// Keys of those with a counter above 0, ascending.
    order: Vec<u64>,
    /// By tenant: its key in the order; 0: it does not stand there.
    placed: Vec<u64>,
}

/// The key of a tenant; 0 without a counter.
fn key(tenant: u16, counter: f64) -> u64 {
    if counter > 0.0 { counter.to_bits() & !TENANT | u64::from(tenant) } else { 0 }
}

impl Ranks {
    pub(super) fn new(tenants: usize) -> Self {
        Self { order: Vec::new(), placed: alloc::vec![0; tenants] }
    }

    /// Tenants in the order.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many tenants were served less than `counter`, and how many just as much; at least 1, since mostly one asks who is among them.
    pub(super) fn find(&self, counter: f64) -> (usize, usize) {
        let first = key(0, counter);
        let below = self.order.partition_point(|other| *other < first);
        // Counters are sums of many requests: two alike are the exception.
        let is_alone = self.order.get(below + 1).is_none_or(|next| *next > first | TENANT);
        let alike = if is_alone { 1 } else { self.order.partition_point(|other| *other <= first | TENANT).saturating_sub(below) };
        (below, alike)
    }

    /// Puts one tenant where its counter belongs, if it stood in the order before and does now; whether that is so.
    pub(super) fn place(&mut self, tenant: u16, counter: f64) -> bool {
        let moved = key(tenant, counter);
        let Some(placed) = self.placed.get_mut(usize::from(tenant)).filter(|placed| **placed > 0 && moved > 0) else { return false };
        let former = core::mem::replace(placed, moved);
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
            let tenant = (*ranked & TENANT) as u16;
            *ranked = counters.get(usize::from(tenant)).map_or(0, |counter| key(tenant, *counter));
            *ranked > 0
        });
        for (tenant, (counter, placed)) in counters.iter().zip(&mut self.placed).enumerate() {
            let key = key(tenant as u16, *counter);
            if core::mem::replace(placed, key) == 0 && key > 0 {
                self.order.push(key);
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
            assert_eq!(together.len(), counters.iter().filter(|counter| **counter > 0.0).count());
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
