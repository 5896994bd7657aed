//! The description of a world: everything but the algorithm and the seed.

use std::time::Duration;

use crate::engine::EngineConfig;

mod faults;
mod load;

pub use self::faults::{Fault, FaultAt, Network, Spread};
pub use self::load::{Arrivals, Backoff, Lengths, Patience, Retries, Shape, Source, Tenants, TraceRow};

/// A world.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name, for the line that reproduces a broken invariant.
    pub name: String,
    /// How long load arrives, in virtual time.
    pub duration: Duration,
    /// How long the world runs on afterwards at most, so that what is in flight can end.
    pub drain: Duration,
    /// Proxies.
    pub proxies: u16,
    /// Workers of each proxy.
    pub workers: u16,
    /// Engines of the pool.
    pub engines: Vec<EngineConfig>,
    /// Priority classes, the most important first; 1 to 8.
    pub classes: Vec<ClassSpec>,
    /// Load.
    pub sources: Vec<Source>,
    /// Recorded load in addition, in order of time.
    pub trace: Vec<TraceRow>,
    /// What the clients of the trace do.
    pub trace_patience: Patience,
    /// Between proxies and control plane.
    pub network: Network,
    /// What goes wrong, in order of time.
    pub faults: Vec<FaultAt>,
    /// Bytes of `content-length` per prompt token: mean and log-normal sigma. Proxies know only the length.
    pub bytes_per_token: (f64, f64),
    /// Time between two samples for the report.
    pub sample_every: Duration,
}

/// A priority class with its objective.
#[derive(Clone, Debug)]
pub struct ClassSpec {
    /// Name.
    pub name: String,
    /// Objective of the time to first token, from the client's send of the attempt.
    pub ttft: Duration,
    /// Objective of the mean time between tokens.
    pub tpot: Duration,
}

impl Default for Setup {
    /// Two proxies of four workers before four H100-class engines, three classes, no load.
    fn default() -> Self {
        let class = |name: &str, ttft_ms| ClassSpec {
            name: name.to_owned(),
            ttft: Duration::from_millis(ttft_ms),
            tpot: Duration::from_millis(100),
        };
        Self {
            name: "default".to_owned(),
            duration: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            proxies: 2,
            workers: 4,
            engines: vec![EngineConfig::default(); 4],
            classes: vec![class("critical", 2000), class("standard", 2000), class("batch", 2000)],
            sources: Vec::new(),
            trace: Vec::new(),
            trace_patience: Patience::default(),
            network: Network::default(),
            faults: Vec::new(),
            bytes_per_token: (4.0, 0.15),
            sample_every: Duration::from_millis(100),
        }
    }
}
