//! `cargo xtask bench replicas`: faults on three replicas and three etcds, and a replica that is killed while it writes.
//!
//! Nothing acknowledged may be lost, no two replicas may act, no request may fail, and another replica must lead within 3 s.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use headgate_test_support::ControlPlaneProcess;
use headgate_test_support::chaos::writer::kill_and_look;
use headgate_test_support::chaos::{self, Findings, Plan};
use headgate_test_support::control_plane::ControlPlaneOptions;
use rand::SeedableRng as _;
use serde::Serialize;

/// Longest time without a leader after the leader was lost, in milliseconds.
const NEW_LEADER_LIMIT_MS: f64 = 3000.0;

/// What replicas lose, and for how long nobody leads.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench replicas --json replicas.json\n  cargo xtask bench replicas --faults 10 --kills 0 --seed 7"
)]
struct Args {
    /// Faults, one after the other.
    #[arg(long, default_value_t = 50)]
    faults: usize,
    /// Kills of a single replica during writes.
    #[arg(long, default_value_t = 1000)]
    kills: usize,
    /// Seed of the schedule; any when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures {
    seed: u64,
    replicas: Option<Findings>,
    kills: usize,
    writes_acknowledged_between_kills: u64,
    kills_took_s: f64,
    is_met: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let replicas = match args.faults {
        0 => None,
        faults => Some(chaos::run(Plan { seed, faults }, |line| println!("{line}")).await?),
    };
    let began = Instant::now();
    let mut writes_acknowledged_between_kills = 0;
    if args.kills > 0 {
        let mut control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        writes_acknowledged_between_kills = kill_and_look(&mut control, args.kills, &mut rng).await?;
    }
    let is_met = replicas.as_ref().is_none_or(holds);
    let kills_took_s = began.elapsed().as_secs_f64();
    let figures = Figures { seed, replicas, kills: args.kills, writes_acknowledged_between_kills, kills_took_s, is_met };
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    if let Some(path) = &args.json {
        std::fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn holds(findings: &Findings) -> bool {
    findings.writes_lost.is_empty()
        && findings.violations.is_empty()
        && findings.requests_failed == 0
        && findings.worst_new_leader_ms <= NEW_LEADER_LIMIT_MS
}
