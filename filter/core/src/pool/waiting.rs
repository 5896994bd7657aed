//! What becomes of those who wait, or have an answer, when their queue ends.

use alloc::vec::Vec;

use super::Pool;
use super::overload::{Answer, WaitQueue};

impl Pool {
    /// Ends a queue: its streams, which nobody answers any more. Those that were answered and had not begun count as cancelled.
    pub(super) fn disband(&mut self, queue: Option<WaitQueue>) -> Vec<u32> {
        let Some(queue) = queue else { return Vec::new() };
        let streams = queue.streams().collect();
        queue.into_answers().for_each(|answer| self.take_back(answer));
        streams
    }

    /// Nobody will collect an answer: what was reserved with it goes back.
    pub(crate) fn take_back(&mut self, answer: Answer) {
        let Answer::Admitted { held, state } = answer else { return };
        self.refund(held.charges, held.reservation.size);
        if let Some(load) = &mut self.overload {
            held.end(load);
        }
        if let Some(state) = self.states.get_mut(state) {
            state.cancelled += 1;
            state.in_flight = state.in_flight.saturating_sub(1);
            state.waiting = state.waiting.saturating_sub(1);
        }
    }

    /// Ends overload control; the streams that wait.
    pub(crate) fn orphans(&mut self) -> Vec<u32> {
        let queue = self.overload.as_mut().and_then(|load| load.queue.take());
        let streams = self.disband(queue);
        self.overload = None;
        streams
    }
}
