//! Candidates in one worker: which requests a canary governs, and what one that watches would have done.

use super::{Decided, PoolRef, Worker};
use crate::pool::Pool;
use crate::record::{FNV_OFFSET, fnv1a};
use crate::request::RequestInfo;
use crate::rng::Rng;
use crate::time::Timestamp;

/// Names a request; Envoy sets it, the same for every retry of its own.
const REQUEST_ID: &[u8] = b"x-request-id";

impl Worker {
    /// Lets each policy know its candidate.
    pub(super) fn link_candidates(&mut self) {
        let pools = &self.pools;
        let candidate_of =
            |pool: &Pool| pools.iter().position(|other| other.policy.stage().of().is_some_and(|name| name == pool.policy.name()));
        let links: alloc::vec::Vec<Option<usize>> =
            pools.iter().map(|pool| if pool.policy.stage().of().is_none() { candidate_of(pool) } else { None }).collect();
        for (pool, link) in self.pools.iter_mut().zip(links) {
            pool.candidate = link;
        }
    }

    /// Which policy governs a request of the policy at `index`: its canary's part is the canary's.
    #[inline(never)]
    pub(super) fn arm(&mut self, index: usize, candidate: usize, request: &RequestInfo<'_>) -> usize {
        let Some(policy) = self.pools.get(candidate).map(|pool| &pool.policy) else { return index };
        let Some(percent) = policy.stage().requests_percent() else { return index };
        let point = match request.headers.first(REQUEST_ID) {
            Some(id) => Rng::new(fnv1a(id, fnv1a(policy.name().as_bytes(), FNV_OFFSET))).next_f64(),
            None => self.rng.next_f64(),
        };
        if point * 100.0 < f64::from(percent) { candidate } else { index }
    }

    /// What the candidate that watches beside `pool` says of a request; `None` when there is none.
    #[inline(never)]
    pub(crate) fn decide_beside(&mut self, now: Timestamp, stream: u32, pool: PoolRef, request: &RequestInfo<'_>) -> Option<Decided> {
        let candidate = self.pool_mut(pool)?.candidate?;
        if !self.pools.get(candidate)?.policy.stage().is_shadow() {
            return None;
        }
        self.decide_by(now, stream, candidate, request)
    }

    /// Counts that a candidate that watches would have done other than the policy in force. `state` is the position of the state that
    /// counts the request in the candidate's pool.
    pub(crate) fn count_disagreement(&mut self, pool: PoolRef, state: usize, here: bool, there: bool) {
        let Some(state) = self.pool_mut(pool).and_then(|pool| pool.states.get_mut(state)) else { return };
        state.only_here += u64::from(here && !there);
        state.only_there += u64::from(there && !here);
    }

    /// Requests that the policy at `policy_index` may have in flight in this proxy: a canary and its policy share the bounds of both by
    /// the canary's percentage. `None`: unbounded.
    #[must_use]
    pub fn permits_total(&self, policy_index: usize) -> Option<u32> {
        let pool = self.pools.get(policy_index)?;
        let most = pool.policy.concurrency()?.max_in_flight;
        let canary = pool.candidate.and_then(|index| self.pools.get(index)).and_then(|pool| pool.policy.stage().requests_percent());
        Some(match (pool.policy.stage().requests_percent(), canary) {
            (Some(percent), _) => part(most, percent),
            (None, Some(percent)) => most - part(most, percent),
            (None, None) => most,
        })
    }
}

/// A percentage of `most`, at least 1 and at most all.
fn part(most: u32, percent: u32) -> u32 {
    let part = u64::from(most) * u64::from(percent) / 100;
    u32::try_from(part).unwrap_or(most).clamp(1, most.max(1))
}
