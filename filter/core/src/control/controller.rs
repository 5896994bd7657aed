//! The controller of one pool.

use alloc::vec::Vec;

use super::capacity::{Capacity, Load, Series};
use super::ramp::{Demand, MIN_RATE_RPS, Pressure, Ramp, Work};
use super::state::{ClassAction, ClassDecision, PoolState, Signals};
use crate::level::{GpuMemoryLevel, LevelKind, LevelState, LevelStatus, Others, P99Level, QpsLevel};
use crate::policy::{Levels, Policy, ThrottleConfig, WhenTripped};
use crate::time::Timestamp;

/// Control loop of one pool: one [`step`](Self::step) every control tick (100 ms).
///
/// O(classes) work and no allocation a step, apart from the bounded pages of histograms.
#[derive(Debug, Clone)]
pub struct PoolController {
    throttle: ThrottleConfig,
    qps: QpsLevel,
    gpu_memory: GpuMemoryLevel,
    p99: P99Level,
    capacity: Capacity,
    ramps: Vec<Ramp>,
    because: Option<LevelKind>,
    state: PoolState,
}

impl PoolController {
    /// A controller that has learned nothing and admits everything.
    #[must_use]
    pub fn new(now: Timestamp, policy: &Policy) -> Self {
        let Levels { qps, gpu_memory, p99, hysteresis } = policy.levels();
        let mut qps = QpsLevel::new(qps, hysteresis);
        let mut gpu_memory = GpuMemoryLevel::new(gpu_memory, hysteresis);
        let mut p99 = P99Level::new(p99, hysteresis);
        let levels = [qps.tick(now), gpu_memory.tick(now), p99.tick(now)];
        let ramps: Vec<Ramp> = policy.classes().iter().map(|class| Ramp::new(class.when_tripped)).collect();
        Self {
            throttle: policy.throttle().clone(),
            qps,
            gpu_memory,
            p99,
            capacity: Capacity::new(ramps.len()),
            ramps,
            because: None,
            state: PoolState { levels, classes: policy.classes().iter().map(fresh_decision).collect(), drain_rps: 0.0, fraction: 1.0 },
        }
    }

    /// Takes over a changed policy. Learned baselines, states of levels and fractions of classes whose name and treatment stay the
    /// same are kept.
    pub fn set_policy(&mut self, now: Timestamp, policy: &Policy) {
        let Levels { qps, gpu_memory, p99, hysteresis } = policy.levels();
        self.qps.set_config(qps, hysteresis);
        self.gpu_memory.set_config(gpu_memory, hysteresis);
        self.p99.set_config(p99, hysteresis);
        self.throttle = policy.throttle().clone();
        let same = self.state.classes.iter().map(|class| &class.class).eq(policy.classes().iter().map(|class| &class.name));
        if !same {
            self.capacity = self.capacity.with_classes(policy.classes().len());
        }
        let (old_ramps, old_classes) = (core::mem::take(&mut self.ramps), core::mem::take(&mut self.state.classes));
        for class in policy.classes() {
            let kept = old_ramps
                .iter()
                .zip(&old_classes)
                .find(|(ramp, old)| old.class == class.name && ramp.when_tripped() == class.when_tripped)
                .map(|(ramp, old)| (ramp.clone(), old.clone()));
            let (ramp, decision) = kept.unwrap_or_else(|| (Ramp::new(class.when_tripped), fresh_decision(class)));
            self.ramps.push(ramp);
            self.state.classes.push(decision);
        }
        self.state.levels = self.tick_levels(now);
    }

    /// One turn: signals to levels, levels to classes.
    pub fn step(&mut self, now: Timestamp, signals: &Signals<'_>) -> &PoolState {
        self.observe(now, signals);
        self.state.levels = self.tick_levels(now);
        let pressure = pressure(&self.state.levels);
        self.because = cause(&self.state.levels).or(self.because);
        let pool = if self.capacity.in_flight() == 0 { Work::Idle } else { Work::Busy };
        for (index, (ramp, decision)) in self.ramps.iter_mut().zip(&mut self.state.classes).enumerate() {
            let leftover_rps = self.capacity.leftover_rps(index);
            let demand = Demand { offered_rps: self.capacity.offered_rps(index), leftover_rps, pool };
            ramp.step(now, pressure, demand, &self.throttle);
            decision.action = ramp.action(demand, &self.throttle);
            decision.because = if decision.action == ClassAction::Admit { None } else { self.because };
            decision.fraction = ramp.fraction();
            decision.drain_rps = leftover_rps;
            decision.safe_rps = safe_rps(ramp, leftover_rps, &self.throttle);
        }
        self.state.drain_rps = self.capacity.drain_rps().unwrap_or(0.0);
        self.state.fraction = self.ramps.iter().map(Ramp::fraction).fold(1.0, f64::min);
        if self.state.admits_all() && pressure == Pressure::None {
            self.because = None;
        }
        &self.state
    }

    /// The state after the last step.
    #[must_use]
    pub fn state(&self) -> &PoolState {
        &self.state
    }

    fn observe(&mut self, now: Timestamp, signals: &Signals<'_>) {
        let [qps, gpu_memory, p99] = self.state.levels.each_ref().map(LevelStatus::acts);
        let tripped = self.state.levels.iter().any(|level| level.state == LevelState::Tripped);
        let load = if tripped { Load::TooMuch } else { Load::Bearable };
        if self.capacity.observe(now, signals.series, signals.classes, load) == Series::New {
            self.qps.restart();
            self.p99.restart();
        }
        if let Some(sample) = &signals.gpu_memory {
            self.gpu_memory.observe(now, sample);
        }
        self.p99.observe(now, signals.ttft_us, signals.source, others(qps || gpu_memory));
        let offered = signals.classes.iter().fold(0_u64, |sum, class| sum.saturating_add(class.offered));
        self.qps.observe(now, offered, signals.source, others(gpu_memory || p99));
    }

    fn tick_levels(&mut self, now: Timestamp) -> [LevelStatus; 3] {
        [self.qps.tick(now), self.gpu_memory.tick(now), self.p99.tick(now)]
    }
}

fn fresh_decision(class: &crate::policy::Class) -> ClassDecision {
    ClassDecision { class: class.name.clone(), action: ClassAction::Admit, because: None, fraction: 1.0, drain_rps: 0.0, safe_rps: 0.0 }
}

fn others(act: bool) -> Others {
    if act { Others::Act } else { Others::Calm }
}

/// What the levels say together.
fn pressure(levels: &[LevelStatus; 3]) -> Pressure {
    let tripped = levels.iter().filter(|level| level.state == LevelState::Tripped);
    match tripped.map(LevelStatus::pressure).reduce(f64::max) {
        Some(ratio) => Pressure::Tripped { ratio },
        None if levels.iter().any(LevelStatus::acts) => Pressure::Easing,
        None => Pressure::None,
    }
}

/// The acting level whose value is furthest above its threshold.
fn cause(levels: &[LevelStatus; 3]) -> Option<LevelKind> {
    let acting = levels.iter().filter(|level| level.acts());
    acting.max_by(|a, b| a.pressure().total_cmp(&b.pressure())).map(|level| level.kind)
}

/// Rate that is safe when nobody watches: all that is left while the class is free, and no more than its floor or present fraction
/// while it is not.
fn safe_rps(ramp: &Ramp, leftover_rps: f64, config: &ThrottleConfig) -> f64 {
    let fraction = match ramp.when_tripped() {
        WhenTripped::ReservedLane => 1.0,
        WhenTripped::GradientThrottle | WhenTripped::Refuse => ramp.fraction().max(f64::from(config.floor_percent) / 100.0),
    };
    (fraction * leftover_rps).max(MIN_RATE_RPS)
}
