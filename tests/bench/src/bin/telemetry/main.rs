//! `cargo xtask bench telemetry`: what fresh signals cost, and how fresh they are.
//!
//! Real agents play recordings of a real H200 over real gRPC into a real control plane; then the control plane reads the pages of
//! simulated engines besides. Ages are those that the control plane's own decisions saw, from its `/metrics`; CPU time is the
//! scheduler's. Agents that play a tape ask no driver: what asking costs is in `tests/tapes/README.md`.

mod engines;
mod nodes;
mod quantiles;
mod scrape;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::{ControlPlaneProcess, wait_until};
use serde::Serialize;

use self::engines::EnginePages;
use self::nodes::Nodes;
use self::scrape::Counters;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the issue asks for: cores of the control plane, of an agent, age in milliseconds, cores of the engines.
const WANTED: [(&str, f64); 5] =
    [("control_plane_cores", 0.5), ("agent_cores", 0.01), ("age_p99_ms", 250.0), ("engine_cores", 0.2), ("p99_error", 0.01)];

/// Cost and age of telemetry.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench telemetry --json telemetry.json\n  cargo xtask bench telemetry --nodes 10 --seconds 5"
)]
struct Args {
    /// Nodes, each with an agent.
    #[arg(long, default_value_t = 125, value_parser = clap::value_parser!(u32).range(1..=1000))]
    nodes: u32,
    /// GPUs of each node.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16))]
    gpus_per_node: u32,
    /// Samples of each GPU and of each engine in a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=50))]
    hz: u32,
    /// Engines whose pages are read in the second part.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    engines: u32,
    /// Length of each of the two measurements, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures {
    gpus: u32,
    nodes: u32,
    hz: u32,
    control_plane_cores: f64,
    /// Mean over the agents.
    agent_cores: f64,
    agent_cores_max: f64,
    age_ms: Age,
    /// Worst relative error of a P99 of merged histograms.
    p99_error: f64,
    p99_errors: Vec<(&'static str, f64)>,
    bytes_per_gpu_per_s: f64,
    engines: u32,
    /// What reading the engines adds to the control plane.
    engine_cores: f64,
    /// Good readings of engines in a second.
    engine_readings_per_s: f64,
}

#[derive(Serialize)]
struct Age {
    p50: f64,
    p99: f64,
    samples: u64,
}

/// What one measurement found.
struct Measured {
    cores: f64,
    agents: Vec<f64>,
    counters: Counters,
    seconds: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let options = ControlPlaneOptions { filter: "headgate.wasm".into(), ..ControlPlaneOptions::default() };
    let mut control = ControlPlaneProcess::start(options).await?;
    control.apply(&policy(args.hz, &[]))?;
    eprintln!("starting {} agents", args.nodes);
    let nodes = Nodes::start(args.nodes, args.gpus_per_node, args.hz, control.grpc())?;
    let gpus = args.nodes * args.gpus_per_node;
    wait_until("all GPUs", PATIENCE, || async {
        let there = Counters::read(&control).await?.gpus_ok;
        Ok((there == u64::from(gpus)).then_some(()))
    })
    .await?;
    let devices = measure(args, &mut control, &nodes).await?;
    eprintln!("{gpus} GPUs: {:.3} cores; now with {} engines", devices.cores, args.engines);
    let (engine_cores, readings) = if args.engines == 0 { (0.0, 0.0) } else { with_engines(args, &mut control, &nodes, &devices).await? };
    let p99_errors = quantiles::errors();
    let figures = Figures {
        gpus,
        nodes: args.nodes,
        hz: args.hz,
        control_plane_cores: devices.cores,
        agent_cores: devices.agents.iter().sum::<f64>() / devices.agents.len() as f64,
        agent_cores_max: devices.agents.iter().copied().fold(0.0, f64::max),
        age_ms: devices.counters.age(),
        p99_error: p99_errors.iter().map(|(_, error)| *error).fold(0.0, f64::max),
        p99_errors,
        bytes_per_gpu_per_s: devices.counters.bytes as f64 / devices.seconds / f64::from(gpus),
        engines: args.engines,
        engine_cores,
        engine_readings_per_s: readings,
    };
    report(args, &figures)
}

async fn with_engines(args: &Args, control: &mut ControlPlaneProcess, nodes: &Nodes, devices: &Measured) -> Result<(f64, f64)> {
    let pages = EnginePages::start(args.engines).await?;
    control.apply(&policy(args.hz, pages.urls()))?;
    wait_until("all engines", PATIENCE, || async {
        let pools = control.status().await?["pools"].clone();
        let engines = pools[0]["engines"].as_array().cloned().unwrap_or_default();
        let good = engines.iter().filter(|engine| engine["state"] == "ok").count();
        Ok((good >= args.engines as usize * 9 / 10).then_some(()))
    })
    .await?;
    let before = pages.served();
    let both = measure(args, control, nodes).await?;
    let readings = (pages.served() - before) as f64 / (both.seconds + WARM_UP.as_secs_f64());
    Ok((both.cores - devices.cores, readings))
}

/// Time before a measurement: connections, caches and estimators settle.
const WARM_UP: Duration = Duration::from_secs(3);

async fn measure(args: &Args, control: &mut ControlPlaneProcess, nodes: &Nodes) -> Result<Measured> {
    tokio::time::sleep(WARM_UP).await;
    let (began, counters) = (Instant::now(), Counters::read(control).await?);
    let (cpu, agents) = (control.process().cpu_time()?.ran, nodes.cpu_time()?);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (cpu_after, agents_after) = (control.process().cpu_time()?.ran, nodes.cpu_time()?);
    let seconds = began.elapsed().as_secs_f64();
    let agents = agents_after.iter().zip(&agents).map(|(after, before)| after.saturating_sub(*before).as_secs_f64() / seconds).collect();
    let counters = Counters::read(control).await?.since(&counters);
    Ok(Measured { cores: cpu_after.saturating_sub(cpu).as_secs_f64() / seconds, agents, counters, seconds })
}

fn policy(hz: u32, engines: &[String]) -> String {
    let engines: String = engines.iter().map(|url| format!("  - {{metricsUrl: \"{url}\"}}\n")).collect();
    let engines = if engines.is_empty() { String::new() } else { format!("  engines:\n{engines}") };
    format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{name: bench}}\nspec:\n  pool: llm\n  classes:\n  \
         - {{name: high, whenTripped: reserved_lane}}\n  - {{name: low, whenTripped: refuse}}\n{engines}  levels:\n    \
         gpuMemory: {{sampleMs: {}, tripPercent: 90}}\n",
        1000 / hz
    )
}

fn report(args: &Args, figures: &Figures) -> Result<()> {
    let found = [figures.control_plane_cores, figures.agent_cores, figures.age_ms.p99, figures.engine_cores, figures.p99_error];
    for ((name, most), value) in WANTED.iter().zip(found) {
        println!("{name:22} {value:10.4}   wanted: at most {most}   {}", if value <= *most { "met" } else { "NOT MET" });
    }
    println!("{:22} {:10.1}", "bytes_per_gpu_per_s", figures.bytes_per_gpu_per_s);
    println!("{:22} {:10.1}", "age_p50_ms", figures.age_ms.p50);
    println!("{:22} {:10.1}", "engine_readings_per_s", figures.engine_readings_per_s);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(figures)? + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
