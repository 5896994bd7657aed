//! Envoy's `admission_control` filter: refuses at random as the success rate of the last 30 s falls.
//!
//! `p = max(0, (n − s / threshold) / (n + 1))^(1 / aggression)`, at most 80 %. Statistics belong to one worker. A response below 500
//! is a success, whatever its latency; a request that ends without response headers is a failure.
//! Source: documentation and `admission_control.proto` of Envoy 1.3x, with its defaults.

use std::collections::VecDeque;
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, RequestId, Verdict};

const WINDOW: Duration = Duration::from_secs(30);
const SLICE: Duration = Duration::from_secs(1);
const THRESHOLD: f64 = 0.95;
const MAX_REJECTION: f64 = 0.8;
/// `1 / aggression`; the default aggression is 1.
const EXPONENT: f64 = 1.0;

/// Requests and successes of one worker over the sliding window, in slices of a second.
#[derive(Debug, Default)]
pub struct SuccessRate {
    slices: VecDeque<(Timestamp, u64, u64)>,
    requests: u64,
    successes: u64,
}

// === impl SuccessRate ===

impl SuccessRate {
    /// Counts one ended request.
    pub fn record(&mut self, now: Timestamp, is_success: bool) {
        self.expire(now);
        if self.slices.back().is_none_or(|(since, ..)| now.since(*since) >= SLICE) {
            self.slices.push_back((now, 0, 0));
        }
        if let Some((_, requests, successes)) = self.slices.back_mut() {
            *requests += 1;
            *successes += u64::from(is_success);
        }
        self.requests += 1;
        self.successes += u64::from(is_success);
    }

    /// Probability with which the next request is refused.
    pub fn rejection(&mut self, now: Timestamp) -> f64 {
        self.expire(now);
        let (n, s) = (self.requests as f64, self.successes as f64);
        let ratio = ((n - s / THRESHOLD) / (n + 1.0)).max(0.0);
        libm::pow(ratio, EXPONENT).min(MAX_REJECTION)
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some((since, requests, successes)) = self.slices.front().copied()
            && now.since(since) >= WINDOW
        {
            self.slices.pop_front();
            self.requests -= requests;
            self.successes -= successes;
        }
    }
}

/// The filter in every worker of the fleet.
#[derive(Debug, Default)]
pub struct EnvoyAdmission {
    workers: Vec<SuccessRate>,
    /// Worker of each open request, and whether its response has begun.
    open: PerRequest<(usize, bool)>,
}

// === impl EnvoyAdmission ===

impl Controller for EnvoyAdmission {
    fn name(&self) -> &'static str {
        "envoy_admission_control"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let workers = usize::from(ctx.setup().proxies) * usize::from(ctx.setup().workers);
        self.workers.resize_with(workers, SuccessRate::default);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let worker = usize::from(arrival.site.proxy) * usize::from(ctx.setup().workers) + usize::from(arrival.site.worker);
        let rejection = self.workers[worker].rejection(ctx.now());
        if rejection > 0.0 && ctx.rng().unit() < rejection {
            return Verdict::Refuse { retry_after: None };
        }
        self.open.insert(arrival.id, (worker, false));
        Verdict::Admit
    }

    fn on_first_token(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        if let Some((worker, has_begun)) = self.open.get_mut(id) {
            *has_begun = true;
            self.workers[*worker].record(ctx.now(), true);
        }
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, _output_tokens: u32) {
        if let Some((worker, false)) = self.open.take(id) {
            self.workers[worker].record(ctx.now(), ending == Ending::Completed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_requests_failing_refuses_by_the_formula() {
        let mut rate = SuccessRate::default();
        for index in 0..100 {
            rate.record(Timestamp::from_millis(index), index % 2 == 0);
        }
        // (100 − 50 / 0.95) / 101 = 0.469.
        assert!((rate.rejection(Timestamp::from_millis(100)) - 0.469_0).abs() < 1e-4);
        assert!(rate.rejection(Timestamp::from_millis(31_000)).abs() < f64::EPSILON, "after 30 s nothing is remembered");
    }

    #[test]
    fn five_percent_of_failures_are_tolerated_and_four_fifths_are_the_most() {
        let mut rate = SuccessRate::default();
        for index in 0..100 {
            rate.record(Timestamp::ZERO, index >= 5);
        }
        assert!(rate.rejection(Timestamp::ZERO).abs() < 1e-9, "95 of 100 is the threshold itself");
        for _ in 0..10_000 {
            rate.record(Timestamp::ZERO, false);
        }
        assert!((rate.rejection(Timestamp::ZERO) - 0.8).abs() < 1e-9);
    }
}
