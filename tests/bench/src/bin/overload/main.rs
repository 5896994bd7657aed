//! `cargo xtask bench overload`: admission controls before the same engine under the same overload, on a real Envoy and in the simulator.
//!
//! Every contender gets an engine, an Envoy with two workers and, if it needs one, a control plane of its own, one after the other; the
//! load is open-loop and the same to the request. The simulator then plays the very same requests before an engine of the same
//! constants, so that what it says of scenarios that no machine can play is known to be worth something.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use headgate_sim::measure::{Figures as Simulated, Run};
use headgate_sim::scenarios::Scenario;
use headgate_sim::suite::{Algorithm, play as simulate};
use headgate_test_support::load::Load;

mod contender;
mod judge;
mod report;
mod world;

use contender::{Contender, Stage};
use judge::Figures;
use report::{Errors, Report, RunReport, ScenarioReport};
use world::Engines;

/// Seed of what is random in the simulator besides the load.
const SIMULATED_SEED: u64 = 1;

/// Headgate, no control and Envoy's own filters under overload.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench overload\n  cargo xtask bench overload --loads 3 --only headgate,no_control --json overload.json\n  cargo xtask bench overload --engines 4 --slower 2 --only headgate,headgate_picks"
)]
struct Args {
    /// Loads, in multiples of the capacity.
    #[arg(long, value_delimiter = ',', default_value = "0.8,3,10")]
    loads: Vec<f64>,
    /// Judged length of each run, in seconds.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(4..=600))]
    seconds: u64,
    /// Engines that together do what one does alone; with several `headgate_picks` takes part.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    engines: u32,
    /// How many times as slow the first half of them is; the loads stay multiples of what they could do without that.
    #[arg(long, default_value_t = 1.0)]
    slower: f64,
    /// Measures these alone, for example headgate,no_control.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let known = |name: &String| Contender::ALL.iter().any(|contender| contender.name() == name);
    if let Some(name) = args.only.iter().find(|name| !known(name)) {
        return Err(anyhow!("--only: {name} is none of {}", Contender::ALL.map(Contender::name).join(", ")));
    }
    ensure!((1.0..=10.0).contains(&args.slower), "--slower: {} is outside 1..=10", args.slower);
    ensure!(args.loads.iter().all(|load| (0.1..=100.0).contains(load)), "--loads: outside 0.1..=100");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let length = Duration::from_secs(args.seconds);
    let mut report = Report {
        capacity_rps: world::capacity_rps(),
        engines: args.engines,
        slower: args.slower,
        seconds: args.seconds,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        load_average_before: load_average(),
        scenarios: Vec::new(),
    };
    let engines = Engines { count: args.engines, slower: args.slower };
    let is_wanted = |contender: &Contender| args.only.is_empty() || args.only.iter().any(|name| name == contender.name());
    let contenders = || Contender::ALL.into_iter().filter(|contender| contender.is_of(args.engines)).filter(is_wanted);
    for load in &args.loads {
        let scenario = world::scenario(*load, length, engines);
        let optimum = simulate(&scenario, Algorithm::Oracle, None, SIMULATED_SEED)?.run;
        let mut runs = Vec::new();
        for contender in contenders() {
            let run = compare(contender, engines, &scenario, &optimum, length).await;
            let run = run.with_context(|| format!("{} at {load}x", contender.name()))?;
            let slo = run.real.top_class_slo * 100.0;
            eprintln!("{load}x {}: goodput {:.0} work tokens/s, top class {slo:.1} %", run.name, run.real.goodput);
            runs.push(run);
        }
        let oracle = judge::simulated(&Simulated::of(&scenario, &optimum, &optimum));
        report.scenarios.push(ScenarioReport::new(*load, oracle, runs));
    }
    println!("capacity {:.1} requests/s, {} s each; work tokens (prompt + 2 x output) per second\n", report.capacity_rps, report.seconds);
    report.scenarios.iter().for_each(|scenario| println!("{}", scenario.table()));
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One contender at one load, really and simulated.
async fn compare(contender: Contender, engines: Engines, scenario: &Scenario, optimum: &Run, length: Duration) -> Result<RunReport> {
    let stage = contender.start(engines).await?;
    let plan = world::plan(stage.envoy.address(), scenario.judging.load, length);
    let played = play(&stage, plan, length).await;
    stage.stop().await?;
    let (real, overrun, status) = played?;
    let policy = contender.policy(&scenario.setup);
    let run = simulate(scenario, contender.simulated(), policy.as_ref(), SIMULATED_SEED)?.run;
    let simulated = judge::simulated(&Simulated::of(scenario, &run, optimum));
    let error = Errors::of(&real, &simulated, world::capacity_work());
    Ok(RunReport { name: contender.name(), real, simulated, error, overrun, status })
}

async fn play(
    stage: &Stage,
    plan: headgate_test_support::load::Plan,
    length: Duration,
) -> Result<(Figures, u64, Option<serde_json::Value>)> {
    let load = Load::start(plan)?;
    tokio::time::sleep_until((load.started() + world::WARM_UP + length).into()).await;
    let status = stage.status().await;
    while !load.is_over() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let outcomes = load.outcomes(0);
    let overrun = load.finish().await?.classes.values().map(|class| class.overrun).sum();
    let pool = status.map(|status| status["pools"][0].clone());
    Ok((judge::real(&outcomes, length), overrun, pool))
}

/// The first figure of `/proc/loadavg`; 0 where there is none.
fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|figure| figure.parse().ok()).unwrap_or(0.0)
}
