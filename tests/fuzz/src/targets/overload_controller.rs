//! The overload controller, whose signals come from programs that we do not control.

use std::time::Duration;

use headgate_core::overload::{EngineSample, Flow, LEVELS, OverloadController, OverloadSignals, OverloadState, RungState};
use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;
use headgate_protos::v1;

use super::build;
use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 80;

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let mut now = Timestamp::from_millis(1);
    let mut controller = OverloadController::new(now, &policy(&mut source));
    let mut flow = Flow::default();
    let mut series = 1;
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        now = now + if source.is_so(200) { Duration::from_millis(100) } else { source.span() };
        match source.below(24) {
            0 => controller.begin_slow_start(now, source.float()),
            1 => controller.set_policy(now, &policy(&mut source)),
            2 => series = source.number(),
            3 => flow = Flow::from_wire(&build::overload_report(&mut source)).unwrap_or_default(),
            4 => flow = Flow::default(),
            _ => work(&mut flow, &mut source),
        }
        let engine = source.is_so(160).then(|| sample(&mut source, now));
        let level_pressure = if source.is_so(40) { source.float() } else { 0.0 };
        let state = controller.step(now, &OverloadSignals { series, flow: &flow, engine, level_pressure });
        check(state, &mut source, marks);
    }
}

/// A valid policy with overload control.
fn policy(source: &mut Source<'_>) -> Policy {
    let mut wire = build::policy(source, "demo", "llm");
    if let Some(spec) = &mut wire.spec {
        spec.overload.get_or_insert_default();
    }
    let plain = || {
        let class = v1::PriorityClass { name: "all".to_owned(), when_tripped: v1::WhenTripped::Refuse.into(), ..Default::default() };
        let spec =
            v1::PolicySpec { pool: "llm".to_owned(), classes: vec![class], overload: Some(v1::Overload::default()), ..Default::default() };
        Policy::try_from_wire(&v1::Policy { name: "demo".to_owned(), spec: Some(spec), ..Default::default() }).expect("it is valid")
    };
    Policy::try_from_wire(&wire).unwrap_or_else(|_| plain())
}

/// A little more of everything, as sane workers would report it.
fn work(flow: &mut Flow, source: &mut Source<'_>) {
    let more = build::overload_report(&mut Source::new(&[source.byte(), source.byte(), source.byte(), source.byte()]));
    if let Ok(more) = Flow::from_wire(&more) {
        flow.add(&more);
    }
    let streams = source.number() % 1000;
    flow.in_flight.streams = streams;
    flow.in_flight.kv_tokens = streams * (source.number() % 5000);
    flow.in_flight.prefill_tokens = source.number() % 100_000;
    flow.admitted.kv_tokens = flow.admitted.kv_tokens.saturating_add(source.number() % 100_000);
    flow.admitted.streams = flow.admitted.streams.saturating_add(source.number() % 100);
    flow.finished.kv_tokens = flow.finished.kv_tokens.saturating_add(source.number() % 100_000);
    flow.output_tokens = flow.output_tokens.saturating_add(source.number() % 10_000);
    flow.service_ttft_us.record(source.number() % 10_000_000);
    flow.tpot_us.record(source.number() % 1_000_000);
    flow.ttft_fit.observe(source.float(), source.float());
    flow.queued_requests = source.number() % 500;
    flow.queued_work = flow.queued_requests * 1000;
    flow.oldest_wait = source.span();
}

fn sample(source: &mut Source<'_>, at: Timestamp) -> EngineSample {
    let is_wild = source.is_so(24);
    let mut number = |below: u64| if is_wild { source.number() } else { source.number() % below };
    let (epoch, used, total) = (number(100), number(1_000_000), number(1_000_001));
    let (running, waiting, preemptions, output_tokens) = (number(1000), number(1000), number(1000), number(1 << 40));
    EngineSample {
        at,
        epoch,
        kv_used_tokens: used,
        kv_total_tokens: total,
        kv_fullest: source.float(),
        running,
        waiting,
        preemptions,
        output_tokens,
        engines: source.number32() % 9,
        tpot_p95: source.is_so(64).then(|| source.span()),
        slowest: source.float(),
    }
}

fn check(state: &OverloadState, source: &mut Source<'_>, marks: &mut Marks) {
    for budgets in [&state.budgets, &state.safe_budgets] {
        let bounds = [budgets.prefill_tokens, budgets.kv_tokens, budgets.streams];
        assert!(bounds.into_iter().all(|bound| bound != Some(0)), "a budget that admits nothing: {budgets:?}");
    }
    let saturation = &state.saturation;
    let terms = saturation.terms.iter().map(|(_, value)| *value);
    assert!(terms.chain([saturation.value]).all(|value| value.is_finite() && value >= 0.0), "{saturation:?}");
    assert!((0.0..=1.0).contains(&saturation.confidence), "{saturation:?}");
    assert!(state.cut_off.level <= LEVELS && (0.0..=1.0).contains(&state.cut_off.fraction), "{:?}", state.cut_off);
    let share = f64::from(source.byte()) / 255.0;
    assert_wire(&state.to_wire(share, share / 2.0));
    marks.note((
        saturation.binding,
        state.cut_off.level / 64,
        state.rungs.iter().filter(|rung| **rung == RungState::Engaged).count(),
        state.budgets.kv_tokens.map(u64::checked_ilog2),
    ));
    marks.note((state.budgets.streams.map(u64::checked_ilog2), state.retry_ratio < 1.0, state.expected_ttft.as_secs().checked_ilog2()));
}

/// Everything in pushed limits is finite and in its range.
pub(super) fn assert_wire(limits: &v1::OverloadLimits) {
    let numbers = [limits.saturation, limits.drain_work_per_s, limits.expected_ttft_ms, limits.prompt_factor, limits.output_tokens];
    let floors = limits.floor_work_per_s.iter().copied();
    assert!(numbers.into_iter().chain(floors).all(|number| number.is_finite() && number >= 0.0), "{limits:?}");
    assert!((0.0..=1.0).contains(&limits.cut_fraction) && (0.0..=1.0).contains(&limits.retry_ratio), "{limits:?}");
    assert!(limits.cut_level <= u32::from(LEVELS) && limits.rungs.iter().all(|rung| *rung < 8), "{limits:?}");
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(800)
}
