#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use headgate_core::fleet::{ClassTotals, ClassView, ControlCounters, Controls, LimitsLifetime, PolicySet, PoolView, StoredPolicy};
use headgate_core::level::{GpuMemorySample, LevelKind, SignalSource};
use headgate_core::time::Timestamp;
use headgate_protos::v1;

use super::answer::answer;
use super::*;
use crate::document::CheckedPolicy;

const POLICY: &str = "
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: { name: demo }
spec:
  pool: llm
  routes: [{ pathPrefix: / }]
  classes: [{ name: high, whenTripped: reserved_lane }, { name: low, whenTripped: refuse }]
  levels: { qps: { enabled: false }, p99: { enabled: false }, gpuMemory: { source: nvml, tripPercent: TRIP } }
";

fn policy(trip: u32) -> v1::Policy {
    CheckedPolicy::from_document(&POLICY.replace("TRIP", &trip.to_string())).unwrap().wire().clone()
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// What has arrived until `ms`: ten requests a second of each class, every other of `low` refused.
fn load(ms: u64) -> PoolView {
    let offered = ms / 100;
    let class = |class: &str, refused: u64| {
        let mut totals = ClassTotals { offered, admitted: offered - refused, ..ClassTotals::default() };
        totals.refused[0] = refused;
        let control = ControlCounters { offered, admitted: offered - refused, completed: offered - refused, failed: 0, refused };
        ClassView { class: class.to_owned(), totals, control, in_flight: 1, waiting: 0 }
    };
    PoolView { classes: vec![class("high", 0), class("low", offered / 2)], first_report_at: Some(at(0)), ..PoolView::default() }
}

/// A minute with a GPU at 50 %, of which 20 seconds at 80 %.
fn frame(ms: u64) -> Frame {
    let used_bytes = if (20_000..40_000).contains(&ms) { 80 } else { 50 };
    Frame {
        at: at(ms),
        loads: [("llm".to_owned(), load(ms))].into(),
        gpu_memory: [("llm".to_owned(), GpuMemorySample { at: at(ms), used_bytes, total_bytes: 100, source: SignalSource::Nvml })].into(),
        ..Frame::default()
    }
}

fn learned() -> Controls {
    let mut controls = Controls::new(LimitsLifetime { ttl: Duration::from_secs(3), decay: Duration::from_secs(10) });
    let stored = StoredPolicy { policy: policy(90), changed_at_unix_ms: 0 };
    let refused = controls.set_policies(at(0), 0, &PolicySet { policies: [("demo".to_owned(), Arc::new(stored))].into() });
    assert!(refused.is_empty(), "{refused:?}");
    controls
}

fn tape() -> Tape {
    let tape = Tape::default();
    for ms in (1_000..=61_000).step_by(200) {
        assert!(tape.is_due(at(ms)));
        tape.record(frame(ms), learned);
        assert!(!tape.is_due(at(ms + 100)));
    }
    tape
}

#[test]
fn a_lower_threshold_would_have_refused_while_the_gpu_was_full_and_the_one_in_force_nothing() {
    let frames = tape().frames();
    let (present, given) = (play(&frames, &policy(90)), play(&frames, &policy(70)));
    assert_eq!((given.window, given.classes.len()), (Duration::from_secs(60), 2));
    let gpu = |course: &Course| course.levels.iter().find(|level| level.kind == LevelKind::GpuMemory).unwrap().clone();
    assert_eq!((gpu(&present).acted, gpu(&present).peak), (Duration::ZERO, (80.0, 90.0)));
    assert!((20..32).contains(&gpu(&given).acted.as_secs()), "{:?}: 20 s and the recovery", gpu(&given).acted);
    let [high, low] = [&given.classes[0], &given.classes[1]];
    assert_eq!((high.offered, high.refused, high.refused_when_played), (600, 0, 0.0), "a reserved lane");
    assert_eq!((low.offered, low.refused), (600, 300));
    assert!((190.0..330.0).contains(&low.refused_when_played), "{low:?}");
    assert_eq!(present.classes[1].refused_when_played, 0.0);
    assert_eq!(play(&frames, &policy(70)), given, "the same every time");
}

#[test]
fn the_answer_pairs_classes_by_name_and_says_what_it_cannot_know() {
    let frames = tape().frames();
    let mut other = policy(70);
    other.spec.as_mut().unwrap().classes[1].name = "batch".to_owned();
    let answer = answer(&other, &play(&frames, &other), &policy(90), &play(&frames, &policy(90)));
    let classes: Vec<_> = answer.classes.iter().map(|class| (class.class.as_str(), class.offered)).collect();
    assert_eq!(classes, [("high", 600), ("batch", 0), ("low", 600)]);
    assert_eq!((answer.classes[1].refused_in_force, answer.classes[2].refused_by_policy), (None, None));
    let notes = answer.notes.join("\n");
    assert!(notes.contains("class \"low\" exists no more: its 600 requests") && notes.contains("class \"batch\" is new"), "{notes}");
}

#[test]
fn the_tape_is_bounded_and_begins_with_what_was_learned() {
    let tape = Tape::default();
    let (mut ms, mut learned_times) = (0, 0);
    while ms <= 600_000 {
        tape.record(frame(ms), || {
            learned_times += 1;
            learned()
        });
        ms += 200;
    }
    let frames = tape.frames();
    assert_eq!(learned_times, 21, "every half minute");
    assert!(frames[0].learned.is_some());
    let window = frames.last().unwrap().at.since(frames[0].at);
    assert!((150..=180).contains(&window.as_secs()), "{window:?}");
    tape.clear();
    assert!(tape.frames().is_empty());
    assert_eq!(play(&[], &policy(70)), Course::default());
}
