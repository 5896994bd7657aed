//! The validated parts of a policy. [`super::Policy::try_from_wire`] alone builds them from the wire; the defaults are those that
//! `policy.proto` documents.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// The three levels; any one of them trips.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Levels {
    /// Request rate.
    pub qps: QpsConfig,
    /// GPU memory.
    pub gpu_memory: GpuMemoryConfig,
    /// Tail of the time to first token.
    pub p99: P99Config,
    /// When a tripped level counts as recovered.
    pub hysteresis: HysteresisConfig,
}

/// Trips when the offered rate exceeds `trip_factor × (moving average + sigmas × standard deviation)`.
#[derive(Debug, Clone, PartialEq)]
pub struct QpsConfig {
    /// Whether the level acts.
    pub enabled: bool,
    /// Sampling period, 100 ms to 60 s.
    pub sample: Duration,
    /// Span of the moving average, 10 s to 1 h.
    pub baseline_window: Duration,
    /// Standard deviations added to the average, 0 to 10.
    pub sigmas: f64,
    /// Factor on the baseline, 1 to 100.
    pub trip_factor: f64,
    /// Samples before the level may trip, 2 to 3600.
    pub min_samples: u32,
    /// Rate below which the level never trips, in requests per second, 0 to 1e9.
    pub floor_rps: f64,
}

impl Default for QpsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            sample: Duration::from_secs(1),
            baseline_window: Duration::from_secs(300),
            sigmas: 2.0,
            trip_factor: 1.5,
            min_samples: 30,
            floor_rps: 10.0,
        }
    }
}

/// Trips when used GPU memory exceeds `trip_percent` of the total.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuMemoryConfig {
    /// Whether the level acts.
    pub enabled: bool,
    /// Where the figure comes from.
    pub source: GpuMemorySource,
    /// Sampling period, 20 ms to 2 s.
    pub sample: Duration,
    /// Share of the total at which the level trips, in percent, 1 to 100.
    pub trip_percent: f64,
    /// UUIDs of the GPUs that serve the pool; empty: every GPU.
    pub devices: Vec<String>,
}

impl Default for GpuMemoryConfig {
    fn default() -> Self {
        Self { enabled: true, source: GpuMemorySource::Auto, sample: Duration::from_millis(100), trip_percent: 75.0, devices: Vec::new() }
    }
}

/// Where the GPU memory figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuMemorySource {
    /// The control plane chooses.
    Auto,
    /// NVML: used and total memory of the devices.
    Nvml,
    /// The engines: use of their fullest KV cache.
    KvCache,
}

/// Trips when the 99th percentile of the time to first token exceeds its tolerance for `periods` periods in a row.
#[derive(Debug, Clone, PartialEq)]
pub struct P99Config {
    /// Whether the level acts.
    pub enabled: bool,
    /// Length of a period and of the window of the percentile, 500 ms to 10 min.
    pub window: Duration,
    /// Tolerance that no learning exceeds, 1 ms to 1 h.
    pub limit: Duration,
    /// Learned tolerance: mean of the percentile's history × this, 1 to 100.
    pub mean_factor: f64,
    /// Periods in a row above the tolerance, 1 to 100.
    pub periods: u32,
    /// Tolerance that no learning falls below, 0 to `limit`.
    pub floor: Duration,
    /// Responses in a window before its percentile counts, 1 to 1,000,000.
    pub min_samples: u32,
}

impl Default for P99Config {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(10),
            limit: Duration::from_secs(8),
            mean_factor: 1.8,
            periods: 3,
            floor: Duration::from_millis(500),
            min_samples: 20,
        }
    }
}

/// When a tripped level counts as recovered: its value stays below `recover_percent` of the threshold for `recovery`.
#[derive(Debug, Clone, PartialEq)]
pub struct HysteresisConfig {
    /// Percent of the trip threshold below which the countdown runs, 1 to 99.
    pub recover_percent: f64,
    /// Length of the countdown, 100 ms to 1 h.
    pub recovery: Duration,
}

impl Default for HysteresisConfig {
    fn default() -> Self {
        Self { recover_percent: 90.0, recovery: Duration::from_secs(5) }
    }
}

/// How a throttled class shrinks while a level is tripped and grows back afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct ThrottleConfig {
    /// Step, 50 ms to 60 s.
    pub interval: Duration,
    /// Share of the fraction that a step takes away while tripped, in percent, 1 to 90.
    pub shrink_percent: u32,
    /// Points that a step gives back after recovery, in percent, 1 to 100.
    pub recover_percent: u32,
    /// Smallest fraction, in percent, 0 to 100.
    pub floor_percent: u32,
    /// Depth of the bucket as a span of its rate, 10 ms to 60 s.
    pub burst: Duration,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            shrink_percent: 20,
            recover_percent: 10,
            floor_percent: 5,
            burst: Duration::from_secs(1),
        }
    }
}

/// Bound on requests in flight in one proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyConfig {
    /// Requests in flight, per proxy, 1 to 1,000,000.
    pub max_in_flight: u32,
}

/// A priority class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Name, unique in the policy.
    pub name: String,
    /// What a tripped level does to it.
    pub when_tripped: WhenTripped,
    /// Part of `max_in_flight` that only this class may use, in percent; 0 unless `when_tripped` is the reserved lane.
    pub reserved_percent: u32,
    /// Longest time that a refused client is told to wait, 1 s to 10 min.
    pub max_retry_after: Duration,
    /// Part of the pool's capacity that the class always gets when it asks for it, in percent, 0 to 90.
    pub floor_percent: u32,
    /// Longest time in the proxy's queue, 0 to 10 min; `None`: what the objective leaves.
    pub max_queue: Option<Duration>,
}

/// What a tripped level does to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenTripped {
    /// Admitted as before; only `max_in_flight` bounds it.
    ReservedLane,
    /// Admitted at a rate that shrinks and grows back.
    GradientThrottle,
    /// Refused with a time to come back.
    Refuse,
}

/// Circuit breaker of the pool, its endpoints and its dependencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it, 1 to 10,000.
    pub consecutive_failures: u32,
    /// Successes in a row that close it when half-open, 1 to 1000.
    pub successes_to_close: u32,
    /// Time open before the first probe, 100 ms to 1 h.
    pub open: Duration,
    /// Error rates, any of which opens it; 1 to 4.
    pub error_rates: Vec<ErrorRateConfig>,
    /// Probes that may be in flight at once when half-open, 1 to 1000.
    pub half_open_probes: u32,
    /// Ramp from the first share of traffic to all of it, 0 to 1 h.
    pub ramp: Duration,
    /// Whether each endpoint has a breaker of its own.
    pub per_endpoint: bool,
    /// Whether each dependency has a breaker of its own.
    pub per_dependency: bool,
    /// What an open breaker does with a request; `None`: it is refused.
    pub fallback: Option<Fallback>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            successes_to_close: 3,
            open: Duration::from_secs(30),
            error_rates: ErrorRateConfig::defaults(),
            half_open_probes: 5,
            ramp: Duration::from_secs(10),
            per_endpoint: false,
            per_dependency: false,
            fallback: None,
        }
    }
}

/// An error rate that opens a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorRateConfig {
    /// Share of failures, in percent, 1 to 100.
    pub percent: u32,
    /// Window, 1 s to 1 h.
    pub window: Duration,
    /// Requests in the window before the share counts, 1 to 1,000,000.
    pub min_requests: u32,
}

impl ErrorRateConfig {
    /// Requests in a window before its share counts, unless the policy says otherwise.
    pub const DEFAULT_MIN_REQUESTS: u32 = 20;

    /// 50 % in 30 s and 20 % in 5 min.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let min_requests = Self::DEFAULT_MIN_REQUESTS;
        alloc::vec![
            Self { percent: 50, window: Duration::from_secs(30), min_requests },
            Self { percent: 20, window: Duration::from_secs(300), min_requests },
        ]
    }
}

/// What an open breaker does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// Serve from a cache or not at all: `cache-control: only-if-cached`.
    CacheOnly,
    /// Go on without the dependency: `x-headgate-fallback: direct`.
    Direct,
    /// Go to another pool: `x-headgate-pool: NAME`.
    OtherPool(String),
    /// Answer at once.
    StaticReply(StaticReply),
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticReply {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Body, at most 16384 bytes.
    pub body: String,
    /// Content type.
    pub content_type: String,
}

impl Default for StaticReply {
    fn default() -> Self {
        Self { status: 503, body: String::new(), content_type: String::from("application/json") }
    }
}
