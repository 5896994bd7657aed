//! Overload limits as a worker holds them, and what is in force at a given time.
//!
//! Like every limit they hold for their time to live. Then the budgets move on a straight line to the safe ones while the stricter of
//! them and the worker's own counts, and at the end the worker's own controller, which has learned all the while, decides; within the
//! safe budgets, since a worker alone sees no KV cache.

use core::time::Duration;

use headgate_protos::v1;

use super::{Age, HeldLimits, finite};
use crate::overload::{Budgets, CutOff, LEVELS, OverloadState, RungState, Term};
use crate::permits::MAX_CLASSES;
use crate::reason::Source;
use crate::time::Timestamp;

/// What a worker may do under overload control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WorkLimits {
    /// Budgets of this worker.
    pub(crate) budgets: Budgets,
    pub(crate) cut_off: CutOff,
    /// 1: the pool can do no more.
    pub(crate) saturation: f64,
    pub(crate) binding: Option<Term>,
    /// Work tokens per second that this worker can expect to be finished for it; 0 while unknown.
    pub(crate) drain_work_per_s: f64,
    /// From leaving the queue to the first token.
    pub(crate) expected_ttft: Duration,
    /// Part (0 to 1) of first attempts that retries may be.
    pub(crate) retry_ratio: f64,
    /// Factor on the prompt that the length of the body suggests.
    pub(crate) prompt_factor: f64,
    /// Mean output of a response, in tokens; 0 while unknown.
    pub(crate) output_tokens: f64,
    /// Engaged rungs, by their position in the policy's ladder.
    pub(crate) rungs: [bool; MAX_CLASSES],
    /// Work tokens per second that each class is always given by this worker.
    pub(crate) floors_work_per_s: [f64; MAX_CLASSES],
    pub(crate) source: Source,
}

/// Limits from the control plane, for the whole proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HeldWork {
    limits: WorkLimits,
    safe_budgets: Budgets,
}

impl HeldWork {
    /// Reads limits; numbers that are none, or negative, count as zero.
    pub(super) fn new(wire: &v1::OverloadLimits) -> Self {
        let mut rungs = [false; MAX_CLASSES];
        for (slot, engaged) in (0_u32..).zip(&mut rungs) {
            *engaged = wire.rungs.contains(&slot);
        }
        let mut floors = [0.0; MAX_CLASSES];
        for (floor, given) in floors.iter_mut().zip(&wire.floor_work_per_s) {
            *floor = finite(*given);
        }
        let level = u16::try_from(wire.cut_level).unwrap_or(LEVELS).min(LEVELS);
        let limits = WorkLimits {
            budgets: Budgets::from_wire(wire.budgets.as_ref()),
            cut_off: CutOff { level, fraction: finite(wire.cut_fraction).min(1.0) },
            saturation: finite(wire.saturation),
            binding: Term::from_wire(wire.binding),
            drain_work_per_s: finite(wire.drain_work_per_s),
            expected_ttft: Duration::try_from_secs_f64(finite(wire.expected_ttft_ms) / 1000.0).unwrap_or(Duration::MAX),
            retry_ratio: finite(wire.retry_ratio),
            prompt_factor: factor(wire.prompt_factor),
            output_tokens: finite(wire.output_tokens),
            rungs,
            floors_work_per_s: floors,
            source: Source::ControlPlane,
        };
        Self { limits, safe_budgets: Budgets::from_wire(wire.safe_budgets.as_ref()) }
    }

    /// A worker's `share` of what holds fresh.
    fn part(&self, share: f64) -> WorkLimits {
        let Self { limits, safe_budgets: _ } = self;
        WorkLimits {
            budgets: limits.budgets.part(share),
            drain_work_per_s: limits.drain_work_per_s * share,
            floors_work_per_s: limits.floors_work_per_s.map(|floor| floor * share),
            ..*limits
        }
    }

    /// What is left of it after the part `done` (0 to 1) of the decay.
    fn decayed(&self, share: f64, done: f64) -> WorkLimits {
        let towards = |held: Option<u64>, safe: Option<u64>| match (held, safe) {
            (Some(held), Some(safe)) => Some((held as f64 + (safe as f64 - held as f64) * done) as u64),
            (held, _) => held,
        };
        let (held, safe) = (self.limits.budgets, self.safe_budgets);
        let budgets = Budgets {
            prefill_tokens: towards(held.prefill_tokens, safe.prefill_tokens),
            kv_tokens: towards(held.kv_tokens, safe.kv_tokens),
            streams: towards(held.streams, safe.streams),
        };
        WorkLimits { budgets: budgets.part(share), source: Source::Decaying, ..self.part(share) }
    }
}

impl WorkLimits {
    /// What the worker's own controller says.
    pub(crate) fn of_local(state: &OverloadState) -> Self {
        let mut rungs = [false; MAX_CLASSES];
        for (engaged, rung) in rungs.iter_mut().zip(&state.rungs) {
            *engaged = *rung == RungState::Engaged;
        }
        let mut floors = [0.0; MAX_CLASSES];
        for (floor, own) in floors.iter_mut().zip(&state.floors_work_per_s) {
            *floor = *own;
        }
        Self {
            budgets: state.budgets,
            cut_off: state.cut_off,
            saturation: state.saturation.value,
            binding: state.saturation.binding,
            drain_work_per_s: state.drain_work_per_s,
            expected_ttft: state.expected_ttft,
            retry_ratio: state.retry_ratio,
            prompt_factor: factor(state.prompt_factor),
            output_tokens: state.output_tokens,
            rungs,
            floors_work_per_s: floors,
            source: Source::Local,
        }
    }
}

/// What is in force at `now`: the limits held, the worker's own, or while the limits decay the stricter of both.
pub(crate) fn in_force(held: Option<&HeldLimits>, local: &OverloadState, now: Timestamp, share: f64) -> WorkLimits {
    let own = || WorkLimits::of_local(local);
    let Some((limits, work)) = held.and_then(|limits| Some((limits, limits.work.as_ref()?))) else { return own() };
    match limits.age(now) {
        Age::Fresh => work.part(share),
        Age::Decaying(done) => {
            let (held, own) = (work.decayed(share, done), own());
            WorkLimits { budgets: held.budgets.stricter(&own.budgets), cut_off: held.cut_off.stricter(own.cut_off), ..held }
        }
        Age::Expired => {
            let own = own();
            WorkLimits { budgets: own.budgets.stricter(&work.safe_budgets.part(share)), ..own }
        }
    }
}

/// A learned factor; 1 while there is none.
fn factor(learned: f64) -> f64 {
    if learned.is_finite() && learned > 0.0 { learned } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overload::OverloadController;
    use crate::policy::fixture;

    fn limits(budgets: u64, safe: u64) -> HeldLimits {
        let work = |kv_tokens| Some(v1::Work { kv_tokens, ..Default::default() });
        let overload = v1::OverloadLimits {
            budgets: work(budgets),
            safe_budgets: work(safe),
            cut_level: 200,
            cut_fraction: 0.5,
            ..Default::default()
        };
        let wire = v1::Limits { ttl_ms: 1000, decay_ms: 1000, overload: Some(overload), ..Default::default() };
        HeldLimits::new(Timestamp::ZERO, &wire)
    }

    fn local() -> OverloadState {
        let policy = fixture::policy(|spec| spec.overload = Some(v1::Overload::default()));
        OverloadController::new(Timestamp::ZERO, &policy).state().clone()
    }

    #[test]
    fn budgets_hold_then_move_to_the_safe_ones_then_the_own_controller_decides() {
        let held = limits(1000, 200);
        let mut own = local();
        let kv = |own: &OverloadState, ms| {
            let in_force = in_force(Some(&held), own, Timestamp::from_millis(ms), 0.5);
            (in_force.budgets.kv_tokens, in_force.source)
        };
        assert_eq!(kv(&own, 1000), (Some(500), Source::Decaying), "the decay begins where the limits were");
        assert_eq!(kv(&own, 999), (Some(500), Source::ControlPlane));
        assert_eq!(kv(&own, 1500), (Some(300), Source::Decaying));
        own.budgets.kv_tokens = Some(250);
        assert_eq!(kv(&own, 1500), (Some(250), Source::Decaying), "the stricter counts");
        assert_eq!(kv(&own, 2000), (Some(100), Source::Local), "within the safe ones");
        own.budgets.kv_tokens = Some(50);
        assert_eq!(kv(&own, 2000), (Some(50), Source::Local));
    }

    #[test]
    fn the_shares_of_all_workers_make_the_whole_and_none_gets_nothing() {
        let held = limits(1000, 0);
        let part = |share| in_force(Some(&held), &local(), Timestamp::ZERO, share).budgets.kv_tokens;
        assert_eq!((part(0.25), part(0.75), part(0.0)), (Some(250), Some(750), Some(1)));
    }

    #[test]
    fn numbers_that_are_none_cut_nothing_open() {
        let wire =
            v1::OverloadLimits { cut_level: u32::MAX, cut_fraction: f64::NAN, expected_ttft_ms: f64::INFINITY, ..Default::default() };
        let HeldWork { limits, safe_budgets } = HeldWork::new(&wire);
        assert_eq!((limits.budgets, safe_budgets), (Budgets::UNBOUNDED, Budgets::UNBOUNDED));
        assert_eq!((limits.cut_off.level, limits.expected_ttft, limits.prompt_factor), (LEVELS, Duration::ZERO, 1.0));
    }
}
