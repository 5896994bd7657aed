//! What a worker may spend: a bucket for each class, filled at the rates in force.

use core::time::Duration;

use super::{Allowance, CLASSES, PerClass};
use crate::time::Timestamp;

/// Time in which what a class gets pays the debt of a request: one that would take longer does not pass.
pub const MAX_DEBT: Duration = Duration::from_secs(60);

/// Credit of one worker. Together the purses of all workers hold at most what the leases in force allow to save.
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

    /// Fills it for the time since it was last filled at the rates of `allowance`, what is in force now, and takes away what is more than may be
    /// saved. Call it before the allowance changes with the old one, and after with the new one: what has risen gives something from then on.
    pub fn settle(&mut self, now: Timestamp, allowance: &Allowance) {
        let elapsed_s = now.since(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        let rooms = allowance.rooms();
        let mut over = 0.0;
        for ((saved, rate), room) in self.saved.iter_mut().zip(&allowance.rates).zip(&rooms) {
            *saved += rate * elapsed_s;
            over += (*saved - room).max(0.0);
            *saved = saved.min(*room);
        }
        if over > 0.0 {
            for (saved, room) in self.saved.iter_mut().zip(&rooms) {
                let given = (room - *saved).clamp(0.0, over);
                *saved += given;
                over -= given;
            }
        }
    }

    /// Whether a request of `class` at `cost` may pass while `allowance` is in force: there is as much, or there is all that the class can save
    /// and its rate gives the rest within [`MAX_DEBT`].
    #[must_use]
    pub fn covers(&self, class: usize, cost: f64, allowance: &Allowance) -> bool {
        let (Some(saved), Some(rate)) = (self.saved.get(class), allowance.rates.get(class)) else { return false };
        let has_all = || allowance.rooms().get(class).is_some_and(|room| *saved >= *room);
        *saved >= cost || (*saved > 0.0 && cost - saved <= rate * MAX_DEBT.as_secs_f64() && has_all())
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

    /// What all classes have, less what they owe.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.saved.iter().sum()
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
