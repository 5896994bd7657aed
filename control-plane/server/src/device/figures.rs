//! What a device reports: plain figures with their units in the names. The same names stand in tapes and in `/throttle/status`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Most processes of a device that are listed, the largest first.
pub const MAX_PROCESSES: usize = 64;

/// What changes from one request to the next: one device at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSample {
    /// Index by which the driver lists the device; it may change with a reboot.
    pub index: u32,
    /// Identity of the device.
    pub uuid: Arc<str>,
    /// Product name.
    pub name: Arc<str>,
    /// Memory that processes use, in bytes.
    pub memory_used_bytes: u64,
    /// Memory that the driver keeps for itself, in bytes.
    pub memory_reserved_bytes: u64,
    /// Installed memory, in bytes.
    pub memory_total_bytes: u64,
    /// How hard it works.
    #[serde(flatten)]
    pub activity: DeviceActivity,
}

/// How hard a device works, and what holds it down. A figure that the device does not report is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceActivity {
    /// Time in which at least one kernel ran, over the driver's own period of 1/6 s to 1 s, in percent. One small kernel without
    /// end is 100 %: it says that the device is in use, not that it is full.
    pub kernel_active_percent: Option<u32>,
    /// Time in which memory was read or written, over the same period, in percent.
    pub memory_active_percent: Option<u32>,
    /// Clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory, in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// What holds the clocks down.
    pub throttle_reasons: Option<ThrottleReasons>,
    /// Power drawn, in milliwatts: since Ampere the mean of the last second.
    pub power_milliwatts: Option<u32>,
    /// Temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Temperature of the memory, in degrees Celsius.
    pub memory_temperature_celsius: Option<u32>,
    /// Critical XID errors since the source began to listen; `None` where nobody listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid_events: Option<u64>,
    /// Number of the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_xid: Option<u64>,
    /// Number of the last one after which the device is not to be trusted until it has been reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fatal_xid: Option<u64>,
}

/// What a device says when it is asked: its figures, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DeviceReading {
    /// It does not answer. The other devices do.
    Lost(LostDevice),
    /// It answers.
    Sample(DeviceSample),
}

/// A device that was there and does not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostDevice {
    /// Index by which the driver lists or listed it.
    pub index: u32,
    /// Identity; empty when it was never known.
    pub uuid: Arc<str>,
    /// Product name; empty when it was never known.
    pub name: Arc<str>,
    /// What the driver says.
    pub lost: String,
}

/// Limits, health and tenants of a device: what changes seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceDetail {
    /// Identity of the device.
    pub uuid: String,
    /// Highest clock of the multiprocessors, in MHz.
    pub sm_clock_max_mhz: Option<u32>,
    /// Highest clock of the memory, in MHz.
    pub memory_clock_max_mhz: Option<u32>,
    /// Power limit in force, in milliwatts.
    pub power_limit_milliwatts: Option<u32>,
    /// Temperature of the chip above which it may fall below its base clock, in degrees Celsius.
    pub temperature_max_celsius: Option<u32>,
    /// Temperature of the chip at which the hardware slows it down, in degrees Celsius.
    pub temperature_slowdown_celsius: Option<u32>,
    /// Temperature of the chip at which it shuts down, in degrees Celsius.
    pub temperature_shutdown_celsius: Option<u32>,
    /// Temperature of the memory at which the driver slows the device down, in degrees Celsius.
    pub memory_temperature_max_celsius: Option<u32>,
    /// Corrected ECC errors since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Uncorrected ECC errors since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Memory rows replaced because of correctable errors.
    pub rows_remapped_correctable: Option<u64>,
    /// Memory rows replaced because of uncorrectable errors.
    pub rows_remapped_uncorrectable: Option<u64>,
    /// Whether a row waits for the next reset to be replaced: the device should be drained.
    pub row_remap_pending: Option<bool>,
    /// Whether a row could not be replaced: the device should be exchanged.
    pub row_remap_failed: Option<bool>,
    /// Errors of all NVLinks of the device since the driver was loaded: flits and data whose checksum was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink_crc_errors: Option<u64>,
    /// Transfers that the NVLinks had to repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink_replay_errors: Option<u64>,
    /// Times that an NVLink had to be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink_recovery_errors: Option<u64>,
    /// Whether the device is partitioned by MIG.
    pub mig_enabled: Option<bool>,
    /// UUID of the device that this MIG instance is a part of; `None` for a whole device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig_parent: Option<String>,
    /// Processes with a compute context.
    pub compute_processes: Option<usize>,
    /// The largest [`MAX_PROCESSES`] of them.
    pub processes: Option<Vec<DeviceProcess>>,
}

/// A process with a compute context on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProcess {
    /// Its id in the namespace of the driver, which may be another than this program's.
    pub pid: u32,
    /// Its name; `None` where the driver does not tell, as in a container without the host's process ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Memory that it uses, in bytes; `None` where the driver does not tell, as in a container without the host's process ids.
    pub memory_used_bytes: Option<u64>,
}

/// The software that answers for the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriverInfo {
    /// Version of the driver.
    pub driver_version: Option<String>,
    /// Version of the NVML library.
    pub nvml_version: Option<String>,
    /// Newest CUDA version that the driver serves, as major × 1000 + minor × 10.
    pub cuda_version: Option<u32>,
}

/// What holds the clocks down; idleness is no reason. Serialized as a list of stable names.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<&'static str>", try_from = "Vec<String>")]
pub struct ThrottleReasons(u16);

/// A name that is no throttle reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no throttle reason")]
pub struct UnknownReason(String);

// === impl DeviceReading ===

impl DeviceReading {
    /// The figures, when the device answers.
    pub fn sample(&self) -> Option<&DeviceSample> {
        match self {
            Self::Sample(sample) => Some(sample),
            Self::Lost(_) => None,
        }
    }
}

// === impl ThrottleReasons ===

impl ThrottleReasons {
    /// The clocks that someone has set.
    pub const APPLICATIONS_CLOCKS_SETTING: Self = Self(1);
    /// The driver keeps to the power limit.
    pub const SW_POWER_CAP: Self = Self(1 << 1);
    /// The hardware halves the clocks or more: heat, power brake or fast power draw.
    pub const HW_SLOWDOWN: Self = Self(1 << 2);
    /// The clocks follow those of other devices.
    pub const SYNC_BOOST: Self = Self(1 << 3);
    /// The driver keeps chip or memory below their highest operating temperature.
    pub const SW_THERMAL_SLOWDOWN: Self = Self(1 << 4);
    /// The hardware is too hot.
    pub const HW_THERMAL_SLOWDOWN: Self = Self(1 << 5);
    /// The power supply asks for less.
    pub const HW_POWER_BRAKE_SLOWDOWN: Self = Self(1 << 6);
    /// The clocks that a display needs.
    pub const DISPLAY_CLOCK_SETTING: Self = Self(1 << 7);

    /// Each reason and its name.
    const NAMES: [(Self, &'static str); 8] = [
        (Self::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (Self::SW_POWER_CAP, "sw_power_cap"),
        (Self::HW_SLOWDOWN, "hw_slowdown"),
        (Self::SYNC_BOOST, "sync_boost"),
        (Self::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (Self::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (Self::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (Self::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];

    /// What slows a device down because it must not go on as it does: heat, the power brake, the hardware's own protection. The power
    /// limit is not among them: a busy device is held by it all day.
    pub const SLOWDOWN: Self =
        Self(Self::HW_SLOWDOWN.0 | Self::SW_THERMAL_SLOWDOWN.0 | Self::HW_THERMAL_SLOWDOWN.0 | Self::HW_POWER_BRAKE_SLOWDOWN.0);

    /// The reasons as bits, in the order of the constants.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The reasons that `bits` stand for; bits without a name are left out.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits & 0xff)
    }

    /// Whether any of `reasons` is among these.
    pub fn intersects(self, reasons: Self) -> bool {
        self.0 & reasons.0 != 0
    }

    /// Whether all of `reasons` are among these.
    pub fn contains(self, reasons: Self) -> bool {
        self.0 & reasons.0 == reasons.0
    }

    /// These and `reasons`.
    #[must_use]
    pub fn with(self, reasons: Self) -> Self {
        Self(self.0 | reasons.0)
    }

    /// The names of the reasons.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(reason, _)| self.contains(*reason)).map(|(_, name)| name)
    }
}

impl std::fmt::Debug for ThrottleReasons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl From<ThrottleReasons> for Vec<&'static str> {
    fn from(reasons: ThrottleReasons) -> Self {
        reasons.names().collect()
    }
}

impl TryFrom<Vec<String>> for ThrottleReasons {
    type Error = UnknownReason;

    fn try_from(names: Vec<String>) -> Result<Self, UnknownReason> {
        names.into_iter().try_fold(Self::default(), |reasons, name| {
            let known = Self::NAMES.into_iter().find(|(_, known)| *known == name);
            known.map(|(reason, _)| reasons.with(reason)).ok_or(UnknownReason(name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_reasons_are_a_list_of_names_outside() {
        let reasons = ThrottleReasons::SW_POWER_CAP.with(ThrottleReasons::HW_THERMAL_SLOWDOWN);
        let text = serde_json::to_string(&reasons).unwrap();
        assert_eq!(text, r#"["sw_power_cap","hw_thermal_slowdown"]"#);
        assert_eq!(serde_json::from_str::<ThrottleReasons>(&text).unwrap(), reasons);
        let error = serde_json::from_str::<ThrottleReasons>(r#"["bad_mood"]"#).unwrap_err().to_string();
        assert!(error.contains("`bad_mood` is no throttle reason"), "{error}");
    }

    #[test]
    fn a_figure_that_a_tape_lacks_is_not_reported() {
        let text =
            r#"{"index": 0, "uuid": "GPU-1", "name": "x", "memory_used_bytes": 1, "memory_reserved_bytes": 0, "memory_total_bytes": 2}"#;
        let sample: DeviceSample = serde_json::from_str(text).unwrap();
        assert_eq!(sample.activity, DeviceActivity::default());
    }
}
