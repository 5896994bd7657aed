//! Everything that one worker VM knows: the policies in force and their state. A decision reads nothing else.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use crate::admission::{self, Admission, Newcomer};
use crate::aperture::Extent;
use crate::classify::{Classified, classify};
use crate::latency::Place;
use crate::lease::Want;
use crate::needs::Needs;
use crate::policy::{ClaimName, Policy};
use crate::pool::Pool;
use crate::pool::overload::PoolOverload;
use crate::pool::quotas::Charged;
use crate::report;
use crate::request::RequestInfo;
use crate::rng::Rng;
use crate::routes::RouteTable;
use crate::time::Timestamp;

mod candidates;
mod sub_leases;
#[cfg(test)]
mod tests;
mod waiting;

pub use sub_leases::SubLease;
pub(crate) use waiting::Collected;
use waiting::Released;

/// Responses of which one is looked at while none fails and no breaker counts them.
const STATUS_EVERY: u32 = 16;
/// Time after a failure during which every response is looked at.
const STATUS_WATCH: Duration = Duration::from_secs(10);

/// Where a request's pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolRef {
    index: usize,
    uid: u64,
}

/// A decision with what the stream keeps of it.
pub(crate) struct Decided {
    pub(crate) pool: PoolRef,
    pub(crate) policy: Arc<Policy>,
    /// Position of the class's state in its pool.
    pub(crate) state: usize,
    pub(crate) classified: Classified,
    pub(crate) admission: Admission,
    /// Where its latencies count.
    pub(crate) place: Place,
    /// Whether the policy has a candidate.
    pub(crate) has_candidate: bool,
}

/// State of one worker VM.
#[derive(Debug)]
pub struct Worker {
    seed: u64,
    rng: Rng,
    now: Timestamp,
    pools: Vec<Pool>,
    pools_made: u64,
    /// Random number of the proxy's process; 0: not known, and nothing of a quota is held.
    process: u64,
    routes: RouteTable,
    claims: Vec<ClaimName>,
    counters: v1::WorkerCounters,
    /// Responses that were seen whole since one was last looked at.
    unseen_responses: u32,
    failed_at: Option<Timestamp>,
    /// Streams whose answers are to be collected, in the order of the answers.
    released: VecDeque<Released>,
}

impl Worker {
    /// A worker without policies. `seed` is the identity of the VM: it names the worker's counters in reports and seeds its
    /// randomness.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: Rng::new(seed),
            now: Timestamp::ZERO,
            pools: Vec::new(),
            pools_made: 0,
            process: 0,
            routes: RouteTable::default(),
            claims: Vec::new(),
            counters: v1::WorkerCounters::default(),
            unseen_responses: 0,
            failed_at: None,
            released: VecDeque::new(),
        }
    }

    /// Puts `policies` in force. Counters, breakers, buckets, limits and permits of a policy whose name persists are kept. A new
    /// policy with `concurrency` admits nothing before [`Worker::set_permits`].
    #[inline(never)]
    pub fn set_policies(&mut self, now: Timestamp, policies: Vec<Arc<Policy>>) {
        self.now = self.now.max(now);
        let mut former = core::mem::take(&mut self.pools);
        for policy in policies {
            // Who waits for a policy that acts must not wait for one that does not, nor the other way round.
            let is_same =
                |pool: &Pool| pool.policy.name() == policy.name() && pool.policy.stage().is_shadow() == policy.stage().is_shadow();
            let known = former.iter().position(is_same);
            let pool = match known {
                Some(position) => {
                    let mut pool = former.swap_remove(position);
                    let is_shadow = policy.stage().is_shadow();
                    let orphans = pool.set_policy(self.now, policy);
                    let orphans = if is_shadow { Vec::new() } else { orphans };
                    self.released.extend(orphans.into_iter().map(|stream| Released::Orphan { stream }));
                    pool
                }
                None => {
                    self.pools_made += 1;
                    let seed = self.rng.next_u64();
                    Pool::new(self.now, policy, self.pools_made, seed)
                }
            };
            self.pools.push(pool);
        }
        let orphans = former.iter_mut().filter(|pool| !pool.policy.stage().is_shadow()).flat_map(Pool::orphans);
        self.released.extend(orphans.map(|stream| Released::Orphan { stream }));
        self.routes = RouteTable::new(self.pools.iter().map(|pool| &*pool.policy));
        self.set_process(self.process);
        self.link_candidates();
        self.map_claims();
    }

    /// Says which process of the proxy this is: leases of quotas are for one alone.
    pub fn set_process(&mut self, process: u64) {
        self.process = process;
        self.pools.iter_mut().for_each(|pool| pool.quotas.set_holder(self.now, process));
    }

    /// One list of the claims of all policies, and for each policy the positions of its own in it.
    fn map_claims(&mut self) {
        self.claims = self.pools.iter().flat_map(|pool| pool.policy.claims()).cloned().collect();
        self.claims.sort_unstable();
        self.claims.dedup();
        let all = &self.claims;
        for pool in &mut self.pools {
            // Each claim was put into the list above; the position of a missing one would name no value.
            let slot_of = |claim| all.binary_search(claim).unwrap_or(usize::MAX);
            pool.claim_slots = pool.policy.claims().iter().map(slot_of).collect();
        }
    }

    /// The policies in force; their positions are the `policy_index` of the other methods.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.pools.iter().map(|pool| &pool.policy)
    }

    /// Takes limits of a pool that came at `received_at`, which may be some time ago; an older epoch than the one held is ignored while
    /// that is in its time. False when no policy protects the pool: the caller offers them again after [`Worker::set_policies`].
    #[inline(never)]
    pub fn set_limits(&mut self, received_at: Timestamp, wire: &v1::Limits) -> bool {
        self.now = self.now.max(received_at);
        let mut is_known = false;
        for pool in self.pools.iter_mut().filter(|pool| pool.policy.pool() == wire.pool) {
            pool.set_limits(self.now, received_at, wire);
            is_known = true;
        }
        is_known
    }

    /// Epoch of the newest limits of a policy; 0 for none.
    #[must_use]
    pub fn limits_epoch(&self, policy_index: usize) -> u64 {
        self.pools.get(policy_index).and_then(|pool| pool.limits.as_ref()).map_or(0, |limits| limits.epoch)
    }

    /// The policies in force as load reports name them.
    #[must_use]
    pub fn applied(&self) -> Vec<v1::AppliedPolicy> {
        let applied = |(index, policy): (usize, &Arc<Policy>)| v1::AppliedPolicy {
            name: policy.name().into(),
            version: policy.version().into(),
            limits_epoch: self.limits_epoch(index),
        };
        self.policies().enumerate().map(applied).collect()
    }

    /// Gives the worker its part of the proxy's grant: `permits` of `maxInFlight`, and the part (0 to 1) of the proxy's rates.
    /// Before the first call the part of the rates is 1.
    pub fn set_permits(&mut self, policy_index: usize, permits: u32, rate_share: f64) {
        let now = self.now;
        if let Some(pool) = self.pools.get_mut(policy_index) {
            pool.set_permits(now, permits, rate_share);
        }
    }

    /// Gives the worker its part of the proxy's aperture; all of it before the first call. It takes effect with the next tick or limits.
    pub fn set_aperture(&mut self, policy_index: usize, aperture: Extent) {
        if let Some(pool) = self.pools.get_mut(policy_index) {
            pool.aperture = aperture;
        }
    }

    /// Says how many workers share the proxy; 1 before the first call. Its queue is divided among them evenly: what a worker holds does not
    /// follow the demand as fast as requests leave a queue.
    pub fn set_workers(&mut self, policy_index: usize, workers: u32) {
        if let Some(pool) = self.pools.get_mut(policy_index) {
            pool.workers = workers.max(1);
        }
    }

    /// What the worker would like to hold of its proxy's grant: the permits are those that the demand of the last 200 ms needs, with
    /// headroom.
    #[must_use]
    pub fn wants(&self, policy_index: usize) -> Want {
        self.pools.get(policy_index).map_or_else(Want::default, |pool| {
            let permits_in_use = pool.in_flight();
            // Budgets are of work, so under overload control the parts are, too.
            let rate_wanted = pool.overload.as_ref().map_or(pool.demand.rate_rps, PoolOverload::work_wanted);
            Want { permits_in_use, permits_wanted: pool.demand.permits_wanted(permits_in_use), rate_wanted }
        })
    }

    /// What the adapter must read of each request besides its headers.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::of(self.pools.iter().map(|pool| &*pool.policy), &self.claims)
    }

    /// Whether the adapter is to read the status of a response that it has seen to its end, instead of presuming that it is good.
    ///
    /// To read it is the dearest host call of a request. With a breaker in force every status is read. Without one, failures only
    /// enter the count of failed requests and keep the drain honest: one response in 16 is looked at, and after a
    /// failure of any kind all of the next 10 s, so that of a lasting failure all but the first few are counted.
    #[inline]
    pub fn looks_at_status(&mut self, now: Timestamp) -> bool {
        let has_breaker = self.pools.iter().any(|pool| pool.breakers.is_some());
        let is_watched = self.failed_at.is_some_and(|at| now.since(at) < STATUS_WATCH);
        self.unseen_responses += 1;
        let looks = has_breaker || is_watched || self.unseen_responses >= STATUS_EVERY;
        if looks {
            self.unseen_responses = 0;
        }
        looks
    }

    /// Notes that an admitted request has failed.
    pub(crate) fn note_failure(&mut self, now: Timestamp) {
        self.failed_at = Some(now);
    }

    /// Counts a host call that returned an unexpected status.
    pub fn count_host_error(&mut self) {
        self.counters.host_errors += 1;
    }

    /// Counts a request that was let through because the adapter's bound on per-stream state was reached.
    pub fn count_untracked(&mut self) {
        self.counters.untracked += 1;
    }

    /// Moves everything on that moves with time: breakers, the worker's own levels, expiry of limits. Every 10 to 100 ms.
    #[inline(never)]
    pub fn on_tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        for pool in &mut self.pools {
            pool.on_tick(self.now);
        }
        self.answer_all();
    }

    /// Cumulative state for the control plane, as slot `slot` of the proxy.
    #[must_use]
    #[inline(never)]
    pub fn report(&mut self, now: Timestamp, slot: u32) -> v1::WorkerReport {
        self.pools.iter_mut().for_each(Pool::count_noted);
        v1::WorkerReport {
            slot,
            vm_epoch: self.seed,
            at_ns: now.as_nanos(),
            pools: self.pools.iter().map(|pool| report::pool(now, pool)).collect(),
            counters: Some(self.counters),
        }
    }

    /// Decides about a request; `None` when no policy governs it.
    #[inline]
    pub(crate) fn decide(&mut self, now: Timestamp, stream: u32, request: &RequestInfo<'_>) -> Option<Decided> {
        if !request.is_readable {
            self.counters.unreadable += 1;
        }
        let Some(index) = self.routes.find(request.path, request.host) else {
            self.counters.unmatched += 1;
            return None;
        };
        let index = match self.pools.get(index)?.candidate {
            None => index,
            Some(candidate) => self.arm(index, candidate, request),
        };
        let decided = self.decide_by(now, stream, index, request)?;
        if decided.classified.denied_claim {
            self.counters.denied_claims += 1;
        }
        Some(decided)
    }

    /// Decides about a request by the policy at `index`.
    #[inline]
    fn decide_by(&mut self, now: Timestamp, stream: u32, index: usize, request: &RequestInfo<'_>) -> Option<Decided> {
        self.now = self.now.max(now);
        let pool = self.pools.get_mut(index)?;
        let classified = classify(&pool.policy, request, &pool.claim_slots, &mut pool.keys);
        let place = pool.seat(request.headers.first(pool.policy.classification().model_header.as_bytes()));
        let state = pool.state_index(classified.class);
        let newcomer = Newcomer { stream, classified, state, request, charged: Charged::default() };
        let admission = admission::admit(pool, self.now, &mut self.rng, &newcomer);
        Some(Decided {
            pool: PoolRef { index, uid: pool.uid },
            policy: Arc::clone(&pool.policy),
            state,
            classified,
            admission,
            place,
            has_candidate: pool.candidate.is_some(),
        })
    }

    /// The pool of a request; `None` when its policy has gone.
    #[inline]
    pub(crate) fn pool_mut(&mut self, pool: PoolRef) -> Option<&mut Pool> {
        let index = self.index_of(pool)?;
        self.pools.get_mut(index)
    }

    #[inline]
    fn index_of(&self, pool: PoolRef) -> Option<usize> {
        let is_there = self.pools.get(pool.index).is_some_and(|there| there.uid == pool.uid);
        if is_there { Some(pool.index) } else { self.moved(pool.uid) }
    }

    /// Where a pool is whose place has changed.
    #[cold]
    fn moved(&self, uid: u64) -> Option<usize> {
        self.pools.iter().position(|other| other.uid == uid)
    }
}
