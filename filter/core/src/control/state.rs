//! What goes into the control loop and what comes out.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use crate::histogram::Histogram;
use crate::level::{GpuMemorySample, LevelKind, LevelStatus, SignalSource, millis};

/// Signals of one pool, as they are now.
#[derive(Debug, Clone)]
pub struct Signals<'a> {
    /// Identity of the series of counters below. A new one says that they may have started from zero.
    pub series: u64,
    /// Newest sample of GPU memory; `None` when nobody measures it.
    pub gpu_memory: Option<GpuMemorySample>,
    /// Load of every class, in the policy's order. Missing ones count as zero.
    pub classes: &'a [ClassLoad],
    /// Times to first token over all classes, in microseconds, cumulative.
    pub ttft_us: &'a Histogram,
    /// Who measured load and times.
    pub source: SignalSource,
}

/// Load of one class over all proxies. The counters only grow within one [`Signals::series`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClassLoad {
    /// Requests that arrived.
    pub offered: u64,
    /// Requests admitted.
    pub admitted: u64,
    /// Admitted requests that ended with a response other than a failure.
    pub completed: u64,
    /// Requests in flight now.
    pub in_flight: u32,
}

/// What a class may do, over all proxies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClassAction {
    /// Everything is admitted.
    Admit,
    /// Admitted at a rate.
    Throttle {
        /// Requests per second; positive.
        rate_rps: f64,
        /// Depth of the bucket, in requests; at least 1.
        burst: f64,
    },
    /// Everything is refused.
    Refuse,
}

/// Decision about one class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassDecision {
    /// Name of the class.
    pub class: String,
    /// What it may do.
    pub action: ClassAction,
    /// Level that caused an action other than [`ClassAction::Admit`].
    pub because: Option<LevelKind>,
    /// Fraction of the leftover capacity that it gets, `0..=1`; 1 when it is admitted.
    pub fraction: f64,
    /// Rate at which refused requests of this class can be expected to be served, over all proxies, in requests per second: what
    /// the pool drains beyond the classes above this one. 0 while unknown.
    pub drain_rps: f64,
    /// Rate that is safe for this class when nobody watches the pool, over all proxies, in requests per second. 0 while unknown.
    pub safe_rps: f64,
}

/// State of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolState {
    /// The levels, in the order of [`LevelKind::ALL`].
    pub levels: [LevelStatus; 3],
    /// One entry a class, in the policy's order.
    pub classes: Vec<ClassDecision>,
    /// Requests that the pool completes per second when busy, over all proxies; 0 while unknown.
    pub drain_rps: f64,
    /// Smallest fraction of any class; 1 when everything is admitted.
    pub fraction: f64,
}

/// What turns the state of a pool into the limits of one proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitsFrame<'a> {
    /// Pool.
    pub pool: &'a str,
    /// Number of the computation; grows.
    pub epoch: u64,
    /// Version of the policy from which it was computed.
    pub policy_version: &'a str,
    /// The proxy's part of all rates, `0..=1`.
    pub share: f64,
    /// The proxy's part of the safe rates, `0..=1`.
    pub safe_share: f64,
    /// Time for which the limits hold after receipt.
    pub ttl: Duration,
    /// Length of the decay to the safe rates afterwards.
    pub decay: Duration,
}

impl PoolState {
    /// The level of a kind.
    #[must_use]
    pub fn level(&self, kind: LevelKind) -> Option<&LevelStatus> {
        self.levels.iter().find(|level| level.kind == kind)
    }

    /// Whether any level acts.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.levels.iter().any(LevelStatus::acts)
    }

    /// Whether every class is admitted.
    #[must_use]
    pub fn admits_all(&self) -> bool {
        self.classes.iter().all(|class| class.action == ClassAction::Admit)
    }

    /// The limits of one proxy: rates, bursts and drains times its share. A bucket holds at least one request, else nothing could ever pass.
    #[must_use]
    pub fn to_wire(&self, frame: &LimitsFrame<'_>) -> v1::Limits {
        v1::Limits {
            pool: frame.pool.into(),
            epoch: frame.epoch,
            policy_version: frame.policy_version.into(),
            ttl_ms: millis(frame.ttl),
            decay_ms: millis(frame.decay),
            levels: self.levels.iter().map(LevelStatus::to_wire).collect(),
            classes: self.classes.iter().map(|class| class.to_wire(frame.share, frame.safe_share)).collect(),
            drain_rps: self.drain_rps,
            overload: None,
            quotas: Vec::new(),
        }
    }
}

impl ClassDecision {
    fn to_wire(&self, share: f64, safe_share: f64) -> v1::ClassLimit {
        let (action, rate_rps, burst) = match self.action {
            ClassAction::Admit => (v1::ClassAction::Admit, 0.0, 0.0),
            ClassAction::Throttle { rate_rps, burst } => (v1::ClassAction::Throttle, rate_rps * share, (burst * share).max(1.0)),
            ClassAction::Refuse => (v1::ClassAction::Refuse, 0.0, 0.0),
        };
        v1::ClassLimit {
            class: self.class.clone(),
            action: action.into(),
            rate_rps,
            burst,
            drain_rps: self.drain_rps * share,
            safe_rps: self.safe_rps * safe_share,
            because: self.because.map_or(v1::LevelKind::Unspecified, LevelKind::to_wire).into(),
        }
    }
}
