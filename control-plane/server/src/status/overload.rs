//! Overload control of a pool in the status document.

use std::collections::BTreeMap;

use headgate_core::fleet::{PoolControlView, PoolView};
use headgate_core::overload::{Budgets, EngineSample, Flow, OverloadState, Work};
use headgate_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{TermStatus, terms};

/// Overload control of one pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverloadStatus {
    /// How near the pool is to the most that it can do; 1: it can do no more.
    pub saturation: f64,
    /// Term that makes it so; empty while all are 0.
    pub binding: String,
    /// Every term, as a part of its threshold.
    pub terms: BTreeMap<String, f64>,
    /// What every term measures, and against what.
    #[serde(default)]
    pub measured: BTreeMap<String, TermStatus>,
    /// How sure a learned blend of the terms is of its verdict, 0 to 1.
    pub confidence: f64,
    /// Bounds on work in flight over all proxies.
    pub budgets: BudgetStatus,
    /// Bounds to which the proxies decay when the control plane is gone.
    pub safe_budgets: BudgetStatus,
    /// Work in flight over all proxies, as reserved.
    pub in_flight: WorkStatus,
    /// What is cut off.
    pub cut_off: CutOffStatus,
    /// The queues of all proxies together; absent when the policy has none.
    pub queue: Option<QueueStatus>,
    /// The ladder, in the policy's order.
    pub rungs: Vec<RungStatus>,
    /// Work tokens that the pool finishes per second when busy; 0: not known.
    pub drain_work_per_s: f64,
    /// Time to first token that a request admitted now can expect once it has left the queue, in milliseconds.
    pub expected_ttft_ms: f64,
    /// Part of first attempts that retries may be, 0 to 1.
    pub retry_ratio: f64,
    /// Learned factor on the prompt tokens that a content length suggests; 0: none yet.
    pub prompt_factor: f64,
    /// Learned mean output of a response, in tokens; 0: none yet.
    pub output_tokens: f64,
    /// Epoch of the newest engine sample that went in; 0: none.
    pub sample_epoch: u64,
    /// Work tokens of requests that ended within their objectives.
    pub good_work: u64,
    /// Requests that carried an attempt number above one.
    pub retries: u64,
    /// Responses of the engines that refused for overload.
    pub engine_refusals: u64,
}

/// Bounds on work; absent: unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// Tokens of prompts whose first token has not come.
    pub prefill_tokens: Option<u64>,
    /// Tokens that are or will be in the KV cache, as reserved.
    pub kv_tokens: Option<u64>,
    /// Responses in flight.
    pub streams: Option<u64>,
}

/// Work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStatus {
    /// Tokens of prompts whose first token has not come.
    pub prefill_tokens: u64,
    /// Tokens that are or will be in the KV cache, as reserved.
    pub kv_tokens: u64,
    /// Responses in flight.
    pub streams: u64,
}

/// What is cut off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CutOffStatus {
    /// Level from which on nothing is admitted: class × 128 + cohort; 1024: nothing is cut off.
    pub level: u16,
    /// Part of that level itself that is still admitted.
    pub fraction: f64,
    /// By class, in the policy's order: part of its cohorts that is shed, 0 to 1.
    pub shed: Vec<ClassShed>,
}

/// How much of a class is shed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassShed {
    /// Class.
    pub class: String,
    /// Part that is shed, 0 to 1.
    pub part: f64,
}

/// The queues of all proxies together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Requests that wait.
    pub requests: u64,
    /// Bytes that they count for.
    pub bytes: u64,
    /// Work tokens that wait.
    pub work: u64,
    /// How long the one that waits longest has waited, in milliseconds.
    pub oldest_ms: u64,
    /// Requests that were released to the pool.
    pub released: u64,
    /// Requests whose deadline passed while they waited.
    pub expired: u64,
    /// Requests whose client went away while they waited.
    pub abandoned: u64,
    /// Requests that were refused because the queue was full.
    pub overflowed: u64,
    /// Median of the time in the queue of all that were released so far, in milliseconds.
    pub wait_p50_ms: Option<u64>,
    /// 99th percentile of it.
    pub wait_p99_ms: Option<u64>,
}

/// A rung of the ladder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungStatus {
    /// What it does: `delay`, `switch_model`, …
    pub kind: String,
    /// `released`, `engaged` or `unavailable`.
    pub state: String,
}

// === impl OverloadStatus ===

impl OverloadStatus {
    /// Overload control of a pool whose controller was given `sample` of its engines; `None` when its policy has none.
    pub fn of(now: Timestamp, view: &PoolControlView, load: &PoolView, sample: Option<&EngineSample>) -> Option<Self> {
        let (state, config) = (view.overload.as_ref()?, view.overload_config.as_ref()?);
        let nothing = Flow::default();
        let flow = load.flow.as_ref().unwrap_or(&nothing);
        let rung = |(state, rung): (&headgate_core::overload::RungState, &headgate_core::policy::RungConfig)| RungStatus {
            kind: rung.kind.as_str().to_owned(),
            state: state.as_str().to_owned(),
        };
        Some(Self {
            saturation: state.saturation.value,
            binding: state.saturation.binding.map_or("", headgate_core::overload::Term::as_str).to_owned(),
            terms: state.saturation.terms.iter().map(|(term, value)| (term.as_str().to_owned(), *value)).collect(),
            measured: terms::of(now, state, config, flow.in_flight, sample),
            confidence: state.saturation.confidence,
            budgets: state.budgets.into(),
            safe_budgets: state.safe_budgets.into(),
            in_flight: flow.in_flight.into(),
            cut_off: CutOffStatus::of(state, view),
            queue: config.queue.as_ref().map(|_| QueueStatus::of(flow, load)),
            rungs: state.rungs.iter().zip(&config.ladder).map(rung).collect(),
            drain_work_per_s: state.drain_work_per_s,
            expected_ttft_ms: state.expected_ttft.as_secs_f64() * 1000.0,
            retry_ratio: state.retry_ratio,
            prompt_factor: state.prompt_factor,
            output_tokens: state.output_tokens,
            sample_epoch: state.sample_epoch,
            good_work: flow.good_work,
            retries: flow.retries,
            engine_refusals: flow.engine_refusals,
        })
    }
}

// === impl CutOffStatus ===

impl CutOffStatus {
    fn of(state: &OverloadState, view: &PoolControlView) -> Self {
        let classes = view.state.classes.iter().enumerate();
        let shed = classes.map(|(index, class)| ClassShed { class: class.class.clone(), part: state.cut_off.shed_part(index) });
        Self { level: state.cut_off.level, fraction: state.cut_off.fraction, shed: shed.collect() }
    }
}

// === impl QueueStatus ===

impl QueueStatus {
    fn of(flow: &Flow, load: &PoolView) -> Self {
        let at = |q| flow.queue_wait_us.quantile(q).map(|micros| micros / 1000);
        Self {
            requests: flow.queued_requests,
            bytes: load.queued_bytes,
            work: flow.queued_work,
            oldest_ms: u64::try_from(flow.oldest_wait.as_millis()).unwrap_or(u64::MAX),
            released: load.queue.released,
            expired: load.queue.expired,
            abandoned: load.queue.abandoned,
            overflowed: load.queue.overflowed,
            wait_p50_ms: at(0.5),
            wait_p99_ms: at(0.99),
        }
    }
}

impl From<Budgets> for BudgetStatus {
    fn from(budgets: Budgets) -> Self {
        let Budgets { prefill_tokens, kv_tokens, streams } = budgets;
        Self { prefill_tokens, kv_tokens, streams }
    }
}

impl From<Work> for WorkStatus {
    fn from(work: Work) -> Self {
        let Work { prefill_tokens, kv_tokens, streams } = work;
        Self { prefill_tokens, kv_tokens, streams }
    }
}
