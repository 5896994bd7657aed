//! What a run tells those who measure it.

use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::controller::{Arrival, Ending, Gauges};
use crate::engine::Engine;

/// Someone who measures. Every attempt of a request is told once at its beginning and once at its end.
pub trait Observer {
    /// A client sends an attempt.
    fn on_sent(&mut self, now: Timestamp, arrival: &Arrival) {
        let _ = (now, arrival);
    }

    /// An attempt is admitted: it leaves the proxy for the pool.
    fn on_admitted(&mut self, now: Timestamp, arrival: &Arrival) {
        let _ = (now, arrival);
    }

    /// An attempt is over.
    fn on_over(&mut self, over: &Over) {
        let _ = over;
    }

    /// The state at regular times.
    fn on_sample(&mut self, sample: &Sample<'_>) {
        let _ = sample;
    }
}

/// Someone who measures nothing.
impl Observer for () {}

/// An attempt that is over.
#[derive(Clone, Copy, Debug)]
pub struct Over {
    /// The attempt.
    pub arrival: Arrival,
    /// When the client sent it.
    pub sent_at: Timestamp,
    /// When it left the proxy for the pool.
    pub admitted_at: Option<Timestamp>,
    /// When its first token came.
    pub first_token_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Timestamp,
    /// How it ended.
    pub fate: Fate,
    /// `Retry-After` of the refusal.
    pub retry_after: Option<Duration>,
    /// Tokens of the response that came.
    pub output_tokens: u32,
    /// Whether the client gives the request up: no attempt follows.
    pub is_last: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The controller refused it, at once or after it had waited.
    Refused,
    /// Its client left while it waited.
    Abandoned,
    /// Its worker restarted while it waited.
    Lost,
    /// It was admitted and ended.
    Ended(Ending),
}

/// The state at one time.
pub struct Sample<'a> {
    /// The time.
    pub now: Timestamp,
    /// The engines.
    pub engines: &'a [Engine],
    /// Requests that wait for a release by the controller.
    pub waiting: u32,
    /// Admitted requests that are not over.
    pub in_flight: u32,
    /// What the controller shows.
    pub gauges: Gauges,
}
