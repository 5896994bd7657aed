//! The devices on which one endpoint of a pool computes, as the balancing sees them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Condition, DeviceSample, DeviceState, DeviceView, NodeView, Verdict};

/// Age at which a figure no longer moves traffic.
const STALE_AFTER: Duration = Duration::from_secs(3);

/// What the devices of an endpoint say.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointDevices {
    /// Why one of them cannot be trusted with any work.
    pub ejected: Option<String>,
    /// Kernel-active time of the busiest, 0 to 1; `None` while nobody says.
    pub utilisation: Option<f64>,
    /// Part of its work that the slowest can be trusted with, 0 to 1.
    pub capacity: f64,
}

// === impl DeviceView ===

impl DeviceView {
    /// The devices in `gpus`, by UUID or by that of the device that they are a part of; with none given those of `node`; with neither none.
    ///
    /// A verdict holds until the device says otherwise or its node is forgotten, however silent the node is: silence heals no device.
    pub fn of_endpoint(&self, gpus: &BTreeSet<String>, node: Option<&str>) -> EndpointDevices {
        let mut found = EndpointDevices { ejected: None, utilisation: None, capacity: 1.0 };
        let nodes: Vec<&Arc<NodeView>> = self.nodes().iter().filter(|view| !gpus.is_empty() || node == Some(&*view.state.node)).collect();
        for view in nodes {
            let fresh = view.state.sampled_at.is_some_and(|at| self.now().since(at) <= STALE_AFTER);
            for (device, condition) in view.judged().filter(|(device, _)| gpus.is_empty() || is_among(gpus, &view.state, device)) {
                found.add(device, condition, fresh);
            }
            let mut lost = view.state.lost.iter().filter(|lost| gpus.is_empty() || gpus.contains(&*lost.uuid));
            if let Some(lost) = lost.next() {
                found.ejected = Some(format!("GPU {} {} is lost", lost.index, lost.uuid));
            }
        }
        found
    }
}

// === impl EndpointDevices ===

impl EndpointDevices {
    fn add(&mut self, device: &DeviceSample, condition: &Condition, fresh: bool) {
        if let Verdict::Ejected(because) = condition.verdict {
            self.ejected = Some(format!("GPU {} {}: {because}", device.index, device.uuid));
        }
        if fresh && !condition.is_frozen {
            let active = device.activity.kernel_active_percent.map(|percent| f64::from(percent) / 100.0);
            self.utilisation = [self.utilisation, active].into_iter().flatten().reduce(f64::max);
            self.capacity = self.capacity.min(condition.verdict.capacity());
        }
    }
}

fn is_among(gpus: &BTreeSet<String>, state: &DeviceState, device: &DeviceSample) -> bool {
    let parent = || state.detail(&device.uuid).and_then(|detail| detail.mig_parent.as_deref());
    gpus.contains(&*device.uuid) || parent().is_some_and(|parent| gpus.contains(parent))
}
