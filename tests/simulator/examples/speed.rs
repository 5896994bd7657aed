//! Simulated requests per second of processor time: `cargo run --release -p headgate-sim --example speed -- [ENGINES] [LOAD] [none|headgate]`.

use std::time::Duration;

use headgate_sim::controller::{Controller, Ctx};
use headgate_sim::engine::EngineConfig;
use headgate_sim::headgate::{Headgate, default_policy};
use headgate_sim::setup::{Arrivals, Lengths, Patience, Shape, Source, Tenants};
use headgate_sim::{Arrival, Setup, Verdict, World};

/// Requests of the mean size below that one engine of the default kind serves in a second.
const ENGINE_RPS: f64 = 12.0;

struct Everything;

impl Controller for Everything {
    fn name(&self) -> &'static str {
        "none"
    }

    fn on_arrival(&mut self, _: &mut Ctx<'_>, _: &Arrival) -> Verdict {
        Verdict::Admit
    }
}

/// Processor time of this program so far: what others do on the machine does not count.
fn cpu_seconds() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the clock is there");
    Duration::from(time).as_secs_f64()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, otherwise: f64| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (engines, load) = (number(1, 16.0) as usize, number(2, 1.0));
    let source = |class| Source {
        class,
        tenants: Tenants { first: 0, count: 1000, zipf: 0.9 },
        arrivals: Arrivals::Open { rps: ENGINE_RPS * load * engines as f64 / 3.0, cv: 1.0, shape: Shape::Steady },
        prompt: Lengths::LogNormal { median: 400.0, sigma: 0.7, most: 8000 },
        output: Lengths::LogNormal { median: 200.0, sigma: 0.7, most: 4000 },
        patience: Patience { timeout: Duration::from_secs(10), ..Patience::default() },
        from: Duration::ZERO,
        until: Duration::from_secs(3600),
    };
    let setup = Setup {
        engines: vec![EngineConfig::default(); engines],
        sources: (0..3).map(source).collect(),
        duration: Duration::from_secs(120),
        ..Setup::default()
    };
    let mut controller: Box<dyn Controller> = match arguments.get(3).map(String::as_str) {
        Some("headgate") => Box::new(Headgate::new(&setup, &default_policy(&setup)).expect("the default policy is valid")),
        _ => Box::new(Everything),
    };
    match World::new(&setup, 1).run(&mut *controller, &mut ()) {
        Ok(totals) => {
            let took = cpu_seconds();
            println!("{totals:?}\n{:.0} requests/s, {:.0} events/s", totals.sent as f64 / took, totals.events as f64 / took);
        }
        Err(violation) => eprintln!("{violation}"),
    }
}
