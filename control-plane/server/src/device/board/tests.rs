//! Recordings played onto the board: what each fault ends in, and when.

use std::path::Path;
use std::time::Duration;

use headgate_core::level::{GpuMemoryLevel, LevelState};
use headgate_core::policy::{GpuMemoryConfig, HysteresisConfig};

use super::*;
use crate::device::tape::Tape;
use crate::device::{DeviceReading, SourceState};

fn at(time: Duration) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(time.as_nanos()).unwrap())
}

fn tape(name: &str) -> Tape {
    Tape::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tapes").join(name)).unwrap()
}

/// Plays a tape and gives what the board shows after each of its samples, with its time on the tape in milliseconds.
fn play(tape: &Tape) -> Vec<(u128, DeviceView)> {
    let board = DeviceBoard::default();
    let mut state = DeviceState { node: "a".into(), ..DeviceState::starting("tape") };
    let mut details = tape.details().iter().peekable();
    let step = |moment: &crate::device::tape::Moment<Vec<DeviceReading>>| {
        while let Some(detail) = details.next_if(|detail| detail.asked_at <= moment.asked_at) {
            state.details = Arc::new(detail.answer.clone().unwrap());
        }
        state.take(at(moment.asked_at), moment.answer.clone().unwrap());
        let now = at(moment.ready_at);
        board.publish(now, Arc::new(state.clone())).unwrap();
        (moment.asked_at.as_millis(), board.view(now))
    };
    tape.samples().iter().map(step).collect()
}

/// Verdicts of the device at `place` of the node, without repetition.
fn verdicts(views: &[(u128, DeviceView)], place: usize) -> Vec<&'static str> {
    let mut seen: Vec<&'static str> =
        views.iter().filter_map(|(_, view)| view.nodes()[0].conditions.get(place)).map(|condition| condition.verdict.word()).collect();
    seen.dedup();
    seen
}

#[test]
fn heat_derates_and_cooling_ends_it() {
    let views = play(&tape("thermal.jsonl"));
    assert_eq!(verdicts(&views, 0), ["sound", "derated", "sound"]);
    let least = views.iter().map(|(_, view)| view.capacity("p", &GpuMemoryConfig::default()).fraction()).fold(1.0, f64::min);
    assert!((0.45..0.6).contains(&least), "{least}: 750 of 1455 MHz");
}

#[test]
fn a_gpu_that_falls_off_the_bus_takes_half_of_the_capacity_and_no_memory_signal_with_it() {
    let config = GpuMemoryConfig::default();
    let views = play(&tape("lost.jsonl"));
    let is_lost = |view: &DeviceView| !view.nodes()[0].state.lost.is_empty();
    let (first, _) = views.iter().find(|(_, view)| is_lost(view)).unwrap();
    let (last, _) = views.iter().rfind(|(_, view)| is_lost(view)).unwrap();
    assert!(first < last && *last < 11_000, "lost at {first} ms, back after {last} ms");
    for (ms, view) in &views {
        let capacity = view.capacity("p", &config);
        let used = view.fullest("p", &config).unwrap().used_bytes >> 30;
        if is_lost(view) {
            assert_eq!((capacity.fraction(), capacity.because.contains("is lost"), used), (0.5, true, 70), "{ms}");
        } else {
            assert_eq!(capacity.devices, 2, "{ms}");
            assert_eq!(used, 71, "{ms}");
        }
    }
    let (_, end) = views.last().unwrap();
    assert_eq!(end.capacity("p", &config).fraction(), 1.0, "it is trusted again after its reset");
}

#[test]
fn the_fullest_mig_instance_counts_and_its_parent_does_not() {
    let views = play(&tape("mig.jsonl"));
    let (_, end) = views.last().unwrap();
    assert_eq!(end.nodes()[0].state.devices.len(), 3);
    let config = GpuMemoryConfig::default();
    let fullest = end.fullest("p", &config).unwrap();
    assert!(fullest.percent().unwrap() > 90.0, "{fullest:?}");
    let of_parent = GpuMemoryConfig { devices: vec!["GPU-00000000-0000-4000-8000-000000000100".to_owned()], ..config };
    assert_eq!(end.fullest("p", &of_parent), Some(fullest), "a policy may name the device or its instances");
    let units = end.capacity("p", &of_parent).units;
    assert!((46.0..48.0).contains(&units), "{units}: 6 of 7 slices of an H200");
}

#[test]
fn different_gpus_have_one_measure() {
    let views = play(&tape("mixed.jsonl"));
    let units: Vec<f64> = views[0].1.nodes()[0].conditions.iter().map(|condition| condition.units.round()).collect();
    assert_eq!(units, [20.0, 46.0, 14.0, 4.0], "A100, H100, L40S, T4");
}

#[test]
fn an_idle_gpu_is_sound_fresh_and_never_frozen() {
    for (at_ms, view) in play(&tape("idle.jsonl")) {
        let condition = &view.nodes()[0].conditions[0];
        assert_eq!((condition.verdict.word(), condition.is_frozen), ("sound", false), "{at_ms} ms");
        let sample = view.fullest("p", &GpuMemoryConfig::default()).expect("a fresh sample");
        assert!(sample.percent().unwrap() < 75.0 && view.capacity("p", &GpuMemoryConfig::default()).fraction() == 1.0, "{at_ms} ms");
    }
}

#[test]
fn memory_behind_an_engine_that_allocates_at_start_says_nothing_and_behind_another_it_does() {
    let used = |name: &str| -> Vec<u64> {
        let config = GpuMemoryConfig::default();
        play(&tape(name)).iter().map(|(_, view)| view.fullest("p", &config).unwrap().percent().unwrap().round() as u64).collect()
    };
    let preallocating = used("kv-fill-preallocating.jsonl");
    assert!(preallocating.iter().all(|percent| *percent == 90), "{preallocating:?}");
    let on_demand = used("kv-fill-on-demand.jsonl");
    assert!(on_demand[0] == 20 && on_demand.iter().any(|percent| *percent >= 89), "{on_demand:?}");
}

#[test]
fn figures_that_stop_moving_leave_the_decision_within_three_periods_and_trip_nothing() {
    let config = GpuMemoryConfig { trip_percent: 30.0, ..GpuMemoryConfig::default() };
    let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
    let tape = tape("h200.jsonl");
    let moments: Vec<_> = tape.samples().iter().take_while(|moment| moment.asked_at < Duration::from_secs(25)).collect();
    let board = DeviceBoard::default();
    let mut state = DeviceState { node: "a".into(), ..DeviceState::starting("tape") };
    let mut frozen_after = None;
    // From 25 s on the source repeats its last answer as if it were new.
    for n in 0..moments.len() as u64 + 20 {
        let moment = moments.get(n as usize).or(moments.last()).unwrap();
        let now = Timestamp::from_millis(n * 100);
        state.take(now, moment.answer.clone().unwrap());
        board.publish(now, Arc::new(state.clone())).unwrap();
        let view = board.view(now);
        if let Some(sample) = view.fullest("p", &config) {
            level.observe(now, &sample);
        }
        let since = n.checked_sub(moments.len() as u64 - 1);
        let is_frozen = view.nodes()[0].conditions[0].is_frozen;
        assert!(!is_frozen || since.is_some(), "a device that lives was called frozen at {n}");
        if is_frozen && frozen_after.is_none() {
            frozen_after = since;
        }
        level.tick(now);
    }
    assert!(frozen_after.is_some_and(|periods| periods <= 4), "{frozen_after:?}: more than three periods");
    let now = Timestamp::from_millis((moments.len() as u64 + 20) * 100);
    assert_eq!(level.tick(now).state, LevelState::Stale, "and is named stale");
}

#[test]
fn a_source_that_fails_keeps_its_last_word_and_ages() {
    let board = DeviceBoard::default();
    let mut state = DeviceState { node: "a".into(), ..DeviceState::starting("test") };
    let sample = crate::device::DeviceSample { memory_used_bytes: 9, memory_total_bytes: 10, ..Default::default() };
    state.take(Timestamp::ZERO, vec![DeviceReading::Sample(sample)]);
    board.publish(Timestamp::ZERO, Arc::new(state.clone())).unwrap();
    state.state = SourceState::Failing(crate::device::SampleError::Agent { problem: "gone".to_owned() });
    board.publish(Timestamp::from_millis(50), Arc::new(state)).unwrap();
    let config = GpuMemoryConfig::default();
    let used = |ms: u64| board.view(Timestamp::from_millis(ms)).fullest("p", &config).map(|sample| sample.used_bytes);
    assert_eq!((used(300), used(301)), (Some(9), None));
    board.expire(Timestamp::from_millis(1000));
    assert_eq!(board.view(Timestamp::from_millis(1000)).nodes().len(), 1, "the pages still show it");
    board.expire(Timestamp::from_millis(600_001));
    assert!(board.view(Timestamp::from_millis(600_001)).nodes().is_empty());
}
