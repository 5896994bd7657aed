//! Simulated requests per second of processor time: `cargo run --release -p headgate-sim --example speed -- [ENGINES] [LOAD] [none|headgate]`.

use std::time::Duration;

use headgate_sim::World;
use headgate_sim::baselines::no_control::NoControl;
use headgate_sim::controller::Controller;
use headgate_sim::headgate::{Headgate, default_policy};

mod plain;

/// Processor time of this program so far: what others do on the machine does not count.
fn cpu_seconds() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the clock is there");
    Duration::from(time).as_secs_f64()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, otherwise: f64| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (engines, load) = (number(1, 16.0) as usize, number(2, 1.0));
    let setup = plain::setup(engines, load, [1.0 / 3.0; 3], Duration::from_secs(120));
    let mut controller: Box<dyn Controller> = match arguments.get(3).map(String::as_str) {
        Some("headgate") => Box::new(Headgate::new(&setup, &default_policy(&setup)).expect("the default policy is valid")),
        _ => Box::new(NoControl),
    };
    match World::new(&setup, 1).run(&mut *controller, &mut ()) {
        Ok(totals) => {
            let took = cpu_seconds();
            println!("{totals:?}\n{:.0} requests/s, {:.0} events/s", totals.sent as f64 / took, totals.events as f64 / took);
        }
        Err(violation) => eprintln!("{violation}"),
    }
}
