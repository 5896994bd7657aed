//! Rates from counters: what two looks at the status tell of the time between them, and how that went lately.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::status::{ClassStatus, StatusDocument};

/// Looks of which the history is kept.
const HISTORY: usize = 20;

/// Requests of one class per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Requests that arrived.
    pub(super) offered_rps: f64,
    /// Requests admitted.
    pub(super) admitted_rps: f64,
    /// Requests refused.
    pub(super) refused_rps: f64,
}

/// Pool and class.
pub(super) type ClassKey = (String, String);

/// The counters of one class at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    offered: u64,
    admitted: u64,
    refused: u64,
}

/// What is remembered of earlier looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Trends {
    seen_at: Option<Instant>,
    counters: BTreeMap<ClassKey, Counters>,
    rates: BTreeMap<ClassKey, Rates>,
    /// Rates of arrival, oldest first.
    history: BTreeMap<ClassKey, VecDeque<f64>>,
}

// === impl Trends ===

impl Trends {
    /// Takes a look in that was had at `now`. Classes that have gone are forgotten.
    pub(super) fn take(&mut self, now: Instant, document: &StatusDocument) {
        let passed = self.seen_at.map(|at| now.saturating_duration_since(at)).filter(|passed| !passed.is_zero());
        let (mut counters, mut rates, mut history) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (pool, class) in document.pools.iter().flat_map(|pool| pool.classes.iter().map(move |class| (pool, class))) {
            let key = (pool.pool.clone(), class.class.clone());
            let new = Counters::of(class);
            let mut past = self.history.remove(&key).unwrap_or_default();
            if let (Some(old), Some(passed)) = (self.counters.get(&key), passed)
                && let Some(rate) = new.since(*old, passed)
            {
                rates.insert(key.clone(), rate);
                past.push_back(rate.offered_rps);
                past.drain(..past.len().saturating_sub(HISTORY));
            }
            history.insert(key.clone(), past);
            counters.insert(key, new);
        }
        *self = Self { seen_at: Some(now), counters, rates, history };
    }

    /// Rates of one class between the last two looks; `None` before the second, and when the control plane has begun anew in between.
    pub(super) fn rates(&self, pool: &str, class: &str) -> Option<Rates> {
        self.rates.get(&(pool.to_owned(), class.to_owned())).copied()
    }

    /// The rates of arrival of one class, oldest first.
    pub(super) fn history(&self, pool: &str, class: &str) -> impl Iterator<Item = f64> + Clone + '_ {
        self.history.get(&(pool.to_owned(), class.to_owned())).into_iter().flatten().copied()
    }

    /// All rates.
    pub(super) fn all(&self) -> impl Iterator<Item = (&ClassKey, &Rates)> {
        self.rates.iter()
    }
}

// === impl Counters ===

impl Counters {
    fn of(class: &ClassStatus) -> Self {
        let refused = class.refused.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
        Self { offered: class.offered, admitted: class.admitted, refused }
    }

    /// Counters that went down are those of another run.
    fn since(self, old: Self, passed: Duration) -> Option<Rates> {
        let per_second = |new: u64, old: u64| new.checked_sub(old).map(|count| count as f64 / passed.as_secs_f64());
        Some(Rates {
            offered_rps: per_second(self.offered, old.offered)?,
            admitted_rps: per_second(self.admitted, old.admitted)?,
            refused_rps: per_second(self.refused, old.refused)?,
        })
    }
}
