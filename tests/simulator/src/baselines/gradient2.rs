//! Netflix's Gradient2: a concurrency limit per proxy from the ratio of a long to a short average of the latency.
//!
//! `gradient = clamp(1.5 × long / short, 0.5, 1)`, `new = limit × gradient + 4`, smoothed by 0.2, within 20 to 200; samples taken with
//! less than half the limit in flight are ignored; a long average above twice the short one decays by 5 %.
//! Source: `Gradient2Limit` of Netflix/concurrency-limits, with the defaults of its builder. The latency is that of the whole response.

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};

const INITIAL: f64 = 20.0;
const MIN: f64 = 20.0;
const MAX: f64 = 200.0;
const SMOOTHING: f64 = 0.2;
const TOLERANCE: f64 = 1.5;
const QUEUE: f64 = 4.0;
const LONG_WINDOW: f64 = 600.0;
/// Samples whose plain mean starts the long average (`ExpAvgMeasurement`).
const WARM_UP: u32 = 10;
/// Long average over short one at which it has drifted, and what is left of it then.
const DRIFT: f64 = 2.0;
const DRIFT_DECAY: f64 = 0.95;

/// The limiter of one proxy.
#[derive(Debug)]
pub struct Gradient2 {
    limit: f64,
    in_flight: u32,
    long: f64,
    long_sum: f64,
    long_samples: u32,
}

// === impl Gradient2 ===

impl Default for Gradient2 {
    fn default() -> Self {
        Self { limit: INITIAL, in_flight: 0, long: 0.0, long_sum: 0.0, long_samples: 0 }
    }
}

impl Gradient2 {
    /// Whether one more request may start; it counts as in flight if so. `Some` holds the number in flight with it.
    pub fn try_admit(&mut self) -> Option<u32> {
        if f64::from(self.in_flight) >= self.limit.floor() {
            return None;
        }
        self.in_flight += 1;
        Some(self.in_flight)
    }

    /// A request ended without telling anything about latency.
    pub fn on_ignored(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A response took `latency_ms`; `in_flight` is what [`Self::try_admit`] gave it.
    pub fn on_response(&mut self, latency_ms: f64, in_flight: u32) {
        self.on_ignored();
        let short = latency_ms;
        self.add_long(short);
        if self.long / short > DRIFT {
            self.long *= DRIFT_DECAY;
        }
        if f64::from(in_flight) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.long / short).clamp(0.5, 1.0);
        let new = self.limit * gradient + QUEUE;
        self.limit = (self.limit * (1.0 - SMOOTHING) + new * SMOOTHING).clamp(MIN, MAX);
    }

    /// The limit in force.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    fn add_long(&mut self, sample: f64) {
        if self.long_samples < WARM_UP {
            self.long_samples += 1;
            self.long_sum += sample;
            self.long = self.long_sum / f64::from(self.long_samples);
        } else {
            let factor = 2.0 / (LONG_WINDOW + 1.0);
            self.long += factor * (sample - self.long);
        }
    }
}

/// The limiter in every proxy of the fleet.
#[derive(Debug, Default)]
pub struct NetflixGradient2 {
    proxies: Vec<Gradient2>,
    started: PerRequest<(u16, u32, Timestamp)>,
}

// === impl NetflixGradient2 ===

impl Controller for NetflixGradient2 {
    fn name(&self) -> &'static str {
        "netflix_gradient2"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        self.proxies.resize_with(usize::from(ctx.setup().proxies), Gradient2::default);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        match self.proxies[usize::from(arrival.site.proxy)].try_admit() {
            None => Verdict::Refuse { retry_after: None },
            Some(in_flight) => {
                self.started.insert(arrival.id, (arrival.site.proxy, in_flight, ctx.now()));
                Verdict::Admit
            }
        }
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, _output_tokens: u32) {
        let Some((proxy, in_flight, since)) = self.started.take(id) else { return };
        let limiter = &mut self.proxies[usize::from(proxy)];
        match ending {
            Ending::Completed => limiter.on_response(ctx.now().since(since).as_secs_f64() * 1e3, in_flight),
            // `Listener::onIgnore`: the outcome says nothing about latency; Gradient2 pays no heed to drops either.
            Ending::ClientLeft | Ending::EngineRefused | Ending::Failed => limiter.on_ignored(),
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        out.limit = Some(self.proxies.iter().map(Gradient2::limit).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_latency_grows_the_limit_by_a_fifth_of_four() {
        let mut limiter = Gradient2::default();
        limiter.on_response(100.0, 20);
        // gradient 1: new = 20 + 4; 20 × 0.8 + 24 × 0.2 = 20.8.
        assert!((limiter.limit() - 20.8).abs() < 1e-9);
        limiter.on_response(100.0, 10);
        assert!((limiter.limit() - 20.8).abs() < 1e-9, "10 in flight are less than half of 20.8");
    }

    #[test]
    fn a_latency_three_times_the_long_average_halves_at_most() {
        let mut limiter = Gradient2 { limit: 100.0, long: 100.0, long_sum: 1000.0, long_samples: 10, in_flight: 0 };
        limiter.on_response(400.0, 100);
        // long = 100 + 2/601 × 300 = 101.0; 1.5 × 101.0 / 400 = 0.379, held at 0.5: new = 54; 100 × 0.8 + 54 × 0.2 = 90.8.
        assert!((limiter.limit() - 90.8).abs() < 1e-9, "{}", limiter.limit());
    }

    #[test]
    fn the_limit_never_leaves_twenty_to_two_hundred() {
        let mut limiter = Gradient2::default();
        for _ in 0..1000 {
            limiter.on_response(100.0, 1000);
        }
        assert!((limiter.limit() - 200.0).abs() < 1e-9);
        let mut admitted = 0;
        while limiter.try_admit().is_some() {
            admitted += 1;
        }
        assert_eq!(admitted, 200);
    }
}
