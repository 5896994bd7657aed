//! One policy in force in one worker: its counters, buckets, breakers, limits and permits.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::aperture::Extent;
use crate::breaker::{Breaker, KeyedBreakers};
use crate::control::{ClassAction, ClassLoad, PoolController};
use crate::fleet::term_of;
use crate::histogram::{Histogram, Told};
use crate::in_band::EndpointLoads;
use crate::key_cache::KeyCache;
use crate::limits::{Age, HeldLimits, InForce};
use crate::permits::{Demand, MAX_CLASSES, Permits};
use crate::policy::{BreakerConfig, ClassId, Policy};
use crate::reason::Reason;
use crate::throttle::TokenBucket;
use crate::ticket::TicketClock;
use crate::time::Timestamp;

pub(crate) mod journal;
pub(crate) mod latency;
pub(crate) mod overload;
pub(crate) mod quotas;
mod tick;
mod waiting;

use journal::Journal;
use latency::{ClassSeries, LatencyBook};
use overload::PoolOverload;
use quotas::QuotaBook;

/// How an admitted request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Cancelled,
}

/// State of one class, by name: it outlives a change of the policy's list of classes while requests are in flight.
#[derive(Debug)]
pub(crate) struct ClassState {
    pub(crate) name: String,
    pub(crate) offered: u64,
    pub(crate) admitted: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) refused: [u64; Reason::ALL.len()],
    pub(crate) in_flight: u32,
    pub(crate) waiting: u32,
    /// Of a candidate that watches: requests that only it, or only the policy in force, would have served.
    pub(crate) only_here: u64,
    pub(crate) only_there: u64,
    pub(crate) ttft_us: Histogram,
    pub(crate) ttft_told: Told,
    pub(crate) in_force: InForce,
    pub(crate) bucket: Option<TokenBucket>,
    pub(crate) clock: TicketClock,
    pub(crate) series: ClassSeries,
}

impl ClassState {
    fn new(name: &str, series: ClassSeries) -> Self {
        Self {
            name: String::from(name),
            offered: 0,
            admitted: 0,
            completed: 0,
            failed: 0,
            cancelled: 0,
            refused: [0; Reason::ALL.len()],
            in_flight: 0,
            waiting: 0,
            only_here: 0,
            only_there: 0,
            ttft_us: Histogram::new(),
            ttft_told: Told::default(),
            in_force: InForce::ADMIT,
            bucket: None,
            clock: TicketClock::default(),
            series,
        }
    }

    pub(crate) fn count_refusal(&mut self, reason: Reason) {
        let counters = Reason::ALL.iter().zip(&mut self.refused);
        counters.filter(|(known, _)| **known == reason).for_each(|(_, count)| *count += 1);
    }

    fn load(&self) -> ClassLoad {
        ClassLoad { offered: self.offered, admitted: self.admitted, completed: self.completed, in_flight: self.in_flight }
    }

    fn apply(&mut self, now: Timestamp, in_force: InForce) {
        self.in_force = in_force;
        match (in_force.action, &mut self.bucket) {
            (ClassAction::Throttle { rate_rps, burst }, Some(bucket)) => bucket.set_rate(now, rate_rps, burst),
            (ClassAction::Throttle { rate_rps, burst }, None) => self.bucket = Some(TokenBucket::new(now, rate_rps, burst)),
            // A class that is refused for a while must not find a bucket that filled meanwhile.
            (ClassAction::Refuse, Some(bucket)) => bucket.set_rate(now, 0.0, 1.0),
            (ClassAction::Refuse, None) => self.bucket = Some(TokenBucket::new(now, 0.0, 0.0)),
            (ClassAction::Admit, _) => self.bucket = None,
        }
    }
}

/// Breakers of a pool.
#[derive(Debug)]
pub(crate) struct PoolBreakers {
    pub(crate) pool: Breaker,
    pub(crate) endpoints: KeyedBreakers,
    pub(crate) dependencies: KeyedBreakers,
}

impl PoolBreakers {
    fn new(config: &BreakerConfig) -> Self {
        Self { pool: Breaker::new(config), endpoints: KeyedBreakers::default(), dependencies: KeyedBreakers::default() }
    }
}

/// One policy in force.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Tells it from every other that this worker ever had.
    pub(crate) uid: u64,
    pub(crate) policy: Arc<Policy>,
    /// By [`ClassId`]: the position in `states`.
    class_states: [usize; MAX_CLASSES],
    /// Positions are stable while a request of the class is in flight.
    pub(crate) states: Vec<ClassState>,
    /// For each of the policy's claims: its position among the claims that the worker asks for.
    pub(crate) claim_slots: Vec<usize>,
    /// Position of the policy's candidate among those of the worker.
    pub(crate) candidate: Option<usize>,
    pub(crate) keys: KeyCache,
    pub(crate) breakers: Option<PoolBreakers>,
    pub(crate) permits: Permits,
    pub(crate) limits: Option<HeldLimits>,
    pub(crate) demand: Demand,
    pub(crate) ttft_us: Histogram,
    journal: Journal,
    pub(crate) latency: LatencyBook,
    /// What the endpoints said of their loads.
    pub(crate) engine_loads: EndpointLoads,
    /// Overload control, when the policy has it.
    pub(crate) overload: Option<PoolOverload>,
    /// Its parts of the leases of quotas.
    pub(crate) quotas: QuotaBook,
    overloads_made: u64,
    rate_share: f64,
    /// Its part of the proxy's aperture.
    pub(crate) aperture: Extent,
    /// Workers of the proxy.
    pub(crate) workers: u32,
    controller: PoolController,
    /// Time of the last look at the load, and of the last turn of the worker's own controllers.
    controlled_at: Timestamp,
    learned_at: Timestamp,
}

impl Pool {
    pub(crate) fn new(now: Timestamp, policy: Arc<Policy>, uid: u64, seed: u64) -> Self {
        let mut pool = Self {
            uid,
            class_states: [0; MAX_CLASSES],
            states: Vec::new(),
            claim_slots: Vec::new(),
            candidate: None,
            keys: KeyCache::new(seed),
            breakers: policy.breaker().map(PoolBreakers::new),
            permits: Permits::default(),
            limits: None,
            demand: Demand::default(),
            ttft_us: Histogram::new(),
            journal: Journal::default(),
            latency: LatencyBook::default(),
            engine_loads: EndpointLoads::default(),
            overload: PoolOverload::new(now, &policy, 0),
            quotas: QuotaBook::default(),
            overloads_made: 0,
            rate_share: 1.0,
            aperture: Extent::WHOLE,
            workers: 1,
            controller: PoolController::new(now, &policy),
            controlled_at: now,
            learned_at: now,
            policy,
        };
        pool.map_classes();
        pool.quotas.set_policy(now, &pool.policy);
        pool.enforce(now);
        pool
    }

    /// Follows a new version of the policy; counters, breakers, buckets, limits, permits and those who wait stay. The streams that nobody
    /// answers any more, because there is no queue now.
    pub(crate) fn set_policy(&mut self, now: Timestamp, policy: Arc<Policy>) -> Vec<u32> {
        if *self.policy == *policy {
            return Vec::new();
        }
        if self.policy.pool() != policy.pool() {
            self.limits = None;
        }
        self.breakers = match (self.breakers.take(), policy.breaker()) {
            (_, None) => None,
            (None, Some(config)) => Some(PoolBreakers::new(config)),
            (Some(mut breakers), Some(config)) => {
                if self.policy.breaker() != Some(config) {
                    breakers.pool.reconfigure(config);
                    breakers.endpoints.reconfigure(config);
                    breakers.dependencies.reconfigure(config);
                }
                Some(breakers)
            }
        };
        let orphans = self.set_overload(now, &policy);
        self.policy = policy;
        self.keys.clear();
        self.controller.set_policy(now, &self.policy);
        self.permits = Permits::new(&self.policy, self.permits.total);
        self.map_classes();
        self.quotas.set_policy(now, &self.policy);
        self.enforce(now);
        orphans
    }

    fn set_overload(&mut self, now: Timestamp, policy: &Policy) -> Vec<u32> {
        match &mut self.overload {
            Some(load) if policy.overload().is_some() => {
                let queue = load.set_policy(now, &self.policy, policy);
                self.disband(queue)
            }
            Some(_) => self.orphans(),
            None => {
                self.overloads_made += 1;
                self.overload = PoolOverload::new(now, policy, self.overloads_made);
                Vec::new()
            }
        }
    }

    /// Finds or makes the state of each class; states of former classes go when their last request has.
    fn map_classes(&mut self) {
        self.count_noted();
        let policy = Arc::clone(&self.policy);
        let is_former = |state: &ClassState| !policy.classes().iter().any(|class| class.name == state.name);
        for (class, slot) in policy.classes().iter().zip(&mut self.class_states) {
            let known = self.states.iter().position(|state| state.name == class.name);
            *slot = known.unwrap_or_else(|| {
                let free = self.states.iter().position(|state| state.in_flight == 0 && is_former(state));
                let position = free.unwrap_or(self.states.len());
                let fresh = ClassState::new(&class.name, self.latency.new_series(self.uid));
                match self.states.get_mut(position) {
                    Some(state) => *state = fresh,
                    None => self.states.push(fresh),
                }
                position
            });
        }
        self.seat_named_models();
    }

    /// Position of a class's state.
    #[inline]
    pub(crate) fn state_index(&self, class: ClassId) -> usize {
        self.class_states.get(class.index()).copied().unwrap_or(usize::MAX)
    }

    /// States of the policy's classes, in its order.
    pub(crate) fn class_states(&self) -> impl Iterator<Item = &ClassState> {
        let positions = self.class_states.iter().take(self.policy.classes().len());
        positions.filter_map(|position| self.states.get(*position))
    }

    #[inline]
    pub(crate) fn state_mut(&mut self, class: ClassId) -> Option<&mut ClassState> {
        let position = self.state_index(class);
        self.states.get_mut(position)
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.states.iter().fold(0, |sum, state| sum.saturating_add(state.in_flight))
    }

    /// Whether a response says something to its class alone, and to no breaker, overload control or book of engines' loads.
    #[inline]
    pub(crate) fn hears_of_no_response(&self) -> bool {
        self.breakers.is_none() && self.overload.is_none() && !self.policy.orca()
    }

    /// Whether the concurrency bound, if there is one, leaves room for one more request of `class`.
    #[inline]
    pub(crate) fn has_permit(&self, class: ClassId) -> bool {
        self.policy.concurrency().is_none() || self.has_permit_of_bound(class)
    }

    #[inline(never)]
    fn has_permit_of_bound(&self, class: ClassId) -> bool {
        let mut in_flight = [0; MAX_CLASSES];
        let mut known = 0_u32;
        for (slot, state) in in_flight.iter_mut().zip(self.class_states()) {
            *slot = state.in_flight;
            known = known.saturating_add(state.in_flight);
        }
        self.permits.allows(class.index(), &in_flight, self.in_flight().saturating_sub(known))
    }

    pub(crate) fn set_permits(&mut self, now: Timestamp, permits: u32, rate_share: f64) {
        self.permits = Permits::new(&self.policy, permits);
        // A share that is no number is a fault of the caller; the last one stays.
        if rate_share.is_finite() && rate_share != self.rate_share {
            self.rate_share = rate_share.clamp(0.0, 1.0);
            self.enforce(now);
        }
    }

    /// Takes newer limits. While those held are in their time an older epoch is ignored; a control plane that lost its count is
    /// believed as soon as nothing newer speaks against it. A leader of an older term than theirs is ignored until they have ended
    /// altogether: another one has taken over from it.
    pub(crate) fn set_limits(&mut self, now: Timestamp, received_at: Timestamp, wire: &v1::Limits) {
        self.quotas.accept(now, &self.policy, &wire.quotas);
        let is_old = self.limits.as_ref().is_some_and(|held| match held.age(now) {
            Age::Fresh => wire.epoch < held.epoch,
            Age::Decaying(_) => term_of(wire.epoch) < term_of(held.epoch),
            Age::Expired => false,
        });
        if !is_old {
            self.limits = Some(HeldLimits::new(received_at, wire));
            if let Some(load) = &mut self.overload {
                load.follow_fleet(now, &self.policy, wire);
            }
            self.enforce(now);
        }
    }
}
