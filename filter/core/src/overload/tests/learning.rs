//! What the controller learns of a pool, one part at a time.

use super::super::aim::{AimInput, TpotAim};
use super::super::flow::EngineSample;
use super::super::kv::{KvBudget, KvInput};
use super::super::latency::Recent;
use super::super::means::Means;
use super::super::meter::{Demand, Tick};
use super::super::plant::policy;
use super::super::prefill::{PrefillBudget, PrefillInput};
use super::super::shed::{ShedInput, Shedder};
use super::super::streams::{StreamBudget, StreamInput};
use super::super::{CutOff, Flow, Level, OfferedLevels, OverloadController, OverloadSignals, Term, Work};
use crate::histogram::Histogram;
use crate::policy::ClassId;
use crate::time::Timestamp;

fn tick(number: u64) -> Tick {
    Tick::idle(Timestamp::from_millis(100 * number))
}

fn answered(number: u64, responses: u64, output_tokens: u64, streamed: u64) -> Tick {
    Tick { responses, output_tokens, streamed, admitted: Work { streams: responses, ..Work::NONE }, ..tick(number) }
}

#[test]
fn a_wrong_guess_of_the_output_is_gone_when_ten_times_as_many_have_answered() {
    let mut means = Means::presuming(256.0);
    (0..10).for_each(|number| means.observe(&answered(number, 100, 1600, 100)));
    assert!((means.output_tokens - (100.0 * 256.0 + 1000.0 * 16.0) / 1100.0).abs() < 1e-6, "{means:?}");
    assert_eq!(means.streamed, 1.0);
}

#[test]
fn a_mean_of_the_output_follows_a_change_within_its_memory() {
    let mut means = Means::presuming(256.0);
    (0..600).for_each(|number| means.observe(&answered(number, 10, 160, 10)));
    (600..1500).for_each(|number| means.observe(&answered(number, 10, 6400, 10)));
    assert!((600.0..640.0).contains(&means.output_tokens), "90 s after the change: {means:?}");
}

#[test]
fn answers_in_one_piece_are_known_for_such_at_once() {
    let mut means = Means::presuming(256.0);
    (0..2).for_each(|number| means.observe(&answered(number, 100, 100, 0)));
    assert!(means.streamed < 0.5, "{means:?}");
}

fn prefill_input() -> PrefillInput {
    PrefillInput {
        in_flight: 0.0,
        in_force: None,
        engines: 2.0,
        seconds_per_token: Some(1e-3),
        ttft_slo_s: 2.0,
        tpot_s: 0.05,
        running: 100.0,
        tpot_aim_s: 0.09,
        is_short: false,
    }
}

#[test]
fn a_token_takes_no_more_than_the_time_that_the_engines_had_for_it() {
    let mut budget = PrefillBudget::new();
    for number in 0..100 {
        let finished = Work { prefill_tokens: 4000, ..Work::NONE };
        budget.step(&Tick { finished, ..tick(number) }, &prefill_input());
    }
    // 40,000 tokens per second on two engines: at most 50 µs each, of which nine tenths are believed.
    let seconds = budget.seconds_per_token().unwrap();
    assert!((44e-6..46e-6).contains(&seconds), "{seconds}");
    assert!(budget.share(&prefill_input()) <= 0.91);
}

/// The budget after ticks in which two engines prefilled 40,000 tokens per second with `in_flight` tokens in flight.
fn prefilled(budget: &mut PrefillBudget, ticks: core::ops::Range<u64>, in_flight: f64, tpot_s: f64) -> f64 {
    let finished = Work { prefill_tokens: 4000, ..Work::NONE };
    let input = PrefillInput { in_flight, tpot_s, seconds_per_token: Some(40e-6), is_short: true, ..prefill_input() };
    ticks.for_each(|number| budget.step(&Tick { finished, ..tick(number) }, &input));
    budget.bound().unwrap()
}

#[test]
fn prompts_that_come_at_once_lower_the_budget_before_the_time_between_tokens_shows_them() {
    let mut budget = PrefillBudget::new();
    let before = prefilled(&mut budget, 0..100, 4000.0, 0.085);
    let with_as_many = prefilled(&mut budget.clone(), 100..105, 4000.0, 0.085);
    assert!(with_as_many > before, "below its aim it grows: {before} {with_as_many}");
    let with_more = prefilled(&mut budget, 100..105, 16_000.0, 0.085);
    assert!(with_more < 0.9 * before, "{before} {with_more}");
}

/// Steps that grow at once show late in a time between tokens that is streams over tokens per second: the short steps of a second made nearly
/// all of its tokens.
#[test]
fn a_budget_does_not_grow_while_steps_are_too_long_though_the_time_between_tokens_is_short_yet() {
    let mut budget = PrefillBudget::new();
    // Steps of 20 ms and 4 tokens in flight, then of 120 ms and 10,000: 20 ms and 40 µs for each of the 2,500 that a step computes.
    let before = prefilled(&mut budget, 0..100, 4.0, 0.02);
    let (mut tokens_per_s, mut bound) = (100.0 / 0.02, before);
    for number in 100..110 {
        tokens_per_s += 0.095 * (100.0 / 0.12 - tokens_per_s);
        assert!(100.0 / tokens_per_s < 0.06, "it does not show yet");
        bound = prefilled(&mut budget, number..number + 1, 10_000.0, 100.0 / tokens_per_s);
        assert!(bound < 1.01 * before, "{before} {bound} at {number}");
    }
    assert!(bound < 0.95 * before, "{before} {bound}");
}

#[test]
fn of_a_budget_that_fills_to_more_than_itself_as_much_less_is_handed_out() {
    let handed_out = |in_force| {
        let mut budget = PrefillBudget::new();
        let input = PrefillInput { in_flight: 4000.0, in_force, is_short: true, ..prefill_input() };
        (0..100).for_each(|number| budget.step(&tick(number), &input));
        budget.bound().unwrap()
    };
    let part = handed_out(Some(3200.0)) / handed_out(None);
    assert!((part - 3200.0 / 4000.0).abs() < 1e-6, "{part}");
}

#[test]
fn tokens_that_come_too_slowly_lower_the_budget_to_a_few_prompts() {
    let mut budget = PrefillBudget::new();
    assert_eq!(prefilled(&mut budget, 0..300, 4000.0, 0.25), 512.0, "256 tokens an engine");
}

fn stream_input(sample: EngineSample) -> StreamInput {
    StreamInput {
        in_flight: 220.0,
        decoding: 100.0,
        engines: 2.0,
        engine: Some(sample),
        standing_s: 0.0,
        admitted_rate: 400.0,
        gaps_part: 0.5,
        tpot_aim_s: 0.09,
        is_streaming: true,
        ended_tpot_s: None,
        prefill_share: 0.0,
        prefill_per_stream_s: 0.0,
        hungry: false,
        refused: 0.0,
        has_excess_prompts: false,
        futile: false,
    }
}

/// A reading every 100 ms of engines that make 4,000 tokens a second.
fn reading(number: u64, waiting: u64) -> EngineSample {
    let at = Timestamp::from_millis(100 * number);
    EngineSample { at, epoch: number, running: 200, waiting, output_tokens: 1 + 400 * number, engines: 2, ..EngineSample::default() }
}

#[test]
fn first_tokens_are_no_gaps() {
    let mut budget = StreamBudget::new();
    (1..100).for_each(|number| budget.step(&tick(number), &stream_input(reading(number, 0))));
    // 100 streams decode; of 4,000 tokens a second 2,000 come after another one.
    assert!((budget.tpot_s() - 0.05).abs() < 1e-3, "{}", budget.tpot_s());
}

#[test]
fn those_that_come_during_a_step_are_no_queue() {
    let bound = |waiting: u64| {
        let mut budget = StreamBudget::new();
        (1..100).for_each(|number| budget.step(&tick(number), &stream_input(reading(number, waiting))));
        budget.bound().unwrap()
    };
    let unqueued = bound(0);
    assert_eq!(bound(18), unqueued, "400 requests per second, 50 ms a step: 20 wait for the next one");
    assert!(bound(100) < unqueued);
}

#[test]
fn prompts_beyond_their_own_budget_are_no_queue_that_streams_made() {
    let bound = |has_excess_prompts: bool| {
        let mut budget = StreamBudget::new();
        let input = |number| StreamInput { has_excess_prompts, ..stream_input(reading(number, 100)) };
        (1..100).for_each(|number| budget.step(&tick(number), &input(number)));
        budget.bound().unwrap()
    };
    assert!(bound(false) <= 220.0 - 100.0 + 20.0 && bound(true) > 150.0, "{} {}", bound(false), bound(true));
}

/// Reserved tokens that the KV budget allows with a cache that is 95 % full, when that many are in flight as far as is known.
fn kv_bound(reserved: f64) -> f64 {
    let mut budget = KvBudget::new();
    let sample = EngineSample { kv_used_tokens: 95_000, kv_total_tokens: 100_000, kv_fullest: 0.95, ..reading(1, 0) };
    let input = KvInput { reserved_then: reserved, reserved_now: reserved, credit: 0.0, streams: 100, target: 0.9, hungry: false };
    budget.step(&tick(1), &sample, true, &input);
    budget.bound().unwrap()
}

#[test]
fn a_full_cache_of_which_next_to_nothing_is_reported_does_not_shut_everybody_out() {
    assert!((kv_bound(100_000.0) - 90_000.0).abs() < 6000.0, "all is known: {}", kv_bound(100_000.0));
    assert!(kv_bound(50.0) >= 80_000.0, "proxies were cut off and begin to report: {}", kv_bound(50.0));
}

/// What is known at steps of 60 ms, while work waits.
fn aim_input(slowest: f64) -> AimInput {
    AimInput { slo_s: 0.1, slowest, step_s: 0.06, is_short: true }
}

/// The aim after `seconds`, in each of which 100 responses end: three take `slowest_ms` between tokens, the others 60.
fn aim(aim: &mut TpotAim, from_s: u64, seconds: u64, slowest_ms: u64, input: AimInput) -> f64 {
    let (mut ended, mut all) = (Recent::default(), Histogram::new());
    for number in 10 * from_s..10 * (from_s + seconds) {
        (0..10).for_each(|n| all.record(if number % 10 == 0 && n < 3 { 1000 * slowest_ms } else { 60_000 }));
        ended.observe(Timestamp::from_millis(100 * number), &all);
        aim.follow(&tick(number), &ended, &input);
    }
    aim.seconds()
}

#[test]
fn the_aim_leaves_the_distance_of_the_slowest_responses_from_the_mean_and_forgets_it_slowly() {
    let mut of = TpotAim::new(0.1);
    assert!((of.seconds() - 0.088).abs() < 1e-9);
    let wide = aim(&mut of, 0, 20, 80, aim_input(1.0));
    assert!((0.079..0.083).contains(&wide), "100 ms less 20, the mean being a little above 60: {wide}");
    let after = aim(&mut of, 20, 3, 60, aim_input(1.0));
    assert!(after - wide < 0.008, "one second without a slow response proves little: {after}");
    assert!(aim(&mut of, 23, 60, 60, aim_input(1.0)) > 0.087);
}

#[test]
fn responses_from_before_a_step_of_the_load_and_from_before_an_idle_time_are_not_taken_for_ones_that_differ() {
    let after_step = AimInput { step_s: 0.09, ..aim_input(1.0) };
    assert!(aim(&mut TpotAim::new(0.1), 0, 20, 95, after_step) > 0.087, "the slowest are as the steps are now");
    let idle = AimInput { is_short: false, ..aim_input(1.0) };
    assert!(aim(&mut TpotAim::new(0.1), 0, 20, 95, idle) > 0.087);
}

#[test]
fn only_a_slower_engine_lowers_the_aim_below_two_thirds() {
    let lowest = |slowest_engine| aim(&mut TpotAim::new(0.1), 0, 20, 130, aim_input(slowest_engine));
    assert!((lowest(1.0) - 0.065).abs() < 1e-9 && lowest(2.0) < 0.04, "{} {}", lowest(1.0), lowest(2.0));
}

#[test]
fn a_cut_off_before_a_pool_that_has_room_opens_again() {
    let (mut shedder, mut demand, mut offered) = (Shedder::new(), Demand::new(), OfferedLevels::default());
    let mut step = |number: u64, admitted: f64, queued: f64, part: f64| {
        offered.record(Level::new(ClassId::new(1), 0), 30_000);
        let tick = Tick { finished: Work { prefill_tokens: admitted as u64, kv_tokens: admitted as u64, streams: 1 }, ..tick(number) };
        demand.observe(tick.seconds, &offered);
        let input = ShedInput {
            admitted_work: admitted,
            finished_work: admitted,
            queued_work: queued,
            room_work: 0.0,
            request_work: 300.0,
            queues: true,
            part,
            ttft_slo_s: 0.5,
            floors: &[],
        };
        shedder.step(&tick, &demand, &input)
    };
    // 300,000 work tokens per second for a pool that does 100,000; then little is admitted for a second while a few wait.
    (0..100).for_each(|number| _ = step(number, 10_000.0, 30_000.0, 1.0));
    (100..110).for_each(|number| _ = step(number, 500.0, 300.0, 0.3));
    let mut cut_off = CutOff::NONE;
    (110..140).for_each(|number| cut_off = step(number, 3000.0, 0.0, 0.4));
    assert!(cut_off.fraction > 0.3, "at least what the pool has kept up passes: {cut_off:?}");
}

#[test]
fn the_engines_time_between_tokens_counts_where_the_filters_see_none() {
    let mut controller = OverloadController::new(Timestamp::ZERO, &policy());
    let slo = policy().overload().unwrap().tpot_slo;
    let mut flow = Flow { in_flight: Work { prefill_tokens: 0, kv_tokens: 100, streams: 2 }, ..Flow::default() };
    let mut term = |tick: u64, flow: &Flow, tpot_p95| {
        let engine = Some(EngineSample { tpot_p95, ..reading(tick, 0) });
        let signals = OverloadSignals { series: 1, flow, engine, level_pressure: 0.0 };
        let state = controller.step(Timestamp::from_millis(100 * tick), &signals);
        (state.saturation.term(Term::Tpot), state.tpot_is_engines)
    };
    term(1, &flow, None);
    assert_eq!(term(2, &flow, None), (0.0, true), "nobody tells");
    assert_eq!(term(3, &flow, Some(slo * 2)), (2.0, true));
    for _ in 0..20 {
        flow.tpot_us.record((slo / 2).as_micros() as u64);
    }
    let (seen, is_engines) = term(4, &flow, Some(slo * 2));
    assert!((seen - 0.5).abs() < 0.01 && !is_engines, "what the filters see comes first: {seen}");
}
