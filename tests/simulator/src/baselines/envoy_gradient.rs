//! Envoy's `adaptive_concurrency` filter: a concurrency limit per proxy that follows the gradient of the latency.
//!
//! Sources: `gradient_controller.cc` and the filter's documentation of Envoy 1.3x; issues envoyproxy/envoy#18152, #38338 and #46532
//! for what the probing window does. Values are the defaults of `adaptive_concurrency.proto`; the two that have none (update interval,
//! interval of the probe) are those of its documentation's example, 100 ms and 60 s. The latency is that of the whole stream, as there.

use std::time::Duration;

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};
use crate::rng::Rng;

/// Settings of the filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time between two updates of the limit.
    pub update_interval: Duration,
    /// Time between two probes for the lowest latency.
    pub probe_interval: Duration,
    /// Part of `probe_interval` by which a probe may come later, 0 to 1.
    pub jitter: f64,
    /// Responses that a probe takes.
    pub probe_requests: usize,
    /// Part of the lowest latency that does not count as queueing, 0 to 1.
    pub buffer: f64,
    /// Limit while probing, and the smallest at all.
    pub min_concurrency: u32,
    /// Largest limit.
    pub max_concurrency: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            update_interval: Duration::from_millis(100),
            probe_interval: Duration::from_secs(60),
            jitter: 0.15,
            probe_requests: 50,
            buffer: 0.25,
            min_concurrency: 3,
            max_concurrency: 1000,
        }
    }
}

/// Updates in a row at the smallest limit after which Envoy probes anew (`gradient_controller.cc`).
const UPDATES_AT_MINIMUM: u32 = 5;

/// The controller of one proxy.
#[derive(Debug)]
pub struct Gradient {
    settings: Settings,
    limit: u32,
    in_flight: u32,
    min_latency: Option<f64>,
    /// Limit to come back to after the probe; `None` outside a probe.
    deferred: Option<u32>,
    samples: Vec<f64>,
    at_minimum: u32,
}

// === impl Gradient ===

impl Gradient {
    /// Starts, as Envoy does, with a probe.
    pub fn new(settings: Settings) -> Self {
        let mut gradient = Self {
            settings,
            limit: settings.min_concurrency,
            in_flight: 0,
            min_latency: None,
            deferred: None,
            samples: Vec::new(),
            at_minimum: 0,
        };
        gradient.begin_probe();
        gradient
    }

    /// Whether one more request may start; it counts as in flight if so.
    pub fn try_admit(&mut self) -> bool {
        let admitted = self.in_flight < self.limit;
        self.in_flight += u32::from(admitted);
        admitted
    }

    /// A response ended after `latency_ms`. True when this sample ended a probe.
    pub fn on_response(&mut self, latency_ms: f64) -> bool {
        self.on_cancelled();
        self.samples.push(latency_ms);
        if self.deferred.is_none() || self.samples.len() < self.settings.probe_requests {
            return false;
        }
        self.min_latency = Some(median(&mut self.samples));
        self.limit = self.deferred.take().unwrap_or(self.limit);
        true
    }

    /// A request ended without a response: it leaves no sample.
    pub fn on_cancelled(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Lets the limit follow the gradient:
    /// `gradient = clamp(min_rtt × (1 + buffer) / sample_rtt, 0.5, 2)`, `limit = limit × gradient + sqrt(limit × gradient)`.
    pub fn on_update(&mut self) {
        let Some(min_latency) = self.min_latency else { return };
        if self.deferred.is_some() || self.samples.is_empty() {
            return;
        }
        let sample = median(&mut self.samples);
        let gradient = (min_latency * (1.0 + self.settings.buffer) / sample).clamp(0.5, 2.0);
        let scaled = f64::from(self.limit) * gradient;
        let limit = (scaled + scaled.sqrt()) as u32;
        self.limit = limit.clamp(self.settings.min_concurrency, self.settings.max_concurrency);
        self.at_minimum = if self.limit == self.settings.min_concurrency { self.at_minimum + 1 } else { 0 };
        if self.at_minimum >= UPDATES_AT_MINIMUM {
            self.begin_probe();
        }
    }

    /// Pins the limit to the smallest one until enough responses are seen.
    pub fn begin_probe(&mut self) {
        if self.deferred.is_none() {
            self.deferred = Some(self.limit);
            self.limit = self.settings.min_concurrency;
            self.samples.clear();
            self.at_minimum = 0;
        }
    }

    /// The limit in force.
    pub fn limit(&self) -> u32 {
        self.limit
    }
}

/// The middle of `samples`, which it empties; they must not be empty.
fn median(samples: &mut Vec<f64>) -> f64 {
    let middle = samples.len() / 2;
    let (_, value, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    let value = *value;
    samples.clear();
    value
}

/// The filter in every proxy of the fleet.
#[derive(Debug)]
pub struct EnvoyGradient {
    settings: Settings,
    proxies: Vec<Gradient>,
    started: PerRequest<(u16, Timestamp)>,
}

const UPDATE: u64 = 0;
const PROBE: u64 = 1;

// === impl EnvoyGradient ===

impl EnvoyGradient {
    /// A fleet whose filters have `settings`.
    pub fn new(settings: Settings) -> Self {
        Self { settings, proxies: Vec::new(), started: PerRequest::default() }
    }

    fn next_probe(&self, rng: &mut Rng) -> Duration {
        self.settings.probe_interval.mul_f64(1.0 + self.settings.jitter * rng.unit())
    }
}

impl Default for EnvoyGradient {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Controller for EnvoyGradient {
    fn name(&self) -> &'static str {
        "envoy_adaptive_concurrency"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        self.proxies = (0..ctx.setup().proxies).map(|_| Gradient::new(self.settings)).collect();
        for proxy in 0..self.proxies.len() as u64 {
            ctx.schedule(self.settings.update_interval, proxy << 1 | UPDATE);
        }
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        if !self.proxies[usize::from(arrival.site.proxy)].try_admit() {
            return Verdict::Refuse { retry_after: None };
        }
        self.started.insert(arrival.id, (arrival.site.proxy, ctx.now()));
        Verdict::Admit
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, _output_tokens: u32) {
        let Some((proxy, since)) = self.started.take(id) else { return };
        let gradient = &mut self.proxies[usize::from(proxy)];
        match ending {
            // The filter records whatever response comes to its end, an error's too.
            Ending::Completed | Ending::EngineRefused => {
                if gradient.on_response(ctx.now().since(since).as_secs_f64() * 1e3) {
                    let delay = self.next_probe(ctx.rng());
                    ctx.schedule(delay, u64::from(proxy) << 1 | PROBE);
                }
            }
            Ending::ClientLeft | Ending::Failed => gradient.on_cancelled(),
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        let gradient = &mut self.proxies[(token >> 1) as usize];
        if token & 1 == PROBE {
            gradient.begin_probe();
        } else {
            gradient.on_update();
            ctx.schedule(self.settings.update_interval, token);
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        out.limit = Some(self.proxies.iter().map(|gradient| f64::from(gradient.limit())).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_probe(latency_ms: f64) -> Gradient {
        let mut gradient = Gradient::new(Settings::default());
        for _ in 0..50 {
            assert!(gradient.try_admit(), "one at a time always fits");
            gradient.on_response(latency_ms);
        }
        gradient
    }

    #[test]
    fn a_probe_pins_the_limit_to_three() {
        let mut gradient = Gradient::new(Settings::default());
        assert_eq!([(); 4].map(|()| gradient.try_admit()), [true, true, true, false]);
    }

    #[test]
    fn the_limit_grows_by_twice_and_the_root_while_latency_is_at_its_lowest() {
        let mut gradient = after_probe(100.0);
        gradient.try_admit();
        gradient.on_response(50.0);
        gradient.on_update();
        // gradient = clamp(125 / 50) = 2; 3 × 2 = 6; 6 + sqrt(6) = 8.4.
        assert_eq!(gradient.limit(), 8);
        gradient.on_response(125.0);
        gradient.on_update();
        // gradient = 1; 8 + sqrt(8) = 10.8.
        assert_eq!(gradient.limit(), 10);
    }

    #[test]
    fn five_updates_at_the_minimum_force_a_probe() {
        let mut gradient = after_probe(100.0);
        for _ in 0..5 {
            assert_eq!(gradient.deferred, None);
            gradient.on_response(1e6);
            gradient.on_update();
        }
        assert!(gradient.deferred.is_some(), "3 × 0.5 + sqrt(1.5) = 2.7 is below the minimum of 3 five times");
    }
}
