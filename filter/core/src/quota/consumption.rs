//! Whether a proxy uses what it is granted: what it says to be asked for is only its word.

/// Time over which it is looked at, in seconds.
const MEMORY_S: f64 = 2.0;
/// Part of what it could use that it has to use to be believed. Whoever is asked for more than it has uses or saves all of it.
const LEAST: f64 = 0.5;

/// What a proxy could use of its grants and what it does, in the quota's unit per second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Consumption {
    could: f64,
    taken: f64,
}

// === impl Consumption ===

impl Consumption {
    /// Counts `elapsed_s` seconds in which it could use `could` a second and used or saved `taken`.
    pub(super) fn observe(&mut self, elapsed_s: f64, could: f64, taken: f64) {
        let weight = 1.0 - libm::exp(-elapsed_s / MEMORY_S);
        self.could += (could - self.could) * weight;
        self.taken += (taken - self.taken) * weight;
    }

    /// What is believed of `asked`: all of it, unless it leaves unused what it says to need. Then it is twice what it uses, or `even`, the part
    /// that everybody has a right to.
    pub(super) fn believed(&self, asked: f64, even: f64) -> f64 {
        if self.taken >= LEAST * self.could { asked } else { asked.min(even.max(self.taken / LEAST)) }
    }
}
