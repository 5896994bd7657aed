//! The devices of one pool, as the decision sees them.
//!
//! A device serves a pool when the policy lists its UUID, or that of the device that it is a part of. A policy that lists none gets
//! the devices of the nodes that say they serve the pool, and of those that say nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use headgate_core::level::{GpuMemorySample, SignalSource};
use headgate_core::policy::GpuMemoryConfig;
use headgate_core::time::Timestamp;

use crate::engine::EngineKind;

use super::{Condition, DeviceSample, DeviceState, LostDevice, NodeView, SourceState, units};

/// All nodes at one moment.
#[derive(Clone, Debug)]
pub struct DeviceView {
    now: Timestamp,
    nodes: Vec<Arc<NodeView>>,
}

/// What a pool's devices can do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolCapacity {
    /// Size of the devices that are there or were lost, in GPU units.
    pub units: f64,
    /// What of it can be trusted with work.
    pub able_units: f64,
    /// Devices that are counted: those that answer, and the lost ones.
    pub devices: usize,
    /// What is wrong with the one that takes the most away; empty while nothing is.
    pub because: String,
}

/// Which devices serve one pool.
struct Wanted<'a> {
    pool: &'a str,
    uuids: BTreeSet<&'a str>,
}

// === impl DeviceView ===

impl DeviceView {
    /// These nodes at `now`.
    pub fn new(now: Timestamp, nodes: Vec<Arc<NodeView>>) -> Self {
        Self { now, nodes }
    }

    /// When it was taken.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The nodes, by name; the one of this machine first.
    pub fn nodes(&self) -> &[Arc<NodeView>] {
        &self.nodes
    }

    /// Whether any node's source answers.
    pub fn is_up(&self) -> bool {
        self.nodes.iter().any(|node| node.state.state == SourceState::Sampling)
    }

    /// The fullest device of the pool whose figures are fresh. Not the sum: a request runs on one device, and an average hides the one
    /// that is about to fail. A stale, frozen or lost device leaves the maximum; the others carry on.
    pub fn fullest(&self, pool: &str, config: &GpuMemoryConfig) -> Option<GpuMemorySample> {
        let wanted = Wanted::of(pool, config);
        let fresh = self.nodes.iter().filter_map(|node| {
            let at = node.state.sampled_at?;
            (self.now.since(at) <= config.stale_after()).then_some((at, node))
        });
        let devices = fresh.flat_map(|(at, node)| node.judged().map(move |(device, condition)| (at, &node.state, device, condition)));
        let serving = devices.filter(|(_, state, device, condition)| !condition.is_frozen && wanted.has(state, device));
        let fraction = |device: &DeviceSample| device.memory_used_bytes as f64 / device.memory_total_bytes.max(1) as f64;
        let (at, _, device, _) = serving.max_by(|(_, _, a, _), (_, _, b, _)| fraction(a).total_cmp(&fraction(b)))?;
        Some(GpuMemorySample {
            at,
            used_bytes: device.memory_used_bytes,
            total_bytes: device.memory_total_bytes,
            source: SignalSource::Nvml,
        })
    }

    /// An engine with a process on the pool's devices that takes its memory when it starts: what NVML says of their memory then says
    /// nothing of load.
    pub fn up_front(&self, pool: &str, config: &GpuMemoryConfig) -> Option<EngineKind> {
        let wanted = Wanted::of(pool, config);
        let serving = self.nodes.iter().flat_map(|node| {
            let devices = node.state.devices.iter().filter(|device| wanted.has(&node.state, device));
            devices.filter_map(|device| node.state.detail(&device.uuid)?.processes.as_ref())
        });
        let names = serving.flatten().filter_map(|process| process.name.as_deref());
        names.filter_map(EngineKind::of_process).find(|kind| kind.preallocates() == Some(true))
    }

    /// What the pool's devices can do. A node that has fallen silent is left out: what nobody measures says nothing of capacity.
    pub fn capacity(&self, pool: &str, config: &GpuMemoryConfig) -> PoolCapacity {
        let wanted = Wanted::of(pool, config);
        let mut capacity = PoolCapacity::default();
        let mut most_taken = 0.0;
        let fresh = self.nodes.iter().filter(|node| node.state.sampled_at.is_some_and(|at| self.now.since(at) <= config.stale_after()));
        for node in fresh {
            for (device, condition) in node.judged().filter(|(device, _)| wanted.has(&node.state, device)) {
                let taken = condition.units * (1.0 - condition.verdict.capacity());
                capacity.add(condition.units, taken, &mut most_taken, || {
                    format!("GPU {} {}: {}", device.index, device.uuid, condition.verdict.reason())
                });
            }
            for lost in node.state.lost.iter().filter(|lost| wanted.had(&node.state, lost)) {
                let units = units::of_model(&lost.name);
                capacity.add(units, units, &mut most_taken, || format!("GPU {} {} is lost", lost.index, lost.uuid));
            }
        }
        capacity
    }
}

// === impl NodeView ===

impl NodeView {
    /// Each device with what is made of it.
    pub fn judged(&self) -> impl Iterator<Item = (&DeviceSample, &Condition)> {
        self.state.devices.iter().zip(&self.conditions)
    }
}

// === impl PoolCapacity ===

impl PoolCapacity {
    /// Part of the devices that can be trusted with work, 0 to 1; 1 while no device is known.
    pub fn fraction(&self) -> f64 {
        if self.units > 0.0 { self.able_units / self.units } else { 1.0 }
    }

    fn add(&mut self, units: f64, taken: f64, most_taken: &mut f64, because: impl FnOnce() -> String) {
        self.units += units;
        self.able_units += units - taken;
        self.devices += 1;
        if taken > *most_taken {
            *most_taken = taken;
            self.because = because();
        }
    }
}

// === impl Wanted ===

impl<'a> Wanted<'a> {
    fn of(pool: &'a str, config: &'a GpuMemoryConfig) -> Self {
        Self { pool, uuids: config.devices.iter().map(String::as_str).collect() }
    }

    fn has(&self, state: &DeviceState, device: &DeviceSample) -> bool {
        if self.uuids.is_empty() {
            return self.is_served_by(state);
        }
        let parent = || state.detail(&device.uuid).and_then(|detail| detail.mig_parent.as_deref());
        self.uuids.contains(&*device.uuid) || parent().is_some_and(|parent| self.uuids.contains(parent))
    }

    fn had(&self, state: &DeviceState, lost: &LostDevice) -> bool {
        if self.uuids.is_empty() { self.is_served_by(state) } else { self.uuids.contains(&*lost.uuid) }
    }

    fn is_served_by(&self, state: &DeviceState) -> bool {
        state.pools.is_empty() || state.pools.iter().any(|pool| pool == self.pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceDetail, DeviceProcess, DeviceReading, DeviceSample};

    fn sample(index: u32, used_percent: u64) -> DeviceReading {
        DeviceReading::Sample(DeviceSample {
            index,
            uuid: format!("GPU-{index}").into(),
            name: "NVIDIA A100".into(),
            memory_used_bytes: used_percent << 30,
            memory_total_bytes: 100 << 30,
            ..DeviceSample::default()
        })
    }

    fn node(name: &str, pools: &[&str], at_ms: u64, readings: Vec<DeviceReading>) -> Arc<NodeView> {
        let mut state = DeviceState { node: name.into(), ..DeviceState::starting("test") };
        state.pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
        state.take(Timestamp::from_millis(at_ms), readings);
        Arc::new(NodeView::of(state))
    }

    fn config(devices: &[&str]) -> GpuMemoryConfig {
        GpuMemoryConfig { devices: devices.iter().map(|uuid| (*uuid).to_owned()).collect(), ..GpuMemoryConfig::default() }
    }

    fn used(view: &DeviceView, pool: &str, devices: &[&str]) -> Option<u64> {
        view.fullest(pool, &config(devices)).map(|sample| sample.used_bytes >> 30)
    }

    #[test]
    fn the_fullest_device_of_the_pool_counts() {
        let nodes = vec![
            node("", &[], 0, vec![sample(0, 20), sample(1, 90), sample(2, 40)]),
            node("a", &["chat"], 0, vec![sample(3, 95)]),
            node("b", &["embed", "rerank"], 0, vec![sample(4, 99)]),
        ];
        let view = DeviceView::new(Timestamp::ZERO, nodes);
        assert_eq!(used(&view, "chat", &[]), Some(95), "the node's own pool, and nodes that name none");
        assert_eq!(used(&view, "rerank", &[]), Some(99));
        assert_eq!(used(&view, "other", &[]), Some(90));
        assert_eq!(used(&view, "chat", &["GPU-0", "GPU-2"]), Some(40), "a list in the policy stands above all");
        assert_eq!(used(&view, "chat", &["GPU-9"]), None);
    }

    #[test]
    fn an_engine_that_takes_its_memory_at_the_start_is_known_by_its_process() {
        let with_process = |name: &str| {
            let mut state = DeviceState::starting("test");
            state.take(Timestamp::ZERO, vec![sample(0, 90)]);
            let process = DeviceProcess { pid: 7, name: Some(name.to_owned()), memory_used_bytes: None };
            let detail = DeviceDetail { uuid: "GPU-0".into(), processes: Some(vec![process]), ..DeviceDetail::default() };
            state.details = Arc::new(vec![detail]);
            DeviceView::new(Timestamp::ZERO, vec![Arc::new(NodeView::of(state))]).up_front("p", &config(&[]))
        };
        assert_eq!(with_process("VLLM::EngineCore"), Some(EngineKind::Vllm));
        assert_eq!(with_process("/opt/llama.cpp/llama-server"), Some(EngineKind::LlamaCpp));
        assert_eq!(with_process("/usr/bin/tritonserver"), None, "that depends on what it serves");
        assert_eq!(with_process("/usr/bin/python3"), None);
    }

    #[test]
    fn a_node_that_has_fallen_silent_leaves_the_maximum_and_the_others_carry_on() {
        let nodes = vec![node("a", &[], 1000, vec![sample(0, 99)]), node("b", &[], 1400, vec![sample(1, 50)])];
        let at = |ms| DeviceView::new(Timestamp::from_millis(ms), nodes.clone());
        assert_eq!(used(&at(1300), "p", &[]), Some(99));
        assert_eq!(used(&at(1301), "p", &[]), Some(50), "three periods");
        assert_eq!(used(&at(1701), "p", &[]), None);
    }

    #[test]
    fn capacity_is_units_and_a_lost_device_takes_its_own() {
        let lost = LostDevice { index: 1, uuid: "GPU-1".into(), name: "NVIDIA A100".into(), lost: "GPU is lost".to_owned() };
        let view = DeviceView::new(Timestamp::ZERO, vec![node("a", &[], 0, vec![sample(0, 50), DeviceReading::Lost(lost)])]);
        let capacity = view.capacity("p", &config(&[]));
        assert_eq!((capacity.units.round(), capacity.able_units.round(), capacity.devices), (40.0, 20.0, 2));
        assert_eq!((capacity.fraction(), capacity.because.as_str()), (0.5, "GPU 1 GPU-1 is lost"));
        assert_eq!(DeviceView::new(Timestamp::ZERO, Vec::new()).capacity("p", &config(&[])).fraction(), 1.0, "nobody knows");
    }
}
