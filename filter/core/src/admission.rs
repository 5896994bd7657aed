//! The decision about one request: breaker, then what its class may do, then a permit; or, under overload control, what its level, the
//! budgets and the queue say. And the decision about those that waited.

use core::time::Duration;

use crate::breaker::{Gate, KeyedGate, KeyedPass, Opened, Pass, Verdict};
use crate::classify::Classified;
use crate::control::ClassAction;
use crate::policy::{ClassId, Fallback};
use crate::pool::Pool;
use crate::pool::overload::Answer;
use crate::pool::quotas::{Charged, Lack};
use crate::queue::{Left, Ticket};
use crate::reason::{Cause, Reason, Source};
use crate::request::RequestInfo;
use crate::rng::Rng;
use crate::ticket;
use crate::time::Timestamp;

mod held;
mod overload;
#[cfg(test)]
mod tests;

pub(crate) use held::Held;
use overload::{Next, Ruling};

/// What a client is told while the worker holds no permit at all: its part of the lease is on the way, which takes a few ticks, or a
/// heartbeat when another worker has just died.
const LEASE_RETRY: Duration = Duration::from_secs(1);

/// A request that has just come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newcomer<'a> {
    /// The adapter's name for its stream.
    pub(crate) stream: u32,
    pub(crate) classified: Classified,
    /// Position of its class's state in the pool.
    pub(crate) state: usize,
    pub(crate) request: &'a RequestInfo<'a>,
    /// What it has been charged of quotas.
    pub(crate) charged: Charged,
}

/// Passes of the breakers that an admitted request holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passes {
    pub(crate) pool: Option<Pass>,
    pub(crate) dependency: Option<KeyedPass>,
    /// Whether it goes without the dependency whose breaker is open.
    pub(crate) is_direct: bool,
}

/// What an admitted request gives back, or is settled by, when it is over.
#[derive(Debug)]
pub(crate) enum Dues {
    /// What it has been charged of quotas.
    Charged(Charged),
    /// That, and its work.
    Work(Held),
}

/// The decision.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It goes to the pool.
    Admitted(Passes, Dues),
    /// It waits for its answer.
    Waiting(Ticket),
    /// It is told to come back.
    Refused { cause: Cause, retry_after: Duration },
    /// A breaker is open and the policy's fallback takes the request.
    Diverted { cause: Cause },
    /// A rung of the ladder, by its position, takes the request.
    Degraded { cause: Cause, rung: usize },
}

/// What the breakers say.
enum BreakerSays {
    Go(Passes),
    Shut { opened: Opened, recovery: Duration },
}

/// Decides about a request and counts the decision.
///
/// What an admitted request needs is inlined up to the adapter, which is compiled for speed; everything else is a call, and for size.
#[inline]
pub(crate) fn admit(pool: &mut Pool, now: Timestamp, rng: &mut Rng, newcomer: &Newcomer<'_>) -> Admission {
    let classified = newcomer.classified;
    if let Some(state) = pool.states.get_mut(newcomer.state) {
        state.offered += 1;
    }
    let passes = match ask_breakers(pool, now, rng) {
        BreakerSays::Go(passes) => passes,
        BreakerSays::Shut { opened, recovery } => return shut(pool, classified.class, rng, opened, recovery),
    };
    let charged = match pool.charge(now, newcomer) {
        Ok(charged) => charged,
        Err(lack) => {
            give_back(pool, now, passes);
            return lacks_quota(pool, now, rng, classified.class, lack);
        }
    };
    if pool.overload.is_some() {
        return admit_by_work(pool, now, rng, &Newcomer { charged, ..*newcomer }, passes);
    }
    match ask_class(pool, now, newcomer.state, classified.class) {
        Ok(()) => {
            count_start(pool, newcomer.state);
            Admission::Admitted(passes, Dues::Charged(charged))
        }
        Err(cause) => {
            give_back(pool, now, passes);
            refuse_by_class(pool, now, rng, classified.class, &charged, cause)
        }
    }
}

/// Refuses a request that its class may not start.
#[inline(never)]
fn refuse_by_class(pool: &mut Pool, now: Timestamp, rng: &mut Rng, class: ClassId, charged: &Charged, cause: Cause) -> Admission {
    pool.refund(charged.charges, charged.size);
    let cap = max_retry_after(pool, class);
    let has_lease = pool.permits.total > 0;
    let mut retry_after = ticket::jittered(LEASE_RETRY, cap, rng);
    if let Some(state) = pool.state_mut(class) {
        state.count_refusal(cause.reason);
        if has_lease || cause.reason != Reason::Concurrency {
            retry_after = state.clock.retry_after(now, state.in_force.drain_rps, cap, rng);
        }
    }
    Admission::Refused { cause, retry_after }
}

/// The decision under overload control. A request that waits holds no pass of a breaker: when it starts, they are asked anew.
#[inline(never)]
fn admit_by_work(pool: &mut Pool, now: Timestamp, rng: &mut Rng, newcomer: &Newcomer<'_>, passes: Passes) -> Admission {
    let class = newcomer.classified.class;
    let has_permit = pool.has_permit(class);
    if !has_permit {
        pool.demand.note_blocked();
    }
    let ruling = match &mut pool.overload {
        Some(load) => overload::rule(load, &pool.policy, now, rng, newcomer, has_permit),
        None => None,
    };
    match ruling {
        Some(Ruling::Admit(held)) => {
            count_start(pool, newcomer.state);
            Admission::Admitted(passes, Dues::Work(held))
        }
        Some(Ruling::Wait(ticket)) => {
            give_back(pool, now, passes);
            Admission::Waiting(ticket)
        }
        Some(Ruling::Degrade { cause, rung }) => {
            give_back(pool, now, passes);
            pool.refund(newcomer.charged.charges, newcomer.charged.size);
            count_refusal(pool, class, cause.reason);
            Admission::Degraded { cause, rung }
        }
        Some(Ruling::Refuse { cause, work }) => {
            give_back(pool, now, passes);
            pool.refund(newcomer.charged.charges, newcomer.charged.size);
            count_refusal(pool, class, cause.reason);
            Admission::Refused { cause, retry_after: retry_after_of_work(pool, now, rng, class, work) }
        }
        // A policy without overload control, or without the class, rules nothing.
        None => {
            count_start(pool, newcomer.state);
            Admission::Admitted(passes, Dues::Charged(newcomer.charged))
        }
    }
}

/// Refuses a request for which a quota has not enough left.
#[inline(never)]
fn lacks_quota(pool: &mut Pool, now: Timestamp, rng: &mut Rng, class: ClassId, lack: Lack) -> Admission {
    let Lack { cause, drain_rps } = lack;
    count_refusal(pool, class, cause.reason);
    let cap = max_retry_after(pool, class);
    // A worker without a part gets one within a few ticks of having asked.
    let retry_after = match pool.state_mut(class) {
        Some(state) if drain_rps > 0.0 => state.clock.retry_after(now, drain_rps, cap, rng),
        _ => ticket::jittered(LEASE_RETRY, cap, rng),
    };
    Admission::Refused { cause, retry_after }
}

/// When a request of `work` work tokens is to come back: the ticket clock of its class, at the rate at which the pool has work for it.
fn retry_after_of_work(pool: &mut Pool, now: Timestamp, rng: &mut Rng, class: ClassId, work: u64) -> Duration {
    let cap = max_retry_after(pool, class);
    let drain_rps = pool.overload.as_ref().map_or(0.0, |load| load.drain_of(class)) / (work as f64).max(1.0);
    pool.state_mut(class).map_or(cap, |state| state.clock.retry_after(now, drain_rps, cap, rng))
}

/// Gives answers to those who wait: to whom the budgets have room for, in their order, and to those whose time has passed. Each ticket
/// that has an answer then goes to `answered`.
pub(crate) fn answer_waiting(pool: &mut Pool, now: Timestamp, rng: &mut Rng, answered: &mut dyn FnMut(Ticket)) {
    while let Some(class) = pool.overload.as_ref().and_then(|load| Some(load.queue.as_ref()?.head()?.1.class)) {
        let has_permit = pool.has_permit(class);
        let Pool { policy, overload, .. } = pool;
        let next = overload.as_mut().and_then(|load| overload::next(load, policy, now, has_permit));
        match answer(pool, now, rng, next) {
            Some(ticket) => answered(ticket),
            None => return,
        }
    }
}

/// Refuses those whose time has passed, wherever they stand in the queue, and those who wait in vain.
pub(crate) fn answer_expired(pool: &mut Pool, now: Timestamp, rng: &mut Rng, answered: &mut dyn FnMut(Ticket)) {
    loop {
        let next = pool.overload.as_mut().and_then(|load| overload::next_expired(load, now));
        match answer(pool, now, rng, next) {
            Some(ticket) => answered(ticket),
            None => return,
        }
    }
}

/// Answers one that waits and counts the answer.
fn answer(pool: &mut Pool, now: Timestamp, rng: &mut Rng, next: Option<Next>) -> Option<Ticket> {
    match next? {
        Next::Nothing => None,
        Next::Start(ticket, waiting, held) => {
            let state = pool.state_index(waiting.class);
            count_start(pool, state);
            let load = pool.overload.as_mut()?;
            load.counts.released += 1;
            load.flow.queue_wait_us.record(micros(now.since(waiting.arrived)));
            let growth = waiting.work as f64 * load.usage.growth(now);
            load.queue.as_mut()?.answer(ticket, Answer::Admitted { held, state }, growth);
            Some(ticket)
        }
        Next::Expire(ticket, waiting, cause) => {
            count_refusal(pool, waiting.class, cause.reason);
            pool.refund(waiting.need.charges, waiting.need.size);
            let retry_after = retry_after_of_work(pool, now, rng, waiting.class, waiting.work);
            let load = pool.overload.as_mut()?;
            load.counts.expired += 1;
            load.queue.as_mut()?.answer(ticket, Answer::Refused { cause, retry_after }, 0.0);
            Some(ticket)
        }
    }
}

/// Asks the breakers for a request that waited and whose work is reserved; what it holds goes back when they let nothing through. `state`
/// is the position of the state that counts it.
pub(crate) fn start_waiting(pool: &mut Pool, now: Timestamp, rng: &mut Rng, held: Held, state: usize) -> Admission {
    let class = held.class;
    match ask_breakers(pool, now, rng) {
        BreakerSays::Go(passes) => Admission::Admitted(passes, Dues::Work(held)),
        BreakerSays::Shut { opened, recovery } => {
            pool.refund(held.charges, held.reservation.size);
            if let Some(load) = &mut pool.overload {
                held.undo(load);
            }
            if let Some(state) = pool.states.get_mut(state) {
                state.admitted = state.admitted.saturating_sub(1);
                state.in_flight = state.in_flight.saturating_sub(1);
                state.waiting = state.waiting.saturating_sub(1);
            }
            shut(pool, class, rng, opened, recovery)
        }
    }
}

/// The client of a waiting request has left; whatever was reserved for it goes back.
pub(crate) fn abandon(pool: &mut Pool, ticket: Ticket) {
    let Some(load) = &mut pool.overload else { return };
    let Some(queue) = &mut load.queue else { return };
    match queue.cancel(ticket) {
        Left::Waiting(waiting) => {
            load.counts.abandoned += 1;
            pool.refund(waiting.need.charges, waiting.need.size);
        }
        Left::Answered(answer) => pool.take_back(answer),
        Left::Gone => {}
    }
}

/// Counts a request that starts now, by the state at `state`.
#[inline]
fn count_start(pool: &mut Pool, state: usize) {
    let in_flight = pool.in_flight().saturating_add(1);
    pool.demand.note_in_flight(in_flight);
    if let Some(state) = pool.states.get_mut(state) {
        state.admitted += 1;
        state.in_flight += 1;
        state.waiting += 1;
    }
}

fn count_refusal(pool: &mut Pool, class: ClassId, reason: Reason) {
    if let Some(state) = pool.state_mut(class) {
        state.count_refusal(reason);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[inline]
fn ask_breakers(pool: &mut Pool, now: Timestamp, rng: &mut Rng) -> BreakerSays {
    if pool.breakers.is_none() { BreakerSays::Go(Passes::default()) } else { ask_each_breaker(pool, now, rng) }
}

#[inline(never)]
fn ask_each_breaker(pool: &mut Pool, now: Timestamp, rng: &mut Rng) -> BreakerSays {
    let (Some(breakers), Some(config)) = (&mut pool.breakers, pool.policy.breaker()) else { return BreakerSays::Go(Passes::default()) };
    let pass = match breakers.pool.admit(config, now, rng) {
        Gate::Open(pass) => pass,
        Gate::Shut { recovery } => return BreakerSays::Shut { opened: breakers.pool.opened(), recovery },
    };
    match breakers.dependencies.admit(config, now, rng) {
        KeyedGate::Open(dependency) => BreakerSays::Go(Passes { pool: Some(pass), dependency, is_direct: false }),
        KeyedGate::Shut { .. } if config.fallback == Some(Fallback::Direct) => {
            BreakerSays::Go(Passes { pool: Some(pass), dependency: None, is_direct: true })
        }
        KeyedGate::Shut { recovery, opened } => {
            breakers.pool.settle(config, now, pass, Verdict::Unknown);
            BreakerSays::Shut { opened, recovery }
        }
    }
}

/// An open breaker takes the request: the fallback, or a refusal until its countdown is over.
#[inline(never)]
fn shut(pool: &mut Pool, class: ClassId, rng: &mut Rng, opened: Opened, recovery: Duration) -> Admission {
    let Opened { value, threshold } = opened;
    let cause = Cause { reason: Reason::BreakerOpen, value, threshold, term: None, source: Source::Policy };
    let cap = max_retry_after(pool, class);
    count_refusal(pool, class, cause.reason);
    // Going without a dependency is no way around the pool itself.
    match pool.policy.breaker().and_then(|config| config.fallback.as_ref()) {
        None | Some(Fallback::Direct) => Admission::Refused { cause, retry_after: ticket::jittered(recovery, cap, rng) },
        Some(_) => Admission::Diverted { cause },
    }
}

fn max_retry_after(pool: &Pool, class: ClassId) -> Duration {
    pool.policy.class(class).map_or(Duration::from_secs(1), |class| class.max_retry_after)
}

/// Whether the class, whose state is at `state`, may start one more request.
#[inline]
fn ask_class(pool: &mut Pool, now: Timestamp, state: usize, class: ClassId) -> Result<(), Cause> {
    if let Some(state) = pool.states.get_mut(state) {
        let admits = match state.in_force.action {
            ClassAction::Admit => true,
            ClassAction::Throttle { .. } => state.bucket.as_mut().is_some_and(|bucket| bucket.take(now)),
            ClassAction::Refuse => false,
        };
        if !admits {
            return Err(state.in_force.cause);
        }
    }
    if pool.has_permit(class) { Ok(()) } else { Err(lacks_permit(pool, class)) }
}

#[inline(never)]
fn lacks_permit(pool: &mut Pool, class: ClassId) -> Cause {
    pool.demand.note_blocked();
    // At least as many are in flight as the class could use, so the value is never below the threshold.
    let (value, threshold) = (f64::from(pool.in_flight()), f64::from(pool.permits.usable_by(class.index())));
    if let Some(bucket) = pool.state_mut(class).and_then(|state| state.bucket.as_mut()) {
        bucket.put_back();
    }
    Cause { reason: Reason::Concurrency, value, threshold, term: None, source: Source::Policy }
}

/// Returns what a request held that was not admitted after all, so that no probe is lost.
#[inline(never)]
fn give_back(pool: &mut Pool, now: Timestamp, passes: Passes) {
    let (Some(breakers), Some(config)) = (&mut pool.breakers, pool.policy.breaker()) else { return };
    let Passes { pool: pass, dependency, is_direct: _ } = passes;
    if let Some(pass) = pass {
        breakers.pool.settle(config, now, pass, Verdict::Unknown);
    }
    if let Some(pass) = dependency {
        breakers.dependencies.settle(config, now, pass, Verdict::Unknown);
    }
}
