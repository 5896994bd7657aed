//! Why a request was refused: the one set of reasons, and the numbers behind a refusal.

use core::fmt;

use headgate_protos::v1;

use crate::overload::Term;

/// Why a request was refused. Headers, bodies, access logs, reports and metrics use [`Reason::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The request rate level tripped.
    Qps,
    /// The GPU memory level tripped.
    GpuMemory,
    /// The time-to-first-token level tripped.
    P99,
    /// Limits that name no level.
    Overload,
    /// No permit of `maxInFlight` was free for the class.
    Concurrency,
    /// A circuit breaker let nothing through.
    BreakerOpen,
    /// The pool is saturated, and the request's class and cohort are cut off.
    CutOff,
    /// A budget of work had no room, and the policy has no queue for the request.
    Budget,
    /// As many requests or bytes wait as may.
    QueueFull,
    /// It could not have started in time, so it was not let wait.
    Deadline,
    /// It waited as long as it could.
    Expired,
    /// Retries were more than their part of first attempts.
    RetryBudget,
    /// A rung of the degradation ladder sent it elsewhere.
    Ladder,
    /// A quota over the fleet has not enough left in this worker.
    Quota,
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 14] = [
        Self::Qps,
        Self::GpuMemory,
        Self::P99,
        Self::Overload,
        Self::Concurrency,
        Self::BreakerOpen,
        Self::CutOff,
        Self::Budget,
        Self::QueueFull,
        Self::Deadline,
        Self::Expired,
        Self::RetryBudget,
        Self::Ladder,
        Self::Quota,
    ];

    /// Stable text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qps => "qps",
            Self::GpuMemory => "gpu_memory",
            Self::P99 => "p99",
            Self::Overload => "overload",
            Self::Concurrency => "concurrency",
            Self::BreakerOpen => "breaker_open",
            Self::CutOff => "cut_off",
            Self::Budget => "budget",
            Self::QueueFull => "queue_full",
            Self::Deadline => "deadline",
            Self::Expired => "expired",
            Self::RetryBudget => "retry_budget",
            Self::Ladder => "ladder",
            Self::Quota => "quota",
        }
    }

    /// What the number is and what follows it, for people.
    pub(crate) const fn signal_and_unit(self) -> (&'static str, &'static str) {
        match self {
            Self::Qps => ("request rate", " per second"),
            Self::GpuMemory => ("GPU memory in use", " %"),
            Self::P99 => ("99th percentile of the time to first token", " ms"),
            Self::Overload => ("load", ""),
            Self::Concurrency => ("number of requests in flight", ""),
            Self::BreakerOpen => ("failure count or percentage", ""),
            Self::CutOff | Self::Ladder => ("saturation", ""),
            Self::Budget => ("work in flight", ""),
            Self::QueueFull => ("queue", ""),
            Self::Deadline => ("expected time to first token", " ms"),
            Self::Expired => ("time in the queue", " ms"),
            Self::RetryBudget => ("part of retries", " %"),
            Self::Quota => ("cost against what is left of the quota", ""),
        }
    }

    /// The reason that a level gives; `Overload` for an unspecified one.
    #[must_use]
    pub const fn of_level(kind: v1::LevelKind) -> Self {
        match kind {
            v1::LevelKind::Unspecified => Self::Overload,
            v1::LevelKind::Qps => Self::Qps,
            v1::LevelKind::GpuMemory => Self::GpuMemory,
            v1::LevelKind::P99 => Self::P99,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Limits from the control plane, within their time.
    ControlPlane,
    /// Limits from the control plane that decay because no newer ones came.
    Decaying,
    /// The worker's own levels.
    Local,
    /// The policy alone: its concurrency bound or its breaker.
    Policy,
}

impl Source {
    /// Stable text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control_plane",
            Self::Decaying => "decaying",
            Self::Local => "local",
            Self::Policy => "policy",
        }
    }
}

/// The numbers of a refusal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cause {
    /// Why.
    pub reason: Reason,
    /// The signal's value, in the unit of the reason: requests per second, percent, milliseconds, requests, bytes, tokens, failures; for
    /// a cut-off or a rung the saturation, 1 being full.
    pub value: f64,
    /// The threshold that it passed, in the same unit.
    pub threshold: f64,
    /// What makes the saturation so, or which budget it was; `None` for other reasons.
    pub term: Option<Term>,
    /// Who decided.
    pub source: Source,
}

impl Cause {
    /// What the client and the access log are told limited the request: the term, or else the reason itself.
    #[must_use]
    pub fn level(&self) -> &'static str {
        self.term.map_or(self.reason.as_str(), Term::as_str)
    }
}
