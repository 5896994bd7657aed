use super::*;

/// A thousand proxies, of which twenty have a hundred times the demand of the others.
fn scenario(base: f64, load: f64) -> Scenario {
    Scenario { base, load, ..Scenario::default() }
}

fn faulty(base: f64) -> Scenario {
    Scenario { network: Network { loss: 0.1, duplication: 0.1 }, ..scenario(base, 0.8) }
}

fn played(scenario: &Scenario) -> Figures {
    let figures = play(scenario, 11).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{figures:?}");
    figures
}

#[test]
fn a_thousand_proxies_use_their_quota_two_seconds_after_demand_has_moved_a_hundredfold() {
    for (base, load) in [(100.0, 0.5), (20.0, 0.8), (20.0, 1.2)] {
        let figures = played(&scenario(base, load));
        assert_eq!((figures.overshoot, figures.used_beyond_burst), (0.0, 0.0), "{figures:?}");
        assert!(figures.utilisation >= 0.98 && figures.worst_window >= 0.94, "{figures:?}");
        assert!(figures.converged_s.is_some_and(|at| at <= 2.0), "{figures:?}");
    }
}

#[test]
fn messages_that_are_lost_or_doubled_and_proxies_that_are_cut_off_cost_use_and_no_overshoot() {
    let figures = played(&faulty(100.0));
    assert!(figures.utilisation >= 0.98 && figures.converged_s.is_some_and(|at| at <= 2.5), "{figures:?}");
    // What those hold that cannot be reached is nobody's until their leases end, up to six seconds later.
    let cut = Cut { at: Duration::from_secs(10), lasts: Duration::from_secs(3), proxies: 50 };
    let figures = played(&Scenario { cuts: vec![cut], ..faulty(100.0) });
    assert_eq!((figures.overshoot, figures.used_beyond_burst), (0.0, 0.0), "{figures:?}");
    assert!(figures.utilisation >= 0.95, "{figures:?}");
}

/// At five requests a second a purse of one second's worth loses much by chance, and what is known of demand is forty requests.
#[test]
fn small_proxies_use_their_quota_too_and_a_longer_burst_saves_what_chance_costs() {
    let short = played(&faulty(5.0));
    assert!(short.utilisation >= 0.96, "{short:?}");
    let long = played(&Scenario { burst_s: 4.0, ..faulty(5.0) });
    assert!(long.utilisation >= 0.98 && long.converged_s.is_some_and(|at| at <= 2.0), "{long:?}");
}

#[test]
fn fast_passes_the_capacity_by_a_hundredth_at_most() {
    let figures = played(&Scenario { overbook: 0.01, ..faulty(20.0) });
    assert!(figures.overshoot <= 0.01 + 1e-9 && figures.utilisation > 0.98, "{figures:?}");
}

#[test]
fn the_standard_documents_are_played_with_nothing_passed() {
    for (name, _) in STANDARD {
        let scenario = Scenario::standard(name).unwrap().unwrap();
        assert_eq!(scenario.name, *name);
        // A tenth of the proxies: what is checked after every event is the same.
        let figures = played(&Scenario { proxies: 100, hot: 2, cuts: tenth(&scenario.cuts), ..scenario });
        assert_eq!((figures.overshoot, figures.used_beyond_burst), (0.0, 0.0), "{name}");
        assert!(figures.events > 200_000 && figures.utilisation > 0.9, "{name}: {figures:?}");
    }
}

fn tenth(cuts: &[Cut]) -> Vec<Cut> {
    cuts.iter().map(|cut| Cut { proxies: cut.proxies / 10, ..*cut }).collect()
}

#[test]
fn every_problem_of_a_document_is_reported_with_field_value_and_range() {
    let (_, document) = STANDARD[1];
    assert!(is_document(document) && !is_document("name: plain"));
    let text = document.replace("loss: 0.1", "loss: 2").replace("burstMs: 1000", "burstMs: 1").replace("[3, 9, 15, 27]", "[9, 3]");
    let problems = Scenario::parse(&text).unwrap_err().to_string();
    let expected =
        ["quota.burstMs: 1 is outside 100..=60000", "network.loss: 2 is outside 0..=0.9", "demand.shiftsAtSeconds[1]: 3 is outside 9..=36"];
    assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
    assert!(Scenario::parse(&format!("{document}\nspeed: 3\n")).unwrap_err().to_string().contains("unknown field `speed`"));
}

/// The check after every event finds what it is there for: proxies that spend twice what they hold.
#[test]
fn what_passes_the_capacity_is_found() {
    let small = Scenario { proxies: 20, hot: 1, duration: Duration::from_secs(5), ..Scenario::default() };
    let mut world = World::new(&small, 11);
    world.terms.capacity *= 2.0;
    world.leader.set_terms(world.terms);
    world.terms.capacity /= 2.0;
    let violation = (0..10).find_map(|_| world.window().err()).expect("twice the capacity is granted");
    assert!(violation.to_string().contains("a second are in force"), "{violation}");
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let small = Scenario { proxies: 50, hot: 1, ..faulty(20.0) };
    let play = |seed| format!("{:?}", play(&small, seed).unwrap());
    assert_eq!(play(11), play(11));
    assert_ne!(play(11), play(12));
}
