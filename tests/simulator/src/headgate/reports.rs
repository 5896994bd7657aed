//! The reports of one proxy's workers: encoded as shared data and the wire have them, and decoded as they were before.
//!
//! A report holds thousands of numbers, and to read them from bytes that were written here a moment ago costs more than to book them. So
//! what was encoded is kept beside its bytes for as long as it may be under way, and stands for what they decode to: the same, as every
//! debug build asserts of every report. Whatever else arrives is decoded.

use std::collections::VecDeque;
use std::rc::Rc;

use headgate_core::shared;
use headgate_protos::v1;
use prost::{DecodeError, Message};

/// Reports of one worker that are kept: the time of a few round trips, at ten a second.
const KEPT: usize = 8;

/// The reports of one proxy's workers.
#[derive(Default)]
pub(super) struct Reports {
    slots: Vec<Slot>,
}

/// Those of one worker.
#[derive(Default)]
struct Slot {
    newest: Rc<Vec<u8>>,
    /// The oldest first; without those that have arrived.
    under_way: VecDeque<(Rc<Vec<u8>>, v1::WorkerReport)>,
}

/// `headgate.v1.LoadReport` with the workers' reports still encoded.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(string, tag = "1")]
    node_id: String,
    #[prost(string, tag = "2")]
    filter_version: String,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    #[prost(bytes = "vec", repeated, tag = "4")]
    workers: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "5")]
    policies: Vec<v1::AppliedPolicy>,
    #[prost(message, repeated, tag = "6")]
    rejected: Vec<v1::RejectedPolicy>,
}

// === impl Reports ===

impl Reports {
    /// The newest of each slot, up to the first slot without one.
    pub(super) fn newest(&self) -> impl Iterator<Item = &[u8]> {
        self.slots.iter().map(|slot| slot.newest.as_slice()).take_while(|report| !report.is_empty())
    }

    pub(super) fn set(&mut self, slot: usize, report: v1::WorkerReport) {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Slot::default);
        }
        let slot = &mut self.slots[slot];
        slot.newest = Rc::new(shared::encode_report(&report));
        slot.under_way.push_back((Rc::clone(&slot.newest), report));
        if slot.under_way.len() > KEPT {
            slot.under_way.pop_front();
        }
    }

    /// The report of the proxy that has arrived as `bytes`.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub(super) fn arrived(&mut self, bytes: &[u8]) -> Result<v1::LoadReport, DecodeError> {
        let Envelope { node_id, filter_version, sequence, workers, policies, rejected } = Envelope::decode(bytes)?;
        let workers = workers.into_iter().map(|bytes| self.worker(&bytes)).collect::<Result<_, _>>()?;
        Ok(v1::LoadReport { node_id, filter_version, sequence, workers, policies, rejected })
    }

    fn worker(&mut self, bytes: &[u8]) -> Result<v1::WorkerReport, DecodeError> {
        let known = self.slots.iter_mut().find_map(|slot| slot.take(bytes));
        debug_assert!(known.as_ref().is_none_or(|known| v1::WorkerReport::decode(bytes).as_ref() == Ok(known)));
        known.map_or_else(|| v1::WorkerReport::decode(bytes), Ok)
    }
}

// === impl Slot ===

impl Slot {
    fn take(&mut self, bytes: &[u8]) -> Option<v1::WorkerReport> {
        let at = self.under_way.iter().position(|(known, _)| known.as_slice() == bytes)?;
        self.under_way.remove(at).map(|(_, report)| report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slot: u32, at_ns: u64) -> v1::WorkerReport {
        v1::WorkerReport { slot, vm_epoch: 7, at_ns, ..v1::WorkerReport::default() }
    }

    #[test]
    fn what_arrives_is_what_was_sent_however_often_and_late() {
        let mut reports = Reports::default();
        let sent = |at_ns| v1::LoadReport {
            node_id: "n".to_owned(),
            workers: vec![report(0, at_ns), report(1, at_ns)],
            ..v1::LoadReport::default()
        };
        for at_ns in 1..=20 {
            reports.set(0, report(0, at_ns));
            reports.set(1, report(1, at_ns));
        }
        let newest: Vec<Vec<u8>> = reports.newest().map(<[u8]>::to_vec).collect();
        assert_eq!(newest, [report(0, 20).encode_to_vec(), report(1, 20).encode_to_vec()]);
        // The first is no longer kept, the last comes twice.
        for at_ns in [1, 19, 20, 20] {
            assert_eq!(reports.arrived(&sent(at_ns).encode_to_vec()), Ok(sent(at_ns)));
        }
        assert!(reports.arrived(&[0x22, 1, 0xff]).is_err(), "a worker's report that is none");
        assert!(reports.slots.iter().all(|slot| slot.under_way.len() == KEPT - 2));
    }
}
