//! GPU telemetry: what a device reports, and the thread that asks.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::NvmlLibrary;

mod none;
#[cfg(feature = "nvml")]
mod nvml;
mod sampler;

pub use self::none::NoDevices;
pub use self::sampler::{DeviceState, Sampler, SamplerControl, SourceState};

/// Where device samples come from. Called on a thread of its own, since a driver call may block.
pub trait DeviceSource: Send {
    /// Name of the source, for example `nvml`.
    fn name(&self) -> &'static str;

    /// Memory of every device now: what the control loop acts on. Cheap, called up to 50 times a second.
    ///
    /// # Errors
    /// [`SampleError`] when a device or the driver is gone; the caller asks again later.
    fn sample(&mut self) -> Result<Vec<DeviceSample>, SampleError>;

    /// Everything else about every device: for people and metrics, called once a second. What a device does not report is `None`.
    ///
    /// # Errors
    /// As [`DeviceSource::sample`].
    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError>;
}

/// Memory of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// What a device reports besides its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDetail {
    /// Identity of the device.
    pub uuid: String,
    /// Time in which a kernel ran, over the driver's sampling period, in percent.
    pub utilization_percent: Option<u32>,
    /// Time in which memory was read or written, in percent.
    pub memory_utilization_percent: Option<u32>,
    /// Temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power drawn, in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// Power limit in force, in milliwatts.
    pub power_limit_milliwatts: Option<u32>,
    /// Clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Highest clock of the multiprocessors, in MHz.
    pub sm_clock_max_mhz: Option<u32>,
    /// Clock of the memory, in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Why clocks are held down, by stable names such as `sw_power_cap`; idleness is no reason.
    pub throttle_reasons: Option<Vec<String>>,
    /// Uncorrected ECC errors since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Whether the device is partitioned by MIG.
    pub mig_enabled: Option<bool>,
    /// Processes with a compute context.
    pub compute_processes: Option<u32>,
}

/// Why no sample could be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The library is missing or unusable.
    #[error("{library}: {problem}")]
    Library {
        /// The library.
        library: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The driver lists no device.
    #[error("the driver lists no GPU")]
    NoDevice,
    /// A device is gone.
    #[error("GPU {index} is lost: {problem}")]
    Lost {
        /// Its index.
        index: u32,
        /// What the driver says.
        problem: String,
    },
    /// Telemetry is switched off.
    #[error("GPU telemetry is switched off (--nvml-lib off)")]
    Off,
}

/// The source that the configuration names.
pub fn open(library: &NvmlLibrary) -> Box<dyn DeviceSource> {
    match library {
        NvmlLibrary::Off => Box::new(NoDevices::new(SampleError::Off)),
        #[cfg(feature = "nvml")]
        NvmlLibrary::Auto => Box::new(nvml::Nvml::new(None)),
        #[cfg(feature = "nvml")]
        NvmlLibrary::Path(path) => Box::new(nvml::Nvml::new(Some(path.clone()))),
        #[cfg(not(feature = "nvml"))]
        NvmlLibrary::Auto | NvmlLibrary::Path(_) => Box::new(NoDevices::new(SampleError::Library {
            library: "nvml".to_owned(),
            problem: "this build has no NVML support (feature `nvml`)".to_owned(),
        })),
    }
}

/// Shortest period between two samples.
pub const MIN_PERIOD: Duration = Duration::from_millis(20);
/// Period while no policy asks for another.
pub const DEFAULT_PERIOD: Duration = Duration::from_millis(100);
