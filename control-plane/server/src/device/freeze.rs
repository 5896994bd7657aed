//! Frozen figures: a value that cannot be constant is.
//!
//! A busy device's power, clocks and temperatures never say the same twice for long, an idle one's hardly: on an H200 asked every
//! 100 ms no two samples under load were equal, and no three when idle (`tests/tapes/h200.jsonl`). How long a device usually stays the
//! same is learned, for busy and idle each; one that stays the same three times as long has stopped telling. A device whose figures
//! never changed, such as one without a power meter, is never called frozen: nothing is known of it.

use std::time::Duration;

use headgate_core::time::Timestamp;

use super::DeviceSample;

/// Changes that must have been seen before the absence of one means anything.
const LEAST_CHANGES: u32 = 30;
/// How much longer than ever before a device must have stayed the same.
const FACTOR: u32 = 3;
/// Shortest and longest time that counts as ever before: three periods at 10 Hz are the least that can be told from a pause.
const KNOWN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Watches one device.
#[derive(Clone, Debug)]
pub(super) struct FreezeWatch {
    last: DeviceSample,
    changed_at: Timestamp,
    /// Idle and busy.
    usual: [Usual; 2],
}

/// How long the device stays the same.
#[derive(Clone, Copy, Debug)]
struct Usual {
    changes: u32,
    longest: Duration,
}

// === impl FreezeWatch ===

impl FreezeWatch {
    /// Begins with a first sample.
    pub(super) fn new(at: Timestamp, sample: &DeviceSample) -> Self {
        Self { last: sample.clone(), changed_at: at, usual: [Usual { changes: 0, longest: KNOWN.0 }; 2] }
    }

    /// Takes in a sample that was asked for at `at`; says whether the device is frozen.
    pub(super) fn observe(&mut self, at: Timestamp, sample: &DeviceSample) -> bool {
        let since = at.since(self.changed_at);
        let usual = &mut self.usual[usize::from(is_busy(&self.last))];
        if self.last.activity == sample.activity && self.last.memory_used_bytes == sample.memory_used_bytes {
            return usual.changes >= LEAST_CHANGES && since > usual.longest * FACTOR;
        }
        usual.longest = usual.longest.max(since).min(KNOWN.1);
        usual.changes = usual.changes.saturating_add(1);
        self.last.clone_from(sample);
        self.changed_at = at;
        false
    }
}

fn is_busy(sample: &DeviceSample) -> bool {
    sample.activity.kernel_active_percent.is_some_and(|percent| percent > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceActivity;

    fn sample(power: u32, active: u32) -> DeviceSample {
        let activity = DeviceActivity { power_milliwatts: Some(power), kernel_active_percent: Some(active), ..DeviceActivity::default() };
        DeviceSample { activity, ..DeviceSample::default() }
    }

    /// A watch that has seen 100 changes of a device, 100 ms apart, until 10 s.
    fn seasoned(active: u32) -> FreezeWatch {
        let mut watch = FreezeWatch::new(Timestamp::ZERO, &sample(0, active));
        for n in 1..=100 {
            assert!(!watch.observe(Timestamp::from_millis(u64::from(n) * 100), &sample(n, active)));
        }
        watch
    }

    #[test]
    fn a_busy_device_that_says_the_same_for_more_than_three_periods_is_frozen() {
        let mut watch = seasoned(99);
        let frozen: Vec<bool> = (1..=5).map(|n| watch.observe(Timestamp::from_millis(10_000 + n * 100), &sample(100, 99))).collect();
        assert_eq!(frozen, [false, false, false, true, true]);
        assert!(!watch.observe(Timestamp::from_millis(10_600), &sample(101, 99)), "it thaws with the first change");
    }

    #[test]
    fn a_device_that_never_changes_is_not_known_to_be_frozen() {
        let mut watch = FreezeWatch::new(Timestamp::ZERO, &sample(70_000, 0));
        assert!((1..=600).all(|n| !watch.observe(Timestamp::from_millis(n * 100), &sample(70_000, 0))));
    }

    #[test]
    fn what_is_long_when_busy_is_not_long_when_idle() {
        let mut watch = seasoned(99);
        assert!(!watch.observe(Timestamp::from_millis(10_100), &sample(1, 0)));
        assert!(!watch.observe(Timestamp::from_millis(14_100), &sample(1, 0)), "of idleness nothing is known yet");
    }
}
