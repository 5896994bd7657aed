//! Messages under way between proxies and control plane. A stream keeps its order, whatever the delays.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::session::Link;
use headgate_core::time::Timestamp;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    ToPlane,
    ToProxy,
}

/// An encoded message on a stream.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) direction: Direction,
    pub(super) link: Link,
    /// Which of the streams that the proxy has opened one after the other.
    pub(super) stream: u32,
    pub(super) bytes: Vec<u8>,
}

/// The messages under way.
#[derive(Debug, Default)]
pub(super) struct Transit {
    slots: Vec<Option<(u16, Message)>>,
    free: Vec<u32>,
    /// When the last message of a proxy in a direction arrives.
    last: BTreeMap<(u16, Direction), Timestamp>,
}

// === impl Transit ===

impl Transit {
    /// Takes a message on; it arrives after the returned time, under the returned number.
    pub(super) fn send(&mut self, now: Timestamp, proxy: u16, delay: Duration, message: Message) -> (Duration, u32) {
        let last = self.last.entry((proxy, message.direction)).or_default();
        *last = (*last).max(now + delay);
        let delay = last.since(now);
        let index = self.free.pop().unwrap_or(self.slots.len() as u32);
        if index as usize == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[index as usize] = Some((proxy, message));
        (delay, index)
    }

    /// The message with this number; `None` when its stream has broken meanwhile.
    pub(super) fn take(&mut self, index: u32) -> Option<(u16, Message)> {
        self.free.push(index);
        self.slots.get_mut(index as usize)?.take()
    }

    /// Loses everything of a proxy that is under way. The numbers come back when their times come.
    pub(super) fn forget(&mut self, proxy: u16) {
        for slot in self.slots.iter_mut().filter(|slot| slot.as_ref().is_some_and(|(of, _)| *of == proxy)) {
            *slot = None;
        }
    }
}
