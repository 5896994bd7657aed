//! The part of a computed budget that is used after hard evidence of overload.

use core::time::Duration;

use crate::time::Timestamp;

/// Least part that one piece of evidence leaves, and least part of all: a budget must be able to learn again.
const STRONGEST: f64 = 0.5;
/// Part of the value before the evidence to which it recovers fast; beyond it slowly, since that value was too much.
const REMEMBERED: f64 = 0.98;
/// Growth beyond the remembered value a tick: a minute from 97 % back to all.
const SLOW_STEP: f64 = 0.00005;
/// Evidence within this time is one event: it takes as long until a decrease shows.
const EVENT: Duration = Duration::from_millis(500);

/// Falls on hard evidence, recovers fast to just below the value that was too much, then slowly.
///
/// Recovery a tick: `max(1, 0.1·√L) / L` of the budget, with `L` streams in flight. Source: field map 4a (iii).
#[derive(Debug, Clone)]
pub(super) struct Headroom {
    part: f64,
    ceiling: f64,
    last: Option<Timestamp>,
}

impl Headroom {
    pub(super) fn new() -> Self {
        Self { part: 1.0, ceiling: 1.0, last: None }
    }

    /// The part, `0.5..=1`.
    pub(super) fn part(&self) -> f64 {
        self.part
    }

    /// Evidence: `severity` (0 to 1) is the part of the work that suffered; twice that is taken away.
    pub(super) fn fall(&mut self, now: Timestamp, severity: f64) {
        if self.last.is_some_and(|last| now.since(last) < EVENT) {
            return;
        }
        self.last = Some(now);
        let severity = if severity > 0.0 { severity.min(1.0) } else { 0.0 };
        self.ceiling = (self.part * REMEMBERED).max(STRONGEST);
        self.part = (self.part * (1.0 - 2.0 * severity).max(STRONGEST)).clamp(STRONGEST, self.ceiling);
    }

    /// One tick without evidence.
    pub(super) fn recover(&mut self, now: Timestamp, streams: u64) {
        if self.last.is_some_and(|last| now.since(last) < EVENT) {
            return;
        }
        let streams = (streams as f64).max(1.0);
        let step = (0.1 * libm::sqrt(streams)).max(1.0) / streams;
        self.part = (self.part + step.min(0.05)).min(self.ceiling);
        self.ceiling = (self.ceiling + SLOW_STEP).min(1.0);
    }
}
