//! No signal makes the state senseless, and nothing stays so.

use core::time::Duration;

use proptest::prelude::*;

use super::super::plant::policy;
use super::super::{EngineSample, FitSums, Flow, Level, OverloadController, OverloadSignals, OverloadState, Work};
use crate::policy::ClassId;
use crate::time::Timestamp;

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1_u64..1000, 1_u64..10_000_000, Just(u64::MAX), any::<u64>()]
}

fn any_real() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1e6, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(1e300)]
}

fn any_work() -> impl Strategy<Value = Work> {
    (any_count(), any_count(), any_count()).prop_map(|(prefill_tokens, kv_tokens, streams)| Work { prefill_tokens, kv_tokens, streams })
}

prop_compose! {
    fn any_flow()(
        (in_flight, admitted, finished) in (any_work(), any_work(), any_work()),
        levels in proptest::collection::vec((0_usize..8, 0_u8..128, any_count()), 0..6),
        (queued_requests, queued_work, wait_ms) in (any_count(), any_count(), 0_u64..100_000),
        times in proptest::collection::vec((any_count(), any_count(), any_count()), 0..12),
        (count, x, y, xx, xy) in (any_real(), any_real(), any_real(), any_real(), any_real()),
        (output_tokens, responses, retries, offered_requests, engine_refusals) in (any_count(), any_count(), any_count(), any_count(), any_count()),
    ) -> Flow {
        let mut flow = Flow {
            in_flight, admitted, finished, queued_requests, queued_work, output_tokens, responses, retries, offered_requests, engine_refusals,
            oldest_wait: Duration::from_millis(wait_ms),
            ttft_fit: FitSums { count, x, y, xx, xy },
            ..Flow::default()
        };
        for (class, cohort, work) in levels {
            flow.offered.record(Level::new(ClassId::new(class), cohort), work);
        }
        for (wait, ttft, tpot) in times {
            flow.queue_wait_us.record(wait);
            flow.service_ttft_us.record(ttft);
            flow.tpot_us.record(tpot);
        }
        flow
    }
}

prop_compose! {
    fn any_sample()(
        at in 0_u64..10_000,
        (epoch, kv_used_tokens, kv_total_tokens, running) in (any_count(), any_count(), any_count(), any_count()),
        (waiting, preemptions, output_tokens, engines) in (any_count(), any_count(), any_count(), any::<u32>()),
        kv_fullest in any_real(),
        tpot_us in proptest::option::of(any_count()),
    ) -> EngineSample {
        let at = Timestamp::from_millis(at);
        let tpot_p95 = tpot_us.map(Duration::from_micros);
        let cumulative = EngineSample { preemptions, output_tokens, engines, tpot_p95, ..EngineSample::default() };
        EngineSample { at, epoch, kv_used_tokens, kv_total_tokens, kv_fullest, running, waiting, ..cumulative }
    }
}

fn check(state: &OverloadState) {
    let sane = |value: f64| value.is_finite() && value >= 0.0;
    let budgets = [state.budgets, state.safe_budgets];
    for bound in budgets.iter().flat_map(|budgets| [budgets.prefill_tokens, budgets.kv_tokens, budgets.streams]) {
        assert_ne!(bound, Some(0), "{state:?}");
    }
    assert!(state.cut_off.level <= 1024 && (0.0..=1.0).contains(&state.cut_off.fraction), "{:?}", state.cut_off);
    assert!(sane(state.saturation.value) && state.saturation.terms.iter().all(|term| sane(term.1)), "{:?}", state.saturation);
    assert!((0.0..=1.0).contains(&state.saturation.confidence) && (0.0..=1.0).contains(&state.retry_ratio), "{state:?}");
    assert!(sane(state.drain_work_per_s) && sane(state.output_tokens) && sane(state.prompt_factor), "{state:?}");
    assert!(state.floors_work_per_s.iter().all(|floor| sane(*floor)), "{state:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_signal_makes_a_budget_zero_or_a_number_senseless(
        steps in proptest::collection::vec((1_u64..3000, 0_u64..3, any_flow(), proptest::option::of(any_sample()), any_real()), 1..20),
    ) {
        let policy = policy();
        let mut controller = OverloadController::new(Timestamp::ZERO, &policy);
        let mut now = Timestamp::ZERO;
        for (wait_ms, series, flow, engine, level_pressure) in steps {
            now = now + Duration::from_millis(wait_ms);
            check(controller.step(now, &OverloadSignals { series, flow: &flow, engine, level_pressure }));
        }
    }

    #[test]
    fn after_any_signals_an_idle_pool_lets_everything_pass_again(
        steps in proptest::collection::vec((any_flow(), proptest::option::of(any_sample())), 1..10),
    ) {
        let policy = policy();
        let mut controller = OverloadController::new(Timestamp::ZERO, &policy);
        let mut now = Timestamp::ZERO;
        for (flow, engine) in steps {
            now = now + Duration::from_millis(100);
            controller.step(now, &OverloadSignals { series: 1, flow: &flow, engine, level_pressure: 0.0 });
        }
        // A minute of an idle pool of a new series: nothing is in flight, nothing waits, nothing is offered.
        for _ in 0..600 {
            now = now + Duration::from_millis(100);
            controller.step(now, &OverloadSignals { series: 9, flow: &Flow::default(), engine: None, level_pressure: 0.0 });
        }
        let state = controller.state();
        prop_assert!(state.cut_off.is_none(), "{:?}", state);
        prop_assert!(state.budgets.kv_tokens.is_none());
        prop_assert!(state.budgets.prefill_tokens.is_none_or(|bound| bound >= 1000), "{:?}", state.budgets);
    }
}
