//! The reports of one proxy's workers, as shared data and the wire have them: each stands there with its head, which names it.
//!
//! A report holds thousands of numbers, ten times a second. To write them into bytes and read them again a moment later, in the same process,
//! changes none of them, as every debug build asserts of every report; and it would cost more than to book them. So slot, epoch and time go
//! through session, envelope and network as they would with all the rest, and the rest is swapped in where they arrive.

use std::collections::VecDeque;

use headgate_core::shared;
use headgate_protos::v1;
use prost::{DecodeError, Message};

/// The reports of one proxy's workers.
#[derive(Default)]
pub(super) struct Reports {
    slots: Vec<Slot>,
}

/// Those of one worker.
#[derive(Default)]
struct Slot {
    /// Head of the newest, encoded; empty before the first.
    head: Vec<u8>,
    /// The oldest first: those that may still arrive, and the newest.
    kept: VecDeque<v1::WorkerReport>,
    /// Whether the newest has been sent.
    is_sent: bool,
}

// === impl Reports ===

impl Reports {
    /// Heads of the newest of each slot, up to the first slot without one, to be sent.
    pub(super) fn newest(&mut self) -> impl Iterator<Item = &[u8]> {
        self.slots.iter_mut().take_while(|slot| !slot.head.is_empty()).map(|slot| {
            slot.is_sent = true;
            slot.head.as_slice()
        })
    }

    pub(super) fn set(&mut self, slot: usize, report: v1::WorkerReport) {
        debug_assert_eq!(v1::WorkerReport::decode(shared::encode_report(&report).as_slice()).as_ref(), Ok(&report));
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Slot::default);
        }
        self.slots[slot].set(report);
    }

    /// Calls `then` with the report of the proxy that has arrived as `bytes`. Those of a worker arrive in the order in which they were sent;
    /// the last one may come again.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub(super) fn with_arrived<R>(&mut self, bytes: &[u8], then: impl FnOnce(&v1::LoadReport) -> R) -> Result<R, DecodeError> {
        let mut report = v1::LoadReport::decode(bytes)?;
        self.swap(&mut report.workers);
        let result = then(&report);
        self.swap(&mut report.workers);
        Ok(result)
    }

    /// Exchanges heads for the reports that they stand for, or these for their heads.
    fn swap(&mut self, reports: &mut [v1::WorkerReport]) {
        for report in reports {
            let kept = self.slots.get_mut(report.slot as usize).and_then(|slot| slot.arrived(report));
            std::mem::swap(report, kept.expect("what arrives was sent, and nothing sent after it has arrived"));
        }
    }
}

// === impl Slot ===

impl Slot {
    fn set(&mut self, report: v1::WorkerReport) {
        // What was never sent cannot arrive.
        if !std::mem::replace(&mut self.is_sent, false) {
            self.kept.pop_back();
        }
        self.head = head(&report).encode_to_vec();
        self.kept.push_back(report);
    }

    /// The report that a head stands for. Those before it will not arrive any more.
    fn arrived(&mut self, head: &v1::WorkerReport) -> Option<&mut v1::WorkerReport> {
        let at = self.kept.iter().position(|kept| (kept.vm_epoch, kept.at_ns) == (head.vm_epoch, head.at_ns))?;
        self.kept.drain(..at);
        self.kept.front_mut()
    }
}

/// What names a report: a VM makes one at a time.
fn head(report: &v1::WorkerReport) -> v1::WorkerReport {
    let v1::WorkerReport { slot, vm_epoch, at_ns, .. } = *report;
    v1::WorkerReport { slot, vm_epoch, at_ns, ..v1::WorkerReport::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slot: u32, at_ns: u64) -> v1::WorkerReport {
        let pools = vec![v1::PoolReport { permits: at_ns as u32, ..v1::PoolReport::default() }];
        v1::WorkerReport { slot, vm_epoch: 7, at_ns, pools, counters: None }
    }

    fn load_report(workers: Vec<v1::WorkerReport>) -> v1::LoadReport {
        v1::LoadReport { node_id: "n".to_owned(), workers, ..v1::LoadReport::default() }
    }

    /// As the session sends them.
    fn sent(reports: &mut Reports) -> Vec<u8> {
        let heads = reports.newest().map(|head| v1::WorkerReport::decode(head).unwrap());
        load_report(heads.collect()).encode_to_vec()
    }

    fn arrived(reports: &mut Reports, bytes: &[u8]) -> v1::LoadReport {
        reports.with_arrived(bytes, v1::LoadReport::clone).unwrap()
    }

    #[test]
    fn what_arrives_is_what_was_sent_however_often_and_late() {
        let mut reports = Reports::default();
        let under_way: Vec<Vec<u8>> = (1..=20)
            .map(|at_ns| {
                reports.set(0, report(0, at_ns));
                // The other worker reports half as often.
                if !at_ns.is_multiple_of(2) {
                    reports.set(1, report(1, at_ns + 1));
                }
                sent(&mut reports)
            })
            .collect();
        // The fifth is lost, the last one comes twice.
        for at_ns in [1_u64, 2, 3, 4, 6, 20, 20] {
            let expected = load_report(vec![report(0, at_ns), report(1, at_ns.next_multiple_of(2))]);
            assert_eq!(arrived(&mut reports, &under_way[at_ns as usize - 1]), expected);
        }
        assert!(reports.slots.iter().all(|slot| slot.kept.len() == 1));
        assert!(reports.with_arrived(&[0x22, 1, 0xff], |_| ()).is_err(), "a worker's report that is none");
    }

    #[test]
    fn what_is_not_sent_is_not_kept() {
        let mut reports = Reports::default();
        (1..=20).for_each(|at_ns| reports.set(0, report(0, at_ns)));
        assert_eq!(reports.slots[0].kept, [report(0, 20)]);
    }
}
