//! The network between proxies and control plane, and what goes wrong.

use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::controller::{Link, Site};
use crate::rng::Rng;

/// A duration drawn for each use: `minimum + Exp(mean − minimum)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Shortest.
    pub minimum: Duration,
    /// Mean.
    pub mean: Duration,
}

impl Spread {
    /// One draw.
    pub fn draw(&self, rng: &mut Rng) -> Duration {
        let excess = self.mean.saturating_sub(self.minimum).as_secs_f64();
        self.minimum + Duration::from_secs_f64(excess * rng.exponential())
    }
}

/// The network between proxies and control plane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Delay of a message, one way.
    pub delay: Spread,
    /// Part of the messages that is lost once and sent again, `0..1`: streams run over TCP, so loss is delay.
    pub loss: f64,
    /// Time after which a lost message is sent again.
    pub retransmit_after: Duration,
}

impl Default for Network {
    /// One zone: 0.3 ms at least, 0.5 ms on average, no loss; TCP's smallest retransmission time-out of Linux, 200 ms.
    fn default() -> Self {
        Self {
            delay: Spread { minimum: Duration::from_micros(300), mean: Duration::from_micros(500) },
            loss: 0.0,
            retransmit_after: Duration::from_millis(200),
        }
    }
}

impl Network {
    pub(crate) fn link(&self, now: Timestamp, proxy: u16, faults: &[FaultAt], rng: &mut Rng) -> Link {
        let is_cut = |at: &FaultAt| match at.fault {
            Fault::ControlCut { proxies, lasts } => {
                let begins = Timestamp::ZERO + at.at;
                proxy < proxies && now >= begins && now < begins + lasts
            }
            _ => false,
        };
        if faults.iter().any(is_cut) {
            return Link::Down;
        }
        let mut delay = self.delay.draw(rng);
        let mut timeout = self.retransmit_after;
        while self.loss > 0.0 && rng.unit() < self.loss.min(0.99) {
            delay += timeout;
            timeout *= 2;
        }
        Link::Up(delay)
    }
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultAt {
    /// Virtual time since the beginning.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The first `proxies` proxies cannot reach the control plane.
    ControlCut {
        /// How many.
        proxies: u16,
        /// How long.
        lasts: Duration,
    },
    /// An engine is gone with everything that it serves; it comes back empty.
    EngineLost {
        /// Index of the engine.
        engine: u16,
        /// How long.
        lasts: Duration,
    },
    /// An engine's steps take longer from now on, as under thermal throttling.
    Derate {
        /// Index of the engine.
        engine: u16,
        /// Factor on the duration of a step; 1 is full speed.
        factor: f64,
    },
    /// A worker's VM restarts: its state is gone and what waits in it fails.
    WorkerRestart {
        /// Which.
        site: Site,
    },
}
