//! Work of three kinds and the budgets that bound it.

use headgate_protos::v1;

/// Work that a request does to an engine, or many requests together.
///
/// Each kind has its own scarcity: prefill tokens compete for compute until the first token, KV tokens for memory until the end, and
/// every stream makes each decode step longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Tokens of prompts whose first token has not come.
    pub prefill_tokens: u64,
    /// Tokens that are or will be kept in the KV cache: prompt and expected output.
    pub kv_tokens: u64,
    /// Responses in flight.
    pub streams: u64,
}

/// Bounds on [`Work`] in flight, one a kind; `None`: unbounded. A bound is never 0: a budget that admits nothing could never learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budgets {
    /// Bound on prefill tokens.
    pub prefill_tokens: Option<u64>,
    /// Bound on KV tokens, as reserved.
    pub kv_tokens: Option<u64>,
    /// Bound on streams.
    pub streams: Option<u64>,
}

impl Work {
    /// No work.
    pub const NONE: Self = Self { prefill_tokens: 0, kv_tokens: 0, streams: 0 };

    /// The sum of each kind; saturates.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens.saturating_add(other.prefill_tokens),
            kv_tokens: self.kv_tokens.saturating_add(other.kv_tokens),
            streams: self.streams.saturating_add(other.streams),
        }
    }

    /// The difference of each kind; never below 0.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens.saturating_sub(other.prefill_tokens),
            kv_tokens: self.kv_tokens.saturating_sub(other.kv_tokens),
            streams: self.streams.saturating_sub(other.streams),
        }
    }

    /// Whether all three kinds lie within the budgets.
    #[must_use]
    pub fn fits(self, budgets: &Budgets) -> bool {
        let within = |used: u64, budget: Option<u64>| budget.is_none_or(|budget| used <= budget);
        within(self.prefill_tokens, budgets.prefill_tokens)
            && within(self.kv_tokens, budgets.kv_tokens)
            && within(self.streams, budgets.streams)
    }

    /// The largest part that any kind takes of its budget; 0 when nothing is bounded.
    #[must_use]
    pub fn part_of(self, budgets: &Budgets) -> f64 {
        let part = |used: u64, budget: Option<u64>| budget.map_or(0.0, |budget| used as f64 / budget.max(1) as f64);
        part(self.prefill_tokens, budgets.prefill_tokens)
            .max(part(self.kv_tokens, budgets.kv_tokens))
            .max(part(self.streams, budgets.streams))
    }

    /// Work tokens: a token of the prompt counts 1, one of the output `output_weight`. `prefill + w · (kv − prefill)`.
    #[must_use]
    pub fn tokens(self, output_weight: f64) -> f64 {
        self.prefill_tokens as f64 + output_weight * self.kv_tokens.saturating_sub(self.prefill_tokens) as f64
    }

    /// The form on the wire.
    #[must_use]
    pub const fn to_wire(self) -> v1::Work {
        v1::Work { prefill_tokens: self.prefill_tokens, kv_tokens: self.kv_tokens, streams: self.streams }
    }

    /// Reads the form on the wire; absent is none.
    #[must_use]
    pub fn from_wire(wire: Option<&v1::Work>) -> Self {
        let Some(v1::Work { prefill_tokens, kv_tokens, streams }) = wire else { return Self::NONE };
        Self { prefill_tokens: *prefill_tokens, kv_tokens: *kv_tokens, streams: *streams }
    }
}

impl Budgets {
    /// Nothing is bounded.
    pub const UNBOUNDED: Self = Self { prefill_tokens: None, kv_tokens: None, streams: None };

    /// Bounds on prefill tokens, KV tokens and streams.
    pub(super) const fn of([prefill_tokens, kv_tokens, streams]: [Option<u64>; 3]) -> Self {
        Self { prefill_tokens, kv_tokens, streams }
    }

    /// A part of each bound, rounded to the nearest, at least 1. `share` is clamped to `0..=1`; NaN counts as 0.
    #[must_use]
    pub fn part(&self, share: f64) -> Self {
        let share = if share > 0.0 { share.min(1.0) } else { 0.0 };
        self.map(|bound| (libm::round(bound as f64 * share) as u64).max(1))
    }

    /// The stricter bound of each kind.
    #[must_use]
    pub fn stricter(&self, other: &Self) -> Self {
        let min = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, None) | (None, one) => one,
        };
        Self {
            prefill_tokens: min(self.prefill_tokens, other.prefill_tokens),
            kv_tokens: min(self.kv_tokens, other.kv_tokens),
            streams: min(self.streams, other.streams),
        }
    }

    /// The form on the wire, where 0 is unbounded.
    #[must_use]
    pub fn to_wire(&self) -> v1::Work {
        v1::Work {
            prefill_tokens: self.prefill_tokens.unwrap_or(0),
            kv_tokens: self.kv_tokens.unwrap_or(0),
            streams: self.streams.unwrap_or(0),
        }
    }

    /// Reads the form on the wire; 0 and absent are unbounded.
    #[must_use]
    pub fn from_wire(wire: Option<&v1::Work>) -> Self {
        let Some(v1::Work { prefill_tokens, kv_tokens, streams }) = wire else { return Self::UNBOUNDED };
        let bound = |value: u64| (value > 0).then_some(value);
        Self { prefill_tokens: bound(*prefill_tokens), kv_tokens: bound(*kv_tokens), streams: bound(*streams) }
    }

    fn map(&self, f: impl Fn(u64) -> u64) -> Self {
        Self { prefill_tokens: self.prefill_tokens.map(&f), kv_tokens: self.kv_tokens.map(&f), streams: self.streams.map(&f) }
    }
}
