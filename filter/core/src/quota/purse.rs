//! What a worker may spend: a bucket for each class, filled at the rates in force.

use core::time::Duration;

use super::{CLASSES, PerClass};
use crate::time::Timestamp;

/// Time in which what a class gets pays the debt of a request: one that would take longer does not pass.
pub const MAX_DEBT: Duration = Duration::from_secs(60);

/// Credit of one worker. Together the purses of all workers hold at most the rates in force for `burst` seconds.
///
/// What a class does not use flows over to the others, the more important first. A request that costs more than its class can save passes
/// when the class has saved all that it can; the rest is a debt, which is paid before anything else of the class passes.
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

    /// Whether a request of `class` at `cost` may pass when `rates` are in force: there is as much, or there is all that the class can save in
    /// `burst_s` seconds and its rate gives the rest within [`MAX_DEBT`].
    #[must_use]
    pub fn covers(&self, class: usize, cost: f64, rates: &PerClass, burst_s: f64) -> bool {
        let (Some(saved), Some(rate)) = (self.saved.get(class), rates.get(class)) else { return false };
        let room = rate * burst_s;
        *saved >= cost || (*saved > 0.0 && *saved >= room && cost - saved <= rate * MAX_DEBT.as_secs_f64())
    }

    /// Takes `cost` for a request of `class` that it [`covers`](Self::covers).
    pub fn take(&mut self, class: usize, cost: f64) {
        self.put_back(class, -cost);
    }

    /// What all classes owe.
    #[must_use]
    pub fn debt(&self) -> f64 {
        self.saved.iter().map(|saved| (-saved).max(0.0)).sum()
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
