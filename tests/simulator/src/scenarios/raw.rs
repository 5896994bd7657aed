//! The document as it is written: field by field, nothing checked but names and types. Names of fields are their documentation's
//! (`README` of the scenarios: the printed ones, which say what each means).

use serde::Deserialize;

use super::engines::RawEngines;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawScenario {
    pub(super) name: String,
    #[serde(default)]
    pub(super) summary: String,
    pub(super) load: f64,
    pub(super) seconds: f64,
    #[serde(default = "defaults::drain_seconds")]
    pub(super) drain_seconds: f64,
    #[serde(default)]
    pub(super) measure_from_seconds: f64,
    #[serde(default)]
    pub(super) overload: Option<RawSpan>,
    #[serde(default)]
    pub(super) fleet: RawFleet,
    pub(super) capacity_rps: f64,
    pub(super) engines: Vec<RawEngines>,
    pub(super) classes: Vec<RawClass>,
    pub(super) traffic: Vec<RawTraffic>,
    #[serde(default)]
    pub(super) network: RawNetwork,
    #[serde(default)]
    pub(super) faults: Vec<RawFault>,
    #[serde(default)]
    pub(super) bytes_per_token: RawBytes,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawSpan {
    pub(super) from_seconds: f64,
    pub(super) to_seconds: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawFleet {
    pub(super) proxies: u64,
    pub(super) workers: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawBytes {
    pub(super) mean: f64,
    pub(super) sigma: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawClass {
    pub(super) name: String,
    pub(super) ttft_ms: f64,
    pub(super) tpot_ms: f64,
    #[serde(default)]
    pub(super) floor_percent: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawTraffic {
    pub(super) class: String,
    #[serde(default)]
    pub(super) tenants: Option<RawTenants>,
    pub(super) arrivals: RawArrivals,
    #[serde(default)]
    pub(super) shape: RawShape,
    pub(super) prompt: RawLengths,
    pub(super) output: RawLengths,
    #[serde(default = "defaults::timeout_ms")]
    pub(super) timeout_ms: f64,
    #[serde(default)]
    pub(super) retries: RawRetries,
    #[serde(default)]
    pub(super) from_seconds: f64,
    #[serde(default)]
    pub(super) until_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawTenants {
    pub(super) count: u64,
    #[serde(default)]
    pub(super) zipf: f64,
    /// Absent: after the tenants of the sources before.
    #[serde(default)]
    pub(super) first: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub(super) enum RawArrivals {
    #[serde(rename_all = "camelCase")]
    Open {
        rps: f64,
        #[serde(default = "defaults::one")]
        cv: f64,
    },
    #[serde(rename_all = "camelCase")]
    Closed { clients: u64, think_ms: f64 },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub(super) enum RawShape {
    #[default]
    Steady,
    #[serde(rename_all = "camelCase")]
    Step { from_seconds: f64, to_seconds: f64, factor: f64 },
    #[serde(rename_all = "camelCase")]
    OnOff { on_seconds: f64, off_seconds: f64, high: f64, low: f64 },
    #[serde(rename_all = "camelCase")]
    Growth { doubling_seconds: f64, peak: f64 },
    #[serde(rename_all = "camelCase")]
    Points { points: Vec<RawPoint> },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawPoint {
    pub(super) at_seconds: f64,
    pub(super) factor: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub(super) enum RawLengths {
    Fixed { tokens: u64 },
    Uniform { low: u64, high: u64 },
    LogNormal { median: f64, sigma: f64, most: u64 },
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub(super) enum RawRetries {
    #[default]
    None,
    #[serde(rename_all = "camelCase")]
    Ignoring {
        attempts: u64,
        #[serde(default)]
        backoff: RawBackoff,
    },
    #[serde(rename_all = "camelCase")]
    Honouring {
        attempts: u64,
        #[serde(default)]
        backoff: RawBackoff,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawBackoff {
    pub(super) base_ms: f64,
    pub(super) most_ms: f64,
    pub(super) jitter: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawNetwork {
    pub(super) least_delay_ms: f64,
    pub(super) mean_delay_ms: f64,
    #[serde(default)]
    pub(super) loss: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub(super) enum RawFault {
    #[serde(rename_all = "camelCase")]
    ControlCut { at_seconds: f64, seconds: f64, proxies: u64 },
    #[serde(rename_all = "camelCase")]
    EngineLost { at_seconds: f64, seconds: f64, engine: u64 },
    #[serde(rename_all = "camelCase")]
    Derate { at_seconds: f64, engine: u64, factor: f64 },
    #[serde(rename_all = "camelCase")]
    WorkerRestart { at_seconds: f64, proxy: u64, worker: u64 },
}

mod defaults {
    pub(super) fn one() -> f64 {
        1.0
    }
    pub(super) fn drain_seconds() -> f64 {
        60.0
    }
    pub(super) fn timeout_ms() -> f64 {
        30_000.0
    }
}

impl Default for RawFleet {
    fn default() -> Self {
        Self { proxies: 2, workers: 4 }
    }
}

impl Default for RawBytes {
    fn default() -> Self {
        Self { mean: 4.0, sigma: 0.15 }
    }
}

impl Default for RawBackoff {
    fn default() -> Self {
        Self { base_ms: 500.0, most_ms: 8000.0, jitter: 0.25 }
    }
}

impl Default for RawNetwork {
    fn default() -> Self {
        Self { least_delay_ms: 0.3, mean_delay_ms: 0.5, loss: 0.0 }
    }
}
