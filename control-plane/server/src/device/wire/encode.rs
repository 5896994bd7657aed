//! What is sent: the difference to what was sent before.

use std::collections::BTreeMap;
use std::sync::Arc;

use headgate_protos::v1;

use super::figure::figures_of;
use super::{FIGURES, Figures};
use crate::device::{DeviceDetail, DeviceProcess, DeviceState, SourceState};

/// One stream's memory of what it has said. A new stream needs a new one.
#[derive(Debug, Default)]
pub struct Encoder {
    devices: BTreeMap<Key, Sent>,
    next_key: u32,
}

/// A device without identity is told by its place.
type Key = (u32, Arc<str>);

#[derive(Debug)]
struct Sent {
    key: u32,
    figures: Figures,
    processes: Option<Vec<DeviceProcess>>,
    lost: String,
    is_current: bool,
}

// === impl Encoder ===

impl Encoder {
    /// The message that brings the other side from what it was told last to `state`; times and node are left to the caller.
    pub fn encode(&mut self, state: &DeviceState) -> v1::DeviceReport {
        let mut devices = Vec::new();
        for sample in &state.devices {
            let unknown = DeviceDetail::default();
            let detail = state.detail(&sample.uuid).unwrap_or(&unknown);
            let identity = || v1::DeviceIdentity {
                index: sample.index,
                uuid: sample.uuid.to_string(),
                name: sample.name.to_string(),
                mig_parent: detail.mig_parent.clone().unwrap_or_default(),
            };
            let (sent, identity) = self.place((sample.index, sample.uuid.clone()), identity);
            devices.extend(sent.change(identity, figures_of(sample, detail), &detail.processes, ""));
        }
        for lost in &state.lost {
            let identity =
                || v1::DeviceIdentity { index: lost.index, uuid: lost.uuid.to_string(), name: lost.name.to_string(), ..Default::default() };
            let (sent, identity) = self.place((lost.index, lost.uuid.clone()), identity);
            devices.extend(sent.change(identity, [None; FIGURES.len()], &None, &lost.lost));
        }
        v1::DeviceReport {
            epoch: state.epoch,
            devices,
            removed: self.forget_missing(),
            problem: if let SourceState::Failing(error) = &state.state { error.to_string() } else { String::new() },
            ..Default::default()
        }
    }

    /// The device's memory; with its identity when it is new.
    fn place(&mut self, key: Key, identity: impl FnOnce() -> v1::DeviceIdentity) -> (&mut Sent, Option<v1::DeviceIdentity>) {
        let next_key = self.next_key;
        let mut new = None;
        let sent = self.devices.entry(key).or_insert_with(|| {
            new = Some(identity());
            Sent { key: next_key, figures: [None; FIGURES.len()], processes: None, lost: String::new(), is_current: true }
        });
        if new.is_some() {
            self.next_key += 1;
        }
        sent.is_current = true;
        (sent, new)
    }

    fn forget_missing(&mut self) -> Vec<u32> {
        let mut removed = Vec::new();
        self.devices.retain(|_, sent| {
            let stays = std::mem::take(&mut sent.is_current);
            if !stays {
                removed.push(sent.key);
            }
            stays
        });
        removed
    }
}

// === impl Sent ===

impl Sent {
    /// What has changed; `None` when nothing has.
    fn change(
        &mut self,
        identity: Option<v1::DeviceIdentity>,
        figures: Figures,
        processes: &Option<Vec<DeviceProcess>>,
        lost: &str,
    ) -> Option<v1::DeviceChange> {
        let mut change = v1::DeviceChange { key: self.key, identity, ..Default::default() };
        for (figure, (before, now)) in FIGURES.iter().zip(self.figures.iter_mut().zip(figures)) {
            match now {
                _ if *before == now => continue,
                None => change.gone.push(figure.id.into()),
                Some(value) => {
                    change.figures.push(figure.id.into());
                    change.changes.push(value.wrapping_sub(before.unwrap_or(0)).cast_signed());
                }
            }
            *before = now;
        }
        if self.processes != *processes {
            self.processes.clone_from(processes);
            change.processes = Some(to_wire(processes.as_deref()));
        }
        if self.lost != lost {
            lost.clone_into(&mut self.lost);
            change.lost = Some(lost.to_owned());
        }
        let is_empty = change.identity.is_none()
            && change.figures.is_empty()
            && change.gone.is_empty()
            && change.processes.is_none()
            && change.lost.is_none();
        (!is_empty).then_some(change)
    }
}

fn to_wire(processes: Option<&[DeviceProcess]>) -> v1::DeviceProcesses {
    let process = |process: &DeviceProcess| v1::DeviceProcess {
        pid: process.pid,
        name: process.name.clone().unwrap_or_default(),
        memory_used_bytes: process.memory_used_bytes,
    };
    v1::DeviceProcesses { known: processes.is_some(), processes: processes.unwrap_or_default().iter().map(process).collect() }
}
