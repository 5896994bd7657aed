//! How much each tenant was served lately, and the cohort that follows from it.
//!
//! A policy has at most 1,024 tenants, so each has an exact counter; a sketch would be larger. Clients that nobody knows are one tenant
//! together. Counters are by class, since tenants of a class compete with each other and the classes do not.
//!
//! Cut-off and queue both read them. The cut-off takes whoever was served most lately first, everywhere at once, so tenants get equal
//! work while work is short even if no queue stands; and a tenant that is cut off sinks until it is admitted again. Cohorts are ranks
//! among the tenants of a worker, not amounts: with requests spread over workers the ranks agree, and no worker needs another's numbers
//! as long as it serves each tenant now and then itself. Where there are many, the fleet's counters replace its own about once a second.

use alloc::vec::Vec;
use core::time::Duration;

use crate::overload::COHORTS;
use crate::policy::TenantId;
use crate::rng::Rng;
use crate::time::Timestamp;

mod ranks;
pub(crate) mod served;
#[cfg(test)]
mod tests;

use ranks::Ranks;
use served::{MANY, Served, Slot, TELL_EVERY};

/// Time in which what was served counts half: at least, and at most. The longer, the more exactly tenants get the same; the shorter, the
/// less a tenant that comes back after a pause takes from the others until it has caught up, which is about as many requests as
/// [`REQUESTS`] whatever the half-life.
pub(crate) const HALF_LIFE_S: (f64, f64) = (10.0, 120.0);
/// Requests of each tenant that a half-life should see: with fewer, who was served last is chance.
const REQUESTS: f64 = 8.0;
/// Memory of the rate of requests.
const RATE_MEMORY_S: f64 = 10.0;
/// Half-lives after which all counters are scaled down, long before they could leave the range of `f64`.
const RESCALE_AFTER: f64 = 64.0;
/// Workers among which the fleet's counters are thought to be divided: those of a worker are an average one's of that many, whatever there
/// are. So what is served here till the next time, and how large a request is, count that much more than what was served anywhere before. With
/// 2 of them short requests make less of the pool, with 8 tenants of long ones get less than their part.
const FLEET_OF: f64 = 4.0;
/// Changed counters from which on all tenants are ranked anew, instead of those few. A tenant is moved by two searches and two copies.
const MOST_TOUCHED: usize = 64;
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
    /// By class, as of the last tick.
    ranks: Vec<Ranks>,
    /// Changes of counters since, and the counters of the first of them.
    touches: usize,
    touched: [u16; MOST_TOUCHED],
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
    /// Work tokens served since the last telling; empty where nothing is told.
    untold: Vec<f64>,
    told_at: Timestamp,
    /// Tellings, and the newest.
    tellings: u64,
    told: Served,
}

impl Usage {
    /// Counters for `classes` classes and `tenants` known tenants. `key`: the same for every worker that serves the pool.
    pub(crate) fn new(now: Timestamp, classes: usize, tenants: usize, key: u64) -> Self {
        let tenants = tenants + 1;
        Self {
            tenants,
            counters: alloc::vec![0.0; classes * tenants],
            ranks: alloc::vec![Ranks::new(tenants); classes],
            touches: 0,
            touched: [0; MOST_TOUCHED],
            half_life_s: HALF_LIFE_S.0,
            half_lives: 0.0,
            ticked_at: now,
            growth_at_tick: 1.0,
            half_lives_per_ns: 1e-9 / HALF_LIFE_S.0,
            rate: 0.0,
            requests: 0,
            key,
            untold: if tenants > MANY { alloc::vec![0.0; classes * tenants] } else { Vec::new() },
            told_at: now,
            tellings: 0,
            told: Served::default(),
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
        if let Some(touched) = self.touched.get_mut(self.touches) {
            *touched = slot as u16;
        }
        self.touches = self.touches.saturating_add(1);
        if let Some(untold) = self.untold.get_mut(slot) {
            *untold += work;
        }
    }

    /// Takes what the whole fleet served, in place of what is known of those tenants.
    pub(crate) fn follow_fleet(&mut self, now: Timestamp, slot_deltas: &[u32], work: &[u64]) {
        let growth = self.growth(now);
        for (number, fleet) in served::read(slot_deltas, work) {
            let Slot { class, tenant } = Slot::numbered(number);
            let slot = self.slot(class, self.index(tenant.map(TenantId::new)));
            // What was served here in this second is in nobody's count yet.
            let own = self.untold.get(slot).copied().unwrap_or(0.0);
            if let Some(counter) = self.counters.get_mut(slot) {
                *counter = (fleet / FLEET_OF + own).max(0.0) * growth;
                self.touches = usize::MAX;
            }
        }
    }

    /// Tellings so far, and whom the newest says that work was served.
    pub(crate) fn told(&self) -> (u64, &Served) {
        (self.tellings, &self.told)
    }

    fn tell(&mut self, now: Timestamp) {
        if self.untold.is_empty() || now.since(self.told_at) < TELL_EVERY {
            return;
        }
        self.told_at = now;
        self.tellings += 1;
        self.told = Served::default();
        let (tenants, mut last) = (self.tenants, 0);
        for (at, untold) in self.untold.iter_mut().enumerate() {
            let (class, tenant) = (at / tenants, at % tenants);
            let slot = Slot { class, tenant: (tenant + 1 < tenants).then_some(tenant) };
            // What was taken back is told with what is served next.
            *untold -= self.told.push(&mut last, slot.number(), *untold);
        }
    }

    /// Ranks the tenants anew, every control tick. The factor by which all counters were multiplied, if they were.
    pub(crate) fn on_tick(&mut self, now: Timestamp) -> Option<f64> {
        self.pass(now);
        self.tell(now);
        let factor = self.rescale();
        self.growth_at_tick = libm::exp2(self.half_lives);
        self.half_lives_per_ns = 1e-9 / self.half_life_s;
        self.rank(factor.is_some());
        factor
    }

    fn rank(&mut self, is_rescaled: bool) {
        let (tenants, counters) = (self.tenants, &self.counters);
        let place = |ranks: &mut [Ranks], slot: usize| {
            let (ranks, counter) = (ranks.get_mut(slot / tenants)?, counters.get(slot)?);
            Some(ranks.place((slot % tenants) as u16, *counter))
        };
        let touched = self.touched.get(..core::mem::take(&mut self.touches)).filter(|_| !is_rescaled);
        if touched.is_none_or(|touched| !touched.iter().all(|slot| place(&mut self.ranks, usize::from(*slot)) == Some(true))) {
            for (ranks, counters) in self.ranks.iter_mut().zip(counters.chunks(tenants)) {
                ranks.place_all(counters);
            }
        }
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
        let tenants: usize = self.ranks.iter().map(Ranks::len).sum();
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
        if ranks.len() == 0 {
            return scaled(self.spread(now, tenant));
        }
        let (below, alike) = ranks.find(counter);
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
