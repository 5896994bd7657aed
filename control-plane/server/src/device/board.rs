//! All nodes' devices: who is there, what they say, and what is made of it.
//!
//! Every source writes whole states; the control loop and the pages read whole states. Nobody waits for anybody longer than it takes
//! to exchange a pointer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headgate_core::time::Timestamp;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use super::freeze::FreezeWatch;
use super::pool::DeviceView;
use super::verdict::{ClockMemory, Verdict};
use super::{DEFAULT_PERIOD, DeviceState, units};

#[cfg(test)]
mod tests;

/// Nodes that are kept; more are refused.
pub const MAX_NODES: usize = 4096;
/// Silence after which a node is forgotten. Until then the pages show that it is gone.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Bounds of the ages that are counted, in seconds.
const AGES: [f64; 18] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.5, 1.0, 2.5];

/// The board. All clones are one.
#[derive(Clone, Debug)]
pub struct DeviceBoard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    nodes: Mutex<BTreeMap<Arc<str>, Node>>,
    changed: watch::Sender<()>,
    period: watch::Sender<Duration>,
    ages: Histogram,
    report_bytes: AtomicU64,
}

#[derive(Debug)]
struct Node {
    view: Arc<NodeView>,
    devices: BTreeMap<Arc<str>, DeviceMemory>,
    /// Newest sample that a reader has counted the age of.
    counted: u64,
    heard_at: Timestamp,
}

#[derive(Debug)]
struct DeviceMemory {
    clocks: ClockMemory,
    freeze: FreezeWatch,
}

/// One node and what is made of its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// What it says.
    pub state: Arc<DeviceState>,
    /// What is made of each of its devices, in their order.
    pub conditions: Vec<Condition>,
}

/// What is made of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Condition {
    /// Whether its figures have stopped moving.
    pub is_frozen: bool,
    /// What it can be trusted with.
    pub verdict: Verdict,
    /// Its size in GPU units.
    pub units: f64,
}

/// There is no room for one more node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_NODES} nodes")]
pub struct TooManyNodes;

// === impl DeviceBoard ===

impl Default for DeviceBoard {
    fn default() -> Self {
        Self(Arc::new(Shared {
            nodes: Mutex::default(),
            changed: watch::Sender::new(()),
            period: watch::Sender::new(DEFAULT_PERIOD),
            ages: Histogram::new(AGES),
            report_bytes: AtomicU64::new(0),
        }))
    }
}

impl DeviceBoard {
    /// Replaces what is known of the node that `state` names.
    ///
    /// # Errors
    /// [`TooManyNodes`] when it would be one too many.
    pub fn publish(&self, now: Timestamp, state: Arc<DeviceState>) -> Result<(), TooManyNodes> {
        let mut nodes = self.lock();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&state.node) {
            return Err(TooManyNodes);
        }
        let node = nodes.entry(state.node.clone()).or_insert_with(|| Node::new(now));
        node.take(now, state);
        drop(nodes);
        self.0.changed.send_replace(());
        Ok(())
    }

    /// Forgets nodes that have been silent for [`FORGET_AFTER`].
    pub fn expire(&self, now: Timestamp) {
        self.lock().retain(|name, node| name.is_empty() || now.since(node.heard_at) < FORGET_AFTER);
    }

    /// Wakes after every [`publish`](Self::publish).
    pub fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// How often the sources shall ask; all of them follow it.
    pub fn period(&self) -> watch::Receiver<Duration> {
        self.0.period.subscribe()
    }

    /// Sets how often the sources shall ask.
    pub fn set_period(&self, period: Duration) {
        self.0.period.send_if_modified(|now| std::mem::replace(now, period) != period);
    }

    /// Every node as it is now.
    pub fn view(&self, now: Timestamp) -> DeviceView {
        DeviceView::new(now, self.lock().values().map(|node| node.view.clone()).collect())
    }

    /// As [`view`](Self::view), for the one who decides: counts how old the samples are that it sees for the first time.
    pub fn view_to_decide(&self, now: Timestamp) -> DeviceView {
        let mut nodes = self.lock();
        for node in nodes.values_mut() {
            let state = &node.view.state;
            if let Some(at) = state.sampled_at.filter(|_| state.epoch != node.counted) {
                self.0.ages.observe(now.since(at).as_secs_f64());
                node.counted = state.epoch;
            }
        }
        DeviceView::new(now, nodes.values().map(|node| node.view.clone()).collect())
    }

    /// Ages of samples when they first reached a decision, in seconds.
    pub fn ages(&self) -> Histogram {
        self.0.ages.clone()
    }

    /// Counts bytes that an agent has sent.
    pub fn count_bytes(&self, bytes: usize) {
        self.0.report_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that agents have sent: their messages with the frames of gRPC and HTTP/2, without TCP's.
    pub fn report_bytes(&self) -> u64 {
        self.0.report_bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Node>> {
        // Every write leaves the board whole.
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Node ===

impl Node {
    fn new(now: Timestamp) -> Self {
        let view = NodeView { state: Arc::new(DeviceState::starting("")), conditions: Vec::new() };
        Self { view: Arc::new(view), devices: BTreeMap::new(), counted: 0, heard_at: now }
    }

    fn take(&mut self, now: Timestamp, state: Arc<DeviceState>) {
        let conditions = if state.epoch == self.view.state.epoch && state.devices.len() == self.view.conditions.len() {
            // The same sample again, for example with a failure after it.
            self.view.conditions.clone()
        } else {
            self.heard_at = now;
            self.judge(state.sampled_at.unwrap_or(now), &state)
        };
        self.view = Arc::new(NodeView { state, conditions });
    }

    fn judge(&mut self, at: Timestamp, state: &DeviceState) -> Vec<Condition> {
        self.devices.retain(|uuid, _| state.devices.iter().any(|device| device.uuid == *uuid));
        let devices = &mut self.devices;
        let condition = |device: &super::DeviceSample| {
            let detail = state.detail(&device.uuid);
            let memory = devices
                .entry(device.uuid.clone())
                .or_insert_with(|| DeviceMemory { clocks: ClockMemory::default(), freeze: FreezeWatch::new(at, device) });
            Condition {
                is_frozen: memory.freeze.observe(at, device),
                verdict: memory.clocks.judge(device, detail),
                units: units::of_model(&device.name),
            }
        };
        state.devices.iter().map(condition).collect()
    }
}

// === impl NodeView ===

impl NodeView {
    /// What a source says of this machine, judged by itself alone.
    pub fn of(state: DeviceState) -> Self {
        let mut node = Node::new(Timestamp::ZERO);
        let conditions = node.judge(Timestamp::ZERO, &state);
        Self { state: Arc::new(state), conditions }
    }
}
