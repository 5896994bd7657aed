use super::*;
use crate::histogram::Histogram;
use crate::level::{GpuMemorySample, LevelKind, LevelState, SignalSource};
use crate::policy::Policy;
use crate::time::Timestamp;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use headgate_protos::v1;
use proptest::prelude::*;

/// Control tick.
const TICK_MS: u64 = 100;

fn class(name: &str, when_tripped: v1::WhenTripped) -> v1::PriorityClass {
    v1::PriorityClass { name: name.into(), when_tripped: when_tripped.into(), ..Default::default() }
}

/// high: reserved lane; medium: throttle; low: refuse. Memory alone trips; countdown 500 ms; ramp of 20 points every 200 ms.
fn spec() -> v1::PolicySpec {
    v1::PolicySpec {
        pool: "pool".into(),
        classes: vec![
            class("high", v1::WhenTripped::ReservedLane),
            class("medium", v1::WhenTripped::GradientThrottle),
            class("low", v1::WhenTripped::Refuse),
        ],
        levels: Some(v1::Levels {
            qps: Some(v1::QpsLevel { enabled: Some(false), ..Default::default() }),
            p99: Some(v1::P99Level { enabled: Some(false), ..Default::default() }),
            gpu_memory: None,
            hysteresis: Some(v1::Hysteresis { recover_percent: Some(90.0), recovery_ms: Some(500) }),
        }),
        throttle: Some(v1::GradientThrottle { interval_ms: Some(200), recover_percent: Some(20), ..Default::default() }),
        ..Default::default()
    }
}

fn policy(spec: v1::PolicySpec) -> Policy {
    Policy::try_from_wire(&v1::Policy { name: "demo".into(), spec: Some(spec), version: "v1".into() }).unwrap()
}

/// A pool that completes at most `capacity` requests per second and whose memory follows its backlog.
struct World {
    controller: PoolController,
    now_ms: u64,
    capacity: f64,
    backlog: f64,
    loads: Vec<ClassLoad>,
    credit: Vec<f64>,
    memory: Option<u64>,
    ttft: Histogram,
    series: u64,
}

fn world(spec: v1::PolicySpec) -> World {
    let policy = policy(spec);
    let n = policy.classes().len();
    World {
        controller: PoolController::new(Timestamp::ZERO, &policy),
        now_ms: 0,
        capacity: 100.0,
        backlog: 0.0,
        loads: vec![ClassLoad::default(); n],
        credit: vec![0.0; n],
        memory: None,
        ttft: Histogram::new(),
        series: 1,
    }
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now_ms)
    }

    /// Memory in percent: 40 when idle, 80 with 200 requests in flight.
    fn memory_percent(&self) -> u64 {
        self.memory.unwrap_or_else(|| (40.0 + self.backlog * 0.2).min(100.0) as u64)
    }

    /// One control tick under `offered` requests per second of each class.
    fn tick(&mut self, offered: &[f64]) -> &PoolState {
        self.now_ms += TICK_MS;
        let dt = TICK_MS as f64 / 1000.0;
        for (index, rps) in offered.iter().enumerate() {
            let allowed = match self.controller.state().classes[index].action {
                ClassAction::Admit => f64::INFINITY,
                ClassAction::Throttle { rate_rps, .. } => rate_rps,
                ClassAction::Refuse => 0.0,
            };
            self.credit[index] += rps * dt;
            let arrived = self.credit[index] as u64;
            self.credit[index] -= arrived as f64;
            let admitted = (arrived as f64).min(allowed * dt);
            self.loads[index].offered += arrived;
            self.loads[index].admitted += admitted.round() as u64;
            self.backlog += admitted.round();
        }
        let done = self.backlog.min(self.capacity * dt).floor();
        self.backlog -= done;
        // Who completes does not matter to the controller.
        self.loads[0].completed += done as u64;
        self.loads[0].in_flight = self.backlog as u32;
        let sample = GpuMemorySample { at: self.now(), used_bytes: self.memory_percent(), total_bytes: 100, source: SignalSource::Nvml };
        let now = self.now();
        self.controller.step(
            now,
            &Signals {
                series: self.series,
                gpu_memory: Some(sample),
                classes: &self.loads,
                ttft_us: &self.ttft,
                source: SignalSource::Filters,
            },
        )
    }

    fn run(&mut self, ms: u64, offered: &[f64]) -> PoolState {
        for _ in 0..ms / TICK_MS {
            self.tick(offered);
        }
        self.controller.state().clone()
    }
}

fn actions(state: &PoolState) -> String {
    let letter = |class: &ClassDecision| match class.action {
        ClassAction::Admit => 'A',
        ClassAction::Throttle { .. } => 'T',
        ClassAction::Refuse => 'R',
    };
    state.classes.iter().map(letter).collect()
}

fn rate(state: &PoolState, class: usize) -> f64 {
    match state.classes[class].action {
        ClassAction::Throttle { rate_rps, .. } => rate_rps,
        other => panic!("{other:?} is no throttle"),
    }
}

#[test]
fn admits_everything_while_no_level_acts() {
    let mut world = world(spec());
    let state = world.run(3000, &[20.0, 20.0, 20.0]);
    assert_eq!((actions(&state).as_str(), state.fraction), ("AAA", 1.0));
    assert!(state.classes.iter().all(|class| class.because.is_none()));
}

#[test]
fn a_tripped_level_throttles_and_refuses_by_class_in_the_same_step() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 20.0, 20.0]);
    world.memory = Some(90);
    let state = world.tick(&[20.0, 20.0, 20.0]).clone();
    assert_eq!(actions(&state), "ATR");
    assert_eq!(state.level(LevelKind::GpuMemory).map(|level| level.state), Some(LevelState::Tripped));
    assert_eq!(state.classes[0].because, None);
    assert_eq!(state.classes[2].because, Some(LevelKind::GpuMemory));
}

#[test]
fn a_threefold_overload_settles_with_the_important_class_whole() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 20.0, 20.0]);
    let state = world.run(20_000, &[60.0, 120.0, 120.0]);
    assert_eq!(state.classes[0].action, ClassAction::Admit);
    // The pool does 100 a second; the backlog stays bounded near the 175 requests at which memory trips.
    assert!(world.backlog < 260.0, "{}", world.backlog);
    assert!((80.0..130.0).contains(&state.drain_rps), "{}", state.drain_rps);
}

#[test]
fn everything_is_admitted_again_well_below_five_seconds_after_the_load_falls() {
    let mut world = world(spec());
    world.run(20_000, &[60.0, 120.0, 120.0]);
    let mut ms = 0;
    while !world.tick(&[20.0, 20.0, 20.0]).admits_all() {
        ms += TICK_MS;
        assert!(ms < 10_000, "never recovers: {:?}", world.controller.state());
    }
    // Draining some 200 requests at 40 a second net takes 2 s, the countdown 0.5 s, two calm steps 0.4 s.
    assert!(ms <= 4_000, "{ms}");
    let state = world.run(10_000, &[20.0, 20.0, 20.0]);
    assert_eq!(actions(&state), "AAA", "it does not trip again");
}

#[test]
fn a_refused_class_comes_back_through_the_ramp() {
    let mut world = world(spec());
    world.run(3000, &[30.0, 30.0, 30.0]);
    world.memory = Some(90);
    world.run(1000, &[30.0, 200.0, 200.0]);
    world.memory = Some(40);
    let recovered = world.run(600, &[30.0, 200.0, 200.0]);
    assert_eq!(actions(&recovered), "ATT");
    let first = recovered.classes[2].fraction;
    assert_eq!(first, 0.2, "begins at the larger of floor and step");
    let later = world.run(400, &[30.0, 200.0, 200.0]);
    assert!((later.classes[2].fraction - 0.6).abs() < 1e-9, "{}", later.classes[2].fraction);
    assert_eq!(later.classes[2].because, Some(LevelKind::GpuMemory), "the cause is named until it is over");
    assert_eq!(actions(&world.run(400, &[30.0, 200.0, 200.0])), "AAA");
}

#[test]
fn the_fraction_shrinks_faster_the_further_the_value_is_above_the_threshold() {
    let fraction_after = |memory: u64| {
        let mut world = world(spec());
        world.run(3000, &[20.0, 20.0, 0.0]);
        world.memory = Some(memory);
        world.backlog = 1000.0;
        world.run(100, &[20.0, 200.0, 0.0]).classes[1].fraction
    };
    assert!((fraction_after(76) - 0.8).abs() < 1e-9, "just above: the policy's 20 % step");
    assert!((fraction_after(100) - 0.75).abs() < 1e-9, "75 / 100");
}

#[test]
fn the_fraction_is_held_while_the_level_recovers() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 20.0, 0.0]);
    world.memory = Some(80);
    world.backlog = 1000.0;
    let tripped = world.run(1000, &[20.0, 200.0, 0.0]);
    world.memory = Some(50);
    let recovering = world.run(400, &[20.0, 200.0, 0.0]);
    assert_eq!(recovering.level(LevelKind::GpuMemory).unwrap().state, LevelState::Recovering);
    assert_eq!(recovering.classes[1].fraction, tripped.classes[1].fraction);
}

#[test]
fn a_throttled_class_never_starves() {
    let mut spec = spec();
    spec.throttle =
        Some(v1::GradientThrottle { interval_ms: Some(50), shrink_percent: Some(90), floor_percent: Some(0), ..Default::default() });
    let mut world = world(spec);
    // The important class alone takes the whole pool, for a minute.
    let state = world.run(60_000, &[150.0, 100.0, 0.0]);
    assert!(rate(&state, 1) >= 0.1, "{}", rate(&state, 1));
}

#[test]
fn an_idle_pool_admits_throttled_work_whatever_the_level_says() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 50.0, 0.0]);
    world.memory = Some(95);
    world.run(3000, &[0.0, 50.0, 0.0]);
    world.backlog = 0.0;
    let state = world.run(2000, &[0.0, 0.0, 0.0]);
    assert_eq!(state.level(LevelKind::GpuMemory).unwrap().state, LevelState::Tripped);
    assert_eq!(rate(&state, 1), state.classes[1].drain_rps, "all that is left");
}

#[test]
fn the_drain_does_not_sink_because_the_pool_is_given_little() {
    let mut world = world(spec());
    world.run(10_000, &[60.0, 120.0, 0.0]);
    let busy = world.controller.state().drain_rps;
    world.memory = Some(40);
    let calm = world.run(30_000, &[1.0, 1.0, 0.0]);
    assert_eq!(calm.drain_rps, busy);
}

#[test]
fn a_new_series_of_counters_is_no_burst() {
    let mut spec = spec();
    spec.levels.as_mut().unwrap().qps = Some(v1::QpsLevel { min_samples: Some(5), ..Default::default() });
    let mut world = world(spec);
    world.run(10_000, &[20.0, 20.0, 20.0]);
    world.series = 2;
    for load in &mut world.loads {
        *load = ClassLoad { offered: load.offered * 50, ..ClassLoad::default() };
    }
    let state = world.run(3000, &[20.0, 20.0, 20.0]);
    assert_eq!(actions(&state), "AAA");
    assert!(state.level(LevelKind::Qps).unwrap().value < 70.0);
}

#[test]
fn names_the_level_that_is_furthest_above_its_threshold() {
    let mut spec = spec();
    spec.levels.as_mut().unwrap().qps = Some(v1::QpsLevel { min_samples: Some(5), ..Default::default() });
    let mut world = world(spec);
    world.memory = Some(40);
    world.run(20_000, &[20.0, 20.0, 20.0]);
    world.memory = Some(80);
    // 80 of 75 percent is less far above than 300 of 90 requests a second.
    let state = world.run(2000, &[100.0, 100.0, 100.0]);
    assert_eq!(state.levels.iter().filter(|level| level.acts()).count(), 2);
    assert_eq!(state.classes[2].because, Some(LevelKind::Qps));
}

#[test]
fn a_changed_policy_keeps_what_was_learned_and_where_the_ramp_is() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 20.0, 20.0]);
    world.memory = Some(90);
    let before = world.run(1000, &[20.0, 20.0, 20.0]);
    let mut changed = spec();
    changed.classes.insert(1, class("batch", v1::WhenTripped::Refuse));
    let now = world.now();
    world.controller.set_policy(now, &policy(changed));
    let after = world.controller.state().clone();
    assert_eq!(after.level(LevelKind::GpuMemory).unwrap().state, LevelState::Tripped);
    assert_eq!(after.classes.len(), 4);
    assert_eq!(after.classes[2].fraction, before.classes[1].fraction);
    world.loads = vec![ClassLoad::default(); 4];
    world.credit = vec![0.0; 4];
    world.series = 2;
    let state = world.run(1000, &[20.0; 4]);
    assert_eq!((actions(&state).as_str(), state.drain_rps > 0.0), ("ARTR", true));
}

#[test]
fn the_limits_of_a_proxy_are_its_share_and_a_bucket_holds_a_request() {
    let mut world = world(spec());
    world.run(3000, &[20.0, 20.0, 20.0]);
    world.memory = Some(90);
    let state = world.run(500, &[20.0, 20.0, 20.0]);
    let frame = LimitsFrame {
        pool: "pool",
        epoch: 7,
        policy_version: "v1",
        share: 0.01,
        safe_share: 0.5,
        ttl: Duration::from_secs(2),
        decay: Duration::from_secs(10),
    };
    let wire = state.to_wire(&frame);
    assert_eq!((wire.epoch, wire.ttl_ms, wire.decay_ms, wire.levels.len()), (7, 2000, 10_000, 3));
    let medium = &wire.classes[1];
    assert_eq!(medium.action(), v1::ClassAction::Throttle);
    assert_eq!(medium.rate_rps, rate(&state, 1) * 0.01);
    assert_eq!(medium.burst, 1.0, "a hundredth of the burst is less than a request");
    assert_eq!(medium.because(), v1::LevelKind::GpuMemory);
    assert_eq!(wire.classes[2].action(), v1::ClassAction::Refuse);
    assert_eq!(wire.classes[2].drain_rps, state.classes[2].drain_rps * 0.01, "else N proxies would hand out each slot N times");
    assert!(state.classes[2].drain_rps > 0.0);
    assert!(wire.classes[2].safe_rps > 0.0, "refusal ends when the control plane is gone");
    let gpu = wire.levels.iter().find(|level| level.kind() == v1::LevelKind::GpuMemory).unwrap();
    assert_eq!((gpu.value, gpu.threshold, gpu.source.as_str()), (90.0, 75.0, "nvml"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_signals_rates_are_positive_and_the_reserved_lane_is_open(
        steps in prop::collection::vec((0..2000_u64, any::<[u8; 3]>(), 0..120_u64, 0..3_u64, any::<bool>()), 1..80),
    ) {
        let policy = policy(v1::PolicySpec { levels: None, ..spec() });
        let mut controller = PoolController::new(Timestamp::ZERO, &policy);
        let (mut now_ms, mut loads, mut ttft) = (0, [ClassLoad::default(); 3], Histogram::new());
        for (wait, traffic, memory, series, measured) in steps {
            now_ms += wait;
            for (load, n) in loads.iter_mut().zip(traffic) {
                load.offered += u64::from(n);
                load.admitted += u64::from(n / 2);
                load.completed += u64::from(n / 3);
                load.in_flight = u32::from(n);
                ttft.record(u64::from(n) * 100_000);
            }
            let at = Timestamp::from_millis(now_ms);
            let sample = GpuMemorySample { at, used_bytes: memory, total_bytes: 100, source: SignalSource::Nvml };
            let signals = Signals { series, gpu_memory: measured.then_some(sample), classes: &loads, ttft_us: &ttft, source: SignalSource::Filters };
            let state = controller.step(at, &signals);
            prop_assert_eq!(state.classes[0].action, ClassAction::Admit);
            prop_assert!(state.drain_rps.is_finite() && (0.0..=1.0).contains(&state.fraction));
            for class in &state.classes {
                if let ClassAction::Throttle { rate_rps, burst } = class.action {
                    prop_assert!(rate_rps >= 0.1 && rate_rps.is_finite() && burst >= 1.0);
                }
                prop_assert!(class.drain_rps.is_finite() && class.safe_rps.is_finite());
            }
            prop_assert_eq!(state.acts(), actions(state).contains('R'));
        }
    }
}
