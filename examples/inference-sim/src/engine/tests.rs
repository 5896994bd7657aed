//! Tests of the engine.

use super::*;
use proptest::prelude::*;

fn nz(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

fn nzu(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).unwrap()
}

/// 16-token blocks, 10 ms steps, 10 000 prompt tokens/s, decode free of per-sequence cost unless a test sets it.
fn config(kv_blocks: u32) -> EngineConfig {
    EngineConfig {
        kv_blocks: nz(kv_blocks),
        block_tokens: nz(16),
        prefill_tokens_per_s: nz(10_000),
        decode_base: ms(10),
        decode_per_sequence: Duration::ZERO,
        step_tokens: nz(512),
        max_batch: nzu(256),
        max_queue: nzu(1000),
        max_model_tokens: nz(8192),
    }
}

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn ask(prompt_tokens: u32, output_tokens: u32) -> Submission {
    Submission { prompt_tokens, output_tokens, finish: FinishReason::Length }
}

fn submit(engine: &mut Engine, now: SimTime, submission: Submission) -> SequenceId {
    engine.step(now);
    let id = engine.submit(now, submission).unwrap();
    engine.step(now);
    id
}

/// Runs until nothing is left to do; everything that came out.
fn drain(engine: &mut Engine) -> Vec<Output> {
    let mut outputs = Vec::new();
    while let Some(at) = engine.next_step_at() {
        outputs.extend(engine.step(at));
    }
    outputs
}

/// No block is lost, held twice or held by a sequence that waits.
fn check_blocks(engine: &Engine) {
    let held: Vec<BlockId> = engine.running.iter().flat_map(|sequence| sequence.blocks.iter().copied()).collect();
    let distinct: std::collections::HashSet<BlockId> = held.iter().copied().collect();
    assert_eq!(distinct.len(), held.len(), "a block is held twice");
    assert_eq!(held.len() as u32, engine.pool.in_use(), "held blocks are those in use");
    assert!(engine.waiting.iter().all(|sequence| sequence.blocks.is_empty()), "who waits holds nothing");
    for sequence in &engine.running {
        assert!(
            engine.pool.blocks_for(sequence.computed + sequence.scheduled) <= sequence.blocks.len() as u32,
            "every cached token has a block"
        );
    }
}

#[test]
fn one_sequence_takes_a_prefill_and_a_step_per_token() {
    let mut engine = Engine::new(config(100));
    let id = submit(&mut engine, ms(5), ask(100, 3));
    let outputs = drain(&mut engine);
    // Prefill: 10 ms and 100 tokens at 10 per ms; then two decode steps of 10 ms.
    let expected = [(ms(25), None), (ms(35), None), (ms(45), Some(FinishReason::Length))];
    assert_eq!(outputs, expected.map(|(at, finish)| Output { id, at, tokens: 1, finish }));
    assert_eq!((engine.pool().in_use(), engine.stats().prompt_tokens, engine.stats().generation_tokens), (0, 100, 3));
}

#[test]
fn a_decode_step_grows_with_the_batch() {
    let step_for = |sequences: usize| {
        let mut engine = Engine::new(EngineConfig { decode_per_sequence: ms(1), ..config(1000) });
        for _ in 0..sequences {
            engine.submit(ms(0), ask(1, 3)).unwrap();
        }
        let outputs = drain(&mut engine);
        let times: Vec<SimTime> = outputs.iter().step_by(sequences).map(|output| output.at).collect();
        times[2] - times[1]
    };
    assert_eq!((step_for(1), step_for(20)), (ms(11), ms(30)), "10 ms and 1 ms per sequence");
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_beside_running_decodes() {
    let mut engine = Engine::new(EngineConfig { step_tokens: nz(64), ..config(1000) });
    let short = submit(&mut engine, ms(0), ask(1, 100));
    engine.step(ms(100));
    let long = submit(&mut engine, ms(100), ask(630, 1));
    let outputs = drain(&mut engine);
    let done = outputs.iter().position(|output| output.id == long).unwrap();
    // 64 tokens per step, one of them for the decode: 630 / 63 = 10 steps, and each gives `short` a token.
    assert_eq!(outputs[..done].iter().filter(|output| output.id == short && output.at > ms(111)).count(), 10);
}

#[test]
fn the_batch_never_exceeds_its_limit_and_the_rest_waits_in_order() {
    let mut engine = Engine::new(EngineConfig { max_batch: nzu(2), ..config(1000) });
    let ids: Vec<_> = (0..5).map(|_| submit(&mut engine, ms(0), ask(10, 5))).collect();
    engine.step(ms(11));
    assert_eq!((engine.running(), engine.waiting()), (2, 3), "the step that starts when the first prefill ends admits one more");
    let ended: Vec<_> = drain(&mut engine).into_iter().filter(|output| output.finish.is_some()).map(|output| output.id).collect();
    assert_eq!(ended, ids, "first come, first served");
}

#[test]
fn a_full_queue_refuses_and_counts() {
    let mut engine = Engine::new(EngineConfig { max_batch: nzu(1), max_queue: nzu(2), ..config(1000) });
    for _ in 0..3 {
        submit(&mut engine, ms(0), ask(10, 5));
    }
    assert_eq!(engine.submit(ms(0), ask(10, 5)), Err(Rejected::QueueFull { waiting: 2 }));
    assert_eq!(engine.stats().rejections, 1);
}

#[test]
fn a_sequence_longer_than_the_whole_cache_is_refused() {
    let mut engine = Engine::new(config(4));
    assert_eq!(engine.submit(ms(0), ask(60, 5)), Err(Rejected::TooLong { requested: 65, limit: 64 }), "4 blocks of 16 tokens");
    assert!(engine.submit(ms(0), ask(60, 4)).is_ok());
}

#[test]
fn abort_frees_the_blocks_at_once_wherever_the_sequence_is() {
    let mut engine = Engine::new(EngineConfig { max_batch: nzu(1), ..config(100) });
    let running = submit(&mut engine, ms(0), ask(100, 50));
    let waiting = submit(&mut engine, ms(0), ask(100, 50));
    assert_eq!(engine.pool().in_use(), 7, "ceil(100 / 16)");
    assert!(engine.abort(waiting) && engine.abort(running));
    assert_eq!((engine.pool().in_use(), engine.running(), engine.waiting()), (0, 0, 0));
    assert!(!engine.abort(running), "gone");
    assert_eq!((drain(&mut engine), engine.stats().finished_abort), (vec![], 2));
}

#[test]
fn without_a_free_block_the_newest_is_preempted_and_finishes_later() {
    // Two sequences of 33 tokens need 3 blocks each; the pool has 5.
    let mut engine = Engine::new(config(5));
    let old = submit(&mut engine, ms(0), ask(30, 8));
    let new = submit(&mut engine, ms(0), ask(30, 8));
    let outputs = drain(&mut engine);
    assert_eq!(engine.stats().preemptions, 1);
    let ended: Vec<_> = outputs.iter().filter(|output| output.finish.is_some()).map(|output| output.id).collect();
    assert_eq!(ended, [old, new], "the older one keeps its place");
    let tokens = |id| outputs.iter().filter(|output| output.id == id).map(|output| output.tokens).sum::<u32>();
    assert_eq!((tokens(old), tokens(new)), (8, 8), "no token is lost or said twice");
    assert_eq!(engine.stats().prompt_tokens, 60, "recomputing does not count a prompt again");
}

#[test]
fn a_pooling_request_ends_with_its_prefill() {
    let mut engine = Engine::new(config(100));
    let id = submit(&mut engine, ms(0), Submission { output_tokens: 0, finish: FinishReason::Stop, ..ask(100, 0) });
    assert_eq!(drain(&mut engine), [Output { id, at: ms(20), tokens: 0, finish: Some(FinishReason::Stop) }]);
    assert_eq!(engine.stats().time_to_first_token.count(), 0, "it has no first token");
}

#[test]
fn an_idle_engine_starts_when_work_arrives() {
    let mut engine = Engine::new(config(100));
    submit(&mut engine, ms(0), ask(10, 1));
    drain(&mut engine);
    assert_eq!(engine.next_step_at(), None);
    submit(&mut engine, ms(5000), ask(10, 1));
    assert_eq!(engine.next_step_at(), Some(ms(5011)), "10 ms and 10 tokens at 10 per ms");
}

/// Open-loop load at a fixed interval; completions per second and the mean TTFT over the second half.
struct Measured {
    completions_per_s: f64,
    ttft: Duration,
    preemptions: u64,
}

fn measure(requests_per_s: u32, seconds: u32) -> Measured {
    // 60-token prompts that grow to 260: admission sees 4 blocks where 17 will be needed.
    let mut engine = Engine::new(EngineConfig { decode_per_sequence: Duration::from_micros(100), max_queue: nzu(100_000), ..config(400) });
    let interval = Duration::from_secs(1) / requests_per_s;
    let half = Duration::from_secs(u64::from(seconds) / 2);
    let (mut submitted_at, mut started, mut ended, mut ttft) = (std::collections::HashMap::new(), 0u32, 0u32, Duration::ZERO);
    for index in 0..requests_per_s * seconds {
        let now = interval * index;
        for output in engine.step(now).into_iter().filter(|output| output.at > half) {
            ended += u32::from(output.finish.is_some());
            if let Some(at) = submitted_at.remove(&output.id) {
                started += 1;
                ttft += output.at - at;
            }
        }
        submitted_at.insert(submit(&mut engine, now, ask(60, 200)), now);
    }
    Measured {
        completions_per_s: f64::from(ended) / half.as_secs_f64(),
        ttft: ttft / started.max(1),
        preemptions: engine.stats().preemptions,
    }
}

#[test]
fn past_the_kv_cliff_ttft_jumps_and_throughput_falls() {
    let (below, past) = (measure(9, 60), measure(30, 60));
    assert_eq!(below.preemptions, 0);
    assert!((8.9..=9.1).contains(&below.completions_per_s), "below capacity all that comes is served: {}", below.completions_per_s);
    assert!(past.preemptions > 100, "{}", past.preemptions);
    assert!(past.ttft > below.ttft * 50, "{:?} against {:?}", past.ttft, below.ttft);
    let best = measure(12, 60);
    // Computing preempted sequences again costs more than a tenth of what the engine can do.
    assert!(past.completions_per_s < 0.9 * best.completions_per_s, "{} against {}", past.completions_per_s, best.completions_per_s);
}

#[derive(Clone, Debug)]
enum Action {
    Submit { prompt: u32, output: u32 },
    Abort { which: usize },
    Wait { micros: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0u32..200, 0u32..80).prop_map(|(prompt, output)| Action::Submit { prompt, output }),
        1 => any::<usize>().prop_map(|which| Action::Abort { which }),
        3 => (0u64..60_000).prop_map(|micros| Action::Wait { micros }),
    ]
}

proptest! {
    #[test]
    fn blocks_are_conserved_and_every_request_ends_once(
        actions in proptest::collection::vec(action(), 1..120),
        kv_blocks in 1u32..60,
        max_batch in 1usize..12,
        step_tokens in 1u32..300,
    ) {
        let mut engine = Engine::new(EngineConfig { max_batch: nzu(max_batch), step_tokens: nz(step_tokens), max_queue: nzu(20), ..config(kv_blocks) });
        let (mut now, mut expected, mut got) = (SimTime::ZERO, std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
        for action in actions {
            let mut outputs = engine.step(now);
            match action {
                Action::Wait { micros } => now += Duration::from_micros(micros),
                Action::Submit { prompt, output } => {
                    if let Ok(id) = engine.submit(now, ask(prompt, output)) {
                        expected.insert(id, output);
                    }
                }
                Action::Abort { which } if !expected.is_empty() => {
                    let id = *expected.keys().nth(which % expected.len()).unwrap();
                    if engine.abort(id) {
                        expected.remove(&id);
                        got.remove(&id);
                    }
                }
                Action::Abort { .. } => {}
            }
            outputs.extend(engine.step(now));
            count(&outputs, &mut got);
            check_blocks(&engine);
            prop_assert!(engine.running() <= max_batch);
        }
        count(&drain(&mut engine), &mut got);
        prop_assert_eq!(engine.pool().in_use(), 0);
        let got: std::collections::BTreeMap<_, _> = got.into_iter().map(|(id, (tokens, ends))| { assert_eq!(ends, 1); (id, tokens) }).collect();
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn what_comes_out_does_not_depend_on_how_often_it_is_stepped(
        arrivals in proptest::collection::vec((0u64..50_000, 1u32..150, 1u32..40), 1..30),
        kv_blocks in 12u32..60,
        tick_micros in 500u64..200_000,
    ) {
        let run = |tick: Option<Duration>| {
            let mut engine = Engine::new(config(kv_blocks));
            let (mut now, mut outputs) = (SimTime::ZERO, Vec::new());
            for (gap, prompt, output) in &arrivals {
                let next = now + Duration::from_micros(*gap);
                while let Some(at) = tick.map(|tick| now + tick).filter(|at| *at < next) {
                    now = at;
                    outputs.extend(engine.step(now));
                }
                now = next;
                outputs.extend(engine.step(now));
                engine.submit(now, ask(*prompt, *output)).unwrap();
            }
            outputs.extend(drain(&mut engine));
            outputs
        };
        prop_assert_eq!(run(None), run(Some(Duration::from_micros(tick_micros))));
    }
}

type Counts = std::collections::BTreeMap<SequenceId, (u32, u32)>;

fn count(outputs: &[Output], got: &mut Counts) {
    for output in outputs {
        let entry = got.entry(output.id).or_default();
        entry.0 += output.tokens;
        entry.1 += u32::from(output.finish.is_some());
    }
}
