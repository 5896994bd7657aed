//! The budget of prefill tokens: what the engines prefill in their part of the time to first token.
//!
//! By Little's law a backlog `P` that is worked off at rate `R` takes `P / R`. So `P = R · part` keeps the engines' share of the time
//! to first token at its part, and a budget that binds while it is faster measures a higher rate and grows.

use super::meter::{Tick, weight};

/// Part of the objective of the time to first token that the engines may use; the rest is for the queue in the proxy, which knows
/// priorities and deadlines, and for what the estimate is off.
pub(super) const ENGINE_PART: f64 = 0.25;
/// Backlog that an engine gets before anything is known: a few steps of chunked prefill (vLLM's default chunk is 2048 tokens).
const FIRST_TOKENS: f64 = 8192.0;
/// Backlog below which no budget falls: a budget must be able to learn again. It is the pool's; a longer prompt goes alone.
const LEAST_TOKENS: f64 = 2048.0;
/// Memory of the measured rate: a few times to first token.
const RATE_MEMORY_S: f64 = 0.5;
/// Memory with which the kept rate falls to the measured one while the budget binds, and time constant of a rate that proves itself.
const FALL_S: f64 = 5.0;
const RISE_S: f64 = 0.3;
/// Part of the budget from which on it binds.
pub(super) const BINDS: f64 = 0.9;
/// How far the fitted rate may exceed the one that was seen: the slope of a line says little far beyond its samples.
const FIT_TRUST: f64 = 4.0;

#[derive(Debug, Clone)]
pub(super) struct PrefillBudget {
    measured: f64,
    rate: f64,
    bound: Option<f64>,
}

/// What the budget needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct PrefillInput {
    /// Prefill tokens in flight.
    pub(super) in_flight: f64,
    /// Engines behind the pool; at least 1.
    pub(super) engines: f64,
    /// Seconds of prefill for a token on one engine, fitted.
    pub(super) seconds_per_token: Option<f64>,
    /// Objective of the time to first token, in seconds.
    pub(super) ttft_slo_s: f64,
}

impl PrefillBudget {
    pub(super) fn new() -> Self {
        Self { measured: 0.0, rate: 0.0, bound: None }
    }

    /// The bound in tokens; `None` before the first step.
    pub(super) fn bound(&self) -> Option<f64> {
        self.bound
    }

    pub(super) fn step(&mut self, tick: &Tick, input: &PrefillInput) {
        let now = tick.finished.prefill_tokens as f64 / tick.seconds;
        self.measured += weight(tick.seconds, RATE_MEMORY_S) * (now - self.measured);
        let binds = self.bound.is_some_and(|bound| input.in_flight >= BINDS * bound);
        if self.measured > self.rate {
            self.rate += weight(tick.seconds, RISE_S) * (self.measured - self.rate);
        } else if binds {
            self.rate += weight(tick.seconds, FALL_S) * (self.measured - self.rate);
        }
        let part_s = ENGINE_PART * input.ttft_slo_s;
        let first = FIRST_TOKENS * input.engines;
        let fitted = input.seconds_per_token.map_or(0.0, |seconds| input.engines / seconds.max(1e-9));
        // Before the rate has proved itself the first backlog takes the part; a fit extends what was seen, within its trust.
        let seen = self.rate * part_s;
        let bound = match input.seconds_per_token {
            Some(_) => (fitted * part_s).min(FIT_TRUST * seen.max(first)).max(seen),
            None => seen.max(first),
        };
        self.bound = Some(bound.max(LEAST_TOKENS));
    }
}
