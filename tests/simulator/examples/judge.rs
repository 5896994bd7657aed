//! Judges algorithms in scenarios: `cargo run --release -p headgate-sim --example judge -- [SCENARIOS|all] [CONTROLLERS|all] [SEEDS]
//! [JSON FILE]`.

use headgate_sim::scenarios::{STANDARD, Scenario, standard};
use headgate_sim::suite::{Algorithm, Plan, SuiteResults};

/// That of `headgate simulate`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let scenarios = args.next().filter(|arg| arg != "all");
    let algorithms = args.next().filter(|arg| arg != "all");
    let seeds: u64 = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let json = args.next();
    let chosen = |list: &Option<String>, name: &str| list.as_ref().is_none_or(|list| list.split(',').any(|one| one == name));
    let of_file = |name: &str| Ok::<_, Box<dyn std::error::Error>>(vec![Scenario::parse(&std::fs::read_to_string(name)?)?]);
    let plan = Plan {
        scenarios: match &scenarios {
            Some(file) if file.ends_with(".yaml") => of_file(file)?,
            _ => STANDARD
                .iter()
                .filter(|(name, _)| chosen(&scenarios, name))
                .filter_map(|(name, _)| standard(name))
                .collect::<Result<_, _>>()?,
        },
        algorithms: Algorithm::ALL.iter().copied().filter(|algorithm| chosen(&algorithms, algorithm.name())).collect(),
        seeds: (1..=seeds).collect(),
        policy: None,
        threads: std::thread::available_parallelism().map_or(1, Into::into),
    };
    let results = SuiteResults::of(&plan, &mut |_| {})?;
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    for scenario in &results.scenarios {
        println!("\n{} (load {})", scenario.name, scenario.load);
        println!(
            "{:28} {:>7} {:>7} {:>7} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6}  slo by class; ttft p99 by class",
            "", "goodput", "top slo", "thr", "jain", "settle", "over", "recov", "kv", "after"
        );
        for (name, of) in &scenario.controllers {
            let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            println!(
                "{name:28} {:7.4} {:7.4} {:7.4} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6}  {:.3?} {:.0?}",
                of.goodput_vs_oracle,
                of.top_class_slo,
                of.throughput_vs_none,
                show(of.jain),
                show(of.settle_s),
                show(of.overshoot),
                show(of.recovery_s),
                show(of.min_kv_use_while_queued),
                show(of.load_after_overload),
                of.slo_by_class,
                of.ttft_p99_ms_by_class.iter().map(|ms| ms.unwrap_or(-1.0)).collect::<Vec<_>>(),
            );
        }
        if !scenario.headgate_not_ahead_of.is_empty() {
            println!("headgate is not ahead of: {}", scenario.headgate_not_ahead_of.join(", "));
        }
    }
    println!(
        "\n{:.0} requests/s on one core with headgate; {:.0?}",
        results.sim_requests_per_s_per_core, results.sim_requests_per_s_per_core_by_controller
    );
    Ok(())
}
