//! The controller of one pool.

use alloc::vec::Vec;
use core::time::Duration;

use super::flow::OverloadSignals;
use super::level::CutOff;
use super::state::{OverloadState, RungState, Saturation, Term};
use super::work::Budgets;
use crate::policy::{OverloadConfig, Policy};
use crate::time::Timestamp;

/// Overload control of one pool: one [`step`](Self::step) every control tick (100 ms).
#[derive(Debug, Clone)]
pub struct OverloadController {
    config: OverloadConfig,
    state: OverloadState,
}

impl OverloadController {
    /// A controller that has learned nothing. A policy without `overload` gets its defaults.
    #[must_use]
    pub fn new(_now: Timestamp, policy: &Policy) -> Self {
        let config = policy.overload().cloned().unwrap_or_default();
        let state = OverloadState {
            budgets: Budgets::UNBOUNDED,
            safe_budgets: Budgets::UNBOUNDED,
            cut_off: CutOff::NONE,
            saturation: Saturation::NONE,
            rungs: rungs(&config),
            drain_work_per_s: 0.0,
            expected_ttft: Duration::ZERO,
            retry_ratio: f64::from(config.retries.percent) / 100.0,
            prompt_factor: 0.0,
            output_tokens: 0.0,
            floors_work_per_s: policy.classes().iter().map(|_| 0.0).collect(),
            sample_epoch: 0,
        };
        Self { config, state }
    }

    /// Takes over a changed policy; what was learned of the pool stays.
    pub fn set_policy(&mut self, _now: Timestamp, policy: &Policy) {
        self.config = policy.overload().cloned().unwrap_or_default();
        self.state.rungs = rungs(&self.config);
        self.state.floors_work_per_s = policy.classes().iter().map(|_| 0.0).collect();
    }

    /// One turn: signals to budgets and cut-off.
    pub fn step(&mut self, _now: Timestamp, signals: &OverloadSignals<'_>) -> &OverloadState {
        let target = f64::from(self.config.kv_target_percent) / 100.0;
        if let Some(sample) = signals.engine.filter(|sample| sample.kv_total_tokens > 0) {
            let bound = target * sample.kv_total_tokens as f64;
            self.state.budgets.kv_tokens = Some((bound as u64).max(1));
            self.state.sample_epoch = sample.epoch;
            let value = signals.flow.in_flight.part_of(&self.state.budgets);
            self.state.saturation.value = value;
            self.state.saturation.binding = (value > 0.0).then_some(Term::Kv);
        }
        self.state.safe_budgets = self.state.budgets;
        &self.state
    }

    /// The state after the last step.
    #[must_use]
    pub fn state(&self) -> &OverloadState {
        &self.state
    }
}

fn rungs(config: &OverloadConfig) -> Vec<RungState> {
    config.ladder.iter().map(|rung| if rung.kind.is_available() { RungState::Released } else { RungState::Unavailable }).collect()
}
