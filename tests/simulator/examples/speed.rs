//! Simulated requests per second of processor time, by scenario, and what came out: `cargo run --release -p headgate-sim --example speed --
//! [SCENARIOS|all] [CONTROLLERS] [SEEDS] [ROUNDS]`. The best of the rounds counts: whatever else runs on the machine only slows one down.
//!
//! The digest is of everything that was recorded: a change that is to make nothing but speed leaves it alone.

use headgate_sim::scenarios::{STANDARD, standard};
use headgate_sim::suite::{Algorithm, Played, play};

/// That of `headgate simulate`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let scenarios = args.next().filter(|arg| arg != "all");
    let algorithms = args.next().unwrap_or_else(|| "headgate".to_owned());
    let seeds: u64 = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let rounds: u32 = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let chosen = |name: &str| scenarios.as_ref().is_none_or(|list| list.split(',').any(|one| one == name));
    let (mut attempts, mut seconds) = (0.0, 0.0);
    for (name, _) in STANDARD.iter().filter(|(name, _)| chosen(name)) {
        let scenario = standard(name).ok_or("no such scenario")??;
        for algorithm in algorithms.split(',') {
            let algorithm = Algorithm::named(algorithm).ok_or("no such controller")?;
            for seed in 1..=seeds {
                let mut best: Option<Played> = None;
                for _ in 0..rounds.max(1) {
                    let played = play(&scenario, algorithm, None, seed)?;
                    best = Some(best.filter(|best| best.took <= played.took).unwrap_or(played));
                }
                let Some(Played { run, totals, took }) = best else { continue };
                let (sent, took_s) = (run.attempts as f64, took.as_secs_f64());
                (attempts, seconds) = (attempts + sent, seconds + took_s);
                println!(
                    "{name:22} {:12} seed {seed} {sent:8} requests {:9} events {took_s:7.3} s {:9.0} requests/s {:016x}",
                    algorithm.name(),
                    totals.events,
                    sent / took_s,
                    run.digest()
                );
            }
        }
    }
    println!("{attempts} requests in {seconds:.3} s: {:.0} requests/s", attempts / seconds);
    Ok(())
}
