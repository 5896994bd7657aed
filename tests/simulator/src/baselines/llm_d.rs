//! The gate of the llm-d router (Gateway API Inference Extension's endpoint picker) with flow control on.
//!
//! Every 50 ms the picker scrapes each engine's waiting requests and KV use; `endpoint = max(waiting / 5, kv / 0.8)`, the pool is the plain
//! mean over its engines, and a scrape older than 200 ms counts as 1. Requests stand in one central queue in strict bands of priority,
//! first come first served; while the pool is below 1 the head leaves, one at an arrival and one at each tick of 1 ms. A band holds at
//! most 5,000 requests; what waits longer than 60 s is dropped.
//! Sources: `utilization-detector` and flow control of llm-d-router (2026-08), issues llm-d-router#2066 and llm-d-autoscaling#1421.
//! Generous to it: the call from the proxy to the picker takes no time and has no limit.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Gauges, RequestId, Verdict};

const SCRAPE: Duration = Duration::from_millis(50);
const STALE: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(1);
const QUEUE_THRESHOLD: f64 = 5.0;
const KV_THRESHOLD: f64 = 0.8;
const BAND_REQUESTS: usize = 5000;
const TTL: Duration = Duration::from_secs(60);

/// What one scrape of one engine says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scrape {
    /// When it was read.
    pub at: Timestamp,
    /// Requests that wait in the engine.
    pub waiting: u64,
    /// Part of its KV cache in use, 0 to 1.
    pub kv: f64,
}

/// Saturation of the pool, 1 at its limit: the mean over engines of `max(waiting / 5, kv / 0.8)`; a stale engine counts as 1.
pub fn saturation(now: Timestamp, scrapes: &[Scrape]) -> f64 {
    let of = |scrape: &Scrape| {
        if now.since(scrape.at) > STALE { 1.0 } else { (scrape.waiting as f64 / QUEUE_THRESHOLD).max(scrape.kv / KV_THRESHOLD) }
    };
    scrapes.iter().map(of).sum::<f64>() / scrapes.len().max(1) as f64
}

/// Requests that wait in strict bands of priority, each first come first served.
#[derive(Debug, Default)]
pub struct Bands {
    bands: Vec<BTreeMap<u64, (Timestamp, RequestId)>>,
    arrivals: u64,
}

/// Where a request stands: its band and its number in it.
pub type Place = (u8, u64);

// === impl Bands ===

impl Bands {
    /// Adds a request to the band of its class; `None` when the band is full.
    pub fn push(&mut self, now: Timestamp, class: u8, id: RequestId) -> Option<Place> {
        let band = usize::from(class);
        if self.bands.len() <= band {
            self.bands.resize_with(band + 1, BTreeMap::new);
        }
        if self.bands[band].len() >= BAND_REQUESTS {
            return None;
        }
        self.arrivals += 1;
        self.bands[band].insert(self.arrivals, (now, id));
        Some((class, self.arrivals))
    }

    /// The oldest request of the most important band that has any.
    pub fn pop(&mut self) -> Option<RequestId> {
        self.bands.iter_mut().find_map(BTreeMap::pop_first).map(|(_, (_, id))| id)
    }

    /// A request that has waited too long.
    pub fn pop_expired(&mut self, now: Timestamp) -> Option<RequestId> {
        self.bands.iter_mut().find_map(|band| {
            let head = band.first_entry()?;
            (now.since(head.get().0) > TTL).then(|| head.remove().1)
        })
    }

    /// Takes a request out whose client has left.
    pub fn remove(&mut self, (class, number): Place) {
        if let Some(band) = self.bands.get_mut(usize::from(class)) {
            band.remove(&number);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bands.iter().all(BTreeMap::is_empty)
    }
}

/// The picker, one for the fleet.
#[derive(Debug, Default)]
pub struct LlmD {
    bands: Bands,
    scrapes: Vec<Scrape>,
    waiting: PerRequest<Place>,
    is_ticking: bool,
}

// === impl LlmD ===

impl LlmD {
    fn scrape(&mut self, ctx: &Ctx<'_>) {
        // A lost engine does not answer, its old scrape grows stale; the picker's endpoint list drops it within a scrape.
        let alive = ctx.engines().iter().filter(|engine| engine.is_alive());
        self.scrapes = alive.map(|engine| Scrape { at: ctx.now(), waiting: u64::from(engine.waiting()), kv: engine.kv_usage() }).collect();
    }

    /// Lets one waiting request go if the pool is below its limit.
    fn dispatch(&mut self, ctx: &mut Ctx<'_>) {
        while let Some(id) = self.bands.pop_expired(ctx.now()) {
            self.waiting.take(id);
            ctx.refuse(id, None);
        }
        if saturation(ctx.now(), &self.scrapes) >= 1.0 {
            return;
        }
        if let Some(id) = self.bands.pop() {
            self.waiting.take(id);
            ctx.release(id);
        }
    }

    fn tick(&mut self, ctx: &mut Ctx<'_>) {
        if !self.is_ticking && !self.bands.is_empty() {
            self.is_ticking = true;
            ctx.schedule(TICK, DISPATCH);
        }
    }
}

const DISPATCH: u64 = 0;
const READ: u64 = 1;

impl Controller for LlmD {
    fn name(&self) -> &'static str {
        "llm_d_gate"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        self.scrape(ctx);
        ctx.schedule(SCRAPE, READ);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let Some(place) = self.bands.push(ctx.now(), arrival.class, arrival.id) else {
            return Verdict::Refuse { retry_after: None };
        };
        self.waiting.insert(arrival.id, place);
        // The world carries out releases after this callback, so the request may leave at once.
        self.dispatch(ctx);
        self.tick(ctx);
        Verdict::Wait
    }

    fn on_abandoned(&mut self, _ctx: &mut Ctx<'_>, id: RequestId) {
        if let Some(place) = self.waiting.take(id) {
            self.bands.remove(place);
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        if token == READ {
            self.scrape(ctx);
            ctx.schedule(SCRAPE, READ);
        } else {
            self.is_ticking = false;
            self.dispatch(ctx);
            self.tick(ctx);
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        let newest = self.scrapes.iter().map(|scrape| scrape.at).max().unwrap_or(Timestamp::ZERO);
        out.saturation = Some(saturation(newest, &self.scrapes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(at_ms: u64, waiting: u64, kv: f64) -> Scrape {
        Scrape { at: Timestamp::from_millis(at_ms), waiting, kv }
    }

    #[test]
    fn saturation_is_the_mean_of_the_larger_of_queue_and_cache() {
        let now = Timestamp::from_millis(100);
        // max(0 / 5, 0.4 / 0.8) = 0.5 and max(10 / 5, 0.4 / 0.8) = 2.
        let pool = [scrape(100, 0, 0.4), scrape(100, 10, 0.4)];
        assert!((saturation(now, &pool) - 1.25).abs() < 1e-9);
    }

    #[test]
    fn a_scrape_older_than_200_ms_counts_as_full() {
        let pool = [scrape(0, 0, 0.0)];
        assert!(saturation(Timestamp::from_millis(200), &pool) < 1e-9);
        assert!((saturation(Timestamp::from_millis(201), &pool) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn bands_are_strict_and_hold_5000_each() {
        let mut bands = Bands::default();
        for id in 0..5000 {
            assert!(bands.push(Timestamp::ZERO, 2, RequestId(id)).is_some());
        }
        assert_eq!(bands.push(Timestamp::ZERO, 2, RequestId(5000)), None);
        assert!(bands.push(Timestamp::ZERO, 0, RequestId(6000)).is_some());
        assert_eq!([bands.pop(), bands.pop()], [Some(RequestId(6000)), Some(RequestId(0))]);
        assert_eq!(bands.pop_expired(Timestamp::from_millis(60_000)), None);
        assert_eq!(bands.pop_expired(Timestamp::from_millis(60_001)), Some(RequestId(1)));
    }
}
