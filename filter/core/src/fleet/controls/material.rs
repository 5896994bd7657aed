//! When limits differ enough that the proxies must hear of it at once.

use headgate_protos::v1;

use crate::fleet::{OverloadPush, PoolLimits};
use crate::overload::{Budgets, OverloadState};

/// Smallest relative change of a rate that is pushed at once; less waits for the refresh.
const RATE_CHANGE: f64 = 0.01;

/// Smallest change of the cut-off that is pushed at once, in levels.
const CUT_CHANGE: f64 = 0.02;
/// Smallest relative change of an expectation (drain, time to first token) that is pushed at once.
const EXPECTATION_CHANGE: f64 = 0.05;

/// Whether a difference is worth a push of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Material {
    Yes,
    No,
}

/// Compares what was pushed with what could be: states, actions, causes, rates, and who is there. Values and ages wait for the
/// refresh.
pub(super) fn material(old: &PoolLimits, new: &PoolLimits) -> Material {
    let differs = old.fleet.policy_version != new.fleet.policy_version
        || !old.fleet.levels.iter().map(level_key).eq(new.fleet.levels.iter().map(level_key))
        || !old.fleet.classes.iter().map(class_key).eq(new.fleet.classes.iter().map(class_key))
        || old
            .fleet
            .classes
            .iter()
            .zip(&new.fleet.classes)
            .any(|(old, new)| moved(old.rate_rps, new.rate_rps) || moved(old.burst, new.burst))
        || overload_differs(old.overload.as_ref(), new.overload.as_ref())
        || old.shares.len() != new.shares.len()
        || !old.shares.keys().all(|node_id| new.shares.contains_key(node_id));
    if differs { Material::Yes } else { Material::No }
}

fn level_key(level: &v1::LevelStatus) -> (i32, i32) {
    (level.kind, level.state)
}

fn class_key(class: &v1::ClassLimit) -> (&str, i32, i32) {
    (&class.class, class.action, class.because)
}

/// What a proxy acts on: cut-off, budgets, rungs, bounds and expectations. Saturation and its terms are for people.
fn overload_differs(old: Option<&OverloadPush>, new: Option<&OverloadPush>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return old.is_some() != new.is_some() };
    let has_moved = old.ring.has_moved(&new.ring);
    let cut = |state: &OverloadState| f64::from(state.cut_off.level) + state.cut_off.fraction;
    let expects =
        |state: &OverloadState| [state.drain_work_per_s, state.expected_ttft.as_secs_f64(), state.prompt_factor, state.output_tokens];
    let (old, new) = (&*old.state, &*new.state);
    has_moved
        || (cut(old) - cut(new)).abs() > CUT_CHANGE
        || old.rungs != new.rungs
        || budgets_moved(&old.budgets, &new.budgets)
        || budgets_moved(&old.safe_budgets, &new.safe_budgets)
        || moved(old.retry_ratio, new.retry_ratio)
        || old.floors_work_per_s.len() != new.floors_work_per_s.len()
        || expects(old).iter().zip(expects(new)).any(|(old, new)| (new - old).abs() > EXPECTATION_CHANGE * old.abs().max(new.abs()))
}

fn budgets_moved(old: &Budgets, new: &Budgets) -> bool {
    let moved = |old: Option<u64>, new: Option<u64>| match (old, new) {
        (Some(old), Some(new)) => moved(old as f64, new as f64),
        (old, new) => old != new,
    };
    moved(old.prefill_tokens, new.prefill_tokens) || moved(old.kv_tokens, new.kv_tokens) || moved(old.streams, new.streams)
}

fn moved(old: f64, new: f64) -> bool {
    (new - old).abs() > RATE_CHANGE * old.abs().max(new.abs())
}
