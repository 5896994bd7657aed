//! The three levels of the limiter: request rate, GPU memory, tail of the time to first token. Any one of them trips.
//!
//! A level turns its signal into a value and a threshold; [`Trip`] decides from both what state the level is in.

mod baseline;
mod gpu_memory;
mod memory_source;
mod p99;
mod qps;
mod trip;

use core::time::Duration;

use headgate_protos::v1;

pub use gpu_memory::{GpuMemoryLevel, GpuMemorySample};
pub use memory_source::{EngineFacts, EngineMemory, MemoryChoice, MemoryFacts, MemorySource, SourceReason};
pub use p99::P99Level;
pub use qps::{Others, QpsLevel};
pub use trip::{Evidence, LastTrip, LevelState, Reading, Trip};

use crate::time::Timestamp;

/// A level of the limiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LevelKind {
    /// Request rate, in requests per second.
    Qps,
    /// GPU memory in use, in percent of the total.
    GpuMemory,
    /// 99th percentile of the time to first token, in milliseconds.
    P99,
}

impl LevelKind {
    /// All levels, in the order in which [`crate::control::PoolState`] holds them.
    pub const ALL: [Self; 3] = [Self::Qps, Self::GpuMemory, Self::P99];

    /// Stable text, the same as the reason of a refusal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qps => "qps",
            Self::GpuMemory => "gpu_memory",
            Self::P99 => "p99",
        }
    }

    /// The wire's enum.
    #[must_use]
    pub const fn to_wire(self) -> v1::LevelKind {
        match self {
            Self::Qps => v1::LevelKind::Qps,
            Self::GpuMemory => v1::LevelKind::GpuMemory,
            Self::P99 => v1::LevelKind::P99,
        }
    }
}

/// Where the value of a level comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SignalSource {
    /// Nothing has been measured yet.
    #[default]
    None,
    /// NVML: memory of the devices.
    Nvml,
    /// The engines: use of their fullest KV cache.
    KvCache,
    /// Load reports of all filters.
    Filters,
    /// The worker's own requests: there is no control plane.
    Worker,
}

impl SignalSource {
    /// Stable text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nvml => "nvml",
            Self::KvCache => "kv_cache",
            Self::Filters => "filters",
            Self::Worker => "worker",
        }
    }
}

/// A level as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelStatus {
    /// Which level.
    pub kind: LevelKind,
    /// Its state.
    pub state: LevelState,
    /// Last value, in the unit of the kind; 0 before the first.
    pub value: f64,
    /// Threshold at which it trips, in the unit of the kind; 0 while it is not known.
    pub threshold: f64,
    /// Time until it counts as recovered; `Some` only when tripped or recovering.
    pub recovery_remaining: Option<Duration>,
    /// Source of the value.
    pub source: SignalSource,
    /// When the value was taken; `None` before the first.
    pub sampled_at: Option<Timestamp>,
    /// Age of the value; zero before the first.
    pub age: Duration,
    /// The last time it tripped.
    pub last_trip: Option<LastTrip>,
}

impl LevelStatus {
    /// Whether the level throttles and refuses now.
    #[must_use]
    pub const fn acts(&self) -> bool {
        self.state.acts()
    }

    /// `value / threshold`; 0 while the threshold is not known.
    #[must_use]
    pub fn pressure(&self) -> f64 {
        if self.threshold > 0.0 { self.value / self.threshold } else { 0.0 }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> v1::LevelStatus {
        v1::LevelStatus {
            kind: self.kind.to_wire().into(),
            state: self.state.to_wire().into(),
            value: self.value,
            threshold: self.threshold,
            recovery_remaining_ms: self.recovery_remaining.map(millis),
            source: self.source.as_str().into(),
            age_ms: millis(self.age),
        }
    }
}

/// Milliseconds of a span, rounded up, saturating.
pub(crate) fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// What the levels have in common: the last value, its threshold and what came of it.
#[derive(Debug, Clone)]
struct Gauge {
    kind: LevelKind,
    trip: Trip,
    value: f64,
    threshold: f64,
    source: SignalSource,
    sampled_at: Option<Timestamp>,
}

impl Gauge {
    fn new(kind: LevelKind, trip: Trip) -> Self {
        Self { kind, trip, value: 0.0, threshold: 0.0, source: SignalSource::None, sampled_at: None }
    }

    fn status(&self, now: Timestamp) -> LevelStatus {
        LevelStatus {
            kind: self.kind,
            state: self.trip.state(),
            value: self.value,
            threshold: self.threshold,
            recovery_remaining: self.trip.recovery_remaining(now),
            source: self.source,
            sampled_at: self.sampled_at,
            age: self.sampled_at.map_or(Duration::ZERO, |at| now.since(at)),
            last_trip: self.trip.last_trip(),
        }
    }
}
