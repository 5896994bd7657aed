//! What a pool does on a tick: its own controllers take their turn, and what holds now is put into force.

use core::time::Duration;

use headgate_protos::v1;

use super::Pool;
use crate::control::{ClassLoad, Signals};
use crate::level::SignalSource;
use crate::limits::{self, InForce};
use crate::permits::MAX_CLASSES;
use crate::time::Timestamp;

/// Time between two turns of the worker's own control loop.
const CONTROL_TICK: Duration = Duration::from_millis(100);

impl Pool {
    pub(crate) fn on_tick(&mut self, now: Timestamp) {
        if let (Some(breakers), Some(config)) = (&mut self.breakers, self.policy.breaker()) {
            breakers.pool.on_tick(config, now);
            breakers.endpoints.on_tick(config, now);
            breakers.dependencies.on_tick(config, now);
        }
        self.quotas.on_tick(now);
        let offered = self.class_states().fold(0_u64, |sum, state| sum.saturating_add(state.offered));
        let in_flight = self.in_flight();
        self.demand.roll(now, offered, in_flight);
        if now.since(self.controlled_at) >= CONTROL_TICK {
            self.controlled_at = now;
            self.count_noted();
            self.control(now);
        }
        self.enforce(now);
    }

    /// One turn of the worker's own levels. They run while the control plane decides, too: their baselines must be learned when it
    /// is gone.
    fn control(&mut self, now: Timestamp) {
        let mut loads = [ClassLoad::default(); MAX_CLASSES];
        for (load, state) in loads.iter_mut().zip(self.class_states()) {
            *load = state.load();
        }
        let classes = loads.get(..self.policy.classes().len()).unwrap_or(&loads);
        let signals = Signals { series: self.uid, gpu_memory: None, classes, ttft_us: &self.ttft_us, source: SignalSource::Worker };
        let levels = self.controller.step(now, &signals);
        let breaker = self.breakers.as_ref().map_or(v1::BreakerState::Unspecified, |breakers| breakers.pool.state());
        if let Some(load) = &mut self.overload {
            load.control(now, self.uid, levels, breaker);
        }
    }

    /// Puts into force what holds at `now`.
    pub(super) fn enforce(&mut self, now: Timestamp) {
        if let (Some(load), Some(config)) = (&mut self.overload, self.policy.overload()) {
            load.enforce(now, self.limits.as_ref(), (self.rate_share, self.aperture), self.workers, config);
        }
        // Under overload control the levels are terms of the saturation and act on no class themselves.
        let acts = self.overload.is_none();
        let local = self.controller.state();
        let positions = self.class_states.iter().take(self.policy.classes().len());
        for position in positions {
            if let Some(state) = self.states.get_mut(*position) {
                let by_level = || limits::in_force(self.limits.as_ref(), local, &state.name, now, self.rate_share);
                let in_force = if acts { by_level() } else { InForce::ADMIT };
                state.apply(now, in_force);
            }
        }
    }
}
