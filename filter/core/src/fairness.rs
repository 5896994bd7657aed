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
use crate::time::Timestamp;

/// Time in which what was served counts half: at least, and at most. The longer, the more exactly tenants get the same; the shorter, the
/// less a tenant that comes back after a pause takes from the others until it has caught up, which is about as many requests as
/// [`REQUESTS`] whatever the half-life.
const HALF_LIFE_S: (f64, f64) = (10.0, 120.0);
/// Requests of each tenant that a half-life should see: with fewer, who was served last is chance.
const REQUESTS: f64 = 8.0;
/// Memory of the rate of requests.
const RATE_MEMORY_S: f64 = 10.0;
/// Half-lives after which all counters are scaled down, long before they could leave the range of `f64`.
const RESCALE_AFTER: f64 = 64.0;
/// Time for which tenants that were served alike keep their order.
const ROTATION: Duration = Duration::from_secs(3600);

/// Work tokens served to each tenant of each class, decaying. Counters grow with time instead of being decayed one by one:
/// a token served counts `2^n`, `n` the half-lives that have passed till then, so the order of tenants holds at any time.
///
/// A half-life is as long as the tenants of this worker take for a few requests each, within bounds:
/// `8 · tenants / (requests per second)`.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    tenants: usize,
    counters: Vec<f64>,
    /// By class: those with a counter above 0, the least served first, as of the last tick.
    ranks: Vec<Vec<Ranked>>,
    /// Whether a counter is among the ranks.
    is_ranked: Vec<bool>,
    half_life_s: f64,
    /// Half-lives that had passed at the last tick, those taken off by which the counters were scaled down.
    half_lives: f64,
    ticked_at: Timestamp,
    /// What follows of the two above, so that a request need not work it out: `2^half_lives`, and the half-lives of a nanosecond.
    growth_at_tick: f64,
    half_lives_per_ns: f64,
    /// Requests per second, and those since the last tick.
    rate: f64,
    requests: u32,
    key: u64,
}

/// A tenant in the order of its class.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    counter: f64,
    tenant: u16,
}

impl Usage {
    /// Counters for `classes` classes and `tenants` known tenants. `key`: the same for every worker that serves the pool.
    pub(crate) fn new(now: Timestamp, classes: usize, tenants: usize, key: u64) -> Self {
        let tenants = tenants + 1;
        Self {
            tenants,
            counters: alloc::vec![0.0; classes * tenants],
            ranks: alloc::vec![Vec::new(); classes],
            is_ranked: alloc::vec![false; classes * tenants],
            half_life_s: HALF_LIFE_S.0,
            half_lives: 0.0,
            ticked_at: now,
            growth_at_tick: 1.0,
            half_lives_per_ns: 1e-9 / HALF_LIFE_S.0,
            rate: 0.0,
            requests: 0,
            key,
        }
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
        let nanos = now.as_nanos().saturating_sub(self.ticked_at.as_nanos());
        self.growth_at_tick * exp2(nanos as f64 * self.half_lives_per_ns)
    }

    /// Counter of a tenant.
    pub(crate) fn served(&self, class: usize, tenant: u16) -> f64 {
        self.counters.get(self.slot(class, tenant)).copied().unwrap_or(0.0)
    }

    /// Counts work tokens served; negative to take back what was counted too much.
    pub(crate) fn serve(&mut self, now: Timestamp, class: usize, tenant: u16, work: f64) {
        self.requests = self.requests.saturating_add(u32::from(work > 0.0));
        let grown = work * self.growth(now);
        let slot = self.slot(class, tenant);
        if let Some(counter) = self.counters.get_mut(slot) {
            *counter = (*counter + grown).max(0.0);
        }
    }

    /// Ranks the tenants anew, every control tick. The factor by which all counters were multiplied, if they were.
    pub(crate) fn on_tick(&mut self, now: Timestamp) -> Option<f64> {
        self.pass(now);
        let factor = self.rescale();
        self.growth_at_tick = libm::exp2(self.half_lives);
        self.half_lives_per_ns = 1e-9 / self.half_life_s;
        let counters = self.counters.chunks(self.tenants).zip(self.is_ranked.chunks_mut(self.tenants));
        for (ranks, (counters, is_ranked)) in self.ranks.iter_mut().zip(counters) {
            follow(ranks, counters, is_ranked);
        }
        factor
    }

    /// Takes the time since the last tick into account and sets the half-life of the next.
    fn pass(&mut self, now: Timestamp) {
        let seconds = now.since(self.ticked_at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        self.half_lives += seconds / self.half_life_s;
        self.ticked_at = now;
        let rate = f64::from(core::mem::take(&mut self.requests)) / seconds;
        self.rate += seconds / (seconds + RATE_MEMORY_S) * (rate - self.rate);
        let tenants: usize = self.ranks.iter().map(Vec::len).sum();
        self.half_life_s = (REQUESTS * tenants as f64 / self.rate.max(1e-3)).clamp(HALF_LIFE_S.0, HALF_LIFE_S.1);
    }

    fn rescale(&mut self) -> Option<f64> {
        if self.half_lives < RESCALE_AFTER {
            return None;
        }
        let whole = libm::floor(self.half_lives);
        let factor = libm::exp2(-whole);
        self.half_lives -= whole;
        for counter in &mut self.counters {
            // What was served an hour ago is nothing.
            *counter = if *counter * factor < 1e-9 { 0.0 } else { *counter * factor };
        }
        Some(factor)
    }

    /// Cohort of a tenant by its rank in the class: 0 the least served. Tenants that were served alike are spread over the cohorts
    /// between their neighbours by a keyed hash that changes every hour.
    ///
    /// `beyond` is the work of this request beyond that of a usual one: the rank is that of what the tenant would have been served with it.
    pub(crate) fn cohort(&self, now: Timestamp, class: usize, tenant: u16, beyond: f64) -> u8 {
        let (Some(ranks), counter) = (self.ranks.get(class), self.served(class, tenant)) else { return 0 };
        let counter = if beyond == 0.0 { counter } else { counter + beyond * self.growth(now) };
        if ranks.is_empty() {
            return scaled(self.spread(now, tenant));
        }
        let below = ranks.partition_point(|other| other.counter < counter);
        // Counters are sums of many requests: two alike are the exception.
        let is_alone = ranks.get(below + 1).is_none_or(|next| next.counter > counter);
        let alike = if is_alone { 1 } else { ranks.partition_point(|other| other.counter <= counter).saturating_sub(below) };
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

/// Brings the ranks of one class up to date.
fn follow(ranks: &mut Vec<Ranked>, counters: &[f64], is_ranked: &mut [bool]) {
    ranks.retain_mut(|ranked| {
        let tenant = usize::from(ranked.tenant);
        ranked.counter = counters.get(tenant).copied().unwrap_or(0.0);
        let stays = ranked.counter > 0.0;
        if let Some(is_ranked) = is_ranked.get_mut(tenant) {
            *is_ranked = stays;
        }
        stays
    });
    for (tenant, (counter, is_ranked)) in counters.iter().zip(is_ranked).enumerate() {
        if *counter > 0.0 && !*is_ranked {
            *is_ranked = true;
            ranks.push(Ranked { counter: *counter, tenant: tenant as u16 });
        }
    }
    // Counters only grow, and few do between two ticks: by insertion it is one look at each and a move for those.
    for start in 1..ranks.len() {
        let mut at = start;
        while let Some(before) = at.checked_sub(1)
            && ranks.get(before).map(|ranked| ranked.counter) > ranks.get(at).map(|ranked| ranked.counter)
        {
            ranks.swap(before, at);
            at = before;
        }
    }
}

/// `2^x` for `x` of 0 and above. Between two ticks `x` is next to nothing, and five terms of the series are exact to 10^-9.
fn exp2(x: f64) -> f64 {
    if x > 1.0 / 16.0 {
        return libm::exp2(x);
    }
    let y = x * core::f64::consts::LN_2;
    1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0)))
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
        let cohorts: Vec<u8> = (0..64).map(|tenant| usage.cohort(at(0), 0, tenant, 0.0)).collect();
        assert!(cohorts.is_sorted() && cohorts[0] < 2 && cohorts[63] >= 126, "{cohorts:?}");
        // Sixty-four tenants have been served once in twenty seconds: a half-life is two minutes, and what was served counts nine tenths.
        usage.serve(at(20), 0, 0, 6400.0);
        usage.on_tick(at(20));
        assert!(usage.cohort(at(20), 0, 0, 0.0) >= 126);
    }

    #[test]
    fn a_long_request_ranks_behind_a_short_one_of_a_tenant_that_was_served_as_much() {
        let mut usage = Usage::new(at(0), 1, 64, 7);
        for tenant in 0..64_u16 {
            usage.serve(at(0), 0, tenant, f64::from(tenant + 1) * 100.0);
        }
        usage.on_tick(at(0));
        let cohort = |beyond| usage.cohort(at(0), 0, 32, beyond);
        assert_eq!([cohort(-1000.0), cohort(0.0), cohort(1000.0)].map(|cohort| cohort / 20), [2, 3, 4], "ten tenants lie within 1,000");
    }

    #[test]
    fn tenants_that_were_served_alike_are_spread_and_change_places_every_hour() {
        let mut usage = Usage::new(at(0), 1, 1000, 7);
        for tenant in 0..1000 {
            usage.serve(at(0), 0, tenant, 500.0);
        }
        usage.on_tick(at(0));
        let cohorts = |now| (0..1000).map(|tenant| usage.cohort(now, 0, tenant, 0.0)).collect::<Vec<_>>();
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
        assert!(one.is_finite() && (two / one - 2.0).abs() < 1e-6 && (12.7..12.9).contains(&one), "{one} {two}");
    }

    #[test]
    fn what_was_served_is_forgotten_in_the_time_that_tenants_take_for_eight_requests_each() {
        let half_life_s = |tenants: u16, per_tick: u16| {
            let mut usage = Usage::new(at(0), 1, usize::from(tenants), 7);
            for tick in 0..1000 {
                let now = Timestamp::from_millis(100 * tick);
                (0..per_tick).for_each(|n| usage.serve(now, 0, (tick as u16).wrapping_mul(per_tick).wrapping_add(n) % tenants, 100.0));
                usage.on_tick(now);
            }
            let later = Timestamp::from_millis(200_000);
            100.1 / libm::log2(usage.growth(later) / usage.growth(Timestamp::from_millis(99_900)))
        };
        assert!((9.0..11.0).contains(&half_life_s(4, 1)), "10 requests per second of 4 tenants: the least");
        assert!((19.0..21.5).contains(&half_life_s(25, 1)), "of 25 tenants: 8 · 25 / 10 s");
        assert!((117.0..123.0).contains(&half_life_s(1000, 1)), "of 1,000 tenants: the most");
    }

    #[test]
    fn the_short_series_is_exact_to_a_billionth() {
        for step in 0..=20_000 {
            let x = f64::from(step) / 100_000.0;
            assert!((exp2(x) / libm::exp2(x) - 1.0).abs() < 2e-9, "2^{x}");
        }
    }

    #[test]
    fn ranks_follow_who_comes_and_who_is_forgotten() {
        let mut usage = Usage::new(at(0), 2, 8, 7);
        for round in 0..500_u64 {
            let (tenant, class) = ((round * 7 % 8) as u16, (round % 2) as usize);
            usage.serve(at(round), class, tenant, 1.0 + (round * 31 % 17) as f64);
            usage.on_tick(at(round));
            for (class, ranks) in usage.ranks.iter().enumerate() {
                assert!(ranks.is_sorted_by(|a, b| a.counter <= b.counter), "{ranks:?}");
                let ranked = (0..8).filter(|tenant| usage.served(class, *tenant) > 0.0).count();
                assert_eq!(ranks.len(), ranked, "round {round}, class {class}");
            }
        }
        usage.on_tick(at(500_000));
        assert!(usage.ranks.iter().all(Vec::is_empty), "nobody has been served for days");
    }

    #[test]
    fn nobody_is_served_less_than_nothing() {
        let mut usage = Usage::new(at(0), 1, 1, 7);
        usage.serve(at(0), 0, 0, 10.0);
        usage.serve(at(5), 0, 0, -1000.0);
        assert!(usage.served(0, 0).abs() < f64::EPSILON);
    }
}
