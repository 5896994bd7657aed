//! Why a request was refused: the one set of reasons, and the numbers behind a refusal.

use core::fmt;

use headgate_protos::v1;

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
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 6] = [Self::Qps, Self::GpuMemory, Self::P99, Self::Overload, Self::Concurrency, Self::BreakerOpen];

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
    /// The signal's value, in the unit of the reason: requests per second, percent, milliseconds, requests, failures.
    pub value: f64,
    /// The threshold that it passed, in the same unit.
    pub threshold: f64,
    /// Who decided.
    pub source: Source,
}
