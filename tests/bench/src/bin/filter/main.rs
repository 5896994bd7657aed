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

mod figures;
mod request;
mod variant;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use headgate_bench::affinity::pin;

use crate::figures::{Figures, Report, Samples};
use crate::request::Request;
use crate::variant::{Cores, DECOMPOSED, Variant};

/// Measurements of one process in its round.
const TURNS: usize = 3;

/// CPU per request of Envoy with and without filters.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask bench filter --rounds 6 --json filter.json\n  \
    cargo xtask bench filter --decompose --rounds 8")]
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
    /// What the clients ask for; the first is the one that counts.
    #[arg(long, value_delimiter = ',', default_values = ["chat", "models"])]
    request: Vec<Request>,
    /// Measures what each thing that a filter must ask of Envoy adds: no filter, the empty one, filters that do nothing but one thing
    /// more than the one before, and Headgate admitting.
    #[arg(long, conflicts_with = "only")]
    decompose: bool,
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

fn main() -> Result<()> {
    let args = Args::parse();
    pin(std::process::id(), args.cores.client_core)?;
    // One thread for the client: it must not take time from Envoy's core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let is_wanted = |name: &str| match (args.decompose, &args.only[..]) {
        (true, _) => DECOMPOSED.contains(&name),
        (false, []) => !name.starts_with(variant::FLOOR),
        (false, only) => only.iter().any(|only| only == name),
    };
    let (mut samples, mut idle) = (BTreeMap::<Request, Samples>::new(), Samples::new());
    for round in 1..=args.rounds {
        let mut variants = Variant::start_all(args.cores, is_wanted).await?;
        for Candidate { name, module } in &args.candidate {
            variants.push(Variant::candidate(args.cores, name, module).await?);
        }
        // Nobody is always the first or the last.
        let first = round as usize % variants.len().max(1);
        variants.rotate_left(first);
        for variant in &variants {
            variant.warm_up().await?;
        }
        if args.decompose {
            for variant in &mut variants {
                let sample = variant.idle(Duration::from_millis(args.round_ms)).await?;
                idle.entry(variant.name.clone()).or_default().push(sample);
            }
        }
        for request in &args.request {
            let mut taking: Vec<&mut Variant> = variants.iter_mut().filter(|variant| variant.takes(*request)).collect();
            let least = least(&mut taking, *request, Duration::from_millis(args.round_ms)).await?;
            let samples = samples.entry(*request).or_default();
            for (variant, least) in taking.iter().zip(least) {
                samples.entry(variant.name.clone()).or_default().push(least);
            }
        }
        eprintln!("round {round} of {}", args.rounds);
    }
    let of_request = |request: &Request| Some(Figures::of(*request, args.rounds, samples.get(request)?, &idle));
    let figures: Vec<Figures> = args.request.iter().filter_map(of_request).collect();
    figures.iter().for_each(Figures::print);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&Report::of(figures))?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The least that each variant took for a request in its turns.
async fn least(variants: &mut [&mut Variant], request: Request, length: Duration) -> Result<Vec<f64>> {
    let mut least = vec![f64::INFINITY; variants.len()];
    for _ in 0..TURNS {
        for (variant, least) in variants.iter_mut().zip(&mut least) {
            *least = least.min(variant.measure(request, length).await?);
        }
    }
    Ok(least)
}
