//! A static token bucket per proxy, as Envoy's `local_ratelimit` has: the operator's figure, one token a request, no priorities.
//!
//! The rate has no default. Here it is the best that an operator can know: the pool's capacity in requests of the scenario's mean size,
//! divided equally among the proxies; the bucket holds one second of it. Refused clients are told nothing (envoyproxy/envoy#45384).
//! Source: `local_rate_limit.proto` of Envoy 1.3x.

use headgate_core::time::Timestamp;

use crate::controller::{Arrival, Controller, Ctx, Gauges, Verdict};

/// A bucket that fills continuously.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate_rps: f64,
    burst: f64,
    tokens: f64,
    filled_at: Timestamp,
}

// === impl TokenBucket ===

impl TokenBucket {
    /// A full bucket of `burst` tokens that gains `rate_rps` a second.
    pub fn new(now: Timestamp, rate_rps: f64, burst: f64) -> Self {
        Self { rate_rps, burst, tokens: burst, filled_at: now }
    }

    /// Takes one token if there is one.
    pub fn try_take(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        let is_taken = self.tokens >= 1.0;
        if is_taken {
            self.tokens -= 1.0;
        }
        is_taken
    }

    /// Changes rate and burst; tokens above the new burst are lost.
    pub fn set(&mut self, now: Timestamp, rate_rps: f64, burst: f64) {
        self.fill(now);
        (self.rate_rps, self.burst) = (rate_rps, burst);
        self.tokens = self.tokens.min(burst);
    }

    fn fill(&mut self, now: Timestamp) {
        self.tokens = (self.tokens + self.rate_rps * now.since(self.filled_at).as_secs_f64()).min(self.burst);
        self.filled_at = now;
    }
}

/// A bucket in every proxy of the fleet.
#[derive(Debug)]
pub struct StaticBucket {
    pool_rps: f64,
    proxies: Vec<TokenBucket>,
}

// === impl StaticBucket ===

impl StaticBucket {
    /// Buckets for a pool that serves `pool_rps` requests a second.
    pub fn new(pool_rps: f64) -> Self {
        Self { pool_rps, proxies: Vec::new() }
    }
}

impl Controller for StaticBucket {
    fn name(&self) -> &'static str {
        "static_token_bucket"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let proxies = ctx.setup().proxies;
        let rate_rps = self.pool_rps / f64::from(proxies.max(1));
        let now = ctx.now();
        self.proxies = (0..proxies).map(|_| TokenBucket::new(now, rate_rps, rate_rps.max(1.0))).collect();
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        match self.proxies[usize::from(arrival.site.proxy)].try_take(ctx.now()) {
            true => Verdict::Admit,
            false => Verdict::Refuse { retry_after: None },
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        out.limit = Some(self.pool_rps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(Timestamp::ZERO, 10.0, 3.0);
        assert_eq!([(); 4].map(|()| bucket.try_take(Timestamp::ZERO)), [true, true, true, false]);
        assert!(!bucket.try_take(Timestamp::from_millis(99)), "a token comes every 100 ms");
        assert!(bucket.try_take(Timestamp::from_millis(100)));
    }
}
