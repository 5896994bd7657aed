//! The document of `GET /throttle/status`: what the control plane sees and does, in one answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::{EngineKind, EngineView, Health, PoolEngines};
use crate::fleet::ProxyView;

mod alarms;
mod gpus;
mod latency;
mod overload;
mod quotas;
mod replica;
mod rollouts;
mod terms;

pub use self::alarms::AlarmStatus;
pub use self::gpus::{GpuStatus, source_text};
pub use self::latency::{LatencyFigures, LatencyStatus, LatencyStream, MissingLatencies};
pub use self::overload::{BudgetStatus, ClassShed, CutOffStatus, OverloadStatus, QueueStatus, RungStatus, WorkStatus};
pub use self::quotas::{QuotaHolderStatus, QuotaStatus};
pub use self::replica::ReplicaStatus;
pub use self::rollouts::{RolloutClassView, RolloutCountsView, RolloutView};
pub use self::terms::TermStatus;

/// The whole document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// The pools, by name.
    pub pools: Vec<PoolStatus>,
    /// The GPUs, by index.
    pub gpus: Vec<GpuStatus>,
    /// Where GPU telemetry comes from, or why there is none.
    pub gpu_source: String,
    /// The proxies, by `node.id`.
    pub proxies: Vec<ProxyStatus>,
    /// What is stored and not at work; known to the replica that leads.
    #[serde(default)]
    pub alarms: Vec<AlarmStatus>,
    /// How far candidates that govern have come, by name.
    #[serde(default)]
    pub rollouts: Vec<RolloutView>,
    /// What this replica is among others.
    #[serde(default)]
    pub replica: ReplicaStatus,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Pool.
    pub pool: String,
    /// Policy that protects it.
    pub policy: String,
    /// Version of that policy.
    pub version: String,
    /// Epoch of the newest limits that were pushed; 0 before the first.
    pub epoch: u64,
    /// The three levels.
    pub levels: Vec<LevelView>,
    /// The classes, in the policy's order.
    pub classes: Vec<ClassStatus>,
    /// Requests that the pool completes per second when busy; 0 while unknown.
    pub drain_rps: f64,
    /// Proxies that report the pool.
    pub proxies: usize,
    /// Latencies by class and model.
    #[serde(default)]
    pub latencies: LatencyStatus,
    /// Overload control; absent when the policy has none.
    #[serde(default)]
    pub overload: Option<OverloadStatus>,
    /// Size of the pool's GPUs, in GPU units; an A100 has 20.
    #[serde(default)]
    pub gpu_units: f64,
    /// Part of it that can be trusted with work.
    #[serde(default)]
    pub gpu_capacity: f64,
    /// Why that is not all; empty when it is.
    #[serde(default)]
    pub gpu_problem: String,
    /// The engines behind the pool, in the policy's order.
    #[serde(default)]
    pub engines: Vec<EngineStatus>,
    /// The quotas of the policy.
    #[serde(default)]
    pub quotas: Vec<QuotaStatus>,
}

/// One engine behind a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Address of its metrics page; `orca` where it is known by its responses alone.
    pub url: String,
    /// Where the newest figures come from: `scrape`, `orca` (the engine's responses) or `tape` (a recording).
    #[serde(default)]
    pub source: String,
    /// Network address; empty while the name in `url` stands for none.
    #[serde(default)]
    pub address: String,
    /// `vllm`, `sglang`, `tensorrt_llm`, `triton`, `tgi` or `llama_cpp`; empty before the first reading.
    #[serde(default)]
    pub engine: String,
    /// `starting`, `unresolved`, `ok`, `stale` (older than three periods), `frozen` (always the same although the pool serves requests) or
    /// `failing`. Only `ok` takes part in the decision.
    pub state: String,
    /// Why it fails; empty when it does not.
    pub problem: String,
    /// Age of the last good reading, in milliseconds; absent before the first.
    pub age_ms: Option<u64>,
    /// Number of that reading; grows with every good reading of any engine.
    pub epoch: u64,
    /// How long the last attempt took, in milliseconds.
    pub took_ms: f64,
    /// Attempts so far.
    pub readings: u64,
    /// Failed attempts so far.
    pub failures: u64,
    /// Requests in the batch.
    pub running: Option<u64>,
    /// Requests in the engine's own queue.
    pub waiting: Option<u64>,
    /// Use of the KV cache, in percent.
    pub kv_used_percent: Option<f64>,
    /// Tokens that the KV cache holds.
    pub kv_total_tokens: Option<u64>,
    /// Preemptions since the control plane began.
    pub preemptions: u64,
    /// Tokens of output since the control plane began; absent when the engine does not count them as they are made.
    #[serde(default)]
    pub output_tokens: Option<u64>,
    /// Restarts since the control plane began, as its counters show.
    #[serde(default)]
    pub restarts: u64,
    /// Whether it is the one of the pool that is worst off.
    #[serde(default)]
    pub is_worst: bool,
}

/// One level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LevelView {
    /// `qps`, `gpu_memory` or `p99`.
    pub kind: String,
    /// `disabled`, `learning`, `ok`, `tripped`, `recovering` or `stale`.
    pub state: String,
    /// Unit of value and threshold: `req/s`, `%` or `ms`.
    #[serde(default)]
    pub unit: String,
    /// Last value.
    pub value: f64,
    /// Threshold; 0 while learning.
    pub threshold: f64,
    /// Source of the value.
    pub source: String,
    /// Why that source; empty where there is no choice.
    #[serde(default)]
    pub source_reason: String,
    /// Age of the value, in milliseconds.
    pub age_ms: u32,
    /// Time until it counts as recovered, in milliseconds; only when tripped or recovering.
    pub recovery_remaining_ms: Option<u32>,
    /// The last time it tripped.
    pub last_trip: Option<TripView>,
}

/// A trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TripView {
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// How long ago, in milliseconds.
    #[serde(default)]
    pub ago_ms: u64,
    /// Value that tripped the level.
    pub value: f64,
    /// Threshold that it exceeded.
    pub threshold: f64,
}

/// One class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassStatus {
    /// Class.
    pub class: String,
    /// `admit`, `throttle` or `refuse`.
    pub action: String,
    /// Level that caused the action; empty for none.
    pub because: String,
    /// Rate of the whole fleet when throttled, in requests per second.
    pub rate_rps: f64,
    /// Depth of the bucket of the whole fleet, in requests.
    pub burst: f64,
    /// Rate at which refused requests can be expected to be served, in requests per second.
    pub drain_rps: f64,
    /// Requests that arrived.
    pub offered: u64,
    /// Requests admitted.
    pub admitted: u64,
    /// Admitted requests that ended well.
    pub completed: u64,
    /// Admitted requests that failed.
    pub failed: u64,
    /// Admitted requests whose client went away.
    pub cancelled: u64,
    /// Refused requests, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests in flight whose first token has not come.
    pub waiting: u64,
    /// Median of the time to first token over the last 10 s, in milliseconds.
    pub ttft_p50_ms: Option<f64>,
    /// 99th percentile of it.
    pub ttft_p99_ms: Option<f64>,
}

/// One proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// `node.id`.
    pub node_id: String,
    /// Version of its filter.
    pub filter_version: String,
    /// Policies in force.
    pub policies: Vec<AppliedStatus>,
    /// Policies that it refused.
    pub rejected: Vec<RejectedStatus>,
    /// Time since its last report, in milliseconds.
    pub last_report_age_ms: u64,
    /// Worker VMs.
    pub workers: usize,
}

/// A policy in force in a proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AppliedStatus {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Epoch of the newest limits of its pool.
    pub limits_epoch: u64,
}

/// A policy that a proxy refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RejectedStatus {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// What is wrong, beginning with the field's path.
    pub error: String,
}

// === impl EngineStatus ===

impl EngineStatus {
    /// The engines of a pool.
    pub fn list(engines: &PoolEngines) -> Vec<Self> {
        let status = |(index, view)| Self { is_worst: engines.worst == Some(index), ..Self::of(view) };
        engines.engines.iter().enumerate().map(status).collect()
    }

    fn of(view: &EngineView) -> Self {
        let reading = view.state.reading.clone().unwrap_or_default();
        let problem = match (&view.state.health, &view.unresolved) {
            (Health::Failing(error), _) => error.to_string(),
            (_, Some(problem)) => problem.clone(),
            _ => String::new(),
        };
        Self {
            url: view.url.clone(),
            source: view.state.source.as_str().to_owned(),
            address: view.address.map(|address| address.to_string()).unwrap_or_default(),
            engine: reading.engine.map_or("", EngineKind::as_str).to_owned(),
            state: view.word().to_owned(),
            problem,
            age_ms: view.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            epoch: view.state.epoch,
            took_ms: view.state.took.as_secs_f64() * 1000.0,
            readings: view.state.readings,
            failures: view.state.failures,
            running: reading.running,
            waiting: reading.waiting,
            kv_used_percent: reading.kv_use.map(|part| part * 100.0),
            kv_total_tokens: reading.kv_total_tokens,
            preemptions: view.state.preemptions,
            output_tokens: reading.output_tokens.map(|_| view.state.output_tokens),
            restarts: view.state.restarts,
            is_worst: false,
        }
    }
}

// === impl ProxyStatus ===

impl From<ProxyView> for ProxyStatus {
    fn from(view: ProxyView) -> Self {
        let applied = |policy: headgate_protos::v1::AppliedPolicy| AppliedStatus {
            name: policy.name,
            version: policy.version,
            limits_epoch: policy.limits_epoch,
        };
        let rejected = |policy: headgate_protos::v1::RejectedPolicy| RejectedStatus {
            name: policy.name,
            version: policy.version,
            error: policy.error,
        };
        Self {
            node_id: view.node_id,
            filter_version: view.filter_version,
            policies: view.policies.into_iter().map(applied).collect(),
            rejected: view.rejected.into_iter().map(rejected).collect(),
            last_report_age_ms: u64::try_from(view.last_report_age.as_millis()).unwrap_or(u64::MAX),
            workers: view.workers,
        }
    }
}
