//! The three-level limiter of the background, taken literally: any level trips.
//!
//! - Request rate, sampled each second: above 1.5 × (moving average over 5 min + 2 σ).
//! - GPU memory, sampled every 2 s as `nvidia-smi` reports it: above 75 % of the total. Behind an engine that takes its KV cache at
//!   start it reads about 90 % from idle to collapse, so that this level is always tripped there; that is what "literally" means.
//! - Latency: the 99th percentile over 10 s above 8 s, or above 1.8 × its mean so far, three times in a row.
//!
//! While tripped: high passes (reserved lane); medium goes through a token bucket at the learned rate whose burst shrinks by a fifth
//! each second, down to 5 % of a second's requests, and grows back by a tenth a second; low is refused with 429 and a fixed second to wait.
//! Source: the limiter's description (three levels, soft tripping); where it gives no figure (burst steps), the defaults of our policy
//! stand in: `GradientThrottle` in `protos/headgate/v1/policy.proto`. A level recovers as soon as its condition is gone.

use std::collections::VecDeque;
use std::time::Duration;

use headgate_core::throttle::TokenBucket;
use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};
use crate::engine::Engine;

const SECOND: Duration = Duration::from_secs(1);
const BASELINE_SECONDS: usize = 300;
const SIGMAS: f64 = 2.0;
const RATE_FACTOR: f64 = 1.5;
/// Seconds before the baseline counts as learned.
const BASELINE_MIN_SECONDS: usize = 10;
const MEMORY_LIMIT: f64 = 0.75;
const MEMORY_SAMPLE_SECONDS: u64 = 2;
const LATENCY_WINDOW_SECONDS: u64 = 10;
const LATENCY_LIMIT_MS: f64 = 8000.0;
const LATENCY_FACTOR: f64 = 1.8;
const LATENCY_PERIODS: u32 = 3;
const BURST_SHRINK: f64 = 0.8;
const BURST_GROWTH: f64 = 0.1;
const BURST_FLOOR: f64 = 0.05;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The limiter of one proxy.
#[derive(Debug)]
pub struct ThreeLevel {
    seconds: u64,
    requests: u64,
    rates: VecDeque<f64>,
    rate_tripped: bool,
    memory_tripped: bool,
    latencies_ms: Vec<f64>,
    latency_history: (f64, u32),
    slow_periods: u32,
    burst: f64,
    medium: TokenBucket,
}

// === impl ThreeLevel ===

impl ThreeLevel {
    /// A limiter that has learned nothing.
    pub fn new(now: Timestamp) -> Self {
        Self {
            seconds: 0,
            requests: 0,
            rates: VecDeque::new(),
            rate_tripped: false,
            memory_tripped: false,
            latencies_ms: Vec::new(),
            latency_history: (0.0, 0),
            slow_periods: 0,
            burst: 1.0,
            medium: TokenBucket::full(now, 1.0, 1.0),
        }
    }

    /// Counts a request and decides it; `class` 0 is high, 1 medium, everything below low.
    pub fn decide(&mut self, now: Timestamp, class: u8) -> Verdict {
        self.requests += 1;
        match class {
            _ if !self.is_tripped() => Verdict::Admit,
            0 => Verdict::Admit,
            1 if self.medium.take(now) => Verdict::Admit,
            _ => Verdict::Refuse { retry_after: Some(RETRY_AFTER) },
        }
    }

    /// A response took `latency_ms`.
    pub fn on_response(&mut self, latency_ms: f64) {
        self.latencies_ms.push(latency_ms);
    }

    /// A second is over; `memory` is the used part of the GPU's memory, 0 to 1.
    pub fn on_second(&mut self, now: Timestamp, memory: f64) {
        self.seconds += 1;
        self.end_rate_sample();
        if self.seconds.is_multiple_of(MEMORY_SAMPLE_SECONDS) {
            self.memory_tripped = memory > MEMORY_LIMIT;
        }
        if self.seconds.is_multiple_of(LATENCY_WINDOW_SECONDS) {
            self.end_latency_period();
        }
        self.burst = if self.is_tripped() { (self.burst * BURST_SHRINK).max(BURST_FLOOR) } else { (self.burst + BURST_GROWTH).min(1.0) };
        let rate = self.baseline().unwrap_or(1.0);
        self.medium.set_rate(now, rate, (rate * self.burst).max(1.0));
    }

    /// Whether any level is tripped.
    pub fn is_tripped(&self) -> bool {
        self.rate_tripped || self.memory_tripped || self.slow_periods >= LATENCY_PERIODS
    }

    /// Mean and two standard deviations of the last 5 min, in requests per second; `None` until it is learned.
    fn baseline(&self) -> Option<f64> {
        let n = self.rates.len();
        let mean = self.rates.iter().sum::<f64>() / n.max(1) as f64;
        let variance = self.rates.iter().map(|rate| (rate - mean) * (rate - mean)).sum::<f64>() / n.max(1) as f64;
        (n >= BASELINE_MIN_SECONDS).then(|| mean + SIGMAS * variance.sqrt())
    }

    fn end_rate_sample(&mut self) {
        let rate = self.requests as f64;
        self.requests = 0;
        self.rate_tripped = self.baseline().is_some_and(|baseline| rate > RATE_FACTOR * baseline);
        self.rates.push_back(rate);
        if self.rates.len() > BASELINE_SECONDS {
            self.rates.pop_front();
        }
    }

    fn end_latency_period(&mut self) {
        if self.latencies_ms.is_empty() {
            self.slow_periods = 0;
            return;
        }
        let at = (self.latencies_ms.len() * 99 / 100).min(self.latencies_ms.len() - 1);
        let (_, p99, _) = self.latencies_ms.select_nth_unstable_by(at, f64::total_cmp);
        let p99 = *p99;
        self.latencies_ms.clear();
        let (sum, periods) = self.latency_history;
        let learned = if periods == 0 { f64::INFINITY } else { LATENCY_FACTOR * sum / f64::from(periods) };
        self.slow_periods = if p99 > LATENCY_LIMIT_MS.min(learned) { self.slow_periods + 1 } else { 0 };
        self.latency_history = (sum + p99, periods + 1);
    }
}

/// Used part of a GPU's memory as NVML reports it: an LLM engine takes 90 % at its start (`gpu_memory_utilization` of vLLM), a plain
/// server holds its weights in a fifth and needs half of the rest when all its places are taken.
fn memory_use(engine: &Engine) -> f64 {
    match engine.llm() {
        Some(_) => 0.9,
        None => 0.2 + 0.4 * engine.kv_usage(),
    }
}

/// The limiter in every proxy of the fleet.
#[derive(Debug, Default)]
pub struct ThreeLevelFleet {
    proxies: Vec<ThreeLevel>,
    started: PerRequest<(u16, Timestamp)>,
}

// === impl ThreeLevelFleet ===

impl Controller for ThreeLevelFleet {
    fn name(&self) -> &'static str {
        "three_level"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        self.proxies.resize_with(usize::from(ctx.setup().proxies), || ThreeLevel::new(now));
        ctx.schedule(SECOND, 0);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let verdict = self.proxies[usize::from(arrival.site.proxy)].decide(ctx.now(), arrival.class);
        if verdict == Verdict::Admit {
            self.started.insert(arrival.id, (arrival.site.proxy, ctx.now()));
        }
        verdict
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, _output_tokens: u32) {
        if let (Some((proxy, since)), Ending::Completed) = (self.started.take(id), ending) {
            self.proxies[usize::from(proxy)].on_response(ctx.now().since(since).as_secs_f64() * 1e3);
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        let memory = ctx.engines().iter().map(memory_use).fold(0.0, f64::max);
        for limiter in &mut self.proxies {
            limiter.on_second(ctx.now(), memory);
        }
        ctx.schedule(SECOND, token);
    }

    fn gauges(&self, out: &mut Gauges) {
        let tripped = self.proxies.iter().filter(|limiter| limiter.is_tripped()).count();
        out.saturation = Some(tripped as f64 / self.proxies.len().max(1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(rps: u64) -> ThreeLevel {
        let mut limiter = ThreeLevel::new(Timestamp::ZERO);
        for second in 1..=20 {
            limiter.requests = rps;
            limiter.on_second(Timestamp::from_millis(second * 1000), 0.5);
        }
        limiter
    }

    #[test]
    fn a_rate_above_one_and_a_half_times_the_baseline_trips() {
        let mut limiter = learned(100);
        limiter.requests = 150;
        limiter.on_second(Timestamp::from_millis(21_000), 0.5);
        assert!(!limiter.is_tripped(), "150 is 1.5 × 100, not above it");
        // Mean of 20 × 100 and 150 = 102.4, σ = 10.6; 1.5 × 123.7 = 185.5.
        limiter.requests = 186;
        limiter.on_second(Timestamp::from_millis(22_000), 0.5);
        assert!(limiter.is_tripped());
    }

    #[test]
    fn memory_that_an_engine_takes_at_start_trips_for_ever() {
        let mut limiter = learned(100);
        for second in 21..=60 {
            limiter.requests = 100;
            limiter.on_second(Timestamp::from_millis(second * 1000), 0.9);
        }
        assert!(limiter.is_tripped());
        let now = Timestamp::from_millis(60_000);
        assert_eq!(limiter.decide(now, 0), Verdict::Admit);
        assert_eq!(limiter.decide(now, 2), Verdict::Refuse { retry_after: Some(RETRY_AFTER) });
        // Burst: 5 % of 100 requests; the sixth of medium at once is over it.
        let medium = [(); 6].map(|()| limiter.decide(now, 1));
        assert_eq!(medium.iter().filter(|verdict| **verdict == Verdict::Admit).count(), 5);
    }

    #[test]
    fn the_tail_trips_after_three_periods_above_8_s() {
        let mut limiter = learned(0);
        for second in 21..=50 {
            limiter.on_response(8001.0);
            limiter.on_second(Timestamp::from_millis(second * 1000), 0.5);
            assert_eq!(limiter.is_tripped(), second == 50, "periods end at 30, 40 and 50 s");
        }
    }
}
