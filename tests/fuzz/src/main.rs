//! `cargo xtask fuzz`: mutates the corpus of every target for a while.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use headgate_fuzz::run::{Outcome, fuzz};
use headgate_fuzz::{TARGETS, corpus};

/// Novel inputs of one target that `--save` adds to the corpus at most.
const MAX_SAVED: usize = 40;

/// Looks for inputs that make a parser or state machine panic, hang or contradict itself.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask fuzz --seconds 60\n  cargo xtask fuzz --target engine_page --seconds 600 --seed 7")]
struct Args {
    /// Time for each target, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// This target alone
    #[arg(long)]
    target: Option<String>,
    /// Seed of the mutations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Adds inputs that showed something new to the corpus, at most 40 a target
    #[arg(long)]
    save: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    // Every panic is reported below, once.
    std::panic::set_hook(Box::new(|_| {}));
    let mut is_clean = true;
    println!("{:<18} {:>10} {:>10} {:>8} {:>8}", "target", "inputs", "inputs/s", "shapes", "findings");
    for target in TARGETS.iter().filter(|target| args.target.as_deref().is_none_or(|name| name == target.name)) {
        let inputs: Vec<Vec<u8>> = corpus::load(target)?.into_iter().map(|(_, input)| input).collect();
        let summary = fuzz(target, &inputs, args.seed, Duration::from_secs(args.seconds));
        let rate = summary.inputs as f64 / summary.took.as_secs_f64();
        let (shapes, findings) = (summary.fingerprints, summary.findings.len());
        println!("{:<18} {:>10} {rate:>10.0} {shapes:>8} {findings:>8}", target.name, summary.inputs);
        for (input, outcome) in &summary.findings {
            is_clean = false;
            let path = corpus::save(target, "finding", input)?;
            match outcome {
                Outcome::Panicked(message) => println!("  {message}\n  input: {}", path.display()),
                other => println!("  {other:?}\n  input: {}", path.display()),
            }
        }
        if args.save {
            for input in summary.novel.iter().take(MAX_SAVED) {
                corpus::save(target, "novel", input)?;
            }
        }
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
