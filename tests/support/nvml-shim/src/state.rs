//! The state file: what the shim knows about the machine.

use std::path::PathBuf;

use serde::Deserialize;

use crate::abi::Code;

/// Environment variable that names the state file.
pub const STATE_VARIABLE: &str = "HEADGATE_NVML_SHIM_STATE";

/// The whole file. Fields that are absent have the default here, or answer `NOT_SUPPORTED`; unknown ones are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct State {
    #[serde(default = "default_driver_version")]
    pub(crate) driver_version: String,
    #[serde(default = "default_nvml_version")]
    pub(crate) nvml_version: String,
    /// `major * 1000 + minor * 10`.
    #[serde(default = "default_cuda_driver_version")]
    pub(crate) cuda_driver_version: i32,
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
}

/// One device. Units are NVML's: bytes, percent, milliwatts, MHz, degrees Celsius, millijoules.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Device {
    /// Place in the file; set when the device is looked up.
    #[serde(skip)]
    pub(crate) index: u32,
    pub(crate) uuid: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) lost: bool,
    pub(crate) memory_total_bytes: Option<u64>,
    pub(crate) memory_used_bytes: Option<u64>,
    pub(crate) memory_reserved_bytes: u64,
    pub(crate) gpu_utilization_percent: Option<u32>,
    pub(crate) memory_utilization_percent: Option<u32>,
    pub(crate) temperature_c: Option<u32>,
    pub(crate) memory_temperature_c: Option<u32>,
    pub(crate) temperature_shutdown_c: Option<u32>,
    pub(crate) temperature_slowdown_c: Option<u32>,
    pub(crate) temperature_max_c: Option<u32>,
    pub(crate) memory_temperature_max_c: Option<u32>,
    pub(crate) power_mw: Option<u32>,
    pub(crate) power_limit_mw: Option<u32>,
    pub(crate) total_energy_mj: Option<u64>,
    pub(crate) sm_clock_mhz: Option<u32>,
    pub(crate) sm_clock_max_mhz: Option<u32>,
    pub(crate) mem_clock_mhz: Option<u32>,
    pub(crate) mem_clock_max_mhz: Option<u32>,
    pub(crate) video_clock_mhz: Option<u32>,
    pub(crate) video_clock_max_mhz: Option<u32>,
    /// Bits of `nvmlClocksEventReasons`.
    pub(crate) throttle_reasons: Option<u64>,
    pub(crate) ecc_errors_corrected: Option<u64>,
    pub(crate) ecc_errors_uncorrected: Option<u64>,
    pub(crate) rows_remapped_correctable: Option<u32>,
    pub(crate) rows_remapped_uncorrectable: Option<u32>,
    pub(crate) row_remap_pending: Option<bool>,
    pub(crate) row_remap_failed: Option<bool>,
    pub(crate) nvlink_crc_flit_errors: Option<u64>,
    pub(crate) nvlink_crc_data_errors: Option<u64>,
    pub(crate) nvlink_replay_errors: Option<u64>,
    pub(crate) nvlink_recovery_errors: Option<u64>,
    /// Every critical XID since the driver was loaded, in order; event sets deliver those that are added.
    pub(crate) xid_errors: Vec<u64>,
    /// 0 is off, 1 is on.
    pub(crate) mig_mode: Option<u32>,
    /// The MIG instances, by their index.
    pub(crate) mig_devices: Vec<MigDevice>,
    /// `nvmlPstates_t`, 0..=15.
    pub(crate) performance_state: Option<u32>,
    pub(crate) processes: Option<Vec<Process>>,
}

/// A MIG instance. What it does not have answers `NOT_SUPPORTED`, as on a real one: no clocks, no power, no utilization.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MigDevice {
    pub(crate) uuid: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) memory_total_bytes: Option<u64>,
    pub(crate) memory_used_bytes: Option<u64>,
    pub(crate) memory_reserved_bytes: u64,
    pub(crate) processes: Option<Vec<Process>>,
}

/// One compute process on a device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Absent is `NVML_VALUE_NOT_AVAILABLE`.
    #[serde(default)]
    pub(crate) used_memory_bytes: Option<u64>,
}

impl From<MigDevice> for Device {
    fn from(instance: MigDevice) -> Self {
        let MigDevice { uuid, name, memory_total_bytes, memory_used_bytes, memory_reserved_bytes, processes } = instance;
        Self { uuid, name, memory_total_bytes, memory_used_bytes, memory_reserved_bytes, processes, ..Self::default() }
    }
}

impl State {
    /// Whether the environment names a state file at all.
    pub(crate) fn is_named() -> bool {
        path().is_some()
    }

    /// The file as it is now.
    ///
    /// # Errors
    /// `UNKNOWN` when it is missing, unreadable or not understood: NVML has no code that says more.
    pub(crate) fn read() -> Result<State, Code> {
        let bytes = std::fs::read(path().ok_or(Code::UNKNOWN)?).map_err(|_| Code::UNKNOWN)?;
        serde_json::from_slice(&bytes).map_err(|_| Code::UNKNOWN)
    }
}

fn path() -> Option<PathBuf> {
    std::env::var_os(STATE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn default_driver_version() -> String {
    "580.95.05".into()
}

fn default_nvml_version() -> String {
    "13.580.95.05".into()
}

fn default_cuda_driver_version() -> i32 {
    13_000
}
