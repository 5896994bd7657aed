//! What a device can be trusted with: all of its work, a part of it, or none.
//!
//! - **Ejected**: it is lost; an XID error says that it computes wrong or not at all; memory had uncorrectable errors since the driver
//!   was loaded; a row could not be replaced. All of these end with a reset of the device.
//! - **Derated**: heat, the power brake or the hardware's own protection hold the clocks down. What is left is the clock over the one
//!   that the device had lately when it was busy and not held down so. The highest clock is no measure: a busy H200 runs at three
//!   quarters of it all day, held by its power limit.
//! - **A row that waits to be replaced** is neither. The driver has taken its page out of use, so until the reset that replaces it the device
//!   computes right and at full speed; where the error behind it was not corrected, that error ejects. Ejecting for the rest would take a
//!   sound device out for what a reset in a quiet hour mends. Source: NVIDIA, "GPU Memory Error Management", row remapping.

use std::fmt;

use super::{DeviceActivity, DeviceDetail, DeviceSample, ThrottleReasons};

/// Weight of a sample in the usual clock: 5 s at 10 Hz.
const USUAL_WEIGHT: f64 = 0.02;
/// Weight of a sample in the clock now: it jumps from sample to sample, the verdict should not.
const NOW_WEIGHT: f64 = 0.3;
/// Kernel-active time from which on a clock is that of a busy device, in percent: an idle one lowers it by itself.
const BUSY_PERCENT: u32 = 50;
/// Least capacity of a device that works.
const LEAST_CAPACITY: f64 = 0.1;

/// XIDs after which a device computes wrong or not at all until it is reset: engine stopped (46), uncorrected ECC (48), power state
/// (62), row remapping failed (64), NVLink (74), off the bus (79), uncontained ECC (95), interrupt gone (110), GSP processor (119,
/// 120), unrecovered ECC (140). Others are of one program (13, 31, 43, 45) or were contained (94). Source: NVIDIA's catalogue of XIDs.
const FATAL_XIDS: [u64; 11] = [46, 48, 62, 64, 74, 79, 95, 110, 119, 120, 140];

/// Whether a device is not to be trusted after that XID until it has been reset.
pub(super) fn is_fatal_xid(xid: u64) -> bool {
    FATAL_XIDS.contains(&xid)
}

/// What a device can be trusted with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Verdict {
    /// All of its work.
    #[default]
    Sound,
    /// A part of its work.
    Derated {
        /// Which part, above 0 and below 1.
        capacity: f64,
        /// Why.
        because: Derating,
    },
    /// None.
    Ejected(Ejection),
}

/// Why a device does less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derating {
    /// It is too hot.
    Heat,
    /// The power supply asks for less.
    PowerBrake,
    /// The hardware protects itself and does not say from what.
    Hardware,
}

/// Why a device does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// It does not answer.
    Lost,
    /// This XID error.
    Xid(u64),
    /// So many uncorrected memory errors since the driver was loaded.
    Ecc(u64),
    /// A memory row could not be replaced.
    RowRemapFailed,
}

/// The clocks of one device, as the verdict remembers them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClockMemory {
    usual_mhz: Option<f64>,
    now_mhz: Option<f64>,
}

// === impl Verdict ===

impl Verdict {
    /// The part of its work that the device can be trusted with, 0 to 1.
    pub fn capacity(self) -> f64 {
        match self {
            Self::Sound => 1.0,
            Self::Derated { capacity, .. } => capacity,
            Self::Ejected(_) => 0.0,
        }
    }

    /// `sound`, `derated` or `ejected`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Derated { .. } => "derated",
            Self::Ejected(_) => "ejected",
        }
    }

    /// Why, in words; empty for a sound device.
    pub fn reason(self) -> String {
        match self {
            Self::Sound => String::new(),
            Self::Derated { because, .. } => because.to_string(),
            Self::Ejected(because) => because.to_string(),
        }
    }
}

impl fmt::Display for Derating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heat => "held down by heat",
            Self::PowerBrake => "held down by the power brake",
            Self::Hardware => "held down by the hardware",
        })
    }
}

impl fmt::Display for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("is lost"),
            Self::Xid(xid) => write!(f, "XID {xid}"),
            Self::Ecc(errors) => write!(f, "{errors} uncorrected memory errors"),
            Self::RowRemapFailed => f.write_str("a memory row could not be replaced"),
        }
    }
}

// === impl ClockMemory ===

impl ClockMemory {
    /// Takes in a sample and judges the device by it and its details.
    pub(super) fn judge(&mut self, sample: &DeviceSample, detail: Option<&DeviceDetail>) -> Verdict {
        self.remember(&sample.activity);
        if let Some(ejection) = ejection(&sample.activity, detail) {
            return Verdict::Ejected(ejection);
        }
        let Some(because) = sample.activity.throttle_reasons.and_then(derating) else { return Verdict::Sound };
        let highest = detail.and_then(|detail| detail.sm_clock_max_mhz).map(f64::from);
        match (self.now_mhz, self.usual_mhz.or(highest)) {
            (Some(now), Some(usual)) if now < usual => Verdict::Derated { capacity: (now / usual).max(LEAST_CAPACITY), because },
            _ => Verdict::Sound,
        }
    }

    fn remember(&mut self, activity: &DeviceActivity) {
        let Some(clock) = activity.sm_clock_mhz.map(f64::from) else { return };
        self.now_mhz = Some(self.now_mhz.map_or(clock, |now| now + NOW_WEIGHT * (clock - now)));
        let is_busy = activity.kernel_active_percent.is_some_and(|percent| percent >= BUSY_PERCENT);
        let is_free = activity.throttle_reasons.is_some_and(|reasons| !reasons.intersects(ThrottleReasons::SLOWDOWN));
        if is_busy && is_free {
            self.usual_mhz = Some(self.usual_mhz.map_or(clock, |usual| usual + USUAL_WEIGHT * (clock - usual)));
        }
    }
}

fn ejection(activity: &DeviceActivity, detail: Option<&DeviceDetail>) -> Option<Ejection> {
    if let Some(xid) = activity.fatal_xid {
        return Some(Ejection::Xid(xid));
    }
    let detail = detail?;
    if detail.row_remap_failed == Some(true) {
        return Some(Ejection::RowRemapFailed);
    }
    detail.ecc_uncorrected.filter(|errors| *errors > 0).map(Ejection::Ecc)
}

fn derating(reasons: ThrottleReasons) -> Option<Derating> {
    const BY_CAUSE: [(ThrottleReasons, Derating); 4] = [
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, Derating::Heat),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, Derating::Heat),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, Derating::PowerBrake),
        (ThrottleReasons::HW_SLOWDOWN, Derating::Hardware),
    ];
    BY_CAUSE.into_iter().find(|(reason, _)| reasons.contains(*reason)).map(|(_, because)| because)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sm_clock_mhz: u32, reasons: ThrottleReasons) -> DeviceSample {
        let activity = DeviceActivity {
            kernel_active_percent: Some(99),
            sm_clock_mhz: Some(sm_clock_mhz),
            throttle_reasons: Some(reasons),
            ..DeviceActivity::default()
        };
        DeviceSample { activity, ..DeviceSample::default() }
    }

    #[test]
    fn heat_takes_the_part_of_the_usual_clock_and_the_power_limit_takes_nothing() {
        let detail = DeviceDetail { sm_clock_max_mhz: Some(1980), ..DeviceDetail::default() };
        let mut clocks = ClockMemory::default();
        for _ in 0..100 {
            assert_eq!(clocks.judge(&sample(1500, ThrottleReasons::SW_POWER_CAP), Some(&detail)), Verdict::Sound);
        }
        let hot = ThrottleReasons::SW_POWER_CAP.with(ThrottleReasons::SW_THERMAL_SLOWDOWN);
        let verdict = (0..30).map(|_| clocks.judge(&sample(750, hot), Some(&detail))).last().unwrap();
        assert_eq!((verdict.word(), verdict.reason().as_str()), ("derated", "held down by heat"));
        assert!((verdict.capacity() - 0.5).abs() < 0.01, "{verdict:?}");
        assert_eq!(clocks.judge(&sample(1500, ThrottleReasons::SW_POWER_CAP), Some(&detail)), Verdict::Sound, "and back at once");
    }

    #[test]
    fn a_device_that_was_never_seen_busy_is_measured_by_its_highest_clock() {
        let detail = DeviceDetail { sm_clock_max_mhz: Some(2000), ..DeviceDetail::default() };
        let verdict = ClockMemory::default().judge(&sample(500, ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN), Some(&detail));
        assert_eq!(verdict, Verdict::Derated { capacity: 0.25, because: Derating::PowerBrake });
    }

    #[test]
    fn broken_memory_and_fatal_xids_eject_and_programs_that_crash_do_not() {
        let mut sound = sample(1500, ThrottleReasons::default());
        sound.activity.last_xid = Some(13);
        let judge = |sample: &DeviceSample, detail: &DeviceDetail| ClockMemory::default().judge(sample, Some(detail));
        assert_eq!(judge(&sound, &DeviceDetail::default()), Verdict::Sound);
        let ecc = DeviceDetail { ecc_uncorrected: Some(2), ecc_corrected: Some(9), ..DeviceDetail::default() };
        assert_eq!(judge(&sound, &ecc), Verdict::Ejected(Ejection::Ecc(2)));
        let corrected = DeviceDetail { ecc_corrected: Some(9), ecc_uncorrected: Some(0), ..DeviceDetail::default() };
        assert_eq!(judge(&sound, &corrected), Verdict::Sound);
        let row = DeviceDetail { row_remap_failed: Some(true), ..DeviceDetail::default() };
        assert_eq!(judge(&sound, &row), Verdict::Ejected(Ejection::RowRemapFailed));
        sound.activity.fatal_xid = Some(79);
        assert_eq!(judge(&sound, &DeviceDetail::default()).reason(), "XID 79");
    }

    #[test]
    fn a_row_that_waits_to_be_replaced_costs_nothing_unless_its_error_was_not_corrected() {
        let sound = sample(1500, ThrottleReasons::default());
        let judge = |detail: DeviceDetail| ClockMemory::default().judge(&sound, Some(&detail));
        let pending = DeviceDetail { row_remap_pending: Some(true), rows_remapped_correctable: Some(1), ..DeviceDetail::default() };
        assert_eq!(judge(pending.clone()), Verdict::Sound);
        assert_eq!(judge(DeviceDetail { ecc_uncorrected: Some(1), ..pending }), Verdict::Ejected(Ejection::Ecc(1)));
    }
}
