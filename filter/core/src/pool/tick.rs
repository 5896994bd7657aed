//! What a pool does on a tick: its own controllers take their turn, and what holds now is put into force.

use core::time::Duration;

use headgate_protos::v1;

use super::Pool;
use crate::control::{ClassLoad, Signals};
use crate::level::SignalSource;
use crate::limits::{self, InForce};
use crate::permits::MAX_CLASSES;
use crate::time::Timestamp;

/// Time between two looks at the load, and two turns of the worker's own controllers while they decide.
const CONTROL_TICK: Duration = Duration::from_millis(100);
/// Time between two turns of them while the control plane decides: what they learn then has a memory of seconds, and they decide nothing until
/// the limits have begun to decay.
const WATCH_TICK: Duration = Duration::from_millis(500);

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
            self.take_stock(now);
            let every = if self.is_led(now) { WATCH_TICK } else { CONTROL_TICK };
            if now.since(self.learned_at) >= every {
                self.learned_at = now;
                self.control(now);
            }
        }
        self.enforce(now);
    }

    /// Whether the control plane decides alone, for all that the policy has.
    fn is_led(&self, now: Timestamp) -> bool {
        self.limits.as_ref().is_some_and(|limits| limits.decide(now, self.overload.is_some()))
    }

    fn take_stock(&mut self, now: Timestamp) {
        let breaker = self.breakers.as_ref().map_or(v1::BreakerState::Unspecified, |breakers| breakers.pool.state());
        if let Some(load) = &mut self.overload {
            load.take_stock(now, breaker);
        }
    }

    /// One turn of the worker's own controllers. They run while the control plane decides, too: their baselines must be learned when it
    /// is gone.
    fn control(&mut self, now: Timestamp) {
        let mut loads = [ClassLoad::default(); MAX_CLASSES];
        for (load, state) in loads.iter_mut().zip(self.class_states()) {
            *load = state.load();
        }
        let classes = loads.get(..self.policy.classes().len()).unwrap_or(&loads);
        let signals = Signals { series: self.uid, gpu_memory: None, classes, ttft_us: &self.ttft_us, source: SignalSource::Worker };
        let levels = self.controller.step(now, &signals);
        if let Some(load) = &mut self.overload {
            load.control(now, self.uid, levels);
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

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::policy::fixture;

    /// Milliseconds at which the worker's own controllers have taken a turn, under limits that come at 200 ms, hold for a second and decay
    /// for another.
    fn turns(overload: Option<v1::Overload>, limits: v1::Limits) -> Vec<u64> {
        let policy = fixture::policy(|spec| spec.overload = overload);
        let mut pool = Pool::new(Timestamp::ZERO, policy, 1, 1);
        let mut turns = Vec::new();
        for ms in (20..=2500).step_by(20) {
            let now = Timestamp::from_millis(ms);
            if ms == 200 {
                pool.set_limits(now, now, &v1::Limits { ttl_ms: 1000, decay_ms: 1000, ..limits.clone() });
            }
            let before = pool.learned_at;
            pool.on_tick(now);
            if pool.learned_at != before {
                turns.push(ms);
            }
        }
        turns
    }

    #[test]
    fn own_controllers_go_slowly_while_the_control_plane_decides_and_only_then() {
        let (every, led) = ((1..=25).map(|tick| tick * 100), [100, 600, 1100]);
        let of_work = v1::Limits { overload: Some(v1::OverloadLimits::default()), ..Default::default() };
        let slowly: Vec<u64> = led.into_iter().chain((12..=25).map(|tick| tick * 100)).collect();
        assert_eq!(turns(Some(v1::Overload::default()), of_work), slowly);
        assert_eq!(turns(None, v1::Limits::default()), slowly);
        // Of overload control these limits say nothing: the worker decides.
        assert_eq!(turns(Some(v1::Overload::default()), v1::Limits::default()), every.collect::<Vec<u64>>());
    }
}
