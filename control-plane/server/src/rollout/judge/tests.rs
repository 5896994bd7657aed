//! How often a candidate that is no worse is aborted, and how soon one that is.

use headgate_core::rng::Rng;

use super::*;

const OBJECTIVE_US: u64 = 1_000_000;

/// How requests fare under one of the two: chances of being refused, failing, and being later than the objective.
#[derive(Clone, Copy)]
struct Fate {
    refused: f64,
    failed: f64,
    late: f64,
}

fn guard(alpha: f64) -> Guard {
    Guard { objective_us: OBJECTIVE_US, margins: [0.01; 3], min_samples: 200, alpha, n_steps: 1 }
}

fn serve(deeds: &mut Deeds, fate: Fate, rng: &mut Rng) {
    let chance = rng.next_f64();
    if chance < fate.refused {
        deeds.refused += 1;
    } else if chance < fate.refused + fate.failed {
        deeds.failed += 1;
    } else {
        deeds.completed += 1;
        let is_late = rng.next_f64() < fate.late;
        let within = (rng.next_f64() * OBJECTIVE_US as f64) as u64;
        deeds.ttft_us.record(if is_late { OBJECTIVE_US * 2 + within } else { within / 2 });
    }
}

/// Serves `n` requests of one class, a part of `canary` by the candidate, and looks whenever a look is due; after how many requests of the
/// candidate it was aborted, if it was.
fn play(guard: &Guard, canary: f64, n: u64, (of, candidate): (Fate, Fate), rng: &mut Rng) -> Option<(u64, Regression)> {
    let mut class = ClassDeeds { class: "all".to_owned(), ..ClassDeeds::default() };
    let (mut due, mut look) = (guard.min_samples, 0);
    for _ in 0..n {
        if rng.next_f64() < canary {
            serve(&mut class.candidate, candidate, rng);
        } else {
            serve(&mut class.of, of, rng);
        }
        let requests = class.candidate.requests();
        if requests >= due && guard.has_enough(std::slice::from_ref(&class)) {
            look += 1;
            if let Some(regression) = guard.look(std::slice::from_ref(&class), look) {
                return Some((requests, regression));
            }
            due = guard.next_look(requests);
        }
    }
    None
}

/// Rollouts of `runs` in which the candidate is aborted.
fn aborted(guard: &Guard, canary: f64, runs: u64, fates: (Fate, Fate)) -> usize {
    let mut rng = Rng::new(20_261_129);
    (0..runs).filter(|_| play(guard, canary, 6000, fates, &mut rng).is_some()).count()
}

#[test]
fn equal_arms_are_aborted_with_the_chance_that_was_asked_for_at_most() {
    let alpha = 0.2;
    for margins in [[0.0; 3], [0.01; 3]] {
        for fate in [
            Fate { refused: 0.0, failed: 0.0, late: 0.0 },
            Fate { refused: 0.0, failed: 0.002, late: 0.01 },
            Fate { refused: 0.3, failed: 0.05, late: 0.2 },
            Fate { refused: 0.9, failed: 0.05, late: 0.5 },
        ] {
            let guard = Guard { margins, ..guard(alpha) };
            let aborts = aborted(&guard, 0.3, 300, (fate, fate));
            println!("margin {}, refused {}: {aborts} of 300 aborted", margins[0], fate.refused);
            // 60 are allowed: the bound is far on the safe side.
            assert!(aborts <= 60, "{aborts}");
        }
    }
}

#[test]
fn whatever_the_traffic_is_equal_arms_are_not_aborted_more_often() {
    let (alpha, runs) = (0.05, 600);
    let mut rng = Rng::new(5);
    let mut aborts = 0;
    for _ in 0..runs {
        // Mostly rare events, where approximations fail: squares of even chances.
        let mut chance = || rng.next_f64().powi(2) / 2.0;
        let fate = Fate { refused: chance(), failed: chance(), late: chance() };
        let canary = 0.05 + 0.9 * chance();
        let guard = Guard { margins: [0.0; 3], ..guard(alpha) };
        aborts += usize::from(play(&guard, canary, 4000, (fate, fate), &mut rng).is_some());
    }
    println!("{aborts} of {runs} aborted, {:.0} allowed", alpha * f64::from(runs));
    assert!(f64::from(u32::try_from(aborts).unwrap_or(u32::MAX)) <= alpha * f64::from(runs), "{aborts}");
}

#[test]
fn a_candidate_that_is_worse_by_just_the_margin_is_not_aborted_more_often_either() {
    let of = Fate { refused: 0.05, failed: 0.0, late: 0.0 };
    let aborts = aborted(&guard(0.05), 0.3, 300, (of, Fate { refused: 0.06, ..of }));
    assert!(aborts <= 15, "{aborts}");
}

#[test]
fn a_regression_is_found_within_a_number_of_requests_that_falls_with_its_size() {
    let of = Fate { refused: 0.02, failed: 0.0, late: 0.0 };
    // Refusals beyond those of the policy, and the requests of the candidate within which all of 40 rollouts are aborted.
    for (worse, within) in [(0.05, 2500), (0.10, 700), (0.20, 251), (0.50, 200)] {
        let mut rng = Rng::new(7);
        let candidate = Fate { refused: of.refused + worse, ..of };
        let found: Vec<u64> = (0..40)
            .map(|_| play(&guard(0.01), 0.1, 200_000, (of, candidate), &mut rng).map_or(u64::MAX, |(requests, _)| requests))
            .collect();
        let (median, most) = (median(&found), found.iter().copied().max().unwrap_or(0));
        println!("{:.0} points worse, margin 1: aborted after {median} requests of the candidate (median), {most} at most", 100.0 * worse);
        assert!(most <= within, "{worse}: {most}");
    }
}

fn median(found: &[u64]) -> u64 {
    let mut sorted = found.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[test]
fn each_measure_is_told_by_its_name_and_figures() {
    let good = Fate { refused: 0.0, failed: 0.0, late: 0.0 };
    for (bad, measures) in [
        (Fate { failed: 0.3, ..good }, &[Measure::Failed, Measure::Missed][..]),
        (Fate { late: 0.3, ..good }, &[Measure::Missed, Measure::Late]),
        (Fate { refused: 0.3, ..good }, &[Measure::Missed]),
    ] {
        let (_, found) = play(&guard(0.01), 0.5, 20_000, (good, bad), &mut Rng::new(3)).unwrap();
        assert!(measures.contains(&found.measure), "{found}");
        assert!(found.to_string().starts_with("class all: ") && found.to_string().contains("the margin is 1.00 points"), "{found}");
    }
    // Twice as late as before, and still far within the objective: only the third measure sees it.
    let deeds = |ttft: u64| {
        let mut deeds = Deeds { completed: 3000, ..Deeds::default() };
        (0..3000).for_each(|n| deeds.ttft_us.record(ttft + n));
        deeds
    };
    let class = ClassDeeds { class: "all".to_owned(), candidate: deeds(20_000), of: deeds(10_000) };
    assert_eq!(guard(0.01).look(&[class], 1).unwrap().measure, Measure::Late);
}

#[test]
fn a_class_with_few_requests_is_not_judged() {
    let classes = [ClassDeeds {
        class: "rare".to_owned(),
        candidate: Deeds { refused: 199, ..Deeds::default() },
        of: Deeds { completed: 5000, ..Deeds::default() },
    }];
    assert_eq!(guard(0.01).look(&classes, 1), None);
    assert!(!guard(0.01).has_enough(&classes));
}
