//! `cargo xtask fuzz`: mutates the corpus of every target for a while.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use headgate_fuzz::run::{Outcome, fuzz, once};
use headgate_fuzz::{TARGETS, Target, corpus};
use serde_json::json;

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
    /// Writes the figures there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Tries this one input of `--target` instead of looking for others
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let chosen: Vec<&Target> = TARGETS.iter().filter(|target| args.target.as_deref().is_none_or(|name| name == target.name)).collect();
    ensure!(!chosen.is_empty(), "no such target; there are {:?}", TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
    if let (Some(path), [target]) = (&args.input, chosen.as_slice()) {
        return repeat(target, path);
    }
    // Every panic is reported below, once.
    std::panic::set_hook(Box::new(|_| {}));
    let mut is_clean = true;
    let mut figures = Vec::new();
    println!("{:<18} {:>10} {:>10} {:>8} {:>8}", "target", "inputs", "inputs/s", "shapes", "findings");
    for target in chosen {
        let inputs: Vec<Vec<u8>> = corpus::load(target)?.into_iter().map(|(_, input)| input).collect();
        let summary = fuzz(target, &inputs, args.seed, Duration::from_secs(args.seconds));
        let rate = summary.inputs as f64 / summary.took.as_secs_f64();
        let (shapes, findings) = (summary.fingerprints, summary.findings.len());
        println!("{:<18} {:>10} {rate:>10.0} {shapes:>8} {findings:>8}", target.name, summary.inputs);
        figures.push(json!({
            "target": target.name, "inputs": summary.inputs, "inputsPerSecond": rate, "seconds": summary.took.as_secs_f64(),
            "shapes": shapes, "findings": findings,
        }));
        for (input, outcome) in &summary.findings {
            is_clean = false;
            let path = corpus::save(target, "finding", input)?;
            println!("  {}\n  repeat: cargo xtask fuzz --target {} --input {}", words(outcome), target.name, path.display());
        }
        if args.save {
            for input in summary.novel.iter().take(MAX_SAVED) {
                corpus::save(target, "novel", input)?;
            }
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn repeat(target: &Target, path: &Path) -> Result<ExitCode> {
    let input = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let outcome = once(target, &input);
    println!("{}: {}", target.name, words(&outcome));
    Ok(if matches!(outcome, Outcome::Fine(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Fine(_) => "fine".to_owned(),
        Outcome::Slow(took) => format!("took {took:?}"),
        Outcome::Panicked(message) => message.clone(),
    }
}
