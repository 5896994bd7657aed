//! The clients: what they send and when, from seeded streams of their own, so that the load of an open source does not depend on how
//! it is treated.

use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::controller::{Arrival, RequestId, Site};
use crate::rng::{Rng, Zipf};
use crate::setup::{Arrivals, Patience, Retries, Setup, Shape, Source};

/// Streams of randomness, by purpose.
pub(super) mod stream {
    pub(in crate::world) const BALANCER: u64 = 1;
    pub(in crate::world) const CONTROLLER: u64 = 2;
    pub(in crate::world) const RETRIES: u64 = 3;
    pub(in crate::world) const TRACE: u64 = 4;
    pub(in crate::world) const ENGINES: u64 = 1 << 20;
    pub(in crate::world) const GAPS: u64 = 1 << 21;
    pub(in crate::world) const REQUESTS: u64 = 1 << 22;
}

/// The clients of one source.
#[derive(Debug)]
pub(super) struct Clients {
    source: Source,
    tenants: Zipf,
    gaps: Rng,
    requests: Rng,
    /// Clients of a closed source that take part.
    alive: u32,
}

/// Places and lengths of requests that a source does not decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    proxies: u16,
    workers: u16,
    bytes_median: f64,
    bytes_sigma: f64,
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(source: &Source, index: u64, seed: u64) -> Self {
        Self {
            tenants: Zipf::new(source.tenants.count, source.tenants.zipf),
            source: source.clone(),
            gaps: Rng::new(seed, stream::GAPS + index),
            requests: Rng::new(seed, stream::REQUESTS + index),
            alive: 0,
        }
    }

    pub(super) fn patience(&self) -> Patience {
        self.source.patience
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.source.arrivals, Arrivals::Closed { .. })
    }

    /// A new request, sent now.
    pub(super) fn request(&mut self, now: Timestamp, frame: &Frame) -> Arrival {
        let rng = &mut self.requests;
        let tenant = self.source.tenants.first + self.tenants.draw(rng);
        let (prompt, output) = (self.source.prompt.draw(rng), self.source.output.draw(rng));
        frame.arrival(now, rng, Wanted { class: self.source.class, tenant, prompt, output, timeout: self.source.patience.timeout })
    }

    /// Time of the next arrival of an open source after `now`; `None` when it sends no more.
    pub(super) fn next_arrival(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Arrivals::Open { rps, cv, ref shape } = self.source.arrivals else { return None };
        let gap = match cv {
            cv if cv <= 0.0 => 1.0,
            1.0 => self.gaps.exponential(),
            cv => self.gaps.gamma(1.0 / (cv * cv)),
        };
        let begins = self.source.from;
        let elapsed = Duration::from_nanos(now.as_nanos()).saturating_sub(begins);
        let at = begins + advance(elapsed, gap, rps, shape)?;
        (at < self.source.until).then(|| Timestamp::ZERO + at)
    }

    /// Clients of a closed source that join now, and when their number changes next.
    pub(super) fn joining(&mut self, now: Timestamp) -> (u32, Option<Timestamp>) {
        let (wanted, until) = self.population(now);
        let joining = wanted.saturating_sub(self.alive);
        self.alive += joining;
        (joining, until)
    }

    /// Time at which a client of a closed source sends, if it stays at all.
    pub(super) fn think(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Arrivals::Closed { think, .. } = self.source.arrivals else { return None };
        let at = now + think.mul_f64(self.gaps.exponential());
        if self.alive > self.population(now).0 || at >= Timestamp::ZERO + self.source.until {
            self.alive -= 1;
            return None;
        }
        Some(at)
    }

    fn population(&self, now: Timestamp) -> (u32, Option<Timestamp>) {
        let Arrivals::Closed { clients, ref shape, .. } = self.source.arrivals else { return (0, None) };
        let elapsed = Duration::from_nanos(now.as_nanos()).saturating_sub(self.source.from);
        let (factor, until) = shape.at(elapsed);
        ((f64::from(clients) * factor) as u32, until.map(|until| Timestamp::ZERO + self.source.from + until))
    }
}

/// The time after `elapsed` at which a process of rate `rps · shape` has made `gap` further steps; `None`: never.
fn advance(mut elapsed: Duration, mut gap: f64, rps: f64, shape: &Shape) -> Option<Duration> {
    loop {
        let (factor, until) = shape.at(elapsed);
        let rate = rps * factor;
        let Some(until) = until else {
            return (rate > 0.0).then(|| elapsed + Duration::from_secs_f64((gap / rate).min(1e8)));
        };
        let capacity = rate * (until - elapsed).as_secs_f64();
        if capacity >= gap {
            return Some(elapsed + Duration::from_secs_f64(gap / rate));
        }
        gap -= capacity;
        elapsed = until;
    }
}

/// What a request is to be.
pub(super) struct Wanted {
    pub(super) class: u8,
    pub(super) tenant: u32,
    pub(super) prompt: u32,
    pub(super) output: u32,
    pub(super) timeout: Duration,
}

// === impl Frame ===

impl Frame {
    pub(super) fn new(setup: &Setup) -> Self {
        let (mean, sigma) = setup.bytes_per_token;
        Self {
            proxies: setup.proxies.max(1),
            workers: setup.workers.max(1),
            bytes_median: mean / libm::exp(sigma * sigma / 2.0),
            bytes_sigma: sigma,
        }
    }

    /// The first attempt of a request, at a site drawn uniformly.
    pub(super) fn arrival(&self, now: Timestamp, rng: &mut Rng, wanted: Wanted) -> Arrival {
        let bytes = if self.bytes_sigma > 0.0 { rng.log_normal(self.bytes_median, self.bytes_sigma) } else { self.bytes_median };
        Arrival {
            id: RequestId(u32::MAX),
            site: self.site(rng),
            class: wanted.class,
            tenant: wanted.tenant,
            content_length: (f64::from(wanted.prompt) * bytes) as u64,
            attempt: 1,
            deadline: now + wanted.timeout,
            prompt_tokens: wanted.prompt,
            secret_output_tokens: wanted.output,
        }
    }

    pub(super) fn site(&self, rng: &mut Rng) -> Site {
        let number = rng.below(u32::from(self.proxies) * u32::from(self.workers));
        let workers = u32::from(self.workers);
        Site { proxy: (number / workers) as u16, worker: (number % workers) as u16 }
    }
}

/// Wait before the next attempt after attempt number `attempt`; `None`: the client gives up.
pub(super) fn wait_before_retry(retries: Retries, attempt: u32, retry_after: Option<Duration>, rng: &mut Rng) -> Option<Duration> {
    let (attempts, backoff, named) = match retries {
        Retries::None => return None,
        Retries::Ignoring { attempts, backoff } => (attempts, backoff, None),
        Retries::Honouring { attempts, backoff } => (attempts, backoff, retry_after),
    };
    if attempt >= attempts {
        return None;
    }
    // A client that honours the answer waits at least as long; what it adds by itself spreads the crowd.
    let own = backoff.draw(attempt, rng);
    Some(named.map_or(own, |named| named + backoff.base.mul_f64(backoff.jitter * rng.unit())))
}
