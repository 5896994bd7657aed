//! What the controller of a pool says.

use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::level::{CutOff, LEVELS};
use super::work::Budgets;

/// Rungs that are read from the wire: more than any policy has.
const MAX_RUNGS_ON_WIRE: u32 = 64;

/// A term of the saturation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// Prefill backlog against its budget.
    Prefill,
    /// KV cache against its target.
    Kv,
    /// Streams against those that keep the time between tokens in its objective.
    Decode,
    /// The engines' own queue against its reference.
    EngineQueue,
    /// Queueing part of the time to first token against what the objective leaves.
    Ttft,
    /// Time between tokens against its objective.
    Tpot,
    /// A level of the three-level limiter against its threshold.
    Level,
}

/// How near a pool is to the most that it can do; 1: it can do no more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saturation {
    /// The terms as one number: the largest, or the learned blend; not negative, finite.
    pub value: f64,
    /// The largest term; `None` while all are 0.
    pub binding: Option<Term>,
    /// Every term, in the order of [`Term::ALL`]; 0 for one without a signal.
    pub terms: [(Term, f64); Term::COUNT],
    /// How sure the learned blend is of its verdict, 0 to 1.
    pub confidence: f64,
}

/// State of one rung of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RungState {
    /// It does nothing.
    Released,
    /// It acts.
    Engaged,
    /// This build cannot do it; the ladder passes it over.
    Unavailable,
}

/// State of a pool under overload control.
#[derive(Debug, Clone, PartialEq)]
pub struct OverloadState {
    /// Work that may be in flight.
    pub budgets: Budgets,
    /// Work that may be in flight when nobody watches the pool.
    pub safe_budgets: Budgets,
    /// What is cut off.
    pub cut_off: CutOff,
    /// How full the pool is.
    pub saturation: Saturation,
    /// Rungs of the ladder, in the policy's order.
    pub rungs: Vec<RungState>,
    /// Work tokens that the pool finishes per second when busy; 0: unknown.
    pub drain_work_per_s: f64,
    /// Time to first token that a request admitted now can expect once it has left the queue.
    pub expected_ttft: Duration,
    /// Part of first attempts that retries may be, `0..=1`.
    pub retry_ratio: f64,
    /// Factor on the prompt tokens that the content length suggests; 0: not known.
    pub prompt_factor: f64,
    /// Mean output of a response, in tokens; 0: not known.
    pub output_tokens: f64,
    /// Work tokens per second that each class is always given, in the policy's order.
    pub floors_work_per_s: Vec<f64>,
    /// Epoch of the newest engine sample that went in; 0: none.
    pub sample_epoch: u64,
    /// Whether the time between tokens is that of the engines' own histograms, if they have any: the filters have seen none lately. Not on
    /// the wire.
    pub tpot_is_engines: bool,
}

impl Term {
    /// Number of terms.
    pub const COUNT: usize = 7;
    /// All terms.
    pub const ALL: [Self; Self::COUNT] = [Self::Prefill, Self::Kv, Self::Decode, Self::EngineQueue, Self::Ttft, Self::Tpot, Self::Level];

    /// Stable text for metrics and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Kv => "kv",
            Self::Decode => "decode",
            Self::EngineQueue => "engine_queue",
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Level => "level",
        }
    }

    /// The form on the wire.
    #[must_use]
    pub const fn to_wire(self) -> v1::SaturationTerm {
        match self {
            Self::Prefill => v1::SaturationTerm::Prefill,
            Self::Kv => v1::SaturationTerm::Kv,
            Self::Decode => v1::SaturationTerm::Decode,
            Self::EngineQueue => v1::SaturationTerm::EngineQueue,
            Self::Ttft => v1::SaturationTerm::Ttft,
            Self::Tpot => v1::SaturationTerm::Tpot,
            Self::Level => v1::SaturationTerm::Level,
        }
    }

    /// Reads the form on the wire; one that is not given or not known is none.
    #[must_use]
    pub fn from_wire(wire: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|term| i32::from(term.to_wire()) == wire)
    }
}

impl Saturation {
    /// Nothing is known, nothing is full.
    pub const NONE: Self = Self {
        value: 0.0,
        binding: None,
        terms: [
            (Term::Prefill, 0.0),
            (Term::Kv, 0.0),
            (Term::Decode, 0.0),
            (Term::EngineQueue, 0.0),
            (Term::Ttft, 0.0),
            (Term::Tpot, 0.0),
            (Term::Level, 0.0),
        ],
        confidence: 1.0,
    };

    /// Value of a term.
    #[must_use]
    pub fn term(&self, term: Term) -> f64 {
        self.terms.iter().find(|entry| entry.0 == term).map_or(0.0, |entry| entry.1)
    }
}

impl RungState {
    /// Stable text for metrics and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Engaged => "engaged",
            Self::Unavailable => "unavailable",
        }
    }
}

impl OverloadState {
    /// Before the first step: nothing is known, and nothing is bounded.
    pub(super) const fn fresh() -> Self {
        Self {
            budgets: Budgets::UNBOUNDED,
            safe_budgets: Budgets::UNBOUNDED,
            cut_off: CutOff::NONE,
            saturation: Saturation::NONE,
            rungs: Vec::new(),
            drain_work_per_s: 0.0,
            expected_ttft: Duration::ZERO,
            retry_ratio: 1.0,
            prompt_factor: 0.0,
            output_tokens: 0.0,
            floors_work_per_s: Vec::new(),
            sample_epoch: 0,
            tpot_is_engines: false,
        }
    }

    /// The limits of one proxy: budgets, drain and floors times its `share`, safe budgets times its `safe_share` (both `0..=1`). Engines and
    /// tenants are not the controller's.
    #[must_use]
    pub fn to_wire(&self, share: f64, safe_share: f64) -> v1::OverloadLimits {
        let engaged = self.rungs.iter().zip(0_u32..).filter(|(state, _)| **state == RungState::Engaged);
        v1::OverloadLimits {
            budgets: Some(self.budgets.part(share).to_wire()),
            cut_level: u32::from(self.cut_off.level),
            cut_fraction: self.cut_off.fraction,
            saturation: self.saturation.value,
            binding: self.saturation.binding.map_or(v1::SaturationTerm::Unspecified, Term::to_wire).into(),
            sample_epoch: self.sample_epoch,
            drain_work_per_s: self.drain_work_per_s * share,
            expected_ttft_ms: self.expected_ttft.as_secs_f64() * 1000.0,
            safe_budgets: Some(self.safe_budgets.part(safe_share).to_wire()),
            rungs: engaged.map(|(_, index)| index).collect(),
            retry_ratio: self.retry_ratio,
            prompt_factor: self.prompt_factor,
            output_tokens: self.output_tokens,
            floor_work_per_s: self.floors_work_per_s.iter().map(|floor| floor * share).collect(),
            engines: Vec::new(),
            engine_bounds: Vec::new(),
            served_slot_deltas: Vec::new(),
            served_work: Vec::new(),
        }
    }
    /// What [`Self::to_wire`] says with a share of 1: how it is passed on to another replica. Terms and confidence are not in it.
    #[must_use]
    pub fn from_wire(wire: &v1::OverloadLimits) -> Self {
        let n_rungs = wire.rungs.iter().max().map_or(0, |last| last.saturating_add(1)).min(MAX_RUNGS_ON_WIRE);
        let rung = |index| if wire.rungs.contains(&index) { RungState::Engaged } else { RungState::Released };
        Self {
            budgets: Budgets::from_wire(wire.budgets.as_ref()),
            safe_budgets: Budgets::from_wire(wire.safe_budgets.as_ref()),
            cut_off: CutOff { level: u16::try_from(wire.cut_level).unwrap_or(LEVELS).min(LEVELS), fraction: wire.cut_fraction },
            saturation: Saturation { value: wire.saturation, binding: Term::from_wire(wire.binding), ..Saturation::NONE },
            rungs: (0..n_rungs).map(rung).collect(),
            drain_work_per_s: wire.drain_work_per_s,
            // From the wire: a time that is none counts as 0.
            expected_ttft: Duration::try_from_secs_f64(wire.expected_ttft_ms / 1000.0).unwrap_or_default(),
            retry_ratio: wire.retry_ratio,
            prompt_factor: wire.prompt_factor,
            output_tokens: wire.output_tokens,
            floors_work_per_s: wire.floor_work_per_s.clone(),
            sample_epoch: wire.sample_epoch,
            tpot_is_engines: false,
        }
    }
}
