//! DAGOR, the overload control of WeChat: admission by level, with a threshold that follows the mean queueing time.
//!
//! A request has a level of business (our class) and user (128 levels, a hash of the tenant that changes every hour). Over a window of
//! one second or 2,000 requests, whichever ends first, a mean queueing time above 20 ms means overload: the next window shall admit 5 %
//! fewer than this one did; otherwise 1 % of all requests more. The histogram of this window's levels says which threshold does that.
//! Source: Zhou et al., "Overload control for scaling WeChat microservices" (SoCC 2018), section 4 and algorithm 1.
//! Queueing time is that in the engine, from arrival there to its first step, as the piggybacked response tells the proxy.

use std::time::Duration;

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};

/// User levels in each business level.
pub const USERS: u16 = 128;
/// Business levels.
const CLASSES: u16 = 8;
const LEVELS: usize = (CLASSES * USERS) as usize;
const WINDOW: Duration = Duration::from_secs(1);
const WINDOW_REQUESTS: u64 = 2000;
const QUEUEING_LIMIT_MS: f64 = 20.0;
/// Part of the admitted requests by which an overloaded window shrinks the next.
const ALPHA: f64 = 0.05;
/// Part of all requests by which another one grows it.
const BETA: f64 = 0.01;

/// The admission of one server.
#[derive(Debug)]
pub struct Dagor {
    /// Requests by level in this window, admitted or not.
    histogram: Vec<u64>,
    /// Levels below this are admitted; 0 is the most important.
    threshold: usize,
    requests: u64,
    admitted: u64,
    queueing_ms: f64,
    responses: u64,
    window_began: Timestamp,
}

// === impl Dagor ===

impl Dagor {
    /// Admits everything until a window says otherwise.
    pub fn new(now: Timestamp) -> Self {
        Self { histogram: vec![0; LEVELS], threshold: LEVELS, requests: 0, admitted: 0, queueing_ms: 0.0, responses: 0, window_began: now }
    }

    /// Whether a request of `level` is admitted.
    pub fn admit(&mut self, now: Timestamp, level: usize) -> bool {
        if now.since(self.window_began) >= WINDOW || self.requests >= WINDOW_REQUESTS {
            self.end_window(now);
        }
        let level = level.min(LEVELS - 1);
        let is_admitted = level < self.threshold;
        self.histogram[level] += 1;
        self.requests += 1;
        self.admitted += u64::from(is_admitted);
        is_admitted
    }

    /// A response says how long its request queued.
    pub fn on_queueing(&mut self, queueing_ms: f64) {
        self.queueing_ms += queueing_ms;
        self.responses += 1;
    }

    /// First level that is refused.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    fn end_window(&mut self, now: Timestamp) {
        let is_overloaded = self.responses > 0 && self.queueing_ms / self.responses as f64 > QUEUEING_LIMIT_MS;
        let mut prefix = self.admitted as f64;
        if is_overloaded {
            let expected = prefix * (1.0 - ALPHA);
            while prefix > expected && self.threshold > 1 {
                self.threshold -= 1;
                prefix -= self.histogram[self.threshold] as f64;
            }
        } else {
            let expected = prefix + BETA * self.requests as f64;
            while prefix < expected && self.threshold < LEVELS {
                prefix += self.histogram[self.threshold] as f64;
                self.threshold += 1;
            }
        }
        self.histogram.fill(0);
        (self.requests, self.admitted, self.queueing_ms, self.responses) = (0, 0, 0.0, 0);
        self.window_began = now;
    }
}

/// Level of a request: `class × 128 + user`, the user's part from the tenant and the hour.
pub fn level(class: u8, tenant: u32, now: Timestamp) -> usize {
    let hour = now.as_nanos() / 3_600_000_000_000;
    let hash = (u64::from(tenant) ^ (hour << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
    usize::from(class) * usize::from(USERS) + hash as usize
}

/// DAGOR in every proxy of the fleet.
#[derive(Debug, Default)]
pub struct DagorFleet {
    proxies: Vec<Dagor>,
    /// Proxy of each open request.
    open: PerRequest<u16>,
}

// === impl DagorFleet ===

impl Controller for DagorFleet {
    fn name(&self) -> &'static str {
        "dagor"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        self.proxies.resize_with(usize::from(ctx.setup().proxies), || Dagor::new(now));
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let level = level(arrival.class, arrival.tenant, ctx.now());
        if !self.proxies[usize::from(arrival.site.proxy)].admit(ctx.now(), level) {
            return Verdict::Refuse { retry_after: None };
        }
        self.open.insert(arrival.id, arrival.site.proxy);
        Verdict::Admit
    }

    fn on_first_token(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        if let (Some(proxy), Some(queueing)) = (self.open.get(id), ctx.engine_queueing(id)) {
            self.proxies[usize::from(*proxy)].on_queueing(queueing.as_secs_f64() * 1e3);
        }
    }

    fn on_end(&mut self, _ctx: &mut Ctx<'_>, id: RequestId, _ending: Ending, _output_tokens: u32) {
        self.open.take(id);
    }

    fn gauges(&self, out: &mut Gauges) {
        let sum: usize = self.proxies.iter().map(Dagor::threshold).sum();
        out.cut_off = Some(sum as f64 / self.proxies.len().max(1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overloaded_window_admits_five_percent_less_and_a_calm_one_a_percent_more() {
        let mut dagor = Dagor::new(Timestamp::ZERO);
        for request in 0..1000_usize {
            assert!(dagor.admit(Timestamp::ZERO, request % 1000), "nothing is refused before the first window ends");
        }
        dagor.on_queueing(20.1);
        dagor.admit(Timestamp::from_millis(1000), 0);
        // 24 empty levels above 999, then 50 of 1,000 admitted ones.
        assert_eq!(dagor.threshold(), 950);
        for request in 1..1000_usize {
            assert_eq!(dagor.admit(Timestamp::from_millis(1000), request), request < 950);
        }
        dagor.on_queueing(19.9);
        dagor.admit(Timestamp::from_millis(2000), 0);
        // 1 % of 1,000 requests.
        assert_eq!(dagor.threshold(), 960);
    }

    #[test]
    fn two_thousand_requests_end_a_window_too() {
        let mut dagor = Dagor::new(Timestamp::ZERO);
        dagor.on_queueing(500.0);
        for request in 0..2001_usize {
            dagor.admit(Timestamp::ZERO, request % 1000);
        }
        assert_eq!(dagor.threshold(), 950);
    }
}
