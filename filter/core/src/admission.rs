//! The decision about one request: breaker, then what its class may do, then a permit.

use core::time::Duration;

use crate::breaker::{Gate, KeyedGate, KeyedPass, Opened, Pass, Verdict};
use crate::classify::Classified;
use crate::control::ClassAction;
use crate::policy::Fallback;
use crate::pool::Pool;
use crate::reason::{Cause, Reason, Source};
use crate::rng::Rng;
use crate::ticket;
use crate::time::Timestamp;

/// What a client is told while the worker holds no permit at all: its part of the lease is on the way, which takes a few ticks, or a
/// heartbeat when another worker has just died.
const LEASE_RETRY: Duration = Duration::from_secs(1);

/// Passes of the breakers that an admitted request holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passes {
    pub(crate) pool: Option<Pass>,
    pub(crate) dependency: Option<KeyedPass>,
    /// Whether it goes without the dependency whose breaker is open.
    pub(crate) is_direct: bool,
}

/// The decision.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Admission {
    /// It goes to the pool.
    Admitted(Passes),
    /// It is told to come back.
    Refused { cause: Cause, retry_after: Duration },
    /// A breaker is open and the policy's fallback takes the request.
    Diverted { cause: Cause },
}

/// What the breakers say.
enum BreakerSays {
    Go(Passes),
    Shut { opened: Opened, recovery: Duration },
}

/// Decides about a request of a class and counts the decision.
pub(crate) fn admit(pool: &mut Pool, now: Timestamp, rng: &mut Rng, classified: Classified) -> Admission {
    if let Some(state) = pool.state_mut(classified.class) {
        state.offered += 1;
    }
    let passes = match ask_breakers(pool, now, rng) {
        BreakerSays::Go(passes) => passes,
        BreakerSays::Shut { opened, recovery } => return shut(pool, classified, rng, opened, recovery),
    };
    match ask_class(pool, now, classified) {
        Ok(()) => {
            let in_flight = pool.in_flight().saturating_add(1);
            pool.demand.note_in_flight(in_flight);
            if let Some(state) = pool.state_mut(classified.class) {
                state.admitted += 1;
                state.in_flight += 1;
                state.waiting += 1;
            }
            Admission::Admitted(passes)
        }
        Err(cause) => {
            give_back(pool, now, passes);
            let cap = max_retry_after(pool, classified);
            let has_lease = pool.permits.total > 0;
            let mut retry_after = ticket::jittered(LEASE_RETRY, cap, rng);
            if let Some(state) = pool.state_mut(classified.class) {
                state.count_refusal(cause.reason);
                if has_lease || cause.reason != Reason::Concurrency {
                    retry_after = state.clock.retry_after(now, state.in_force.drain_rps, cap, rng);
                }
            }
            Admission::Refused { cause, retry_after }
        }
    }
}

fn ask_breakers(pool: &mut Pool, now: Timestamp, rng: &mut Rng) -> BreakerSays {
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
fn shut(pool: &mut Pool, classified: Classified, rng: &mut Rng, opened: Opened, recovery: Duration) -> Admission {
    let Opened { value, threshold } = opened;
    let cause = Cause { reason: Reason::BreakerOpen, value, threshold, source: Source::Policy };
    let cap = max_retry_after(pool, classified);
    if let Some(state) = pool.state_mut(classified.class) {
        state.count_refusal(cause.reason);
    }
    // Going without a dependency is no way around the pool itself.
    match pool.policy.breaker().and_then(|config| config.fallback.as_ref()) {
        None | Some(Fallback::Direct) => Admission::Refused { cause, retry_after: ticket::jittered(recovery, cap, rng) },
        Some(_) => Admission::Diverted { cause },
    }
}

fn max_retry_after(pool: &Pool, classified: Classified) -> Duration {
    pool.policy.class(classified.class).map_or(Duration::from_secs(1), |class| class.max_retry_after)
}

/// Whether the class may start one more request.
fn ask_class(pool: &mut Pool, now: Timestamp, classified: Classified) -> Result<(), Cause> {
    if let Some(state) = pool.state_mut(classified.class) {
        let admits = match state.in_force.action {
            ClassAction::Admit => true,
            ClassAction::Throttle { .. } => state.bucket.as_mut().is_some_and(|bucket| bucket.take(now)),
            ClassAction::Refuse => false,
        };
        if !admits {
            return Err(state.in_force.cause);
        }
    }
    if pool.has_permit(classified.class) {
        return Ok(());
    }
    pool.demand.note_blocked();
    // At least as many are in flight as the class could use, so the value is never below the threshold.
    let (value, threshold) = (f64::from(pool.in_flight()), f64::from(pool.permits.usable_by(classified.class.index())));
    if let Some(bucket) = pool.state_mut(classified.class).and_then(|state| state.bucket.as_mut()) {
        bucket.put_back();
    }
    Err(Cause { reason: Reason::Concurrency, value, threshold, source: Source::Policy })
}

/// Returns what a request held that was not admitted after all, so that no probe is lost.
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
