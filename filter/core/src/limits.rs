//! Limits of a pool as a worker holds them, and what is in force at a given time.
//!
//! Limits from the control plane hold for their time to live. Then their rates move on a straight line to the safe rates, and what
//! was refused outright is let in up to them; at the end of that the worker's own levels decide alone. So losing the control plane
//! neither opens the pool at once nor keeps a class out for ever.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use crate::aperture::NamedEngine;
use crate::control::{ClassAction, ClassDecision, PoolState};
use crate::level::{LevelKind, LevelStatus};
use crate::reason::{Cause, Reason, Source};
use crate::time::Timestamp;

#[cfg(test)]
mod tests;
pub(crate) mod work;

use work::HeldWork;

/// What a class may do now in this worker, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct InForce {
    pub(crate) action: ClassAction,
    /// Numbers of a refusal; meaningless while the action is to admit.
    pub(crate) cause: Cause,
    /// Requests of the class per second that can be expected to be served; 0 while unknown.
    pub(crate) drain_rps: f64,
}

impl InForce {
    /// Everything is admitted.
    pub(crate) const ADMIT: Self = Self {
        action: ClassAction::Admit,
        cause: Cause { reason: Reason::Overload, value: 0.0, threshold: 0.0, term: None, source: Source::Local },
        drain_rps: 0.0,
    };

    /// The one that admits less.
    fn stricter(self, other: Self) -> Self {
        if rate(other.action) < rate(self.action) { other } else { self }
    }
}

/// Requests per second that an action admits.
fn rate(action: ClassAction) -> f64 {
    match action {
        ClassAction::Admit => f64::INFINITY,
        ClassAction::Throttle { rate_rps, burst: _ } => rate_rps,
        ClassAction::Refuse => 0.0,
    }
}

#[derive(Debug, Clone)]
struct HeldClass {
    name: String,
    action: ClassAction,
    reason: Reason,
    drain_rps: f64,
    safe_rps: f64,
}

/// The newest limits of a pool.
#[derive(Debug, Clone)]
pub(crate) struct HeldLimits {
    pub(crate) epoch: u64,
    received_at: Timestamp,
    ttl: Duration,
    decay: Duration,
    classes: Vec<HeldClass>,
    /// Value and threshold of each level that was given.
    levels: Vec<(Reason, f64, f64)>,
    /// Overload control; `None` when the control plane knows of none.
    work: Option<HeldWork>,
    /// Engines of the proxy's aperture.
    engines: Vec<NamedEngine>,
}

/// How far limits are from their receipt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Age {
    /// Within their time.
    Fresh,
    /// Beyond it by this part (0 to 1) of the decay.
    Decaying(f64),
    /// At the end.
    Expired,
}

impl HeldLimits {
    /// Limits as they came at `now`. Numbers that are none, or negative, count as zero.
    pub(crate) fn new(now: Timestamp, wire: &v1::Limits) -> Self {
        let v1::Limits { pool: _, epoch, policy_version: _, ttl_ms, decay_ms, levels, classes, drain_rps: _, overload, quotas: _ } = wire;
        Self {
            epoch: *epoch,
            received_at: now,
            ttl: Duration::from_millis(u64::from(*ttl_ms)),
            decay: Duration::from_millis(u64::from(*decay_ms)),
            classes: classes.iter().map(HeldClass::new).collect(),
            levels: levels.iter().map(|level| (Reason::of_level(level.kind()), finite(level.value), finite(level.threshold))).collect(),
            work: overload.as_ref().map(HeldWork::new),
            engines: overload.as_ref().map(NamedEngine::read).unwrap_or_default(),
        }
    }

    /// The engines to pick from at `now`: none once the limits have ended, since nobody says any more which of them live.
    pub(crate) fn engines(&self, now: Timestamp) -> &[NamedEngine] {
        if self.age(now) == Age::Expired { &[] } else { &self.engines }
    }

    /// Whether they decide alone at `now`, and under overload control of that as well.
    pub(crate) fn decide(&self, now: Timestamp, has_overload: bool) -> bool {
        self.age(now) == Age::Fresh && (self.work.is_some() || !has_overload)
    }

    pub(crate) fn age(&self, now: Timestamp) -> Age {
        let age = now.since(self.received_at);
        let Some(over) = age.checked_sub(self.ttl) else { return Age::Fresh };
        if over >= self.decay { Age::Expired } else { Age::Decaying(over.as_secs_f64() / self.decay.as_secs_f64()) }
    }

    /// What they say of a class, with this worker's `share` of the proxy's rates; `None` when they do not name it.
    fn of_class(&self, name: &str, source: Source, share: f64) -> Option<(InForce, f64)> {
        let class = self.classes.iter().find(|class| class.name == name)?;
        let (value, threshold) = self
            .levels
            .iter()
            .find(|(reason, _, _)| *reason == class.reason)
            .map_or((0.0, 0.0), |(_, value, threshold)| (*value, *threshold));
        let action = match class.action {
            // A bucket that cannot hold one request would never admit any.
            ClassAction::Throttle { rate_rps, burst } => {
                ClassAction::Throttle { rate_rps: rate_rps * share, burst: (burst * share).max(1.0) }
            }
            other => other,
        };
        let cause = Cause { reason: class.reason, value, threshold, term: None, source };
        Some((InForce { action, cause, drain_rps: class.drain_rps * share }, class.safe_rps * share))
    }
}

impl HeldClass {
    fn new(wire: &v1::ClassLimit) -> Self {
        let v1::ClassLimit { class, action: _, rate_rps, burst, drain_rps, safe_rps, because: _ } = wire;
        let action = match wire.action() {
            v1::ClassAction::Unspecified | v1::ClassAction::Admit => ClassAction::Admit,
            v1::ClassAction::Throttle => ClassAction::Throttle { rate_rps: finite(*rate_rps), burst: finite(*burst) },
            v1::ClassAction::Refuse => ClassAction::Refuse,
        };
        let reason = Reason::of_level(wire.because());
        Self { name: class.clone(), action, reason, drain_rps: finite(*drain_rps), safe_rps: finite(*safe_rps) }
    }
}

fn finite(number: f64) -> f64 {
    if number.is_finite() && number > 0.0 { number } else { 0.0 }
}

/// What is in force for a class at `now`: the limits held, the worker's own levels, or while the limits decay the stricter of both.
pub(crate) fn in_force(limits: Option<&HeldLimits>, local: &PoolState, class: &str, now: Timestamp, share: f64) -> InForce {
    let own = || of_local(local, class);
    let Some(limits) = limits else { return own() };
    match limits.age(now) {
        Age::Fresh => limits.of_class(class, Source::ControlPlane, share).map_or(InForce::ADMIT, |(in_force, _)| in_force),
        Age::Decaying(part) => match limits.of_class(class, Source::Decaying, share) {
            Some((held, safe_rps)) => decayed(held, safe_rps, part).stricter(own()),
            None => own(),
        },
        Age::Expired => own(),
    }
}

fn decayed(held: InForce, safe_rps: f64, part: f64) -> InForce {
    let towards_safe = |rate_rps: f64| rate_rps + (safe_rps - rate_rps) * part;
    let action = match held.action {
        ClassAction::Admit => ClassAction::Admit,
        ClassAction::Throttle { rate_rps, burst } => ClassAction::Throttle { rate_rps: towards_safe(rate_rps), burst },
        ClassAction::Refuse => ClassAction::Throttle { rate_rps: towards_safe(0.0), burst: 1.0 },
    };
    InForce { action, ..held }
}

fn of_local(state: &PoolState, class: &str) -> InForce {
    let Some(decision) = state.classes.iter().find(|decision| decision.class == class) else { return InForce::ADMIT };
    let ClassDecision { class: _, action, because, fraction: _, drain_rps, safe_rps: _ } = decision;
    let level = because.and_then(|kind| state.level(kind));
    let reason = because.map_or(Reason::Overload, |kind| Reason::of_level(LevelKind::to_wire(kind)));
    let (value, threshold) = level.map_or((0.0, 0.0), |LevelStatus { value, threshold, .. }| (*value, *threshold));
    InForce { action: *action, cause: Cause { reason, value, threshold, term: None, source: Source::Local }, drain_rps: *drain_rps }
}
