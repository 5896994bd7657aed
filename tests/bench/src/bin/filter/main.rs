//! `cargo xtask bench filter`: CPU time per request that a filter adds to Envoy.
//!
//! One Envoy with one worker for each variant, all pinned to one core, the client on another. Rounds go through the variants in turn, so
//! that what else the machine does falls on all alike; ratios within one run count, absolute times do not. Every round starts its
//! processes anew: where code and data happen to lie makes the same filter 10 % dearer in one process than in the next, for its whole
//! life. Envoy answers by itself (`direct_response`), so nothing but Envoy and the filter is measured.
//!
//! Ours is rarely the only work on a machine, and a sibling thread of Envoy's core or what runs on it between its slices takes its caches:
//! all of that adds and none of it takes away. So a round goes through its processes several times, and of the measurements of one process
//! the smallest counts; one is long enough to hold every periodic work of the filters.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use headgate_bench::affinity::pin;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, Gradient, HttpFilter, Upstream, WasmFilter};
use headgate_test_support::load::{Saturation, saturate};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, NvmlDevice, NvmlState, wait_until};
use serde::Serialize;

const CONNECTIONS: usize = 32;
const WARM_UP: Duration = Duration::from_millis(300);
/// Measurements of one process in its round.
const TURNS: usize = 3;
const POLICY: &str = include_str!("../../../policy.yaml");

/// A chat request as an SDK sends it; the key is the tenant bronze's.
const REQUEST: &str = "GET /v1/models HTTP/1.1\r\nhost: bench\r\nuser-agent: OpenAI/Python 1.99.0\r\naccept: application/json\r\n\
    accept-encoding: gzip, deflate\r\nx-stainless-lang: python\r\nx-request-tag: 7f1c\r\nauthorization: Bearer demo-key-bronze\r\n\r\n";

/// CPU per request of Envoy with and without filters.
#[derive(Parser)]
#[command(after_help = "Example:\n  cargo xtask bench filter --rounds 6 --json filter.json")]
struct Args {
    /// Rounds through all variants, each with new processes: 5 are the least that says something.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of one measurement, in milliseconds.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    round_ms: u64,
    /// Measures these variants alone, for example no_filter,empty_filter,headgate_admitting.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Another build of the filter, measured as NAME beside the others while it admits; repeatable.
    #[arg(long, value_name = "NAME=FILE", value_parser = candidate)]
    candidate: Vec<Candidate>,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    cores: Cores,
}

/// Another build of the filter.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    module: PathBuf,
}

fn candidate(text: &str) -> Result<Candidate> {
    let (name, module) = text.split_once('=').context("expected NAME=FILE")?;
    Ok(Candidate { name: name.into(), module: fs::canonicalize(module).with_context(|| format!("cannot find {module}"))? })
}

/// Who runs where. On a machine whose cores are threads in pairs, take two of different pairs.
#[derive(clap::Args, Clone, Copy)]
struct Cores {
    /// Core of the Envoys.
    #[arg(long, default_value_t = 0)]
    envoy_core: usize,
    /// Core of the client and the control plane.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
}

#[derive(Serialize)]
struct Figures {
    rounds: u32,
    cpu_us_per_request: BTreeMap<String, Spread>,
    /// What Headgate adds when admitting, over what the empty filter adds: median over the rounds. Absent when one was not measured.
    added_vs_empty: Option<f64>,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// What a variant must answer.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    Success,
    Refusal,
}

/// One Envoy.
struct Variant {
    name: String,
    answers: Answers,
    envoy: EnvoyProcess,
    /// Control plane and GPU of the variants that have one.
    _control: Option<(ControlPlaneProcess, tempfile::TempDir)>,
}

/// Microseconds of CPU per request, by variant and in the order of the rounds.
type Samples = BTreeMap<String, Vec<f64>>;

fn main() -> Result<()> {
    let args = Args::parse();
    pin(std::process::id(), args.cores.client_core)?;
    // One thread for the client: it must not take time from Envoy's core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let is_wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut samples = Samples::new();
    for round in 1..=args.rounds {
        let mut variants = start_all(args.cores, is_wanted).await?;
        for Candidate { name, module } in &args.candidate {
            variants.push(headgate(args.cores, name, Answers::Success, 10.0, Some(module)).await?);
        }
        // Nobody is always the first or the last.
        let first = round as usize % variants.len().max(1);
        variants.rotate_left(first);
        for variant in &variants {
            variant.warm_up().await?;
        }
        let mut least = vec![f64::INFINITY; variants.len()];
        for _ in 0..TURNS {
            for (variant, least) in variants.iter_mut().zip(&mut least) {
                let sample = variant.measure(Duration::from_millis(args.round_ms)).await?;
                *least = least.min(sample);
            }
        }
        for (variant, least) in variants.iter().zip(least) {
            samples.entry(variant.name.clone()).or_default().push(least);
        }
        eprintln!("round {round} of {}", args.rounds);
    }
    let figures = figures(args.rounds, &samples);
    print_table(&figures);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn start_all(cores: Cores, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Variant>> {
    // A bucket that never empties and a limit that is never reached: what they cost when they admit.
    let bucket = HttpFilter::LocalRateLimit { burst: 1_000_000_000, fill: 1_000_000_000, fill_interval: Duration::from_secs(1) };
    let mut variants = Vec::new();
    for (name, filter) in [
        ("no_filter", HttpFilter::None),
        ("empty_filter", HttpFilter::Wasm(WasmFilter::empty()?)),
        ("local_ratelimit", bucket),
        ("adaptive_concurrency", HttpFilter::AdaptiveConcurrency(Gradient::NeverLimits)),
        ("lua_header_check", HttpFilter::LuaHeaderCheck),
    ] {
        if is_wanted(name) {
            let envoy = start(cores, bootstrap(filter)).await?;
            variants.push(Variant { name: name.into(), answers: Answers::Success, envoy, _control: None });
        }
    }
    for (name, answers, memory_used) in [("headgate_admitting", Answers::Success, 10.0), ("headgate_refusing", Answers::Refusal, 90.0)] {
        if is_wanted(name) {
            variants.push(headgate(cores, name, answers, memory_used, None).await?);
        }
    }
    Ok(variants)
}

fn bootstrap(filter: HttpFilter) -> Bootstrap {
    let mut bootstrap = Bootstrap::new(filter, Upstream::Direct);
    bootstrap.access_log = AccessLog::Off;
    bootstrap
}

async fn start(cores: Cores, bootstrap: Bootstrap) -> Result<EnvoyProcess> {
    let mut options = EnvoyOptions::new(bootstrap);
    options.workers = 1;
    let mut envoy = EnvoyProcess::start(options).await?;
    pin(envoy.process().id(), cores.envoy_core)?;
    Ok(envoy)
}

/// The whole set-up as in production: control plane, limits pushed at 10 Hz, load reports; the GPU is `memory_used` percent full.
async fn headgate(cores: Cores, name: &str, answers: Answers, memory_used: f64, module: Option<&PathBuf>) -> Result<Variant> {
    let folder = tempfile::tempdir()?;
    let gpu = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, memory_used)])?;
    let mut control = ControlPlaneProcess::start(ControlPlaneOptions::new(Some(gpu.path()))?).await?;
    control.apply(POLICY)?;
    pin(control.process().id(), cores.client_core)?;
    let mut filter = WasmFilter::headgate_controlled()?;
    if let Some(module) = module {
        filter.module.clone_from(module);
    }
    // No access log here, so no line for it.
    filter.configuration["accessLog"] = "refused".into();
    let envoy = start(cores, bootstrap(HttpFilter::Wasm(filter)).with_control_plane(control.grpc())).await?;
    let address = envoy.address();
    wait_until("the filter's first decisions", Duration::from_secs(20), || async {
        let seen = saturate(address, REQUEST.as_bytes(), 1, Duration::from_millis(20)).await?;
        let status = control.status().await?;
        let is_in_force = status["proxies"][0]["policies"].as_array().is_some_and(|policies| !policies.is_empty());
        Ok((is_in_force && has_only(seen, answers)).then_some(()))
    })
    .await?;
    Ok(Variant { name: name.into(), answers, envoy, _control: Some((control, folder)) })
}

fn has_only(seen: Saturation, answers: Answers) -> bool {
    match answers {
        Answers::Success => seen.refused == 0,
        Answers::Refusal => seen.admitted == 0,
    }
}

impl Variant {
    /// Until V8 has compiled what the filter runs.
    async fn warm_up(&self) -> Result<()> {
        saturate(self.envoy.address(), REQUEST.as_bytes(), CONNECTIONS, WARM_UP).await.map(drop)
    }

    /// CPU time of the Envoy process over the responses that it gave, in microseconds.
    async fn measure(&mut self, length: Duration) -> Result<f64> {
        let before = self.envoy.process().cpu_time()?;
        let seen = saturate(self.envoy.address(), REQUEST.as_bytes(), CONNECTIONS, length).await?;
        let after = self.envoy.process().cpu_time()?;
        if !has_only(seen, self.answers) {
            bail!("{}: {} admitted and {} refused: it measures something else", self.name, seen.admitted, seen.refused);
        }
        ensure!(seen.responses() > 100, "{}: only {} responses", self.name, seen.responses());
        Ok((after.ran - before.ran).as_secs_f64() * 1e6 / seen.responses() as f64)
    }
}

fn figures(rounds: u32, samples: &Samples) -> Figures {
    let spreads = samples.iter().filter_map(|(name, samples)| {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        Some((name.clone(), Spread { median: median(samples)?, min: *sorted.first()?, max: *sorted.last()? }))
    });
    Figures { rounds, cpu_us_per_request: spreads.collect(), added_vs_empty: added_vs_empty(samples) }
}

/// Median over the rounds of what Headgate adds when admitting, over the median of what the empty filter adds. What is added is taken
/// within a round: neighbours in time see the same machine.
fn added_vs_empty(samples: &Samples) -> Option<f64> {
    let base = samples.get("no_filter")?;
    let added = |name: &str| {
        let added: Vec<f64> = samples.get(name)?.iter().zip(base).map(|(with, without)| with - without).collect();
        median(&added)
    };
    Some(added("headgate_admitting")? / added("empty_filter")?)
}

/// The middle sample, or the mean of the two in the middle.
fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

fn print_table(figures: &Figures) {
    let base = figures.cpu_us_per_request.get("no_filter").map_or(0.0, |spread| spread.median);
    println!("CPU of the Envoy process per request, µs, {} rounds\n", figures.rounds);
    println!("{:<22} {:>8} {:>8} {:>8} {:>8}", "", "median", "min", "max", "added");
    for (name, spread) in &figures.cpu_us_per_request {
        println!("{name:<22} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", spread.median, spread.min, spread.max, spread.median - base);
    }
    if let Some(ratio) = figures.added_vs_empty {
        println!("\nHeadgate admitting adds {ratio:.2} times what the empty filter adds.");
    }
}
