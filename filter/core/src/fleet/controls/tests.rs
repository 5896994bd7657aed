//! The pure part of the loop, stepped by hand.

use std::sync::Arc;
use std::vec;

use headgate_protos::v1;

use super::*;
use crate::fleet::{ClassView, ControlCounters, FleetServed, StoredPolicy};
use crate::level::{LevelKind, LevelState};
use crate::overload::{Budgets, CutOff, EngineSample, Flow, OverloadController, OverloadState, Work};

const LIFETIME: LimitsLifetime = LimitsLifetime { ttl: Duration::from_secs(3), decay: Duration::from_secs(10) };
const EPOCH: u64 = 1_700_000_000_000;

fn policies(gpu_memory: v1::GpuMemoryLevel) -> PolicySet {
    let class =
        |name: &str, when: v1::WhenTripped| v1::PriorityClass { name: name.to_owned(), when_tripped: when.into(), ..Default::default() };
    let spec = v1::PolicySpec {
        pool: "pool".to_owned(),
        classes: vec![
            class("high", v1::WhenTripped::ReservedLane),
            class("mid", v1::WhenTripped::GradientThrottle),
            class("low", v1::WhenTripped::Refuse),
        ],
        levels: Some(v1::Levels { gpu_memory: Some(gpu_memory), ..Default::default() }),
        ..Default::default()
    };
    let policy = v1::Policy { name: "demo".to_owned(), spec: Some(spec), version: "abc".to_owned() };
    PolicySet { policies: [("demo".to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }))].into() }
}

/// A pool whose first report came at zero and that has served steadily since.
fn loads(now: Timestamp) -> BTreeMap<String, PoolView> {
    let requests = now.as_nanos() / 10_000_000;
    let class = |name: &str| ClassView {
        class: name.to_owned(),
        control: ControlCounters { offered: requests, admitted: requests, completed: requests, failed: 0, refused: 0 },
        in_flight: 2,
        ..ClassView::default()
    };
    let view = PoolView {
        classes: ["high", "mid", "low"].map(class).to_vec(),
        first_report_at: Some(Timestamp::ZERO),
        proxies: 1,
        ..PoolView::default()
    };
    [("pool".to_owned(), view)].into()
}

fn shares(_: &str) -> Shares {
    Shares::of([("node", 1.0)].into_iter())
}

/// A device with the given use in percent.
fn memory(now: Timestamp, used_percent: u64) -> impl Fn(&str, &GpuMemoryConfig) -> Option<GpuMemorySample> {
    move |_, _| Some(GpuMemorySample { at: now, used_bytes: used_percent << 30, total_bytes: 100 << 30, source: SignalSource::Nvml })
}

fn step(controls: &mut Controls, now_ms: u64, used_percent: u64) -> Option<LimitsTable> {
    step_able(controls, now_ms, used_percent, 1.0)
}

/// The same while a part of the devices can be trusted with work.
fn step_able(controls: &mut Controls, now_ms: u64, used_percent: u64, able: f64) -> Option<LimitsTable> {
    let now = Timestamp::from_millis(now_ms);
    controls.step(
        now,
        &StepInputs {
            loads: &loads(now),
            gpu_memory: &memory(now, used_percent),
            capacity: &|_, _| able,
            engines: &|_| None,
            rings: &|_| Ring::default(),
            shares: &shares,
        },
    )
}

fn started() -> Controls {
    let mut controls = Controls::new(LIFETIME);
    controls.set_policies(Timestamp::ZERO, EPOCH, &policies(v1::GpuMemoryLevel::default()));
    controls
}

/// Steps every 100 ms up to `until_ms` at the given use; returns what was pushed, with its time.
fn run(controls: &mut Controls, from_ms: u64, until_ms: u64, used_percent: u64) -> Vec<(u64, LimitsTable)> {
    (from_ms..=until_ms).step_by(100).filter_map(|now| step(controls, now, used_percent).map(|table| (now, table))).collect()
}

#[test]
fn nothing_is_pushed_before_the_load_is_known() {
    let mut controls = started();
    let pushed = run(&mut controls, 0, 1500, 95);
    assert_eq!(pushed.first().map(|(at, _)| *at), Some(1000));
}

#[test]
fn a_pool_that_nobody_reports_gets_its_limits_all_the_same() {
    let mut controls = started();
    let first = (0..40_u64).find(|tick| {
        let now = Timestamp::from_millis(tick * 100);
        let inputs = StepInputs {
            loads: &BTreeMap::new(),
            gpu_memory: &memory(now, 10),
            capacity: &|_, _| 1.0,
            engines: &|_| None,
            rings: &|_| Ring::default(),
            shares: &shares,
        };
        controls.step(now, &inputs).is_some()
    });
    assert_eq!(first, Some(20), "two seconds");
}

#[test]
fn a_crossing_is_pushed_in_the_very_step_that_sees_it() {
    let mut controls = started();
    run(&mut controls, 0, 3000, 50);
    let table = step(&mut controls, 3010, 80).unwrap();
    let limits = table.for_node("node", "pool").unwrap();
    let memory = limits.levels.iter().find(|level| level.kind() == v1::LevelKind::GpuMemory).unwrap();
    assert_eq!(memory.state(), v1::LevelState::Tripped);
    assert_eq!((memory.value, memory.threshold), (80.0, 75.0));
    let actions: Vec<v1::ClassAction> = limits.classes.iter().map(v1::ClassLimit::action).collect();
    assert_eq!(actions, [v1::ClassAction::Admit, v1::ClassAction::Throttle, v1::ClassAction::Refuse]);
    assert_eq!(limits.classes[2].because(), v1::LevelKind::GpuMemory);
}

#[test]
fn devices_that_can_do_half_have_clients_come_at_half_the_rate_at_once() {
    let [whole, half] = [1.0, 0.5].map(|able| {
        let mut controls = started();
        run(&mut controls, 0, 3000, 95);
        step_able(&mut controls, 3500, 95, able).unwrap().for_node("node", "pool").unwrap()
    });
    for (whole, half) in whole.classes.iter().zip(&half.classes).filter(|(whole, _)| whole.action() != v1::ClassAction::Admit) {
        // What was usual has already moved a little: half a second of twenty.
        let is_half = |half: f64, whole: f64| (0.5..0.52).contains(&(half / whole));
        assert!(is_half(half.drain_rps, whole.drain_rps), "{}: {} of {}", whole.class, half.drain_rps, whole.drain_rps);
        assert!(whole.rate_rps == 0.0 || is_half(half.rate_rps, whole.rate_rps), "{}", whole.class);
    }
    assert_eq!(whole.classes[2].action(), v1::ClassAction::Refuse);
}

#[test]
fn a_calm_pool_is_pushed_only_to_renew_its_lifetime() {
    let mut controls = started();
    let pushed = run(&mut controls, 0, 6000, 50);
    let times: Vec<u64> = pushed.iter().map(|(at, _)| *at).filter(|at| *at > 2000).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 500), "{times:?}");
}

#[test]
fn epochs_grow_from_the_calendar_and_above_what_any_filter_has() {
    let mut controls = started();
    let epochs = |pushed: Vec<(u64, LimitsTable)>| pushed.iter().map(|(_, table)| table.pools["pool"].fleet.epoch).collect::<Vec<_>>();
    let first = epochs(run(&mut controls, 0, 3000, 50));
    assert!(first[0] > EPOCH && first.windows(2).all(|pair| pair[0] < pair[1]), "{first:?}");
    controls.raise_epoch("demo", EPOCH + 5_000_000);
    assert!(epochs(run(&mut controls, 3100, 4000, 50))[0] > EPOCH + 5_000_000);
    controls.raise_epoch("demo", u64::MAX);
    assert!(epochs(run(&mut controls, 4100, 5000, 50))[0] < EPOCH + 6_000_000, "an absurd epoch is not believed");
}

#[test]
fn the_most_demanding_policy_sets_the_sampling_period() {
    let mut controls = started();
    assert_eq!(controls.device_period(), Some(Duration::from_millis(100)));
    controls.set_policies(Timestamp::ZERO, EPOCH, &policies(v1::GpuMemoryLevel { sample_ms: Some(20), ..Default::default() }));
    assert_eq!(controls.device_period(), Some(Duration::from_millis(20)));
}

#[test]
fn a_changed_policy_keeps_a_tripped_level_and_a_deleted_one_leaves_the_table() {
    let mut controls = started();
    run(&mut controls, 0, 2000, 90);
    controls.set_policies(Timestamp::from_millis(2000), EPOCH, &policies(v1::GpuMemoryLevel { sample_ms: Some(50), ..Default::default() }));
    let state = controls.views()["pool"].state.clone();
    assert_eq!(state.level(LevelKind::GpuMemory).unwrap().state, LevelState::Tripped);
    controls.set_policies(Timestamp::from_millis(2100), EPOCH, &PolicySet::default());
    assert!(controls.table().pools.is_empty());
}

/// The policy with overload control, or without.
fn overload_policies(overload: Option<v1::Overload>) -> PolicySet {
    let mut set = policies(v1::GpuMemoryLevel::default());
    let stored = set.policies.values_mut().next().unwrap();
    Arc::make_mut(stored).policy.spec.as_mut().unwrap().overload = overload;
    set
}

/// A KV cache of 10,000 tokens, and two of this proxy's requests of 1000 tokens in it.
fn overloaded(now: Timestamp, controls: &mut Controls, shares: &dyn Fn(&str) -> Shares) -> Option<LimitsTable> {
    let is_read = true;
    overloaded_before(now, controls, shares, is_read)
}

/// The same before an engine that is read, or not.
fn overloaded_before(now: Timestamp, controls: &mut Controls, shares: &dyn Fn(&str) -> Shares, is_read: bool) -> Option<LimitsTable> {
    let mut loads = loads(now);
    let flow = Flow {
        in_flight: Work { prefill_tokens: 0, kv_tokens: 2000, streams: 2 },
        admitted: Work { prefill_tokens: 1600, kv_tokens: 2000, streams: 2 },
        ..Flow::default()
    };
    loads.get_mut("pool").unwrap().flow = Some(flow);
    let sample = EngineSample {
        at: now,
        epoch: now.as_nanos(),
        kv_used_tokens: 2000,
        kv_total_tokens: 10_000,
        kv_fullest: 0.2,
        running: 2,
        waiting: 0,
        preemptions: 0,
        engines: 1,
        ..EngineSample::default()
    };
    controls.step(
        now,
        &StepInputs {
            loads: &loads,
            gpu_memory: &memory(now, 95),
            capacity: &|_, _| 1.0,
            engines: &|_| is_read.then_some(sample),
            rings: &|_| Ring::default(),
            shares,
        },
    )
}

#[test]
fn an_engine_that_was_away_gets_its_work_little_by_little() {
    let mut controls = Controls::new(LIFETIME);
    controls.set_policies(Timestamp::ZERO, EPOCH, &overload_policies(Some(v1::Overload::default())));
    let mut kv_after = |from_ms: u64, until_ms: u64, is_read: bool| {
        for ms in (from_ms..=until_ms).step_by(100) {
            overloaded_before(Timestamp::from_millis(ms), &mut controls, &shares, is_read);
        }
        controls.views()["pool"].overload.as_ref().unwrap().budgets.kv_tokens.unwrap_or(0)
    };
    let before = kv_after(0, 3000, true);
    kv_after(3100, 4000, false);
    let late = kv_after(4100, 4200, true);
    assert!(late * 10 > before * 9, "a page that came late is no return: {late} of {before}");
    kv_after(4300, 10_000, false);
    let back = kv_after(10_100, 10_200, true);
    assert!(back * 10 < before * 9, "{back} of {before}");
}

#[test]
fn under_overload_control_proxies_get_parts_of_budgets_and_no_class_is_acted_on() {
    let mut controls = Controls::new(LIFETIME);
    controls.set_policies(Timestamp::ZERO, EPOCH, &overload_policies(Some(v1::Overload::default())));
    let nodes = |_: &str| Shares::of([("busy", 99.0), ("idle", 0.0)].into_iter());
    let tables = (0..=20_u64).filter_map(|tick| overloaded(Timestamp::from_millis(tick * 100), &mut controls, &nodes));
    let table = tables.last().expect("a push");
    let busy = table.for_node("busy", "pool").unwrap();
    let kv = |limits: &v1::Limits| limits.overload.as_ref().unwrap().budgets.unwrap().kv_tokens;
    assert!(kv(&busy) > 0, "the engine's cache bounds the work");
    let idle = kv(&table.for_node("idle", "pool").unwrap());
    assert_eq!(idle, 2000, "its part by demand would be less than a request");
    assert!(busy.classes.iter().all(|class| class.action() == v1::ClassAction::Admit), "the levels are terms of the saturation only");
    let view = controls.views()["pool"].clone();
    assert_eq!(view.state.level(LevelKind::GpuMemory).unwrap().state, LevelState::Tripped, "people see them all the same");
    assert!(view.overload.is_some());
}

#[test]
fn overload_control_comes_and_goes_with_the_policy() {
    let mut controls = Controls::new(LIFETIME);
    controls.set_policies(Timestamp::ZERO, EPOCH, &overload_policies(None));
    run(&mut controls, 0, 2000, 95);
    controls.set_policies(Timestamp::from_millis(2000), EPOCH, &overload_policies(Some(v1::Overload::default())));
    let with = step(&mut controls, 2010, 95).expect("a change is pushed at once").for_node("node", "pool").unwrap();
    assert!(with.overload.is_some() && with.classes[2].action() == v1::ClassAction::Admit);
    controls.set_policies(Timestamp::from_millis(2020), EPOCH, &overload_policies(None));
    let without = step(&mut controls, 2030, 95).expect("a change is pushed at once").for_node("node", "pool").unwrap();
    assert!(without.overload.is_none() && without.classes[2].action() == v1::ClassAction::Refuse);
}

#[test]
fn whom_the_fleet_served_is_pushed_once() {
    let mut controls = Controls::new(LIFETIME);
    controls.set_policies(Timestamp::ZERO, EPOCH, &overload_policies(Some(v1::Overload::default())));
    let mut told = v1::OverloadLimits { served_slot_deltas: vec![3], served_work: vec![50], ..Default::default() };
    let served = FleetServed::read(&mut told).map(Arc::new);
    let told = (10..40_u64).filter_map(|tick| {
        let now = Timestamp::from_millis(100 * tick);
        let mut loads = loads(now);
        loads.get_mut("pool").unwrap().served = served.clone().filter(|_| tick >= 20);
        let inputs = StepInputs {
            loads: &loads,
            gpu_memory: &memory(now, 10),
            capacity: &|_, _| 1.0,
            engines: &|_| None,
            rings: &|_| Ring::default(),
            shares: &shares,
        };
        let limits = controls.step(now, &inputs)?.for_node("node", "pool")?;
        Some((tick, limits.overload?.served_work))
    });
    let told: Vec<(u64, Vec<u64>)> = told.collect();
    let with: Vec<u64> = told.iter().filter(|(_, work)| *work == [50]).map(|(tick, _)| *tick).collect();
    assert!(with.len() == 1 && (20..=25).contains(&with[0]) && told.len() > 5, "{told:?}");
}

fn pushed(state: &OverloadState) -> PoolLimits {
    let overload = Some(OverloadPush { state: Arc::new(state.clone()), least: Work::NONE, ring: Arc::default(), served: None });
    PoolLimits { overload, ..PoolLimits::default() }
}

#[test]
fn what_a_proxy_acts_on_is_pushed_at_once_and_what_people_read_is_not() {
    let controller = OverloadController::new(Timestamp::ZERO, &crate::policy::fixture::policy(|_| {}));
    let before = OverloadState { budgets: Budgets { kv_tokens: Some(1000), ..Budgets::UNBOUNDED }, ..controller.state().clone() };
    let differs = |change: &dyn Fn(&mut OverloadState)| {
        let mut after = before.clone();
        change(&mut after);
        material(&pushed(&before), &pushed(&after)) == Material::Yes
    };
    assert!(differs(&|state| state.cut_off = CutOff { level: 300, fraction: 0.5 }));
    assert!(differs(&|state| state.budgets.kv_tokens = Some(980)));
    assert!(differs(&|state| state.budgets.streams = Some(10)));
    assert!(differs(&|state| state.retry_ratio += 0.5));
    assert!(!differs(&|state| state.budgets.kv_tokens = Some(999)));
    assert!(!differs(&|state| state.saturation.value = 0.7));
    assert!(!differs(&|state| state.sample_epoch += 1));
}
