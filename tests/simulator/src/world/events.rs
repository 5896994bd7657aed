//! The events to come: a heap of 128-bit keys, so that an event costs no allocation and a comparison is one instruction or two. Deadlines,
//! of which there are many more than of all others, stay out of it where they come in their order.

use std::collections::VecDeque;

use headgate_core::time::Timestamp;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An open source sends.
    Arrival(u32),
    /// A client of a closed source has thought.
    Thought(u32),
    /// A closed source's number of clients changes.
    Population(u32),
    /// The next row of the trace.
    Trace,
    /// The request in this slot is tried again.
    Retry(u32),
    /// The client of the request in this slot gives up.
    Deadline(u32),
    /// An engine has something to do.
    Engine(u32),
    /// A timer of the controller, by its slot.
    Timer(u32),
    /// A fault of the plan begins, by its index.
    Fault(u32),
    /// A fault ends, by its index.
    FaultEnds(u32),
    /// A sample for the report.
    Sample,
}

/// The heap: four children a node, earliest first, first scheduled first among equals.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Nanoseconds (56 bits, 2.3 years), order of scheduling (36 bits), kind (4 bits), argument (32 bits).
    heap: Vec<u128>,
    /// Keys of deadlines in ascending order: most clients have the same patience, so most deadlines are later than all before them.
    deadlines: VecDeque<u128>,
    scheduled: u64,
    /// Those to come by which clients send of themselves.
    sending: u32,
}

const CHILDREN: usize = 4;

// === impl Event ===

impl Event {
    /// Whether clients send by it of themselves: a retry is of a request that lives.
    pub(super) fn sends(self) -> bool {
        matches!(self, Self::Arrival(_) | Self::Thought(_) | Self::Population(_) | Self::Trace)
    }
}

// === impl Events ===

impl Events {
    /// Whether clients send anything more, but for retries of what lives.
    pub(super) fn has_senders(&self) -> bool {
        self.sending > 0
    }

    pub(super) fn push(&mut self, at: Timestamp, event: Event) {
        self.sending += u32::from(event.sends());
        let (kind, argument) = encode(event);
        let order = self.scheduled & ((1 << 36) - 1);
        self.scheduled += 1;
        let key = (u128::from(at.as_nanos()) << 72) | (u128::from(order) << 36) | (u128::from(kind) << 32) | u128::from(argument);
        if matches!(event, Event::Deadline(_)) && self.deadlines.back().is_none_or(|last| *last < key) {
            self.deadlines.push_back(key);
        } else {
            self.push_key(key);
        }
    }

    fn push_key(&mut self, key: u128) {
        let mut at = self.heap.len();
        self.heap.push(key);
        while at > 0 {
            let parent = (at - 1) / CHILDREN;
            if self.heap[parent] <= key {
                break;
            }
            self.heap[at] = self.heap[parent];
            at = parent;
        }
        self.heap[at] = key;
    }

    pub(super) fn pop(&mut self) -> Option<(Timestamp, Event)> {
        let is_deadline = self.deadlines.front().is_some_and(|deadline| self.heap.first().is_none_or(|first| deadline < first));
        let (at, event) = decode(if is_deadline { self.deadlines.pop_front() } else { self.pop_key() }?);
        self.sending -= u32::from(event.sends());
        Some((at, event))
    }

    fn pop_key(&mut self) -> Option<u128> {
        let last = self.heap.pop()?;
        let Some(&first) = self.heap.first() else { return Some(last) };
        let len = self.heap.len();
        let mut at = 0;
        loop {
            let child = at * CHILDREN + 1;
            if child >= len {
                break;
            }
            let end = (child + CHILDREN).min(len);
            let mut least = child;
            for other in child + 1..end {
                if self.heap[other] < self.heap[least] {
                    least = other;
                }
            }
            if self.heap[least] >= last {
                break;
            }
            self.heap[at] = self.heap[least];
            at = least;
        }
        self.heap[at] = last;
        Some(first)
    }
}

fn encode(event: Event) -> (u8, u32) {
    match event {
        Event::Arrival(argument) => (0, argument),
        Event::Thought(argument) => (1, argument),
        Event::Population(argument) => (2, argument),
        Event::Trace => (3, 0),
        Event::Retry(argument) => (4, argument),
        Event::Deadline(argument) => (5, argument),
        Event::Engine(argument) => (6, argument),
        Event::Timer(argument) => (7, argument),
        Event::Fault(argument) => (8, argument),
        Event::FaultEnds(argument) => (9, argument),
        Event::Sample => (10, 0),
    }
}

fn decode(key: u128) -> (Timestamp, Event) {
    let argument = key as u32;
    let event = match (key >> 32) as u8 & 15 {
        0 => Event::Arrival(argument),
        1 => Event::Thought(argument),
        2 => Event::Population(argument),
        3 => Event::Trace,
        4 => Event::Retry(argument),
        5 => Event::Deadline(argument),
        6 => Event::Engine(argument),
        7 => Event::Timer(argument),
        8 => Event::Fault(argument),
        9 => Event::FaultEnds(argument),
        _ => Event::Sample,
    };
    (Timestamp::from_nanos((key >> 72) as u64), event)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_come_in_the_order_of_time_then_of_scheduling(all in proptest::collection::vec((0_u64..50, any::<bool>()), 0..300)) {
            let mut events = Events::default();
            let mut expected: Vec<(u64, usize, Event)> = Vec::new();
            for (number, (at, is_deadline)) in all.into_iter().enumerate() {
                let event = if is_deadline { Event::Deadline(number as u32) } else { Event::Timer(number as u32) };
                events.push(Timestamp::from_nanos(at), event);
                expected.push((at, number, event));
            }
            expected.sort_unstable_by_key(|(at, number, _)| (*at, *number));
            let popped: Vec<(u64, Event)> = std::iter::from_fn(|| events.pop()).map(|(at, event)| (at.as_nanos(), event)).collect();
            prop_assert_eq!(popped, expected.into_iter().map(|(at, _, event)| (at, event)).collect::<Vec<_>>());
        }
    }
}
