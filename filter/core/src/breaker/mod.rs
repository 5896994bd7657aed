//! Circuit breaker: closed, open, half-open, ramping.
//!
//! Closed, it counts failures in a row and error rates over windows; any of them opens it. Open, nothing passes for a time. Then a
//! bounded number of probes passes at once; enough successes close it and the traffic grows back over a ramp, one failure opens it
//! again. Results of requests from before an opening say nothing about the time after it and are ignored.

use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use crate::policy::BreakerConfig;
use crate::rng::Rng;
use crate::time::Timestamp;

mod keyed;
mod window;

pub use keyed::{KeyedBreakers, KeyedGate, KeyedPass, MAX_KEYS};
use window::ErrorWindow;

/// Share of traffic at the start of the ramp.
const FIRST_SHARE: f64 = 0.1;
/// What a client is told when all probes are out and nobody knows how they will end.
const PROBING_RETRY: Duration = Duration::from_secs(1);

/// How a request ended, for a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It had a response that is not a failure.
    Success,
    /// It failed.
    Failure,
    /// It says nothing: the client left first, or something else failed.
    Unknown,
}

/// What opened a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Opened {
    /// Failures in a row, or failures in percent.
    pub value: f64,
    /// The threshold that it reached.
    pub threshold: f64,
}

/// Permission of one request to pass; it goes back with [`Breaker::settle`] exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    generation: u32,
    is_probe: bool,
}

/// Whether a request passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// It passes.
    Open(Pass),
    /// It does not; the breaker may let requests pass after `recovery`.
    Shut {
        /// Time until then.
        recovery: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Closed,
    Open { until: Timestamp },
    HalfOpen { in_flight: u32, successes: u32 },
    Ramping { since: Timestamp },
}

/// One circuit breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    phase: Phase,
    /// Grows with every opening.
    generation: u32,
    consecutive_failures: u32,
    windows: Vec<ErrorWindow>,
    opened: Opened,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: &BreakerConfig) -> Self {
        Self { phase: Phase::Closed, generation: 0, consecutive_failures: 0, windows: windows(config), opened: Opened::default() }
    }

    /// Follows a changed policy: the state stays, what was counted towards the old thresholds does not.
    pub fn reconfigure(&mut self, config: &BreakerConfig) {
        self.windows = windows(config);
        self.consecutive_failures = 0;
    }

    /// State on the wire.
    #[must_use]
    pub fn state(&self) -> v1::BreakerState {
        match self.phase {
            Phase::Closed => v1::BreakerState::Closed,
            Phase::Open { .. } => v1::BreakerState::Open,
            Phase::HalfOpen { .. } => v1::BreakerState::HalfOpen,
            Phase::Ramping { .. } => v1::BreakerState::Ramping,
        }
    }

    /// Whether every request passes.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// What opened it last.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Moves on what moves with time alone: an open breaker to half-open, the end of the ramp to closed.
    pub fn on_tick(&mut self, config: &BreakerConfig, now: Timestamp) {
        match self.phase {
            Phase::Open { until } if now >= until => self.phase = Phase::HalfOpen { in_flight: 0, successes: 0 },
            Phase::Ramping { since } if now.since(since) >= config.ramp => self.phase = Phase::Closed,
            _ => {}
        }
    }

    /// Whether a request passes at `now`.
    pub fn admit(&mut self, config: &BreakerConfig, now: Timestamp, rng: &mut Rng) -> Gate {
        self.on_tick(config, now);
        let generation = self.generation;
        match &mut self.phase {
            Phase::Closed => Gate::Open(Pass { generation, is_probe: false }),
            Phase::Open { until } => Gate::Shut { recovery: until.since(now) },
            Phase::HalfOpen { in_flight, .. } if *in_flight < config.half_open_probes => {
                *in_flight += 1;
                Gate::Open(Pass { generation, is_probe: true })
            }
            Phase::HalfOpen { .. } => Gate::Shut { recovery: PROBING_RETRY },
            Phase::Ramping { since } => {
                let elapsed = now.since(*since);
                let part = elapsed.as_secs_f64() / config.ramp.as_secs_f64();
                if rng.next_f64() < FIRST_SHARE + (1.0 - FIRST_SHARE) * part {
                    Gate::Open(Pass { generation, is_probe: false })
                } else {
                    Gate::Shut { recovery: config.ramp.saturating_sub(elapsed) }
                }
            }
        }
    }

    /// Takes the result of a request that passed, and a probe's place back.
    pub fn settle(&mut self, config: &BreakerConfig, now: Timestamp, pass: Pass, verdict: Verdict) {
        if pass.generation != self.generation {
            return;
        }
        match &mut self.phase {
            Phase::Closed | Phase::Ramping { .. } => self.count(config, now, verdict),
            Phase::Open { .. } => {}
            Phase::HalfOpen { in_flight, successes } => {
                if pass.is_probe {
                    *in_flight = in_flight.saturating_sub(1);
                }
                match verdict {
                    Verdict::Unknown => {}
                    Verdict::Failure => self.open(config, now, Opened { value: 1.0, threshold: 1.0 }),
                    Verdict::Success => {
                        *successes += 1;
                        if *successes >= config.successes_to_close {
                            self.close(config, now);
                        }
                    }
                }
            }
        }
    }

    /// Takes a result of a request that did not have to ask for permission: what an endpoint answered, chosen by Envoy.
    pub fn observe(&mut self, config: &BreakerConfig, now: Timestamp, verdict: Verdict) {
        self.on_tick(config, now);
        let pass = Pass { generation: self.generation, is_probe: false };
        self.settle(config, now, pass, verdict);
    }

    fn count(&mut self, config: &BreakerConfig, now: Timestamp, verdict: Verdict) {
        let is_failure = match verdict {
            Verdict::Unknown => return,
            Verdict::Failure => true,
            Verdict::Success => false,
        };
        self.consecutive_failures = if is_failure { self.consecutive_failures.saturating_add(1) } else { 0 };
        for window in &mut self.windows {
            window.record(now, is_failure);
        }
        if !is_failure {
            return;
        }
        if self.consecutive_failures >= config.consecutive_failures {
            let (value, threshold) = (f64::from(self.consecutive_failures), f64::from(config.consecutive_failures));
            return self.open(config, now, Opened { value, threshold });
        }
        let exceeded = self.windows.iter().find_map(|window| Some((window.exceeded()?, window.percent())));
        if let Some((value, threshold)) = exceeded {
            self.open(config, now, Opened { value, threshold });
        }
    }

    fn open(&mut self, config: &BreakerConfig, now: Timestamp, opened: Opened) {
        self.phase = Phase::Open { until: now + config.open };
        self.generation = self.generation.wrapping_add(1);
        self.opened = opened;
        self.forget();
    }

    fn close(&mut self, config: &BreakerConfig, now: Timestamp) {
        self.phase = if config.ramp.is_zero() { Phase::Closed } else { Phase::Ramping { since: now } };
        self.forget();
    }

    fn forget(&mut self) {
        self.consecutive_failures = 0;
        for window in &mut self.windows {
            window.clear();
        }
    }
}

fn windows(config: &BreakerConfig) -> Vec<ErrorWindow> {
    config.error_rates.iter().map(|rate| ErrorWindow::new(*rate)).collect()
}

#[cfg(test)]
mod tests;
