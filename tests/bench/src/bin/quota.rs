//! `cargo xtask bench quota`: how much of a strict quota a thousand proxies use while demand moves a hundredfold, and whether they pass it.
//!
//! In the simulator, with the production code and the wire's messages: the figures are those of the algorithm and of the network that is
//! assumed (messages of 20 to 60 ms), and the same on every machine.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use headgate_sim::quota::{Cut, Figures, Network, Scenario, play};
use serde::Serialize;

/// Utilisation, overshoot and convergence of quotas over a fleet.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask bench quota\n  cargo xtask bench quota --proxies 200 --seed 3 --json quota.json")]
struct Args {
    /// Proxies; one in fifty has a hundred times the demand of the others.
    #[arg(long, default_value_t = 1000)]
    proxies: usize,
    /// Seed of arrivals and faults.
    #[arg(long, default_value_t = 11)]
    seed: u64,
    /// Writes the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One row.
#[derive(Serialize)]
struct Row {
    base_rps: f64,
    capacity_of_demand: f64,
    burst_s: f64,
    loss: f64,
    duplication: f64,
    cut_off: f64,
    #[serde(flatten)]
    figures: Figures,
}

const PERFECT: Network = Network { loss: 0.0, duplication: 0.0 };
const FAULTY: Network = Network { loss: 0.1, duplication: 0.1 };

/// Requests per second of a proxy, capacity in parts of the demand, burst in seconds, faults, part that is cut off for three seconds.
const CASES: [(f64, f64, f64, Network, f64); 10] = [
    (100.0, 0.5, 1.0, PERFECT, 0.0),
    (100.0, 0.8, 1.0, PERFECT, 0.0),
    (100.0, 1.2, 1.0, PERFECT, 0.0),
    (100.0, 0.8, 1.0, FAULTY, 0.0),
    (100.0, 0.8, 1.0, FAULTY, 0.05),
    (20.0, 0.8, 1.0, FAULTY, 0.0),
    (20.0, 0.8, 4.0, FAULTY, 0.0),
    (5.0, 0.8, 1.0, FAULTY, 0.0),
    (5.0, 0.8, 4.0, FAULTY, 0.0),
    (5.0, 0.8, 10.0, FAULTY, 0.0),
];

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!((50..=20_000).contains(&args.proxies), "--proxies: {} is outside 50..=20000", args.proxies);
    println!(
        "{:>8} {:>8} {:>6} {:>6} {:>6} {:>8} {:>10} {:>12} {:>7} {:>12} {:>8}",
        "rps", "capacity", "burst", "loss", "twice", "cut off", "overshoot", "utilisation", "worst", "converged s", "grants/s"
    );
    let mut rows = Vec::new();
    for (base, load, burst_s, network, cut_off) in CASES {
        let proxies = args.proxies;
        let cut = Cut { at: Duration::from_secs(10), lasts: Duration::from_secs(3), proxies: (cut_off * proxies as f64) as usize };
        let scenario = Scenario { proxies, hot: proxies / 50, base, load, burst_s, network, cuts: vec![cut], ..Scenario::default() };
        let figures = play(&scenario, args.seed).map_err(|violation| anyhow!("{violation}"))?;
        let Network { loss, duplication } = network;
        println!(
            "{base:>8} {load:>8} {burst_s:>6} {loss:>6} {duplication:>6} {cut_off:>8} {:>10.4} {:>12.4} {:>7.4} {:>12} {:>8.2}",
            figures.overshoot,
            figures.utilisation,
            figures.worst_window,
            figures.converged_s.map_or_else(|| "never".to_owned(), |at| format!("{at:.1}")),
            figures.grants_per_proxy_per_s,
        );
        rows.push(Row { base_rps: base, capacity_of_demand: load, burst_s, loss, duplication, cut_off, figures });
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&rows)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
