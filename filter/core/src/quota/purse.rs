//! What a worker may spend: a bucket for each class, filled at the rates in force.

use super::{CLASSES, PerClass};
use crate::time::Timestamp;

/// Credit of one worker. Together the purses of all workers hold at most the rates in force for `burst` seconds.
///
/// What a class does not use flows over to the others, the more important first. A purse makes no debts: a request that costs more than
/// its class can save never passes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Purse {
    saved: PerClass,
    filled_at: Timestamp,
}

// === impl Purse ===

impl Purse {
    /// An empty purse.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self { saved: [0.0; CLASSES], filled_at: now }
    }

    /// Fills it for the time since it was last filled with `rates`, those in force now, and takes away what is more than `burst_s` seconds of
    /// them. Call it before the rates change with the old ones, and after with the new ones: what a rate that has risen gives begins then.
    pub fn settle(&mut self, now: Timestamp, rates: &PerClass, burst_s: f64) {
        let elapsed_s = now.since(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        let mut over = 0.0;
        for (saved, rate) in self.saved.iter_mut().zip(rates) {
            *saved += rate * elapsed_s;
            let room = rate * burst_s;
            over += (*saved - room).max(0.0);
            *saved = saved.min(room);
        }
        if over > 0.0 {
            for (saved, rate) in self.saved.iter_mut().zip(rates) {
                let given = (rate * burst_s - *saved).clamp(0.0, over);
                *saved += given;
                over -= given;
            }
        }
    }

    /// Takes `cost` for a request of `class`; false, and nothing is taken, when there is less.
    pub fn take(&mut self, class: usize, cost: f64) -> bool {
        match self.saved.get_mut(class) {
            Some(saved) if *saved >= cost => {
                *saved -= cost;
                true
            }
            _ => false,
        }
    }

    /// What a class has.
    #[must_use]
    pub fn saved(&self, class: usize) -> f64 {
        self.saved.get(class).copied().unwrap_or(0.0)
    }

    /// Gives back what was taken and not used after all, or more than needed; what there is no room for is lost at the next [`Self::settle`].
    pub fn put_back(&mut self, class: usize, amount: f64) {
        if let Some(saved) = self.saved.get_mut(class) {
            *saved += amount;
        }
    }
}
