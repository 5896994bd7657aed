//! The state file of the NVML shim: what the GPUs of a test machine say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The variable by which the shim finds its state file.
pub const STATE_VARIABLE: &str = "HEADGATE_NVML_SHIM_STATE";

/// One device, with NVML's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NvmlDevice {
    /// `GPU-` and a UUID.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Memory of the device.
    pub memory_total_bytes: u64,
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Memory that the driver keeps for itself.
    pub memory_reserved_bytes: u64,
    /// Share of the time in which a kernel ran.
    pub gpu_utilization_percent: u32,
    /// Share of the time in which memory was read or written.
    pub memory_utilization_percent: u32,
    /// Temperature.
    pub temperature_c: u32,
    /// Power drawn.
    pub power_mw: u32,
    /// Power limit.
    pub power_limit_mw: u32,
    /// Clock of the multiprocessors.
    pub sm_clock_mhz: u32,
    /// Its highest value.
    pub sm_clock_max_mhz: u32,
    /// Clock of the memory.
    pub mem_clock_mhz: u32,
    /// `nvmlClocksEventReasons*` as a bit set.
    pub throttle_reasons: u64,
    /// Whether it has fallen off the bus.
    pub lost: bool,
    /// Every critical XID since the driver was loaded.
    pub xid_errors: Vec<u64>,
}

impl NvmlDevice {
    /// An 80 GiB device number `index`, using `used_percent` of its memory, otherwise idle.
    #[must_use]
    pub fn with_memory_used(index: u8, used_percent: f64) -> Self {
        let total: u64 = 80 << 30;
        Self {
            uuid: format!("GPU-00000000-0000-4000-8000-0000000000{index:02x}"),
            name: "Headgate Test GPU".to_owned(),
            memory_total_bytes: total,
            memory_used_bytes: (total as f64 * used_percent / 100.0).round() as u64,
            memory_reserved_bytes: 0,
            gpu_utilization_percent: 10,
            memory_utilization_percent: 10,
            temperature_c: 40,
            power_mw: 72_000,
            power_limit_mw: 700_000,
            sm_clock_mhz: 1980,
            sm_clock_max_mhz: 1980,
            mem_clock_mhz: 2619,
            throttle_reasons: 0,
            lost: false,
            xid_errors: Vec::new(),
        }
    }
}

/// The state file. The shim reads it at every query, so a write is a change of the machine.
#[derive(Clone, Debug)]
pub struct NvmlState {
    path: PathBuf,
}

#[derive(Serialize)]
struct Contents<'a> {
    driver_version: &'static str,
    devices: &'a [NvmlDevice],
}

impl NvmlState {
    /// The state file at `path`, with these devices in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, devices: &[NvmlDevice]) -> Result<Self> {
        let state = Self { path: path.to_owned() };
        state.set(devices)?;
        Ok(state)
    }

    /// A state file that another program writes.
    #[must_use]
    pub fn written_by_another(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces all devices in one step: a reader sees the old state or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, devices: &[NvmlDevice]) -> Result<()> {
        let text = serde_json::to_vec(&Contents { driver_version: "570.00.00", devices })?;
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &self.path).with_context(|| format!("cannot replace {}", self.path.display()))
    }

    /// One device that uses `used_percent` of its memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_memory_used(&self, used_percent: f64) -> Result<()> {
        self.set(&[NvmlDevice::with_memory_used(0, used_percent)])
    }
}
