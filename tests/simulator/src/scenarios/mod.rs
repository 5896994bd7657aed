//! Scenarios: a world with its load, its faults and the span of time by which it is judged.
//!
//! The standard set is made of documents in the folder `scenarios/`, the same kind that people write; `headgate simulate
//! --print-scenario NAME` gives one to start from.

use std::time::Duration;

use crate::setup::{Patience, Retries, Setup};

mod check;
mod engines;
mod file;
mod raw;
mod standard;
mod trace;

pub(crate) use check::Check;
pub use check::Problem;
pub use file::ScenarioError;
pub use standard::{STANDARD, document, standard};
pub use trace::{TraceError, parse_trace};

/// A world and how runs in it are judged.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it shows, in a sentence or two.
    pub summary: String,
    /// How it is judged.
    pub judging: Judging,
    /// For each class the part of the capacity that the policy guarantees it, in percent.
    pub floors_percent: Vec<u32>,
    /// The world.
    pub setup: Setup,
}

/// By what a run is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judging {
    /// Offered work over capacity at its height.
    pub load: f64,
    /// From when on requests and responses count; before, everything is still filling up.
    pub from: Duration,
    /// When the load is high and stays as it is: settling is judged from its beginning, recovery from its end. `None`: no such span.
    pub overload: Option<Span>,
    /// Requests of the mean size that the pool serves in a second; what the operator of a static limit would know.
    pub capacity_rps: f64,
}

/// A span of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First moment.
    pub from: Duration,
    /// Last moment.
    pub to: Duration,
}

// === impl Scenario ===

impl Scenario {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// The same with clients that never give up nor try again: what the engines do at their best when nothing is wasted.
    #[must_use]
    pub fn with_endless_patience(&self) -> Self {
        let mut scenario = self.clone();
        let patience = Patience { timeout: Duration::from_secs(1_000_000), retries: Retries::None };
        for source in &mut scenario.setup.sources {
            source.patience = patience;
        }
        scenario.setup.trace_patience = patience;
        scenario
    }

    /// The same, cut to `seconds` of load and judged over the span that is left: for quick looks, not for figures.
    #[must_use]
    pub fn shortened(mut self, seconds: Duration) -> Self {
        self.setup.duration = self.setup.duration.min(seconds);
        let end = self.setup.duration;
        self.setup.drain = self.setup.drain.min(seconds);
        self.judging.from = self.judging.from.min(end / 4);
        self.judging.overload = self.judging.overload.filter(|span| span.from < end).map(|span| Span { to: span.to.min(end), ..span });
        for source in &mut self.setup.sources {
            source.until = source.until.min(end);
        }
        self.setup.faults.retain(|fault| fault.at < end);
        self
    }
}
