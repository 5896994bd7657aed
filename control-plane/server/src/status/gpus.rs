//! GPUs in the status document.

use headgate_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::device::{
    Condition, DeviceActivity, DeviceDetail, DeviceSample, DeviceState, DeviceView, Ejection, LostDevice, NodeView, SourceState, Verdict,
};

/// Age from which on the figures of a GPU are called stale here; a level may be more patient.
const STALE_AFTER_MS: u64 = 300;

/// One GPU, or MIG instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuStatus {
    /// Node that it is in; empty for the machine of the control plane.
    #[serde(default)]
    pub node: String,
    /// Index by which the driver lists it.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// `ok`, `stale`, `frozen` (its figures stopped moving) or `lost`.
    #[serde(default)]
    pub state: String,
    /// Age of its figures, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
    /// Number of the node's sample that they are from.
    #[serde(default)]
    pub epoch: u64,
    /// `sound`, `derated` or `ejected`.
    #[serde(default)]
    pub verdict: String,
    /// Why it is not sound; empty when it is.
    #[serde(default)]
    pub verdict_reason: String,
    /// Part of its work that it can be trusted with, 0 to 1.
    #[serde(default)]
    pub capacity: f64,
    /// Its size in GPU units; an A100 has 20.
    #[serde(default)]
    pub gpu_units: f64,
    /// Memory that processes use, in bytes.
    pub memory_used_bytes: u64,
    /// Memory that the driver keeps for itself, in bytes.
    pub memory_reserved_bytes: u64,
    /// Installed memory, in bytes.
    pub memory_total_bytes: u64,
    /// Memory in use, in percent of the total.
    pub memory_used_percent: f64,
    /// How hard it works.
    #[serde(flatten)]
    pub activity: DeviceActivity,
    /// UUID and everything else.
    #[serde(flatten)]
    pub detail: DeviceDetail,
}

// === impl GpuStatus ===

impl GpuStatus {
    /// Every GPU of every node.
    pub fn list(view: &DeviceView) -> Vec<Self> {
        view.nodes().iter().flat_map(|node| Self::of_node(node, view.now())).collect()
    }

    /// The GPUs of one node, by index.
    pub fn of_node(node: &NodeView, now: Timestamp) -> Vec<Self> {
        let there = node.judged().map(|(sample, condition)| Self::of(&node.state, sample, condition, now));
        let mut gpus: Vec<Self> = there.chain(node.state.lost.iter().map(|lost| Self::lost(&node.state, lost, now))).collect();
        gpus.sort_by_key(|gpu| gpu.index);
        gpus
    }

    fn of(state: &DeviceState, sample: &DeviceSample, condition: &Condition, now: Timestamp) -> Self {
        let age_ms = age_ms(state, now);
        let word = match condition {
            _ if age_ms > STALE_AFTER_MS => "stale",
            Condition { is_frozen: true, .. } => "frozen",
            Condition { .. } => "ok",
        };
        let detail = state.detail(&sample.uuid).cloned();
        Self {
            node: state.node.to_string(),
            index: sample.index,
            name: sample.name.to_string(),
            state: word.to_owned(),
            age_ms,
            epoch: state.epoch,
            verdict: condition.verdict.word().to_owned(),
            verdict_reason: condition.verdict.reason(),
            capacity: condition.verdict.capacity(),
            gpu_units: condition.units,
            memory_used_bytes: sample.memory_used_bytes,
            memory_reserved_bytes: sample.memory_reserved_bytes,
            memory_total_bytes: sample.memory_total_bytes,
            memory_used_percent: percent(sample.memory_used_bytes, sample.memory_total_bytes),
            activity: sample.activity.clone(),
            detail: detail.unwrap_or_else(|| DeviceDetail { uuid: sample.uuid.to_string(), ..DeviceDetail::default() }),
        }
    }

    fn lost(state: &DeviceState, lost: &LostDevice, now: Timestamp) -> Self {
        let verdict = Verdict::Ejected(Ejection::Lost);
        Self {
            node: state.node.to_string(),
            index: lost.index,
            name: lost.name.to_string(),
            state: "lost".to_owned(),
            age_ms: age_ms(state, now),
            epoch: state.epoch,
            verdict: verdict.word().to_owned(),
            verdict_reason: format!("{}: {}", verdict.reason(), lost.lost),
            detail: DeviceDetail { uuid: lost.uuid.to_string(), ..DeviceDetail::default() },
            ..Self::default()
        }
    }
}

fn age_ms(state: &DeviceState, now: Timestamp) -> u64 {
    state.sampled_at.map_or(0, |at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX))
}

/// What `gpu_source` says: this machine's own source, and the nodes that send.
pub fn source_text(view: &DeviceView) -> String {
    let (own, others): (Vec<_>, Vec<_>) = view.nodes().iter().partition(|node| node.state.node.is_empty());
    let mut text = own.first().map_or_else(String::new, |node| own_text(&node.state));
    if !others.is_empty() {
        let devices = others.iter().map(|node| node.state.devices.len()).sum();
        let separator = if text.is_empty() { "" } else { "; " };
        text.push_str(&format!("{separator}{}: {}", counted(others.len(), "node"), counted(devices, "device")));
    }
    text
}

fn own_text(state: &DeviceState) -> String {
    match &state.state {
        SourceState::Starting => format!("{}: starting", state.source),
        SourceState::Failing(error) => format!("no device: {error}"),
        SourceState::Sampling => {
            let lost = state.lost.iter().map(|lost| format!("GPU {} is lost: {}", lost.index, lost.lost));
            let lost = lost.collect::<Vec<_>>().join(", ");
            match (state.devices.len(), lost.is_empty()) {
                (0, false) => format!("no device: {lost}"),
                (devices, true) => format!("{}: {}", state.source, counted(devices, "device")),
                (devices, false) => format!("{}: {}, {lost}", state.source, counted(devices, "device")),
            }
        }
    }
}

fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
