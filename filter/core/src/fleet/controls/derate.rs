//! Devices that can do less: rates and budgets follow at once, before latency tells.
//!
//! What a controller has learned is what the devices could do lately. When heat, an error or a loss takes a part of them away, what it
//! allows is too much by that part until it has learned anew, and while it learns, requests pile up. So the part is taken from what is
//! pushed, and given back as the learning catches up: the factor is the capacity now over the capacity that was usual lately.

use core::time::Duration;

use crate::time::Timestamp;

/// Time in which the estimators forget what the devices could do before.
const MEMORY: Duration = Duration::from_secs(20);
/// Least factor: a pool that is given nothing shows nothing.
const LEAST: f64 = 0.05;

/// The capacity that was usual lately.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Derate {
    usual: Option<(f64, Timestamp)>,
}

impl Derate {
    /// Takes in the part of the devices that can be trusted with work, 0 to 1; gives the factor on rates and budgets.
    pub(super) fn step(&mut self, now: Timestamp, capacity: f64) -> f64 {
        let (usual, at) = self.usual.unwrap_or((capacity, now));
        let weight = (now.since(at).as_secs_f64() / MEMORY.as_secs_f64()).min(1.0);
        // More than usual is believed at once: it takes nothing away.
        let usual = if capacity >= usual { capacity } else { usual + weight * (capacity - usual) };
        self.usual = Some((usual, now));
        if usual > 0.0 { (capacity / usual).clamp(LEAST, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_devices_take_half_at_once_and_give_it_back_as_the_rest_is_learned() {
        let mut derate = Derate::default();
        let mut at = |ms: u64, capacity: f64| derate.step(Timestamp::from_millis(ms), capacity);
        assert_eq!((at(0, 1.0), at(100, 1.0)), (1.0, 1.0));
        let first = at(200, 0.5);
        assert!((0.5..0.51).contains(&first), "{first}");
        let later: f64 = (3..=1000).map(|n| at(n * 100, 0.5)).fold(0.0, f64::max);
        assert!((0.99..=1.0).contains(&later), "{later}");
        assert_eq!(at(100_100, 1.0), 1.0, "what comes back is no boost");
    }

    #[test]
    fn a_pool_without_any_sound_device_is_still_given_a_little() {
        let mut derate = Derate::default();
        assert_eq!(derate.step(Timestamp::ZERO, 1.0), 1.0);
        assert_eq!(derate.step(Timestamp::from_millis(100), 0.0), LEAST);
    }
}
