//! Which figure is true: engines from idle to collapse, and where the level of GPU memory trips on either figure.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::level::{EngineFacts, EngineMemory, GpuMemoryLevel, GpuMemorySample, MemoryFacts, MemorySource, SignalSource};
use headgate_core::policy::{GpuMemoryConfig, GpuMemorySource, HysteresisConfig};
use headgate_core::rng::Rng;
use headgate_core::time::Timestamp;
use headgate_sim::controller::RequestId;
use headgate_sim::engine::{Engine, EngineConfig, LlmConfig, Output};

/// Prompts and outputs of a chat with long answers: the KV cache is what they fill first.
const PROMPT_TOKENS: u32 = 256;
const OUTPUT_TOKENS: u32 = 1024;
/// Requests per second, from idle to collapse.
const RATES: [u32; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12];
/// Time at each rate, several times as long as a response, and the part of it that is judged.
const HELD: Duration = Duration::from_secs(120);
const JUDGED: Duration = Duration::from_secs(40);
const SAMPLE: Duration = Duration::from_millis(100);
/// A time to first token that breaks the objective.
const BROKEN: Duration = Duration::from_secs(2);
/// Part of the memory that weights and a full cache take, and what the weights alone take.
const FULL: f64 = 0.98;
const WEIGHTS: f64 = 0.25;

/// What NVML shows of an engine.
type Nvml = fn(&Engine) -> f64;

/// 90 % from idle to collapse, give or take what else is on the device: the threshold is 90 %.
fn preallocating(_: &Engine) -> f64 {
    0.901
}

fn preallocating_a_little_less(_: &Engine) -> f64 {
    0.899
}

fn on_demand(engine: &Engine) -> f64 {
    WEIGHTS + (FULL - WEIGHTS) * engine.kv_usage()
}

/// What the control plane can read of it.
#[derive(Clone, Copy)]
enum Page {
    /// A page of vLLM.
    Vllm,
    /// No page that it knows.
    None,
}

/// What was seen at one rate.
#[derive(Debug)]
struct Seen {
    rate: u32,
    /// 99th percentile of the time to first token; of requests without one the time until the end.
    ttft_p99: Duration,
    /// Part of the judged time in which the level acted.
    acting: f64,
}

/// Plays the ramp once.
fn ramp(nvml: Nvml, page: Page, asked: GpuMemorySource) -> Vec<Seen> {
    let mut engine = Engine::new(&EngineConfig::Llm(LlmConfig::default()), 7);
    let config = GpuMemoryConfig { source: asked, trip_percent: 90.0, ..GpuMemoryConfig::default() };
    let mut level = GpuMemoryLevel::new(&config, &HysteresisConfig { recover_percent: 90.0, recovery: Duration::from_secs(1) });
    let (mut source, mut rng) = (MemorySource::default(), Rng::new(11));
    let (mut now, mut next_id) = (Timestamp::ZERO, 0_u32);
    let mut began: BTreeMap<_, Timestamp> = BTreeMap::new();
    let mut seen = Vec::new();
    for rate in RATES {
        let (end, mut arrival) = (now + HELD, gap(now, rate, &mut rng));
        let judged_from = now + (HELD - JUDGED);
        let (mut times, mut acts, mut sample_at) = (Vec::new(), 0_u32, now);
        while now < end {
            let due = [Some(arrival), Some(sample_at), engine.next_at(now), Some(end)].into_iter().flatten().min().unwrap();
            now = now.max(due);
            let mut outputs = Vec::new();
            engine.advance(now, &mut outputs);
            for output in outputs {
                if let Output::FirstToken(id) = output
                    && let Some(at) = began.remove(&id.0)
                    && at >= judged_from
                {
                    times.push(now.since(at));
                }
            }
            if now >= arrival {
                began.insert(next_id, now);
                engine.submit(now, RequestId(next_id), PROMPT_TOKENS, OUTPUT_TOKENS).unwrap();
                next_id += 1;
                arrival = gap(now, rate, &mut rng);
            }
            if now >= sample_at {
                sample_at = now + SAMPLE;
                let choice = source.choose(asked, &facts(now, &engine, nvml, page));
                choice.sample.iter().for_each(|sample| level.observe(now, sample));
                acts += u32::from(level.tick(now).acts() && now >= judged_from);
            }
        }
        times.extend(began.values().filter(|at| **at >= judged_from).map(|at| now.since(*at)));
        times.sort_unstable();
        let ttft_p99 = times.get(times.len().saturating_sub(1 + times.len() / 100)).copied().unwrap_or_default();
        let acting = f64::from(acts) * SAMPLE.as_secs_f64() / JUDGED.as_secs_f64();
        seen.push(Seen { rate, ttft_p99, acting });
    }
    seen
}

/// When the next request comes: Poisson.
fn gap(now: Timestamp, rate: u32, rng: &mut Rng) -> Timestamp {
    let seconds = -(1.0 - rng.next_f64()).ln() / f64::from(rate);
    if rate == 0 { now + Duration::from_secs(86_400) } else { now + Duration::from_secs_f64(seconds) }
}

fn facts(now: Timestamp, engine: &Engine, nvml: Nvml, page: Page) -> MemoryFacts {
    let used_bytes = (nvml(engine) * 80e9) as u64;
    let nvml = Some(GpuMemorySample { at: now, used_bytes, total_bytes: 80_000_000_000, source: SignalSource::Nvml });
    let memory = EngineMemory { engine: "vllm", preallocates: Some(true), kv_fullest: Some((now, engine.kv_usage())) };
    let engines = if matches!(page, Page::Vllm) { EngineFacts::Read(memory) } else { EngineFacts::NotNamed };
    MemoryFacts { nvml, engines, process: None }
}

fn first(seen: &[Seen], wanted: impl Fn(&Seen) -> bool) -> Option<u32> {
    seen.iter().find(|seen| wanted(seen)).map(|seen| seen.rate)
}

/// Acts most of the time: in a collapse all sequences of a batch end together, and the cache is empty for a moment.
fn trips(seen: &Seen) -> bool {
    seen.acting > 0.5
}

fn breaks(seen: &Seen) -> bool {
    seen.ttft_p99 > BROKEN
}

/// Trips at the rate at which the time to first token breaks, or the one before, and never below.
fn assert_trips_where_it_breaks(seen: &[Seen]) {
    let broken = seen.iter().position(breaks).expect("the ramp ends in collapse");
    let tripped = seen.iter().position(trips).expect("the level trips");
    assert!(tripped <= broken && tripped + 1 >= broken, "{seen:#?}");
    assert!(seen.iter().skip(tripped).all(trips), "and stays so: {seen:#?}");
}

#[test]
fn behind_a_preallocating_engine_auto_trips_where_the_first_token_breaks_and_nvml_at_idle() {
    assert_trips_where_it_breaks(&ramp(preallocating, Page::Vllm, GpuMemorySource::Auto));
    let wrong = ramp(preallocating, Page::Vllm, GpuMemorySource::Nvml);
    assert_eq!(first(&wrong, trips), Some(0), "the wrong choice refuses everybody before anybody came");
    let blind = ramp(preallocating_a_little_less, Page::Vllm, GpuMemorySource::Nvml);
    assert!(blind.iter().any(breaks) && blind.iter().all(|seen| seen.acting == 0.0), "or nobody: {blind:#?}");
}

#[test]
fn behind_an_engine_that_allocates_as_it_goes_auto_takes_nvml_and_the_kv_cache_says_nothing() {
    assert_trips_where_it_breaks(&ramp(on_demand, Page::None, GpuMemorySource::Auto));
    let wrong = ramp(on_demand, Page::None, GpuMemorySource::KvCache);
    assert!(wrong.iter().any(breaks) && wrong.iter().all(|seen| seen.acting == 0.0), "the wrong choice lets it collapse: {wrong:#?}");
}
