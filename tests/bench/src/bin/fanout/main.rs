//! `cargo xtask bench fanout`: how fast a change of a policy reaches every proxy of a fleet, over real gRPC delta streams.
//!
//! Each proxy has a connection of its own, as an Envoy has, and acknowledges what it gets. The same proxies are then served by a server
//! that knows no protocol at all and writes the very bytes that Headgate wrote to every stream: the floor. Server and proxies share the
//! machine, so the ratio of both says what Headgate costs, and the absolute times are those of this machine with both on it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

mod floor;
mod measure;
mod proxies;
mod report;
mod server;

use report::{FanoutRun, Report};
use server::Served;

/// Largest number of proxies: each takes a file descriptor in both processes.
const MOST_PROXIES: usize = 15_000;

/// Time, bytes and memory of a policy's way to all proxies.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask bench fanout\n  cargo xtask bench fanout --proxies 1000 --pushes 50 --json fanout.json")]
struct Args {
    /// Sizes of the fleet.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    proxies: Vec<usize>,
    /// Changes of the policy in each fleet.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pushes: u32,
    /// Proxies in addition that subscribe and then never read.
    #[arg(long, default_value_t = 5)]
    stuck: usize,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Serves as the floor; how this program starts itself.
    #[arg(long, hide = true)]
    serve_floor: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if args.serve_floor {
        return runtime.block_on(floor::serve());
    }
    for proxies in &args.proxies {
        ensure!((1..=MOST_PROXIES).contains(proxies), "--proxies: {proxies} is outside 1..={MOST_PROXIES}");
    }
    ensure!(args.stuck <= MOST_PROXIES / 10, "--stuck: {} is more than {}", args.stuck, MOST_PROXIES / 10);
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let mut report = Report { runs: Vec::new() };
    for &proxies in &args.proxies {
        let plan = measure::Plan { proxies, pushes: args.pushes, stuck: args.stuck };
        let headgate = measure::run(&plan, Served::headgate().await?).await.with_context(|| format!("headgate, {proxies} proxies"))?;
        let floor = measure::run(&plan, Served::floor(headgate.pushed.clone()).await?);
        let floor = floor.await.with_context(|| format!("floor, {proxies} proxies"))?;
        report.runs.push(FanoutRun::new(&plan, &headgate, &floor));
    }
    print!("{}", report.table());
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
