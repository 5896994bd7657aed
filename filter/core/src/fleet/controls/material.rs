//! When limits differ enough that the proxies must hear of it at once.

use headgate_protos::v1;

use crate::fleet::PoolLimits;

/// Smallest relative change of a rate that is pushed at once; less waits for the refresh.
const RATE_CHANGE: f64 = 0.01;

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

fn moved(old: f64, new: f64) -> bool {
    (new - old).abs() > RATE_CHANGE * old.abs().max(new.abs())
}
