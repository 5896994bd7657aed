//! The engine against what can be computed by hand, and its books under arbitrary use.

use proptest::prelude::*;

use super::*;

const TINY: LlmConfig = LlmConfig {
    kv_blocks: 100,
    max_sequences: 8,
    step_tokens: 64,
    max_queue: 1000,
    base_s: 0.010,
    per_sequence_s: 0.001,
    per_prefill_token_s: 0.0001,
    per_kv_token_s: 0.0,
};

/// Runs the engine until it is idle; the outputs with their times in milliseconds.
fn run(engine: &mut Engine) -> Vec<(f64, Output)> {
    let mut now = Timestamp::ZERO;
    let mut outputs = Vec::new();
    while let Some(at) = engine.next_at(now) {
        let mut step = Vec::new();
        now = at;
        engine.advance(now, &mut step);
        engine.check().unwrap();
        outputs.extend(step.into_iter().map(|output| (now.as_nanos() as f64 / 1e6, output)));
    }
    outputs
}

#[test]
fn a_lone_request_takes_its_prefill_and_a_step_a_token() {
    let mut engine = Engine::new(&EngineConfig::Llm(TINY), 0);
    engine.submit(Timestamp::ZERO, RequestId(1), 100, 3).unwrap();
    let outputs = run(&mut engine);
    // 64 and 36 prompt tokens: 16.4 + 13.6 ms; then two steps of 11 ms.
    assert_eq!(outputs, [(30.0, Output::FirstToken(RequestId(1))), (52.0, Output::Done(RequestId(1)))]);
    assert_eq!(engine.kv_used_tokens(), 0);
}

#[test]
fn a_full_cache_preempts_the_newest_and_computes_it_again() {
    let mut engine = Engine::new(&EngineConfig::Llm(LlmConfig { kv_blocks: 8, ..TINY }), 0);
    engine.submit(Timestamp::ZERO, RequestId(1), 48, 40).unwrap();
    engine.submit(Timestamp::ZERO, RequestId(2), 48, 40).unwrap();
    let outputs = run(&mut engine);
    let done: Vec<Output> = outputs.iter().map(|(_, output)| *output).filter(|output| matches!(output, Output::Done(_))).collect();
    assert_eq!(done, [Output::Done(RequestId(1)), Output::Done(RequestId(2))]);
    assert!(engine.counters().preemptions >= 1);
    assert!(engine.counters().prefill_tokens > 96, "the second is computed again");
    assert_eq!(engine.counters().output_tokens, 80);
}

#[test]
fn a_plain_server_serves_as_many_at_once_as_it_may() {
    let config = PlainConfig { concurrency: 2, max_queue: 1, service: Duration::from_millis(10), sigma: 0.0, per_token_s: 0.0 };
    let mut engine = Engine::new(&EngineConfig::Plain(config), 0);
    for id in 0..3 {
        assert!(engine.submit(Timestamp::ZERO, RequestId(id), 1, 1).is_some());
    }
    assert!(engine.submit(Timestamp::ZERO, RequestId(3), 1, 1).is_none(), "the queue is full");
    let times: Vec<f64> = run(&mut engine).iter().filter(|(_, output)| matches!(output, Output::Done(_))).map(|(at, _)| *at).collect();
    assert_eq!(times, [10.0, 10.0, 20.0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_books_add_up_whatever_arrives_and_leaves(
        blocks in 4_u32..40,
        actions in proptest::collection::vec((0_u8..4, 1_u32..60, 1_u32..60, any::<proptest::sample::Index>()), 1..80),
    ) {
        let mut engine = Engine::new(&EngineConfig::Llm(LlmConfig { kv_blocks: blocks, ..TINY }), 0);
        let mut now = Timestamp::ZERO;
        let mut live: Vec<(RequestId, Slot)> = Vec::new();
        let (mut accepted, mut over) = (0, 0);
        for (number, (action, prompt, output, which)) in actions.into_iter().enumerate() {
            if action == 0 {
                let id = RequestId(number as u32);
                if let Some(slot) = engine.submit(now, id, prompt, output) {
                    live.push((id, slot));
                    accepted += 1;
                }
            } else if action == 1 && !live.is_empty() {
                let (_, slot) = live.swap_remove(which.index(live.len()));
                engine.abort(now, slot);
                over += 1;
            } else if let Some(at) = engine.next_at(now) {
                now = at;
                let mut outputs = Vec::new();
                engine.advance(now, &mut outputs);
                for output in outputs {
                    if let Output::Done(id) = output {
                        live.retain(|(other, _)| *other != id);
                        over += 1;
                    }
                }
            }
            engine.check().map_err(TestCaseError::fail)?;
            prop_assert!(engine.kv_used_tokens() <= engine.kv_total_tokens());
        }
        prop_assert_eq!(live.len() as u32, engine.outstanding());
        let rest = run_from(&mut engine, now);
        prop_assert_eq!(accepted, over + rest);
        prop_assert_eq!((engine.kv_used_tokens(), engine.prefill_backlog()), (0, 0));
    }
}

/// Runs until idle; how many ended.
fn run_from(engine: &mut Engine, mut now: Timestamp) -> usize {
    let mut outputs = Vec::new();
    while let Some(at) = engine.next_at(now) {
        now = at;
        engine.advance(now, &mut outputs);
    }
    outputs.iter().filter(|output| matches!(output, Output::Done(_))).count()
}
