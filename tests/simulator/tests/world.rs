//! What the simulated world does is pinned: clients, engines, balancer and judging, under algorithms that share no code with Headgate's
//! controller. A change that is to make the simulator faster, or otherwise leave it as it is, leaves `world.txt` alone.
//!
//! `HEADGATE_BLESS=1 cargo test -p headgate-sim --test world` writes it anew.

use std::fmt::Write as _;
use std::time::Duration;
use std::{env, fs};

use headgate_sim::scenarios::{STANDARD, standard};
use headgate_sim::suite::{Algorithm, compare, play};

/// Load of a shortened scenario: long enough for the steps, faults and retries of most.
const SHORT: Duration = Duration::from_secs(24);

/// All figures, to the last bit: JSON writes floats so that they read back as the same.
fn figures(seed: u64) -> String {
    let mut text = String::new();
    for (name, _) in STANDARD {
        let scenario = standard(name).expect("a standard scenario").expect("valid").shortened(SHORT);
        let cells = compare(&scenario, &[Algorithm::Dagor], None, seed).expect("no invariant is broken");
        for (algorithm, outcome) in cells {
            let figures = serde_json::to_string(&outcome.figures).expect("JSON");
            let _ = writeln!(text, "{name} {seed} {}: {figures}", algorithm.name());
        }
    }
    text
}

#[test]
fn the_world_is_as_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world.txt");
    let now = [1, 2].map(figures).concat();
    if env::var_os("HEADGATE_BLESS").is_some() {
        fs::write(path, &now).expect("the file can be written");
    }
    let then = fs::read_to_string(path).expect("the file is there");
    for (now, then) in now.lines().zip(then.lines()) {
        assert_eq!(now, then, "bless with HEADGATE_BLESS=1 if the world was meant to change");
    }
    assert_eq!(now.lines().count(), then.lines().count());
}

#[test]
fn a_world_ends_with_its_last_request() {
    let mut scenario = standard("steady-2x").expect("a standard scenario").expect("valid").shortened(Duration::from_secs(6));
    let mut totals = |drain_s| {
        scenario.setup.drain = Duration::from_secs(drain_s);
        play(&scenario, Algorithm::Headgate, None, 1).expect("no invariant is broken").totals
    };
    let (short, long) = (totals(60), totals(600));
    assert_eq!(short.sent, short.over, "everything is over within a minute");
    assert_eq!(short, long, "nothing happens when everything is over");
}
