//! How much each tenant was served lately, and the cohort that follows from it.
//!
//! A policy has at most 1,024 tenants, so each has an exact counter; a sketch would be larger. Clients that nobody knows are one tenant
//! together. Counters are by class, since tenants of a class compete with each other and the classes do not.
//!
//! Cut-off and queue both read them. The cut-off takes whoever was served most lately first, everywhere at once, so tenants get equal
//! work while work is short even if no queue stands; and a tenant that is cut off sinks until it is admitted again. Cohorts are ranks
//! among the tenants of a worker, not amounts: with requests spread over workers the ranks agree, and no worker needs another's numbers.

use alloc::vec::Vec;
use core::time::Duration;

use crate::overload::COHORTS;
use crate::policy::TenantId;
use crate::rng::Rng;
use crate::shellsort;
use crate::time::Timestamp;

/// Time in which what was served counts half.
const HALF_LIFE_S: f64 = 10.0;
/// Half-lives after which all counters are scaled down, long before they could leave the range of `f64`.
const RESCALE_AFTER: f64 = 64.0;
/// Time for which tenants that were served alike keep their order.
const ROTATION: Duration = Duration::from_secs(3600);

/// Work tokens served to each tenant of each class, decaying. Counters grow with time instead of being decayed one by one:
/// a token served at `t` counts `2^((t − landmark) / half-life)`, so the order of tenants holds at any time.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    tenants: usize,
    counters: Vec<f64>,
    /// By class: the counters above 0, ascending, as of the last tick.
    ranks: Vec<Vec<f64>>,
    landmark: Timestamp,
    key: u64,
}

impl Usage {
    /// Counters for `classes` classes and `tenants` known tenants. `key`: the same for every worker that serves the pool.
    pub(crate) fn new(now: Timestamp, classes: usize, tenants: usize, key: u64) -> Self {
        let tenants = tenants + 1;
        Self { tenants, counters: alloc::vec![0.0; classes * tenants], ranks: alloc::vec![Vec::new(); classes], landmark: now, key }
    }

    /// Index of a tenant; the last one is everybody unknown.
    pub(crate) fn index(&self, tenant: Option<TenantId>) -> u16 {
        let last = self.tenants.saturating_sub(1);
        tenant.map_or(last, |tenant| tenant.index().min(last)) as u16
    }

    /// Tenants, the unknown one included.
    pub(crate) fn tenants(&self) -> usize {
        self.tenants
    }

    /// What a token served now counts for.
    pub(crate) fn growth(&self, now: Timestamp) -> f64 {
        libm::exp2(now.since(self.landmark).as_secs_f64() / HALF_LIFE_S)
    }

    /// Counter of a tenant.
    pub(crate) fn served(&self, class: usize, tenant: u16) -> f64 {
        self.counters.get(self.slot(class, tenant)).copied().unwrap_or(0.0)
    }

    /// Counts work tokens served; negative to take back what was counted too much.
    pub(crate) fn serve(&mut self, now: Timestamp, class: usize, tenant: u16, work: f64) {
        let grown = work * self.growth(now);
        let slot = self.slot(class, tenant);
        if let Some(counter) = self.counters.get_mut(slot) {
            *counter = (*counter + grown).max(0.0);
        }
    }

    /// Ranks the tenants anew, every control tick. The factor by which all counters were multiplied, if they were.
    pub(crate) fn on_tick(&mut self, now: Timestamp) -> Option<f64> {
        let factor = self.rescale(now);
        for (class, ranks) in self.ranks.iter_mut().enumerate() {
            ranks.clear();
            let counters = self.counters.iter().skip(class * self.tenants).take(self.tenants);
            ranks.extend(counters.copied().filter(|counter| *counter > 0.0));
            shellsort::ascending(ranks);
        }
        factor
    }

    fn rescale(&mut self, now: Timestamp) -> Option<f64> {
        let half_lives = now.since(self.landmark).as_secs_f64() / HALF_LIFE_S;
        if half_lives < RESCALE_AFTER {
            return None;
        }
        let factor = libm::exp2(-libm::floor(half_lives));
        self.landmark = self.landmark + Duration::from_secs_f64(libm::floor(half_lives) * HALF_LIFE_S);
        for counter in &mut self.counters {
            // What was served an hour ago is nothing.
            *counter = if *counter * factor < 1e-9 { 0.0 } else { *counter * factor };
        }
        Some(factor)
    }

    /// Cohort of a tenant by its rank in the class: 0 the least served. Tenants that were served alike are spread over the cohorts
    /// between their neighbours by a keyed hash that changes every hour.
    pub(crate) fn cohort(&self, now: Timestamp, class: usize, tenant: u16) -> u8 {
        let (Some(ranks), counter) = (self.ranks.get(class), self.served(class, tenant)) else { return 0 };
        if ranks.is_empty() {
            return scaled(self.spread(now, tenant));
        }
        let below = ranks.partition_point(|other| *other < counter);
        let alike = ranks.partition_point(|other| *other <= counter).saturating_sub(below).max(1);
        let rank = below as f64 + self.spread(now, tenant) * alike as f64;
        scaled(rank / ranks.len().max(below + alike) as f64)
    }

    /// Cohort that says nothing of what a tenant was served.
    pub(crate) fn cohort_by_hash(&self, now: Timestamp, tenant: u16) -> u8 {
        scaled(self.spread(now, tenant))
    }

    /// A number in `0..1` for a tenant in this hour.
    fn spread(&self, now: Timestamp, tenant: u16) -> f64 {
        let hour = now.as_nanos() / ROTATION.as_nanos() as u64;
        Rng::new(self.key ^ (hour << 16) ^ u64::from(tenant)).next_f64()
    }

    fn slot(&self, class: usize, tenant: u16) -> usize {
        class.saturating_mul(self.tenants).saturating_add(usize::from(tenant).min(self.tenants.saturating_sub(1)))
    }
}

fn scaled(part: f64) -> u8 {
    (part * f64::from(COHORTS)).min(f64::from(COHORTS - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn whoever_was_served_most_lately_is_cut_off_first() {
        let mut usage = Usage::new(at(0), 1, 64, 7);
        for tenant in 0..64_u16 {
            usage.serve(at(0), 0, tenant, f64::from(tenant + 1) * 100.0);
        }
        usage.on_tick(at(0));
        let cohorts: Vec<u8> = (0..64).map(|tenant| usage.cohort(at(0), 0, tenant)).collect();
        assert!(cohorts.is_sorted() && cohorts[0] < 2 && cohorts[63] >= 126, "{cohorts:?}");
        // Two half-lives later what was served counts a quarter.
        usage.serve(at(20), 0, 0, 1700.0);
        usage.on_tick(at(20));
        assert!(usage.cohort(at(20), 0, 0) >= 126);
    }

    #[test]
    fn tenants_that_were_served_alike_are_spread_and_change_places_every_hour() {
        let mut usage = Usage::new(at(0), 1, 1000, 7);
        for tenant in 0..1000 {
            usage.serve(at(0), 0, tenant, 500.0);
        }
        usage.on_tick(at(0));
        let cohorts = |now| (0..1000).map(|tenant| usage.cohort(now, 0, tenant)).collect::<Vec<_>>();
        let mut in_half = [0; 2];
        for cohort in cohorts(at(1)) {
            in_half[usize::from(cohort / 64)] += 1;
        }
        assert!(in_half.iter().all(|count| (430..570).contains(count)), "{in_half:?}");
        assert_eq!(cohorts(at(1)), cohorts(at(3599)));
        assert_ne!(cohorts(at(1)), cohorts(at(3601)));
    }

    #[test]
    fn counters_keep_their_order_over_days() {
        let mut usage = Usage::new(at(0), 1, 2, 7);
        for second in (0..400_000).step_by(100) {
            usage.serve(at(second), 0, 0, 10.0);
            usage.serve(at(second), 0, 1, 20.0);
            usage.on_tick(at(second));
        }
        let now = at(400_000);
        let (one, two) = (usage.served(0, 0) / usage.growth(now), usage.served(0, 1) / usage.growth(now));
        assert!(one.is_finite() && (two / one - 2.0).abs() < 1e-6 && (0.005..0.02).contains(&one), "{one} {two}");
    }

    #[test]
    fn nobody_is_served_less_than_nothing() {
        let mut usage = Usage::new(at(0), 1, 1, 7);
        usage.serve(at(0), 0, 0, 10.0);
        usage.serve(at(5), 0, 0, -1000.0);
        assert!(usage.served(0, 0).abs() < f64::EPSILON);
    }
}
