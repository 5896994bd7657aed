//! How many retries the fleet may admit.

use super::meter::{Tick, weight};
use crate::policy::RetryConfig;

/// Span over which retries are measured against first attempts. Source: `policy.proto`, `RetryBudget.percent`.
const MEMORY_S: f64 = 10.0;

/// The retry ratio in force.
#[derive(Debug, Clone, Default)]
pub(super) struct Retries {
    retries: f64,
    firsts: f64,
}

impl Retries {
    /// Takes in one tick and returns the part of first attempts that retries may be.
    ///
    /// While nothing is short there is no bound: what an overload has turned away may come back and find room. While work is short the
    /// bound is the policy's; offered retries beyond it are refused before any first attempt is.
    pub(super) fn step(&mut self, tick: &Tick, short: bool, config: &RetryConfig) -> f64 {
        let weight = weight(tick.seconds, MEMORY_S);
        let firsts = tick.offered_requests.saturating_sub(tick.retries);
        self.retries += weight * (tick.retries as f64 / tick.seconds - self.retries);
        self.firsts += weight * (firsts as f64 / tick.seconds - self.firsts);
        let budget = f64::from(config.percent.min(100)) / 100.0;
        if short && self.retries > budget * self.firsts { budget } else { 1.0 }
    }
}
