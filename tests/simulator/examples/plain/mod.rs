//! The load that the examples play when no scenario is named.

use std::time::Duration;

use headgate_sim::Setup;
use headgate_sim::engine::EngineConfig;
use headgate_sim::setup::{Arrivals, Lengths, Patience, Shape, Source, Tenants};

/// Requests of the mean size below that one engine of the default kind serves in a second.
const ENGINE_RPS: f64 = 12.0;

/// So many engines of the default kind under `load` times what they can serve, for `duration`; `shares` is each class's part of the load.
pub(crate) fn setup(engines: usize, load: f64, shares: [f64; 3], duration: Duration) -> Setup {
    let source = |(class, share): (u8, f64)| Source {
        class,
        tenants: Tenants { first: 0, count: 1000, zipf: 0.9 },
        arrivals: Arrivals::Open { rps: ENGINE_RPS * load * engines as f64 * share, cv: 1.0, shape: Shape::Steady },
        prompt: Lengths::LogNormal { median: 400.0, sigma: 0.7, most: 8000 },
        output: Lengths::LogNormal { median: 200.0, sigma: 0.7, most: 4000 },
        patience: Patience { timeout: Duration::from_secs(10), ..Patience::default() },
        from: Duration::ZERO,
        until: Duration::from_secs(3600),
    };
    Setup {
        engines: vec![EngineConfig::default(); engines],
        sources: (0..).zip(shares).map(source).collect(),
        duration,
        drain: Duration::from_secs(20),
        ..Setup::default()
    }
}
