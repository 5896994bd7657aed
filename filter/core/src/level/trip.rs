//! The state machine that every level shares: trip, hysteresis, recovery countdown, staleness.

use core::time::Duration;

use headgate_protos::v1;

use crate::policy::HysteresisConfig;
use crate::time::Timestamp;

/// State of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LevelState {
    /// Switched off by the policy.
    Disabled,
    /// No signal yet, or the baseline is not learned: it cannot trip.
    Learning,
    /// Below the threshold.
    Ok,
    /// Above the threshold, or not yet below the recovery threshold.
    Tripped,
    /// Below the recovery threshold, countdown running; acts like tripped.
    Recovering,
    /// The signal is stale: the level has left the decision.
    Stale,
}

impl LevelState {
    /// Whether the level throttles and refuses in this state.
    #[must_use]
    pub const fn acts(self) -> bool {
        matches!(self, Self::Tripped | Self::Recovering)
    }

    /// Stable text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Learning => "learning",
            Self::Ok => "ok",
            Self::Tripped => "tripped",
            Self::Recovering => "recovering",
            Self::Stale => "stale",
        }
    }

    /// The wire's enum.
    #[must_use]
    pub const fn to_wire(self) -> v1::LevelState {
        match self {
            Self::Disabled => v1::LevelState::Disabled,
            Self::Learning => v1::LevelState::Learning,
            Self::Ok => v1::LevelState::Ok,
            Self::Tripped => v1::LevelState::Tripped,
            Self::Recovering => v1::LevelState::Recovering,
            Self::Stale => v1::LevelState::Stale,
        }
    }
}

/// The last time a level crossed its threshold upwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LastTrip {
    /// When.
    pub at: Timestamp,
    /// Value that tripped it, in the unit of the level.
    pub value: f64,
    /// Threshold that it exceeded.
    pub threshold: f64,
}

/// How a value stands to its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Above the threshold: trips.
    Above,
    /// Between the recovery threshold and the threshold: changes nothing, except that it stops a countdown.
    Between,
    /// At or below the recovery threshold: recovers.
    Below,
}

/// What a level says at one instant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// There is nothing to judge by.
    Learning,
    /// The signal is too old to judge by.
    Stale,
    /// A value and how it stands to its threshold.
    Value {
        /// The value.
        value: f64,
        /// The threshold.
        threshold: f64,
        /// How one stands to the other.
        evidence: Evidence,
    },
}

/// The state machine.
///
/// A level trips when its value is above the threshold. It counts as recovered when the value has stayed at or below
/// `recover_percent` of the threshold for `recovery`; a value that rises above that in between starts the countdown anew.
#[derive(Debug, Clone)]
pub struct Trip {
    state: LevelState,
    recover_fraction: f64,
    recovery: Duration,
    /// Since when the value has been below the recovery threshold; meaningful in `Recovering` only.
    below_since: Timestamp,
    last_trip: Option<LastTrip>,
    /// Whether it acted when the signal went stale.
    acted_before_stale: bool,
}

impl Trip {
    /// A machine that has seen nothing.
    #[must_use]
    pub fn new(config: &HysteresisConfig) -> Self {
        Self {
            state: LevelState::Learning,
            recover_fraction: config.recover_percent / 100.0,
            recovery: config.recovery,
            below_since: Timestamp::ZERO,
            last_trip: None,
            acted_before_stale: false,
        }
    }

    /// A machine that is switched off and stays so.
    #[must_use]
    pub fn disabled(config: &HysteresisConfig) -> Self {
        Self { state: LevelState::Disabled, ..Self::new(config) }
    }

    /// Changes the hysteresis and keeps the state.
    pub fn set_hysteresis(&mut self, config: &HysteresisConfig) {
        self.recover_fraction = config.recover_percent / 100.0;
        self.recovery = config.recovery;
    }

    /// Switches on a machine that was off.
    pub fn enable(&mut self) {
        if self.state == LevelState::Disabled {
            self.state = LevelState::Learning;
        }
    }

    /// Switches off.
    pub fn disable(&mut self) {
        self.state = LevelState::Disabled;
    }

    /// How `value` stands to `threshold`.
    #[must_use]
    pub fn evidence(&self, value: f64, threshold: f64) -> Evidence {
        if value > threshold {
            Evidence::Above
        } else if value > threshold * self.recover_fraction {
            Evidence::Between
        } else {
            Evidence::Below
        }
    }

    /// Takes in what the level says now.
    pub fn observe(&mut self, now: Timestamp, reading: Reading) {
        use LevelState::{Disabled, Learning, Ok, Recovering, Stale, Tripped};
        if self.state == Disabled {
            return;
        }
        if self.state.acts() && reading == Reading::Stale {
            self.acted_before_stale = true;
        } else if self.state != Stale {
            self.acted_before_stale = false;
        }
        self.state = match reading {
            Reading::Learning if self.state.acts() => self.recover(now),
            Reading::Learning => Learning,
            Reading::Stale => Stale,
            Reading::Value { value, threshold, evidence } => match (evidence, self.state) {
                (Evidence::Above, Tripped) => Tripped,
                (Evidence::Above, _) => {
                    self.last_trip = Some(LastTrip { at: now, value, threshold });
                    Tripped
                }
                (Evidence::Between, Tripped | Recovering) => Tripped,
                // A gap in the signal is no recovery.
                (Evidence::Between, Stale) if self.acted_before_stale => Tripped,
                (Evidence::Below, Tripped | Recovering) => self.recover(now),
                (Evidence::Between | Evidence::Below, _) => Ok,
            },
        };
    }

    /// Lets the countdown run on between values.
    pub fn tick(&mut self, now: Timestamp) {
        if self.state == LevelState::Recovering {
            self.state = self.recover(now);
        }
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> LevelState {
        self.state
    }

    /// Whether the level throttles and refuses now.
    #[must_use]
    pub const fn acts(&self) -> bool {
        self.state.acts()
    }

    /// The last time it tripped.
    #[must_use]
    pub const fn last_trip(&self) -> Option<LastTrip> {
        self.last_trip
    }

    /// Time until it counts as recovered, the whole countdown while it has not begun; `None` when it does not act.
    #[must_use]
    pub fn recovery_remaining(&self, now: Timestamp) -> Option<Duration> {
        match self.state {
            LevelState::Tripped => Some(self.recovery),
            LevelState::Recovering => Some(self.recovery.saturating_sub(now.since(self.below_since))),
            _ => None,
        }
    }

    /// The state after evidence of recovery.
    fn recover(&mut self, now: Timestamp) -> LevelState {
        if self.state != LevelState::Recovering {
            self.below_since = now;
        }
        if now.since(self.below_since) >= self.recovery { LevelState::Ok } else { LevelState::Recovering }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trips above 100, recovers at or below 90 for 5 s.
    fn machine() -> Trip {
        Trip::new(&HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(5) })
    }

    fn see(trip: &mut Trip, at_s: u64, value: f64) -> LevelState {
        let evidence = trip.evidence(value, 100.0);
        trip.observe(Timestamp::from_millis(at_s * 1000), Reading::Value { value, threshold: 100.0, evidence });
        trip.state()
    }

    #[test]
    fn trips_above_the_threshold_and_not_at_it() {
        let mut trip = machine();
        assert_eq!(trip.state(), LevelState::Learning);
        assert_eq!(see(&mut trip, 0, 100.0), LevelState::Ok);
        assert_eq!(see(&mut trip, 1, 100.1), LevelState::Tripped);
        assert_eq!(trip.last_trip(), Some(LastTrip { at: Timestamp::from_millis(1000), value: 100.1, threshold: 100.0 }));
    }

    #[test]
    fn recovers_after_the_countdown_and_acts_until_then() {
        let mut trip = machine();
        see(&mut trip, 0, 120.0);
        assert_eq!(see(&mut trip, 1, 95.0), LevelState::Tripped, "95 is above 90 % of the threshold");
        assert_eq!(see(&mut trip, 2, 90.0), LevelState::Recovering);
        assert!(trip.acts());
        assert_eq!(trip.recovery_remaining(Timestamp::from_millis(4000)), Some(Duration::from_secs(3)));
        trip.tick(Timestamp::from_millis(6999));
        assert_eq!(trip.state(), LevelState::Recovering);
        trip.tick(Timestamp::from_millis(7000));
        assert_eq!(trip.state(), LevelState::Ok);
    }

    #[test]
    fn the_countdown_starts_anew_when_the_value_rises_again() {
        let mut trip = machine();
        see(&mut trip, 0, 120.0);
        see(&mut trip, 1, 50.0);
        assert_eq!(see(&mut trip, 4, 91.0), LevelState::Tripped);
        assert_eq!(trip.last_trip().map(|t| t.value), Some(120.0), "91 is no new trip");
        see(&mut trip, 5, 50.0);
        assert_eq!(see(&mut trip, 9, 50.0), LevelState::Recovering, "5 s have passed since the first dip, 4 s since the second");
        assert_eq!(see(&mut trip, 10, 50.0), LevelState::Ok);
    }

    #[test]
    fn a_stale_signal_leaves_the_decision_and_comes_back_by_its_value() {
        let mut trip = machine();
        see(&mut trip, 0, 120.0);
        trip.observe(Timestamp::from_millis(1000), Reading::Stale);
        assert_eq!(trip.state(), LevelState::Stale);
        assert!(!trip.acts());
        assert_eq!(see(&mut trip, 2, 120.0), LevelState::Tripped);
    }

    #[test]
    fn a_gap_in_the_signal_is_no_recovery() {
        let mut trip = machine();
        see(&mut trip, 0, 120.0);
        trip.observe(Timestamp::from_millis(1000), Reading::Stale);
        trip.observe(Timestamp::from_millis(1500), Reading::Stale);
        assert_eq!(see(&mut trip, 2, 95.0), LevelState::Tripped, "95 is above 90 % of the threshold");
        assert_eq!(trip.last_trip().map(|t| t.value), Some(120.0));
        let mut calm = machine();
        see(&mut calm, 0, 95.0);
        calm.observe(Timestamp::from_millis(1000), Reading::Stale);
        assert_eq!(see(&mut calm, 2, 95.0), LevelState::Ok);
    }

    #[test]
    fn counts_as_recovering_when_there_is_nothing_left_to_judge_by() {
        let mut trip = machine();
        see(&mut trip, 0, 120.0);
        trip.observe(Timestamp::from_millis(1000), Reading::Learning);
        assert_eq!(trip.state(), LevelState::Recovering);
        trip.observe(Timestamp::from_millis(6000), Reading::Learning);
        assert_eq!(trip.state(), LevelState::Ok);
    }

    #[test]
    fn a_level_that_is_switched_off_never_trips() {
        let mut trip = Trip::disabled(&HysteresisConfig::default());
        assert_eq!(see(&mut trip, 0, 1e9), LevelState::Disabled);
        assert_eq!(trip.last_trip(), None);
    }
}
