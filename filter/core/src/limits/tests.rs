use super::*;
use crate::control::PoolController;
use crate::policy::fixture;

fn wire(action: v1::ClassAction, rate_rps: f64, safe_rps: f64) -> v1::Limits {
    v1::Limits {
        pool: "llm".into(),
        epoch: 7,
        ttl_ms: 1000,
        decay_ms: 4000,
        levels: alloc::vec![v1::LevelStatus { kind: v1::LevelKind::GpuMemory.into(), value: 81.0, threshold: 75.0, ..Default::default() }],
        classes: alloc::vec![v1::ClassLimit {
            class: "low".into(),
            action: action.into(),
            rate_rps,
            burst: rate_rps,
            drain_rps: 8.0,
            safe_rps,
            because: v1::LevelKind::GpuMemory.into(),
        }],
        ..Default::default()
    }
}

/// What is in force for `low` with `share` of the proxy's rates, `age_ms` after the limits came; the worker's own levels admit.
fn at(wire: &v1::Limits, age_ms: u64, share: f64) -> InForce {
    let policy = fixture::policy(|_| {});
    let local = PoolController::new(Timestamp::ZERO, &policy);
    in_force(Some(&HeldLimits::new(Timestamp::ZERO, wire)), local.state(), "low", Timestamp::from_millis(age_ms), share)
}

#[test]
fn limits_hold_for_their_time_and_are_shared_out() {
    let limits = wire(v1::ClassAction::Throttle, 20.0, 4.0);
    let in_force = at(&limits, 999, 0.25);
    assert_eq!(in_force.action, ClassAction::Throttle { rate_rps: 5.0, burst: 5.0 });
    assert_eq!(in_force.cause, Cause { reason: Reason::GpuMemory, value: 81.0, threshold: 75.0, term: None, source: Source::ControlPlane });
    assert_eq!(in_force.drain_rps, 2.0);
    assert_eq!(at(&limits, 999, 0.001).action, ClassAction::Throttle { rate_rps: 0.02, burst: 1.0 }, "a bucket holds one request");
}

#[test]
fn rates_decay_on_a_straight_line_to_the_safe_rate() {
    let limits = wire(v1::ClassAction::Throttle, 20.0, 4.0);
    for (age_ms, expected_rps) in [(1000, 20.0), (2000, 16.0), (3000, 12.0), (4000, 8.0)] {
        let ClassAction::Throttle { rate_rps, .. } = at(&limits, age_ms, 1.0).action else { panic!("not throttled") };
        assert!((rate_rps - expected_rps).abs() < 1e-9, "{rate_rps} after {age_ms} ms");
    }
}

#[test]
fn a_refusal_whose_limits_expire_ends() {
    let limits = wire(v1::ClassAction::Refuse, 0.0, 4.0);
    assert_eq!(at(&limits, 500, 1.0).action, ClassAction::Refuse);
    let ClassAction::Throttle { rate_rps, .. } = at(&limits, 3000, 1.0).action else { panic!("not throttled") };
    assert!((rate_rps - 2.0).abs() < 1e-9, "half of the safe rate in the middle of the decay");
    assert_eq!(at(&limits, 3000, 1.0).cause.source, Source::Decaying);
    assert_eq!(at(&limits, 5000, 1.0).action, ClassAction::Admit, "the worker's own levels have not tripped");
}

#[test]
fn a_class_that_the_limits_do_not_name_is_admitted() {
    let mut limits = wire(v1::ClassAction::Refuse, 0.0, 0.0);
    limits.classes[0].class = "other".into();
    assert_eq!(at(&limits, 0, 1.0).action, ClassAction::Admit);
}

#[test]
fn numbers_that_are_none_admit_nothing() {
    for number in [f64::NAN, f64::INFINITY, -1.0] {
        let ClassAction::Throttle { rate_rps, .. } = at(&wire(v1::ClassAction::Throttle, number, number), 0, 1.0).action else { panic!() };
        assert_eq!(rate_rps, 0.0);
    }
}
