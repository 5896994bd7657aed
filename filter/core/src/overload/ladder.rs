//! The degradation ladder: rungs that engage one after the other, each with a hysteresis of its own.

use alloc::vec::Vec;

use super::state::RungState;
use crate::policy::RungConfig;
use crate::time::Timestamp;

/// State machine of the ladder.
///
/// Rung n+1 engages only while rung n is engaged or unavailable, and rung n releases only when no later one is engaged: the milder
/// measure comes first and goes last. A rung stays as it is for its `hold`.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
}

#[derive(Debug, Clone)]
struct Rung {
    config: RungConfig,
    state: RungState,
    /// When it last changed; `None`: never.
    since: Option<Timestamp>,
}

impl Ladder {
    pub(super) fn new(configs: &[RungConfig]) -> Self {
        Self { rungs: configs.iter().map(Rung::new).collect() }
    }

    /// Takes over changed rungs; one that did not change keeps its state.
    pub(super) fn set_config(&mut self, configs: &[RungConfig]) {
        let old = core::mem::take(&mut self.rungs);
        self.rungs = configs
            .iter()
            .map(|config| old.iter().find(|rung| rung.config == *config).cloned().unwrap_or_else(|| Rung::new(config)))
            .collect();
    }

    /// One turn; writes the state of every rung to `states`.
    pub(super) fn step(&mut self, now: Timestamp, saturation: f64, states: &mut Vec<RungState>) {
        let mut before_allows = true;
        for rung in &mut self.rungs {
            if before_allows && rung.state == RungState::Released && saturation >= rung.config.engage_at && rung.may_change(now) {
                rung.change(now, RungState::Engaged);
                // One rung a turn: its effect has to show before the next one.
                before_allows = false;
            }
            before_allows &= rung.state != RungState::Released;
        }
        let mut later_engaged = false;
        for rung in self.rungs.iter_mut().rev() {
            let calm = saturation < rung.config.release_at;
            if !later_engaged && rung.state == RungState::Engaged && calm && rung.may_change(now) {
                rung.change(now, RungState::Released);
            }
            later_engaged |= rung.state == RungState::Engaged;
        }
        states.clear();
        states.extend(self.rungs.iter().map(|rung| rung.state));
    }
}

impl Rung {
    fn new(config: &RungConfig) -> Self {
        let state = if config.kind.is_available() { RungState::Released } else { RungState::Unavailable };
        Self { config: config.clone(), state, since: None }
    }

    fn may_change(&self, now: Timestamp) -> bool {
        self.since.is_none_or(|since| now.since(since) >= self.config.hold)
    }

    fn change(&mut self, now: Timestamp, state: RungState) {
        self.state = state;
        self.since = Some(now);
    }
}
