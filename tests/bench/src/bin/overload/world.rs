//! The scenario: one engine or a few, three classes, a load in multiples of what the engine can do; and the same as the simulator's world.
//!
//! The most important class asks for the same at every load, a quarter of the capacity: what grows in an overload is the rest.

use std::net::SocketAddr;
use std::time::Duration;

use headgate_sim::Setup;
use headgate_sim::engine::{EngineConfig, LlmConfig};
use headgate_sim::measure::work;
use headgate_sim::scenarios::{Judging, Scenario};
use headgate_sim::setup::{ClassSpec, Patience, Retries, TraceRow};
use headgate_test_support::load::{Arrivals, Plan, Template, Traffic};
use serde_json::json;

/// Objective of the time to first token, as in the policy.
pub(crate) const TTFT_SLO: Duration = Duration::from_millis(1000);
/// Objective of the mean time between tokens, as in the policy.
pub(crate) const TPOT_SLO: Duration = Duration::from_millis(100);
/// Load before anything is judged: everything fills up.
pub(crate) const WARM_UP: Duration = Duration::from_secs(4);
/// Time without a token after which a client gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest that a request may take altogether.
const LONGEST: Duration = Duration::from_secs(15);
/// Part of the KV cache that is to be full, as in the policy.
const KV_TARGET: f64 = 0.9;
/// Load of the most important class, in multiples of the capacity.
const TOP_LOAD: f64 = 0.25;
/// Part of everything else that the middle class sends.
const MIDDLE_PART: f64 = 0.4;
const SEED: u64 = 20_261_121;

const KV_BLOCKS: u32 = 2000;
const BLOCK_TOKENS: u32 = 16;
const PREFILL_TPS: u32 = 40_000;
const DECODE_BASE_MS: u32 = 10;
const DECODE_PER_SEQ_US: u32 = 100;
const STEP_TOKENS: u32 = 1024;
const MAX_BATCH: u32 = 128;
const MAX_QUEUE: u32 = 512;

/// A class: its name and its tenant's key.
pub(crate) struct Class {
    pub(crate) name: &'static str,
    key: &'static str,
}

/// Most important first.
pub(crate) const CLASSES: [Class; 3] = [
    Class { name: "high", key: "demo-key-gold" },
    Class { name: "medium", key: "demo-key-silver" },
    Class { name: "low", key: "demo-key-bronze" },
];

/// A kind of request: tokens of prompt and answer, and its part of all requests of every class.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    part: f64,
}

/// Short questions, longer ones, documents, long answers.
pub(crate) const KINDS: [Kind; 4] = [
    Kind { prompt_tokens: 120, output_tokens: 40, part: 0.4 },
    Kind { prompt_tokens: 400, output_tokens: 60, part: 0.3 },
    Kind { prompt_tokens: 800, output_tokens: 40, part: 0.15 },
    Kind { prompt_tokens: 200, output_tokens: 160, part: 0.15 },
];

/// The engines: so many, which together do what one does alone; of several the first half may be slower by a factor.
#[derive(Clone, Copy)]
pub(crate) struct Engines {
    pub(crate) count: u32,
    pub(crate) slower: f64,
}

/// The constants of one engine.
#[derive(Clone, Copy)]
struct Constants {
    kv_blocks: u32,
    max_batch: u32,
    max_queue: u32,
    base_us: u32,
    per_sequence_us: u32,
    prefill_tps: u32,
}

impl Engines {
    /// A step takes each of several as long, with its part of the sequences and prompts, as it takes the one.
    fn constants(self) -> impl Iterator<Item = Constants> {
        let Self { count, slower } = self;
        (0..count).map(move |index| {
            let factor = if 2 * index < count && count > 1 { slower } else { 1.0 };
            let times = |value: u32, by: f64| (f64::from(value) * by).round() as u32;
            Constants {
                kv_blocks: KV_BLOCKS / count,
                max_batch: MAX_BATCH / count,
                max_queue: MAX_QUEUE / count,
                base_us: times(1000 * DECODE_BASE_MS, factor),
                per_sequence_us: times(DECODE_PER_SEQ_US * count, factor),
                prefill_tps: times(PREFILL_TPS / count, 1.0 / factor),
            }
        })
    }

    /// The flags of inference-sim, for each.
    pub(crate) fn flags(self) -> impl Iterator<Item = Vec<String>> {
        let flag = |name: &str, value: u32| format!("--{name}={value}");
        self.constants().map(move |engine| {
            vec![
                flag("kv-blocks", engine.kv_blocks),
                flag("block-size", BLOCK_TOKENS),
                flag("prefill-tps", engine.prefill_tps),
                flag("decode-base-ms", engine.base_us / 1000),
                flag("decode-per-seq-us", engine.per_sequence_us),
                flag("step-tokens", STEP_TOKENS),
                flag("max-batch", engine.max_batch),
                flag("max-queue", engine.max_queue),
                // As vLLM does unless told otherwise: a proxy counts pieces of a response to know its tokens.
                flag("stream-interval", 1),
                "--preallocate".to_owned(),
            ]
        })
    }

    /// The same for the simulator.
    fn simulated(self) -> Vec<EngineConfig> {
        let config = |engine: Constants| {
            EngineConfig::Llm(LlmConfig {
                kv_blocks: engine.kv_blocks,
                max_sequences: engine.max_batch,
                step_tokens: STEP_TOKENS,
                max_queue: engine.max_queue,
                base_s: f64::from(engine.base_us / 1000) * 1e-3,
                per_sequence_s: f64::from(engine.per_sequence_us) * 1e-6,
                per_prefill_token_s: 1.0 / f64::from(engine.prefill_tps),
                per_kv_token_s: 0.0,
            })
        };
        self.constants().map(config).collect()
    }
}

/// Requests per second that the engine serves in the long run with its cache at the target.
///
/// With `d` sequences a step takes `t = base + d · (per_sequence + prompt / (output · prefill_tps))`, prompts of the arrivals that
/// replace the endings included; `X = d / (output · t)`. A sequence holds its prompt and half its answer on average over its life,
/// and lives as long as its answer.
pub(crate) fn capacity_rps() -> f64 {
    let mean = |value: fn(&Kind) -> f64| KINDS.iter().map(|kind| kind.part * value(kind)).sum::<f64>();
    let prompt = mean(|kind| f64::from(kind.prompt_tokens));
    let output = mean(|kind| f64::from(kind.output_tokens));
    let residency =
        mean(|kind| f64::from(kind.output_tokens) * (f64::from(kind.prompt_tokens) + f64::from(kind.output_tokens) / 2.0)) / output;
    let in_cache = KV_TARGET * f64::from(KV_BLOCKS * BLOCK_TOKENS) / residency;
    let sequences = in_cache.min(f64::from(MAX_BATCH));
    let per_sequence = f64::from(DECODE_PER_SEQ_US) * 1e-6 + prompt / (output * f64::from(PREFILL_TPS));
    let step = f64::from(DECODE_BASE_MS) * 1e-3 + sequences * per_sequence;
    sequences / (output * step)
}

/// The same in work tokens per second.
pub(crate) fn capacity_work() -> f64 {
    capacity_rps() * KINDS.iter().map(|kind| kind.part * work(kind.prompt_tokens, kind.output_tokens)).sum::<f64>()
}

/// Class and kind of the traffic at `index` of a [`plan`].
pub(crate) fn class_and_kind(index: usize) -> (usize, Kind) {
    (index / KINDS.len(), KINDS[index % KINDS.len()])
}

/// The load of `multiple` of the capacity, for `length` after the warm-up.
pub(crate) fn plan(target: SocketAddr, multiple: f64, length: Duration) -> Plan {
    let top = TOP_LOAD.min(multiple);
    let rest = multiple - top;
    let loads = [top, MIDDLE_PART * rest, (1.0 - MIDDLE_PART) * rest];
    let capacity = capacity_rps();
    let traffic = (0..CLASSES.len() * KINDS.len()).map(|index| {
        let (class, kind) = class_and_kind(index);
        let rate_rps = capacity * loads[class] * kind.part;
        Traffic {
            class: CLASSES[class].name.to_owned(),
            request: request(CLASSES[class].key, kind),
            arrivals: Arrivals::poisson(rate_rps, WARM_UP + length),
        }
    });
    Plan {
        target,
        seed: SEED,
        traffic: traffic.collect(),
        max_in_flight: 8192,
        request_timeout: LONGEST,
        first_byte_timeout: Some(PATIENCE),
        worker_header: None,
    }
}

fn request(key: &str, kind: Kind) -> Template {
    let body = json!({
        "model": "sim-8b",
        "stream": true,
        "max_tokens": 512,
        // Four characters a token.
        "messages": [{"role": "user", "content": "word".repeat(kind.prompt_tokens as usize)}],
    });
    let template = Template::post_json("/v1/chat/completions", &body).header("authorization", &format!("Bearer {key}"));
    template.header("x-sim-output-tokens", &kind.output_tokens.to_string())
}

/// The same world for the simulator: the engines' constants, and every request of the plan as a row of a trace.
pub(crate) fn scenario(multiple: f64, length: Duration, engines: Engines) -> Scenario {
    let class = |class: &Class| ClassSpec { name: class.name.to_owned(), ttft: TTFT_SLO, tpot: TPOT_SLO };
    let setup = Setup {
        name: format!("envoy-{multiple}x"),
        duration: WARM_UP + length,
        drain: PATIENCE,
        proxies: 1,
        workers: 2,
        engines: engines.simulated(),
        classes: CLASSES.iter().map(class).collect(),
        trace: trace(&plan(SocketAddr::from(([127, 0, 0, 1], 0)), multiple, length)),
        trace_patience: Patience { timeout: PATIENCE, retries: Retries::None },
        bytes_per_token: (4.0, 0.0),
        ..Setup::default()
    };
    let judging = Judging { load: multiple, from: WARM_UP, overload: None, capacity_rps: capacity_rps() };
    let summary = "What `cargo xtask bench overload` plays through a real Envoy.".to_owned();
    Scenario { summary, judging, floors_percent: vec![0; CLASSES.len()], setup }
}

fn trace(plan: &Plan) -> Vec<TraceRow> {
    let rows = (0..plan.traffic.len()).flat_map(|index| {
        let (class, Kind { prompt_tokens, output_tokens, .. }) = class_and_kind(index);
        let (tenant, class) = (class as u32, class as u8);
        plan.schedule(index).map(move |at| TraceRow { at, tenant, class, prompt_tokens, output_tokens })
    });
    let mut rows: Vec<TraceRow> = rows.collect();
    rows.sort_by_key(|row| row.at);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_the_plan() {
        let plan = plan(SocketAddr::from(([127, 0, 0, 1], 1)), 3.0, Duration::from_secs(60));
        let rows = trace(&plan);
        let expected = 3.0 * capacity_rps() * 64.0;
        assert!((rows.len() as f64 - expected).abs() < 5.0 * expected.sqrt(), "{} of {expected}", rows.len());
        assert!(rows.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let top = rows.iter().filter(|row| row.class == 0).count() as f64;
        assert!((top / rows.len() as f64 - TOP_LOAD / 3.0).abs() < 0.02);
    }

    #[test]
    fn capacity_is_what_the_equation_of_the_step_gives() {
        // 85 sequences of 338 tokens fill nine tenths of 32,000; a step of 85 takes 29 ms; 85 / (64 · 0.029).
        assert!((capacity_rps() - 45.8).abs() < 1.0, "{}", capacity_rps());
    }
}
