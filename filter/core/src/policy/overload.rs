//! The validated part of a policy that switches overload control on; the defaults are those that `policy.proto` documents.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::ClassId;

/// Overload control by work tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct OverloadConfig {
    /// Objective of the time to first token, queueing in the proxy included, 10 ms to 10 min.
    pub ttft_slo: Duration,
    /// Objective of the mean time between tokens, 1 ms to 10 s.
    pub tpot_slo: Duration,
    /// Part of the KV cache that may be filled, in percent, 10 to 99.
    pub kv_target_percent: u32,
    /// Weight of a token of the output against one of the prompt, 0.1 to 100.
    pub output_weight: f64,
    /// Bytes of a request's body for one token of its prompt, before anything is learned, 0.5 to 64.
    pub bytes_per_token: f64,
    /// Tokens of output of a request, before anything is learned, 1 to 1,000,000.
    pub output_tokens: u32,
    /// How the terms of the saturation become one number.
    pub fusion: Fusion,
    /// The queue in the proxy; `None`: what finds no budget is refused.
    pub queue: Option<QueueConfig>,
    /// Bound on retries.
    pub retries: RetryConfig,
    /// The degradation ladder, in the order in which rungs engage; at most 8.
    pub ladder: Vec<RungConfig>,
    /// Whether tenants share a class's work equally while it is short.
    pub fair_tenants: bool,
    /// Whether the filter names the engine that a request goes to.
    pub picks_endpoint: bool,
    /// Whether `usage` in responses is read.
    pub reads_usage: bool,
}

impl Default for OverloadConfig {
    fn default() -> Self {
        Self {
            ttft_slo: Duration::from_secs(2),
            tpot_slo: Duration::from_millis(100),
            kv_target_percent: 93,
            output_weight: 2.0,
            bytes_per_token: 4.0,
            output_tokens: 256,
            fusion: Fusion::Max,
            queue: None,
            retries: RetryConfig::default(),
            ladder: Vec::new(),
            fair_tenants: true,
            picks_endpoint: false,
            reads_usage: true,
        }
    }
}

/// How the terms of the saturation become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusion {
    /// The largest term.
    Max,
    /// Weights learned by softmax over each term's contribution.
    Weighted,
}

/// The queue in the proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueConfig {
    /// Depth as a multiple of the requests that may be in flight, 0.1 to 5.
    pub max_depth_factor: f64,
    /// Requests, per proxy, 1 to 100,000.
    pub max_requests: u32,
    /// Bytes, per proxy, 4 KiB to 4 GiB.
    pub max_bytes: u64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { max_depth_factor: 5.0, max_requests: 5000, max_bytes: 64 << 20 }
    }
}

/// Bound on retries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryConfig {
    /// Retries as a part of first attempts over 10 s, in percent, 0 to 100.
    pub percent: u32,
    /// Retries per second that are always within the budget, per proxy, 0 to 1e6.
    pub min_rps: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { percent: 10, min_rps: 1.0 }
    }
}

/// A rung of the degradation ladder.
#[derive(Debug, Clone, PartialEq)]
pub struct RungConfig {
    /// What it does.
    pub kind: RungKind,
    /// Saturation at which it engages, 0.1 to 10.
    pub engage_at: f64,
    /// Saturation below which it releases; below `engage_at`.
    pub release_at: f64,
    /// Shortest time that it stays as it is, 0 to 1 h.
    pub hold: Duration,
    /// Classes on which it acts; never empty.
    pub classes: Vec<ClassId>,
}

/// What a rung does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RungKind {
    /// Caps `max_tokens` in the request's body, 1 to 1,000,000.
    CapMaxTokens(u32),
    /// Switches costly features off in the request's body.
    DropFeatures,
    /// Makes the classes wait even while there is room, at most for this long, 100 ms to 60 s.
    Delay(Duration),
    /// Sends the classes to another pool.
    SwitchModel(String),
    /// Serves from a cache where there is one.
    CacheFirst,
}

impl RungKind {
    /// The name of the kind in a policy document.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::CapMaxTokens(_) => "cap_max_tokens",
            Self::DropFeatures => "drop_features",
            Self::Delay(_) => "delay",
            Self::SwitchModel(_) => "switch_model",
            Self::CacheFirst => "cache_first",
        }
    }

    /// Whether this build can do it: bodies are not edited.
    #[must_use]
    pub const fn is_available(&self) -> bool {
        match self {
            Self::CapMaxTokens(_) | Self::DropFeatures => false,
            Self::Delay(_) | Self::SwitchModel(_) | Self::CacheFirst => true,
        }
    }
}
