//! How one class shrinks while a level acts and grows back afterwards.

use core::time::Duration;

use super::state::ClassAction;
use crate::policy::{ThrottleConfig, WhenTripped};
use crate::time::Timestamp;

/// Rate below which no throttled class falls, in requests per second: a class is never starved.
pub(super) const MIN_RATE_RPS: f64 = 0.1;
/// Largest part of the fraction that one step takes away.
const STRONGEST_STEP: f64 = 0.5;
/// Steps in a row with the whole demand met after which a growing class is free.
const CALM_STEPS: u32 = 2;

/// What the levels of the pool say together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pressure {
    /// No level acts.
    None,
    /// A level acts, and none is above its recovery threshold.
    Easing,
    /// A level is tripped.
    Tripped {
        /// `value / threshold` of the level that is furthest above.
        ratio: f64,
    },
}

/// What a class asks for and could get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// Offered requests per second.
    pub(super) offered_rps: f64,
    /// What the pool can drain beyond the classes above, in requests per second.
    pub(super) leftover_rps: f64,
    /// Whether the pool works at all.
    pub(super) pool: Work,
}

/// Whether the pool works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing is in flight.
    Idle,
    /// Something is.
    Busy,
}

/// The fraction of the leftover capacity that one class gets.
///
/// Throttled class: at the trip and at every step while a level is tripped, `fraction ← fraction · max(0.5, min(1 − shrink,
/// threshold / value))`, never below the floor; held while the levels recover; then `fraction ← fraction + recover` at every step
/// until it is 1 and the class is free. Refused class: refused while a level acts, then the same growth from the floor, so that
/// letting it in again does not trip the level again. A growing class whose whole demand fits its rate for two steps is free at once.
#[derive(Debug, Clone)]
pub(super) struct Ramp {
    when_tripped: WhenTripped,
    phase: Phase,
    fraction: f64,
    next_step_at: Timestamp,
    calm_steps: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Shrinking,
    Refused,
    Growing,
}

impl Ramp {
    pub(super) fn new(when_tripped: WhenTripped) -> Self {
        Self { when_tripped, phase: Phase::Free, fraction: 1.0, next_step_at: Timestamp::ZERO, calm_steps: 0 }
    }

    pub(super) fn when_tripped(&self) -> WhenTripped {
        self.when_tripped
    }

    pub(super) fn fraction(&self) -> f64 {
        self.fraction
    }

    /// One turn of the control loop.
    pub(super) fn step(&mut self, now: Timestamp, pressure: Pressure, demand: Demand, config: &ThrottleConfig) {
        match (self.when_tripped, pressure) {
            (WhenTripped::ReservedLane, _) => {}
            (WhenTripped::GradientThrottle, Pressure::Tripped { ratio }) => self.shrink(now, ratio, demand, config),
            (WhenTripped::GradientThrottle, Pressure::Easing) => {}
            (WhenTripped::Refuse, Pressure::Tripped { .. } | Pressure::Easing) => {
                self.phase = Phase::Refused;
                self.fraction = 0.0;
            }
            (WhenTripped::GradientThrottle | WhenTripped::Refuse, Pressure::None) => self.grow(now, demand, config),
        }
    }

    /// What the class may do.
    pub(super) fn action(&self, demand: Demand, config: &ThrottleConfig) -> ClassAction {
        match self.phase {
            Phase::Free => ClassAction::Admit,
            Phase::Refused => ClassAction::Refuse,
            Phase::Shrinking | Phase::Growing => {
                let rate_rps = self.rate_rps(demand);
                ClassAction::Throttle { rate_rps, burst: (rate_rps * config.burst.as_secs_f64()).max(1.0) }
            }
        }
    }

    fn rate_rps(&self, demand: Demand) -> f64 {
        let fraction = match demand.pool {
            // Whatever the level says, it is not this pool's work that keeps it up.
            Work::Idle => 1.0,
            Work::Busy => self.fraction,
        };
        (fraction * demand.leftover_rps).max(MIN_RATE_RPS)
    }

    fn shrink(&mut self, now: Timestamp, ratio: f64, demand: Demand, config: &ThrottleConfig) {
        let first = self.phase != Phase::Shrinking;
        self.phase = Phase::Shrinking;
        if !first && (now < self.next_step_at || demand.pool == Work::Idle) {
            return;
        }
        let gentle = 1.0 - f64::from(config.shrink_percent) / 100.0;
        let by_excess = if ratio > 1.0 { 1.0 / ratio } else { 1.0 };
        // A policy may ask for steps stronger than the strongest that the excess alone would take.
        let factor = by_excess.max(STRONGEST_STEP).min(gentle);
        self.fraction = (self.fraction * factor).max(percent(config.floor_percent)).min(1.0);
        self.schedule(now, config.interval);
    }

    fn grow(&mut self, now: Timestamp, demand: Demand, config: &ThrottleConfig) {
        match self.phase {
            Phase::Free => return,
            Phase::Shrinking => self.begin_growth(now, config),
            Phase::Refused => {
                self.fraction = percent(config.floor_percent.max(config.recover_percent)).min(1.0);
                self.begin_growth(now, config);
            }
            Phase::Growing if now >= self.next_step_at => {
                self.calm_steps = if demand.offered_rps <= self.rate_rps(demand) { self.calm_steps.saturating_add(1) } else { 0 };
                self.fraction = (self.fraction + percent(config.recover_percent)).min(1.0);
                self.schedule(now, config.interval);
            }
            Phase::Growing => {}
        }
        if self.fraction >= 1.0 || self.calm_steps >= CALM_STEPS {
            self.phase = Phase::Free;
            self.fraction = 1.0;
        }
    }

    fn begin_growth(&mut self, now: Timestamp, config: &ThrottleConfig) {
        self.phase = Phase::Growing;
        self.calm_steps = 0;
        self.schedule(now, config.interval);
    }

    fn schedule(&mut self, now: Timestamp, interval: Duration) {
        self.next_step_at = now + interval;
    }
}

fn percent(points: u32) -> f64 {
    f64::from(points) / 100.0
}
