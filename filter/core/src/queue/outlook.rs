//! Who waits in vain: what starts before it takes longer than it has left.
//!
//! At its arrival a request is refused only if it could not start in time even if nobody came after it. But others come and overtake it: more
//! important ones, those of tenants that were served less, smaller ones. It would wait until its time is over, and so long keep out of the
//! queue who could still start in time. So ten times a second everybody is looked up in the order in which they would start.

use alloc::vec::Vec;

use super::{AdmissionQueue, Slot, Ticket, Waiting, lanes};
use crate::permits::MAX_CLASSES;
use crate::time::Timestamp;

/// What a queue's places are judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Work tokens that leave the queue per second.
    pub(crate) drain: f64,
    /// What a tenant's counter grows by for each work token.
    pub(crate) growth: f64,
    /// The first class that is judged: all of those before it is to start.
    pub(crate) from_class: usize,
}

/// One that waits, by its tenant, its place there, and when it came, or by its turn and where it was in that order; and its slot.
type Entry = (u16, u64, u64, u32);

/// Room for the orders, and who waits in vain: a queue that is looked through again allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    order: Vec<Entry>,
    in_vain: Vec<(Ticket, f64)>,
}

impl<N: Copy, A> AdmissionQueue<N, A> {
    /// Notes who waits in vain, for [`next_in_vain`](Self::next_in_vain). O(n log n) in those of the classes in which anybody may.
    pub(crate) fn look_ahead(&mut self, now: Timestamp, pace: Pace) {
        self.outlook.in_vain.clear();
        let mut earliest = [Timestamp::MAX; MAX_CLASSES];
        for waiting in self.slots.iter().filter_map(Slot::waiting) {
            if let Some(earliest) = earliest.get_mut(waiting.class.index()) {
                *earliest = waiting.start_by.min(*earliest);
            }
        }
        let mut above = 0;
        for (class, earliest) in earliest.into_iter().enumerate() {
            let own = self.lanes.work_of(class);
            let takes_s = (above + own) as f64 / pace.drain;
            // Otherwise even the last of the class would start before the time of any of them is over.
            if class >= pace.from_class && takes_s > earliest.since(now).as_secs_f64() {
                self.put_in_order(class, pace.growth);
                self.look_through(now, above as f64, pace.drain);
            }
            above += own;
        }
    }

    /// One that still waits, in vain, and how long in seconds it would have to.
    pub(crate) fn next_in_vain(&mut self) -> Option<(Ticket, Waiting<N>, f64)> {
        while let Some((ticket, wait_s)) = self.outlook.in_vain.pop() {
            if let Some(waiting) = self.waiting(ticket) {
                return Some((ticket, *waiting, wait_s));
            }
        }
        None
    }

    /// Those of a class in the order in which they would start. Each tenant's go by their places; since its counter grows with each of them,
    /// the turns of all are those of the tenants one after the other.
    fn put_in_order(&mut self, class: usize, growth: f64) {
        let Self { slots, lanes, outlook: Outlook { order, .. }, .. } = self;
        order.clear();
        for (index, slot) in slots.iter().enumerate() {
            if let Some(waiting) = slot.waiting().filter(|waiting| waiting.class.index() == class) {
                let (place, sequence) = slot.place();
                order.push((waiting.tenant, place.as_nanos(), sequence, index as u32));
            }
        }
        crate::shellsort::ascending(order);
        let (mut of, mut served) = (None, 0.0);
        for (rank, entry) in (0..).zip(order.iter_mut()) {
            let Some(waiting) = slots.get(entry.3 as usize).and_then(Slot::waiting) else { continue };
            if of.replace(waiting.tenant) != Some(waiting.tenant) {
                served = lanes.served(class, waiting.tenant);
            }
            // Of numbers that are not negative the bits have the same order.
            (entry.0, entry.1, entry.2) = (0, lanes::turn(served, waiting.cost).to_bits(), rank);
            served += growth * waiting.work as f64;
        }
        crate::shellsort::ascending(order);
    }

    /// Notes whose time is over before it is its turn; who is to leave is before nobody.
    fn look_through(&mut self, now: Timestamp, above: f64, drain: f64) {
        let Self { slots, outlook: Outlook { order, in_vain }, .. } = self;
        let mut ahead = above;
        for (_, _, _, slot) in order.iter().copied() {
            let Some(place) = slots.get(slot as usize) else { continue };
            let Some(waiting) = place.waiting() else { continue };
            let wait_s = ahead / drain;
            if wait_s > waiting.start_by.since(now).as_secs_f64() {
                in_vain.push((Ticket { slot, generation: place.generation }, wait_s));
            } else {
                ahead += waiting.work as f64;
            }
        }
    }
}
