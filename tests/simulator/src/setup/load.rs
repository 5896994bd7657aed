//! Load: who asks, how often, how much, and what a client does when it is refused.

use std::time::Duration;

use crate::rng::Rng;

/// Clients that behave alike.
#[derive(Clone, Debug)]
pub struct Source {
    /// Class as position in `Setup::classes`.
    pub class: u8,
    /// Their tenants.
    pub tenants: Tenants,
    /// When they send.
    pub arrivals: Arrivals,
    /// Tokens of a prompt.
    pub prompt: Lengths,
    /// Tokens of a response.
    pub output: Lengths,
    /// What they do when they must wait or are refused.
    pub patience: Patience,
    /// First virtual time at which they send.
    pub from: Duration,
    /// Virtual time from which on they send nothing new.
    pub until: Duration,
}

/// Tenants of a source: `first .. first + count`, Zipf with the given exponent; 0 is uniform.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenants {
    /// First tenant.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
    /// Exponent of Zipf's law.
    pub zipf: f64,
}

/// When clients send.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Nobody waits for an answer before the next request is sent.
    Open {
        /// Mean rate, in requests per second, before the shape's factor.
        rps: f64,
        /// Coefficient of variation of the gaps (gamma distributed); 1 is Poisson, 0 a clock.
        cv: f64,
        /// Rate over time.
        shape: Shape,
    },
    /// Each client waits for its answer, thinks, and sends again.
    Closed {
        /// Clients.
        clients: u32,
        /// Mean time to think, exponentially distributed.
        think: Duration,
        /// Rate over time: the part of the clients that takes part.
        shape: Shape,
    },
}

/// Factor on a rate over time since the source's `from`.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// 1.
    Steady,
    /// `factor` from `at` to `until`, else 1.
    Step {
        /// When it begins.
        at: Duration,
        /// When it ends.
        until: Duration,
        /// The factor.
        factor: f64,
    },
    /// On and off by turns, on first.
    OnOff {
        /// How long on.
        on: Duration,
        /// How long off.
        off: Duration,
        /// Factor while on.
        high: f64,
        /// Factor while off.
        low: f64,
    },
    /// Grows exponentially from 1: doubles every `doubling` until it reaches `peak`, then holds.
    Growth {
        /// Time in which it doubles.
        doubling: Duration,
        /// Largest factor.
        peak: f64,
    },
    /// Steps: from each time on its factor; 1 before the first.
    Points(Vec<(Duration, f64)>),
}

/// A distribution of token counts, at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Uniform from `low` to `high`, both included.
    Uniform {
        /// Smallest.
        low: u32,
        /// Largest.
        high: u32,
    },
    /// Log-normal, cut to `1..=most`.
    LogNormal {
        /// Median.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// Largest.
        most: u32,
    },
}

/// What a client does when it must wait or is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Time to first token after which it disconnects.
    pub timeout: Duration,
    /// Whether it tries again.
    pub retries: Retries,
}

/// Whether and when a client tries again after a refusal, a failure or its own time-out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Retries {
    /// Never.
    None,
    /// Up to `attempts` attempts in all, after the backoff.
    Ignoring {
        /// Attempts, the first included.
        attempts: u32,
        /// Wait before the next one.
        backoff: Backoff,
    },
    /// As `Ignoring`, but no sooner than `Retry-After` says.
    Honouring {
        /// Attempts, the first included.
        attempts: u32,
        /// Wait before the next one when the answer names none.
        backoff: Backoff,
    },
}

/// Exponential backoff: `base · 2^(attempt − 1)`, at most `most`, times a factor drawn uniformly from `1 − jitter ..= 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// First wait.
    pub base: Duration,
    /// Longest wait.
    pub most: Duration,
    /// Jitter, `0..=1`.
    pub jitter: f64,
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceRow {
    /// Virtual time since the beginning.
    pub at: Duration,
    /// Tenant.
    pub tenant: u32,
    /// Class as position in `Setup::classes`.
    pub class: u8,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the response.
    pub output_tokens: u32,
}

impl Default for Patience {
    /// A client that waits 60 s and does not come back.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), retries: Retries::None }
    }
}

impl Default for Backoff {
    /// As the OpenAI client libraries: 0.5 s doubling to 8 s, a quarter of jitter.
    fn default() -> Self {
        Self { base: Duration::from_millis(500), most: Duration::from_secs(8), jitter: 0.25 }
    }
}

impl Lengths {
    /// One draw.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens.max(1),
            Self::Uniform { low, high } => low.max(1) + rng.below(high.saturating_sub(low) + 1),
            Self::LogNormal { median, sigma, most } => (rng.log_normal(median, sigma) as u32).clamp(1, most.max(1)),
        }
    }

    /// Mean, in tokens; of a cut log-normal the mean without the cut, which is a little more.
    pub fn mean(&self) -> f64 {
        match *self {
            Self::Fixed(tokens) => f64::from(tokens.max(1)),
            Self::Uniform { low, high } => (f64::from(low.max(1)) + f64::from(high)) / 2.0,
            Self::LogNormal { median, sigma, .. } => median * libm::exp(sigma * sigma / 2.0),
        }
    }
}

impl Backoff {
    /// Wait after attempt number `attempt`.
    pub fn draw(&self, attempt: u32, rng: &mut Rng) -> Duration {
        let doubled = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.most).mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * rng.unit())
    }
}

impl Shape {
    /// Factor at `elapsed`, and the time until which it holds; `None`: for ever.
    pub fn at(&self, elapsed: Duration) -> (f64, Option<Duration>) {
        match self {
            Self::Steady => (1.0, None),
            Self::Step { at, until, factor } => match elapsed {
                now if now < *at => (1.0, Some(*at)),
                now if now < *until => (*factor, Some(*until)),
                _ => (1.0, None),
            },
            Self::OnOff { on, off, high, low } => on_off(elapsed, *on, *off, *high, *low),
            Self::Growth { doubling, peak } => growth(elapsed, *doubling, *peak),
            Self::Points(points) => {
                let next = points.iter().position(|(from, _)| *from > elapsed);
                let index = next.unwrap_or(points.len());
                let factor = index.checked_sub(1).map_or(1.0, |before| points[before].1);
                (factor, next.map(|next| points[next].0))
            }
        }
    }
}

fn on_off(elapsed: Duration, on: Duration, off: Duration, high: f64, low: f64) -> (f64, Option<Duration>) {
    let period = (on + off).max(Duration::from_nanos(1));
    let turns = elapsed.as_nanos() / period.as_nanos();
    let begun = period.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX));
    if elapsed - begun < on { (high, Some(begun + on)) } else { (low, Some(begun + period)) }
}

/// Constant within tenths of a second.
fn growth(elapsed: Duration, doubling: Duration, peak: f64) -> (f64, Option<Duration>) {
    let tenths = elapsed.as_millis() / 100;
    let doublings = tenths as f64 * 0.1 / doubling.as_secs_f64().max(1e-9);
    let factor = libm::exp2(doublings.min(1000.0));
    if factor >= peak {
        return (peak, None);
    }
    (factor, Some(Duration::from_millis(u64::try_from(tenths + 1).unwrap_or(u64::MAX / 100).saturating_mul(100))))
}
