//! Parts of the controller by their properties.

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use headgate_protos::v1;
use proptest::prelude::*;

use super::super::credit::Credit;
use super::super::fuser::Fuser;
use super::super::headroom::Headroom;
use super::super::ladder::Ladder;
use super::super::plant::policy;
use super::super::ramp::{SlowStart, Smooth};
use super::super::shed::cut;
use super::super::{Budgets, CutOff, EngineSample, FitSums, Flow, Level, OfferedLevels, OverloadController, RungState, Term, Work};
use crate::policy::{ClassId, Fusion, RungConfig, RungKind};
use crate::time::Timestamp;

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn tokens(prefill_tokens: u64) -> Work {
    Work { prefill_tokens, kv_tokens: 2 * prefill_tokens, streams: prefill_tokens / 100 }
}

proptest! {
    /// Readings come late, twice and out of order: the credit is always what was admitted after the newest time of any reading so far.
    #[test]
    fn credit_is_retired_exactly_once(
        admitted in proptest::collection::vec(0_u64..1000, 1..40),
        readings in proptest::collection::vec((0_usize..40, 0_usize..8, 1_u64..30), 0..40),
    ) {
        let mut credit = Credit::default();
        credit.record(at(0), Work::NONE, Work::NONE);
        let (mut sums, mut newest, mut epoch) = (vec![0_u64], 0_usize, 0_u64);
        for (tick, more) in admitted.iter().enumerate() {
            sums.push(sums[tick] + more);
            credit.record(at(100 * (tick as u64 + 1)), tokens(sums[tick + 1]), Work::NONE);
            for (_, late, number) in readings.iter().filter(|reading| reading.0 == tick) {
                let seen = (tick + 1).saturating_sub(*late);
                let is_new = credit.retire(&EngineSample { at: at(100 * seen as u64), epoch: *number, ..EngineSample::default() });
                prop_assert_eq!(is_new, *number > epoch);
                if *number > epoch {
                    epoch = *number;
                    newest = newest.max(seen);
                }
            }
            prop_assert_eq!(credit.outstanding(), tokens(sums[tick + 1]).minus(tokens(sums[newest])));
        }
    }

    /// What passes, floors included, is what was wanted, unless the floors alone are more or everything is less.
    #[test]
    fn the_cut_passes_what_is_wanted(
        offered in proptest::collection::vec((0_usize..1024, 1.0..1000.0_f64), 1..60),
        part in 0.0..1.2_f64,
        floors in proptest::collection::vec(0.0..200.0_f64, 0..8),
    ) {
        let mut rates = vec![0.0; 1024];
        for (level, rate) in &offered {
            rates[*level] += rate;
        }
        let total: f64 = rates.iter().sum();
        let cut = cut(&rates, part * total, &floors);
        let mut passed = 0.0;
        let mut guaranteed = 0.0;
        for (class, levels) in rates.chunks(128).enumerate() {
            let through = |index: usize, rate: f64| {
                let level = (class * 128 + index) as u16;
                if level < cut.level { rate } else if level == cut.level { cut.fraction * rate } else { 0.0 }
            };
            let sum: f64 = levels.iter().sum();
            let floor = floors.get(class).copied().unwrap_or(0.0).min(sum);
            guaranteed += floor;
            passed += levels.iter().enumerate().map(|(index, rate)| through(index, *rate)).sum::<f64>().max(floor);
        }
        let wanted = (part * total).clamp(guaranteed, total);
        prop_assert!((passed - wanted).abs() <= 1e-6 * total, "{} of {}, {:?}", passed, wanted, cut);
    }

    #[test]
    fn flows_and_budgets_survive_the_wire(levels in proptest::collection::btree_map(0_u16..1024, 1_u64..1_000_000, 0..40)) {
        let mut offered = OfferedLevels::default();
        for (level, work) in &levels {
            offered.record(Level::new(ClassId::new(usize::from(level / 128)), (level % 128) as u8), *work);
        }
        let (offered_level_deltas, offered_work) = offered.to_wire();
        let report = v1::OverloadReport { offered_level_deltas, offered_work, ..Default::default() };
        prop_assert_eq!(Flow::from_wire(&report).unwrap().offered, offered);
    }
}

#[test]
fn malformed_levels_are_refused() {
    let report = |deltas: &[u32], work: &[u64]| v1::OverloadReport {
        offered_level_deltas: deltas.to_vec(),
        offered_work: work.to_vec(),
        ..Default::default()
    };
    for wrong in [report(&[1], &[]), report(&[1024], &[1]), report(&[5, 0], &[1, 1]), report(&[u32::MAX, u32::MAX], &[1, 1])] {
        assert!(Flow::from_wire(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_part_of_a_budget_is_never_nothing_and_unbounded_stays_unbounded() {
    let budgets = Budgets { prefill_tokens: Some(1000), kv_tokens: None, streams: Some(3) };
    assert_eq!(budgets.part(0.125), Budgets { prefill_tokens: Some(125), kv_tokens: None, streams: Some(1) });
    assert_eq!(budgets.part(f64::NAN), Budgets { prefill_tokens: Some(1), kv_tokens: None, streams: Some(1) });
    assert_eq!(Budgets::from_wire(Some(&budgets.to_wire())), budgets);
}

#[test]
fn a_cut_admits_by_level_and_at_the_boundary_by_chance() {
    let cut_off = CutOff { level: 130, fraction: 0.25 };
    let level = |cohort| Level::new(ClassId::new(1), cohort);
    assert!(cut_off.admits(level(1), 0.9) && cut_off.admits(level(2), 0.2));
    assert!(!cut_off.admits(level(2), 0.3) && !cut_off.admits(level(3), 0.0));
    assert_eq!(CutOff::NONE.stricter(cut_off), cut_off);
}

#[test]
fn a_line_is_fitted_and_noise_is_not_believed() {
    let mut sums = FitSums::default();
    for x in 0..100 {
        sums.observe(f64::from(x), 5.0 + 2.0 * f64::from(x));
    }
    let line = sums.line(20.0).unwrap();
    assert!((line.slope - 2.0).abs() < 1e-9 && (line.intercept - 5.0).abs() < 1e-7);
    let mut alike = FitSums::default();
    for x in 0..100 {
        alike.observe(1000.0 + f64::from(x % 2), f64::from(x));
    }
    assert_eq!(alike.line(20.0), None, "all x are the same but for a thousandth");
}

fn rung(kind: RungKind, engage_at: f64) -> RungConfig {
    RungConfig { kind, engage_at, release_at: 0.8 * engage_at, hold: Duration::from_secs(1), classes: vec![ClassId::new(2)] }
}

#[test]
fn rungs_engage_in_order_release_in_reverse_and_pass_over_unavailable_ones() {
    use RungState::{Engaged as E, Released as R, Unavailable as U};
    let rungs = [rung(RungKind::Delay(Duration::from_secs(1)), 1.0), rung(RungKind::DropFeatures, 1.1), rung(RungKind::CacheFirst, 1.2)];
    let mut ladder = Ladder::new(&rungs);
    let mut states = Vec::new();
    let mut after = |ms: u64, saturation: f64| {
        ladder.step(at(ms), saturation, &mut states);
        states.clone()
    };
    assert_eq!(after(0, 0.9), [R, U, R]);
    assert_eq!(after(100, 2.0), [E, U, R], "one rung a turn");
    assert_eq!(after(200, 2.0), [E, U, E]);
    assert_eq!(after(300, 0.5), [E, U, E], "both hold for a second");
    assert_eq!(after(1150, 0.5), [E, U, E], "the first may, but the later one goes first");
    assert_eq!(after(1250, 0.9), [E, U, R], "0.9 is below 0.96 and above 0.8");
    assert_eq!(after(1350, 0.9), [E, U, R]);
    assert_eq!(after(1450, 0.7), [R, U, R]);
}

#[test]
fn evidence_halves_at_most_and_recovery_stops_short_of_what_was_too_much() {
    let mut headroom = Headroom::new();
    headroom.fall(at(0), 1.0);
    assert_eq!(headroom.part(), 0.5);
    headroom.fall(at(100), 1.0);
    assert_eq!(headroom.part(), 0.5, "the same event");
    for tick in 6..200 {
        headroom.recover(at(100 * tick), 100);
    }
    let part = headroom.part();
    assert!((0.97..0.995).contains(&part), "{part}");
}

#[test]
fn budgets_fall_at_once_and_grow_by_a_factor() {
    let mut smooth = Smooth::default();
    assert_eq!(smooth.step(Some(1000.0), 0.1), Some(1000));
    assert_eq!(smooth.step(Some(100.0), 0.1), Some(100));
    assert_eq!(smooth.step(Some(1000.0), 0.1), Some(141), "40 % a tick, and one");
    assert_eq!(smooth.step(Some(f64::NAN), 0.1), None);
    assert_eq!(smooth.step(Some(0.0), 0.1), Some(1));
}

#[test]
fn a_slow_start_ramps_to_all() {
    let mut start = SlowStart::default();
    assert_eq!(start.part(at(0)), 1.0);
    start.begin(at(0), 1.0);
    assert!((start.part(at(0)) - 0.3).abs() < 1e-9);
    assert!((start.part(at(1500)) - 0.65).abs() < 1e-9);
    assert_eq!(start.part(at(3000)), 1.0);
}

#[test]
fn a_slow_start_of_one_engine_of_four_leaves_the_others_their_part() {
    let mut start = SlowStart::default();
    start.begin(at(0), 0.25);
    assert!((start.part(at(0)) - (0.75 + 0.25 * 0.3)).abs() < 1e-9);
    assert_eq!(start.part(at(3000)), 1.0);
    start.begin(at(4000), f64::NAN);
    assert_eq!(start.part(at(4000)), 1.0, "nothing is cold");
}

proptest! {
    /// However often parts of a pool come back, budgets lie between those of a cold pool and all, and a new start warms nothing up.
    #[test]
    fn slow_starts_that_overlap_stay_within_bounds(starts in proptest::collection::vec((0_u64..4000, -1.0..2.0_f64), 1..20)) {
        let (mut start, mut now) = (SlowStart::default(), 0);
        for (pause, cold) in starts {
            now += pause;
            let before = start.part(at(now));
            start.begin(at(now), cold);
            let after = start.part(at(now));
            prop_assert!((0.3 - 1e-9..=1.0).contains(&after) && after <= before + 1e-9, "{before} {after}");
        }
        prop_assert_eq!(start.part(at(now + 3000)), 1.0);
    }
}

#[test]
fn fusion_keeps_the_binding_term_and_weighs_the_lasting_one_most() {
    let mut fuser = Fuser::new();
    let values = [0.2, 1.2, 0.0, f64::NAN, -3.0, 0.4, 0.1];
    let max = fuser.fuse(at(0), values, Fusion::Max);
    assert_eq!((max.value, max.binding), (1.2, Some(Term::Kv)));
    assert_eq!(max.term(Term::EngineQueue), 0.0);
    for tick in 1..100 {
        fuser.fuse(at(100 * tick), values, Fusion::Weighted);
    }
    let weighted = fuser.fuse(at(10_000), values, Fusion::Weighted);
    assert!((1.0..1.2).contains(&weighted.value), "{weighted:?}");
    assert_eq!(fuser.fuse(at(10_100), [0.0; 7], Fusion::Max).binding, None);
}

#[test]
fn a_blend_that_hovers_at_its_threshold_recalibrates_it() {
    let mut fuser = Fuser::new();
    // 0.9 is within a quarter of the threshold of 1 for longer than seven samples: confidence is low.
    for tick in 0..120 {
        fuser.fuse(at(100 * tick), [0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], Fusion::Weighted);
    }
    let after = fuser.fuse(at(12_000), [0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], Fusion::Weighted);
    assert!((after.value - 1.0).abs() < 1e-9, "the threshold is the 95th percentile, 0.9: {after:?}");
}

#[test]
fn the_state_of_one_proxy_is_its_share() {
    let policy = policy();
    let mut state = OverloadController::new(at(0), &policy).state().clone();
    state.budgets.streams = Some(100);
    state.safe_budgets.streams = Some(50);
    state.drain_work_per_s = 1000.0;
    state.rungs = vec![RungState::Released, RungState::Engaged];
    let wire = state.to_wire(0.25, 0.5);
    assert_eq!(wire.budgets.unwrap().streams, 25);
    assert_eq!(wire.safe_budgets.unwrap().streams, 25);
    assert_eq!((wire.drain_work_per_s, wire.cut_level), (250.0, 1024));
    assert_eq!(wire.rungs, [1]);
}

#[test]
fn a_cut_sheds_the_classes_above_it_wholly_and_one_in_part() {
    let cut = CutOff { level: 256 + 80, fraction: 0.5 };
    assert_eq!((cut.shed_part(0), cut.shed_part(1), cut.shed_part(3)), (0.0, 0.0, 1.0));
    assert!((cut.shed_part(2) - (1.0 - 80.5 / 128.0)).abs() < 1e-12);
    assert_eq!(CutOff::NONE.shed_part(7), 0.0);
    assert_eq!(CutOff { level: 0, fraction: 0.0 }.shed_part(0), 1.0);
}
