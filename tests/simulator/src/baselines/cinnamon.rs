//! A load shedder in the style of Uber's Cinnamon: a PID controller's rejection ratio, mapped to a priority threshold, in front of a
//! priority queue whose concurrency limit tunes itself.
//!
//! - Rejector: every 500 ms, once the queue has not been empty for 10 s, `error = (in − (out + free)) / out` (requests that entered and
//!   left the queue, free slots) goes through a PI controller; the quantile of the last 1,000 priorities at that ratio is the threshold.
//! - Priorities: tier × 128 cohorts, 6 tiers there, ours are the classes; the cohort is a hash of the tenant.
//! - Auto-tuner: a Vegas-like rule on the 90th percentile of the latency, with the covariance of concurrency and throughput as guard.
//!
//! Sources: "Cinnamon", "PID Controller for Cinnamon" and "Cinnamon Auto-Tuner" (Uber engineering, 2023) for the structure; gains are not
//! given in what we could read of them, so they are ours. The tuner's constants are those of failsafe-go's adaptive limiter (1 to 200, first 20, at least 50 samples), which implements the same idea.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::per_request::PerRequest;
use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, RequestId, Verdict};

const PERIOD: Duration = Duration::from_millis(500);
const OVERLOADED_AFTER: Duration = Duration::from_secs(10);
const GAIN_P: f64 = 0.1;
const GAIN_I: f64 = 0.2;
/// The controller's integral stays within the ratios that mean something.
const MAX_RATIO: f64 = 0.99;
const HISTORY: usize = 1000;
const COHORTS: u64 = 128;

/// The PID controller and the threshold that it sets.
#[derive(Debug, Default)]
pub struct Rejector {
    integral: f64,
    ratio: f64,
    entered: u64,
    left: u64,
    recent: VecDeque<u16>,
    /// Priorities above this are refused.
    threshold: Option<u16>,
}

// === impl Rejector ===

impl Rejector {
    /// Whether a request of `priority` (0 is the most important) may enter the queue.
    pub fn admit(&mut self, priority: u16) -> bool {
        if self.recent.len() == HISTORY {
            self.recent.pop_front();
        }
        self.recent.push_back(priority);
        self.threshold.is_none_or(|threshold| priority <= threshold)
    }

    /// A request entered the queue.
    pub fn on_entered(&mut self) {
        self.entered += 1;
    }

    /// A request left the queue to be served.
    pub fn on_left(&mut self) {
        self.left += 1;
    }

    /// Ends a period; `free` slots of the concurrency limit were unused.
    pub fn on_period(&mut self, is_overloaded: bool, free: u64) {
        let out = self.left.max(1) as f64;
        let error = (self.entered as f64 - (self.left + free) as f64) / out;
        (self.entered, self.left) = (0, 0);
        if !is_overloaded && self.ratio <= 0.0 {
            (self.integral, self.threshold) = (0.0, None);
            return;
        }
        let error = error.clamp(-1.0, 1.0);
        self.integral = (self.integral + GAIN_I * error).clamp(0.0, MAX_RATIO);
        self.ratio = (GAIN_P * error + self.integral).clamp(0.0, MAX_RATIO);
        self.threshold = (self.ratio > 0.0).then(|| self.quantile(1.0 - self.ratio));
    }

    /// Part of the requests that is to be refused.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    fn quantile(&self, at: f64) -> u16 {
        let mut sorted: Vec<u16> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let index = (at * sorted.len() as f64) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(u16::MAX)
    }
}

const TUNER_MIN: f64 = 1.0;
const TUNER_MAX: f64 = 200.0;
const TUNER_FIRST: f64 = 20.0;
const TUNER_SAMPLES: usize = 50;
const TUNER_WINDOW: Duration = Duration::from_secs(1);
const CORRELATION_WINDOWS: usize = 50;
/// Age of the baseline in windows, as an exponential average.
const BASELINE_AGE: f64 = 10.0;

/// The concurrency limit.
#[derive(Debug)]
pub struct Tuner {
    limit: f64,
    baseline: Option<f64>,
    latencies: Vec<f64>,
    window_began: Timestamp,
    /// Concurrency and throughput of the last windows.
    history: VecDeque<(f64, f64)>,
}

// === impl Tuner ===

impl Tuner {
    /// A limiter that has seen nothing.
    pub fn new(now: Timestamp) -> Self {
        Self { limit: TUNER_FIRST, baseline: None, latencies: Vec::new(), window_began: now, history: VecDeque::new() }
    }

    /// The limit in force.
    pub fn limit(&self) -> u64 {
        self.limit as u64
    }

    /// A response took `latency_ms` while `in_flight` requests were served.
    pub fn on_response(&mut self, now: Timestamp, latency_ms: f64, in_flight: u64) {
        self.latencies.push(latency_ms);
        let elapsed = now.since(self.window_began);
        if elapsed < TUNER_WINDOW || self.latencies.len() < TUNER_SAMPLES {
            return;
        }
        let throughput = self.latencies.len() as f64 / elapsed.as_secs_f64();
        let at = self.latencies.len() * 9 / 10;
        let (_, recent, _) = self.latencies.select_nth_unstable_by(at, f64::total_cmp);
        let recent = *recent;
        self.latencies.clear();
        self.window_began = now;
        self.adjust(recent, in_flight as f64, throughput);
    }

    /// `queue = limit × (1 − baseline / recent)`; below `3·log10(limit)` the limit grows by `log10(limit)`, above twice that it shrinks.
    fn adjust(&mut self, recent: f64, in_flight: f64, throughput: f64) {
        if self.history.len() == CORRELATION_WINDOWS {
            self.history.pop_front();
        }
        self.history.push_back((in_flight, throughput));
        let baseline = *self.baseline.get_or_insert(recent);
        let step = libm::log10(self.limit).max(1.0);
        let queue = self.limit * (1.0 - baseline / recent);
        let is_past_peak = self.history.len() >= 3 && covariance(&self.history) < 0.0 && recent > baseline;
        if queue > 6.0 * step || is_past_peak {
            self.limit -= step;
        } else if queue < 3.0 * step && in_flight >= self.limit / 2.0 {
            self.limit += step;
        }
        self.limit = self.limit.clamp(TUNER_MIN, TUNER_MAX);
        // The baseline may follow a falling latency at once, a rising one only as long as more concurrency brings more throughput.
        if recent < baseline {
            self.baseline = Some(recent);
        } else if !is_past_peak {
            self.baseline = Some(baseline + (recent - baseline) / BASELINE_AGE);
        }
    }
}

fn covariance(pairs: &VecDeque<(f64, f64)>) -> f64 {
    let n = pairs.len() as f64;
    let (sum_x, sum_y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    pairs.iter().map(|(x, y)| (x - sum_x / n) * (y - sum_y / n)).sum::<f64>() / n
}

/// Priority of a request: `class × 128 + cohort`.
pub fn priority(class: u8, tenant: u32) -> u16 {
    let cohort = u64::from(tenant).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
    u16::from(class) * COHORTS as u16 + cohort as u16
}

/// The shedder of one proxy.
#[derive(Debug)]
struct Shedder {
    rejector: Rejector,
    tuner: Tuner,
    in_flight: u64,
    /// By priority, then arrival.
    queue: BTreeMap<(u16, u64), RequestId>,
    arrivals: u64,
    last_empty: Timestamp,
}

/// The shedder in every proxy of the fleet.
#[derive(Debug, Default)]
pub struct Cinnamon {
    proxies: Vec<Shedder>,
    waiting: PerRequest<(u16, (u16, u64))>,
    serving: PerRequest<(u16, Timestamp)>,
}

// === impl Shedder ===

impl Shedder {
    fn new(now: Timestamp) -> Self {
        Self { rejector: Rejector::default(), tuner: Tuner::new(now), in_flight: 0, queue: BTreeMap::new(), arrivals: 0, last_empty: now }
    }

    fn free(&self) -> u64 {
        self.tuner.limit().saturating_sub(self.in_flight)
    }
}

// === impl Cinnamon ===

impl Cinnamon {
    /// Lets the most important waiting requests go as far as the limit allows.
    fn dispatch(&mut self, ctx: &mut Ctx<'_>, proxy: u16) {
        let shedder = &mut self.proxies[usize::from(proxy)];
        while shedder.free() > 0
            && let Some((_, id)) = shedder.queue.pop_first()
        {
            shedder.in_flight += 1;
            shedder.rejector.on_left();
            self.waiting.take(id);
            self.serving.insert(id, (proxy, ctx.now()));
            ctx.release(id);
        }
        if shedder.queue.is_empty() {
            shedder.last_empty = ctx.now();
        }
    }
}

impl Controller for Cinnamon {
    fn name(&self) -> &'static str {
        "cinnamon_pid"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        self.proxies.resize_with(usize::from(ctx.setup().proxies), || Shedder::new(now));
        ctx.schedule(PERIOD, 0);
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let proxy = arrival.site.proxy;
        let shedder = &mut self.proxies[usize::from(proxy)];
        let priority = priority(arrival.class, arrival.tenant);
        if !shedder.rejector.admit(priority) {
            return Verdict::Refuse { retry_after: None };
        }
        shedder.rejector.on_entered();
        if shedder.queue.is_empty() && shedder.free() > 0 {
            shedder.in_flight += 1;
            shedder.rejector.on_left();
            shedder.last_empty = ctx.now();
            self.serving.insert(arrival.id, (proxy, ctx.now()));
            return Verdict::Admit;
        }
        let key = (priority, shedder.arrivals);
        shedder.arrivals += 1;
        shedder.queue.insert(key, arrival.id);
        self.waiting.insert(arrival.id, (proxy, key));
        Verdict::Wait
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, _output_tokens: u32) {
        let Some((proxy, since)) = self.serving.take(id) else { return };
        let shedder = &mut self.proxies[usize::from(proxy)];
        if ending == Ending::Completed {
            shedder.tuner.on_response(ctx.now(), ctx.now().since(since).as_secs_f64() * 1e3, shedder.in_flight);
        }
        shedder.in_flight = shedder.in_flight.saturating_sub(1);
        self.dispatch(ctx, proxy);
    }

    fn on_abandoned(&mut self, _ctx: &mut Ctx<'_>, id: RequestId) {
        if let Some((proxy, key)) = self.waiting.take(id) {
            self.proxies[usize::from(proxy)].queue.remove(&key);
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        for shedder in &mut self.proxies {
            if shedder.queue.is_empty() {
                shedder.last_empty = ctx.now();
            }
            let is_overloaded = ctx.now().since(shedder.last_empty) >= OVERLOADED_AFTER;
            let free = shedder.free();
            shedder.rejector.on_period(is_overloaded, free);
        }
        ctx.schedule(PERIOD, token);
    }

    fn gauges(&self, out: &mut Gauges) {
        let n = self.proxies.len().max(1) as f64;
        out.admit_fraction = Some(1.0 - self.proxies.iter().map(|shedder| shedder.rejector.ratio()).sum::<f64>() / n);
        out.limit = Some(self.proxies.iter().map(|shedder| shedder.tuner.limit() as f64).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_inflow_raises_the_ratio_and_refuses_the_least_important() {
        let mut rejector = Rejector::default();
        for priority in 0..1000 {
            assert!(rejector.admit(priority), "nothing is refused before there is an overload");
            rejector.on_entered();
            if priority % 2 == 0 {
                rejector.on_left();
            }
        }
        rejector.on_period(true, 0);
        // error = (1000 − 500) / 500 = 1: integral 0.2, ratio 0.1 + 0.2.
        assert!((rejector.ratio() - 0.3).abs() < 1e-9);
        assert!(rejector.admit(700) && !rejector.admit(702), "the 70th percentile of 0 to 999 is the threshold");
    }

    #[test]
    fn free_slots_lower_the_ratio() {
        let mut rejector = Rejector { integral: 0.3, ratio: 0.3, ..Rejector::default() };
        (rejector.entered, rejector.left) = (100, 100);
        rejector.on_period(true, 50);
        // error = (100 − 150) / 100 = −0.5: integral 0.3 − 0.1, ratio 0.2 − 0.05.
        assert!((rejector.ratio() - 0.15).abs() < 1e-9);
    }

    #[test]
    fn the_tuner_grows_at_its_baseline_and_shrinks_when_latency_doubles() {
        let mut tuner = Tuner::new(Timestamp::ZERO);
        tuner.adjust(100.0, 20.0, 100.0);
        // log10(20) = 1.301.
        assert!((tuner.limit - 21.301).abs() < 1e-3, "{}", tuner.limit);
        tuner.adjust(200.0, 20.0, 100.0);
        // queue = 21.3 × 0.5 = 10.65 > 6 × 1.328; 21.301 − 1.328.
        assert!((tuner.limit - 19.973).abs() < 1e-3, "{}", tuner.limit);
    }
}
