//! A static token bucket per proxy, as Envoy's `local_ratelimit` has: the operator's figure, one token a request, no priorities.
//!
//! The rate has no default. Here it is the best that an operator can know: the pool's capacity in requests of the scenario's mean size,
//! divided equally among the proxies; the bucket holds one second of it. Refused clients are told nothing (envoyproxy/envoy#45384).
//! Source: `local_rate_limit.proto` of Envoy 1.3x.

use headgate_core::throttle::TokenBucket;

use crate::controller::{Arrival, Controller, Ctx, Gauges, Verdict};

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
        self.proxies = (0..proxies).map(|_| TokenBucket::full(now, rate_rps, rate_rps.max(1.0))).collect();
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        match self.proxies[usize::from(arrival.site.proxy)].take(ctx.now()) {
            true => Verdict::Admit,
            false => Verdict::Refuse { retry_after: None },
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        out.limit = Some(self.pool_rps);
    }
}
