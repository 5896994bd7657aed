//! What arrives: differences, put together again. Nothing in a message is believed before it is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use headgate_protos::v1;

use super::figure::{is_detail, place_of, write_detail, write_sample};
use super::{FIGURES, Figures, MAX_DEVICES, MAX_TEXT_BYTES};
use crate::device::{DeviceDetail, DeviceProcess, DeviceReading, DeviceSample, LostDevice, MAX_PROCESSES};

/// One stream's devices.
#[derive(Debug, Default)]
pub struct Decoder {
    devices: BTreeMap<u32, Known>,
    details: Arc<Vec<DeviceDetail>>,
}

#[derive(Debug)]
struct Known {
    figures: Figures,
    sample: DeviceSample,
    mig_parent: Option<String>,
    processes: Option<Vec<DeviceProcess>>,
    lost: String,
}

/// What is wrong with a message. Begins with the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// A device that was never introduced.
    #[error("devices: key {0} has no identity")]
    Stranger(u32),
    /// Too many devices.
    #[error("devices: more than {MAX_DEVICES}")]
    TooMany,
    /// A text is too long.
    #[error("{field}: {got} bytes is outside 0..={MAX_TEXT_BYTES}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        got: usize,
    },
    /// Figures and changes are not as many.
    #[error("devices.changes: {changes} for {figures} figures")]
    Uneven {
        /// How many figures.
        figures: usize,
        /// How many changes.
        changes: usize,
    },
    /// Too many processes.
    #[error("devices.processes: {0} is outside 0..={MAX_PROCESSES}")]
    Processes(usize),
}

// === impl Decoder ===

impl Decoder {
    /// Applies a message and gives every device as it is now.
    ///
    /// # Errors
    /// [`ReportError`]; the stream cannot go on then, for what follows stands on this message.
    pub fn decode(&mut self, report: v1::DeviceReport) -> Result<Vec<DeviceReading>, ReportError> {
        let mut details_changed = !report.removed.is_empty();
        for key in &report.removed {
            self.devices.remove(key);
        }
        for change in report.devices {
            details_changed |= self.apply(change)?;
        }
        if details_changed {
            self.details = Arc::new(self.devices.values().filter(|known| known.lost.is_empty()).map(Known::detail).collect());
        }
        let mut readings: Vec<DeviceReading> = self.devices.values().map(Known::reading).collect();
        readings.sort_by_key(|reading| match reading {
            DeviceReading::Sample(sample) => sample.index,
            DeviceReading::Lost(lost) => lost.index,
        });
        Ok(readings)
    }

    /// The details of the devices, as of the last message.
    pub fn details(&self) -> Arc<Vec<DeviceDetail>> {
        self.details.clone()
    }

    /// Applies one change; returns whether it is one of details.
    fn apply(&mut self, change: v1::DeviceChange) -> Result<bool, ReportError> {
        let mut details_changed = change.identity.is_some() || change.processes.is_some() || change.lost.is_some();
        if let Some(identity) = change.identity {
            if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&change.key) {
                return Err(ReportError::TooMany);
            }
            self.devices.insert(change.key, Known::new(identity)?);
        }
        let known = self.devices.get_mut(&change.key).ok_or(ReportError::Stranger(change.key))?;
        let (figures, changes) = (change.figures.len(), change.changes.len());
        if figures != changes {
            return Err(ReportError::Uneven { figures, changes });
        }
        for (figure, change) in change.figures.into_iter().zip(change.changes) {
            // A newer agent may know more figures.
            let Some(place) = place_of(figure) else { continue };
            let before = known.figures[place].unwrap_or(0);
            known.figures[place] = Some(before.wrapping_add_signed(change));
            details_changed |= is_detail(place);
        }
        for place in change.gone.into_iter().filter_map(place_of) {
            known.figures[place] = None;
            details_changed |= is_detail(place);
        }
        if let Some(processes) = change.processes {
            known.processes = processes_of(processes)?;
        }
        if let Some(lost) = change.lost {
            known.lost = text("devices.lost", lost)?;
        }
        write_sample(&known.figures, &mut known.sample);
        Ok(details_changed)
    }
}

// === impl Known ===

impl Known {
    fn new(identity: v1::DeviceIdentity) -> Result<Self, ReportError> {
        let mig_parent = text("devices.identity.mig_parent", identity.mig_parent)?;
        let sample = DeviceSample {
            index: identity.index,
            uuid: text("devices.identity.uuid", identity.uuid)?.into(),
            name: text("devices.identity.name", identity.name)?.into(),
            ..DeviceSample::default()
        };
        let mig_parent = (!mig_parent.is_empty()).then_some(mig_parent);
        Ok(Self { figures: [None; FIGURES.len()], sample, mig_parent, processes: None, lost: String::new() })
    }

    fn reading(&self) -> DeviceReading {
        if self.lost.is_empty() {
            return DeviceReading::Sample(self.sample.clone());
        }
        let DeviceSample { index, uuid, name, .. } = self.sample.clone();
        DeviceReading::Lost(LostDevice { index, uuid, name, lost: self.lost.clone() })
    }

    fn detail(&self) -> DeviceDetail {
        let mut detail = DeviceDetail {
            uuid: self.sample.uuid.to_string(),
            mig_parent: self.mig_parent.clone(),
            processes: self.processes.clone(),
            ..DeviceDetail::default()
        };
        write_detail(&self.figures, &mut detail);
        detail
    }
}

fn processes_of(processes: v1::DeviceProcesses) -> Result<Option<Vec<DeviceProcess>>, ReportError> {
    if processes.processes.len() > MAX_PROCESSES {
        return Err(ReportError::Processes(processes.processes.len()));
    }
    let process = |process: v1::DeviceProcess| {
        let name = text("devices.processes.name", process.name)?;
        let name = (!name.is_empty()).then_some(name);
        Ok(DeviceProcess { pid: process.pid, name, memory_used_bytes: process.memory_used_bytes })
    };
    let listed = processes.processes.into_iter().map(process).collect::<Result<Vec<_>, _>>()?;
    Ok(processes.known.then_some(listed))
}

/// A text of bounded length.
pub(super) fn text(field: &'static str, text: String) -> Result<String, ReportError> {
    if text.len() > MAX_TEXT_BYTES { Err(ReportError::TooLong { field, got: text.len() }) } else { Ok(text) }
}
