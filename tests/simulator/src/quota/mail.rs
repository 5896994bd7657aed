//! Messages on their way.

use std::collections::VecDeque;

use super::Network;
use crate::rng::Rng;

/// A message takes so long at least, with the worker's tick, in ticks, and up to so much more.
const DELAY_TICKS: u64 = 2;
const JITTER_TICKS: u32 = 4;
/// So much later comes what comes a second time.
const AGAIN_TICKS: u64 = 40;

/// Messages of one direction, in the order in which they were sent.
#[derive(Debug)]
pub(super) struct Mail<T> {
    flying: VecDeque<(u64, usize, T)>,
}

impl<T> Default for Mail<T> {
    fn default() -> Self {
        Self { flying: VecDeque::new() }
    }
}

impl<T: Copy> Mail<T> {
    /// Sends a message from or to a proxy. It does not arrive at all, arrives once, or twice.
    pub(super) fn send(&mut self, tick: u64, proxy: usize, message: T, network: &Network, rng: &mut Rng) {
        let is_lost = rng.unit() < network.loss;
        let is_doubled = rng.unit() < network.duplication;
        let due = tick + DELAY_TICKS + u64::from(rng.below(JITTER_TICKS));
        if is_lost {
            return;
        }
        self.flying.push_back((due, proxy, message));
        if is_doubled {
            self.flying.push_back((due + AGAIN_TICKS, proxy, message));
        }
    }

    /// The messages that arrive by `tick`.
    pub(super) fn arrived(&mut self, tick: u64) -> Vec<(usize, T)> {
        let (due, later): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.flying).into_iter().partition(|(due, ..)| *due <= tick);
        self.flying = later;
        due.into_iter().map(|(_, proxy, message)| (proxy, message)).collect()
    }
}
