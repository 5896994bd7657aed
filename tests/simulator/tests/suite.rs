//! The suite in small: shortened scenarios, one seed.

use std::time::Duration;

use headgate_sim::scenarios::{STANDARD, Scenario, standard};
use headgate_sim::suite::{Algorithm, Outcome, Plan, SuiteResults, compare};

/// Load of a shortened scenario.
const SHORT: Duration = Duration::from_secs(32);

fn short(name: &str) -> Scenario {
    standard(name).expect("a standard scenario").expect("valid").shortened(SHORT)
}

fn baselines() -> Vec<Algorithm> {
    Algorithm::ALL.iter().copied().filter(|algorithm| algorithm.is_baseline()).collect()
}

/// Requests of the top class that missed their objectives.
fn missed(of: &Outcome) -> f64 {
    let top = &of.figures.classes[0];
    (1.0 - top.slo) * top.offered as f64
}

#[test]
fn nothing_is_better_than_the_oracle() {
    let mut wrong = Vec::new();
    for &(name, _) in STANDARD {
        let cells = compare(&short(name), &baselines(), None, 1).expect("no invariant is broken");
        for algorithm in baselines() {
            let of = &cells[&algorithm];
            // What a lost engine takes along is chance, and less the emptier it was kept.
            let slack = if name == "engine-lost" { f64::INFINITY } else { 2.5 };
            if of.goodput_vs_oracle > 1.0 || missed(of) + slack < missed(&cells[&Algorithm::Oracle]) {
                let name = format!("{name}: {}", algorithm.name());
                wrong.push(format!("{name} has {:.3} of its goodput, {:.0} of the top class missed", of.goodput_vs_oracle, missed(of)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn headgate_is_ahead_of_every_baseline_where_load_is_far_beyond_capacity() {
    let name = "step-10x";
    let mut algorithms = baselines();
    algorithms.push(Algorithm::Headgate);
    let cells = compare(&short(name), &algorithms, None, 1).expect("no invariant is broken");
    let ours = &cells[&Algorithm::Headgate];
    // The goal is 0.999; what is missing are times between tokens while the engines fill up after the step.
    assert!(ours.figures.top_class_slo >= 0.9, "{name}: top class {:.4}", ours.figures.top_class_slo);
    for algorithm in baselines() {
        let theirs = &cells[&algorithm];
        assert!(
            ours.goodput_vs_oracle > theirs.goodput_vs_oracle && ours.figures.top_class_slo > theirs.figures.top_class_slo,
            "{name}: {:.3} of the oracle's goodput, {} {:.3}",
            ours.goodput_vs_oracle,
            algorithm.name(),
            theirs.goodput_vs_oracle
        );
    }
}

/// Each worker serves each of them too seldom to be fair by what it knows itself: .98 after a whole run.
#[test]
fn a_thousand_tenants_get_the_same_from_all_workers_together() {
    let scenario = standard("tenants-1000").expect("a standard scenario").expect("valid");
    let cells = compare(&scenario, &[Algorithm::Headgate], None, 1).expect("no invariant is broken");
    let figures = &cells[&Algorithm::Headgate].figures;
    assert!(figures.jain.is_some_and(|jain| jain >= 0.99) && figures.top_class_slo >= 0.999, "{figures:?}");
}

#[test]
fn the_same_plan_gives_the_same_results_on_any_number_of_threads() {
    let plan = |threads| Plan {
        scenarios: vec![short("bursts").shortened(Duration::from_secs(6)), short("gamma-cv3").shortened(Duration::from_secs(6))],
        algorithms: vec![Algorithm::Headgate, Algorithm::Dagor],
        seeds: vec![1, 2],
        policy: None,
        threads,
    };
    let text = |threads| {
        let results = SuiteResults::of(&plan(threads), &mut |_| {}).expect("no invariant is broken");
        serde_json::to_string(&results.scenarios).expect("JSON")
    };
    assert_eq!(text(1), text(3));
}
