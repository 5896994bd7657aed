//! What is known of the devices of one node.

use std::borrow::Cow;
use std::sync::Arc;

use headgate_core::time::Timestamp;

use super::{DeviceDetail, DeviceReading, DeviceSample, LostDevice, SampleError};

/// The devices of one node, as of one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceState {
    /// Name of the node; empty for the one on which this program runs.
    pub node: Arc<str>,
    /// Pools that the node serves; empty: every pool.
    pub pools: Arc<[String]>,
    /// Name of the source.
    pub source: Cow<'static, str>,
    /// How the source is doing.
    pub state: SourceState,
    /// Number of the sample; grows by one with every good answer of the source.
    pub epoch: u64,
    /// Time at which the source was asked for it, on this program's clock; `None` before the first.
    pub sampled_at: Option<Timestamp>,
    /// Last good samples, by index. They stay after a failure of the source and age.
    pub devices: Vec<DeviceSample>,
    /// Devices that were there and do not answer.
    pub lost: Vec<LostDevice>,
    /// Last details, in the order of the devices.
    pub details: Arc<Vec<DeviceDetail>>,
}

/// How the source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Not asked yet.
    Starting,
    /// The last answer was good.
    Sampling,
    /// The last answer was an error; it is asked again.
    Failing(SampleError),
}

// === impl DeviceState ===

impl DeviceState {
    /// A node of which nothing is known yet.
    pub fn starting(source: impl Into<Cow<'static, str>>) -> Self {
        Self {
            node: "".into(),
            pools: Arc::default(),
            source: source.into(),
            state: SourceState::Starting,
            epoch: 0,
            sampled_at: None,
            devices: Vec::new(),
            lost: Vec::new(),
            details: Arc::default(),
        }
    }

    /// Takes a good answer that was asked for at `at`.
    pub fn take(&mut self, at: Timestamp, readings: Vec<DeviceReading>) {
        self.state = SourceState::Sampling;
        self.sampled_at = Some(at);
        self.epoch += 1;
        self.devices.clear();
        self.lost.clear();
        for reading in readings {
            match reading {
                DeviceReading::Sample(sample) => self.devices.push(sample),
                DeviceReading::Lost(lost) => self.lost.push(lost),
            }
        }
    }

    /// The details of the device `uuid`.
    pub fn detail(&self, uuid: &str) -> Option<&DeviceDetail> {
        self.details.iter().find(|detail| detail.uuid == uuid)
    }
}
